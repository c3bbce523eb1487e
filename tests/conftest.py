import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True) # before xdist reads the groups
def pytest_collection_modifyitems(items):
    "On several processes (`-n`) the tests of a file stay together, since they share fixtures: large files first, and last, one by one, the notebooks', so that no process is left with much."
    alone = lambda item: item.name.startswith('test_runs_at_smoke')
    for item in items:
        if not alone(item): item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: (alone(item), -item.path.stat().st_size, item.path.name)) # stable: within a file the order stays


@pytest.fixture(scope='session')
def cxr_data():
    "The folder $CXR_DATA names; the test is skipped where there is no Kermany set in it."
    folder = os.environ.get('CXR_DATA')
    if not folder: pytest.skip('real data: $CXR_DATA is not set')
    if not (Path(folder) / 'chest_xray' / 'train').is_dir(): pytest.skip(f'real data: $CXR_DATA={folder} holds no chest_xray/train')
    return Path(folder).resolve()


@pytest.fixture(scope='session')
def browser():
    "Chromium without a window; skips where there is none."
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
    with api.sync_playwright() as p:
        if path is None and Path(p.chromium.executable_path).exists(): path = p.chromium.executable_path
        if path is None: pytest.skip('no Chromium: install chromium, or google-chrome, for the browser tests')
        chromium = p.chromium.launch(executable_path=path, args=['--no-sandbox'] if os.geteuid() == 0 else [])
        yield chromium
        chromium.close()


@pytest.fixture(scope='session')
def on_backend(tmp_path_factory):
    "A function of a script of this folder and a backend: the arrays the script saves, run in a process of its own; skips where the backend is missing."
    known = {}

    def run(script, backend):
        if importlib.util.find_spec(backend) is None: pytest.skip(f'{backend} is not installed')
        if (script, backend) not in known:
            out = tmp_path_factory.mktemp(backend) / 'found.npz'
            env = os.environ | {'KERAS_BACKEND': backend, 'TF_CPP_MIN_LOG_LEVEL': '3', 'JAX_PLATFORMS': 'cpu'}
            if backend == 'jax': env['XLA_FLAGS'] = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'  # most of the time is compiling
            done = subprocess.run([sys.executable, str(HERE / script), str(out)], env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            with np.load(out) as found: known[script, backend] = dict(found)
        return known[script, backend]

    return run


@pytest.fixture(scope='session')
def same_on_backends(on_backend):
    "A function of a script and a backend: its arrays on TensorFlow, after those of the backend were found equal to 1e-4."
    def compare(script, backend):
        expected, found = on_backend(script, 'tensorflow'), on_backend(script, backend)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(value).max()), err_msg=name)
        return expected

    return compare
