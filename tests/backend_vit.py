"""Probabilities, maps and one step of small networks on the backend of $KERAS_BACKEND, see `on_backend` in conftest.py: `python backend_vit.py OUT.npz`."""
import os, sys
if os.environ['KERAS_BACKEND'] != 'tensorflow': sys.modules['tensorflow'] = None
import keras
import numpy as np
from cxr_acgan import vit_attention as v
from cxr_acgan.data import draw_phantom
images, rng, found = draw_phantom(6, image_size=32).images, np.random.default_rng(0), {}
nets = {'cnn': v.cnn_classifier(32, widths=(4, 8), dropout_rate=0.0), 'vit': v.vit_classifier(32, hidden_dim=16, num_heads=2, num_layers=2, drop_path=0.0)}
for name, net in nets.items():
    draw = lambda w: w if w.dtype.kind in 'iu' else (np.abs(rng.normal(0.5, 0.2, w.shape)) if w.ndim == 1 else rng.normal(0, 0.2, w.shape)).astype(w.dtype)
    net.set_weights([draw(w) for w in net.get_weights()])
    found |= {name: v.probabilities(net, images), name + ' cam': v.grad_cam(net, images, np.array([0, 1] * 3))}
    before = net.get_weights()
    net.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    net.train_on_batch(images, np.array([0, 1] * 3))  # one step of plain descent shows the gradients, and the moving averages
    found[name + ' step'] = np.concatenate([(b - a).ravel() for a, b in zip(before, net.get_weights()) if a.dtype.kind == 'f'])
    net.set_weights(before)
found['rollout'] = v.rollout_maps(nets['vit'], images)
settings = v.CellSettings('vit', options={'hidden_dim': 16, 'num_heads': 2, 'num_layers': 2}, image_size=32, updates=4, batch_size=4, rounds=2)
model, history = v.fit_cell((images, np.arange(6) % 2, None, 2), (images, np.arange(6) % 2), settings)
assert np.isfinite(history.loss).all()
np.savez(sys.argv[1], **found)
