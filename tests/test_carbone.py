"""carbone: networks, losses and augmentation against references, resumed runs, three backends, and experiments that see what was planted."""
import warnings
from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest

from cxr_acgan import acgan
from cxr_acgan.data import load_cxr
from cxr_acgan.results import RunRecord, load_network

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


def test_cut_off_and_resumed(trained, tmp_path, monkeypatch):
    watch = acgan._watch

    def cut(gan, *args):
        if gan.updates_done == 6: raise KeyboardInterrupt
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
    with pytest.raises(FileNotFoundError, match="no checkpoints of carbone"):
        acgan.train_acgan("carbone_choice", "cpu", "phantom", 0, tmp_path / "results")
    with pytest.raises(ValueError, match="the source of no image is known; use the data set covidx"):
        acgan.relabel_by_source(load_cxr("phantom", n=6, num_classes=3), ["a"])
    with pytest.raises(ValueError, match="unknown way 'smote'"):
        acgan.balanced_images(load_cxr("phantom", n=6, num_classes=3), "smote")


def test_experiments_on_covidx(trained, monkeypatch):
    "One after the other; the chain of files that each needs of the others."
    choice = quiet("carbone_choice", "cpu", "covidx", 0, trained).metrics
    assert [row["update"] for row in choice["checkpoints"]] == [2, 6] and choice["gap"]["value"] >= 0
    held_out = choice["sets"]["validation"]["patients"], choice["sets"]["train"]["patients"]
    assert 0.15 < held_out[0] / sum(held_out) < 0.25
    assert choice["sets"]["test"]["without_patient"] == 0 and len(choice["on_validation"]["predictions"]["label"]) == 60
    gan = quiet("balance_gan", "cpu", "covidx", 1, trained).metrics
    chosen = next(row for row in choice["checkpoints"] if row["update"] == choice["on_validation"]["update"])
    assert gan["generator"] == {"update": chosen["update"], "weights": chosen["generator"]} and gan["added"][2] > 0 and len(gan["predictions"]["label"]) == gan["test"]["n"] == 60
    quiet("carbone_features", "cpu", "covidx", 0, trained)
    monkeypatch.setattr(acgan, "inception_network", lambda: (_ for _ in ()).throw(OSError("no weights here")))
    quality = quiet("carbone_quality", "cpu", "covidx", 0, trained).metrics
    assert quality["missing"] == {"inception": "no weights here", "classifier": "cxr-acgan train balance_asis was not run"}
    space = quality["spaces"]["covidx"]
    assert {"repository", "clean", "real"} == set(space) and quality["shown"] == [6, 6, 6] and 0 <= space["clean"]["recall"] <= 1
    assert all(space[p]["intra"]["classes"] == [0, 1, 2] and space[p]["frechet_distance"] > 0 < space["real"][p] for p in ("repository", "clean"))
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
