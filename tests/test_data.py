"Loaders, downloads, bad inputs, splits, leakage and the phantom; tiny folders in tmp_path, real data where $CXR_DATA leads to it."
import hashlib
import http.server
import os
import shutil
import sys
import threading
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_acgan import data
from cxr_acgan.data import (CXRDataset, augment_classic, download_cxr, draw_phantom, leakage_report, load_cxr, patient_id, preprocess,
                            source_confound, split_by_patient, unzip)

KERMANY = {'NORMAL': ('IM-0115-0001', 'IM-0115-0002', 'NORMAL2-IM-0117-0001'),
           'PNEUMONIA': ('person1_bacteria_1', 'person1_virus_6', 'person1_virus_7', 'person2_bacteria_3')}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    "No data, cache or Kaggle of this machine; no network."
    monkeypatch.setenv('CXR_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('CXR_DATA', raising=False)
    monkeypatch.setattr(data, '_KAGGLE_INPUT', tmp_path / 'kaggle')
    def offline(name, facts, cache_dir): raise OSError('kagglehub: offline')
    monkeypatch.setattr(data, '_from_kaggle', offline)


def write_images(folder, names, seed=0, size=(40, 50), suffix='.jpeg'):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, len(folder.name)])
    for name in names: cv2.imwrite(str(folder / f'{name}{suffix}'), cv2.resize(rng.integers(0, 255, (5, 5), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC))


def make_kermany(root):
    for seed, split in enumerate(('train', 'test', 'val')):
        for c, names in KERMANY.items(): write_images(root / 'chest_xray' / split / c, names, seed)
    return root


def make_medmnist(path, **replaced):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (('train', 12), ('test', 6), ('val', 4)):
        arrays |= {f'{split}_images': rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), f'{split}_labels': (np.arange(n) % 2).astype(np.uint8)[:, None]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{k: v for k, v in (arrays | replaced).items() if v is not None})
    return path


def load(*args, **kwargs): return load_cxr(*args, progress=False, **kwargs)


def message(error, *args, call=load, **kwargs):
    "The message of the error a call raises: one line."
    with pytest.raises(error) as e: call(*args, **kwargs)
    text = str(e.value)
    assert '\n' not in text and text
    return text


# ---- loaders

def test_kermany(tmp_path):
    ds = load('kermany', 'train', 16, root=make_kermany(tmp_path))
    assert ds.images.shape == (7, 16, 16, 1) and ds.images.dtype == np.uint8 and ds.labels.dtype == np.int64
    assert ds.class_counts() == {'NORMAL': 3, 'PNEUMONIA': 4}
    assert ds.file_names[0] == 'train/NORMAL/IM-0115-0001.jpeg' and ds.labels.tolist() == [0] * 3 + [1] * 4
    assert ds.patients == ('IM-0115', 'IM-0115', 'NORMAL2-IM-0117', 'person1_bacteria', 'person1_virus', 'person1_virus', 'person2_bacteria')
    expected = cv2.resize(cv2.imread(str(tmp_path / 'chest_xray' / ds.file_names[0]), cv2.IMREAD_GRAYSCALE), (16, 16), interpolation=cv2.INTER_AREA)
    assert (ds.images[0, ..., 0] == expected).all()
    assert load('kermany', 'test', 16, root=tmp_path / 'chest_xray').fingerprint != ds.fingerprint


def test_fingerprint_knows_content_not_place_or_time(tmp_path):
    a = load('kermany', image_size=16, root=make_kermany(tmp_path / 'a'))
    shutil.copytree(tmp_path / 'a', tmp_path / 'b', copy_function=shutil.copyfile)
    b = load('kermany', image_size=16, root=tmp_path / 'b')
    again = load('kermany', image_size=16, root=tmp_path / 'a')
    assert a.fingerprint == b.fingerprint == again.fingerprint and (again.images == a.images).all()
    assert load('kermany', image_size=8, root=tmp_path / 'a').fingerprint != a.fingerprint
    write_images(tmp_path / 'b/chest_xray/train/NORMAL', KERMANY['NORMAL'][:1], seed=9)
    changed = load('kermany', image_size=16, root=tmp_path / 'b')
    assert changed.fingerprint != a.fingerprint and (changed.images[0] != a.images[0]).any()


def test_cache_is_used_and_a_damaged_one_is_replaced(tmp_path, monkeypatch):
    ds = load('kermany', image_size=16, root=make_kermany(tmp_path))
    cache, = (tmp_path / 'cache').glob('*.npz')
    cache.write_bytes(cache.read_bytes()[:100])
    assert (load('kermany', image_size=16, root=tmp_path).images == ds.images).all()
    monkeypatch.setattr(data, '_read_image', None) # a third load reads no file
    assert (load('kermany', image_size=16, root=tmp_path).images == ds.images).all()
    assert os.listdir(tmp_path / 'cache') == [cache.name]


def test_pneumoniamnist(tmp_path):
    path = make_medmnist(tmp_path / 'pneumoniamnist.npz')
    ds = load('pneumoniamnist', 'test', 28, root=tmp_path)
    with np.load(path) as z: assert (ds.images[..., 0] == z['test_images']).all() and (ds.labels == z['test_labels'].ravel()).all()
    assert set(ds.patients) == {''} and ds.describe()['patients'] is None and ds.class_counts() == {'NORMAL': 3, 'PNEUMONIA': 3}
    assert load('pneumoniamnist', image_size=64, root=path).images.shape == (12, 64, 64, 1)


@pytest.mark.parametrize('classes', [('a', 'b', 'c'), tuple('abcde'), ('only',)])
def test_folder_of_any_number_of_classes(tmp_path, classes):
    for k, c in enumerate(classes): write_images(tmp_path / 'set' / c, map(str, range(k + 2)), k, suffix='.png')
    ds = load(str(tmp_path / 'set'), image_size=8)
    assert ds.class_names == classes and list(ds.class_counts().values()) == [k + 2 for k in range(len(classes))]
    assert ds.split == 'all' and ds.name == 'set' and ds.file_names[0] == f'{classes[0]}/0.png' and ds.num_classes == len(classes)
    assert 'no splits' in message(ValueError, str(tmp_path / 'set'), 'test')
    small = load(tmp_path / 'set', image_size=8, n=len(classes), seed=3)
    assert set(small.class_counts().values()) == {1}


def test_folder_with_splits(tmp_path):
    for split in ('train', 'validation'):
        for c in 'xyz': write_images(tmp_path / split / c, '01', len(split), suffix='.png')
    assert len(load(str(tmp_path), 'val', 8)) == 6 and load(str(tmp_path), 'train', 8).file_names[0] == 'train/x/0.png'
    assert 'only train, val' in message(ValueError, str(tmp_path), 'test')


def test_lookup_order(tmp_path, monkeypatch):
    where = {k: make_kermany(tmp_path / k) for k in ('root', 'env', 'cache')}
    where['kaggle'] = make_kermany(tmp_path / 'kaggle' / 'chest-xray-pneumonia')
    monkeypatch.setenv('CXR_DATA', str(where['env']))
    find = lambda root=None: data._find('kermany', root, None, False)
    assert find(where['root']) == where['root'] / 'chest_xray'
    for place, gone in (('env', 'env'), ('kaggle', 'kaggle/chest-xray-pneumonia'), ('cache', 'cache')):
        assert find() == where[place] / 'chest_xray'
        shutil.rmtree(tmp_path / gone)
    text = message(FileNotFoundError, 'kermany')
    for way in ('root', '$CXR_DATA', str(tmp_path / 'kaggle'), str(tmp_path / 'cache'), 'kagglehub', 'phantom'): assert way in text, way


def test_download_only_when_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(data, 'download_cxr', lambda *args, **kwargs: make_kermany(tmp_path) / 'chest_xray')
    assert 'not asked for' in message(FileNotFoundError, 'kermany', download=False)
    assert len(load('kermany', image_size=8)) == 7


def test_all_splits_as_one(tmp_path):
    make_kermany(tmp_path)
    ds, parts = load('kermany', 'all', 8, root=tmp_path), [load('kermany', s, 8, root=tmp_path) for s in ('train', 'test', 'val')]
    assert ds.split == 'all' and ds.class_counts() == {'NORMAL': 9, 'PNEUMONIA': 12} and (np.diff(ds.labels) >= 0).all()
    assert [f.split('/')[0] for f in ds.file_names] == ['train'] * 3 + ['test'] * 3 + ['val'] * 3 + ['train'] * 4 + ['test'] * 4 + ['val'] * 4
    of = {f: (image.tobytes(), p) for d in parts for f, image, p in zip(d.file_names, d.images, d.patients)}
    assert [(image.tobytes(), p) for image, p in zip(ds.images, ds.patients)] == [of[f] for f in ds.file_names] and ds.sources == ()
    assert ds.fingerprint not in [p.fingerprint for p in parts] and ds.fingerprint == load('kermany', 'all', 8, root=tmp_path).fingerprint


# ---- covidx

COVIDX = {'COVID-19': ('cohen_1', 'cohen_2', 'raddb_1', 'raddb_2', 'raddb_3'), 'normal': ('raddb_4', 'raddb_5', 'child_1', 'child_2'),
          'pneumonia': ('child_3', 'child_4', 'child_5', 'cohen_3')}
LIST = ['419 c.png COVID-19 ricord', 'COVID 1 b (1).png positive sirm', '2 a.jpeg COVID-19 cohen', 'r2 e.png pneumonia rsna', 'r1 d.png normal rnsa', 'r3 f.png normal rsna']


def make_covidx(root, rows=True):
    "Class folders and, beside them, an index; the sources are in the names, `child_k` is Kermany's person k."
    lines = ['file,split,cls,source,patient,kermany_file,licence,reuse']
    for seed, split in enumerate(('train', 'test')):
        for c, names in COVIDX.items():
            write_images(root / 'covidx' / split / c, names, seed, suffix='.jpg')
            for name in names:
                source, k = name.split('_')
                kermany = f'chest_xray/train/PNEUMONIA/person{k}_virus_{seed}.jpeg' if source == 'child' else ''
                lines.append(f'covidx/{split}/{c}/{name}.jpg,{split},{c},{source},{"" if source == "raddb" else name},{kermany},see page,{"CC BY" if kermany else ""}')
    if rows: (root / 'covidx_index.csv').write_text('\n'.join(lines))
    return root


def make_original(root, train=LIST, name='train_COVIDx9A.txt'):
    "COVIDx as downloaded: a folder a split, lists beside them; Kaggle's own list knows two classes."
    for split in ('train', 'test'):
        write_images(root / split, ('b (1)', 'c', 'd', 'e', 'f'), len(split), suffix='.png')
        write_images(root / split, 'a', len(split))
        (root / f'{split}.txt').write_text('2 a.jpeg positive cohen\nr1 d.png negative rsna\n')
    if train: (root / name).write_text('\n'.join(train) + '\n')
    return root


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*confounded')
        return load('covidx', *args, **kwargs)


def test_covidx_class_folders(tmp_path):
    ds = quiet('train', 16, root=make_covidx(tmp_path))
    assert ds.class_names == ('COVID-19', 'normal', 'pneumonia') and ds.class_counts() == {'COVID-19': 5, 'normal': 4, 'pneumonia': 4}
    assert ds.file_names[:3] == ('train/COVID-19/cohen_1.jpg', 'train/COVID-19/cohen_2.jpg', 'train/COVID-19/raddb_1.jpg')
    assert ds.sources == tuple(f.split('/')[-1].split('_')[0] for f in ds.file_names)
    assert ds.patients == ('cohen_1', 'cohen_2', '', '', '', 'person1_virus', 'person2_virus', '', '', 'person3_virus', 'person4_virus', 'person5_virus', 'cohen_3')
    assert ds.licences == tuple('CC BY' if s == 'child' else 'see page' for s in ds.sources)
    assert ds.describe()['sources'] == {'child': 5, 'cohen': 3, 'raddb': 5} and ds.describe()['licences'] == {'CC BY': 5, 'see page': 8}
    assert ds.source_counts()['raddb'] == {'COVID-19': 3, 'normal': 2, 'pneumonia': 0}
    last = ds.subset([-1, 0])
    assert last.sources == ('cohen', 'cohen') and last.licences == ('see page', 'see page') and last.patients == ('cohen_3', 'cohen_1')
    assert (ds.images == load(str(tmp_path / 'covidx'), 'train', 16).images).all() # the same files as a plain folder
    (tmp_path / 'covidx_index.csv').rename(tmp_path / 'covidx' / 'covidx_index.csv') # in the folder instead of beside it
    assert quiet('train', 16, root=tmp_path).sources == ds.sources and quiet('train', 16, root=tmp_path).fingerprint == ds.fingerprint
    assert "no split 'val', only train, test" in message(ValueError, 'covidx', 'val', root=tmp_path)


def test_covidx_original(tmp_path):
    ds = quiet('train', 16, root=make_original(tmp_path))
    assert ds.file_names == tuple(f'train/{f}' for f in ('a.jpeg', 'b (1).png', 'c.png', 'd.png', 'f.png', 'e.png')) and ds.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert ds.patients == ('2', 'COVID 1', '419', 'r1', 'r3', 'r2') and ds.sources == ('cohen', 'sirm', 'ricord', 'rsna', 'rsna', 'rsna')
    assert ds.licences == tuple(f'see {s}' for s in ds.sources) and not ds.showable.any() # the lists name no licence
    assert ds.source.endswith('; train_COVIDx9A.txt')
    expected = cv2.resize(cv2.imread(str(tmp_path / 'train/b (1).png'), cv2.IMREAD_GRAYSCALE), (16, 16), interpolation=cv2.INTER_AREA)
    assert (ds.images[1, ..., 0] == expected).all()
    (tmp_path / 'train_COVIDx_CXR-3A.txt').write_text('\n'.join([LIST[2], *LIST[3:]])) # newer by name: one COVID-19 image
    newer = quiet('train', 16, root=tmp_path)
    assert newer.class_counts() == {'COVID-19': 1, 'normal': 2, 'pneumonia': 1} and newer.source.endswith('CXR-3A.txt') and newer.fingerprint != ds.fingerprint


def test_covidx_list_without_sources_or_with_folders(tmp_path):
    old = quiet(root=make_original(tmp_path / 'old', [line.rsplit(' ', 1)[0].replace('COVID 1', 'COVID-1').replace('positive', 'COVID-19') for line in LIST], 'train_COVIDx5.txt'))
    assert old.sources == () and old.patients[1] == 'COVID-1' and old.class_counts() == {'COVID-19': 3, 'normal': 2, 'pneumonia': 1} and 'sources' not in old.describe()
    split = make_covidx(tmp_path, rows=False) / 'covidx' # class folders with a list: carbone's scripts write class/file into it
    lines = [f'p{k} {c}/{name}.jpg {"positive" if c == "COVID-19" else "negative"} {name.split("_")[0]}' for c, names in COVIDX.items() for k, name in enumerate(names)]
    (split / 'train_COVIDx9A.txt').write_text('\n' + '\n'.join(lines))
    ds = quiet(root=tmp_path)
    assert ds.patients[:2] == ('p0', 'p1') and ds.source_counts()['child'] == {'COVID-19': 0, 'normal': 2, 'pneumonia': 3}


def test_covidx_is_found_on_kaggle(tmp_path, monkeypatch):
    make_original(tmp_path / 'kaggle' / 'covidx-cxr2')
    assert len(quiet()) == 6
    monkeypatch.setenv('CXR_DATA', str(tmp_path / 'mine'))
    make_covidx(tmp_path / 'mine')
    assert len(quiet()) == 13 and quiet().licences
    shutil.rmtree(tmp_path / 'mine'), shutil.rmtree(tmp_path / 'kaggle')
    text = message(FileNotFoundError, 'covidx')
    for way in ('root', '$CXR_DATA', 'covidx-cxr2', str(tmp_path / 'cache'), 'kagglehub', 'phantom'): assert way in text, way


def test_covidx_sources(tmp_path):
    make_covidx(tmp_path)
    few = quiet('train', 8, root=tmp_path, sources=('cohen', 'raddb'))
    assert set(few.sources) == {'cohen', 'raddb'} and few.class_counts() == {'COVID-19': 5, 'normal': 2, 'pneumonia': 1}
    both = quiet('all', 8, root=tmp_path, sources=('cohen', 'raddb'))
    assert both.class_counts() == {'COVID-19': 10, 'normal': 4, 'pneumonia': 2} and both.file_names[4:6] == ('train/COVID-19/raddb_3.jpg', 'test/COVID-19/cohen_1.jpg')
    assert set(both.licences) == {'see page'} and len(both.subset([0, 3]).sources) == 2
    two = quiet('train', 8, root=tmp_path, sources='raddb', n=3) # a class without images is none to fill
    assert two.class_counts() == {'COVID-19': 2, 'normal': 1, 'pneumonia': 0}
    assert "no source 'rsna'; use some of child, cohen, raddb" in message(ValueError, 'covidx', 'train', root=tmp_path, sources=('cohen', 'rsna'))
    assert 'use some of child, cohen, raddb' in message(ValueError, 'covidx', root=tmp_path, sources=())
    for c in COVIDX:
        for f in (tmp_path / 'covidx/test' / c).glob('cohen*'): f.unlink()
    assert "covidx (test): no source 'cohen'" in message(ValueError, 'covidx', 'test', root=tmp_path, sources='cohen')
    assert len(quiet('all', 8, root=tmp_path, sources='cohen')) == 3


def test_covidx_confound(tmp_path):
    with pytest.warns(UserWarning) as caught: ds = load('covidx', 'train', 8, root=make_covidx(tmp_path))
    text = str(caught[0].message)
    assert len(caught) == 1 and '\n' not in text and text.startswith('covidx (train)')
    assert '75 % of pneumonia but 0 % of COVID-19 come from child' in text and '58 % (chance 33 %' in text
    found = source_confound(ds)
    assert found['classes'] == ['pneumonia', 'COVID-19'] and found['sources'] == ['child'] and found['shares'] == [0.75, 0] and found['distance'] == 0.75
    assert found['accuracy'] == pytest.approx((2 / 5 + 3 / 5 + 3 / 4) / 3) and found['counts'] == ds.source_counts()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load('covidx', 'train', 8, root=tmp_path, sources='raddb') # one source: nothing to confound
    assert source_confound(ds.subset(ds.labels == 0)) is None and source_confound(draw_phantom(8)) is None
    a = CXRDataset(np.zeros((6, 8, 8, 1), np.uint8), np.array([0, 0, 1, 1, 1, 0]), ('a', 'b'), tuple('uvwxyz'), ('',) * 6, 'train', 'x', sources=('s', 't', 's', 't', '', ''))
    assert source_confound(a)['distance'] == 0 and source_confound(a)['accuracy'] == 0.5 # unknown sources left out
    with pytest.raises(ValueError, match='1 sources'): CXRDataset(a.images, a.labels, ('a', 'b'), a.file_names, a.patients, 'train', 'x', sources=('s',))


def test_covidx_without_index(tmp_path):
    make_covidx(tmp_path, rows=False)
    with pytest.warns(UserWarning, match='of 13 of 13 images are unknown') as caught: ds = load('covidx', 'train', 8, root=tmp_path)
    assert len(caught) == 1 and '\n' not in str(caught[0].message) and ds.sources == ds.licences == () and set(ds.patients) == {''} and len(ds) == 13
    with pytest.warns(UserWarning, match='unknown'): assert 'source of no image is known' in message(ValueError, 'covidx', root=tmp_path, sources='cohen')
    (tmp_path / 'covidx_index.csv').write_text('file,source\ncovidx/train/normal/raddb_4.jpg,raddb\n')
    with pytest.warns(UserWarning, match='of 12 of 13 images are unknown'): ds = load('covidx', 'train', 8, root=tmp_path)
    assert ds.describe()['sources'] == {'': 12, 'raddb': 1} and ds.licences == ()
    (tmp_path / 'covidx_index.csv').write_text('name,split\nx,train\n')
    assert "no column 'file'" in message(ValueError, 'covidx', root=tmp_path)


@pytest.mark.parametrize('lines, words', [
    (['p1 a.jpeg'], "line 1: too few fields in 'p1 a.jpeg'"), (['2 a.jpeg COVID-19 cohen', '', 'normal'], 'line 3: too few fields'),
    (['2 a.jpeg normal'] * 2 + ['a.jpeg normal rsna'], 'line 3: too few fields'), (['p1 a.jpeg healthy rsna'], "line 1: class 'healthy' is not known"),
    (['2 ../a.jpeg normal rsna'], 'leads outside'), (['2 /etc/a.jpeg normal rsna'], 'leads outside'), ([' '], 'an empty list'),
    ([line for line in LIST if 'pneumonia' not in line], "class 'pneumonia' of covidx has no readable image")])
def test_covidx_list_faults(tmp_path, lines, words): assert words in message(ValueError, 'covidx', image_size=8, root=make_original(tmp_path, lines))


def test_covidx_lists_missing_or_of_two_classes(tmp_path):
    make_original(tmp_path, train=None)
    text = message(ValueError, 'covidx', image_size=8, root=tmp_path)
    assert 'train.txt: positive and negative only' in text and 'train_COVIDx9A.txt' in text and 'COVID-Net' in text
    (tmp_path / 'train.txt').unlink()
    text = message(FileNotFoundError, 'covidx', image_size=8, root=tmp_path)
    assert 'train*.txt' in text and 'train_COVIDx9A.txt' in text and str(tmp_path) in text
    shutil.rmtree(tmp_path / 'train')
    assert 'only test' in message(ValueError, 'covidx', image_size=8, root=tmp_path)
    shutil.rmtree(tmp_path / 'test')
    assert 'no covidx' in message(FileNotFoundError, 'covidx', image_size=8, root=tmp_path)


def test_covidx_files_missing(tmp_path):
    make_original(tmp_path, [*LIST, 'r9 gone.png normal rsna'])
    (tmp_path / 'train' / 'c.png').write_bytes(b'')
    for _ in range(2): # read, and from the cache
        with pytest.warns(UserWarning, match=r'2 of 7 files skipped: c.png \(empty\); gone.png \(No such file'):
            ds = quiet('train', 8, root=tmp_path)
        assert ds.patients == ('2', 'COVID 1', 'r1', 'r3', 'r2') and ds.sources == ('cohen', 'sirm', 'rsna', 'rsna', 'rsna')
    text = message(ValueError, 'covidx', image_size=8, root=tmp_path, strict=True)
    assert '2 of 7' in text and 'gone.png' in text
    write_images(tmp_path / 'train', ['gone'], suffix='.png') # no longer missing
    with pytest.warns(UserWarning, match='1 of 7 files skipped'): assert len(quiet('train', 8, root=tmp_path)) == 6


def test_covidx_command(tmp_path, monkeypatch, capsys):
    from cxr_acgan.cli import main
    monkeypatch.setenv('CXR_DATA', str(make_covidx(tmp_path)))
    with pytest.warns(UserWarning, match='confounded'): assert main(['data', 'covidx', '--image-size', '8']) == 0
    out = capsys.readouterr().out
    assert 'COVID-19 5, normal 4, pneumonia 4' in out and 'child 5, cohen 3, raddb 5' in out
    assert main(['data', 'covidx', '--split', 'val']) == 2 and 'no split' in capsys.readouterr().err


def test_three_classes_split_and_leak(tmp_path):
    ds = quiet('all', 16, root=make_covidx(tmp_path))
    with pytest.warns(UserWarning, match='10 of 26 images name no patient'): parts = split_by_patient(ds, (0.5, 0.5))
    assert all(min(p.class_counts().values()) for p in parts) and not set(parts[0].patients) & set(parts[1].patients) - {''}
    assert [p.sources for p in parts] == [tuple(Path(f).name.split('_')[0] for f in p.file_names) for p in parts]
    train, test = quiet('train', 16, root=tmp_path), quiet('test', 16, root=tmp_path)
    shared = leakage_report([train, test])['shared_patients']['train & test']
    assert shared == sorted({p for p in train.patients if p}) and augment_classic(ds.images).shape == ds.images.shape


# ---- bad inputs

@pytest.mark.parametrize('content, reason', [(b'', 'empty'), (b'hello', 'not an image'), (b'\xff\xd8\xff\xe0garbage\xff\xd9', 'not an image'), ('cut', 'truncated')])
def test_unreadable_files_are_named_and_counted(tmp_path, content, reason):
    folder = make_kermany(tmp_path) / 'chest_xray/train/NORMAL'
    if content == 'cut': content = (folder / 'IM-0115-0001.jpeg').read_bytes()[:-40]
    (folder / 'IM-0001-0001.jpeg').write_bytes(content)
    (folder / '.DS_Store').write_bytes(b'hidden')
    for _ in range(2): # read, and from the cache
        with pytest.warns(UserWarning, match=rf'1 of 8 files skipped: NORMAL/IM-0001-0001.jpeg \({reason}\)$') as caught:
            ds = load('kermany', image_size=8, root=tmp_path)
        assert len(caught) == 1 and len(ds) == 7 and ds.file_names[0].endswith('IM-0115-0001.jpeg')
    text = message(ValueError, 'kermany', image_size=8, root=tmp_path, strict=True)
    assert '1 of 8' in text and 'IM-0001-0001.jpeg' in text and reason in text


def test_missing_class_and_empty_split(tmp_path):
    root = make_kermany(tmp_path)
    shutil.rmtree(root / 'chest_xray/test/NORMAL')
    assert "class 'NORMAL'" in message(FileNotFoundError, 'kermany', 'test', root=root)
    for f in (root / 'chest_xray/val/PNEUMONIA').iterdir(): f.unlink()
    assert "class 'PNEUMONIA'" in message(FileNotFoundError, 'kermany', 'val', root=root)
    for f in (root / 'chest_xray/train/NORMAL').iterdir(): f.write_bytes(b'')
    with pytest.warns(UserWarning, match='3 of 7 files skipped'): text = message(ValueError, 'kermany', root=root)
    assert 'no readable image' in text
    shutil.rmtree(root / 'chest_xray/train')
    assert 'only test, val' in message(ValueError, 'kermany', 'train', root=root)
    (tmp_path / 'empty').mkdir()
    assert 'no class folders' in message(FileNotFoundError, str(tmp_path / 'empty'))


def test_mixed_sizes_and_other_npz_faults(tmp_path):
    path = tmp_path / 'pneumoniamnist.npz'
    mixed = np.empty(2, object)
    mixed[:] = [np.zeros((28, 28), np.uint8), np.zeros((30, 28), np.uint8)]
    faults = [(dict(train_images=mixed), 'mixed sizes'), (dict(train_images=None), 'MedMNIST'), (dict(train_images=np.zeros((12, 28, 28))), 'uint8'),
              (dict(train_labels=np.zeros((3, 1), np.uint8)), '12 train images but 3 labels'), (dict(train_labels=np.zeros((12, 1), np.uint8)), 'each present'),
              (dict(train_images=np.zeros((0, 28, 28), np.uint8), train_labels=np.zeros((0, 1), np.uint8)), 'empty')]
    for fault, words in faults:
        make_medmnist(path, **fault)
        assert words in message(ValueError, 'pneumoniamnist', root=path), words
    path.write_bytes(path.read_bytes()[:50])
    assert str(path) in message(ValueError, 'pneumoniamnist', root=path)
    path.write_bytes(b'')
    assert str(path) in message(ValueError, 'pneumoniamnist', root=path)


def test_unwritable_cache(tmp_path):
    (tmp_path / 'file').write_text('')
    make_kermany(tmp_path)
    for _ in range(2):
        with pytest.warns(UserWarning, match='cannot write the cache') as caught: ds = load('kermany', image_size=8, root=tmp_path, cache_dir=tmp_path / 'file')
        assert len(caught) == 1 and '\n' not in str(caught[0].message) and len(ds) == 7


def test_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(data.np, 'savez', full)
    with pytest.warns(UserWarning, match='No space left'): load('kermany', image_size=8, root=make_kermany(tmp_path))
    assert os.listdir(tmp_path / 'cache') == []


@pytest.mark.parametrize('settings, words', [
    (dict(name='chestx'), 'unknown dataset'), (dict(sources='cohen'), 'source of no image is known'), (dict(split='all'), 'split'), (dict(seed=-1), 'seed'), (dict(seed=0.5), 'seed'), (dict(name='kermany', seed=-2), 'seed'),
    (dict(split='dev'), 'split'), (dict(name='kermany', split='dev'), 'split'), (dict(image_size=0), 'image_size'), (dict(image_size=4), '8 pixels'),
    (dict(num_classes=4), '2 or 3'), (dict(n=1), 'at least 2'), (dict(n=0), 'at least 2')])
def test_bad_settings(settings, words): assert words in message(ValueError, **settings)


def test_bad_subset_and_root(tmp_path):
    make_kermany(tmp_path)
    for n in (1, 8): assert f'n={n}' in message(ValueError, 'kermany', root=tmp_path, image_size=8, n=n)
    assert 'nowhere' in message(FileNotFoundError, 'kermany', root=tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='labels'): CXRDataset(np.zeros((1, 8, 8, 1), np.uint8), np.array([2]), ('a', 'b'), ('f',), ('',), 'train', 'x')
    with pytest.raises(ValueError, match='uint8'): CXRDataset(np.zeros((1, 8, 8, 1)), np.array([0]), ('a', 'b'), ('f',), ('',), 'train', 'x')


def test_missing_libgl_is_one_line():
    code = ("import sys, importlib.abc\n"
            "class Broken(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name == 'cv2': raise ImportError('libGL.so.1: cannot open shared object file')\n"
            "sys.meta_path.insert(0, Broken())\n"
            "try: import cxr_acgan.data\n"
            "except ImportError as e: print(e)\n")
    import subprocess
    text = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert text.count('\n') == 1 and 'opencv-python-headless' in text and 'libGL' in text


def test_needs_no_keras():
    import subprocess
    code = "import sys, cxr_acgan.data; print([m for m in ('keras', 'tensorflow', 'torch', 'jax', 'pandas', 'sklearn', 'pooch', 'kagglehub') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# ---- downloads

class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        if not self.path.startswith('/cut/'): return super().do_GET()
        body = Path(self.translate_path(self.path[4:])).read_bytes() # more announced than sent
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:len(body) // 2])
        self.wfile.flush()
        self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    pytest.importorskip('pooch')
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(name, raising=False)
    folder = tmp_path / 'served'
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), lambda *a: Handler(*a, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{httpd.server_port}'
    httpd.shutdown()
    httpd.server_close()


def sha256(path): return 'sha256:' + hashlib.sha256(path.read_bytes()).hexdigest()


def serve(monkeypatch, name, url, checksum):
    monkeypatch.setitem(data.DATASETS, name, data.DATASETS[name] | dict(url=url, checksum=checksum))


def cached(tmp_path): return sorted(os.listdir(tmp_path / 'cache')) if (tmp_path / 'cache').exists() else []


def zip_folder(folder, path):
    with zipfile.ZipFile(path, 'w') as z:
        for f in sorted(folder.rglob('*')): z.write(f, f.relative_to(folder))
    return path


def test_download_npz(tmp_path, server, monkeypatch):
    folder, url = server
    file = make_medmnist(folder / 'p.npz')
    serve(monkeypatch, 'pneumoniamnist', f'{url}/p.npz', sha256(file))
    assert len(load('pneumoniamnist', image_size=28)) == 12 and cached(tmp_path) == ['pneumoniamnist.npz']
    file.unlink() # the second load finds it in the cache
    assert len(load('pneumoniamnist', 'test', 28)) == 6


def test_download_zip(tmp_path, server, monkeypatch):
    folder, url = server
    file = zip_folder(make_kermany(tmp_path / 'set'), folder / 'k.zip')
    serve(monkeypatch, 'kermany', f'{url}/k.zip', sha256(file))
    ds = load('kermany', image_size=8)
    assert len(ds) == 7 and 'chest_xray' in cached(tmp_path) and not [f for f in cached(tmp_path) if 'download' in f]
    assert ds.fingerprint == load('kermany', image_size=8, root=tmp_path / 'set').fingerprint


def test_download_shows_progress(tmp_path, server, capfd):
    folder, url = server
    file = make_medmnist(folder / 'p.npz')
    download_cxr('pneumoniamnist', url=f'{url}/p.npz', checksum=sha256(file))
    assert '100%' in capfd.readouterr().err
    download_cxr('pneumoniamnist', url=f'{url}/p.npz', checksum=sha256(file), progress=False)
    assert '%' not in capfd.readouterr().err


def test_wrong_checksum(tmp_path, server, monkeypatch):
    folder, url = server
    make_medmnist(folder / 'p.npz')
    serve(monkeypatch, 'pneumoniamnist', f'{url}/p.npz', 'md5:' + '0' * 32)
    text = message(ValueError, 'pneumoniamnist')
    assert 'checksum' in text and f'{url}/p.npz' in text and cached(tmp_path) == []


def test_interrupted_download(tmp_path, server, monkeypatch):
    folder, url = server
    file = make_medmnist(folder / 'p.npz')
    serve(monkeypatch, 'pneumoniamnist', f'{url}/cut/p.npz', sha256(file))
    with pytest.raises((OSError, ValueError)) as e: load('pneumoniamnist')
    assert '\n' not in str(e.value) and cached(tmp_path) == []
    serve(monkeypatch, 'pneumoniamnist', f'{url}/p.npz', sha256(file))
    assert len(load('pneumoniamnist')) == 12


def test_stopped_by_the_keyboard(tmp_path, server, monkeypatch):
    folder, url = server
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr('pooch.retrieve', stop)
    with pytest.raises(KeyboardInterrupt): download_cxr('pneumoniamnist')
    assert cached(tmp_path) == []


def test_download_that_is_not_there(tmp_path, server, monkeypatch):
    folder, url = server
    serve(monkeypatch, 'pneumoniamnist', f'{url}/none.npz', 'md5:' + '0' * 32)
    text = message(FileNotFoundError, 'pneumoniamnist')
    assert '404' in text and '$CXR_DATA' in text and cached(tmp_path) == []
    assert 'no checksum' in message(ValueError, 'kermany', call=download_cxr, url=f'{url}/k.zip')
    assert 'no download' in message(ValueError, 'phantom', call=download_cxr)


@pytest.mark.parametrize('name', ['../evil.txt', '/evil.txt', 'a/../../evil.txt', '..\\evil.txt', 'C:/evil.txt', 'link'])
def test_zip_outside_its_root(tmp_path, server, monkeypatch, name):
    folder, url = server
    with zipfile.ZipFile(folder / 'k.zip', 'w') as z:
        z.writestr('chest_xray/train/NORMAL/a.txt', 'x')
        info = zipfile.ZipInfo(name)
        if name == 'link': info.external_attr = 0o120777 << 16
        z.writestr(info, '/etc')
    serve(monkeypatch, 'kermany', f'{url}/k.zip', sha256(folder / 'k.zip'))
    text = message(ValueError, 'kermany')
    assert 'outside' in text or 'leads out' in text
    assert cached(tmp_path) == [] and not list(tmp_path.rglob('evil*'))


def test_zip_faults(tmp_path, server, monkeypatch):
    folder, url = server
    with zipfile.ZipFile(folder / 'k.zip', 'w') as z: z.writestr('other/readme.txt', 'x')
    serve(monkeypatch, 'kermany', f'{url}/k.zip', sha256(folder / 'k.zip'))
    assert 'no chest_xray' in message(ValueError, 'kermany') and cached(tmp_path) == []
    (folder / 'k.zip').write_bytes(b'no zip')
    serve(monkeypatch, 'kermany', f'{url}/k.zip', sha256(folder / 'k.zip'))
    assert 'not a readable zip' in message(ValueError, 'kermany') and cached(tmp_path) == []
    assert 'not a readable zip' in message(ValueError, folder / 'k.zip', tmp_path / 'u', call=unzip)


# ---- patients and leakage

def patients_of(counts, labels=2):
    "A dataset whose patient k has counts[k] images of class k % labels; random pictures."
    who = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(1).permutation(len(who))
    who = who[order]
    images = np.random.default_rng(0).integers(0, 256, (len(who), 8, 8, 1), dtype=np.uint8)
    return CXRDataset(images, who % labels, tuple('abcd'[:labels]), tuple(f'{k}.png' for k in range(len(who))), tuple(f'p{k}' for k in who), 'train', 'made')


def test_patient_id():
    assert patient_id('person1_bacteria_2.jpeg') == 'person1_bacteria' and patient_id('train/PNEUMONIA/person12_virus_3_1.jpeg') == 'person12_virus'
    assert patient_id('IM-0011-0001-0002.jpeg') == 'IM-0011' and patient_id('NORMAL2-IM-0012-0001.jpeg') == 'NORMAL2-IM-0012' and patient_id('x.png') == ''


@pytest.mark.parametrize('labels, fractions', [(2, 0.25), (3, (0.6, 0.2, 0.2)), (2, (0.5, 0.2)), (4, 0.5)])
def test_split_by_patient(labels, fractions):
    ds = patients_of(np.random.default_rng(2).integers(1, 9, 200), labels)
    parts = split_by_patient(ds, fractions, seed=3)
    wanted = (1 - fractions, fractions) if isinstance(fractions, float) else fractions
    assert len(parts) == len(wanted)
    for i, part in enumerate(parts):
        for c, k in part.class_counts().items(): assert abs(k / ds.class_counts()[c] - wanted[i]) < 0.04
        for other in parts[i + 1:]: assert not set(part.patients) & set(other.patients) and not set(part.file_names) & set(other.file_names)
    assert sum(map(len, parts)) == len(ds) or sum(wanted) < 1
    sizes = [len(part) / len(set(part.patients)) for part in parts]      # patients with many images and with few, in each part alike
    assert max(sizes) / min(sizes) < 1.1
    assert [p.file_names for p in split_by_patient(ds, fractions, seed=3)] == [p.file_names for p in parts]
    assert [p.file_names for p in split_by_patient(ds, fractions, seed=4)] != [p.file_names for p in parts]


def test_split_by_patient_faults(tmp_path):
    ds = patients_of([3] * 20)
    for fractions in (0, 1, -0.1, 1.5, (0.8, 0.4), ()): assert 'fractions' in message(ValueError, ds, fractions, call=split_by_patient)
    assert 'seed' in message(ValueError, ds, 0.5, -1, call=split_by_patient)
    assert 'too few patients' in message(ValueError, patients_of([5, 5, 5]), 0.5, call=split_by_patient)
    nobody = load('pneumoniamnist', image_size=28, root=make_medmnist(tmp_path / 'pneumoniamnist.npz'))
    with pytest.warns(UserWarning, match='12 of 12 images name no patient'): assert [len(p) for p in split_by_patient(nobody, 0.5)] == [6, 6]


def test_leakage_report():
    a, b = load('phantom', n=24), load('phantom', 'test', n=12)
    clean = leakage_report([a, b])
    assert clean['shared_patients'] == {'train & test': []} and clean['near_duplicates'] == [] and clean['without_patient'] == 0
    images = b.images.copy()
    images[3] = np.clip(a.images[7].astype(int) + 3, 0, 255) # brighter: still the same picture
    images[4] = images[5]
    patients = (a.patients[0], *b.patients[1:4], '', *b.patients[5:])
    leaky = CXRDataset(images, b.labels, b.class_names, b.file_names, patients, 'test', 'phantom')
    report = leakage_report([a, leaky])
    assert report['shared_patients'] == {'train & test': [a.patients[0]]} and report['without_patient'] == 1
    assert [[(m['dataset'], m['index']) for m in g] for g in report['near_duplicates']] == [[(0, 7), (1, 3)], [(1, 4), (1, 5)]]
    assert report['surplus_images'] == 2 and report['across_splits'] == 1
    assert leakage_report(leaky)['surplus_images'] == 1


# ---- preprocessing and augmentation

def test_preprocess():
    images = load('phantom', n=4).images
    for equalize in ('none', 'hist', 'clahe'):
        out = preprocess(images, equalize=equalize)
        assert out.shape == images.shape and out.dtype == np.uint8
        assert (preprocess(images[..., 0], equalize=equalize) == out[..., 0]).all()
    assert (out != images).any() and preprocess(images, image_size=32).shape == (4, 32, 32, 1)
    assert (preprocess(images, gaussian_kernel=0, equalize='none') == images).all()
    assert (preprocess(images, equalize='none')[0, ..., 0] == cv2.GaussianBlur(images[0, ..., 0], (3, 3), 0)).all()
    assert preprocess(images[:0]).shape == (0, 64, 64)[:3] + (1,)
    for wrong in (dict(equalize='x'), dict(gaussian_kernel=4), dict(gaussian_sigma=-1), dict(image_size=0)): message(ValueError, images, call=preprocess, **wrong)
    message(ValueError, images / 255, call=preprocess)


def test_augment_classic():
    images = load('phantom', n=4).images
    out = augment_classic(images, seed=1)
    assert out.shape == images.shape and out.dtype == np.uint8 and (out != images).any()
    assert (augment_classic(images, seed=1) == out).all() and (augment_classic(images, seed=2) != out).any()
    block = np.zeros((1, 64, 64, 1), np.uint8)
    block[:, 28:36, 28:36] = 200
    assert augment_classic(block, rotation=(0, 0), crop=(0.75, 0.75)).mean() == pytest.approx(block.mean() / 0.75 ** 2, rel=0.05)
    message(ValueError, images, call=augment_classic, crop=(0, 1))
    message(ValueError, images, call=augment_classic, seed=-1)


# ---- the phantom

def test_phantom_is_seeded_and_of_any_size():
    a = draw_phantom(40, seed=5)
    assert (a.images == draw_phantom(40, seed=5).images).all() and a.fingerprint != draw_phantom(40, seed=6).fingerprint
    assert a.class_names == ('NORMAL', 'PNEUMONIA') and a.class_counts() == {'NORMAL': 20, 'PNEUMONIA': 20} and a.describe()['patients'] == 30
    for size in (8, 28, 112): assert draw_phantom(6, image_size=size, num_classes=3).images.shape == (6, size, size, 1)
    big = draw_phantom(40, image_size=128, seed=5).images.reshape(40, 64, 2, 64, 2).mean((2, 4))
    assert abs(big - a.images[..., 0]).mean() < 4 # the same chests
    three = draw_phantom(30, 'val', num_classes=3)
    assert three.class_names == ('NORMAL', 'PNEUMONIA', 'COVID-19') and set(three.class_counts().values()) == {10}
    splits = [draw_phantom(40, s) for s in ('train', 'test', 'val')]
    assert len({i.tobytes() for d in splits for i in d.images}) == 120 and len({p for d in splits for p in d.patients}) == 90
    started = time.perf_counter()
    draw_phantom(512)
    assert time.perf_counter() - started < 10 # 0.6 s on an idle core


@pytest.mark.parametrize('num_classes', [2, 3])
def test_phantom_is_not_trivial(num_classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    pool = lambda d: d.images.reshape(len(d), 8, 8, 8, 8).mean((2, 4)).reshape(len(d), -1) / 64 - 2
    train, test = (draw_phantom(1536, s, num_classes=num_classes) for s in ('train', 'test'))
    for c in (0.01, 1): # strength of the prior
        p = LogisticRegression(C=c, max_iter=300).fit(pool(train), train.labels).predict_proba(pool(test))
        assert 0.5 < roc_auc_score(test.labels, p[:, 1] if num_classes == 2 else p, multi_class='ovr') < 0.8


def test_phantom_is_not_hopeless():
    keras = pytest.importorskip('keras')
    from sklearn.metrics import roc_auc_score
    keras.utils.set_random_seed(0)
    train, test = draw_phantom(1024), draw_phantom(512, 'test')
    x = lambda d: d.images.astype('float32') / 127.5 - 1
    blocks = [f(k) for k in (32, 64) for f in (lambda k: keras.layers.Conv2D(k, 3, padding='same', use_bias=False), lambda k: keras.layers.BatchNormalization(momentum=0.9),
                                               lambda k: keras.layers.ReLU(), lambda k: keras.layers.MaxPooling2D())]
    first = [keras.layers.Conv2D(16, 5, strides=2, padding='same', use_bias=False), keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU()]
    cnn = keras.Sequential([keras.Input((64, 64, 1)), *first, *blocks, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)])
    cnn.compile(keras.optimizers.Adam(3e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    for _ in range(12):
        cnn.fit(x(train), train.labels.astype('float32'), batch_size=32, epochs=2, verbose=0)
        auc = roc_auc_score(test.labels, np.asarray(cnn.predict(x(test), batch_size=128, verbose=0)).ravel())
        if auc > 0.92: break
    assert auc > 0.9


# ---- real data

def test_real_kermany(cxr_data, tmp_path):
    splits = {s: load('kermany', s, 64, root=cxr_data) for s in ('train', 'test', 'val')}
    assert [list(d.class_counts().values()) for d in splits.values()] == [[1341, 3875], [234, 390], [8, 8]]
    assert not any(leakage_report(list(splits.values()), threshold=2)['shared_patients'].values())
    started = time.perf_counter()
    again = load('kermany', 'train', 64, root=cxr_data)
    assert time.perf_counter() - started < 1 and (again.images == splits['train'].images).all() and again.fingerprint == splits['train'].fingerprint
    assert again.images.nbytes < 30e6 and max(f.stat().st_size for f in (tmp_path / 'cache').iterdir()) < 30e6
    assert again.describe()['patients'] == 3654
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        few = load('kermany', 'train', 64, root=cxr_data, n=100)
    assert few.class_counts() == {'NORMAL': 26, 'PNEUMONIA': 74}
    held = split_by_patient(again, (0.8, 0.2), 1)
    assert not set(held[0].patients) & set(held[1].patients) and abs(held[1].class_counts()['NORMAL'] / 1341 - 0.2) < 0.01


def test_real_kermany_near_duplicates(cxr_data):
    report = leakage_report([load('kermany', s, 64, root=cxr_data) for s in ('train', 'test', 'val')])
    assert len(report['near_duplicates']) == 30 and report['surplus_images'] == 32
    assert report['across_splits'] == report['across_classes'] == 0 and report['across_patients'] == 1


def test_real_pneumoniamnist(cxr_data):
    if not (cxr_data / 'pneumoniamnist.npz').is_file(): pytest.skip('real data: no pneumoniamnist.npz in $CXR_DATA')
    for s, counts in data.DATASETS['pneumoniamnist']['counts'].items():
        assert tuple(load('pneumoniamnist', s, 28, root=cxr_data).class_counts().values()) == counts


@pytest.fixture
def real_covidx(cxr_data):
    if not (cxr_data / 'covidx').is_dir(): pytest.skip('real data: no covidx folder in $CXR_DATA')
    if not (cxr_data / 'covidx_index.csv').is_file(): pytest.skip('real data: no covidx_index.csv beside covidx in $CXR_DATA')
    return {s: quiet(s, 64, root=cxr_data) for s in ('train', 'test')}


def test_real_covidx(cxr_data, real_covidx):
    assert real_covidx['train'].class_counts() == {'COVID-19': 3241, 'normal': 9210, 'pneumonia': 1278}
    assert real_covidx['test'].class_counts() == {'COVID-19': 384, 'normal': 1021, 'pneumonia': 136}
    assert real_covidx['train'].describe()['sources'] == {'actmed': 29, 'cohen': 471, 'fig1': 28, 'raddb': 10786, 'raddb-kermany': 2415}
    assert sum(l.startswith('CC BY') for d in real_covidx.values() for l in d.licences) == 2778
    with pytest.warns(UserWarning, match=r'94 % of pneumonia but 0 % of COVID-19 come from raddb-kermany \(children\)'): load('covidx', 'train', 64, root=cxr_data)
    with pytest.warns(UserWarning, match='confounded'): adults = load('covidx', 'all', 64, root=cxr_data, sources=('cohen', 'fig1', 'actmed', 'raddb'))
    assert adults.class_counts() == {'COVID-19': 3625, 'normal': 8891, 'pneumonia': 76}
    kermany = load('kermany', 'train', 64, root=cxr_data)
    assert kermany.fingerprint == '432dfa374743ac0a' # a cache or a record of before covidx still holds
    children = {p for d in real_covidx.values() for p, s in zip(d.patients, d.sources) if s == 'raddb-kermany'}
    assert children <= set(kermany.patients) and not set(adults.patients) & set(kermany.patients)


def test_real_covidx_leaks(real_covidx):
    report = leakage_report(list(real_covidx.values()))
    assert report['shared_patients'] == {'train & test': []} and report['without_patient'] == 11995
    conflicts = {Path(m['file']).stem for g in report['near_duplicates'] if len({m['class'] for m in g}) > 1 for m in g}
    assert {'raddb_NA_COVID-467', 'raddb_NA_COVID-749'} < conflicts and report['across_classes'] == 2 and report['across_splits'] == 3
    with pytest.warns(UserWarning, match='name no patient'): fit, held = split_by_patient(real_covidx['train'], 0.1)
    for c, k in real_covidx['train'].class_counts().items(): assert abs(held.class_counts()[c] / k - 0.1) < 0.01
    assert not set(fit.patients) & set(held.patients) - {''} and len(held.sources) == len(held)


@pytest.mark.parametrize('call, text', [
    (lambda images, ds: preprocess(images, equalize='clahe', tile_grid=0), 'tile_grid 0: must be a whole number >= 1'),
    (lambda images, ds: preprocess(images, equalize='clahe', clip_limit=0), 'clip_limit 0'),
    (lambda images, ds: preprocess(images, gaussian_kernel=3.5), 'gaussian_kernel 3.5: must be a whole number'),
    (lambda images, ds: preprocess(images, image_size=1.5), 'image_size 1.5: must be a whole number'),
    (lambda images, ds: leakage_report(ds, size=0), 'size 0: must be a whole number >= 2'),
    (lambda images, ds: leakage_report([]), 'no images'),
    (lambda images, ds: split_by_patient(ds.subset(ds.labels < 0), 0.2), 'no images to split'),
    (lambda images, ds: load_cxr('phantom', n=10.5), 'n 10.5: must be a whole number >= 1'),
    (lambda images, ds: load_cxr('phantom', n='10'), "n '10': must be a whole number"),
    (lambda images, ds: load_cxr(None), 'no dataset named'),
    (lambda images, ds: load_cxr(''), 'no dataset named'),
])
def test_wrong_values_are_named(call, text):
    ds = draw_phantom(8, image_size=16)
    with pytest.raises(ValueError) as e: call(ds.images, ds)
    assert text in str(e.value) and '\n' not in str(e.value)


def test_what_kagglehub_has_is_found_without_a_network(tmp_path, monkeypatch):
    for name in ('CXR_DATA', 'CXR_CACHE', 'KAGGLEHUB_CACHE'): monkeypatch.delenv(name, raising=False)
    make_kermany(tmp_path / 'kagglehub/datasets/paultimothymooney/chest-xray-pneumonia/versions/2')
    ds = load_cxr('kermany', 'test', 16, cache_dir=tmp_path, download=False, progress=False)
    assert len(ds) and ds.name == 'kermany'


def test_a_disk_that_failed_is_asked_again(tmp_path, monkeypatch):
    root, files = make_kermany(tmp_path / 'k'), []
    whole = data._read_image
    def fails_once(path, size):
        files.append(path)
        return ('Input/output error', None) if len(files) == 1 else whole(path, size)
    monkeypatch.setattr(data, '_read_image', fails_once)
    read = lambda: load_cxr('kermany', 'train', 16, root=root, cache_dir=tmp_path / 'cache', progress=False)
    with pytest.warns(UserWarning, match='Input/output error'): first = read()
    assert len(read()) == len(first) + 1


def test_small_misuse(tmp_path):
    assert load_cxr(Path('phantom'), n=8, image_size=np.int64(16), progress=False).image_size == 16
    ds = load_cxr('phantom', n=8, image_size=16, progress=False)
    assert len(ds.subset([])) == 0 and ds.subset([1, 2]).fingerprint == ds.subset(np.array([1, 2], np.int32)).fingerprint
    report = leakage_report([ds, replace(ds, name='other')])
    assert set(report['images']) == {'phantom train (0)', 'other train (1)'} and list(report['shared_patients']) == ['phantom train (0) & other train (1)']
