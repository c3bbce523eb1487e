"The classifiers and the grid: attention, maps, what is trained on what, the threshold, resumed runs, three backends, wrong input."
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

keras = pytest.importorskip('keras')
from cxr_acgan import grid as g, shift as sh, vit_attention as v  # noqa: E402
from cxr_acgan.adversarial import dtype_policy  # noqa: E402
from cxr_acgan.data import draw_phantom, load_cxr, split_by_patient, training_share  # noqa: E402
from cxr_acgan.metrics import prediction_draws  # noqa: E402
from cxr_acgan.results import RunRecord, load_network, runs_folder, weights_digest  # noqa: E402

TINY = v.CellSettings(options={'widths': (8, 16), 'dense': 16}, image_size=32, updates=60, batch_size=16, learning_rate=5e-3, rounds=2)
SMALL_VIT = dict(image_size=32, hidden_dim=16, num_heads=2, num_layers=3)


def squares(n, seed=0, size=32):
    "Noise with a dark (0) or bright (1) square, and where it is."
    rng = np.random.default_rng(seed)
    labels, images = np.arange(n) % 2, rng.integers(100, 150, (n, size, size, 1), dtype='uint8')
    inside = np.zeros((n, size, size), bool)
    for k, (y, x) in enumerate(rng.integers(2, size - 10, (n, 2))):
        inside[k, y:y + 8, x:x + 8] = True
        images[k, inside[k]] = (20, 230)[labels[k]]
    return images, labels, inside


@pytest.fixture(scope='module')
def pool():
    return (*squares(192)[:2], None, 2)


@pytest.fixture(scope='module')
def trained(pool):
    return v.fit_cell(pool, squares(32, seed=1)[:2], TINY)


def test_attention_in_both_precisions():
    rng = np.random.default_rng(0)
    q, k, value = (rng.normal(size=(2, 3, n, d)).astype('float32') for n, d in ((5, 8), (7, 8), (7, 4)))
    e = np.exp(np.einsum('abqd,abkd->abqk', q, k) / np.sqrt(8))
    expected = e / e.sum(-1, keepdims=True)
    found, weights = (np.asarray(x) for x in v.attention(q, k, value))
    assert np.allclose(weights, expected, atol=1e-6) and np.allclose(found, expected @ value, atol=1e-5)
    low = [keras.ops.cast(x, 'bfloat16') for x in (q, k, value)]
    found, weights = v.attention(*low)
    assert keras.backend.standardize_dtype(weights.dtype) == 'float32' and keras.backend.standardize_dtype(found.dtype) == 'bfloat16'
    assert np.allclose(np.asarray(weights).sum(-1), 1, atol=1e-6) and np.allclose(np.asarray(weights), expected, atol=0.05)


@pytest.mark.parametrize('make, features', [(lambda classes: v.cnn_classifier(32, classes, widths=(8, 16)), (16, 16)),
                                            (lambda classes: v.vit_classifier(num_classes=classes, **SMALL_VIT), (65, 16))])
@pytest.mark.parametrize('classes', [2, 3])
def test_networks_in_mixed_precision_and_reloaded(make, features, classes, tmp_path):
    with dtype_policy('mixed_bfloat16'): net = make(classes)
    images = draw_phantom(4, image_size=32).images
    logits = net(images)
    assert keras.backend.standardize_dtype(logits.dtype) == 'float32' and logits.shape == (4, classes)
    assert net.get_layer('features').output.shape[1:] == ((8, 8, 16) if net.name == 'cnn' else (65, 16))
    assert net.count_params() - make(classes + 1).count_params() == -(features[1] + 1 if net.name == 'vit' else 129)
    net.save(tmp_path / 'net.keras')
    again = keras.saving.load_model(tmp_path / 'net.keras')
    assert np.allclose(np.asarray(again(images)), np.asarray(logits), atol=1e-5)
    assert v.grad_cam(again, images).shape == (4, 8, 8)


def test_rollout_by_hand():
    a, b = np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([[0.9, 0.1], [0.4, 0.6]])
    weights = np.stack([a, b])[None, :, None]                   # two blocks of one head
    half = lambda m: 0.5 * np.eye(2) + 0.5 * m
    assert np.allclose(v.attention_rollout(weights)[0], half(b) @ half(a)) and not np.allclose(half(b) @ half(a), half(a) @ half(b))
    assert np.allclose(v.attention_rollout(np.concatenate([weights, weights[:, :, :, ::-1, ::-1]], 2)).sum(-1), 1)


def test_weights_and_maps_of_a_transformer():
    vit, images = v.vit_classifier(**SMALL_VIT), draw_phantom(5, image_size=32).images
    weights = v.attention_weights(vit, images)
    assert weights.shape == (5, 3, 2, 65, 65) and np.allclose(weights.sum(-1), 1, atol=1e-5)
    reader = keras.Model(vit.input, vit.get_layer('attention_1').output[1])
    assert np.allclose(weights[:, 1], np.asarray(reader(images)), atol=1e-6)
    assert np.allclose(v.head_maps(vit, images, 0)[:, 1].reshape(5, 64), weights[:, 0, 1, 0, 1:])


def test_grad_cam_finds_the_square(trained):
    new, truth, inside = squares(48, seed=2)
    model, history = trained
    assert history.val_auc.iloc[-1] > 0.95 and history['update'].tolist() == [30, 60]
    maps = v.grad_cam(model, new)
    large = np.stack([np.kron(m, np.ones((4, 4))) for m in maps])
    shown = (maps.max((1, 2)) > 0) & (v.probabilities(model, new).argmax(1) == truth)
    assert shown.sum() > 24 and large[shown][inside[shown]].mean() > 2 * large[shown][~inside[shown]].mean()
    flipped = v.grad_cam(model, new, 1 - truth)                 # what speaks for the other class
    assert v.map_correlation(maps[shown], flipped[shown])['mean'] < 0.5


def test_randomisation(trained):
    model, images = trained[0], squares(24, seed=3)[0]
    same = v.randomisation_test(model, images, v.grad_cam, top=0)
    anew = v.randomisation_test(model, images, v.grad_cam)
    assert same['mean'] > 1 - 1e-6 and anew['mean'] < 0.7 and anew['low'] <= anew['mean'] <= anew['high'] and anew['n'] == 24
    top = v.randomised(model, top=1)
    assert not np.allclose(top.get_layer('logits').kernel, model.get_layer('logits').kernel)
    before, after = (net.layers[2].get_weights() for net in (model, top))
    assert before and all(np.array_equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize('killed', ['last.keras', None])
def test_resumed_in_the_middle(killed, pool, trained, tmp_path, monkeypatch):
    "Killed between the two files of the first round's backup, or in the second round: the resumed run is the whole one."
    valid, save, make = squares(32, seed=1)[:2], v._save, v._round
    def dies(write, path, suffix):
        if path.name == killed: raise KeyboardInterrupt
        save(write, path, suffix)
    def dies_late(pool, settings, seed, number):
        if number and not killed: raise KeyboardInterrupt
        return make(pool, settings, seed, number)
    monkeypatch.setattr(v, '_save', dies)
    monkeypatch.setattr(v, '_round', dies_late)
    with pytest.raises(KeyboardInterrupt): v.fit_cell(pool, valid, TINY, folder=tmp_path)
    monkeypatch.setattr(v, '_save', save)
    monkeypatch.setattr(v, '_round', make)
    model, history = v.fit_cell(pool, valid, TINY, folder=tmp_path)
    assert np.allclose(history.val_loss, trained[1].val_loss, rtol=1e-3)
    assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(model.get_weights(), trained[0].get_weights()))


def test_shares_have_no_patient_in_common():
    train, test = draw_phantom(400), draw_phantom(80, 'test')
    whole, held_out = training_share(train)
    tenth, again = training_share(train, 0.1)
    assert held_out.fingerprint == again.fingerprint and held_out.fingerprint == split_by_patient(train, 0.2)[1].fingerprint
    assert set(tenth.patients) < set(whole.patients) and abs(len(set(tenth.patients)) / len(set(whole.patients)) - 0.1) < 0.03
    for data in (whole, tenth): assert not set(data.patients) & (set(held_out.patients) | set(test.patients))


def write_generator(root, fingerprint, experiment='grid_gan_all'):
    "A generator that draws its class as brightness, and the record of its training."
    noise, labels = keras.Input((4,), name='noise'), keras.Input((2,))
    dense = keras.layers.Dense(1, use_bias=False)
    level = dense(labels)
    dense.set_weights([np.array([[0.2], [0.8]])])
    x = keras.layers.Reshape((64, 64, 1))(keras.layers.RepeatVector(64 * 64)(level + 0.0 * noise[:, :1]))
    folder = runs_folder(experiment, 'smoke', 0, root)
    folder.mkdir(parents=True)
    keras.Model([noise, labels], x).save(folder / 'generator.keras')
    RunRecord(experiment, 'smoke', 0, {}, {'fingerprint': fingerprint}, {}, pd.DataFrame({'update': [0]}), 7.0).write(root)


def test_a_generator_of_other_patients_is_refused(tmp_path):
    root, settings = tmp_path / 'results', v.PROFILES['grid_cnn_gan_all']['smoke']
    whole, _ = training_share(draw_phantom(160))
    tenth, _ = training_share(draw_phantom(160), 0.1)
    with pytest.raises(FileNotFoundError, match='cxr-acgan train grid_gan_all --profile smoke --seed 0'): v.added_images(settings, whole, 'smoke', 0, root)
    write_generator(root, whole.fingerprint)
    added = v.added_images(settings, whole, 'smoke', 0, root)
    assert added.images.dtype == np.uint8 and np.array_equal(np.bincount(added.labels), np.bincount(whole.labels))
    assert [round(added.images[added.labels == c].mean()) for c in (0, 1)] == [51, 204]
    network = load_network('grid_gan_all', 'smoke', 0, root=root)
    assert added.generator == {'experiment': 'grid_gan_all', 'weights': weights_digest(network), 'seconds': 7.0}
    with pytest.raises(ValueError, match='trained on other images'): v.added_images(settings, tenth, 'smoke', 0, root)


def test_the_sources_differ_in_nothing_but_the_images():
    fitted, _ = training_share(draw_phantom(160, num_classes=3))
    sets = {s: v.added_images(replace(v.CNN, source=s), fitted, seed=3) for s in ('real', 'duplicated', 'classic')}
    assert len(sets['real'].images) == 0 and np.array_equal(sets['duplicated'].labels, sets['classic'].labels)
    assert np.array_equal(np.bincount(sets['duplicated'].labels), np.bincount(fitted.labels))
    assert len(np.unique(sets['duplicated'].images.reshape(len(fitted), -1), axis=0)) == len(np.unique(fitted.images.reshape(len(fitted), -1), axis=0))
    more = v.added_images(replace(v.CNN, source='duplicated', added=1.7), fitted)
    assert abs(len(more.labels) - 1.7 * len(fitted)) <= 1 and set(np.bincount(more.stand_for)) <= {1, 2}


def test_an_added_image_is_drawn_as_often_as_the_one_it_stands_for():
    "Otherwise images that look unlike their class, a generator's for instance, would be drawn more often than the duplicates they are compared with."
    fitted, _ = training_share(draw_phantom(160))
    framing = sh.FramingWeights(fitted.images, fitted.labels)
    dark = v.added_images(replace(v.CNN, source='duplicated'), fitted)
    dark = dark._replace(images=dark.images // 4)
    _, _, odds, _ = v._pool(replace(v.CNN, balanced=True), fitted, dark, framing, lambda x: x)
    n = len(fitted)
    assert len(odds) == 2 * n and np.ptp(odds) > 0.1 and np.array_equal(odds[n:], odds[:n][dark.stand_for])
    assert v._pool(v.CNN, fitted, dark, framing, lambda x: x)[2] is None


def test_threshold_and_recipe_never_see_the_test_set(tmp_path, monkeypatch):
    load = v.load_cxr
    def other_test(name, split, *args, **kwargs):
        data = load(name, split, *args, **kwargs)
        return data if split == 'train' else replace(data, labels=1 - data.labels, fingerprint='')
    first = v.train_cell('grid_cnn_real_all', 'smoke', 'phantom', 1, tmp_path / 'a')
    monkeypatch.setattr(v, 'load_cxr', other_test)
    second = v.train_cell('grid_cnn_real_all', 'smoke', 'phantom', 1, tmp_path / 'b')
    assert first.metrics['threshold'] == second.metrics['threshold']
    auc = [r.metrics['scores']['test']['auc']['value'] for r in (first, second)]
    assert np.isclose(sum(auc), 1) and auc[0] != auc[1]
    def no_test(name, split, *args, **kwargs):
        assert split == 'train', 'a candidate has read the test images'
        return load(name, split, *args, **kwargs)
    monkeypatch.setattr(v, 'load_cxr', no_test)
    candidate = v.train_cell('recipe_cnn_strong_balanced', 'smoke', 'phantom', 0, tmp_path / 'c')
    assert 'scores' not in candidate.metrics and set(candidate.metrics['predictions']) == {'validation'} and 0 <= candidate.metrics['validation']['balanced_auc'] <= 1
    read = RunRecord.read(first.path)
    kept = read.metrics['predictions']['validation']
    again = v.choose_threshold(kept['label'], kept['probability'], kept['weight'])
    assert again == pytest.approx(read.metrics['threshold'], abs=1e-3) and len(set(kept['patient'])) == read.metrics['sets']['validation']['patients']
    found, p = read.metrics['predictions']['test'], read.metrics['scores']['test']
    called = np.array(found['probability']) >= read.metrics['threshold']
    assert np.mean(called == np.array(found['label'])) == pytest.approx(p['accuracy']['value'])
    assert set(read.metrics['cost']) == {'seconds', 'cpu_seconds', 'updates', 'parameters', 'mmac'}
    assert sorted(f.name for f in runs_folder('grid_cnn_real_all', 'smoke', 1, tmp_path / 'a').iterdir()) == ['classifier.keras', 'training.json']


def test_holm_and_pairs():
    assert np.allclose(g.holm([0.013, 0.02, 0.001, 0.4]), [0.039, 0.04, 0.004, 0.4])
    assert np.allclose(g.holm([0.02, 0.02, 0.02]), 0.06) and g.holm([0.9, 0.8]).tolist() == [1, 1]
    rng = np.random.default_rng(0)
    y, groups = np.arange(300) % 2, np.arange(300) // 2
    predictions = lambda noise: {'label': y, 'patient': groups, 'probability': np.clip(0.25 + y / 2 + rng.normal(0, noise, 300), 0, 1)}
    cell = lambda noise: {'runs': [], 'draws': {s: prediction_draws(predictions(noise), 0.5, 400) for s in range(3)}}
    cells = {('all', 'vit', 'duplicated'): cell(0.6), ('all', 'vit', 'vae'): cell(0.6), ('all', 'vit', 'gan'): cell(0.25)}
    table = g.grid_differences(cells, ('auc', 'accuracy')).set_index(['score', 'images'])
    assert (table.loc[(slice(None), 'gan'), 'low'] > 0).all() and (table['p, Holm'] >= table.p).all()
    assert table.loc[('auc', 'vae'), 'low'] < 0 < table.loc[('auc', 'vae'), 'high']
    mean, low, high = g.cell_scores(cells['all', 'vit', 'gan'])['auc']
    assert low < mean < high and mean == pytest.approx(np.mean([s[0]['auc'] for s in cells['all', 'vit', 'gan']['draws'].values()]))


def test_framing_weights_take_the_film_away():
    "A confounded picture: the margin tells the class. Under the weights the statistics say nothing, who reads the place of the square still does."
    rng = np.random.default_rng(0)
    images, _, inside = squares(600, seed=5)
    images[inside] = 230
    labels = inside[:, :, 16:].any((1, 2)).astype(int)
    margin = rng.integers(0, 60, 600) + 25 * labels
    images[:, :, :3] = margin[:, None, None, None].astype('uint8')
    framing = sh.FramingWeights(images[:400], labels[:400])
    weights, p = framing(images[400:], labels[400:]), framing.probabilities(images[400:])
    assert sh.weighted_auc(labels[400:], p) > 0.75 and abs(sh.weighted_auc(labels[400:], p, weights) - 0.5) < 0.12
    reader = np.stack([1 - inside[400:, :, 16:].any((1, 2)), inside[400:, :, 16:].any((1, 2))], 1)
    assert sh.weighted_auc(labels[400:], reader, weights) == 1 and all(n < 200 for n in sh.effective_n(weights, labels[400:]))


def test_maps_are_recorded(tmp_path):
    root = tmp_path / 'results'
    v.train_cell('grid_vit_real_all', 'smoke', 'phantom', 0, root)
    record = RunRecord.read(v.measure_maps('grid_vit_real_all', 'smoke', 'phantom', 0, root, n=6).path)
    assert set(record.metrics['correlations']) == {'rollout', 'Grad-CAM'} and record.metrics['correlations']['rollout']['all weights']['n'] == 6
    shown = record.metrics['shown']
    right = [a == b for a, b in zip(shown['label'], shown['called'])]
    assert right == sorted(right, reverse=True) and 1 <= len(right) <= 8 and record.metrics['heads'] == 2
    import matplotlib
    matplotlib.use('agg')
    assert len(v.plot_maps(record).axes) == 3 * len(right) and len(v.plot_heads(record).axes) == 6


def test_shift_of_a_data_set(tmp_path):
    record = sh.measure_shift('phantom', 'smoke', tmp_path / 'results', n=200)
    rows = pd.DataFrame(record.metrics['splits'])
    assert list(record.metrics['classes']) == ['NORMAL', 'PNEUMONIA'] and len(record.metrics['classes']['NORMAL']) == 10
    assert len(rows) == 10 and (rows.low <= rows.difference).all() and (rows.difference <= rows.high).all()
    assert abs(record.metrics['class_auc']['weighted'] - 0.5) < abs(record.metrics['class_auc']['validation'] - 0.5)
    assert set(record.history.split) == {'train', 'test'} and record.history.n.sum() == 400
    moved = draw_phantom(100, 'test')
    moved = replace(moved, images=np.clip(moved.images.astype(int) + 30, 0, 255).astype('uint8'), fingerprint='')
    table = sh.shift_table(draw_phantom(100), moved, n_boot=50).set_index('statistic')
    assert table.loc['brightness', 'low'] > 0.5


@pytest.mark.parametrize('backend', ['jax', 'torch'])
def test_same_maps_on_all_backends(backend, same_on_backends):
    assert all(np.ptp(x) > 1e-6 for x in same_on_backends('backend_vit.py', backend).values())


def test_grid_is_one_recipe():
    for network in ('cnn', 'vit'):
        for profile in ('smoke', 'cpu', 'paper'):
            seen = {str({k: x for k, x in asdict(v.PROFILES[f'grid_{network}_{s}_{a}'][profile]).items() if k not in ('source', 'share', 'generator')})
                    for s in v.SOURCES for a in v.SHARES}
            assert len(seen) == 1
    assert v.PROFILES['grid_plain_gan_10']['cpu'] == replace(v.PROFILES['recipe_cnn_plain']['cpu'], tested=True, source='gan', generator='grid_gan_10', share=0.1)
    assert v.PROFILES['preprocess_both']['cpu'].gaussian_kernel == 3 and v.PROFILES['best_128']['cpu'].image_size == 128


def test_empty_tables_say_not_run(tmp_path):
    cells = g.read_grid(tmp_path)
    assert len(cells) == 25 and (g.grid_table(cells)['auc'] == 'not run').all() and len(g.grid_differences(cells)) == 0
    assert g.choose_recipe('cnn', tmp_path) is None and (g.recipe_table('128', tmp_path).seeds == 0).all()
    assert g.runs_table({'a': 'best_128'}, tmp_path)['auc'].tolist() == ['not run']


IMAGES = draw_phantom(4, image_size=32).images

@pytest.mark.parametrize('call, message', [
    (lambda out: v.vit_classifier(60), 'image_size must be a multiple of 7, got 60'),
    (lambda out: v.vit_classifier(64, patch_size=7), 'multiple of 7, got 64'),
    (lambda out: v.vit_classifier(num_layers=0), 'num_layers must be at least 1'),
    (lambda out: v.vit_classifier(hidden_dim=30), 'hidden_dim 30 must be a multiple of num_heads, 4'),
    (lambda out: v.cnn_classifier(30), 'image_size must be a multiple of 8, got 30'),
    (lambda out: v.cnn_classifier(num_classes=1), 'num_classes must be at least 2'),
    (lambda out: v.attention_weights(v.cnn_classifier(32, widths=(4,)), IMAGES), 'use grad_cam'),
    (lambda out: v.attention_rollout(np.ones((1, 2, 2, 3, 3))), 'add up to 1'),
    (lambda out: v.grad_cam(v.cnn_classifier(32, widths=(4,)), IMAGES, layer='conv9'), "no layer 'conv9'"),
    (lambda out: v.randomised(v.cnn_classifier(32, widths=(4,)), top=99), 'top must be between 0 and'),
    (lambda out: v.map_correlation(np.ones((2, 3, 3)), np.ones((2, 4, 4))), 'same size'),
    (lambda out: sh.image_statistics(IMAGES / 255), 'uint8'),
    (lambda out: sh.Augmentation(crop=0.6), 'crop must be below 0.5'),
    (lambda out: sh.Augmentation(blur=-1), 'none may be negative'),
    (lambda out: v.choose_threshold([1, 1], [0.2, 0.3]), 'both 0 and 1'),
    (lambda out: v.calibration([0, 1], [0.2, 1.3]), 'probability'),
    (lambda out: v.calibration([0, 1], [0.2, 0.3], bins=5), 'as many bins'),
    (lambda out: g.holm([0.5, 2]), 'probabilities'),
    (lambda out: v.build_cell(replace(TINY, network='resnet')), "unknown network 'resnet'"),
    (lambda out: v.fit_cell((IMAGES, np.arange(4) % 2, None, 2), (IMAGES, np.arange(4) % 2), replace(TINY, updates=3)), 'multiple of rounds'),
    (lambda out: v.added_images(replace(TINY, source='diffusion'), draw_phantom(20)), "unknown source 'diffusion'"),
    (lambda out: v.train_cell('grid_cnn_all', 'smoke', out=out), "unknown experiment 'grid_cnn_all'"),
    (lambda out: v.train_cell('best_128', 'quick', out=out), "unknown profile 'quick'"),
    (lambda out: v.train_cell('best_128', 'smoke', seed=-1, out=out), 'seed'),
    (lambda out: v.train_cell('grid_vit_vae_10', 'smoke', out=out), 'cxr-acgan train vae_10 --profile smoke --seed 0'),
    (lambda out: v.measure_maps('grid_vit_real_all', 'cpu', 'phantom', 0, out), 'holds no record'),
])
def test_bad_input(call, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught: call(tmp_path / 'results')
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'results').exists()


def test_kermany_films_tell_the_class(cxr_data):
    "What the augmentation answers: ten numbers of a picture tell ill from healthy in the training set, and the weights take that away."
    fitted, held_out = training_share(load_cxr('kermany', 'train', 64, progress=False))
    framing = sh.FramingWeights(fitted.images, fitted.labels)
    p, weights = framing.probabilities(held_out.images), framing(held_out.images, held_out.labels)
    assert sh.weighted_auc(held_out.labels, p) > 0.9 and abs(sh.weighted_auc(held_out.labels, p, weights) - 0.5) < 0.1
    assert not set(fitted.patients) & set(held_out.patients) and len(fitted) + len(held_out) == 5_216
