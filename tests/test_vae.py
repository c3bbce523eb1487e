"The VAE: its objective, what labels do, resuming, the three backends, records and what is refused."
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

keras = pytest.importorskip('keras')
from cxr_acgan import vae as v  # noqa: E402
from cxr_acgan.adversarial import dtype_policy, seed_hash  # noqa: E402
from cxr_acgan.data import load_cxr  # noqa: E402
from cxr_acgan.results import RunRecord, load_network, record_images, runs_folder  # noqa: E402
from cxr_acgan.vgg16_eval import labelled_images  # noqa: E402

numpy = keras.ops.convert_to_numpy
TINY = replace(v.PAPER, image_size=16, images=60, latent_dim=6, updates=6, batch_size=8, log_every=2, checkpoint_every=3, evaluated=10)


def tiny_vae(seed=0, **kwargs): return v.VAE(v.vae_encoder(4, image_size=16), v.vae_decoder(4, image_size=16), seed=seed, **kwargs)


def test_kl_against_monte_carlo():
    "Closed form in four dimensions at once against the mean of log q - log p; the sign that kumar prints is far off."
    mean, log_var = np.float32([0.3, -1.5, 0, 2]), np.float32([0.4, -2, 0, -0.5])
    z = mean + np.exp(log_var / 2) * np.random.default_rng(0).standard_normal((100_000, 4))
    ratio = (-0.5 * (z - mean)**2 / np.exp(log_var) - 0.5 * log_var + 0.5 * z**2).sum(1)
    error, kl = ratio.std() / np.sqrt(len(ratio)), float(numpy(v.kl_divergence(mean, log_var)).sum())
    assert abs(kl - ratio.mean()) < 4 * error
    assert abs(0.5 * (1 + log_var - mean**2 - np.exp(log_var)).sum() - ratio.mean()) > 100 * error
    assert numpy(v.kl_divergence(mean, log_var))[2] == 0


def test_sampling_draws_again_from_its_state():
    mean, log_var = np.full((20_000, 1), 2, 'float32'), np.full((20_000, 1), np.log(0.25), 'float32')
    with dtype_policy('mixed_bfloat16'): layer = v.Sampling(seed=5)
    z, other = numpy(layer(mean, log_var)), numpy(layer(mean, log_var))
    assert z.dtype == np.float32 and abs(z.mean() - 2) < 0.02 and abs(z.std() - 0.5) < 0.01
    assert abs(np.corrcoef(z[:, 0], other[:, 0])[0, 1]) < 0.05
    assert np.array_equal(z, numpy(v.Sampling.from_config(layer.get_config())(mean, log_var)))
    assert not np.array_equal(z, numpy(v.Sampling(seed=6)(mean, log_var)))


@pytest.mark.parametrize('likelihood', ['bernoulli', 'gaussian'])
def test_loss_by_hand(likelihood):
    vae, rng = tiny_vae(beta=0.7, likelihood=likelihood), np.random.default_rng(0)
    images, labels, noise = rng.integers(0, 256, (5, 16, 16, 1), dtype='uint8'), np.array([0, 1, 0, 1, 1]), rng.normal(size=(5, 4))
    x, c = images.astype('float32') / 255, np.eye(2, dtype='float32')[labels]
    mean, log_var = map(numpy, vae.encoder([x, c]))
    p = numpy(vae.decoder([(mean + np.exp(log_var / 2) * noise).astype('float32'), c])).astype(float)
    nats = -(x * np.log(p) + (1 - x) * np.log(1 - p)) if likelihood == 'bernoulli' else \
        (x - p)**2 / (2 * np.exp(-5)) + 0.5 * np.log(2 * np.pi * np.exp(-5))
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1).mean()
    found = {k: float(value) for k, value in vae.losses_of(*vae.prepare(images, labels), noise.astype('float32')).items()}
    assert found['reconstruction_loss'] == pytest.approx(nats.sum((1, 2, 3)).mean(), rel=1e-4)
    assert found['kl_loss'] == pytest.approx(kl, rel=1e-4)
    assert found['loss'] == pytest.approx(found['reconstruction_loss'] + 0.7 * found['kl_loss'], rel=1e-5)


def test_labels_change_the_picture(tmp_path):
    "Class 0 is dark, class 1 bright: learned, told apart for the same z, and saved with the decoder."
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = np.clip(np.array([70, 190])[labels][:, None, None, None] + rng.normal(0, 15, (64, 1, 16, 1)), 0, 255).astype('uint8')
    images = np.repeat(images, 16, axis=1)
    vae = tiny_vae()
    vae.compile(keras.optimizers.Adam(2e-3))
    vae.fit(images, labels, batch_size=16, steps_per_epoch=150, verbose=0)
    rows = v.class_rows(vae.decoder, rng.standard_normal((20, 4)).astype('float32')).astype(float).mean((2, 3, 4))
    assert (rows[1] - rows[0] > 60).all()
    assert np.abs(v.reconstruct_images(vae, images, labels).astype(float) - images).mean() < 15
    swapped = v.reconstruct_images(vae, images, 1 - labels).mean((1, 2, 3))
    assert swapped[labels == 0].mean() > swapped[labels == 1].mean() + 30
    vae.save(tmp_path / 'vae.keras')
    loaded = keras.saving.load_model(tmp_path / 'vae.keras')
    assert loaded.updates_done == int(loaded.optimizer.iterations) == 150 and loaded.beta == vae.beta
    again = v.image_losses(loaded, images, labels)
    assert all(np.array_equal(value, again[name]) for name, value in v.image_losses(vae, images, labels).items())


RESUMED = """
import sys
from dataclasses import replace
from pathlib import Path
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
from cxr_acgan import adversarial, vae
vae.PROFILES['vae_gaussian']['cpu'] = replace(vae.PAPER, likelihood='gaussian', image_size=16, images=60, latent_dim=4, updates=12,
                                              batch_size=4, log_every=5, checkpoint_every=4, evaluated=8)
train = lambda out: vae.train_vae('vae_gaussian', 'cpu', 'phantom', 3, out)
train(sys.argv[1])
made, log = [], adversarial.UpdateLogger.on_train_batch_end

def dies(self, batch, logs=None):
    made.append(self.next)
    if made == list(range(7)): raise KeyboardInterrupt
    log(self, batch, logs)

adversarial.UpdateLogger.on_train_batch_end = dies
try: train(sys.argv[2])
except KeyboardInterrupt: assert not Path(sys.argv[2]).exists(), 'a killed run must leave no record'
else: raise SystemExit('was not killed')
train(sys.argv[2])
assert made[7:] == list(range(4, 12)), made
"""


def test_resumed_run_is_the_same_run(tmp_path):
    folders = [tmp_path / name / 'results' for name in ('whole', 'resumed')]
    env = os.environ | {'KERAS_BACKEND': 'tensorflow', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    run = subprocess.run([sys.executable, '-c', RESUMED, *map(str, folders)], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    whole, resumed = (RunRecord.read(f / 'vae_gaussian' / 'cpu-seed3') for f in folders)
    pd.testing.assert_frame_equal(whole.history, resumed.history)
    assert whole.history['update'].tolist() == [0, 4, 8, 12]
    differ = {k for k in whole.metrics if whole.metrics[k] != resumed.metrics[k]}
    assert differ <= {'seconds_per_update', 'cpu_seconds'} and all(r.metrics['cpu_seconds'] > 0 for r in (whole, resumed)) and whole.metrics['variance'] != pytest.approx(np.exp(-5))
    for name in ('generator', 'encoder'):
        a, b = (load_network('vae_gaussian', 'cpu', 3, name, root=f).get_weights() for f in folders)
        assert all(np.array_equal(p, q) for p, q in zip(a, b)), f'{name} differs after resuming'
    assert not (runs_folder('vae_gaussian', 'cpu', 3, folders[1]) / 'backup').exists()


@pytest.mark.parametrize('backend', ['jax', 'torch'])
def test_same_losses_and_gradients(backend, same_on_backends):
    found = same_on_backends('backend_vae.py', backend)
    gradients = [np.abs(value).max() for name, value in found.items() if 'gradient' in name]
    assert len(found) > 50 and min(gradients) > 1e-4, 'a gradient too small to compare'


def test_record_and_sampling(tmp_path, monkeypatch):
    monkeypatch.setitem(v.PROFILES['vae'], 'smoke', replace(TINY, precision='mixed_bfloat16'))
    root = tmp_path / 'results'
    record = RunRecord.read(v.train_vae('vae', 'smoke', 'phantom', 1, root).path)
    whole = load_cxr('phantom', 'train', 16, n=60, progress=False)
    sets, scores = record.metrics['sets'], record.metrics['scores']
    assert record.dataset['n'] + sets['validation']['n'] == 60 and sets['train']['n'] == 10
    assert record.dataset['patients'] + sets['validation']['patients'] == len(set(whole.patients)), 'a patient on both sides'
    assert record.history['update'].tolist() == [0, 3, 6] and len(record.metrics['logged']) == 4
    assert record.history.iloc[-1]['reconstruction_loss'] == pytest.approx(scores['train']['reconstruction_loss']['value'], rel=1e-3)
    for name in scores:
        assert scores[name]['n'] == sets[name]['n'] and all(m['low'] <= m['value'] <= m['high'] for m in scores[name].values() if m != scores[name]['n'])
    latent = record.metrics['latent']
    assert sum(latent['kl']) == pytest.approx(scores['validation']['kl_loss']['value'], abs=0.01) and sorted(latent['order']) == list(range(6))
    assert [len(record_images(record, f'{name}.png')) for name in ('reconstructions', 'samples', 'traversals')] == [32, 32, 48]
    decoder = load_network('vae', 'smoke', 1, root=root)
    images, labels = v.sample_vae('vae', 'smoke', 1, n=6, out=root, noise_seed=4)
    noise = np.random.default_rng(seed_hash(4, 1000)).standard_normal((6, 6)).astype('float32')
    expected = numpy(decoder([noise, np.eye(2, dtype='float32')[labels]]))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and np.abs(images - 255 * expected).max() < 1.5
    assert labelled_images(decoder, 5, seed=0)[0].shape == (5, 16, 16, 1)


def test_a_tenth_of_the_patients_gets_a_tenth_of_the_updates():
    for profile in ('cpu', 'paper'):
        whole, tenth = (v.vae_settings(name, profile) for name in ('vae', 'vae_10'))
        assert whole.updates == 10 * tenth.updates and tenth.share == 0.1 and whole.share == 1
    assert v.vae_settings('vae', 'cpu').updates == 5_000 and v.vae_settings('vae', 'paper').updates == 20_000


def test_active_units_are_those_that_vary():
    vae, data = tiny_vae(), load_cxr('phantom', 'train', 16, n=40, progress=False)
    head = vae.encoder.get_layer('z_mean')
    kernel = numpy(head.kernel) * np.float32([30, 0, 30, 0])
    head.kernel.assign(kernel)
    report = v.latent_report(vae, data)
    assert report['active_units'] == 2 and set(report['order'][:2]) == {0, 2}


@pytest.mark.parametrize('call, message', [
    (lambda out: v.vae_encoder(image_size=20), 'image_size must be a multiple of 8, got 20'),
    (lambda out: v.vae_decoder(latent_dim=0), 'latent_dim and num_classes must be at least 1'),
    (lambda out: tiny_vae(beta=-1.0), 'beta must be >= 0'),
    (lambda out: tiny_vae(likelihood='poisson'), "likelihood bernoulli or gaussian, got 1.0 and 'poisson'"),
    (lambda out: tiny_vae().fit(np.zeros((2, 16, 16, 1)), [0, 1]), 'images must be uint8'),
    (lambda out: tiny_vae().fit(np.zeros((2, 32, 32, 1), 'uint8'), [0, 1]), "of shape ('n', 16, 16, 1)"),
    (lambda out: tiny_vae().fit(np.zeros((2, 16, 16, 1), 'uint8'), [0, 2]), 'whole numbers from 0 to 1'),
    (lambda out: v.image_losses(tiny_vae(), np.zeros((2, 16, 16, 1), 'uint8'), [0]), 'one an image'),
    (lambda out: v.train_vae('vae_beta9', 'smoke', out=out), "unknown experiment 'vae_beta9'"),
    (lambda out: v.train_vae('vae', 'quick', out=out), "unknown profile 'quick'"),
    (lambda out: v.train_vae('vae', 'smoke', seed=-1, out=out), 'seed'),
    (lambda out: v.train_vae('vae', 'smoke', 'nowhere', out=out), 'nowhere'),
    (lambda out: v.sample_vae('vae', 'cpu', 0, out=out), 'cxr-acgan train vae --profile cpu --seed 0'),
    (lambda out: v.sample_vae('vae', 'cpu', 0, n=0, out=out), 'n must be at least 1'),
])
def test_bad_input(call, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught: call(tmp_path / 'results')
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'results').exists()
