"The command: what it prints, and one line with exit status 2 for every bad input."
import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_acgan import cli

ROOT = Path(__file__).resolve().parents[1]
KNOWN = 'use 00_data, 01_acgan, 02_dcgan, 03_vae, 04_vgg16_eval, 05_vit_attention'


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    "Each test works in an empty folder; the library is this checkout's."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('CXR_RESULTS', raising=False)
    return tmp_path


def fails(capsys, *argv):
    "The one line of an error; nothing printed, nothing written."
    before = sorted(Path.cwd().rglob('*'))
    status = cli.main(argv)
    printed, errors = capsys.readouterr()
    assert status == 2 and printed == '' and errors.startswith('error: ') and errors.count('\n') == 1, (status, printed, errors)
    assert sorted(Path.cwd().rglob('*')) == before
    return errors


@pytest.mark.parametrize('argv, message', [
    (['reproduce', '06_diffusion'], f"unknown notebook '06_diffusion': {KNOWN}"),
    (['reproduce', '9'], f"unknown notebook '9': {KNOWN}"),
    (['reproduce', '--profile', 'huge'], "unknown profile 'huge': use smoke, cpu, paper"),
    (['reproduce', '--dataset', 'mnist'], "unknown dataset 'mnist': use phantom, kermany"),
    (['reproduce', '--seed', '-1'], 'seed -1: must be a whole number from 0 to 2**32 - 1'),
    (['reproduce', '--experiment', 'singh'], "experiment 'singh' is one notebook's"),
    (['reproduce', '--out', '/dev/null/run'], '/dev/null is a file; give a folder'),
    (['reproduce', '--seed', 'one'], "Invalid value for '--seed'"),
    (['reproduce', '--epochs', '3'], 'No such option: --epochs'),
    (['train', 'singh', '--profile', 'huge'], "unknown profile 'huge': use smoke, cpu, paper"),
    (['train', 'singh', '--dataset', 'mnist'], "unknown dataset 'mnist': use phantom, kermany"),
    (['train', 'singh', '--seed', '-3'], 'seed -3: must be a whole number from 0'),
    (['train', 'singh', '--seed', '99999999999999999999'], 'seed 99999999999999999999: must be a whole number from 0 to 2**32 - 1'),
    (['train', 'singh', '--dataset', ''], "unknown dataset ''"),
    (['train', 'singh', '--out', '/dev/null/results'], '/dev/null is a file; give a folder'),
    (['train'], 'Missing argument'),
    (['sample', 'singh', '-n', '0'], 'n 0: must be at least 1'),
    (['sample', 'singh', '--seed', '-1'], 'seed -1: must be a whole number from 0'),
    (['sample', 'singh', '--out', 'sheet.jpg'], 'sheet.jpg: the sheet is a PNG file'),
    (['data', 'mnist'], "unknown dataset 'mnist'"),
    (['data', ''], 'no dataset named: use phantom'),
    (['data', 'phantom', '--split', 'dev'], 'dev'),
    (['data', 'phantom', '--image-size', '0'], '0'),
    (['site', '--out', '/dev/null/site'], '/dev/null is a file; give a folder'),
    (['evaluate', 'singh', '-n', '0'], 'n 0: must be at least 1'),
    (['evaluate', 'singh', '--space', 'vgg'], "unknown space 'vgg': use cxr, inception"),
    (['evaluate', 'singh', '--dataset', 'mnist'], "unknown dataset 'mnist'"),
    (['diffuse'], "No such command 'diffuse'"),
])
def test_bad_input(argv, message, capsys):
    assert message in fails(capsys, *argv)


@pytest.mark.parametrize('argv, message', [
    (['train', 'nope', '--profile', 'smoke'], "unknown experiment 'nope': use sing"),
    (['sample', 'nope'], "unknown experiment 'nope': use sing"),
    (['reproduce', 'acgan', '--experiment', 'nope'], "unknown experiment 'nope': use sing"),
    (['evaluate', 'nope'], "unknown experiment 'nope': use sing"),
    (['train', 'vgg16_singh', '--profile', 'smoke'], '`cxr-acgan train singh --profile smoke --seed 0`'),
    (['evaluate', 'singh', '--profile', 'smoke'], '`cxr-acgan train singh --profile smoke --seed 0`'),
    (['sample', 'singh'], '`cxr-acgan train singh --profile cpu --seed 0`'),
    (['sample', 'singh', '--results', 'elsewhere'], 'elsewhere` gets them'),
])
def test_bad_experiment(argv, message, capsys, empty_folder):
    pytest.importorskip('cxr_acgan.acgan')
    assert message in fails(capsys, *argv)


def test_an_error_is_one_line_of_the_process(empty_folder):
    "What TensorFlow's C++ part logs on loading is no part of the message (capsys does not see it)."
    code = "import sys; from cxr_acgan.cli import main; sys.exit(main(['evaluate', 'singh', '--profile', 'smoke']))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stderr.startswith('error: '), done.stderr


def test_a_run_that_diverges_ends_in_one_line(capsys, monkeypatch):
    def diverge(*args, **kwargs): raise RuntimeError('training diverged: d_loss is nan at update 3')
    monkeypatch.setattr('cxr_acgan.data.load_cxr', diverge)
    assert fails(capsys, 'data', 'phantom') == 'error: training diverged: d_loss is nan at update 3\n'


def test_no_arguments_show_the_help(capsys):
    assert cli.main([]) == 0 and 'reproduce' in capsys.readouterr().out


def test_unwritable_folder(capsys, empty_folder):
    if os.geteuid() == 0: pytest.skip('root may write everywhere')
    (empty_folder / 'closed').mkdir(mode=0o500)
    assert 'cannot be written: Permission denied' in fails(capsys, 'train', 'singh', '--profile', 'smoke', '--out', 'closed/results')


def test_folder_that_is_no_site(capsys, empty_folder):
    (empty_folder / 'notes').mkdir()
    (empty_folder / 'notes' / 'mine.txt').write_text('keep me')
    with pytest.raises(ValueError, match='is not empty and holds no site; give another folder'):
        cli._put_folder(empty_folder / 'notes', empty_folder / 'notes')
    assert (empty_folder / 'notes' / 'mine.txt').read_text() == 'keep me'


@pytest.mark.parametrize('command', ['reproduce', 'site'])
def test_not_a_checkout(command, capsys, monkeypatch):
    monkeypatch.setattr(cli.importlib.util, 'find_spec', lambda name: None)
    assert 'not a checkout of cxr_acgan' in fails(capsys, command)


@pytest.mark.parametrize('command, module', [('reproduce', 'papermill'), ('reproduce', 'smalldocs'), ('site', 'nbdev')])
def test_missing_dev_extra(command, module, capsys, monkeypatch):
    spec = importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, 'find_spec', lambda name: None if name == module else spec(name))
    monkeypatch.setattr(cli.shutil, 'which', lambda name: None)
    assert fails(capsys, command) == f'error: {module} is not installed: pip install "cxr_acgan[dev]"\n'


def test_full_disk_leaves_no_file(empty_folder, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'sheet.png')
    monkeypatch.setattr(cli.os, 'replace', full)
    with pytest.raises(OSError) as e: cli._write_atomic(empty_folder / 'sheet.png', b'png')
    assert cli.error_line(e.value) == 'error: sheet.png: No space left on device'
    assert not list(empty_folder.iterdir())


def test_full_disk_keeps_the_site_that_is_there(empty_folder, monkeypatch):
    for name in ('old', 'new'):
        (empty_folder / name / 'site_libs').mkdir(parents=True)
        (empty_folder / name / 'index.html').write_text(name)
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(cli.shutil, 'copytree', full)
    with pytest.raises(OSError): cli._put_folder(empty_folder / 'new', empty_folder / 'old')
    assert sorted(p.name for p in empty_folder.iterdir()) == ['new', 'old'] and (empty_folder / 'old' / 'index.html').read_text() == 'old'


def test_traceback_is_shown_on_demand():
    with pytest.raises(ValueError, match='seed -1'): cli.main(['--traceback', 'train', 'singh', '--seed', '-1'])


def test_programming_errors_are_not_hidden(monkeypatch):
    def broken(*args, **kwargs): raise TypeError('a bug')
    monkeypatch.setattr(cli, '_check_run', broken)
    with pytest.raises(TypeError, match='a bug'): cli.main(['train', 'singh'])


def test_data(capsys):
    assert cli.main(['data', 'phantom', '--split', 'test', '--image-size', '16', '--json']) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts['split'] == 'test' and facts['image_size'] == 16 and sum(facts['class_counts'].values()) == facts['n']
    assert cli.main(['data', 'phantom', '--image-size', '16']) == 0
    shown = capsys.readouterr().out
    assert 'NORMAL' in shown and 'fingerprint' in shown and 'Apache-2.0' in shown


def test_data_folder(capsys, empty_folder):
    cv2, np = pytest.importorskip('cv2'), pytest.importorskip('numpy')
    for split in ('train', 'test'):
        for k, name in enumerate(('a', 'b', 'c')):
            folder = empty_folder / 'mine' / split / name
            folder.mkdir(parents=True)
            for i in range(2): cv2.imwrite(str(folder / f'{i}.png'), np.full((20, 20), 80 * k + i, 'uint8'))
    assert cli.main(['data', 'mine', '--image-size', '16', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['class_counts'] == {'a': 2, 'b': 2, 'c': 2}


def fake_training(monkeypatch, calls):
    "Stands for minutes of training: writes what train_acgan writes."
    acgan = pytest.importorskip('cxr_acgan.acgan')
    def train_acgan(experiment, profile, dataset, seed, out, verbose):
        calls.append((experiment, profile, dataset, seed))
        for path, text in ((Path(out) / experiment / f'{profile}-seed{seed}' / 'run.json', ''),
                           (Path(out).parent / 'runs' / experiment / f'{profile}-seed{seed}' / 'generator.keras', f'weights {len(calls)}')):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        run = dict(experiment=experiment, profile=profile, seed=seed, settings={}, dataset={'name': dataset}, wall_s=len(calls))
        for file, text in (('run.json', json.dumps(run)), ('metrics.json', '{}'), ('history.csv', 'update')): (Path(out) / experiment / f'{profile}-seed{seed}' / file).write_text(text)
    monkeypatch.setattr(acgan, 'train_acgan', train_acgan)


def test_train_again_only_for_what_is_missing(capsys, empty_folder, monkeypatch):
    calls, argv = [], ['train', 'singh', '--profile', 'paper', '--seed', '2']
    fake_training(monkeypatch, calls)
    record, weights = Path('results/singh/paper-seed2/run.json'), Path('runs/singh/paper-seed2/generator.keras')
    state = lambda: (len(calls), f"run {json.loads(record.read_text())['wall_s']}", weights.read_text())
    assert cli.main(argv) == 0 and capsys.readouterr().out.strip() == str(record.parent.resolve())
    assert calls == [('singh', 'paper', 'kermany', 2)] and state() == (1, 'run 1', 'weights 1')
    assert cli.main(argv) == 0 and state() == (1, 'run 1', 'weights 1') # finished
    capsys.readouterr()
    assert cli.main([*argv, '--dataset', 'pneumoniamnist']) == 2 and 'holds a run on kermany, not on pneumoniamnist' in capsys.readouterr().err and state() == (1, 'run 1', 'weights 1')
    weights.unlink()
    assert cli.main(argv) == 0 and state() == (2, 'run 1', 'weights 2') # the weights again, the record as it was
    assert cli.main([*argv, '--overwrite']) == 0 and state() == (3, 'run 3', 'weights 3')
    assert not Path('runs/again/singh-paper-seed2').exists()


def test_train_and_sample(capsys, empty_folder):
    pytest.importorskip('cxr_acgan.acgan')
    assert cli.main(['train', 'singh', '--profile', 'smoke']) == 0
    record = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert record == empty_folder.resolve() / 'results' / 'singh' / 'smoke-seed0' and (record / 'run.json').is_file()
    assert cli.main(['sample', 'singh', '--profile', 'smoke', '-n', '4', '--out', 'sheets/four.png']) == 0
    import cv2
    sheet = cv2.imread('sheets/four.png', cv2.IMREAD_GRAYSCALE)
    assert sheet is not None and sheet.shape[0] >= 64 and sheet.shape[1] >= 4 * 64
    assert cli.main(['evaluate', 'singh', '--profile', 'smoke', '-n', '64']) == 0
    shown = capsys.readouterr().out
    assert 'half  FD-CXR' in shown and (empty_folder / 'results' / 'quality_singh' / 'smoke-seed0' / 'run.json').is_file()


def test_default_data_of_an_experiment():
    from cxr_acgan import cli
    assert [cli._default_dataset(*a) for a in (('singh', 'cpu'), ('carbone_choice', 'cpu'), ('balance_gan', 'paper'), ('carbone', 'smoke'))] == \
        ['kermany', 'covidx', 'covidx', 'phantom']
