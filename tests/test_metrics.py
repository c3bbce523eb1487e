"Metrics against closed forms, scipy and scikit-learn; their speed; what bad input gets."
import json
import time

import numpy as np
import pytest
import scipy.linalg
from sklearn import metrics as sk

from cxr_acgan.metrics import (classification_scores, confusion_matrices_fitting, frechet_distance,
                               frechet_distance_from_moments, kernel_distance, scores_from_confusion, wilson_interval)

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
    d = 512
    a, b = (np.cov(rng.normal(size=(2 * d, d)).T) for _ in range(2))
    def best(f, repeats):
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            f()
            times.append(time.perf_counter() - start)
        return min(times)
    ours = best(lambda: frechet_distance_from_moments(np.zeros(d), a, np.zeros(d), b), 7)
    theirs = best(lambda: scipy.linalg.sqrtm(a @ b), 3)
    assert theirs > 2 * ours, f'{theirs / ours:.1f} times faster'         # about 6 on an idle machine, more at 2,048


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


# errors: one line each

F = np.random.default_rng(0).normal(size=(6, 3))
NAN = np.where(np.arange(18).reshape(6, 3) == 4, np.nan, F)


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
    (lambda: scores_from_confusion([[1, 2]]), r'shape \(C, C\)'),
    (lambda: scores_from_confusion([[1, 2], [0, 0]]), 'no sample of class 1'),
    (lambda: scores_from_confusion([[1, 2], [0, -1]]), 'not negative'),
    (lambda: scores_from_confusion([[1, 2], [0, 1]], rows='columns'), 'rows is'),
    (lambda: confusion_matrices_fitting({'accuracy': .9}), 'two classes'),
    (lambda: confusion_matrices_fitting({'0': {'support': 0}, '1': {'support': 3}}), 'at least 1'),
    (lambda: wilson_interval(5, 4), '0 <= k <= n'),
    (lambda: wilson_interval(1, 4, level=95), 'level is 95'),
])
def test_errors_are_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error: call()
    assert '\n' not in str(error.value)
