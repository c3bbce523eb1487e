"""One update of the DCGAN on the backend of $KERAS_BACKEND, see `on_backend` in conftest.py: `python backend_dcgan.py OUT.npz`."""
import sys, os
if os.environ["KERAS_BACKEND"] != "tensorflow": sys.modules["tensorflow"] = None
import keras, numpy as np
from dataclasses import replace
from cxr_acgan.dcgan import NOORI, build_dcgan
gan = build_dcgan(replace(NOORI, image_size=16, width=4), 0)
rng = np.random.default_rng(0)
for network in (gan.generator, gan.discriminator):
    network.set_weights([np.abs(v) + 0.5 if v.ndim == 1 else v for v in (rng.normal(0, 0.1, w.shape).astype("float32") for w in network.get_weights())])
batch = {"real": rng.uniform(-1, 1, (8, 16, 16, 3)), "noise": rng.normal(size=(8, 100))}
batch, found = {k: keras.ops.convert_to_tensor(v.astype("float32")) for k, v in batch.items()}, {}
for losses, network in ((gan.d_losses, gan.discriminator), (gan.g_losses, gan.generator)):
    values, gradients = gan._value_and_grad(lambda: losses(batch), network)
    found |= values | {f"{network.name}-{i}": g for i, g in enumerate(gradients)}
found |= {f"average-{i}": w for i, w in enumerate(gan.generator.non_trainable_variables + gan.discriminator.non_trainable_variables)}
found = {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}
images = rng.integers(0, 256, (8, 16, 16, 1), dtype="uint8")
history = gan.fit(images, batch_size=4, steps_per_epoch=2, epochs=2, verbose=0).history
assert set(history) == set(gan.log_names) and np.isfinite(list(history.values())).all() and gan.updates_done == 4
np.savez(sys.argv[1], **found)
