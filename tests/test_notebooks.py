"The notebooks: each runs at smoke on the phantom, the library is their export, and they are clean."
import filecmp
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_acgan.cli import NOTEBOOKS, find_notebooks, main, notebook_parameters, run_notebook

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
NAMES = [p.relative_to(ROOT / 'nbs').with_suffix('').as_posix() for p in PATHS]


@pytest.mark.parametrize('path', PATHS, ids=NAMES)
def test_runs_at_smoke(path, tmp_path):
    given = dict(profile='smoke', dataset='phantom', seed=0, out=str(tmp_path / 'results')) if notebook_parameters(path) else {}
    copy = run_notebook(ROOT, path, tmp_path / 'notebooks', given)
    cells = [c for c in json.loads(copy.read_text())['cells'] if c['cell_type'] == 'code']
    assert cells and all(c['execution_count'] for c in cells if ''.join(c['source']).strip())


def test_the_six_are_there():
    assert [p.stem for p in find_notebooks(ROOT)] == list(NOTEBOOKS)


def test_unknown_parameter_fails(tmp_path):
    [path] = find_notebooks(ROOT, ['vae'])
    with pytest.raises(ValueError, match="03_vae.ipynb has no parameter 'epochs': it has experiment, profile, dataset, seed, out"):
        run_notebook(ROOT, path, tmp_path, {'epochs': 1})
    assert not list(tmp_path.iterdir())


def write_notebook(path, source):
    path.parent.mkdir(exist_ok=True)
    cell = dict(cell_type='code', execution_count=None, id='a', metadata={}, outputs=[], source=source)
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    path.write_text(json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))
    return path


def test_failing_cell_is_named(tmp_path):
    broken = write_notebook(tmp_path / 'nbs' / 'broken.ipynb', "raise OSError('disk\\nfull')")
    with pytest.raises(ValueError, match=r'^broken.ipynb, cell \d: OSError: disk \(executed copy: .*broken.ipynb\)$'):
        run_notebook(tmp_path, broken, tmp_path / 'out')


def test_log_lines_are_dropped(tmp_path):
    log = "WARNING:tensorflow:5 out of the last 13 calls to <function f> triggered tf.function retracing."
    source = f"import sys\nprint('kept')\nprint({log!r})\nprint({log!r}, file=sys.stderr)\nprint('kept, too', file=sys.stderr)"
    copy = run_notebook(tmp_path, write_notebook(tmp_path / 'nbs' / 'a.ipynb', source), tmp_path / 'out')
    outputs = {o['name']: ''.join(o['text']) for o in json.loads(copy.read_text())['cells'][0]['outputs']}
    assert outputs == {'stdout': 'kept\n', 'stderr': 'kept, too\n'}


def test_a_failure_ends_what_runs_beside_it(tmp_path, monkeypatch, capfd):
    (tmp_path / 'settings.ini').touch()
    begun = tmp_path / 'begun'
    write_notebook(tmp_path / 'nbs' / '00_data.ipynb', f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)")
    write_notebook(tmp_path / 'nbs' / '01_acgan.ipynb', f"import pathlib, time\nwhile not pathlib.Path({str(begun)!r}).exists(): time.sleep(.1)\n1 / 0")
    write_notebook(tmp_path / 'nbs' / '04_vgg16_eval.ipynb', f"import pathlib; pathlib.Path({str(tmp_path / 'after')!r}).touch()")
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    assert main(['reproduce', 'data', 'acgan', '4', '--jobs', '3', '--out', 'out']) == 2
    assert time.monotonic() - start < 120 and begun.exists() and not (tmp_path / 'after').exists()
    assert '01_acgan.ipynb, cell 0: ZeroDivisionError: division by zero' in capfd.readouterr().err


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
    "A copy of what export and clean read and write."
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('nbs', 'cxr_acgan'): shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    shutil.copy(ROOT / 'settings.ini', folder)
    shutil.copy(ROOT / '_quarto.yml', folder)
    return folder


def nbdev(code, folder):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_library_is_the_export(copied):
    nbdev('from nbdev.doclinks import nbdev_export; nbdev_export()', copied)
    files = {p.name for folder in (ROOT, copied) for p in (folder / 'cxr_acgan').glob('*.py')}
    _, different, missing = filecmp.cmpfiles(ROOT / 'cxr_acgan', copied / 'cxr_acgan', files, shallow=False)
    assert not different and not missing, 'run nbdev_export'
    exported = {re.search(r'default_exp (\w+)', p.read_text())[1] for p in PATHS if 'default_exp' in p.read_text()}
    assert {f.removesuffix('.py') for f in files} == exported | {'__init__', '_modidx'}, 'a module without its notebook'


def test_notebooks_are_clean(copied):
    nbdev('from nbdev.clean import nbdev_clean; nbdev_clean()', copied)
    for path in PATHS: assert (copied / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), f'{path.name}: run nbdev_clean'


def test_pyflakes():
    done = subprocess.run([sys.executable, '-m', 'pyflakes', 'cxr_acgan'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('path', PATHS, ids=NAMES)
def test_small_and_portable(path):
    "Under 400 kB with outputs, and no output names a folder of the machine it was run on."
    assert path.stat().st_size < 400_000
    for cell in json.loads(path.read_text())['cells']:
        shown = json.dumps([{k: v for k, v in o.get('data', o).items() if not k.startswith('image/')} for o in cell.get('outputs', ())])
        found = re.search(r'(?<![\w.:/])/(home|root|Users|work|tmp|content|kaggle/working)/[^"\\ ]*', shown)
        assert not found, f'{path.name}: {found[0]}'
