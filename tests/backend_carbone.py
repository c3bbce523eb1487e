"""One update of carbone's GAN on the backend of $KERAS_BACKEND, see `on_backend` in conftest.py: `python backend_carbone.py OUT.npz`."""
import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # any import of it fails, as where it is not installed

os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # JAX compiles once and runs once
import keras
import numpy as np

from cxr_acgan.acgan import CarboneACGAN, carbone_discriminator, carbone_generator, shear_and_zoom

rng = np.random.default_rng(0)
gan = CarboneACGAN(carbone_generator(image_size=16, width=1), carbone_discriminator(16, width=4, dropout_rate=0.0), num_classes=3)
gan.compile(*(keras.optimizers.SGD(0.1) for _ in range(2)))  # the change of a weight is a tenth of its gradient
networks = {"generator": gan.generator, "discriminator": gan.discriminator}
for network in networks.values():
    network.set_weights([np.abs(v) + 0.5 if v.ndim == 1 else v for v in (rng.normal(0, 0.1, w.shape).astype("float32") for w in network.get_weights())])
before = {name: network.get_weights() for name, network in networks.items()}
batch = {"real": rng.uniform(-1, 1, (8, 16, 16, 3)), "noise_d": rng.uniform(-1, 1, (8, 100)), "noise_g": rng.uniform(-1, 1, (16, 100)),
         "real_truth": rng.uniform(0.8, 1, (8, 1)), "fake_truth": rng.uniform(0, 0.2, (8, 1))}
batch = {k: v.astype("float32") for k, v in batch.items()} | {k: rng.integers(0, 3, n).astype("int32") for k, n in (("real_labels", 8), ("labels_d", 8), ("labels_g", 16))}
found = {"moved": shear_and_zoom(batch["real"], rng.uniform(-1, 1, (8, 3)).astype("float32"), 20.0, 0.3)}
found = {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}
images = rng.integers(0, 256, (9, 16, 16, 1), dtype="uint8")
gan.set_data(images, np.arange(9) % 3, 8)
drawn = {k: v.shape for k, v in gan.draw().items()}
assert drawn == {k: v.shape for k, v in batch.items()}, drawn
gan.draw = lambda: {k: keras.ops.convert_to_tensor(v) for k, v in batch.items()}
logs = gan.fit(images, np.arange(9) % 3, batch_size=8, steps_per_epoch=1, verbose=0).history
found |= {k: np.array(v) for k, v in logs.items()}
found |= {f"{name}-{i}": 10 * (new - old) for name, weights in before.items() for i, (old, new) in enumerate(zip(weights, networks[name].get_weights()))}
assert set(logs) == set(gan.log_names) and gan.updates_done == 1
np.savez(sys.argv[1], **found)
