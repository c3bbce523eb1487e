"""A VAE's losses and gradients on the backend of $KERAS_BACKEND, from weights, noise and batch drawn by NumPy.

Run by test_vae.py in a process of its own: `python backend_vae.py OUT.npz`.
"""
import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # any import of it fails, as where it is not installed

import keras
import numpy as np

from cxr_acgan.vae import VAE, image_losses, vae_decoder, vae_encoder

N, SIZE, LATENT = 4, 16, 8


def main(out):
    networks, rng = (vae_encoder(LATENT, image_size=SIZE), vae_decoder(LATENT, image_size=SIZE)), np.random.default_rng(0)
    for network in networks:
        network.set_weights([rng.normal(0, 0.1, w.shape).astype("float32") for w in network.get_weights()])
    images, labels = rng.integers(0, 256, (N, SIZE, SIZE, 1), dtype="uint8"), np.array([0, 1, 1, 0])
    noise, found = rng.normal(size=(N, LATENT)).astype("float32"), {}
    for likelihood, beta in (("bernoulli", 2.0), ("gaussian", 0.5)):
        vae = VAE(*networks, beta, likelihood)
        batch = vae.prepare(images, labels)
        values, gradients = vae._value_and_grad(lambda: vae.losses_of(*batch, noise), vae)
        found |= {f"{likelihood}-{name}": keras.ops.convert_to_numpy(value) for name, value in values.items()}
        found |= {f"{likelihood}-gradient-{i}": keras.ops.convert_to_numpy(g) for i, g in enumerate(gradients)}
    found |= {f"image-{name}": value for name, value in image_losses(vae, images, labels).items()}
    # and through fit, with a backup, as users train
    vae.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, 4)))
    before = vae.get_weights()
    history = vae.fit(images, labels, batch_size=2, steps_per_epoch=2, epochs=2, verbose=0, callbacks=[
        keras.callbacks.BackupAndRestore(os.path.dirname(out) + "/backup-" + keras.backend.backend())])
    assert np.isfinite(list(history.history.values())).all() and vae.updates_done == 4
    assert sorted(history.history) == ["kl_loss", "loss", "reconstruction_loss"] and vae.variance != np.exp(-5)
    assert sum(not np.array_equal(a, b) for a, b in zip(before, vae.get_weights())) > len(vae.trainable_variables)
    np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1])
