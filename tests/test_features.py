"Feature spaces: the shipped weights and their record, resizes, what the distance sees, backends, bad input."
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from cxr_acgan import features
from cxr_acgan.data import load_cxr, split_by_patient
from cxr_acgan.features import (cxr_network, degrade_images, image_features, inception_network, kermany_findings,
                                train_cxr_network)
from cxr_acgan.metrics import frechet_distance, kernel_distance
from cxr_acgan.results import load_runs

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / 'cxr_acgan' / 'cxr_features.npz'
KINDS = {'blur': (0, 0.6, 1, 1.5, 2.5), 'noise': (0, 8, 16, 32), 'checkerboard': (0, 2, 4, 8), 'brightness': (0, 8, 16, 32)}


@pytest.fixture(scope='module')
def drawn(): return load_cxr('phantom', n=480, progress=False)


@pytest.fixture(scope='module')
def record():
    [run] = load_runs('cxr_features', 'cpu', ROOT / 'results')
    return run


# the shipped weights

def test_shipped_weights_are_those_of_the_record(record):
    content = SHIPPED.read_bytes()
    assert hashlib.sha256(content).hexdigest() == record.metrics['weights']['sha256'], 'retrain: see features.ipynb'
    assert len(content) == record.metrics['weights']['bytes'] <= 3e6
    with np.load(SHIPPED, allow_pickle=False) as found:
        assert {v.dtype.name for k, v in found.items() if k not in ('mean', 'std')} == {'float16'}


def test_record_holds_what_the_page_says(record):
    spoiled, base = record.metrics['spoiled'], record.metrics['baselines']
    assert record.dataset['name'] == 'kermany' and record.dataset['n'] == 5216
    halves = base['training, halves by patient']['frechet']
    for kind in ('blur', 'noise', 'checkerboard', 'components'): assert spoiled[kind][-1]['frechet'] > 20 * halves
    equal = record.metrics['equal_error']
    assert equal['shift']['cxr'] < 2 * equal['untouched']['cxr'] and equal['blur']['cxr'] > 10 * equal['shift']['cxr']
    confusion = np.array(record.metrics['validation']['confusion'])
    assert confusion.sum() == record.metrics['validation']['n'] and np.trace(confusion) / confusion.sum() > 0.7


def test_kermany_again(cxr_data, record):
    "The record's first numbers, from the shipped file: halves by patient, and a slight blur far above them."
    train = load_cxr('kermany', 'train', 64, root=cxr_data, progress=False)
    space = image_features(train.images)
    assert np.abs(space.mean(0)).max() < 0.05 and abs(space.std(0).mean() - 1) < 0.05  # 9 in 10 of them standardised it
    half, other = split_by_patient(train, 0.5, 0)
    half, sharp, blurred = (image_features(x) for x in (half.images, other.images, degrade_images(other.images, 'blur', 0.6)))
    real = frechet_distance(half, sharp)
    assert real == pytest.approx(record.metrics['baselines']['training, halves by patient']['frechet'], rel=0.5)
    assert frechet_distance(half, blurred) > 5 * real


# images in, features out

@pytest.mark.parametrize('shape', [(3, 64, 64, 1), (3, 64, 64), (2, 30, 47, 1), (1, 300, 200)])
def test_any_size(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype='uint8')
    found = image_features(images)
    assert found.shape == (shape[0], 256) and found.dtype == np.float32 and np.isfinite(found).all()


def test_batches_do_not_matter(drawn):
    whole = image_features(drawn.images[:50])
    np.testing.assert_allclose(image_features(drawn.images[:50], batch_size=7), whole, atol=1e-4)
    np.testing.assert_allclose(image_features(drawn.images[49:50]), whole[49:], atol=1e-4)


def test_large_images_come_down_by_area(drawn):
    large = drawn.images[:5].repeat(3, 1).repeat(3, 2)
    np.testing.assert_allclose(image_features(large), image_features(drawn.images[:5]), atol=1e-4)


@pytest.mark.parametrize('old, new', [((64, 64), 299), ((512, 300), 299), ((33, 500), 64)])
def test_bicubic_is_that_of_pil(old, new):
    image = np.random.default_rng(0).integers(0, 256, (1, *old), dtype='uint8')
    by_pil = np.asarray(Image.fromarray(image[0].astype('float32')).resize((new, new), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(features._resize_bicubic(image, new)[0], by_pil.clip(0, 255), atol=1e-2)


def test_area_is_that_of_opencv():
    image = np.random.default_rng(0).integers(0, 256, (1, 150, 220), dtype='uint8')
    np.testing.assert_array_equal(features._resize_area(image, 64)[0], cv2.resize(image[0], (64, 64), interpolation=cv2.INTER_AREA))


def test_float32_whatever_the_policy(drawn):
    expected = image_features(drawn.images[:8])
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        found = image_features(drawn.images[:8], cxr_network())
        assert keras.config.dtype_policy().name == 'mixed_bfloat16'
    finally:
        keras.config.set_dtype_policy('float32')
    np.testing.assert_array_equal(found, expected)


def test_six_thousand_in_ten_seconds(drawn):
    images = np.resize(drawn.images, (6000, 64, 64, 1))
    image_features(images[:256])
    start = time.perf_counter()
    image_features(images)
    assert time.perf_counter() - start < 10


# what the distance sees

@pytest.mark.parametrize('kind', KINDS)
def test_grows_with_spoiling(drawn, kind):
    space = image_features(drawn.images[::2])
    spoiled = [image_features(degrade_images(drawn.images[1::2], kind, s)) for s in KINDS[kind]]
    for distance in (frechet_distance, lambda x, y: kernel_distance(x, y, subsets=1).mean):
        values = [distance(space, y) for y in spoiled]
        assert (np.diff(values) > 0).all() and values[-1] > 4 * abs(values[0]), values


def test_grows_with_dropped_modes(drawn):
    space, others = image_features(drawn.images[::2]), image_features(drawn.images[1::2])
    values = [frechet_distance(space, np.resize(others[:n], others.shape)) for n in (240, 60, 15, 4)]
    assert (np.diff(values) > 0).all() and values[-1] > 3 * values[0], values


def test_sees_the_heart_on_the_wrong_side(drawn):
    space, others = image_features(drawn.images[::2]), drawn.images[1::2]
    assert frechet_distance(space, image_features(others[:, :, ::-1])) > 1.5 * frechet_distance(space, image_features(others))


def test_degrade_in_known_amounts():
    gray = np.full((4, 32, 32), 120, 'uint8')
    assert degrade_images(gray, 'noise', 10).std() == pytest.approx(10, rel=0.05)
    assert (degrade_images(gray, 'noise', 10, seed=1) != degrade_images(gray, 'noise', 10)).any()
    board = degrade_images(gray, 'checkerboard', 3).astype(int)
    assert (np.abs(np.diff(board, axis=1)) == 6).all() and (np.abs(np.diff(board, axis=2)) == 6).all()
    step = np.where(np.arange(32) < 16, 50, 200).astype('uint8')
    blurred = degrade_images(np.tile(step, (1, 32, 1)), 'blur', 2)[0, 16].astype(float)
    assert np.abs(np.diff(blurred)).max() == pytest.approx(150 / (2 * np.sqrt(2 * np.pi)), rel=0.05)  # a Gaussian's height
    moved = degrade_images(np.tile(step, (9, 32, 1)), 'shift', 3)[:, 16]
    assert set((moved < 125).sum(1) - 16) <= set(range(-3, 4)) and len(set((moved < 125).sum(1))) > 2


# training

def test_training_learns_and_repeats(drawn):
    data = drawn.images[:160], drawn.labels[:160], (drawn.images[320:400], drawn.labels[320:400])
    (weights, scores, history), (again, _, _) = (train_cxr_network(*data, seed=3, epochs=3, batch_size=16) for _ in range(2))
    assert [h['epoch'] for h in history] == [0, 1, 2] and history[-1]['reconstruction_loss'] < 0.7 * history[0]['reconstruction_loss']
    assert np.sum(scores['confusion']) == scores['n'] == 80 and scores['reconstruction_rmse'] < 90
    for name, w in weights.items(): np.testing.assert_allclose(w, again[name], rtol=1e-2, atol=1e-3, err_msg=name)
    network = cxr_network(weights)
    space = image_features(data[0], network)
    np.testing.assert_allclose(space.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(space.std(0), 1, atol=2e-2)


def test_findings():
    names = ('test/NORMAL/IM-0001-0001.jpeg', 'person3_virus_15.jpeg', 'x/person80_bacteria_391.jpeg')
    assert kermany_findings(names).tolist() == [0, 2, 1]


# InceptionV3, on random weights

def test_inception_is_that_of_keras():
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), dtype='uint8')
    ours = inception_network(weights=None)
    theirs = keras.applications.InceptionV3(include_top=False, weights=None, pooling='avg', input_shape=(299, 299, 3))
    theirs.set_weights(ours.get_weights())
    resized = features._resize_bicubic(images[..., 0], 299)[..., None].repeat(3, -1)
    expected = np.asarray(theirs(keras.applications.inception_v3.preprocess_input(resized), training=False))
    found = image_features(images, ours)
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


def test_probabilities_add_up():
    network = inception_network(weights=None, output='probabilities')
    found = image_features(np.zeros((1, 20, 20), 'uint8'), network)
    assert found.shape == (1, 1000) and found.sum() == pytest.approx(1, abs=1e-4)


def test_download_that_fails(monkeypatch):
    def fails(*args, **kwargs): raise Exception('URL fetch failure on https://storage.googleapis.com/x: None --\nno route')
    monkeypatch.setattr(keras.applications, 'InceptionV3', fails)
    features._network.cache_clear()
    with pytest.raises(OSError, match='^the ImageNet weights of InceptionV3 cannot be downloaded .URL fetch.*use space .cxr.$') as error:
        image_features(np.zeros((1, 64, 64), 'uint8'), 'inception')
    assert '\n' not in str(error.value)


# backends and imports

@pytest.mark.parametrize('backend', ['tensorflow', 'jax', 'torch'])
def test_same_on_every_backend(backend, on_backend):
    here = image_features(load_cxr('phantom', image_size=100, n=20, progress=False).images)
    np.testing.assert_allclose(on_backend('backend_features.py', backend)['features'], here, atol=1e-3)


def test_imports_of_the_project_only_the_training_loop():
    code = "import sys, cxr_acgan.features; print(sorted(m for m in sys.modules if m.startswith('cxr_acgan.')))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == "['cxr_acgan.adversarial', 'cxr_acgan.features']", done.stderr


# bad input

IMAGES, LABELS = np.zeros((6, 64, 64, 1), 'uint8'), np.arange(6) % 2

@pytest.mark.parametrize('call, text', [
    (lambda: image_features(IMAGES / 255), 'gray uint8 .* got float64'),
    (lambda: image_features(IMAGES.repeat(3, 3)), r'gray uint8 .* got uint8 \(6, 64, 64, 3\)'),
    (lambda: image_features(IMAGES[0, ..., 0]), r'got uint8 \(64, 64\)'),
    (lambda: image_features(IMAGES[:0]), 'n >= 1'),
    (lambda: image_features(IMAGES, 'imagenet'), "unknown space 'imagenet': choose cxr"),
    (lambda: image_features(IMAGES, batch_size=0), 'batch_size must be at least 1'),
    (lambda: inception_network(output='logits'), "unknown output 'logits'"),
    (lambda: inception_network(weights='nowhere.h5'), 'no weights file nowhere.h5'),
    (lambda: cxr_network({'mean': np.zeros(256)}), 'not the weights of cxr_network'),
    (lambda: cxr_network(ROOT / 'settings.ini'), 'settings.ini is no readable .npz'),
    (lambda: degrade_images(IMAGES, 'jpeg', 1), "unknown kind 'jpeg'"),
    (lambda: degrade_images(IMAGES, 'blur', -1), 'strength must be at least 0'),
    (lambda: kermany_findings(('00001',)), '00001 names no finding'),
    (lambda: train_cxr_network(IMAGES, LABELS[:5], (IMAGES, LABELS)), 'findings must be 6 whole numbers'),
    (lambda: train_cxr_network(IMAGES, LABELS / 2, (IMAGES, LABELS)), 'whole numbers from 0'),
    (lambda: train_cxr_network(IMAGES, LABELS, (IMAGES[:0], LABELS[:0])), 'n >= 1'),
    (lambda: train_cxr_network(IMAGES, LABELS, (IMAGES, LABELS), seed=-1), 'seed must be >= 0'),
    (lambda: train_cxr_network(IMAGES, LABELS, (IMAGES, LABELS), epochs=0), 'epochs and batch_size >= 1'),
])
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=text) as error: call()
    assert '\n' not in str(error.value)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights at .*train_cxr_network'): cxr_network(tmp_path / 'none.npz')


def test_weights_are_never_unpickled(tmp_path):
    np.savez(tmp_path / 'w.npz', mean=np.array([{}], object))
    with pytest.raises(ValueError, match='is no readable .npz'): cxr_network(tmp_path / 'w.npz')
