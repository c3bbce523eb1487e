"""The DCGAN: the same as PyTorch's example and on three backends, resumed runs, and measures that see what was planted."""
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from cxr_acgan import cli, dcgan
from cxr_acgan.adversarial import TrainingDiverged
from cxr_acgan.data import load_cxr
from cxr_acgan.results import RunRecord, record_images

TINY = replace(dcgan.NOORI, image_size=16, width=4, images=24, updates=6, batch_size=4, learning_rate=0.01, log_every=2,
               sample_updates=(0, 4, 6), samples=12, history_every=2, checkpoint_every=2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(dcgan.PROFILES, "noori", {"cpu": TINY})
    monkeypatch.setitem(dcgan.PROFILES, "noori_pneumonia", {"cpu": replace(TINY, classes=("PNEUMONIA",), sheets=False)})


def small_gan(width=4, image_size=16, seed=0):
    return dcgan.build_dcgan(replace(TINY, width=width, image_size=image_size, learning_rate=1e-3), seed)


@pytest.mark.parametrize("size", [4, 48, 0])
def test_size_that_does_not_fit(size):
    for network in (dcgan.dcgan_generator, dcgan.dcgan_discriminator):
        with pytest.raises(ValueError, match=f"power of two of at least 8, got {size}"):
            network(image_size=size)


def test_other_sizes_double_the_channels():
    assert dcgan.dcgan_generator(image_size=8, width=2).output_shape == (None, 8, 8, 3)
    kernels = [w.shape for w in dcgan.dcgan_discriminator(image_size=128, width=2).weights if len(w.shape) == 4]
    assert [k[-1] for k in kernels] == [2, 4, 8, 16, 32, 1] and all(k[:2] == (4, 4) for k in kernels)


def test_three_updates_as_in_pytorch(monkeypatch, tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    gan, rng = small_gan(width=8), np.random.default_rng(0)
    networks = {"generator": gan.generator, "discriminator": gan.discriminator}
    real, noise = rng.uniform(-1, 1, (3, 16, 16, 16, 3)).astype("float32"), rng.normal(size=(3, 16, 100)).astype("float32")
    weights = {f"{name}-{i}": v.numpy() for name, network in networks.items() for i, v in enumerate(network.trainable_variables)}
    np.savez(tmp_path / "in.npz", width=8, real=real, noise=noise, **weights)
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "dcgan_torch.py"), tmp_path / "in.npz", tmp_path / "out.npz"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "out.npz")
    for update in range(3):
        monkeypatch.setattr(gan, "draw", lambda: {"real": real[update], "noise": noise[update]})
        ours = {k: float(v) for k, v in gan._update(np.int32([0])).items()}
        assert set(ours) == {name for name in theirs if "-" not in name}
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name][update], rel=2e-3, abs=2e-4), (update, name)
    for name, network in networks.items():
        norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert len(norms) == sum(key.startswith(f"{name}-mean") for key in theirs) > 0
        for i, norm in enumerate(norms):
            scale = np.sqrt(theirs[f"{name}-var-{i}"]).mean()
            np.testing.assert_allclose(norm.moving_mean.numpy(), theirs[f"{name}-mean-{i}"], atol=5e-3 * scale)
            np.testing.assert_allclose(norm.moving_variance.numpy(), theirs[f"{name}-var-{i}"], rtol=0.03)  # theirs: n - 1


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_losses_gradients_and_averages(backend, same_on_backends):
    found = same_on_backends("backend_dcgan.py", backend)
    assert {"d_loss", "d_real", "d_fake_after", "average-0", "discriminator-after-0"} <= found.keys()
    assert found["d_loss-of-0"] != found["d_loss-of-1"] and found["g_loss-of-0"] != found["g_loss-of-1"]
    assert max(np.abs(v).max() for k, v in found.items() if k.startswith("generator")) > 1e-3


def test_metrics_are_not_trained_on():
    "The gradients of D are those of its loss alone, not of loss and D(x) and D(G(z)) added up."
    gan, other = small_gan(), small_gan()
    batch = dict(zip(("real", "fake"), np.random.default_rng(0).uniform(-1, 1, (2, 4, 16, 16, 3)).astype("float32")))
    other.d_losses = lambda b: {"d_loss": type(other).d_losses(other, b)["d_loss"]}
    first, second = (g._value_and_grad(lambda: g.d_losses(batch), g.discriminator)[1] for g in (gan, other))
    assert max(np.abs(a).max() for a in first) > 1e-4
    assert all(np.allclose(a, b, atol=1e-7) for a, b in zip(first, second))


def test_cut_off_and_resumed(tiny, tmp_path, monkeypatch):
    whole = dcgan.train_dcgan("noori", "cpu", "phantom", 3, tmp_path / "whole" / "results")
    drawn = dcgan.generate_images

    def cut_at_update_4(*args):
        if (tmp_path / "cut" / "runs" / "noori" / "cpu-seed3" / "samples-0.npy").exists():
            raise KeyboardInterrupt
        return drawn(*args)

    monkeypatch.setattr(dcgan, "generate_images", cut_at_update_4)
    with pytest.raises(KeyboardInterrupt):
        dcgan.train_dcgan("noori", "cpu", "phantom", 3, tmp_path / "cut" / "results")
    assert not (tmp_path / "cut" / "results" / "noori").exists() and keras.config.dtype_policy().name == "float32"
    monkeypatch.setattr(dcgan, "generate_images", drawn)
    resumed = dcgan.train_dcgan("noori", "cpu", "phantom", 3, tmp_path / "cut" / "results")
    pd.testing.assert_frame_equal(whole.history, resumed.history)
    assert whole.metrics["logged"] == resumed.metrics["logged"] and [r["update"] for r in whole.metrics["logged"]] == [0, 2, 4, 5]
    for network in ("generator", "discriminator"):
        a, b = (keras.saving.load_model(tmp_path / f / "runs/noori/cpu-seed3" / f"{network}.keras").get_weights() for f in ("whole", "cut"))
        assert all(np.allclose(x, y, atol=1e-5) for x, y in zip(a, b)), f"{network} differs after resuming"
    assert whole.metrics["discriminator"] == resumed.metrics["discriminator"]


def test_record(tiny, tmp_path):
    record = dcgan.train_dcgan("noori", "cpu", "phantom", 0, tmp_path / "results")
    read = RunRecord.read(record.path)
    assert list(read.history) == ["update", "d_loss", "g_loss", "d_real", "d_fake_before", "d_fake_after"]
    assert read.history["update"].tolist() == [0, 2, 4] and read.metrics["printed_fit"]["n"] == 4
    samples = {u: np.load(tmp_path / "runs/noori/cpu-seed0" / f"samples-{u}.npy") for u in TINY.sample_updates}
    assert all(s.shape == (12, 16, 16, 1) and s.dtype == np.uint8 for s in samples.values())
    strip = record_images(read)
    assert len(strip) == 24 and np.abs(strip[-8:].astype(int) - samples[6][:8, ..., 0]).max() < 4  # kept at 64 gray levels
    train = load_cxr("phantom", "train", 16, n=24)
    real = record_images(read, "real.png").astype(int)
    assert all(np.abs(train.images[..., 0].astype(int) - image).max((1, 2)).min() < 4 for image in real[:24])
    assert len(record_images(read, "interpolation.png")) == 40
    before = (record.path / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match="holds a run on phantom, not on kermany"): dcgan.train_dcgan("noori", "cpu", "kermany", 0, tmp_path / "results")
    again = dcgan.train_dcgan("noori", "cpu", "phantom", 0, tmp_path / "results")
    assert again.metrics == read.metrics and (record.path / "metrics.json").read_bytes() == before


def test_one_class(tiny, tmp_path):
    record = dcgan.train_dcgan("noori_pneumonia", "cpu", "phantom", 0, tmp_path / "results")
    assert record.dataset["class_counts"] == {"NORMAL": 0, "PNEUMONIA": 12}
    assert not (record.path / "generated.png").exists()
    folder = tmp_path / "two"
    for split in ("train", "test"):
        for name in ("covid", "healthy"):
            (folder / split / name).mkdir(parents=True)
            for i in range(12):
                cv2.imwrite(str(folder / split / name / f"{i}.png"), np.full((16, 16), 9 * i, "uint8"))
    with pytest.raises(ValueError, match="two has no class PNEUMONIA: its classes are covid, healthy"):
        dcgan.train_dcgan("noori_pneumonia", "cpu", str(folder), 1, tmp_path / "results")


@pytest.mark.parametrize("given, message", [
    (dict(experiment="nori"), "unknown experiment 'nori': choose one of noori, noori_lr2e-4_beta0.5"),
    (dict(profile="huge"), "unknown profile 'huge'"), (dict(seed=-1), "seed must be an integer from 0 to 4294967295, got -1"),
    (dict(dataset="mnist"), "unknown dataset 'mnist'")])
def test_bad_input(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dcgan.train_dcgan(**given, out=tmp_path / "results")
    assert not list(tmp_path.iterdir())


def judge_by_brightness(gain):
    "A DCGAN whose fakes are black and whose D takes the bright for real (gain > 0), for fake (< 0), or cannot tell (0)."
    layers = keras.layers
    generator = keras.Sequential([keras.Input((4,)), layers.Dense(192, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(-9)),
                                  layers.Activation("tanh"), layers.Reshape((8, 8, 3))], name="generator")
    images = keras.Input((8, 8, 3))
    x = layers.Dense(1, kernel_initializer=keras.initializers.Constant(gain), bias_initializer=keras.initializers.Constant(96 * gain),
                     name="logits")(layers.Flatten()(images))
    return dcgan.DCGAN(generator, keras.Model(images, layers.Activation("sigmoid")(x), name="discriminator"), latent_dim=4)


@pytest.mark.parametrize("gain, expected", [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)])
def test_discriminator_report(gain, expected):
    rng = np.random.default_rng(0)
    train, test = (load_cxr("phantom", split, 8, n=40).subset(range(n)) for split, n in (("train", 40), ("test", 30)))
    for ds in (train, test):
        ds.images[:] = rng.integers(160, 256, ds.images.shape)
    report = dcgan.discriminator_report(judge_by_brightness(gain), train, test)
    alone = report["alone"]
    assert alone["fake"]["n"] == alone["test"]["n"] == alone["train"]["n"] == 30
    for name in ("train", "test"):
        scores = alone["scores"][name]
        assert scores["accuracy"]["value"] == scores["auc"]["value"] == expected
    assert alone["test"]["called_real"] == (30 if gain > 0 else 0)


def test_judged_alone_and_without_a_trace():
    "An image's answer does not depend on the others in its batch, nor does asking change the moving averages."
    gan, images = small_gan(), np.random.default_rng(0).uniform(-1, 1, (10, 16, 16, 3)).astype("float32")
    before = gan.discriminator.get_weights()
    p = dcgan.probability_of_real(gan, images, batch_size=5)
    assert all(np.array_equal(a, b) for a, b in zip(before, gan.discriminator.get_weights()))
    assert np.allclose(p, np.concatenate([dcgan.probability_of_real(gan, image[None]) for image in images]), atol=1e-6)
    assert not np.isclose(p.mean(), float(gan.judge(images, True)[1]), atol=1e-4)  # with the batch's own statistics


def tiles(images):
    return images.reshape(len(images), 8, 4, 8, 4).mean((2, 4)).reshape(len(images), 64)


def test_quality_sees_what_was_planted(tmp_path):
    train, test = load_cxr("phantom", "train", 32, n=160), load_cxr("phantom", "test", 32, n=80)
    rng = np.random.default_rng(0)
    copied = rng.permutation(160)[:40]
    planted = {0: rng.integers(0, 256, (40, 32, 32, 1), dtype="uint8"), 10: load_cxr("phantom", "val", 32, n=40).images,
               5: np.repeat(load_cxr("phantom", "val", 32, n=4).images, 10, axis=0), 20: train.images[copied]}
    for update, images in planted.items():
        np.save(tmp_path / f"samples-{update}.npy", images)
    report = dcgan.quality_over_epochs(tmp_path, train, test, tiles, checked=20, controls=20, false_alarm_rate=0.05, subsets=2)
    rows = {row["update"]: row for row in report["epochs"]}
    assert list(rows) == [0, 5, 10, 20]
    assert rows[20]["frechet_distance"] < rows[10]["frechet_distance"] < rows[0]["frechet_distance"]
    assert rows[0]["kernel_distance"]["mean"] > 10 * abs(rows[10]["kernel_distance"]["mean"])
    assert rows[0]["precision"] == 0 and rows[20]["precision"] == 1 and rows[5]["recall"] < rows[10]["recall"]
    assert rows[5]["ms_ssim"]["mean"] > rows[10]["ms_ssim"]["high"]
    assert rows[20]["copies"]["rate"] == 1 and rows[10]["copies"]["rate"] <= 0.25 and rows[20]["copies"]["n"] == 20
    assert report["memorisation"]["flagged"] == 20  # of the last samples
    closest = report["memorisation"]["closest"]
    assert len(closest["train"]) == 10 and [copied[i] for i in closest["generated"]] == closest["train"]
    assert report["real"]["test"]["n"] == 80 and 30 <= report["real"]["patients"]["n"] <= 50


def test_measured_record(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="`cxr-acgan train noori --profile cpu --seed 0 --out .*` gets them"):
        dcgan.measure_dcgan("noori", "cpu", "phantom", 0, tmp_path / "results")
    with pytest.raises(FileNotFoundError, match="no samples in .*: train the run again"):
        dcgan.quality_over_epochs(tmp_path, None, None)


def test_the_chapter_asks_for_no_sheet_that_a_run_does_not_keep(tiny, tmp_path):
    record = dcgan.train_dcgan("noori_pneumonia", "cpu", "phantom", 0, tmp_path / "results")  # sheets=False
    cells = ["".join(c["source"]) for c in json.loads((Path(__file__).parents[1] / "nbs/02_dcgan.ipynb").read_text())["cells"]]
    drawing = [c for c in cells if "#| label: fig-real-generated" in c or "#| label: fig-interpolation" in c]
    assert len(drawing) == 2 and not record.settings["sheets"]
    for cell in drawing:
        exec(cell, {"record": record, "record_images": record_images, "np": np, "show_sheet": None})


def test_sheets_show_no_image_that_may_not_be_shown(monkeypatch, tmp_path):
    "Where the set's licences are unclear: black in their place, open ones first."
    given = load_cxr("phantom", "train", 64, n=40, progress=False)
    closed = replace(given, licences=("CC BY-NC 4.0",) * 30 + ("CC BY 4.0",) * 10)
    monkeypatch.setattr(dcgan, "load_images", lambda dataset, settings: (closed, load_cxr("phantom", "test", 64, n=240, progress=False)))
    monkeypatch.setitem(dcgan.PROFILES, "noori", {"cpu": replace(TINY, image_size=64, images=None)})
    monkeypatch.setattr(dcgan, "image_features", lambda images, space: images[:, ::4, ::4].reshape(len(images), -1) / 255.0)
    root = tmp_path / "results"
    record = dcgan.train_dcgan("noori", "cpu", "phantom", 0, root)
    open_ones = np.bincount(closed.labels[closed.showable])
    assert sum(x.any() for x in record_images(record, "real.png")) == np.minimum(open_ones, 32 // len(open_ones)).sum() == 10
    record = dcgan.measure_dcgan("noori", "cpu", "phantom", 0, root, n=20, checked=6, controls=6, false_alarm_rate=0.2, subsets=2)
    closest = record.metrics["memorisation"]["closest"]["train"]
    assert [bool(x.any()) for x in record_images(record, "closest.png")[-len(closest):]] == closed.showable[closest].tolist()


def test_record_of_other_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(dcgan, "image_features", lambda images, space: images[:, ::4, ::4].reshape(len(images), -1) / 255.0)
    root, how = tmp_path / "results", dict(n=20, checked=6, controls=6, false_alarm_rate=0.2, subsets=2)
    for name in ("noori", "noori_pneumonia"):
        run = dcgan.train_dcgan(name, "cpu", "phantom", 0, root)
        record = dcgan.measure_dcgan(name, "cpu", "phantom", 0, root, **how)
        assert record.settings["identity"]["trained_on"] == run.dataset["fingerprint"] == record.dataset["fingerprint"]
        assert RunRecord.read(dcgan.measure_dcgan(name, "cpu", "phantom", 0, root, **how).path).metrics["train"]["n"] == 20
    wrong = "quality_noori.cpu-seed0 was made with other settings, weights or data: move it away"
    with pytest.raises(ValueError, match=wrong):
        dcgan.measure_dcgan("noori", "cpu", "phantom", 0, root, n=21)
    monkeypatch.setitem(dcgan.PROFILES, "noori", {"cpu": replace(TINY, images=22)})
    with pytest.raises(ValueError, match=wrong):
        dcgan.measure_dcgan("noori", "cpu", "phantom", 0, root, **how)
    (root / "quality_noori/cpu-seed0/run.json").rename(root / "away.json")
    with pytest.raises(ValueError, match="noori was trained on other images than phantom: give the data set it was trained on"):
        dcgan.measure_dcgan("noori", "cpu", "phantom", 0, root, **how)
    (root / "away.json").rename(root / "quality_noori/cpu-seed0/run.json")
    monkeypatch.setitem(dcgan.PROFILES, "noori", {"cpu": TINY})
    (tmp_path / "runs/noori_pneumonia/cpu-seed0/generator.keras").replace(tmp_path / "runs/noori/cpu-seed0/generator.keras")
    with pytest.raises(ValueError, match=wrong):
        dcgan.measure_dcgan("noori", "cpu", "phantom", 0, root, **how)
    (tmp_path / "runs/noori/cpu-seed0/generator.keras").unlink()
    assert dcgan.measure_dcgan("noori", "cpu", "phantom", 0, root, **how).settings["n"] == 20  # nothing to compare with


@pytest.fixture
def breaks_at_update_5(tiny, monkeypatch):
    whole = dcgan.DCGAN.g_losses

    def g_losses(self, batch):
        found = whole(self, batch)
        return found | {"g_loss": keras.ops.where(self.update >= 5, np.nan, found["g_loss"])}

    monkeypatch.setattr(dcgan.DCGAN, "g_losses", g_losses)
    monkeypatch.setitem(dcgan.PROFILES, "noori_no_batchnorm", {"cpu": replace(TINY, batch_norm=False, may_diverge=True, sheets=False)})


def test_a_run_that_may_diverge_leaves_a_record(breaks_at_update_5, tmp_path):
    root = tmp_path / "results"
    with pytest.raises(TrainingDiverged, match="training diverged: g_loss of update 5 is nan"):
        dcgan.train_dcgan("noori", "cpu", "phantom", 0, root)
    assert not (root / "noori").exists()
    record = dcgan.train_dcgan("noori_no_batchnorm", "cpu", "phantom", 0, root)
    read, runs = RunRecord.read(record.path), tmp_path / "runs/noori_no_batchnorm/cpu-seed0"
    assert read.metrics["diverged_at"] == 5 and read.metrics["diverged"] == "training diverged: g_loss of update 5 is nan"
    assert [row["update"] for row in read.metrics["logged"]] == [0, 2, 4] == read.history["update"].tolist()
    assert np.isfinite(pd.DataFrame(read.metrics["logged"])).all(axis=None) and read.wall_s > 0
    assert len(record_images(read)) == 16  # before updates 0 and 4
    assert not (runs / "generator.keras").exists() and not (runs / "backup").exists()
    assert dcgan.train_dcgan("noori_no_batchnorm", "cpu", "phantom", 0, root).metrics == read.metrics
    for use in (dcgan.sample_dcgan, lambda *args, out: dcgan.measure_dcgan(*args[:2], "phantom", args[2], out)):
        with pytest.raises(ValueError, match="noori_no_batchnorm, seed 0, diverged at update 5: it has no weights"):
            use("noori_no_batchnorm", "cpu", 0, out=root)


def test_the_command_ends_with_the_error_of_a_run_that_diverged(breaks_at_update_5, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second finds the record
        assert cli.main(["train", "noori_no_batchnorm", "--profile", "cpu", "--dataset", "phantom"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: training diverged: g_loss of update 5 is nan; so says the record ") and error.endswith("cpu-seed0")


@pytest.mark.parametrize("rate, at", [(1e25, range(5)), (1e-3, None)])
def test_a_rate_that_diverges(tiny, monkeypatch, tmp_path, rate, at):
    monkeypatch.setitem(dcgan.PROFILES, "noori_lr2e-3_beta0.5", {"cpu": replace(TINY, learning_rate=rate, may_diverge=True, sheets=False)})
    record = dcgan.train_dcgan("noori_lr2e-3_beta0.5", "cpu", "phantom", 0, tmp_path / "results")
    assert record.metrics["diverged_at"] in at if at else "printed_fit" in record.metrics
    RunRecord.read(record.path)


def test_noise_paths():
    a, b = dcgan.normal_noise(2, 100, seed=1)
    path = dcgan.interpolate_noise(3 * a, b, 9).astype("float64")
    assert np.allclose(path[[0, -1]], [3 * a, b], atol=1e-5)
    path = dcgan.interpolate_noise(a / np.linalg.norm(a), b / np.linalg.norm(b), 9).astype("float64")
    angles = np.arccos((path[1:] * path[:-1]).sum(1))
    assert np.allclose(np.linalg.norm(path, axis=1), 1, atol=1e-6) and np.allclose(angles, angles[0], atol=1e-4)
    assert np.allclose(dcgan.interpolate_noise(a, 2 * a, 3)[1], 1.5 * a, atol=1e-5)  # no arc: the straight line
    for wrong in (dict(b=0 * b), dict(b=b, steps=1)):
        with pytest.raises(ValueError, match="need at least 2 steps between vectors that are not zero"):
            dcgan.interpolate_noise(a, **wrong)
    with pytest.raises(ValueError, match="seed must be an integer"):
        dcgan.normal_noise(2, seed=-1)


def test_printed_fit_looks_at_the_second_half():
    losses = pd.DataFrame({"update": range(100), "seconds": 1.0} | {k: np.full(100, 2 * v) for k, v in dcgan.PRINTED.items()})
    exact = pd.Series(dcgan.PRINTED)
    losses.loc[10:19, exact.index] = np.tile(exact, (10, 1))
    fit = dcgan.printed_fit(losses)
    assert fit["n"] == 51 and not fit["within"] and fit["nearest"]["difference"] == pytest.approx(1)
    fit = dcgan.printed_fit(losses, start=0)
    assert fit["n"] == 100 and fit["within"] and fit["nearest"]["update"] == 10 and fit["nearest"]["difference"] == 0
    assert fit["rises"] == 1
    losses["d_fake_after"] = losses["d_fake_before"]
    assert dcgan.printed_fit(losses)["rises"] == 0


@pytest.mark.parametrize("experiment, n, updates, epochs", [("noori", 5216, 10_500, 100), ("noori_pneumonia", 3875, 3_900, 50)])
def test_an_epoch_is_as_many_batches_as_see_every_image(experiment, n, updates, epochs):
    for name, settings in ((experiment, {}), (f"quality_{experiment}", {"generator": experiment})):
        run = RunRecord(name, "cpu", 0, settings, {"n": n}, {}, None, 0.0)
        assert dcgan.epochs_of(run, [0, updates]).tolist() == [0, epochs]
