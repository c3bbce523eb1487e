"""carbone: networks, losses and augmentation against references, resumed runs, three backends, and experiments that see what was planted."""
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from cxr_acgan import acgan
from cxr_acgan.data import load_cxr
from cxr_acgan.ledger import answer, load_claims
from cxr_acgan.metrics import prediction_draws
from cxr_acgan.results import RunRecord, load_network, record_images

TINY = replace(acgan.CARBONE, image_size=16, width=1, images=24, updates=6, batch_size=4, learning_rate=1e-3, log_every=2, sample_updates=(0, 2, 6),
               kept_updates=(2, 6), evaluated=9, history_every=2, checkpoint_every=2)
SOURCES = {"COVID-19": ("adults", "cohen"), "normal": ("adults", "children"), "pneumonia": ("children", "cohen")}


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(acgan.PROFILES, "carbone", {"cpu": TINY})
        for name, study in acgan.EXPERIMENTS.items():
            size = 64 if study.task == "features" else 16
            patch.setitem(acgan.PROFILES, name, {"cpu": replace(study, image_size=size, updates=4, epochs=1, batch_size=8, synthetic=30)})
        yield


def small_gan(**kwargs):
    return acgan.build_carbone(replace(TINY, **kwargs))


@pytest.fixture(scope="module")
def covidx(tmp_path_factory):
    "A folder of drawn chests in COVIDx's class folders, a bright frame in those of children, with an index; few of pneumonia."
    root, lines = tmp_path_factory.mktemp("data"), ["file,source,patient,licence,reuse"]
    for split, n in (("train", 90), ("test", 60)):
        drawn = load_cxr("phantom", split, 16, n=n, num_classes=3)
        for k, (image, label) in enumerate(zip(drawn.images, drawn.labels)):
            name = ("normal", "pneumonia", "COVID-19")[label]
            if name == "pneumonia" and k % 3 == 0 and split == "train": continue
            source = SOURCES[name][k % 2]
            if source == "children": image[:3] = image[-3:] = 255
            path = root / "covidx" / split / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
            lines.append(f"covidx/{split}/{name}/{k}.png,{source},{split}{k // 2}{name},see page,{'CC BY-NC' if source == 'cohen' else 'CC BY 4.0'}")
    (root / "covidx_index.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def data(covidx):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_DATA", str(covidx))
        patch.setenv("CXR_CACHE", str(covidx / "cache"))
        yield


@pytest.fixture(scope="module")
def trained(tiny, data, tmp_path_factory):
    "A folder of records with a finished run of carbone."
    root = tmp_path_factory.mktemp("whole") / "results"
    quiet("carbone", "cpu", "covidx", 0, root)
    return root


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*confounded")
        return acgan.train_acgan(*args, **kwargs)


@pytest.mark.parametrize("size", [8, 56, 0])
def test_size_that_does_not_fit(size):
    for network in (acgan.carbone_generator, acgan.carbone_discriminator):
        with pytest.raises(ValueError, match=f"multiple of 16, got {size}"):
            network(image_size=size)


def test_weights_start_as_in_the_repository():
    kernels = [w for net in (acgan.carbone_generator(image_size=32, width=8), acgan.carbone_discriminator(32)) for w in net.trainable_weights
               if w.path.endswith("kernel") and "logit" not in w.path and "embedding" not in w.path]
    assert len(kernels) == 11 and all(abs(float(np.std(w)) - 0.02) < 0.004 for w in kernels if np.prod(w.shape) > 1000)
    norms = [layer for net in (acgan.carbone_generator(image_size=16, width=1), acgan.carbone_discriminator(16)) for layer in net.layers
             if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 8 and all(layer.momentum == 0.9 for layer in norms)


def test_saved_and_loaded(tmp_path):
    gan = small_gan(smoothing=0.1, fakes=3)
    gan.save(tmp_path / "gan.keras")
    again = keras.saving.load_model(tmp_path / "gan.keras")
    assert (again.smoothing, again.shear, again.zoom, again.fakes, again.value_range) == (0.1, 0.1, 0.1, 3, (-1.0, 1.0))
    noise, label = np.full((2, 100), 0.3, "float32"), np.eye(3, dtype="float32")[[0, 2]]
    out = [np.asarray(net([noise, label])) for net in (gan.generator, again.generator)]
    assert np.array_equal(*out) and not np.allclose(out[0][0], out[0][1])
    acgan.unit_range(gan.generator).save(tmp_path / "generator.keras")
    np.testing.assert_allclose(np.asarray(keras.saving.load_model(tmp_path / "generator.keras")([noise, label])), (out[0] + 1) / 2, atol=1e-6)


def as_image_data_generator(image, shear, columns, rows):
    "Keras' `ImageDataGenerator` with SciPy: row and column from the centre, times shear times zoom; shear in degrees."
    from scipy.ndimage import affine_transform
    angle, centre = np.deg2rad(shear), (image.shape[0] - 1) / 2
    matrix = np.array([[1, -np.sin(angle)], [0, np.cos(angle)]]) @ np.diag([rows, columns])
    return affine_transform(image, matrix, centre - matrix @ [centre, centre], order=1, mode="nearest")


def test_shear_and_zoom_as_scipy_and_opencv():
    rng = np.random.default_rng(0)
    images, draws = rng.uniform(0, 255, (12, 24, 24, 2)).astype("float32"), rng.uniform(-1, 1, (12, 3)).astype("float32")
    found = np.asarray(acgan.shear_and_zoom(images, draws, 20.0, 0.3))
    for k, (shear, columns, rows) in enumerate(draws * [20, 0.3, 0.3] + [0, 1, 1]):
        for channel in range(2):
            np.testing.assert_allclose(found[k, ..., channel], as_image_data_generator(images[k, ..., channel], shear, columns, rows), atol=0.05)
        a, b, c = np.cos(np.deg2rad(shear)) * columns, -np.sin(np.deg2rad(shear)) * columns, 11.5
        at = np.mgrid[:24, :24].astype("float32") - c
        maps = [m.astype("float32") for m in (a * at[1] + c, b * at[1] + rows * at[0] + c)]
        view = cv2.remap(images[k], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(found[k] - view).mean() < 2 < np.abs(images[k] - view).mean()  # OpenCV rounds places to 1/32 pixel


def test_every_image_is_moved_in_its_own_way():
    gan = small_gan(shear=20.0, zoom=0.3)
    gan.set_data(np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1)).astype("uint8"), np.array([0]), 3)
    real = np.asarray(gan.draw()["real"])
    assert np.abs(real[0] - real[1]).max() > 0.1 and np.abs(real[1] - real[2]).max() > 0.1 and np.abs(real).max() <= 1


def test_d_is_asked_about_what_it_was_trained_on():
    "Fakes keep their three channels, which tell them from real images at once; a gray picture of them would not."
    gan, images = small_gan(), keras.Input((16, 16, 3))
    tint = keras.ops.max(keras.ops.std(images, axis=-1), axis=(1, 2))
    gan.discriminator_logits = keras.Model(images, [1e-6 - tint[:, None], images[:, 0, 0, :]])
    found = acgan.measured_losses(gan, {"test": load_cxr("phantom", n=12, image_size=16, num_classes=3)})["test"]
    assert found["d_fake_accuracy"] == found["d_real_accuracy"] == 1


def test_draws_of_an_update():
    gan = small_gan(smoothing=0.2)
    gan.set_data(np.zeros((6, 16, 16, 1), "uint8"), np.arange(6) % 3, 2000)
    batch = {k: np.asarray(v) for k, v in gan.draw().items()}
    for truth in (1 - batch["real_truth"], batch["fake_truth"]):  # uniform in [0, 0.2)
        assert truth.shape == (2000, 1) and 0 <= truth.min() < 0.002 and 0.198 < truth.max() <= 0.2 and abs(truth.mean() - 0.1) < 0.005
    assert np.abs(np.corrcoef(batch["real_truth"][:, 0], batch["fake_truth"][:, 0])[0, 1]) < 0.1
    assert batch["noise_g"].shape == (4000, 100) and not np.array_equal(batch["noise_g"][:2000], batch["noise_g"][2000:])
    assert np.bincount(batch["labels_g"]).min() > 1200


def test_losses_against_keras():
    gan, rng = small_gan(), np.random.default_rng(0)
    images, labels, truth = rng.uniform(-1, 1, (6, 16, 16, 3)).astype("float32"), np.arange(6) % 3, rng.uniform(0.8, 1, (6, 1)).astype("float32")
    gan.discriminator.set_weights([w + 0.1 for w in gan.discriminator.get_weights()])
    source, classes = gan.discriminator(images)
    found = gan.judge(images, truth, labels, training=False)
    assert float(found[0]) == pytest.approx(float(keras.losses.BinaryCrossentropy()(truth, source)), abs=1e-4)
    assert float(found[1]) == pytest.approx(float(keras.losses.SparseCategoricalCrossentropy()(labels, classes)), abs=1e-4)


def test_generators_turn_leaves_the_averages_and_uses_them():
    gan = small_gan()
    gan.discriminator = acgan.carbone_discriminator(16, width=1, dropout_rate=0.0)
    gan = acgan.CarboneACGAN(gan.generator, gan.discriminator, num_classes=3)
    rng = np.random.default_rng(0)
    gan.discriminator.set_weights([np.abs(rng.normal(0.5, 0.3, w.shape)).astype("float32") for w in gan.discriminator.get_weights()])
    before = gan.discriminator.get_weights()
    batch = {"noise_g": keras.ops.convert_to_tensor(rng.uniform(-1, 1, (8, 100)).astype("float32")), "labels_g": np.arange(8) % 3}
    found = {k: float(v) for k, v in gan.g_losses(batch).items()}
    assert all(np.array_equal(a, b) for a, b in zip(before, gan.discriminator.get_weights()))
    source, classes, _ = gan.judge(gan.generate(batch["noise_g"], batch["labels_g"]), 1.0, batch["labels_g"], training=False)
    assert found == {"g_source_loss": pytest.approx(float(source), rel=1e-4), "g_class_loss": pytest.approx(float(classes), rel=1e-4)}
    other = gan.judge(gan.generate(batch["noise_g"], batch["labels_g"]), 1.0, batch["labels_g"])[0]
    assert abs(float(other) - float(source)) > 1e-3 and all(layer.trainable for layer in gan.discriminator.layers)


def test_discriminators_turn_sees_the_generator_as_it_is_used():
    gan, rng = small_gan(), np.random.default_rng(0)
    gan.generator.set_weights([np.abs(rng.normal(0.5, 0.3, w.shape)).astype("float32") for w in gan.generator.get_weights()])
    before, noise = gan.generator.get_weights(), keras.ops.convert_to_tensor(rng.uniform(-1, 1, (8, 100)).astype("float32"))
    labels, truth = np.arange(8) % 3, np.ones((8, 1), "float32")
    gan.d_losses({"real": np.zeros((8, *gan.discriminator.input_shape[1:]), "float32"), "real_truth": truth, "real_labels": labels,
                  "noise_d": noise, "labels_d": labels, "fake_truth": 1 - truth})
    assert all(np.array_equal(a, b) for a, b in zip(before, gan.generator.get_weights()))
    gan.generate(noise, labels)
    assert not all(np.array_equal(a, b) for a, b in zip(before, gan.generator.get_weights()))


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_on_backends(backend, same_on_backends):
    found = same_on_backends("backend_carbone.py", backend)
    assert {"moved", "d_source_loss", "d_class_loss", "g_class_loss", "d_fake_accuracy", "discriminator-0"} <= found.keys()
    assert max(np.abs(v).max() for k, v in found.items() if k.startswith("generator")) > 1e-3


@pytest.mark.parametrize("cut_at", [2, 6])
def test_cut_off_and_resumed(trained, tmp_path, monkeypatch, cut_at):
    watch = acgan._watch

    def cut(gan, *args):
        if gan.updates_done == cut_at: raise KeyboardInterrupt
        return watch(gan, *args)

    monkeypatch.setattr(acgan, "_watch", cut)
    with pytest.raises(KeyboardInterrupt):
        quiet("carbone", "cpu", "covidx", 0, tmp_path / "results")
    assert not (tmp_path / "results/carbone/cpu-seed0").exists()
    monkeypatch.setattr(acgan, "_watch", watch)
    resumed, whole = quiet("carbone", "cpu", "covidx", 0, tmp_path / "results"), RunRecord.read(trained / "carbone/cpu-seed0")
    for name in ("generator", "discriminator", "generator-2"):
        a, b = (load_network("carbone", "cpu", 0, name, root).get_weights() for root in (trained, tmp_path / "results"))
        assert all(np.allclose(x, y, atol=1e-5) for x, y in zip(a, b)), name
    assert [row["update"] for row in whole.metrics["logged"]] == [row["update"] for row in resumed.metrics["logged"]] == [0, 2, 4, 5]
    scores = whole.metrics["scores"]["test"][-1]
    assert scores["update"] == 6 and scores["d_accuracy"] == pytest.approx((scores["d_real_accuracy"] + scores["d_fake_accuracy"]) / 2)
    assert acgan.sample_acgan("carbone", "cpu", 0, n=6, out=trained)[0].std() > 0
    assert whole.dataset["class_counts"].keys() == {"COVID-19", "normal", "pneumonia"}


def test_two_classes_are_refused(tiny, tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir()
        cv2.imwrite(str(tmp_path / "two" / name / "1.png"), np.zeros((16, 16), "uint8"))
    with pytest.raises(ValueError, match="two has 2 classes, carbone needs three: use the data set covidx"):
        acgan.three_classes(str(tmp_path / "two"), "train", 16)
    with pytest.raises(ValueError, match="balance_asis trains no generator: use singh, singh_batchnorm, srm"):
        acgan.sample_acgan("balance_asis", "cpu", out=tmp_path)
    with pytest.raises(FileNotFoundError, match="no record at .*carbone_choice"):
        acgan.train_acgan("balance_gan", "cpu", "phantom", 0, tmp_path / "results")
    with pytest.raises(FileNotFoundError, match="no record at .*: the training is not finished, `cxr-acgan train carbone --profile cpu --seed 0` finishes it"):
        acgan.train_acgan("carbone_choice", "cpu", "phantom", 0, tmp_path / "results")
    for missing in ("balance_asis --profile cpu --seed 3", "carbone_features --profile cpu --seed 0", "carbone_choice --profile cpu --seed 0"):
        with pytest.raises(FileNotFoundError, match=f"`cxr-acgan train {missing}` gets"):
            acgan.train_acgan("carbone_quality", "cpu", "phantom", 3, tmp_path / "results")
        folder = tmp_path / "runs" / missing.split()[0] / f"cpu-seed{missing[-1]}"
        folder.mkdir(parents=True, exist_ok=True)
        acgan.small_classifier(16).save(folder / "classifier.keras")
        shutil.copy(Path(acgan.__file__).parent / "cxr_features.npz", folder / "features.npz")
    with pytest.raises(ValueError, match="the source of no image is known; use the data set covidx"):
        acgan.relabel_by_source(load_cxr("phantom", n=6, num_classes=3), ["a"])
    with pytest.raises(ValueError, match="unknown way 'smote'"):
        acgan.balanced_images(load_cxr("phantom", n=6, num_classes=3), "smote")


def test_experiments_on_covidx(trained, monkeypatch):
    "One after the other; the chain of files that each needs of the others."
    weights = trained.parent / "runs/carbone/cpu-seed0/generator-2.keras"
    weights.rename(weights.with_name("away"))
    with pytest.raises(FileNotFoundError, match="lacks generator-2.keras: remove it, and `cxr-acgan train carbone --profile cpu --seed 0` makes"):
        quiet("carbone_choice", "cpu", "covidx", 0, trained)
    weights.with_name("away").rename(weights)
    shutil.copy(weights, weights.with_name("generator-4.keras"))  # of no update that the record names
    (trained / "carbone/cpu-seed0/run.json").rename(trained / "away.json")
    with pytest.raises(FileNotFoundError, match="the training is not finished"):
        quiet("carbone_choice", "cpu", "covidx", 0, trained)
    (trained / "away.json").rename(trained / "carbone/cpu-seed0/run.json")
    choice = quiet("carbone_choice", "cpu", "covidx", 0, trained).metrics
    assert [row["update"] for row in choice["checkpoints"]] == [2, 6] and choice["gap"]["value"] >= 0 and 0 <= choice["same"] <= 1
    held_out = choice["sets"]["validation"]["patients"], choice["sets"]["train"]["patients"]
    assert 0.15 < held_out[0] / sum(held_out) < 0.25
    called = RunRecord.read(trained / "carbone_choice/cpu-seed0").metrics["called"]["test"]
    assert choice["sets"]["test"]["without_patient"] == 0 and len(called["label"]) == len(called["called"]["2"]) == 60
    for row in choice["checkpoints"]:
        found = np.array(row["test"]["confusion"])
        assert [int(k) for k in called["called"][str(row["update"])]].count(1) == found[:, 1].sum()
    record = quiet("balance_gan", "cpu", "covidx", 1, trained)
    gan, chosen = record.metrics, next(row for row in choice["checkpoints"] if row["update"] == choice["on_validation"]["update"])
    assert gan["generator"] == {"update": chosen["update"], "weights": chosen["generator"]} and gan["added"][2] > 0 and record.settings["synthetic"] == 30
    assert sum(gan["distinct"]) <= min(30, sum(gan["added"])) and all((np.array(gan["distinct"]) > 0) == (np.array(gan["added"]) > 0))
    quiet("carbone_features", "cpu", "covidx", 0, trained)
    assert RunRecord.read(trained / "carbone_features/cpu-seed0").settings | {"backend": 0} == {
        "task": "features", "images": None, "validation": 0.2, "image_size": 64, "epochs": 1, "precision": "float32", "batch_size": 64,
        "learning_rate": 2e-3, "reconstruction": 20.0, "backend": 0}
    asis = [quiet("balance_asis", "cpu", "covidx", seed, trained) for seed in (0, 1)]
    assert "synthetic" not in asis[0].settings and asis[0].metrics["distinct"].tolist() == [0, 0, 0]
    [claim] = [c for c in load_claims() if c.id == "carbone-augmentation"]
    found = answer(claim, trained)
    runs = [RunRecord.read(trained / name / "cpu-seed1").metrics for name in ("balance_gan", "balance_asis")]
    assert found.how == "paired bootstrap over patients" and found.low <= found.value <= found.high
    assert found.value == pytest.approx(runs[0]["scores"]["test"]["f1"]["value"] - runs[1]["scores"]["test"]["f1"]["value"], abs=1e-6)
    assert prediction_draws(runs[0]["predictions"]["test"])[0]["f1"] == pytest.approx(runs[0]["scores"]["test"]["f1"]["value"], abs=1e-6)
    monkeypatch.setattr(acgan, "inception_network", lambda: (_ for _ in ()).throw(OSError("no weights here")))
    monkeypatch.setattr(acgan, "COPIES_NEED", 1)
    monkeypatch.setattr(acgan, "memorisation_report", partial(acgan.memorisation_report, false_alarm_rate=0.5, controls=4))
    record = quiet("carbone_quality", "cpu", "covidx", 0, trained)
    quality = record.metrics
    copies, n = quality["memorisation"], record.metrics["sets"]["train"]["n"]
    assert copies["n"] == 30 and max(copies["closest"]["train"]) < n and copies["controls"]["recompressed"]["n"] == 4 and 0 <= copies["features"]["agreement"] <= 1
    assert len(record_images(record, "closest.png")) == 12 and set(quality["ms_ssim"]) == {"synthetic", "real"}
    assert quality["missing"] == {"inception": "no weights here"} and not {"learning_rate", "updates", "epochs"} & set(record.settings)
    space = quality["spaces"]["covidx"]
    assert {"repository", "clean", "real", "few"} == set(space) and 0 <= space["clean"]["recall"] <= 1 and quality["spaces"]["classifier"]["accuracy"] <= 1
    assert [[image["licence"] for image in shown] for shown in quality["shown"]] == 3 * [6 * ["CC BY 4.0"]]
    assert all(name in image["file"].split("/") and image["source"] in ("adults", "children") for name, shown in zip(quality["class_names"], quality["shown"]) for image in shown)
    assert all(space[p]["intra"]["classes"] == [0, 1, 2] and space[p]["frechet_distance"] > 0 for p in ("repository", "clean"))
    assert set(space["real"]) == set(space["few"]) and all(space["real"][p]["intra"]["n"] == space["few"][p]["intra"]["n"] for p in space["real"])
    path = trained.parent / f"runs/carbone/cpu-seed0/generator-{chosen['update']}.keras"
    acgan.unit_range(small_gan().generator).save(path)
    with pytest.raises(ValueError, match="holds other weights than those that .*carbone_choice"):
        quiet("balance_gan", "cpu", "covidx", 2, trained)


def test_a_planted_source_is_found(data, tmp_path, monkeypatch):
    "Children's images have a bright frame: a classifier finds it, and the confound is in the record."
    study = replace(acgan.EXPERIMENTS["carbone_source"], image_size=16, updates=20, batch_size=16, learning_rate=0.01, zoom=0.0)
    monkeypatch.setitem(acgan.PROFILES, "carbone_source", {"cpu": study})
    found = quiet("carbone_source", "cpu", "covidx", 0, tmp_path / "results").metrics
    assert found["sources"] == ["adults", "children", "cohen"] and set(found["within"]) == {"adults", "children", "cohen"}
    children = np.array(found["source_scores"]["confusion"])[1]
    assert children[1] / children.sum() > 0.9
    assert found["within"]["children"]["classes"] == ["normal", "pneumonia"] and 0.4 < found["confound"]["train"]["distance"] < 0.6


def test_licences_of_images_shown(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train = load_cxr("covidx", "train", 16)
    shown = acgan.open_licence(train, 4)
    assert [len(k) for k in shown] == [4, 4, 4] and {train.licences[i] for k in shown for i in k} == {"CC BY 4.0"}
    assert all((train.labels[k] == c).all() for c, k in enumerate(shown))
    assert [len(k) for k in acgan.open_licence(replace(train, licences=()), 4)] == [0, 0, 0]  # "mixed": of none is it known
    assert [len(k) for k in acgan.open_licence(replace(train, licences=(), licence="CC BY 4.0"), 4)] == [4, 4, 4]
    [image] = acgan.attribution(train, shown[0][:1])
    assert image == {"file": train.file_names[shown[0][0]], "source": train.sources[shown[0][0]], "licence": "CC BY 4.0"}


def of_patients(*called):
    "What `choose_checkpoint` takes: 40 patients of three images, and what each checkpoint calls them."
    return {"label": np.arange(120) % 3, "patient": np.arange(120) // 3, "called": dict(zip((10, 20), called))}


def wrong_of(*patients):
    "All images right but those of these patients."
    return (np.arange(120) + np.isin(np.arange(120) // 3, patients)) % 3


def test_the_choice_is_repeated_in_every_bootstrap_sample():
    sure = acgan.choose_checkpoint(of_patients(wrong_of(*range(20)), wrong_of()), of_patients(wrong_of(*range(20)), wrong_of()))
    assert sure["same"] == 1 and sure["gap"]["value"] == sure["gap"]["low"] == sure["gap"]["high"] == 0
    near = of_patients(wrong_of(1, 2, 3), wrong_of(4, 5))
    narrow = acgan.choose_checkpoint(near, near)
    assert narrow["on_test"] == narrow["on_validation"] and narrow["gap"]["value"] == 0 == narrow["gap"]["low"]
    assert 0.02 < narrow["gap"]["high"] < 0.2 and 0.3 < narrow["same"] < 0.8  # the two sets are drawn apart
    lucky = acgan.choose_checkpoint(of_patients(wrong_of(), wrong_of(*range(12))), of_patients(wrong_of(*range(12)), wrong_of()))
    assert (lucky["on_test"]["update"], lucky["on_validation"]["update"], lucky["same"]) == (20, 10, 0)
    assert lucky["gap"]["value"] == pytest.approx(0.3) and 0.1 < lucky["gap"]["low"] < 0.3 < lucky["gap"]["high"] < 0.5
    with pytest.raises(ValueError, match="need the same checkpoints twice"):
        acgan.choose_checkpoint(of_patients(wrong_of()), near)
