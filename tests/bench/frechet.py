"""Seconds of one Frechet distance from moments at 512 and 2,048 dimensions, and of scipy.linalg.sqrtm alone on the same covariances.

    python tests/bench/frechet.py [--record]

Also printed: how far the value is from the closed form for two normal distributions with a common rotation.
--record writes results/frechet_speed, which the page on metrics shows.
Exit status 0: at 2,048 dimensions at least 5 times faster, and within 1e-6; 1: not. Run it on an otherwise idle machine.
"""
import argparse
import sys
import time

import numpy as np
import pandas as pd
import scipy.linalg

from cxr_acgan.metrics import frechet_distance_from_moments
from cxr_acgan.results import RunRecord


def timed(function, *args):
    start = time.perf_counter()
    value = function(*args)
    return value, time.perf_counter() - start


def compare(d, repeats=3):
    "The distance's and sqrtm's seconds (the least of `repeats`; of sqrtm, which takes long, one) and the distance's error."
    rng = np.random.default_rng(0)
    s_x, s_y = rng.uniform(0.1, 2, size=(2, d))
    mu_x, mu_y = rng.normal(size=(2, d))
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    sigma_x, sigma_y = ((q * s**2) @ q.T for s in (s_x, s_y))
    sigma_x, sigma_y = (sigma_x + sigma_x.T) / 2, (sigma_y + sigma_y.T) / 2
    runs = [timed(frechet_distance_from_moments, q @ mu_x, sigma_x, q @ mu_y, sigma_y) for _ in range(repeats)]
    error = abs(runs[0][0] - ((mu_x - mu_y)**2 + (s_x - s_y)**2).sum())
    return {'dimensions': d, 'seconds': min(s for _, s in runs), 'sqrtm_seconds': timed(scipy.linalg.sqrtm, sigma_x @ sigma_y)[1], 'error': float(error)}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--record', action='store_true')
write = parser.parse_args().record
start = time.perf_counter()
found = [compare(d) for d in (512, 2048)]
for m in found:
    print('{dimensions} dimensions: {seconds:.2f} s, sqrtm {sqrtm_seconds:.1f} s, off the closed form by {error:.1e}'.format(**m))
if write:
    RunRecord('frechet_speed', 'cpu', 0, {'repeats': 3}, {'name': 'covariances with a common rotation', 'n': None}, {'dimensions': found}, pd.DataFrame(columns=['update']), time.perf_counter() - start).write()
sys.exit(found[-1]['sqrtm_seconds'] < 5 * found[-1]['seconds'] or max(m['error'] for m in found) > 1e-6)
