"The classifiers and the grid: attention, maps, what is trained on what, the threshold, resumed runs, three backends, wrong input."
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

keras = pytest.importorskip('keras')
from cxr_acgan import grid as g, shift as sh, vit_attention as v  # noqa: E402
from cxr_acgan.adversarial import dtype_policy  # noqa: E402
from cxr_acgan.data import draw_phantom, load_cxr, split_by_patient, training_share  # noqa: E402
from cxr_acgan.framing import ChestFrame, draw_out  # noqa: E402
from cxr_acgan.metrics import prediction_draws  # noqa: E402
from cxr_acgan.results import RunRecord, load_network, runs_folder, weights_digest  # noqa: E402

ROOT = Path(__file__).parents[1]
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
    signed = v.grad_cam(model, new, signed=True)                # the cut is all that sets the two apart
    assert signed.min() < 0 and np.array_equal(np.maximum(signed, 0), maps)


def test_randomisation(trained):
    model, images = trained[0], squares(24, seed=3)[0]
    same = v.randomisation_test(model, images, v.grad_cam, top=0)
    anew = v.randomisation_test(model, images, v.grad_cam)
    assert same['mean'] > 1 - 1e-6 and anew['mean'] < 0.7 and anew['low'] <= anew['mean'] <= anew['high'] and anew['n'] == 24
    top = v.randomised(model, top=1)
    assert not np.allclose(top.get_layer('logits').kernel, model.get_layer('logits').kernel)
    before, after = (net.layers[2].get_weights() for net in (model, top))
    assert before and all(np.array_equal(a, b) for a, b in zip(before, after))


def test_weights_drawn_anew_are_not_those_training_began_with(trained):
    kernels = lambda net: [w for w in net.get_weights() if np.ptp(w) > 0]
    first, anew, again = kernels(v.build_cell(TINY, seed=0)), kernels(v.randomised(trained[0], 0)), kernels(v.randomised(trained[0], 0))
    assert len(first) == len(anew) > 5 and not any(np.allclose(a, b, atol=1e-3) for a, b in zip(first, anew))
    assert all(np.array_equal(a, b) for a, b in zip(anew, again)) and np.array_equal(first[0], kernels(v.build_cell(TINY, seed=0))[0])


def test_both_networks_explain_the_same_class(trained):
    images, seen = squares(12, seed=4)[0], []
    def method(net, x, classes):
        seen.append(np.array(classes))
        return np.random.default_rng(0).normal(size=(len(x), 4, 4)) * (np.arange(len(x)) > 2)[:, None, None]
    found = v.randomisation_test(trained[0], images, method)
    predicted = v.probabilities(trained[0], images).argmax(1)
    assert len(seen) == 2 and all(np.array_equal(c, predicted) for c in seen) and set(predicted) == {0, 1}
    assert found['flat'] == 3 and found['mean_without_flat'] == pytest.approx(1) and found['mean'] == pytest.approx(9 / 12)
    assert v.map_correlation(np.zeros((2, 3, 3)), np.zeros((2, 3, 3)))['mean_without_flat'] is None


def test_views_are_the_same_for_every_set(trained):
    images, changes = squares(9, seed=6)[0], replace(sh.STRONG, noise=30.0, share=0.1, mirror=True)
    few, many = v.view_images(images[4:6], 4, changes), v.view_images(images, 4, changes)
    assert len(many) == 4 and all(np.array_equal(a, b[4:6]) for a, b in zip(few, many)) and not any(np.array_equal(images, x) for x in many[1:])
    logit = [np.asarray(trained[0](x)) for x in many]
    e = np.exp(np.mean(logit, 0))
    assert np.allclose(v.probabilities(trained[0], images, 4, changes), e / e.sum(1, keepdims=True), atol=1e-4)
    assert not np.allclose(v.probabilities(trained[0], images, 4, changes), v.probabilities(trained[0], images), atol=1e-3)


def test_augmentation_keeps_images_and_sharpness():
    images = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 1), dtype='uint8')
    same = (sh.augment(images, replace(sh.STRONG, share=0.3), 1) == images).all((1, 2, 3))
    assert 0.6 < same.mean() < 0.8 and not (sh.augment(images, sh.STRONG, 1) == images).all((1, 2, 3)).any()
    turned = lambda flag: sh.augment(images[:50], sh.Augmentation(rotation=20.0), 2)
    sharp = sh.image_statistics(turned(0)).sharpness.mean() / sh.image_statistics(images[:50]).sharpness.mean()
    assert 0.6 < sharp < 1                                      # of noise; a bilinear warp leaves about a half


@pytest.mark.parametrize('killed', ['last.keras', None])
def test_resumed_in_the_middle(killed, pool, trained, tmp_path, monkeypatch):
    "Killed between the two files of the first round's backup, or in the second round: the resumed run is the whole one."
    valid, save, make = squares(32, seed=1)[:2], v.save_whole, v._round
    def dies(write, path):
        if path.name == killed: raise KeyboardInterrupt
        save(write, path)
    def dies_late(pool, settings, seed, number):
        if number and not killed: raise KeyboardInterrupt
        return make(pool, settings, seed, number)
    monkeypatch.setattr(v, 'save_whole', dies)
    monkeypatch.setattr(v, '_round', dies_late)
    with pytest.raises(KeyboardInterrupt): v.fit_cell(pool, valid, TINY, folder=tmp_path)
    monkeypatch.setattr(v, 'save_whole', save)
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


def test_what_added_images_look_like_is_kept(tmp_path):
    root = tmp_path / 'results'
    fitted, _ = training_share(load_cxr('phantom', 'train', 64, n=160, progress=False))
    write_generator(root, fitted.fingerprint)
    run = v.train_cell('grid_cnn_gan_all', 'smoke', 'phantom', 0, root)
    looks = pd.DataFrame(RunRecord.read(run.path).metrics['looks']).set_index(['images', 'class'])
    assert looks.loc['added', 'brightness'].tolist() == pytest.approx([51, 204], abs=0.5) and (looks.loc['added', 'sharpness'] < 0.1).all()
    assert looks.loc['real', 'brightness'].tolist() == pytest.approx([sh.image_statistics(fitted.images[fitted.labels == c]).brightness.mean() for c in (0, 1)], abs=0.01)
    assert looks.loc[('real', 'NORMAL'), 'as_class_1'] < looks.loc[('real', 'PNEUMONIA'), 'as_class_1']
    table = g.looks_table(g.read_grid(root, 'smoke', n_boot=20))
    assert table.images.tolist() == ['real', 'real', 'gan', 'gan'] and table.patients.unique().tolist() == ['all']
    assert 'looks' not in v.train_cell('grid_cnn_duplicated_all', 'smoke', 'phantom', 0, root).metrics


def test_a_generator_trained_anew_is_noticed(tmp_path):
    root = tmp_path / 'results'
    write_generator(root, 'fingerprint')
    network, path = load_network('grid_gan_all', 'smoke', 0, root=root), runs_folder('grid_gan_all', 'smoke', 0, root) / 'generator.keras'
    run = RunRecord('grid_cnn_gan_all', 'smoke', 0, {}, {}, {'generator': {'experiment': 'grid_gan_all', 'weights': weights_digest(network)}}, pd.DataFrame({'update': [0]}))
    run.write(root)
    assert v._same_generator(run, root) is run
    network.set_weights([w + 0.1 for w in network.get_weights()])
    network.save(path)
    with pytest.raises(ValueError, match='grid_cnn_gan_all.smoke-seed0 was run with images of another grid_gan_all than the one at hand: move it away'):
        v._same_generator(run, root)
    path.unlink()
    assert v._same_generator(run, root) is run


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
    candidate = v.train_cell('recipe_cnn_sharp_deep_fast_balanced', 'smoke', 'phantom', 0, tmp_path / 'c')
    assert 'scores' not in candidate.metrics and set(candidate.metrics['predictions']) == {'validation'} and 0 <= candidate.metrics['validation']['balanced_auc'] <= 1
    seen = candidate.metrics['validation']
    assert list(seen['styles']) == list(sh.STYLES) and seen['styles']['as it is'] == pytest.approx(seen['balanced_auc']) and len(seen['draws']) == 500
    assert min(seen['draws']) < seen['styles_auc'] < max(seen['draws'])
    assert 'styles' not in first.metrics['validation']                     # nothing is chosen by a cell
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


def test_tests_that_are_still_to_be_run_count():
    assert np.allclose(g.holm([0.02, 0.01], 8), [0.14, 0.08]) and g.holm([], 3).size == 0
    with pytest.raises(ValueError, match='at most as many'): g.holm([0.1, 0.2], 1)
    rng = np.random.default_rng(0)
    score = lambda mean: {s: ({'auc': mean}, {'auc': rng.normal(mean, 0.01, 50)}) for s in range(3)}
    cells = {(a, n, s): {'runs': [], 'draws': score(0.9) if n == 'cnn' and a == 'all' else {}} for a, n in v.GRID for s in v.SOURCES}
    table = g.grid_differences(cells, ('auc',))
    assert len(table) == 4 and dict(zip(table.images, table.tests)) == {'real': 12, 'classic': 12, 'gan': 8, 'vae': 8}
    first = table[table.family == 'first']
    assert np.allclose(first['p, Holm'], g.holm(first.p, 8))


def test_seeds_averaged(tmp_path):
    "Two classifiers that err on different patients are right together; the threshold is of the averaged validation patients."
    y, rng = np.arange(400) % 2, np.random.default_rng(0)
    def run(noise):
        kept = lambda: {'label': y, 'patient': np.arange(400), 'weight': np.ones(400), 'probability': 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(0, noise, 400))))}
        return RunRecord('x', 'cpu', 0, {}, {}, {'predictions': {'validation': kept(), 'test': kept()}}, None)
    runs = [run(2.0) for _ in range(5)]
    found, threshold = g.averaged(runs)
    auc = lambda predictions: sh.weighted_auc(y, np.stack([1 - predictions['probability'], predictions['probability']], 1))
    assert auc(found['test']) > max(auc(r.metrics['predictions']['test']) for r in runs) + 0.05 and 0.4 < threshold < 0.6
    one = g.averaged(runs[:1])[0]['test']
    assert np.allclose(one['probability'], runs[0].metrics['predictions']['test']['probability'])
    low, high = (RunRecord('x', 'cpu', 0, {'heights': [1.0]}, {}, r.metrics | {'threshold': t}, None) for r, t in zip(runs, (0.2, 0.8)))
    assert g.averaged([low, high])[1] == pytest.approx(0.5) and g.averaged([high])[1] == pytest.approx(0.8)  # of several heights: the mean of the logits
    runs[1].metrics['predictions']['test']['patient'] = np.arange(400)[::-1]
    for wrong in ([], runs):
        with pytest.raises(ValueError, match='same images'): g.averaged(wrong)


def test_cells_of_two_generators_are_refused(tmp_path):
    for seed, weights in ((0, 'a'), (1, 'b')):
        stored(tmp_path, 'grid_cnn_gan_all', seed=seed)
        path = tmp_path / 'grid_cnn_gan_all' / f'cpu-seed{seed}' / 'metrics.json'
        metrics = json.loads(path.read_text())
        path.write_text(json.dumps(metrics | {'generator': {'weights': weights, 'seconds': 1.0}}))
        if not seed: g.read_grid(tmp_path, n_boot=5)
    with pytest.raises(ValueError, match='gan images with share all were run with 2 different generators'): g.read_grid(tmp_path, n_boot=5)


def test_the_same_training_is_not_made_twice(tmp_path, monkeypatch):
    "A cell that is a candidate takes its weights where these are at hand, and says so; other seeds and other settings are trained."
    tiny = lambda name: replace(v.PROFILES[name]['smoke'], precision='float32', options={'widths': (4, 8)}, updates=4, rounds=2, images=80)
    candidate, cell = f"recipe_cnn_{v.CHOSEN['cnn']}", 'grid_cnn_real_all'
    for name in (candidate, cell): monkeypatch.setitem(v.PROFILES[name], 'cpu', tiny(name))
    monkeypatch.setattr(v, 'check_choice', lambda *args: None)
    root, fits = tmp_path / 'results', []
    fit = v.fit_cell
    monkeypatch.setattr(v, 'fit_cell', lambda *args: fits.append(args) or fit(*args))
    first = v.train_cell(candidate, 'cpu', 'phantom', 0, root)
    second = v.train_cell(cell, 'cpu', 'phantom', 0, root)
    assert len(fits) == 1 and second.metrics['weights_of'] == candidate and second.metrics['weights'] == first.metrics['weights']
    assert 'scores' in second.metrics and second.metrics['predictions']['validation']['probability'] == pytest.approx(first.metrics['predictions']['validation']['probability'])
    assert second.metrics['cost'] == pytest.approx(first.metrics['cost'], rel=1e-4) and load_network(cell, 'cpu', 0, 'classifier', root).count_params() > 0
    v.train_cell(cell, 'cpu', 'phantom', 1, root)
    assert len(fits) == 2


def test_holm_families():
    "GAN and VAE images of both networks and shares are a family of eight; the rest is corrected by itself."
    rng = np.random.default_rng(0)
    score = lambda mean: {s: ({'auc': mean + s / 1000}, {'auc': rng.normal(mean, 0.01, 50)}) for s in range(3)}
    cells = {(a, n, s): {'runs': [], 'draws': score(0.9 + 0.02 * (s == 'gan'))} for a, n in v.GRID for s in v.SOURCES}
    table = g.grid_differences(cells, ('auc',))
    first = table[table.family == 'first']
    assert len(table) == 20 and len(first) == 8 and set(first.images) == {'gan', 'vae'} and set(first.network) == {'cnn', 'vit'}
    assert np.allclose(first['p, Holm'], g.holm(first.p)) and not np.allclose(first['p, Holm'], g.holm(table.p)[first.index])
    assert set(table.tests) == {8, 12} and 'of 8, 3 seeds with the same patients and generator' in g.grid_verdicts(first)[0]
    assert 'not judged by one seed' in g.grid_verdicts(first.assign(seeds=1, **{'p, Holm': 0.0}))[0] and '1 seed with' in g.grid_verdicts(first.assign(seeds=1))[0]


def scored(predictions):
    "What the choice reads of a record, of predictions in one style."
    first, *draws = v.auc_draws(predictions)
    return {'styles_auc': first, 'draws': draws}


def candidates(root, group, noise, seeds=None, **changed):
    "Records of a group's candidates: {candidate: how far its probabilities are from the class}."
    y = np.arange(400) % 2
    for k, (name, sigma) in enumerate(noise.items()):
        settings = v.PROFILES[f'recipe_{group}_{name}']['cpu']
        for seed in seeds or v.RECIPE_SEEDS[group]:
            p = np.clip(0.25 + y / 2 + np.random.default_rng((k, seed)).normal(0, sigma, 400), 0, 1).round(5)
            kept = {'label': y, 'patient': np.arange(400) // 2, 'probability': p, 'weight': np.ones(400)} | changed
            metrics = {'validation': {'auc': 0.9, 'balanced_auc': 0.8} | scored(kept), 'predictions': {'validation': kept}}
            RunRecord(f'recipe_{group}_{name}', 'cpu', seed, asdict(settings) | {'backend': 'none'}, {}, metrics, pd.DataFrame({'update': [0]})).write(root)


def test_the_choice_is_the_best(tmp_path):
    names = list(v.RECIPES['128'])
    candidates(tmp_path / 'clear', '128', dict(zip(names, (0.6, 0.3, 0.6))))
    gaps = v.recipe_gaps(v.candidate_runs('128', tmp_path / 'clear'))
    assert v.choose_recipe('128', tmp_path / 'clear') == names[1] and gaps[names[1]][1:] == (0, 0) and gaps[names[0]][1] > 2 * gaps[names[0]][2] > 0
    of_two_seeds = list(v.RECIPES['shape'])
    candidates(tmp_path / 'close', 'shape', dict(zip(of_two_seeds, (0.42, 0.4, 0.6, 0.6))))
    gaps = v.recipe_gaps(v.candidate_runs('shape', tmp_path / 'close'))
    assert v.choose_recipe('shape', tmp_path / 'close') == of_two_seeds[1] and 0 < gaps[of_two_seeds[0]][1] < gaps[of_two_seeds[0]][2]
    table = g.recipe_table('128', tmp_path / 'clear').set_index('recipe')
    assert table.chosen.tolist() == ['', 'yes', ''] and table.loc[names[0], 'behind the best'] == pytest.approx(v.recipe_gaps(v.candidate_runs('128', tmp_path / 'clear'))[names[0]][1])


def test_one_failed_run_makes_no_tie():
    "Nor does a candidate's own luck with two seeds: the margin of seeds is one for all."
    y, rng = np.arange(400) % 2, np.random.default_rng(0)
    def runs(*noise):
        kept = lambda sigma: {'label': y, 'patient': np.arange(400), 'weight': np.ones(400), 'probability': np.clip(0.25 + y / 2 + rng.normal(0, sigma, 400), 0, 1)}
        found = [kept(sigma) for sigma in noise]
        return [RunRecord('x', 'cpu', k, {}, {}, {'predictions': {'validation': p}, 'validation': scored(p)}, None) for k, p in enumerate(found)]
    gaps = v.recipe_gaps({'plain': runs(0.5, 0.5), 'failed': runs(0.3, 9.0), 'middle': runs(0.33, 0.33), 'best': runs(0.3, 0.3)})
    assert v.best_recipe(gaps) in ('middle', 'best') and gaps['failed'][1] > 5 * gaps['failed'][2] > 0


def test_the_choice_is_by_weighted_patients(tmp_path):
    "The best without the weights is not the best with them."
    names, y, rng = list(v.RECIPES['128']), np.arange(400) % 2, np.random.default_rng(0)
    heavy = np.arange(400) < 100
    plain = np.where(heavy, 0.5 + rng.normal(0, 0.01, 400), y)        # right where the weight is small
    other = np.where(heavy, y, 0.5 + rng.normal(0, 0.01, 400)).round(4)
    for name, p in zip(names, (plain, other, plain)):
        candidates(tmp_path, '128', {name: 0.1}, probability=p.round(4), weight=np.where(heavy, 3.7, 0.1))
    assert v.choose_recipe('128', tmp_path) == names[1]
    kept = {'label': y, 'probability': other, 'patient': np.arange(400), 'weight': np.where(heavy, 3.7, 0.1)}
    assert v.auc_draws(kept, 3)[0] == pytest.approx(sh.weighted_auc(y, np.stack([1 - other, other], 1), kept['weight']))


def test_runs_rest_on_a_finished_choice(tmp_path):
    names, chosen = list(v.RECIPES['128']), v.CHOSEN['128']
    run = lambda root: v.train_cell('best_128', 'cpu', 'nowhere', 0, root)
    with pytest.raises(ValueError, match='nowhere'): run(tmp_path / 'empty')                                    # the committed choice holds
    candidates(tmp_path / 'part', '128', {n: 0.4 for n in names[:2]})
    with pytest.raises(ValueError, match=f'not finished: 1 run is missing, the first `cxr-acgan train recipe_128_{names[2]} --seed 0 --profile cpu`'): run(tmp_path / 'part')
    assert v.choose_recipe('128', tmp_path / 'part') is None
    with pytest.raises(ValueError, match='nowhere'): v.train_cell('grid_cnn_real_all', 'cpu', 'nowhere', 0, tmp_path / 'part')
    candidates(tmp_path / 'good', '128', {n: 0.3 if n == chosen else 0.6 for n in names})
    with pytest.raises(ValueError, match='nowhere'): run(tmp_path / 'good')
    other = next(n for n in names if n != chosen)
    candidates(tmp_path / 'other', '128', {n: 0.3 if n == other else 0.6 for n in names})
    with pytest.raises(ValueError, match=f"records choose '{other}'"): run(tmp_path / 'other')
    candidates(tmp_path / 'mixed', '128', {n: 0.4 for n in names[:2]})
    candidates(tmp_path / 'mixed', '128', {names[2]: 0.4}, patient=np.arange(400))
    with pytest.raises(ValueError, match='same patients'): run(tmp_path / 'mixed')
    candidates(tmp_path / 'two', 'vit', {n: 0.3 if n == v.CHOSEN['vit'] else 0.6 for n in v.RECIPES['vit']})
    both = lambda: v.train_cell('recipe_128_vit', 'cpu', 'nowhere', 0, tmp_path / 'two')
    with pytest.raises(ValueError, match='nowhere'): both()
    candidates(tmp_path / 'two', 'shape', {'framed': 0.3})
    with pytest.raises(ValueError, match='chosen for shape, and the choice is not finished'): both()
    candidates(tmp_path / 'two', 'shape', {n: 0.2 if n == 'stretched' else 0.6 for n in v.RECIPES['shape'] if n != 'framed'})
    with pytest.raises(ValueError, match="for shape, the records choose 'stretched'"): both()
    resting = {g: next(x for start, x in v.RESTS_ON.items() if g.startswith(start)) for g in ('grid_vit_gan_10', 'preprocess_gaussian', 'recipe_128_vit', 'best_128')}
    assert list(resting.values()) == [('vit',), ('cnn',), ('vit', 'shape'), ('128',)]


def stored(root, experiment='grid_cnn_real_all', profile='cpu', seed=0, probability=None, threshold=0.6, **settings):
    "A record of an experiment with known predictions on 100 images."
    y = np.arange(100) % 2
    p = np.where(y, 0.8, 0.2) if probability is None else probability
    known = {'label': y, 'patient': np.arange(100), 'probability': p}
    metrics = {'threshold': threshold, 'predictions': {'validation': known, 'test': known}, 'generator': {},
               'calibration': {'test': {'ece': 0.1, 'brier': 0.1}}, 'cost': {'seconds': 99.0, 'cpu_seconds': 150.0, 'updates': 5, 'parameters': 6, 'mmac': 7.0}}
    kept = asdict(v.PROFILES[experiment][profile]) | {'backend': 'tensorflow'} | settings
    RunRecord(experiment, profile, seed, kept, {}, metrics, pd.DataFrame({'update': [0]})).write(root)


def test_records_of_other_settings_are_refused(tmp_path):
    stored(tmp_path / 'a' / 'results')
    assert v.train_cell('grid_cnn_real_all', 'cpu', 'nowhere', 0, tmp_path / 'a' / 'results').metrics['cost']['updates'] == 5
    for k, changed in enumerate(({'updates': 7}, {'views': 3}, {'old': 1})):
        root = tmp_path / str(k) / 'results'
        stored(root, **changed)
        for read in (lambda: v.train_cell('grid_cnn_real_all', 'cpu', 'nowhere', 0, root), lambda: g.read_cell('grid_cnn_real_all', root), lambda: g.read_grid(root)):
            with pytest.raises(ValueError) as caught: read()
            assert all(x in str(caught.value) for x in (*changed, 'move it away', str(root / 'grid_cnn_real_all' / 'cpu-seed0'), str(tmp_path / str(k) / 'runs' / 'grid_cnn_real_all')))
            assert '\n' not in str(caught.value)
    candidates(tmp_path / 'c', '128', {'cnn': 0.4}, seeds=(0,))
    path = tmp_path / 'c' / 'recipe_128_cnn' / 'cpu-seed0' / 'run.json'
    views = v.PROFILES['recipe_128_cnn']['cpu'].views
    path.write_text(path.read_text().replace(f'"views": {views}', f'"views": {views + 1}'))
    with pytest.raises(ValueError, match='views.*move it away'): g.recipe_table('128', tmp_path / 'c')


def test_settings_that_an_older_record_does_not_know(tmp_path):
    "They had the value that is the default; where today's value is another, the record is refused."
    for name, refused in (('grid_cnn_real_all', None), ('shape_cnn', 'heights')):
        stored(tmp_path, name)
        path = tmp_path / name / 'cpu-seed0' / 'run.json'
        kept = json.loads(path.read_text())
        for key in ('framed', 'heights'): del kept['settings'][key]
        del kept['settings']['augmentation']['stretch']
        path.write_text(json.dumps(kept))
        if refused:
            with pytest.raises(ValueError, match=refused): v.check_record(RunRecord.read(path.parent))
        else:
            v.check_record(RunRecord.read(path.parent))


def test_the_second_study_changes_only_how_the_chest_lies():
    frozen = v.RECIPES['cnn'][v.CHOSEN['cnn']]
    for name, s in v.RECIPES['shape'].items():
        assert replace(s, framed=False, heights=(), augmentation=frozen.augmentation) == frozen and s.heights and not s.tested
        same = replace(s.augmentation, stretch=0.0, crop=frozen.augmentation.crop, pad=frozen.augmentation.pad) == frozen.augmentation
        assert same and (s.framed or (s.augmentation.crop, s.augmentation.pad) == (frozen.augmentation.crop, frozen.augmentation.pad))
    assert v.PROFILES['shape_cnn']['cpu'] == replace(v.RECIPES['shape'][v.CHOSEN['shape']], tested=True, precision='mixed_bfloat16')
    assert len(v.declared_seeds('shape_cnn')) == 5 and v.declared_seeds('recipe_shape_framed') == (0, 1)


def test_threshold_of_all_heights():
    "A network that calls taller chests more ill gets a threshold between those of the heights, and says what each height does to it."
    held_out = draw_phantom(300)
    sigmoid = lambda logit: np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))], 1)
    noise = np.random.default_rng(0).normal(0, 1, len(held_out))
    at = lambda shift: sigmoid(4 * held_out.labels - 2 + noise + shift)
    evaluate, framing = (lambda images: at(0.0)), (lambda images, labels: np.ones(len(labels)))
    plain, scores, kept = v._validated(evaluate, held_out, framing, {})
    other, shaped, same = v._validated(evaluate, held_out, framing, {1.0: at(0.0), 1.2: at(2.0)})
    logit = lambda p: np.log(p / (1 - p))
    assert 'heights' not in scores and abs(logit(plain)) < 0.3 and abs(logit(other) - 1) < 0.3
    assert [r['height'] for r in shaped['heights']] == [1.0, 1.2] and shaped['auc'] == scores['auc'] and np.array_equal(kept['probability'], same['probability'])
    a, b = shaped['heights']
    assert a['healthy_called'] < b['healthy_called'] and b['ill_called'] >= a['ill_called'] and logit(b['ill_median']) - logit(a['ill_median']) == pytest.approx(2, abs=1e-3)
    found, usual = (v._in_styles(evaluate, held_out, framing, looks) for looks in ({1.0: at(0.0), 1.2: at(2.0)}, {}))
    assert list(found['styles']) == ['height 1', 'height 1.2'] and list(usual['styles']) == list(sh.STYLES) and found['styles_auc'] < usual['styles_auc'] == pytest.approx(scores['auc'])


@pytest.fixture(scope='module')
def framed(tmp_path_factory):
    "Folder of records with two seeds of the framed cell, and what every frame of these runs was fitted to."
    root, fitted_to = tmp_path_factory.mktemp('framed') / 'results', []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(v, 'ChestFrame', lambda images: fitted_to.append(images) or ChestFrame(images))
        for seed in (0, 1): v.train_cell('shape_cnn', 'smoke', 'phantom', seed, root)
        v.measure_maps('shape_cnn', 'smoke', 'phantom', 0, root, n=4)
        v.measure_stretch('shape_cnn', 'smoke', 'phantom', 0, root, (1.0,))
        v.train_cell('recipe_shape_framed', 'smoke', 'phantom', 0, root)
    return root, fitted_to


def test_a_framed_cell(framed):
    "The frame is of the training patients, wherever one is needed; a chest drawn out reaches the network nearly as it was."
    fitted, held_out = training_share(draw_phantom(160))
    clean, plain = v.preparation(v.PROFILES['recipe_shape_framed']['cpu'], fitted), v.preparation(v.PROFILES['recipe_shape_as_frozen']['cpu'], fitted)
    differ = lambda prepare: np.abs(prepare(held_out.images).astype(float) - prepare(draw_out(held_out.images, 1.2)))[:, 8:-8, 8:-8].mean()
    assert differ(clean) < 0.7 * differ(plain) and clean(held_out.images).shape == held_out.images.shape
    root, fitted_to = framed
    seen = training_share(load_cxr('phantom', 'train', 64, n=v.PROFILES['shape_cnn']['smoke'].images, progress=False))[0].images
    assert len(fitted_to) == 5 and all(np.array_equal(x, seen) for x in fitted_to)  # one each: two cells, maps, stretch, candidate
    cell, candidate = (RunRecord.read(root / name / 'smoke-seed0').metrics for name in ('shape_cnn', 'recipe_shape_framed'))
    assert [r['height'] for r in cell['validation']['heights']] == [0.9, 1.0, 1.1, 1.2] and 'scores' in cell
    assert 'height 1.2' in candidate['validation']['styles'] and 'scores' not in candidate


def test_what_height_tells(framed, tmp_path):
    "Of a network that calls the taller chest more ill; refused where records are missing or of other images."
    root = tmp_path / 'results'
    (root / 'shape_cnn').mkdir(parents=True)
    shutil.copytree(framed[0] / 'shape_cnn' / 'smoke-seed0', root / 'shape_cnn' / 'smoke-seed0')
    with pytest.raises(FileNotFoundError, match='no records of grid_cnn_real_all in'): g.measure_height(profile='smoke', dataset='phantom', out=root, n=160)
    v.train_cell('grid_cnn_real_all', 'smoke', 'phantom', 0, root)
    fitted, held_out = training_share(load_cxr('phantom', 'train', 64, n=160, progress=False))
    down = ChestFrame(fitted.images).sizes(held_out.images).down.to_numpy()
    path = root / 'shape_cnn' / 'smoke-seed0' / 'metrics.json'
    kept = json.loads(path.read_text())
    kept['predictions']['validation']['probability'] = (down / 4).tolist()
    path.write_text(json.dumps(kept))
    record = g.measure_height(profile='smoke', dataset='phantom', out=root, n=160, n_boot=50)
    m = record.metrics
    assert m['healthy']['shape_cnn']['validation'] == pytest.approx(1) and abs(m['healthy']['grid_cnn_real_all']['validation']) < 0.9
    assert m['auc']['shape_cnn']['all']['value'] == pytest.approx(m['alone']['validation'])
    for key, found in m['less']['shape_cnn'].items():
        assert found['value'] == pytest.approx(m['auc']['shape_cnn'][key]['value'] - m['auc']['grid_cnn_real_all'][key]['value']) and found['low'] <= found['high']
    assert abs(m['alone']['sizes'] - 0.5) <= abs(m['alone']['validation'] - 0.5) + 0.1
    assert len(g.height_table(record)) == 7 and sum(r['of'] for r in m['not_found']['shape_cnn']['test']) == m['n']['test']
    with pytest.raises(ValueError, match='other images'): g.measure_height(profile='smoke', dataset='phantom', out=root, n=120)


def test_drawn_out_at_random():
    "Rows of a bar: taller or less tall by up to the factor, around the middle; what other changes draw stays the same."
    bars = np.zeros((200, 64, 64, 1), 'uint8')
    bars[:, 24:40] = 200
    rows = (sh.augment(bars, sh.Augmentation(stretch=0.5), 0)[:, :, 32, 0] > 100).sum(1)
    assert rows.min() >= 9 and rows.max() <= 27 and rows.min() < 12 and rows.max() > 23
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), dtype='uint8')
    exposure = sh.Augmentation(contrast=0.4)
    assert np.abs(sh.augment(images, exposure, 1).astype(int) - sh.augment(images, replace(exposure, stretch=1e-9), 1)).max() <= 1


def test_rescaled_calibration():
    "Probabilities drawn too far to the middle and to one side are put right by other patients; the order stays."
    rng = np.random.default_rng(5)
    q = rng.uniform(0.02, 0.98, (2, 5000))
    y, shown = (rng.uniform(size=q.shape) < q).astype(int), 1 / (1 + np.exp(-0.4 * np.log(q / (1 - q)) - 1))
    run = RunRecord('x', 'cpu', 0, {}, {}, {'predictions': {s: {'label': y[k], 'probability': shown[k]} for k, s in enumerate(('validation', 'test'))}}, pd.DataFrame())
    assert v.calibration(y[1], shown[1])['ece'] > 0.15 and g._rescaled(run)['ece'] < 0.03 and g._rescaled(run)['brier'] < v.calibration(y[1], q[1])['brier'] + 0.002
    slope, offset = v.platt_scaling(y[0], shown[0])
    assert slope == pytest.approx(1 / 0.4, rel=0.1) and offset == pytest.approx(-1 / 0.4, rel=0.1)
    assert np.allclose(v.rescale(shown[1], slope, offset), q[1], atol=0.04)
    with pytest.raises(ValueError, match='both 0 and 1'): v.platt_scaling(y[0] * 0, shown[0])


def test_grid_table_by_hand(tmp_path):
    y = np.arange(100) % 2
    p = np.where(y, 0.8, 0.2)
    p[:20:2], p[1:41:2] = 0.7, 0.55                             # 10 of 50 healthy called ill at .6 and at .5, 20 of 50 ill missed at .6 only
    for seed in (0, 1): stored(tmp_path, seed=seed, probability=p)
    row = g.grid_table({('all', 'cnn', 'real'): g.read_cell('grid_cnn_real_all', tmp_path, n_boot=20)}).iloc[0]
    assert row.seeds == '2 of 5' and row.specificity.startswith('0.800') and row['recall'].startswith('0.600') and row.balanced_accuracy.startswith('0.700')
    assert row.accuracy.startswith('0.700') and row['accuracy at 0.5'] == '0.900' and row.threshold == '0.600' and row['CPU seconds'] == '150'
    assert g._generator_cost({'seconds': 60.2}) == '60 on the clock' and g._generator_cost({'seconds': 60.0, 'cpu_seconds': 100.4}) == '100' and g._generator_cost({}) == '0'
    assert len(v.declared_seeds('grid_plain_vae_10')) == len(v.declared_seeds('best_128')) == 3 and v.declared_seeds('recipe_vit_both') == (0, 1)


@pytest.mark.parametrize('own, runs', [('none', {'preprocess_gaussian', 'preprocess_equalized', 'preprocess_both'}),
                                       ('hist', {'preprocess_neither', 'preprocess_gaussian', 'preprocess_both'}),
                                       ('clahe', {'preprocess_neither', 'preprocess_gaussian', 'preprocess_equalized', 'preprocess_both'})])
def test_ablation_of_any_recipe(own, runs):
    labels, needed = v.ablation(replace(v.CNN, equalize=own, tested=True))
    assert set(needed) == runs and set(labels.values()) == runs | {'grid_cnn_real_all'}
    steps = {name: (s.gaussian_kernel, s.equalize) for name, s in needed.items()} | {'grid_cnn_real_all': (0, own)}
    assert [steps[labels[label]] for label in v.STEPS] == [(0, 'none'), (3, 'none'), (0, 'hist'), (3, 'hist')] and all(s.tested for s in needed.values())


def test_claims_compare_with_the_run_without_preprocessing():
    import csv
    rows = {r['id']: list(r.values()) for r in csv.DictReader(open(ROOT / 'nbs' / 'papers' / 'claims.csv', encoding='utf-8'))}
    for claim, label in (('kumar-gaussian', 'Gaussian filter'), ('kumar-equalization', 'equalised')):
        assert v.ABLATION[label] in rows[claim] and v.ABLATION['neither'] in rows[claim]


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


def test_maps_are_recorded(tmp_path, monkeypatch):
    root = tmp_path / 'results'
    run = v.train_cell('grid_vit_real_all', 'smoke', 'phantom', 0, root)
    with pytest.raises(FileNotFoundError, match='cxr-acgan train grid_vit_real_all --profile smoke --seed 1'): v.measure_maps('grid_vit_real_all', 'smoke', 'phantom', 0, root)
    following = v.train_cell('grid_vit_real_all', 'smoke', 'phantom', 1, root)
    seen, cam = [], v.grad_cam
    monkeypatch.setitem(v.METHODS, 'vit', {'rollout': v.rollout_maps, 'Grad-CAM': lambda net, x, classes: seen.append(list(classes)) or cam(net, x, classes)})
    record = RunRecord.read(v.measure_maps('grid_vit_real_all', 'smoke', 'phantom', 0, root, n=6).path)
    assert seen[0] == seen[1] == seen[2] == seen[3] and seen[4] == record.metrics['shown']['called']  # trained, all weights, logits, next seed; the sheet
    assert record.metrics['weights'] == {'trained': run.metrics['weights'], 'next seed': following.metrics['weights']}
    assert run.metrics['weights'] == weights_digest(load_network('grid_vit_real_all', 'smoke', 0, 'classifier', root)) != following.metrics['weights']
    assert set(record.metrics['correlations']['rollout']) == {'all weights', 'logits', 'next seed'} and record.metrics['correlations']['rollout']['next seed']['mean'] < 1
    assert set(record.metrics['correlations']) == {'rollout', 'Grad-CAM'} and record.metrics['correlations']['rollout']['all weights']['n'] == 6
    shown = record.metrics['shown']
    right = [a == b for a, b in zip(shown['label'], shown['called'])]
    assert right == sorted(right, reverse=True) and 1 <= len(right) <= 8 and record.metrics['heads'] == 2
    import matplotlib
    matplotlib.use('agg')
    assert len(v.plot_maps(record).axes) == 3 * len(right) and len(v.plot_heads(record).axes) == 6


def test_maps_of_other_weights_are_refused(tmp_path, monkeypatch):
    "After training anew a finished record of maps is stale, and weights must be those of their record."
    for profile in ('cpu',): monkeypatch.setitem(v.PROFILES['grid_cnn_real_all'], profile, v.PROFILES['grid_cnn_real_all']['smoke'])
    root, name = tmp_path / 'results', 'grid_cnn_real_all'
    runs = [v.train_cell(name, 'cpu', 'phantom', seed, root) for seed in (0, 1)]
    first = v.measure_maps(name, 'cpu', 'phantom', 0, root, n=4)
    assert v.measure_maps(name, 'cpu', 'phantom', 0, root, n=4).metrics == RunRecord.read(first.path).metrics
    path = runs[1].path / 'metrics.json'
    path.write_text(path.read_text().replace(runs[1].metrics['weights'], 'f' * 16))
    with pytest.raises(ValueError, match='on 4 images, not on 5'): v.measure_maps(name, 'cpu', 'phantom', 0, root, n=5)
    with pytest.raises(ValueError, match='other networks.*move it away'): v.measure_maps(name, 'cpu', 'phantom', 0, root, n=4)
    first.path.rename(tmp_path / 'away')
    with pytest.raises(ValueError, match='holds other weights.*move both away'): v.measure_maps(name, 'cpu', 'phantom', 0, root)
    path.write_text(path.read_text().replace('f' * 16, runs[1].metrics['weights']))
    other = lambda *args, **kwargs: draw_phantom(160, 'test', seed=9)
    monkeypatch.setattr(v, 'load_cxr', other)
    with pytest.raises(ValueError, match='tested on other images'): v.measure_maps(name, 'cpu', 'phantom', 0, root)


def test_a_stale_shift_is_refused(tmp_path):
    path = tmp_path / 'shift' / 'cpu-seed0'
    RunRecord('shift', 'cpu', 0, {'image_size': 64}, {}, {}, pd.DataFrame({'n': [1]})).write(tmp_path)
    with pytest.raises(ValueError, match='move it away'): sh.measure_shift('phantom', 'cpu', tmp_path)
    path.joinpath('run.json').write_text(path.joinpath('run.json').read_text().replace(
        '"image_size": 64', '"image_size": 64, "augmentations": ' + json.dumps({k: asdict(a) for k, a in sh.AUGMENTATIONS.items()})))
    assert sh.measure_shift('phantom', 'cpu', tmp_path).path == path
    known = json.loads(path.joinpath('run.json').read_text())
    for settings in known['settings']['augmentations'].values(): del settings['stretch']    # written before there was one: it was 0
    path.joinpath('run.json').write_text(json.dumps(known))
    assert sh.measure_shift('phantom', 'cpu', tmp_path).path == path


def test_all_styles_are_ranked_together():
    "Who moves ill and healthy alike by a style ranks each style right and all of them together wrong."
    data = draw_phantom(200, image_size=16)
    shown = {name: sh.restyle(data.images, **look).tobytes() for name, look in sh.STYLES.items()}
    def network(moved):
        def evaluate(images):
            k = list(shown.values()).index(images.tobytes())
            p = 1 / (1 + np.exp(-(2 * data.labels - 1 + moved * k)))
            return np.stack([1 - p, p], 1)
        return evaluate
    framing = lambda images, labels: np.ones(len(images))
    steady, moving = (v._in_styles(network(k), data, framing, {}) for k in (0.0, 3.0))
    assert set(steady['styles'].values()) == set(moving['styles'].values()) == {1.0}
    assert steady['styles_auc'] == 1 and moving['styles_auc'] < 0.7 and v._validated(network(3.0), data, framing, {})[1]['balanced_auc'] == 1


def test_restyle_is_of_the_side():
    images = draw_phantom(20, image_size=32).images
    large = np.repeat(np.repeat(images, 2, 1), 2, 2)
    for name, look in sh.STYLES.items():
        changed = sh.restyle(images, **look)
        assert changed.shape == images.shape and changed.dtype == np.uint8 and (name == 'as it is') == np.array_equal(changed, images)
        back = sh.restyle(large, **look).reshape(20, 32, 2, 32, 2).mean((2, 4))
        assert np.abs(back - changed[..., 0]).mean() < 12, name


def test_file_blocks():
    "Cut where the other split's numbers lie between; an unknown look is far, a known one is not."
    train, test = draw_phantom(400, image_size=32), draw_phantom(80, 'test', image_size=32)
    name = lambda numbers: [f'IM-{i:04d}-0001.jpeg' for i in numbers]
    train = replace(train, file_names=name([*range(100), *range(300, 600)]))
    strange = np.where(np.arange(80)[:, None, None, None] < 40, test.images // 4 + 190, test.images)
    test = replace(test, file_names=name([*range(100, 140), *range(600, 640)]), images=strange.astype('uint8'), fingerprint='')
    fitted, held_out = train.subset(np.arange(400) % 4 > 0), train.subset(np.arange(400) % 4 == 0)
    blocks = sh.file_blocks({'train': train, 'test': test}, sh.FramingWeights(fitted.images, fitted.labels), fitted, held_out, 4)
    ends = {split: [(r['first'], r['last']) for r in rows] for split, rows in blocks.items()}
    assert ends == {'train': [(0, 99), (300, 399), (400, 499), (500, 599)], 'test': [(100, 119), (120, 139), (600, 619), (620, 639)]}
    assert blocks['test'][1]['members'] == list(range(20, 40)) and min(r['far'] for r in blocks['test'][:2]) > 0.9 and max(r['far'] for r in blocks['test'][2:]) < 0.3


def test_block_table():
    "Called class 1 is counted by each run's threshold, and the interval is over patients."
    block = {'series': 's', 'first': 1, 'last': 2, 'members': [1, 2, 3], 'as_class_1': 0.25, 'far': 0.1}
    run = lambda threshold, which='a': RunRecord('x', 'cpu', 0, {}, {}, {'threshold': threshold, 'sets': {'test': {'fingerprint': which}},
        'predictions': {'test': {'probability': [0.9, 0.9, 0.7, 0.2], 'patient': [0, 1, 1, 2]}}}, None)
    record = RunRecord('shift', 'cpu', 0, {}, {}, {'blocks': {'test': [block]}, 'sets': {'test': {'fingerprint': 'a'}}}, None)
    row = g.block_table(record, {'net': {'runs': [run(0.5), run(0.8)]}, 'none': {'runs': []}}).iloc[0]
    assert row['net: called class 1'] == '0.50 [0.00, 0.75]' and row.images == 3 and 'none: called class 1' not in row
    with pytest.raises(ValueError, match='other images'): g.block_table(record, {'net': {'runs': [run(0.5, 'b')]}})


def test_shift_of_a_data_set(tmp_path):
    record = sh.measure_shift('phantom', 'smoke', tmp_path / 'results', n=1000)
    cover = pd.DataFrame(record.metrics['cover'])
    assert cover.augmentation.unique().tolist() == ['none', *sh.AUGMENTATIONS] and (cover.augmented[2:8].to_numpy() < cover.augmented[[0, 1] * 3].to_numpy()).all()
    blocks = record.metrics['blocks']
    assert [sorted(sum((r['members'] for r in blocks[split]), [])) for split in ('train', 'test')] == [list(range(1000))] * 2
    assert all(a['last'] < b['first'] for rows in blocks.values() for a, b in zip(rows, rows[1:]) if a['series'] == b['series'])
    rows = pd.DataFrame(record.metrics['splits'])
    assert list(record.metrics['classes']) == ['NORMAL', 'PNEUMONIA'] and len(record.metrics['classes']['NORMAL']) == 10
    assert len(rows) == 10 and (rows.low <= rows.difference).all() and (rows.difference <= rows.high).all()
    assert abs(record.metrics['class_auc']['weighted'] - 0.5) < abs(record.metrics['class_auc']['validation'] - 0.5)
    assert set(record.history.split) == {'train', 'test'} and record.history.n.sum() == 2000
    moved = draw_phantom(100, 'test')
    moved = replace(moved, images=np.clip(moved.images.astype(int) + 30, 0, 255).astype('uint8'), fingerprint='')
    table = sh.shift_table(draw_phantom(100), moved, n_boot=50).set_index('statistic')
    assert table.loc['brightness', 'low'] > 0.5


@pytest.mark.parametrize('backend', ['jax', 'torch'])
def test_same_maps_on_all_backends(backend, same_on_backends):
    assert all(np.ptp(x) > 1e-6 for x in same_on_backends('backend_vit.py', backend).values())


def test_a_tenth_learns_from_its_own_patients_alone(tmp_path, monkeypatch):
    "The rule behind the odds of the draws and the weights of the threshold is fitted to the images that the cell is trained on."
    fitted, made = [], v.FramingWeights
    monkeypatch.setattr(v, 'FramingWeights', lambda images, labels: fitted.append((images, labels)) or made(images, labels))
    record = v.train_cell('grid_cnn_real_10', 'smoke', 'phantom', 0, tmp_path / 'results')
    s = v.PROFILES['grid_cnn_real_10']['smoke']
    own, _ = training_share(load_cxr('phantom', 'train', s.image_size, n=s.images), s.share, s.validation)
    everyone, _ = training_share(load_cxr('phantom', 'train', s.image_size, n=s.images), 1.0, s.validation)
    assert len(fitted) == 1 and np.array_equal(fitted[0][0], own.images) and np.array_equal(fitted[0][1], own.labels)
    assert record.dataset['n'] == len(own) < len(everyone)


def test_grid_is_one_recipe():
    for network in ('cnn', 'vit'):
        for profile in ('smoke', 'cpu', 'paper'):
            seen = {str({k: x for k, x in asdict(v.PROFILES[f'grid_{network}_{s}_{a}'][profile]).items() if k not in ('source', 'share', 'generator')})
                    for s in v.SOURCES for a in v.SHARES}
            assert len(seen) == 1
    assert v.PROFILES['grid_plain_gan_10']['cpu'] == replace(v.PROFILES['recipe_cnn_plain']['cpu'], tested=True, source='gan', generator='grid_gan_10', share=0.1)
    assert v.PROFILES['best_128']['cpu'].image_size == 128


def test_the_study_at_128_px_takes_the_recipes_of_64():
    shape = v.RECIPES['shape'][v.CHOSEN['shape']]
    for name, s in v.RECIPES['128'].items():
        chosen = shape if s.network == 'cnn' else v.RECIPES['vit'][v.CHOSEN['vit']]
        same = [k for k, value in asdict(s).items() if value == asdict(chosen)[k]]
        assert {'gaussian_kernel', 'equalize', 'views', 'balanced', 'learning_rate', 'label_smoothing'} <= set(same) and s.image_size == 128
        close = {k: asdict(shape.augmentation)[k] for k in ('stretch', *(('crop', 'pad') if shape.framed else ()))}
        assert s.augmentation == replace(chosen.augmentation, **close) and (s.framed, s.heights) == (shape.framed, shape.heights)
    assert len(v.RECIPES['128']) <= 3 and v.RECIPE_SEEDS['128'] == (0,) and not any(s.tested for s in v.RECIPES['128'].values())


def test_empty_tables_say_not_run(tmp_path):
    cells = g.read_grid(tmp_path)
    assert len(cells) == 25 and (g.grid_table(cells)['auc'] == 'not run').all() and len(g.grid_differences(cells)) == 0
    assert v.choose_recipe('cnn', tmp_path) is None and (g.recipe_table('128', tmp_path).seeds == 0).all()
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
    (lambda out: sh.Augmentation(share=0.0), 'share must be above 0'),
    (lambda out: sh.Augmentation(share=1.5), 'at most 1, got 1.5'),
    (lambda out: v.view_images(IMAGES, 0), 'views must be at least 1, got 0'),
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


def test_chests_drawn_out(tmp_path):
    out = tmp_path / 'results'
    run = v.train_cell('grid_cnn_real_all', 'smoke', 'phantom', 0, out)
    record = v.measure_stretch('grid_cnn_real_all', 'smoke', 'phantom', 0, out, down=(1.0, 1.3))
    kept = run.metrics['predictions']['validation']
    y, p = np.array(kept['label']), np.array(kept['probability'])
    first = record.history.iloc[0]
    assert first.down == 1 and first.healthy_called == pytest.approx((p[y == 0] >= run.metrics['threshold']).mean(), abs=1e-9)  # as they are: as the record has it
    assert first.ill_median == pytest.approx(np.median(p[y == 1]), abs=1e-4) and record.history.down.tolist() == [1.0, 1.3] and record.metrics['weights'] == run.metrics['weights']
    assert not np.allclose(record.history.iloc[0][1:], record.history.iloc[1][1:])
    with pytest.raises(FileNotFoundError, match='grid_vit_real_all'): v.measure_stretch('grid_vit_real_all', 'smoke', 'phantom', 0, out)
