"""The same losses and gradients on TensorFlow, JAX and PyTorch; the latter two without TensorFlow."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def step(backend, folder):
    out = folder / f"{backend}.npz"
    env = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, str(HERE / "backend_step.py"), str(out)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    with np.load(out) as found:
        return dict(found)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return step("tensorflow", tmp_path_factory.mktemp("tensorflow"))


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_losses_and_gradients(backend, reference, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    found = step(backend, tmp_path)
    assert found.keys() == reference.keys() and len(found) > 30
    for name, value in reference.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(value).max()), err_msg=name)
    largest = max(np.abs(v).max() for k, v in reference.items() if k.startswith("generator"))
    assert largest > 1e-3, "gradients too small to compare"


def test_data_and_records_need_no_keras(tmp_path):
    code = ("import sys; sys.modules['keras'] = sys.modules['tensorflow'] = None\n"
            "from cxr_acgan import data, metrics, results\n"
            "assert len(data.load_cxr('phantom', n=8)) == 8")
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_two_replicas_of_a_strategy(tmp_path):
    """`fit` under a distribution strategy: each replica draws its own batch, the counts stay whole."""
    code = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from cxr_acgan.acgan import ACGANSettings, build_acgan
with tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1']).scope():
    gan = build_acgan(ACGANSettings(image_size=16), 2, 0)
images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), dtype='uint8')
history = gan.fit(images, np.arange(16) % 2, batch_size=4, steps_per_epoch=3, epochs=2, verbose=0).history
assert gan.updates_done == 6 and np.isfinite(list(history.values())).all()
"""
    env = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
