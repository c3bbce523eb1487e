"""One update of carbone's GAN on the backend of $KERAS_BACKEND, see `on_backend` in conftest.py: `python backend_carbone.py OUT.npz`."""
import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # any import of it fails, as where it is not installed

import keras
import numpy as np

from cxr_acgan.acgan import CarboneACGAN, carbone_discriminator, carbone_generator, shear_and_zoom

rng = np.random.default_rng(0)
gan = CarboneACGAN(carbone_generator(image_size=16, width=1), carbone_discriminator(16, width=4, dropout_rate=0.0), num_classes=3)
gan.compile(*(keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in range(2)))
for network in (gan.generator, gan.discriminator):
    network.set_weights([np.abs(v) + 0.5 if v.ndim == 1 else v for v in (rng.normal(0, 0.1, w.shape).astype("float32") for w in network.get_weights())])
batch = {"real": rng.uniform(-1, 1, (8, 16, 16, 3)), "noise_d": rng.uniform(-1, 1, (8, 100)), "noise_g": rng.uniform(-1, 1, (16, 100)),
         "real_truth": rng.uniform(0.8, 1, (8, 1)), "fake_truth": rng.uniform(0, 0.2, (8, 1))}
batch = {k: keras.ops.convert_to_tensor(v.astype("float32")) for k, v in batch.items()}
batch |= {k: keras.ops.convert_to_tensor(rng.integers(0, 3, n).astype("int32")) for k, n in (("real_labels", 8), ("labels_d", 8), ("labels_g", 16))}
moved = shear_and_zoom(batch["real"], rng.uniform(-1, 1, (8, 3)).astype("float32"), 20.0, 0.3)
found = {"moved": moved}
for losses, network in ((gan.d_losses, gan.discriminator), (gan.g_losses, gan.generator)):
    values, gradients = gan._value_and_grad(lambda: losses(batch), network)
    found |= values | {f"{network.name}-{i}": g for i, g in enumerate(gradients)}
found |= {f"average-{i}": w for i, w in enumerate(gan.generator.non_trainable_variables + gan.discriminator.non_trainable_variables)}
found = {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}
images = rng.integers(0, 256, (9, 16, 16, 1), dtype="uint8")
history = gan.fit(images, np.arange(9) % 3, batch_size=4, steps_per_epoch=2, epochs=2, verbose=0).history
assert set(history) == set(gan.log_names) and np.isfinite(list(history.values())).all() and gan.updates_done == 4
np.savez(sys.argv[1], **found)
