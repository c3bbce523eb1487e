"The VGG16 on synthetic images: what is trained, resumed, tested and refused."
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

keras = pytest.importorskip('keras')
from cxr_acgan import vgg16_eval as v  # noqa: E402
from cxr_acgan.acgan import acgan_generator  # noqa: E402
from cxr_acgan.adversarial import open_run  # noqa: E402
from cxr_acgan.data import load_cxr, training_share  # noqa: E402
from cxr_acgan.metrics import scores_from_confusion  # noqa: E402
from cxr_acgan.results import RunRecord, load_network, runs_folder, sheet_images  # noqa: E402
from cxr_acgan.vae import VAE, reconstruct_images, train_vae  # noqa: E402

TINY = replace(v.PAPER, images=40, image_size=32, epochs=2, batch_size=16, learning_rate=1e-3)


def toy_generator(num_classes=2, size=32):
    "A picture whose brightness is its class, with a little noise."
    noise, labels = keras.Input((4,)), keras.Input((num_classes,))
    levels = keras.layers.Dense(1, use_bias=False, kernel_initializer=lambda shape, dtype=None: np.linspace(0.2, 0.8, num_classes)[:, None])(labels)
    x = levels + 0.02 * noise[:, :1]
    return keras.Model([noise, labels], keras.layers.Reshape((size, size, 1))(keras.layers.RepeatVector(size * size)(x)))


@pytest.fixture
def thin(monkeypatch):
    "Two small convolutions in place of the VGG16's thirteen, under the same head: for tests of the loop around the network."
    def base(include_top, weights, input_shape, pooling):
        x = images = keras.Input(input_shape)
        for filters in (8, 16): x = keras.layers.Conv2D(filters, 3, strides=2, activation='relu')(x)
        return keras.Model(images, keras.layers.GlobalMaxPooling2D()(x))

    monkeypatch.setattr(keras.applications, 'VGG16', base)


def test_labels_choose_the_images():
    images, labels = v.labelled_images(toy_generator(3), 300, seed=0, shares=(0.5, 0.3, 0.2))
    assert images.dtype == np.uint8 and images.shape == (300, 32, 32, 1)
    means = [images[labels == k].mean() for k in range(3)]
    assert np.allclose(means, np.array([0.2, 0.5, 0.8]) * 255, atol=3)
    again, same = v.labelled_images(toy_generator(3), 300, seed=0, shares=(0.5, 0.3, 0.2))
    assert np.array_equal(images, again) and np.array_equal(labels, same)
    assert not np.array_equal(images, v.labelled_images(toy_generator(3), 300, seed=1, shares=(0.5, 0.3, 0.2))[0])


def test_synthetic_training_learns_a_clear_task():
    "Bright against dark: trained on generated pictures, right on real ones of the same kind."
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    images = (np.array([51, 204])[labels][:, None, None, None] + rng.normal(0, 3, (60, 32, 32, 1))).astype('uint8')
    real = replace(load_cxr('phantom', 'test', 32, n=60, progress=False), images=images, labels=labels, fingerprint='')
    done = v.train_on_synthetic(toy_generator(), real, replace(TINY, images=160, epochs=6), seed=1)
    assert done.scores['phantom test']['auc']['value'] > 0.95
    assert done.sheet[0].shape == (64, 32, 32, 1) and len(done.sheet[1]) == 64


def test_resumed_in_the_middle(thin, tmp_path, monkeypatch):
    "Killed while an epoch is being saved, at each of the three files: the resumed run is the whole one."
    rng = np.random.default_rng(0)
    part = lambda n: (rng.integers(0, 256, (n, 32, 32, 1), dtype=np.uint8), rng.integers(0, 2, n))
    train, validation = part(32), part(16)
    whole = v.fit_classifier(train, validation, TINY)[0].get_weights()
    save = v.save_whole
    for name in ('epochs.json', 'best.weights.h5', 'last.keras'):
        folder = tmp_path / name
        folder.mkdir()
        def dies(write, path, name=name):
            if path.name == name: raise KeyboardInterrupt
            save(write, path)
        monkeypatch.setattr(v, 'save_whole', dies)
        with pytest.raises(KeyboardInterrupt): v.fit_classifier(train, validation, TINY, folder=folder)
        monkeypatch.setattr(v, 'save_whole', save)
        model, history = v.fit_classifier(train, validation, TINY, folder=folder)
        assert history.epoch.tolist() == [0, 1]
        assert all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(whole, model.get_weights()))


def test_the_rule_is_keras_own(thin):
    "The same epochs and weights as one `fit` with `EarlyStopping(restore_best_weights=True)` on batches in the same order."
    rng = np.random.default_rng(1)
    train = rng.integers(0, 256, (32, 32, 32, 1), dtype=np.uint8), np.arange(32) % 2
    validation, settings = (train[0], 1 - train[1]), replace(TINY, epochs=6, patience=1)
    model, history = v.fit_classifier(train, validation, settings, seed=3)
    theirs = v._compiled(settings, 2, 3)
    stop = keras.callbacks.EarlyStopping(patience=1, monitor='val_loss', mode='min', restore_best_weights=True)
    stop.set_model(theirs)
    theirs.stop_training = False
    stop.on_train_begin()
    for epoch in range(settings.epochs):
        order = np.random.default_rng(v.seed_hash(3, 4000 + epoch)).permutation(32)
        v.seed_masks(theirs, 3, epoch)
        logs = theirs.fit(train[0][order], train[1][order], batch_size=16, shuffle=False, validation_data=validation, verbose=0).history
        stop.on_epoch_end(epoch, {'val_loss': logs['val_loss'][0]})
        if theirs.stop_training: break
    stop.on_train_end()
    if not theirs.stop_training: theirs.set_weights(stop.best_weights)
    assert len(history) == epoch + 1
    assert all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(model.get_weights(), theirs.get_weights()))


def test_best_weights_are_put_back(thin):
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (48, 32, 32, 1), dtype=np.uint8), np.arange(48) % 2
    wrong = train[0], 1 - train[1]                              # the better it learns, the worse it gets
    settings = replace(TINY, epochs=8)
    model, history = v.fit_classifier(train, wrong, settings)
    best, stopped = v.best_epoch(history.val_loss, settings.patience)
    assert best < len(history) - 1                              # there is something to put back
    assert stopped == (len(history) < 8) and len(history) <= max(best + 3, 1)
    model.compile(loss='binary_crossentropy')
    assert np.isclose(model.evaluate(*wrong, verbose=0), history.val_loss[best], rtol=1e-3)


def test_record_and_smoke(tmp_path):
    record = v.train_vgg16('vgg16_real', 'smoke', 'phantom', 0, tmp_path / 'results')
    read = RunRecord.read(record.path)
    assert set(read.metrics['scores']) == {'train', 'test'} == set(read.metrics['predictions'])
    found, predicted = read.metrics['scores']['test'], read.metrics['predictions']['test']
    assert np.mean((np.array(predicted['probability']) >= 0.5) == predicted['label']) == pytest.approx(found['accuracy']['value'])
    assert roc_auc_score(predicted['label'], predicted['probability']) == pytest.approx(found['auc']['value'])
    assert read.metrics['generator'] is None and read.metrics['fitted'] < read.dataset['n'] == read.settings['images']
    assert len(set(predicted['patient'])) == read.metrics['sets']['test']['patients']
    assert scores_from_confusion(found['confusion'])['recall'] == found['recall']['value']
    assert sorted(p.name for p in runs_folder('vgg16_real', 'smoke', 0, tmp_path / 'results').iterdir()) == ['classifier.keras', 'training.json']
    assert json.loads((record.path / 'run.json').read_text())['settings']['generator'] == ''


@pytest.mark.parametrize('backend', ['jax', 'torch'])
def test_same_on_all_backends(backend, same_on_backends):
    assert np.ptp(same_on_backends('backend_vgg16.py', backend)['probabilities']) > 1e-4


@pytest.mark.parametrize('call, message', [
    (lambda out: v.vgg16_classifier(16), 'image_size must be at least 32'),
    (lambda out: v.vgg16_classifier(num_classes=1), 'num_classes at least 2'),
    (lambda out: v.best_epoch([0.5, float('nan')], 2), 'diverged'),
    (lambda out: v.best_epoch([], 2), 'at least one'),
    (lambda out: v.VGG16Settings(validation=1.5), 'validation must be a share'),
    (lambda out: v.VGG16Settings(epochs=0), 'epochs must be at least 1'),
    (lambda out: v.VGG16Settings(batch_size=0), 'batch_size must be at least 1'),
    (lambda out: v.labelled_images(keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)]), 4), 'no class input'),
    (lambda out: v.fit_classifier((np.zeros((4, 32, 32, 1), 'uint8'), np.zeros(4)), (np.zeros((0, 32, 32, 1), 'uint8'), []), TINY), '0 to validate on'),
    (lambda out: v.train_on_synthetic(toy_generator(), load_cxr('phantom', 'test', 64, n=6, progress=False), TINY), 'the classifier 2 at 32 px'),
    (lambda out: v.labelled_images(toy_generator(), 0), 'n must be at least 1'),
    (lambda out: v.labelled_images(toy_generator(), 4, shares=(0.5, 0.6)), 'add up to 1'),
    (lambda out: v.train_on_synthetic(toy_generator(3), load_cxr('phantom', 'test', 32, n=6, progress=False), TINY), '2 classes at 32 px'),
    (lambda out: v.train_vgg16('vgg19', 'smoke', out=out), "unknown experiment 'vgg19'"),
    (lambda out: v.train_vgg16('vgg16_real', 'quick', out=out), "unknown profile 'quick'"),
    (lambda out: v.train_vgg16('vgg16_real', 'smoke', seed=-1, out=out), 'seed'),
    (lambda out: v.train_vgg16('vgg16_singh', 'smoke', out=out), 'cxr-acgan train singh --profile smoke --seed 0'),
    (lambda out: v.measure_images('singh', 'cpu', 'phantom', 0, out), 'cxr-acgan train singh --profile cpu --seed 0'),
    (lambda out: v.measure_images('real', 'smoke', 'nowhere', 0, out), 'nowhere'),
    (lambda out: v.measure_images('singh', 'cpu', 'phantom', 0, out, n=63), 'at least 64'),
    (lambda out: v.train_on_real(*(load_cxr('phantom', s, size, n=6, progress=False) for s, size in (('train', 32), ('test', 64))), TINY), 'the classifier 2 at 32 px'),
])
def test_bad_input(call, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught: call(tmp_path / 'results')
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'results').exists()


def test_adults_are_no_kermany_children(cxr_data):
    if not (cxr_data / 'covidx').is_dir(): pytest.skip('no covidx in $CXR_DATA')
    with pytest.warns(UserWarning, match='confounded'): adults = v.adult_cxr(64, progress=False, download=False)
    assert set(adults.sources) == set(v.ADULTS) and len(adults) == 12_592
    assert adults.class_counts() == {'NORMAL': 8_891, 'PNEUMONIA or COVID-19': 3_701}
    train = load_cxr('kermany', 'train', 64, progress=False)
    assert not (set(adults.patients) & set(train.patients)) - {''}


def test_a_generator_is_known_by_its_weights(tmp_path):
    "A run that began with one generator does not go on with another."
    out, folder = tmp_path / 'results', runs_folder('singh', 'smoke', 0, tmp_path / 'results')
    folder.mkdir(parents=True)
    identities = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        acgan_generator().save(folder / 'generator.keras')
        identities.append(v.generator_identity('singh', 'smoke', 0, out))
    assert identities[0] == identities[1] and identities[0]['weights'] != identities[2]['weights']
    open_run(tmp_path / 'run', {'generator': identities[0]})
    open_run(tmp_path / 'run', {'generator': identities[1]})
    with pytest.raises(ValueError, match='other settings'): open_run(tmp_path / 'run', {'generator': identities[2]})


def test_a_finished_quality_record_needs_no_weights(cxr_data):
    "On a fresh clone the committed record is returned; another n is refused."
    out = Path(__file__).parents[1] / 'results'
    found = v.measure_images('singh', 'cpu', 'kermany', 0, out)
    assert found.experiment == 'quality_singh' and found.metrics['train']['n'] == 6000
    for other in (dict(n=100), dict(controls=20)):
        with pytest.raises(ValueError, match='other settings, weights or data'): v.measure_images('singh', 'cpu', 'kermany', 0, out, **other)


def test_a_finished_training_is_not_another(cxr_data, monkeypatch):
    "A committed record is returned without its generator; not for other data or settings."
    out = Path(__file__).parents[1] / 'results'
    found = v.train_vgg16('vgg16_singh_6000', 'cpu', 'kermany', 0, out)
    assert found.metrics['generator']['experiment'] == 'singh' and found.settings['images'] == 6000
    with pytest.raises(ValueError, match='move it away'): v.train_vgg16('vgg16_singh_6000', 'cpu', 'phantom', 0, out)
    with pytest.raises(ValueError, match="no predictions of 'adults'"): v.gap_to_real(found, found, on='adults')
    shown = v.scores_table({'': [found]})
    assert (len(shown), shown['recall'].str.contains(r'1\.000 \[1\.000').sum()) == (4, 0)
    monkeypatch.setitem(v.PROFILES['vgg16_singh_6000'], 'cpu', replace(v.PROFILES['vgg16_singh_6000']['cpu'], patience=9))
    with pytest.raises(ValueError, match='move it away'): v.train_vgg16('vgg16_singh_6000', 'cpu', 'kermany', 0, out)


def test_copies_are_searched_among_what_was_trained_on():
    train = load_cxr('phantom', 'train', 32, n=160, progress=False)
    parts = {share: training_share(train, share)[0] for share in (1.0, 0.1)}
    of = lambda known, profile='cpu': v._trained_on({'experiment': 'vae', 'trained_on': known}, train, profile)
    assert [len(of(part.fingerprint)) for part in parts.values()] == [len(part) for part in parts.values()] and len(parts[0.1]) < len(parts[1.0]) < 160
    assert of(train.fingerprint) is of(None) is of('other', 'smoke') is train
    with pytest.raises(ValueError, match='vae was trained on other images than phantom'): of('other')


def test_sheets_show_no_image_that_may_not_be_shown():
    "Only the generated half of the closest pairs, and generated thumbnails, where the set's licences are unclear."
    train, test = (load_cxr('phantom', split, 64, n=n, progress=False) for split, n in (('train', 160), ('test', 240)))
    closed = replace(train, licences=('unclear',) * 80 + ('CC BY 4.0',) * 40 + ('CC BY-NC 4.0',) * 40)
    assert closed.showable.sum() == 40
    found, sheets = v._measure_generator(acgan_generator(), closed, closed, test, 128, 'cxr', 0, 8)
    beside = sheet_images(sheets['closest.png'], 64)[10:20]
    assert [bool(x.any()) for x in beside] == closed.showable[found['memorisation']['closest']['train']].tolist()
    some = np.random.default_rng(v.seed_hash(0, 5000)).permutation(160)[:128]
    assert all(i >= 128 or closed.showable[some[i]] for i in found['tsne']['shown']) and len(found['tsne']['shown']) > 5


def test_reconstructions_of_unseen_images_beside_a_vaes_samples(tmp_path):
    train_vae('vae', 'smoke', 'phantom', 0, tmp_path / 'results')
    found = v.measure_images('vae', 'smoke', 'phantom', 0, tmp_path / 'results', n=64, controls=4).metrics['memorisation']
    test = load_cxr('phantom', 'test', 64, progress=False)
    assert found['unseen']['n'] == len(test) == found['features']['unseen']['n'] and found['n'] == 64
    vae = VAE(*(load_network('vae', 'smoke', 0, name, tmp_path / 'results') for name in ('encoder', 'generator')))
    again = v.memorisation_report(test.images[:8], load_cxr('phantom', 'train', 64, progress=False).images, test.images, test.patients, controls=1,
                                  unseen=reconstruct_images(vae, test.images, test.labels))
    assert again['unseen'] == found['unseen']


def test_generators_quality_against_a_known_one(tmp_path):
    "Real images as 'generated' ones score as real; blurred and few ones do not."
    data = load_cxr('phantom', 'train', 64, n=400, progress=False)
    half, other = np.arange(400) % 2 == 0, np.arange(400) % 2 == 1
    reference = data.subset(other)
    good = v.image_quality(data.images[half], data.labels[half], reference)
    few = v.image_quality(np.repeat(data.images[half][::20], 20, axis=0), np.repeat(data.labels[half][::20], 20), reference)
    assert few['frechet_distance'] > 2 * good['frechet_distance'] and few['recall'] < 0.5 * good['recall']
    assert few['ms_ssim']['mean'] > good['ms_ssim']['mean'] and good['n'] == few['n'] == 200


def test_inception_on_random_weights(tmp_path, monkeypatch):
    "FID, class-wise FID and Inception Score, from images to the table: all but ImageNet's weights."
    from cxr_acgan import features
    networks = {'inception': features.inception_network(weights=None), 'inception_probabilities': features.inception_network(weights=None, output='probabilities')}
    monkeypatch.setattr(features, '_network', networks.__getitem__)
    monkeypatch.setenv('CXR_RESULTS', str(tmp_path))
    real = load_cxr('phantom', 'train', 32, n=16, progress=False)
    images, labels = v.labelled_images(toy_generator(), 12, seed=1)
    labels[:] = np.arange(12) % 2
    found = v.image_quality(images, labels, real, space='inception')
    assert found['frechet_distance'] > 0 and found['intra']['mean'] > 0 and 1 <= found['inception_score'][0] <= 12
    for name, space in (('quality_toy', None), ('quality_toy_inception', found)):
        RunRecord(name, 'cpu', 0, {}, real.describe(), {'half': space or {'n': 12}}, pd.DataFrame(columns=["update"])).write(tmp_path)
    table = v.quality_table({'toy': 'quality_toy'}, measures=()).set_index('measure').toy
    assert table['FID'] == f"{found['frechet_distance']:.3g}" and table['Inception Score'] == f"{found['inception_score'][0]:.3g}"
