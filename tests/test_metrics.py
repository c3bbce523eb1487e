"Metrics against closed forms, scipy and scikit-learn; their speed; what bad input gets."
import json
import time
import tracemalloc

import cv2
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn import metrics as sk
from sklearn.neighbors import NearestCentroid, NearestNeighbors
from threadpoolctl import threadpool_limits

from cxr_acgan.data import load_cxr
from cxr_acgan.metrics import (classification_scores, confusion_matrices_fitting, copy_scores, frechet_distance,
                               frechet_distance_from_moments, inception_score, intra_frechet_distance, kernel_distance,
                               memorisation_report, ms_ssim, ms_ssim_diversity, nearest_neighbours, plant_copies,
                               precision_recall, prediction_draws, psnr, score_differences, scores_from_confusion, ssim, tsne_embedding, wilson_interval)
from cxr_acgan.results import show_embedding

RATIOS = ('accuracy', 'balanced_accuracy', 'precision', 'recall', 'specificity', 'f1', 'auc')


@pytest.fixture
def rng(): return np.random.default_rng(7)


def by_sqrtm(mu_x, sigma_x, mu_y, sigma_y):
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y)
    return ((mu_x - mu_y)**2).sum() + np.trace(sigma_x + sigma_y - 2 * np.real(root))


# Frechet distance

@pytest.mark.parametrize('d', [1, 3, 64])
def test_frechet_closed_form(rng, d):
    mu_x, mu_y = rng.normal(size=(2, d))
    s_x, s_y = rng.uniform(0.1, 2, size=(2, d))
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    value = frechet_distance_from_moments(q @ mu_x, (q * s_x**2) @ q.T, q @ mu_y, (q * s_y**2) @ q.T)
    assert isinstance(value, float)
    assert value == pytest.approx(((mu_x - mu_y)**2 + (s_x - s_y)**2).sum(), abs=1e-6)


@pytest.mark.parametrize('n, m, d', [(500, 400, 20), (21, 20, 20), (15, 400, 20), (400, 15, 20), (15, 12, 20), (2, 2, 20), (9, 8, 1)])
def test_frechet_every_shape(rng, n, m, d):
    "Features and moments agree whichever of n, m, d is the smallest; singular covariances included."
    x, y = rng.normal(size=(n, d)), rng.normal(1, 2, size=(m, d))
    moments = [(z.mean(0), np.cov(z, rowvar=False).reshape(d, d)) for z in (x, y)]
    value = frechet_distance(x, y)
    assert value == pytest.approx(frechet_distance_from_moments(*moments[0], *moments[1]), abs=1e-6)
    assert value == pytest.approx(frechet_distance(y, x), rel=1e-9)
    if min(n, m) > d: assert value == pytest.approx(by_sqrtm(*moments[0], *moments[1]), abs=1e-6)


def test_frechet_badly_conditioned(rng):
    "Eigenvalues over ten orders of magnitude and constant features: real, finite, 0 against itself."
    x = rng.normal(size=(600, 80)) * np.logspace(0, -5, 80)
    x[:, -3:] = 4
    assert frechet_distance(x, x) < 1e-8
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 80, abs=1e-6)
    assert frechet_distance(x.astype(np.float32), x[:300]) > 0
    assert frechet_distance(np.zeros((5, 3)), np.zeros((4, 3))) == 0


def test_frechet_faster_than_sqrtm(rng):
    "CPU time of one thread, which other processes on the machine do not stretch."
    d = 512
    a, b = (np.cov(rng.normal(size=(2 * d, d)).T) for _ in range(2))
    def best(f, repeats):
        times = []
        for _ in range(repeats):
            start = time.thread_time()
            f()
            times.append(time.thread_time() - start)
        return min(times)
    with threadpool_limits(1):
        ours = best(lambda: frechet_distance_from_moments(np.zeros(d), a, np.zeros(d), b), 7)
        theirs = best(lambda: scipy.linalg.sqrtm(a @ b), 3)
    assert theirs > 2 * ours, f'{theirs / ours:.1f} times faster'         # more at 2,048, see bench/frechet.py


# kernel distance

def test_kernel_distance_definition(rng):
    x, y = rng.normal(size=(12, 4)), rng.normal(0.5, 1, size=(9, 4))
    kernel = lambda a, b: sk.pairwise.polynomial_kernel(a, b, degree=3)
    off = lambda z: (kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1))
    expected = lambda a, b: off(a) + off(b) - 2 * kernel(a, b).mean()
    assert kernel_distance(x[:9], y).mean == pytest.approx(expected(x[:9], y))
    estimate = kernel_distance(x, y, subset_size=8, subsets=400)
    assert (estimate.subset_size, estimate.subsets) == (8, 400)
    assert abs(estimate.mean - expected(x, y)) < 5 * estimate.std / np.sqrt(400)


def test_kernel_distance_unbiased_and_its_error(rng):
    same = [kernel_distance(rng.normal(size=(40, 8)), rng.normal(size=(60, 8)), subset_size=20, subsets=10) for _ in range(300)]
    means = np.array([k.mean for k in same])
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(300)
    far = [kernel_distance(rng.normal(size=(80, 8)), rng.normal(0.5, 1, size=(80, 8))) for _ in range(200)]
    claimed = np.sqrt(np.mean([k.std_error**2 for k in far]))
    assert 0.8 < claimed / np.std([k.mean for k in far]) < 1.25
    assert far[0].std == 0 and far[0].std_error > 0


def test_kernel_distance_seed(rng):
    x, y = rng.normal(size=(2, 50, 3))
    assert kernel_distance(x, y, subset_size=10, seed=3) == kernel_distance(x, y, subset_size=10, seed=3)
    assert kernel_distance(x, y, subset_size=10, seed=3) != kernel_distance(x, y, subset_size=10, seed=4)


# scores

def test_binary_parity(rng):
    y = np.repeat([0, 1], [40, 60])
    p = np.round(np.clip(rng.normal(0.35 + 0.3 * y, 0.25), 0, 1), 2)      # ties
    for threshold in (0.3, 0.5, 2.):                                     # at 2 nothing is called 1
        called = (p >= threshold).astype(int)
        s = classification_scores(y, p, threshold=threshold, n_boot=200)
        zero = dict(zero_division=0)
        expected = [sk.accuracy_score(y, called), sk.balanced_accuracy_score(y, called), sk.precision_score(y, called, **zero),
                    sk.recall_score(y, called, **zero), sk.recall_score(y, called, pos_label=0), sk.f1_score(y, called, **zero),
                    sk.roc_auc_score(y, p)]
        assert [s[k]['value'] for k in RATIOS] == pytest.approx(expected)
        assert s['confusion'] == sk.confusion_matrix(y, called).tolist()
    assert json.loads(json.dumps(s)) == s
    two_columns = classification_scores(y[:, None], np.stack([1 - p, p], axis=1), n_boot=50)
    assert two_columns['auc'] == classification_scores(y, p[:, None], n_boot=50)['auc']


@pytest.mark.parametrize('classes', [3, 5])
def test_multiclass_parity(rng, classes):
    y = rng.integers(0, classes, 400)
    p = rng.dirichlet(np.ones(classes), 400) + 0.4 * np.eye(classes)[y]
    p /= p.sum(axis=1, keepdims=True)
    called = p.argmax(axis=1)
    s = classification_scores(y, p, n_boot=100)
    expected = [sk.accuracy_score(y, called), sk.balanced_accuracy_score(y, called), sk.precision_score(y, called, average='macro'),
                sk.recall_score(y, called, average='macro'),
                np.mean([sk.recall_score(y == c, called == c, pos_label=False) for c in range(classes)]),
                sk.f1_score(y, called, average='macro'), sk.roc_auc_score(y, p, multi_class='ovr')]
    assert [s[k]['value'] for k in RATIOS] == pytest.approx(expected)
    assert all(s[k]['low'] <= s[k]['value'] <= s[k]['high'] for k in RATIOS)


def test_interval_against_a_plain_bootstrap(rng):
    y = np.repeat([0, 1], [50, 80])
    p = rng.normal(y, 1.5)
    draws = []
    for _ in range(1500):
        i = np.concatenate([rng.choice(np.flatnonzero(y == c), (y == c).sum()) for c in (0, 1)])
        draws.append([sk.roc_auc_score(y[i], p[i]), ((p[i] >= 0.5) == y[i]).mean()])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    s = classification_scores(y, p, n_boot=4000)
    for j, k in enumerate(('auc', 'accuracy')):
        assert s[k]['low'] == pytest.approx(low[j], abs=0.015) and s[k]['high'] == pytest.approx(high[j], abs=0.015)
    assert classification_scores(y, p, n_boot=300) == classification_scores(y, p, n_boot=300)


def test_interval_covers_at_its_level(rng):
    "AUC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602."
    y, hits = np.repeat([0, 1], 40), 0
    for i in range(200):
        s = classification_scores(y, rng.normal(y, 1), n_boot=300, seed=i)['auc']
        hits += s['low'] <= 0.76025 <= s['high']
    assert 0.88 <= hits / 200 <= 0.99


def test_groups(rng):
    y = np.repeat([0, 1], [60, 90])
    p = rng.normal(y, 1.2)
    single = classification_scores(y, p, n_boot=1000)
    by_patient = classification_scores(np.repeat(y, 4), np.repeat(p, 4), groups=[f'p{i:03d}' for i in range(150) for _ in range(4)], n_boot=1000)
    by_image = classification_scores(np.repeat(y, 4), np.repeat(p, 4), n_boot=1000)
    width = lambda s: s['auc']['high'] - s['auc']['low']
    assert width(by_patient) == pytest.approx(width(single), rel=0.1) and width(by_image) < 0.7 * width(single)
    assert 'groups' in by_patient['resampling'] and 'classes' in single['resampling']
    both = classification_scores([0, 1, 0, 1, 1, 0], [.1, .9, .4, .3, .8, .2], groups=[0, 0, 1, 1, 2, 2], n_boot=50)   # patients with both classes
    assert np.isfinite(both['auc']['low'])


def test_classification_scores_is_quick(rng):
    y = rng.integers(0, 2, 5216)
    start = time.perf_counter()
    classification_scores(y, rng.normal(y, 2))
    assert time.perf_counter() - start < 10


# printed matrices

def test_printed_matrices():
    s = scores_from_confusion([[1309, 286], [32, 3589]], rows='prediction')
    assert [round(s[k], 3) for k in ('recall', 'specificity', 'balanced_accuracy')] == [0.926, 0.976, 0.951]
    assert f"{100 * s['accuracy']:.5f}" == '93.90337' and s['n'] == 5216
    assert s['confusion'] == [[1309, 32], [286, 3589]]
    assert s['per_class']['recall'] == pytest.approx([1309 / 1341, 3589 / 3875])


def test_matrices_fitting_a_report(rng):
    singh = {'0': dict(zip(('precision', 'recall', 'f1-score', 'support'), (.99, .64, .78, 2069))),
             '1': dict(zip(('precision', 'recall', 'f1-score', 'support'), (.81, 1., .89, 3147))), 'accuracy': .85,
             'macro avg': dict(zip(('precision', 'recall', 'f1-score'), (.90, .82, .83))),
             'weighted avg': dict(zip(('precision', 'recall', 'f1-score'), (.88, .85, .85)))}
    assert confusion_matrices_fitting(singh, column_totals=(1341, 3875)).tolist() == [[[1326, 743], [15, 3132]]]
    fits = confusion_matrices_fitting(singh)
    assert len(fits) == 65 and (fits.sum(axis=2) == [2069, 3147]).all()
    srm = {'0': dict(precision=.98, recall=.82, support=1595) | {'f1-score': .89},
           '1': dict(precision=.93, recall=.99, support=3621) | {'f1-score': .96}, 'accuracy': .94}
    assert [[1309, 286], [32, 3589]] in confusion_matrices_fitting(srm).tolist()
    y, called = rng.integers(0, 2, (2, 90))                                # scikit-learn's own report, all decimals
    report = sk.classification_report(y, called, output_dict=True)
    assert confusion_matrices_fitting(report, decimals=9).tolist() == [sk.confusion_matrix(y, called).tolist()]
    assert len(confusion_matrices_fitting(singh | {'accuracy': .5})) == 0


def test_wilson():
    assert np.round(wilson_interval(.92 * 624, 624), 3).tolist() == [0.896, 0.939]
    low, high = wilson_interval([0, 5, 10], 10)
    assert low[0] == 0 and high[2] == 1 and low[1] == pytest.approx(1 - high[1])
    assert wilson_interval(5, 10, level=0.5)[1] < high[1]


# images: Inception Score, distances by class, neighbours, precision and recall

def test_inception_score_by_hand(rng):
    p = rng.dirichlet(np.ones(4), 50)
    parts = [np.exp(np.mean([scipy.stats.entropy(row, part.mean(axis=0)) for row in part])) for part in (p[0::3], p[1::3], p[2::3])]
    assert inception_score(p, splits=3) == pytest.approx((np.mean(parts), np.std(parts)))
    assert inception_score(np.eye(4)[np.arange(40) // 10], splits=5) == pytest.approx((4, 0))      # sorted by class
    assert inception_score(np.full((9, 4), 0.25), splits=9) == pytest.approx((1, 0))


def test_intra_frechet(rng):
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(90, 3))
    a, b = np.repeat(['n', 'p'], 30), np.repeat(['p', 'n'], 45)
    s = intra_frechet_distance(x, a, y, b[:, None])
    expected = [frechet_distance(x[:30], y[45:]), frechet_distance(x[30:], y[:45])]
    assert s == {'mean': pytest.approx(np.mean(expected)), 'per_class': pytest.approx(expected), 'classes': ['n', 'p'], 'n': [[30, 45]] * 2}
    assert json.loads(json.dumps(s)) == s


@pytest.mark.parametrize('offset, scale', [(0, 1), (1e6, 1), (0, 1e-20), (3, 1e20)])
def test_nearest_neighbours_against_sklearn(rng, offset, scale):
    x, y = scale * (rng.normal(size=(300, 5)) + offset), scale * (rng.normal(size=(700, 5)) + offset)
    y[::7] = y[1::7]                                                     # duplicates
    indices, distances = nearest_neighbours(x, y, k=4)
    expected, which = NearestNeighbors(n_neighbors=4, algorithm='brute').fit((y - scale * offset) / scale).kneighbors((x - scale * offset) / scale)
    assert np.allclose(distances / scale, expected, rtol=1e-6)
    assert (indices[:, 0] == which[:, 0]).mean() > 0.8 and indices.dtype == np.int64
    assert np.allclose(np.linalg.norm(x[:, None] - y[indices], axis=2), distances)
    assert nearest_neighbours(x, y, k=700)[0].shape == (300, 700)


def test_nearest_neighbours_of_near_copies(rng):
    "Distances far below float32's resolution of the data."
    y = rng.normal(size=(500, 64))
    indices, distances = nearest_neighbours(y + 1e-9, y)
    assert (indices[:, 0] == np.arange(500)).all() and np.allclose(distances, 8e-9, rtol=1e-4)


@pytest.mark.parametrize('n, m, k, offset', [(80, 60, 3, 0), (40, 120, 5, 1e4), (30, 30, 1, 0)])
def test_precision_recall_brute_force(rng, n, m, k, offset):
    real, fake = rng.normal(size=(n, 4)) + offset, rng.normal(0.4, 1.2, size=(m, 4)) + offset
    d = lambda a, b: np.sqrt(((a[:, None] - b)**2).sum(axis=2))
    r, f = (np.sort(d(z, z), axis=1)[:, k] for z in (real, fake))
    across = d(real, fake)
    expected = {'precision': (across <= r[:, None]).any(axis=0).mean(), 'recall': (across <= f).any(axis=1).mean(),
                'density': (across <= r[:, None]).sum() / (k * m), 'coverage': (across <= r[:, None]).any(axis=1).mean()}
    s = precision_recall(real, fake, k=k)
    assert s == {**expected, 'k': k, 'n_real': n, 'n_fake': m} and json.loads(json.dumps(s)) == s


def test_density_and_coverage_of_equal_distributions(rng):
    "Naeem et al. 2020, lemmas 1 and 2, also in one dimension and for unequal sizes."
    for n, m, k, d in ((60, 60, 5, 1), (50, 150, 3, 6)):
        s = [precision_recall(rng.normal(size=(n, d)), rng.normal(size=(m, d)), k) for _ in range(200)]
        density, coverage = np.array([[v['density'], v['coverage']] for v in s]).T
        law = 1 - np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
        assert abs(density.mean() - 1) < 4 * density.std() / 200**.5 and abs(coverage.mean() - law) < 4 * coverage.std() / 200**.5


def test_precision_recall_answers(rng):
    modes = 8 * rng.normal(size=(5, 6))
    draw = lambda of: modes[rng.integers(of, size=600)] + rng.normal(size=(600, 6))
    real, full, two = draw(5), precision_recall(draw(5), draw(5)), draw(2)
    dropped = precision_recall(real, two)
    assert full['recall'] > 0.8 and dropped['recall'] < 0.55 * full['recall'] and dropped['coverage'] < 0.55 * full['coverage']
    assert dropped['precision'] > 0.8 and precision_recall(real, draw(5) + 40)['density'] == 0
    assert precision_recall(real, np.tile(real[:2], (50, 1)))['recall'] < 0.02
    copied = precision_recall(real, real)
    assert [copied[key] for key in ('precision', 'recall', 'coverage')] == [1, 1, 1] and 1 <= copied['density'] <= 1.2


def test_precision_recall_is_chunked(rng):
    real, fake = rng.normal(size=(2, 4000, 8)).astype(np.float32)
    tracemalloc.start()
    precision_recall(real, fake)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000**2 * 4 / 2                                         # half of one matrix of all distances


# pairs of images

@pytest.fixture(scope='module')
def chests(): return load_cxr('phantom', n=400).images


def test_psnr(rng):
    x = rng.integers(0, 200, (3, 5, 7), dtype=np.uint8)
    assert psnr(x, x + 10) == pytest.approx([20 * np.log10(25.5)] * 3) and np.isinf(psnr(x, x)).all()
    assert psnr(np.zeros((1, 4, 4), 'uint8'), np.full((1, 4, 4), 255, 'uint8')) == pytest.approx([0])


def test_ssim_against_tensorflow(rng):
    tf = pytest.importorskip('tensorflow')
    def inputs(h, w):
        x = np.stack([cv2.GaussianBlur(z, (0, 0), 2) for z in rng.integers(0, 256, (6, h, w), dtype=np.uint8)])[..., None]
        return x, np.clip(0.7 * x + 30 + rng.normal(0, 6, x.shape), 0, 255).astype(np.uint8)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    for (h, w), scales in (((64, 64), 3), ((112, 112), 4), ((45, 67), 3), ((11, 40), 1), ((161, 176), 5)):
        x, y = inputs(h, w)
        assert ssim(x, y) == pytest.approx(tf.image.ssim(x, y, 255).numpy(), abs=1e-4)
        factors = weights[:scales] / weights[:scales].sum()
        assert ms_ssim(x, y) == pytest.approx(tf.image.ssim_multiscale(x, y, 255, power_factors=factors).numpy(), abs=1e-4)


def test_ssim_of_negatives(chests):
    "The structure of a negative is minus the structure; MS-SSIM cuts it off at 0."
    x = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    assert (ssim(x, 255 - x) < -0.5).all() and (ms_ssim(x, 255 - x) == 0).all()
    assert (ms_ssim(chests[:5], chests[:5]) == 1).all()
    assert np.allclose(ssim(chests[:300], chests[100:]), np.concatenate([ssim(chests[i:i + 50], chests[100 + i:150 + i]) for i in range(0, 300, 50)]))


def test_diversity(chests):
    labels = np.repeat(['a', 'b'], 200)
    s = ms_ssim_diversity(chests, labels=labels, pairs=100, seed=2)
    assert s == ms_ssim_diversity(chests, labels=labels, pairs=100, seed=2) != ms_ssim_diversity(chests, labels=labels, pairs=100)
    assert [r['class'] for r in s['per_class']] == ['a', 'b'] and [r['pairs'] for r in s['per_class']] == [50, 50]
    assert s['mean'] == pytest.approx(np.mean([r['mean'] for r in s['per_class']])) and json.loads(json.dumps(s)) == s
    assert s['high'] - s['low'] == pytest.approx(2 * 1.96 * s['std_error'])
    assert ms_ssim_diversity(chests)['pairs'] == 200 and ms_ssim_diversity(chests)['per_class'] is None
    four = ms_ssim_diversity(chests[:4], pairs=2)                         # all three ways to pair four images are means of two of six
    six = {(i, j): ms_ssim(chests[i:i + 1], chests[j:j + 1])[0] for i in range(4) for j in range(i)}
    assert any(four['mean'] == pytest.approx((six[a] + six[b]) / 2) for a in six for b in six if not set(a) & set(b))


def test_diversity_interval_covers_at_its_level():
    "The mean over all pairs of 3,000 images is the truth; samples of 120 cover it nineteen times in twenty."
    rng = np.random.default_rng(0)
    base = rng.integers(60, 200, (6, 12, 12))                             # some pairs alike, most not
    draw = lambda n: np.clip(base[rng.integers(6, size=n)] + rng.normal(0, 20, (n, 12, 12)), 0, 255).astype(np.uint8)
    truth = ms_ssim(draw(40000), draw(40000)).mean()
    s = [ms_ssim_diversity(draw(120), seed=i) for i in range(300)]
    assert 0.9 <= np.mean([v['low'] <= truth <= v['high'] for v in s]) <= 0.99


# t-SNE

def test_tsne(rng):
    group = np.repeat([0, 1], 30)
    x = rng.normal(size=(60, 80)) + 3 * rng.normal(size=(2, 80))[group]
    xy = tsne_embedding(x, seed=1)
    assert xy.shape == (60, 2) and np.isfinite(xy).all() and np.array_equal(xy, tsne_embedding(x, seed=1))
    assert NearestCentroid().fit(xy, group).score(xy, group) == 1
    assert tsne_embedding(x[:4, :2]).shape == (4, 2)


def test_show_embedding(rng, chests):
    import matplotlib.pyplot as plt
    xy = rng.normal(size=(400, 2)) * [5, 1]
    figure = show_embedding(xy, chests, np.arange(400) % 3, thumbnails=25)
    boxes = np.array([image.get_extent() for image in figure.axes[0].images])
    assert 5 < len(boxes) <= 25 and len(figure.axes[0].patches) == len(boxes)
    apart = (boxes[:, None, 1] <= boxes[:, 0]) | (boxes[:, None, 0] >= boxes[:, 1]) | (boxes[:, None, 3] <= boxes[:, 2]) | (boxes[:, None, 2] >= boxes[:, 3])
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    centres = (boxes[:, ::2] + boxes[:, 1::2]) / 2
    assert np.allclose(nearest_neighbours(centres, xy)[1], 0, atol=1e-9)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ['0', '1', '2'] and sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 400
    plain = show_embedding(xy)
    assert not plain.legends and not plain.axes[0].images
    plt.close('all')
    for call, words in ((lambda: show_embedding(xy[:, :1]), r'\(n, 2\)'), (lambda: show_embedding(xy, chests[:9]), 'images has 9 entries'),
                        (lambda: show_embedding(xy, groups=[1]), 'groups has 1 entries for 400')):
        with pytest.raises(ValueError, match=words): call()


# memorisation

def test_planted_copies(chests):
    planted = plant_copies(chests[:40], seed=5)
    assert list(planted) == ['shifted', 'brightened', 'recompressed', 'cropped']
    assert all(c.shape == chests[:40].shape and c.dtype == np.uint8 and (c != chests[:40]).any(axis=(1, 2, 3)).all() for c in planted.values())
    assert all((a == b).all() for a, b in zip(planted.values(), plant_copies(chests[:40], seed=5).values()))
    inside = slice(8, -8)
    for x, moved in zip(chests[:40, ..., 0], planted['shifted'][..., 0]):
        shifts = [(i, j) for i in range(-4, 5) for j in range(-4, 5) if (np.roll(x, (i, j), (0, 1))[inside, inside] == moved[inside, inside]).all()]
        assert len(shifts) == 1 and 0 not in shifts[0]


def test_copy_scores(chests):
    scores, neighbours = copy_scores(chests[:20], chests)
    assert np.allclose(scores, 1, atol=1e-4) and (neighbours == np.arange(20)).all()
    negative = copy_scores(255 - chests[:20], chests)[0]
    assert (negative < 0.95).all() and copy_scores(np.zeros((1, 64, 64), 'uint8'), chests)[0][0] == pytest.approx(0, abs=1e-6)
    copies = plant_copies(chests[:30])['cropped']
    assert (copy_scores(copies, chests[:, ::1], k=1, candidates=np.arange(30)[:, None])[1] == np.arange(30)).mean() > 0.9
    large = np.stack([cv2.resize(x, (112, 112), interpolation=cv2.INTER_CUBIC) for x in chests[:60]])
    for copies in plant_copies(large[:20]).values(): assert (copy_scores(copies, large)[1] == np.arange(20)).mean() >= 0.95


def test_memorisation_report_on_the_phantom(chests):
    held_out, fresh = load_cxr('phantom', 'test', n=240), load_cxr('phantom', 'val', n=80).images
    cheating = np.concatenate([fresh, *(c[:5] for c in plant_copies(chests[100:105], seed=9).values())])
    seen = []
    def features(x):
        seen.append(len(x))
        return np.stack([cv2.resize(z, (6, 6), interpolation=cv2.INTER_AREA).ravel() for z in x])
    r = memorisation_report(cheating, chests, held_out.images, held_out.patients, features=features, controls=20)
    assert json.loads(json.dumps(r)) == r and seen == [100, 240, *[20] * 6, 400]
    assert r['n'] == 100 and 18 <= r['flagged'] <= 24 and min(r['closest']['generated']) >= 80
    assert set(r['closest']['train']) <= set(range(100, 105)) and r['closest']['score'] == sorted(r['closest']['score'], reverse=True)
    assert (r['low'], r['high']) == pytest.approx(wilson_interval(r['flagged'], 100))
    assert r['calibration']['n'] + r['false_alarms']['n'] == 240 and 115 <= r['calibration']['n'] <= 120
    assert all(c['n'] == 20 and (c['rate'] >= 0.9 or 'regrained' in kind) for kind, c in r['controls'].items()) and r['false_alarms']['rate'] <= 0.05
    assert r['features']['controls']['recompressed']['rate'] == 1 and 0 <= r['features']['agreement'] <= 1
    assert r['median_score']['generated'] > r['median_score']['held_out'] and r['features']['threshold'] < 0 and 'unseen' not in r
    few, many = (memorisation_report(fresh, chests, held_out.images, held_out.patients, controls=5, unseen=x) for x in (fresh, chests[:30]))
    assert few['unseen']['flagged'] == few['flagged'] <= 8 and (many['unseen']['flagged'], many['unseen']['n']) == (30, 30)
    assert few['threshold'] == many['threshold'] == r['threshold'] and set(few['controls']) == set(r['controls'])


def test_memorisation_on_kermany(cxr_data):
    "95 % of each kind of planted copies, at most 5 % false alarms on real images of other patients."
    train, test = (load_cxr('kermany', split, root=cxr_data / 'chest_xray', progress=False) for split in ('train', 'test'))
    planted = np.concatenate([c[:5] for c in plant_copies(train.images[1000:1005], seed=1).values()])
    r = memorisation_report(planted, train.images, test.images, test.patients, train.patients, controls=100)
    assert r['flagged'] >= 19 and r['false_alarms']['rate'] <= 0.05 and r['false_alarms']['patients'] > 100
    assert all(c['rate'] >= 0.95 for kind, c in r['controls'].items() if 'regrained' not in kind), r['controls']
    assert r['controls']['regrained']['rate'] > r['controls']['coarsely regrained']['rate']


def test_unknown_patients_are_one_each():
    y, score = np.arange(200) % 2, np.random.default_rng(3).random(200)
    images, unknown = (classification_scores(y, score, groups=g) for g in (None, [''] * 200))
    mixed = classification_scores(y, score, groups=[None, ''] + ['a'] * 98 + [''] * 100)
    assert unknown['auc']['high'] - unknown['auc']['low'] == pytest.approx(images['auc']['high'] - images['auc']['low'], abs=.03)
    assert mixed['auc']['high'] > mixed['auc']['low'] and unknown['resampling'].startswith('groups')


# errors: one line each

F = np.random.default_rng(0).normal(size=(6, 3))
NAN = np.where(np.arange(18).reshape(6, 3) == 4, np.nan, F)
U = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)


@pytest.mark.parametrize('call, words', [
    (lambda: frechet_distance(np.zeros((0, 3)), F), r'x has shape \(0, 3\)'),
    (lambda: frechet_distance(F, []), 'y must have shape'),
    (lambda: frechet_distance(F[:1], F), 'at least 2 samples'),
    (lambda: frechet_distance(F, NAN), 'y has non-finite features in 1 of 6 rows, the first is row 1'),
    (lambda: frechet_distance(F, F[:, :2]), 'x has 3 features and y has 2'),
    (lambda: frechet_distance(F.reshape(6, 3, 1), F), 'flatten'),
    (lambda: frechet_distance(F.astype(str), F), 'real numbers'),
    (lambda: frechet_distance(F.astype(complex), F), 'real numbers'),
    (lambda: frechet_distance_from_moments([0, 0], np.eye(3), [0, 0], np.eye(2)), 'mu_x must have shape'),
    (lambda: frechet_distance_from_moments([0], [[1]], [0, 0], np.eye(2)), 'mu_x has 1 features and mu_y has 2'),
    (lambda: frechet_distance_from_moments([0, 0], np.eye(2), [0, 0], [[1, 2], [2, 1]]), 'sigma_y has negative eigenvalues'),
    (lambda: frechet_distance_from_moments([0, 0], [[1, 2], [0, 1]], [0, 0], np.eye(2)), 'sigma_x is not symmetric'),
    (lambda: frechet_distance_from_moments([0, np.inf], np.eye(2), [0, 0], np.eye(2)), 'non-finite'),
    (lambda: kernel_distance(F[:2], F), 'at least 3 samples'),
    (lambda: kernel_distance(F, NAN), 'non-finite'),
    (lambda: kernel_distance(F, F, subset_size=7), 'subset_size is 7'),
    (lambda: kernel_distance(F, F, subsets=0), 'subsets is 0'),
    (lambda: kernel_distance(F, F, seed=-1), 'seed is -1'),
    (lambda: classification_scores([], []), 'n >= 1'),
    (lambda: classification_scores([0, 1, 1], [.1, .2]), 'got'),
    (lambda: classification_scores([0, 1], [.1, np.nan]), 'finite'),
    (lambda: classification_scores([0, 2], [.1, .2]), 'whole numbers from 0 to 1'),
    (lambda: classification_scores([0, -1], [.1, .2]), 'whole numbers from 0 to 1'),
    (lambda: classification_scores(['a', 'b'], [.1, .2]), 'whole numbers from 0 to 1'),
    (lambda: classification_scores([1, 1], [.1, .2]), 'no sample of class 0'),
    (lambda: classification_scores([0, 1, 1], np.eye(3)), 'no sample of class 2'),
    (lambda: classification_scores([0, 1], [.1, .2], num_classes=3), 'num_classes is 3'),
    (lambda: classification_scores([0, 1], [.1, .2], groups=['a']), 'groups has 1 entries for 2'),
    (lambda: classification_scores([0, 1], [.1, .2], n_boot=0), 'n_boot'),
    (lambda: classification_scores([0, 1], [.1, .2], threshold=np.nan), 'threshold must be a finite number'),
    (lambda: score_differences([0, 1], [.1, .2], [.1, .2], threshold=[.1, .2, .3]), 'one number or a pair'),
    (lambda: prediction_draws({'label': [0, 1], 'probability': [.1, np.nan], 'patient': [0, 1]}), 'finite'),
    (lambda: kernel_distance(F, F, gamma=np.nan), 'must be finite'),
    (lambda: kernel_distance(F, F, subset_size=4.7), 'subset_size is 4.7: it must be a whole number'),
    (lambda: precision_recall(F, F, k=2.5), 'k is 2.5: it must be a whole number'),
    (lambda: nearest_neighbours(F, F, k=1.5), 'k is 1.5'),
    (lambda: inception_score(np.full((3, 2), .5), splits=2.5), 'splits is 2.5'),
    (lambda: plant_copies(U, grain=np.zeros((2, 20, 16), 'uint8')), 'resize them to one size'),
    (lambda: scores_from_confusion([[1, 2]]), r'shape \(C, C\)'),
    (lambda: scores_from_confusion([[1, 2], [0, 0]]), 'no sample of class 1'),
    (lambda: scores_from_confusion([[1, 2], [0, -1]]), 'not negative'),
    (lambda: scores_from_confusion([[1, 2], [0, 1]], rows='columns'), 'rows is'),
    (lambda: confusion_matrices_fitting({'accuracy': .9}), 'two classes'),
    (lambda: confusion_matrices_fitting({'0': {'support': 0}, '1': {'support': 3}}), 'at least 1'),
    (lambda: wilson_interval(5, 4), '0 <= k <= n'),
    (lambda: wilson_interval(1, 4, level=95), 'level is 95'),
    (lambda: inception_score(F), 'apply the softmax'),
    (lambda: inception_score(np.full((3, 2), .4)), 'add up to 1'),
    (lambda: inception_score(np.full((3, 2), .5)), 'splits is 10: it must be a whole number, between 1 and 3'),
    (lambda: intra_frechet_distance(F, [0, 0, 0, 1, 1, 1], F, [0, 0, 0, 0, 0, 1]), 'class 1 has 3 samples in x and 1 in y'),
    (lambda: intra_frechet_distance(F, [0], F, [0] * 6), 'x_labels has shape'),
    (lambda: nearest_neighbours(F, F, k=7), 'k is 7: it must be a whole number, between 1 and 6'),
    (lambda: nearest_neighbours(F, F[:, :1]), 'x has 3 features and y has 1'),
    (lambda: nearest_neighbours(F, NAN), 'y has non-finite'),
    (lambda: precision_recall(F, F, k=6), 'k is 6: it must be a whole number, between 1 and 5'),
    (lambda: precision_recall(F, F[:, :2]), 'real has 3 features and fake has 2'),
    (lambda: precision_recall(NAN, F), 'real has non-finite'),
    (lambda: psnr(F, F), 'x must hold uint8 images'),
    (lambda: psnr(U, U[:3]), 'pairs need equally many'),
    (lambda: psnr(U[:0], U[:0]), 'uint8 images'),
    (lambda: psnr(np.zeros((2, 16, 16, 3), 'uint8'), U), 'x must hold uint8 images'),
    (lambda: ssim(U[:, :10], U[:, :10]), 'images of 10 x 16 pixels: at least 11'),
    (lambda: ms_ssim(U, U / 255), 'y must hold uint8 images'),
    (lambda: ms_ssim_diversity(U[:3]), 'class 0 has 3 images: two pairs need at least 4'),
    (lambda: ms_ssim_diversity(U, labels=[0] * 5 + [1]), 'class 1 has 1 images'),
    (lambda: ms_ssim_diversity(U, labels=[0]), 'one label for each of 6'),
    (lambda: ms_ssim_diversity(U, pairs=1), 'pairs must be >= 2'),
    (lambda: tsne_embedding(F[:3]), 'at least 4 samples'),
    (lambda: tsne_embedding(F[:, :1]), 'at least 2 columns'),
    (lambda: tsne_embedding(np.ones((9, 3))), 'rows that differ'),
    (lambda: tsne_embedding(F, seed=-1), 'seed must be >= 0'),
    (lambda: plant_copies(U / 255), 'uint8 images'),
    (lambda: plant_copies(U, seed=-1), 'seed is -1'),
    (lambda: copy_scores(U, np.zeros((3, 32, 32), 'uint8')), 'resize them to one size'),
    (lambda: copy_scores(U, U, k=0), 'k is 0'),
    (lambda: memorisation_report(U, U, U), '3 held-out images cannot set a false-alarm rate of 0.01'),
    (lambda: memorisation_report(U, U, U, ['a'] * 5), 'held_out_patients has 5 entries for 6'),
    (lambda: memorisation_report(U, U, U, list('abcdef'), list('xyzuvb')), '1 held-out patients are in the training set, the first is b: hold out others'),
    (lambda: memorisation_report(U, U, np.zeros((9, 32, 32), 'uint8')), 'the images differ in size'),
    (lambda: memorisation_report(U, U, U, false_alarm_rate=2), 'between 0 and 1'),
    (lambda: memorisation_report(U, U, U, features=lambda x: F[:2]), 'features returns 2 rows for 6 images'),
])
def test_errors_are_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error: call()
    assert '\n' not in str(error.value)
