"""One update's losses and gradients on the backend of $KERAS_BACKEND, from weights, noise and batch drawn by NumPy.

Run by test_backends.py in a process of its own: `python backend_step.py OUT.npz`.
"""
import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # any import of it fails, as where it is not installed

import keras
import numpy as np

from cxr_acgan.acgan import ACGAN, acgan_discriminator, acgan_generator

N, SIZE = 4, 32


def networks():
    generator, discriminator = acgan_generator(image_size=SIZE), acgan_discriminator(SIZE, dropout_rate=0.0)
    rng = np.random.default_rng(0)
    for network in (generator, discriminator):
        network.set_weights([w if w.dtype.kind in "iu" else rng.normal(0, 0.05, w.shape).astype("float32")
                             for w in network.get_weights()])
    return generator, discriminator


def batch():
    rng = np.random.default_rng(1)
    draw = {"real": rng.uniform(0, 1, (N, SIZE, SIZE, 3)), "real_labels": np.eye(2)[[0, 1, 1, 0]],
            "fake_labels": np.eye(2)[[1, 1, 0, 0]], "noise_d": rng.uniform(-1, 1, (N, 100)), "noise_g": rng.uniform(-1, 1, (N, 100))}
    return {name: keras.ops.convert_to_tensor(value.astype("float32")) for name, value in draw.items()}


def main(out):
    generator, discriminator = networks()
    gan = ACGAN(generator, discriminator, seed=0)
    gan.compile(keras.optimizers.RMSprop(1e-4), keras.optimizers.RMSprop(5e-5))
    gan.batch_size, found, drawn = N, {}, batch()
    for losses, network in ((gan.d_losses, discriminator), (gan.g_losses, generator)):
        values, gradients = gan._value_and_grad(lambda: losses(drawn), network)
        found |= {name: keras.ops.convert_to_numpy(value) for name, value in values.items()}
        found |= {f"{network.name}-{i}": keras.ops.convert_to_numpy(g) for i, g in enumerate(gradients)}
    # and through fit, with a backup, as users train
    images = np.random.default_rng(2).integers(0, 256, (8, SIZE, SIZE, 1), dtype="uint8")
    history = gan.fit(images, np.arange(8) % 2, batch_size=2, steps_per_epoch=2, epochs=2, verbose=0,
                      callbacks=[keras.callbacks.BackupAndRestore(os.path.dirname(out) + "/backup-" + keras.backend.backend())])
    assert np.isfinite(list(history.history.values())).all() and gan.updates_done == 4
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1])
