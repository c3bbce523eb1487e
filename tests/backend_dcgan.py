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
fake = gan.generator(batch["noise"], training=True)
batch["fake"] = keras.ops.convert_to_tensor(keras.ops.convert_to_numpy(fake))
for losses, network in ((lambda: gan.d_losses(batch), gan.discriminator),
                        (lambda: gan.g_losses({"fake": gan.generator(batch["noise"], training=True)}), gan.generator)):
    values, gradients = gan._value_and_grad(losses, network)
    found |= values | {f"{network.name}-{i}": g for i, g in enumerate(gradients)}
drawn, gan.draw = gan.draw, lambda: batch
gan.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
for update in range(2):
    found |= {f"{name}-of-{update}": v for name, v in gan._update(np.int32([0])).items()}
gan.draw = drawn
found |= {f"{network.name}-after-{i}": w for network in (gan.generator, gan.discriminator) for i, w in enumerate(network.trainable_variables)}
found |= {f"average-{i}": w for i, w in enumerate(gan.generator.non_trainable_variables + gan.discriminator.non_trainable_variables)}
found = {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}
images = rng.integers(0, 256, (8, 16, 16, 1), dtype="uint8")
history = gan.fit(images, batch_size=4, steps_per_epoch=2, epochs=2, verbose=0).history
assert set(history) == set(gan.log_names) and np.isfinite(list(history.values())).all() and gan.updates_done == 6
np.savez(sys.argv[1], **found)
