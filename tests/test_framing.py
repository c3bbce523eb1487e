"Where the chest lies: known zooms are found, at every size; what is no chest stays; the record."
import numpy as np
import pytest

from cxr_acgan import framing as fr
from cxr_acgan.data import draw_phantom
from cxr_acgan.results import RunRecord, record_images
from cxr_acgan.shift import weighted_auc


@pytest.fixture(scope='module')
def frame(): return fr.ChestFrame(draw_phantom(120, image_size=64).images)


@pytest.mark.parametrize('down', [0.85, 1.0, 1.25])
@pytest.mark.parametrize('size', [64, 112])
def test_known_zoom(frame, size, down):
    chests = draw_phantom(60, 'test', image_size=size).images
    plain, drawn = frame.sizes(chests), frame.sizes(fr.draw_out(chests, down))
    both = plain.found & drawn.found
    assert both.mean() > 0.9
    assert (drawn.down / plain.down)[both].median() == pytest.approx(down, rel=0.03) and (drawn.across / plain.across)[both].median() == pytest.approx(1, abs=0.03)


def test_the_same_part_of_each_chest(frame):
    chests = draw_phantom(30, 'test', image_size=64).images
    laid = [frame(x) for x in (chests, fr.draw_out(chests, 1.2))]
    assert all(x.shape == chests.shape and x.dtype == np.uint8 for x in laid)
    differ = lambda a, b: np.abs(a.astype(float) - b)[:, 8:-8, 8:-8].mean()
    assert differ(*laid) < 0.6 * differ(frame(chests, (0, 0, 0, 0)), fr.draw_out(frame(chests, (0, 0, 0, 0)), 1.2))


def test_chests_of_one_height(frame):
    "However tall those of a class were: all are as tall as asked, and height no longer tells the class; what is no chest stays."
    chests = draw_phantom(80, 'test', image_size=64)
    mixed = np.concatenate([fr.draw_out(x[None], (0.9, 1.2)[c]) for x, c in zip(chests.images, chests.labels)])
    auc = lambda sizes: weighted_auc(chests.labels[sizes.found], np.stack([-sizes.down, sizes.down], 1)[sizes.found])
    assert auc(frame.sizes(mixed)) > 0.95
    for height, drawn in frame.at_heights(mixed, (0.9, 1.1)).items():
        sizes = frame.sizes(drawn)
        down = sizes.down[sizes.found]
        assert sizes.found.mean() > 0.9 and down.median() == pytest.approx(height, rel=0.03) and (abs(down / height - 1) < 0.08).mean() > 0.9
        assert 0.25 < auc(sizes) < 0.75
    flat = np.full((2, 64, 64, 1), 90, 'uint8')
    assert np.array_equal(frame.at_heights(flat, (1.2,))[1.2], flat) and frame.at_heights(flat, ()) == {}


def test_draw_out():
    image = np.zeros((1, 64, 64, 1), 'uint8')
    image[:, 22:42] = 200
    tall, same = fr.draw_out(image, 1.5), fr.draw_out(image, 1.0)
    assert np.array_equal(same, image) and (tall[0, :, 30, 0] > 100).sum() == 30 and (tall[0, :, 30, 0] == tall[0, ::-1, 30, 0]).all()


def test_no_chest_stays_where_it_is(frame):
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 1), dtype='uint8')
    flat = np.full((2, 64, 64, 1), 90, 'uint8')
    views, found = frame.views(np.concatenate([noise, flat]))
    assert not found[-2:].any() and np.allclose(views[~found], np.eye(2, 3)) and np.array_equal(frame(flat), flat)
    with pytest.raises(ValueError, match='at least 8 pictures, got 3'): fr.ChestFrame(noise[:3])
    with pytest.raises(ValueError, match='too few of 12 .* are they chests'): fr.ChestFrame(np.repeat(flat, 6, 0))


def test_the_record(tmp_path):
    record = fr.measure_framing('phantom', 'cpu', tmp_path, n=200)
    again = fr.measure_framing('phantom', 'cpu', tmp_path, n=200)
    assert again.path == record.path == tmp_path / 'framing' / 'cpu-seed0' and 0.3 < record.metrics['class_auc'] < 0.9
    with pytest.raises(ValueError, match='other settings: move it away'): fr.measure_framing('phantom', 'cpu', tmp_path, image_size=32)
    for split, classes in RunRecord.read(record.path).metrics['classes'].items():
        assert all(c['low'] <= c['down'] <= c['high'] and 0.8 < c['down'] < 1.2 for c in classes.values()), split
    assert len(record_images(record, 'laid.png')) == 32 and len(record_images(record, 'means.png')) % 4 == 0
    assert len(fr.plot_framing(record).axes) == record.history.series.nunique()
