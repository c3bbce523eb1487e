"The package: built, installed in an environment of its own, used from another folder; the README's commands."
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENV = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}


def run(*argv, cwd, **kwargs):
    return subprocess.run([str(a) for a in argv], cwd=cwd, env=ENV, capture_output=True, text=True, **kwargs)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('build')
    source = folder / 'source'
    source.mkdir()
    shutil.copytree(ROOT / 'cxr_acgan', source / 'cxr_acgan', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'): shutil.copy(ROOT / name, source)
    done = run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, source, cwd=folder)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def bare(wheel, tmp_path_factory):
    "An environment that holds the wheel; the dependencies are those of the tests, by path, without their .pth files."
    folder = tmp_path_factory.mktemp('bare')
    assert run(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv', cwd=folder).returncode == 0
    python = folder / 'venv' / 'bin' / 'python'
    done = run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    site = run(python, '-c', "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    Path(site, 'dependencies.pth').write_text('\n'.join({sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}))
    (folder / 'elsewhere').mkdir()
    return folder


def test_wheel_holds_the_library_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {'cxr_acgan/__init__.py', 'cxr_acgan/data.py', 'cxr_acgan/cli.py'} <= set(names)
    weights = 'cxr_acgan/cxr_features.npz'
    assert zipfile.ZipFile(wheel).read(weights) == (ROOT / weights).read_bytes()
    assert all(n.startswith(('cxr_acgan/', 'cxr_acgan-')) for n in names)
    assert any(n.endswith('LICENSE') for n in names)


def test_sdist_holds_weights_and_settings(wheel):
    code = 'from setuptools import build_meta; print(build_meta.build_sdist("."))'
    done = run(sys.executable, '-c', code, cwd=wheel.parent / 'source')
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((wheel.parent / 'source').glob('*.tar.gz'))) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'cxr_acgan/cxr_features.npz', 'setup.py', 'settings.ini', 'README.md', 'LICENSE'} <= names


def test_used_from_another_folder(bare):
    code = ("import cxr_acgan.data as d; ds = d.load_cxr('phantom', 'train', 16, n=10, progress=False); "
            "import sys; print(d.__file__, len(ds), ds.images.shape, sorted({'keras', 'tensorflow', 'jax', 'torch', 'nbdev', 'fastcore'} & set(sys.modules)))")
    done = run(bare / 'venv' / 'bin' / 'python', '-c', code, cwd=bare / 'elsewhere')
    assert done.returncode == 0, done.stderr
    file, shown = done.stdout.split(' ', 1)
    assert Path(file).is_relative_to(bare) and shown.strip() == '10 (10, 16, 16, 1) []'


def test_command_of_the_wheel(bare):
    command = bare / 'venv' / 'bin' / 'cxr-acgan'
    done = run(command, 'data', 'phantom', '--image-size', '16', '--json', cwd=bare / 'elsewhere')
    assert done.returncode == 0 and json.loads(done.stdout)['image_size'] == 16, done.stderr
    for name in ('reproduce', 'site'):
        done = run(command, name, cwd=bare / 'elsewhere')
        assert done.returncode == 2 and re.fullmatch(r'error: .*: not a checkout of cxr_acgan .*\n', done.stderr), done.stderr
    assert not list((bare / 'elsewhere').iterdir())


def test_help_is_fast_and_loads_no_backend():
    code = ("import sys; from cxr_acgan.cli import main; status = main(['--help']); "
            "print(status, sorted({'keras', 'tensorflow', 'jax', 'torch', 'pandas', 'matplotlib', 'cv2', 'nbdev', 'papermill'} & set(sys.modules)))")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run(sys.executable, '-c', code, cwd=ROOT)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.endswith('0 []\n'), done.stderr
    assert min(seconds) < 1


def test_readme_home_and_ci_hold_the_same_commands():
    readme, ci = (ROOT / 'README.md').read_text(), (ROOT / '.ci' / 'run').read_text()
    home = '\n'.join(''.join(c['source']) for c in json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells'])
    [main, test] = [line for line in readme.splitlines() if line.startswith('python3 -m venv')]
    assert main.endswith('&& cxr-acgan reproduce') and test.endswith('python -m pytest -q tests')
    assert main in home and test in home
    assert 'python3 -m venv' in ci and '. "$venv/bin/activate"' in ci
    for step in test.split(' && ')[2:]: assert step in ci, f'.ci/run does not run {step!r}'


def test_readme_and_home_agree():
    home = '\n'.join(''.join(c['source']) for c in json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells'])
    readme = (ROOT / 'README.md').read_text()
    rows = [line.split('|')[1:3] for line in readme.splitlines() if re.match(r'\| (kumar|srm|singh|noori|carbone) ', line)]
    assert len(rows) == 5 and all(f'|{a}|{b}|' in home for a, b in rows)
    for text in (readme, home):
        for needed in ('Not for clinical use', 'Chromium', 'libGL', 'cxr-acgan train singh', 'cxr-acgan sample singh'): assert needed in text


def test_readme_files_exist():
    for path in re.findall(r'python (tests/[\w/]+\.py)', (ROOT / 'README.md').read_text()): assert (ROOT / path).is_file(), path


def test_tests_of_a_file_run_in_one_process(request):
    "The groups of conftest.py are in effect, which some versions of pytest drop without a word; else fixtures, the site's say, are made twice."
    if not hasattr(request.config, 'workerinput'): pytest.skip('one process')
    assert request.node.nodeid.endswith('@test_package')
