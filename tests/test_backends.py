"""The same losses and gradients on TensorFlow, JAX and PyTorch; the latter two without TensorFlow."""
import os
import subprocess
import sys

import numpy as np
import pytest

@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_losses_and_gradients(backend, same_on_backends):
    found = same_on_backends("backend_step.py", backend)
    assert len(found) > 30
    assert max(np.abs(v).max() for k, v in found.items() if k.startswith("generator")) > 1e-3, "gradients too small to compare"


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
