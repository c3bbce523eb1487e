"""Probabilities of the VGG16 on the backend of $KERAS_BACKEND, see `on_backend` in conftest.py: `python backend_vgg16.py OUT.npz`."""
import os, sys
if os.environ['KERAS_BACKEND'] != 'tensorflow': sys.modules['tensorflow'] = None
import numpy as np
from cxr_acgan import vgg16_eval as v
from cxr_acgan.data import draw_phantom
data, rng = draw_phantom(12, image_size=32), np.random.default_rng(0)
net = v.vgg16_classifier(32)
draw = lambda w: rng.normal(0, np.sqrt(2 / np.prod(w.shape[:-1])), w.shape).astype(w.dtype) if w.ndim > 1 else w
net.set_weights([draw(w) for w in net.get_weights()])
found = net.predict(np.repeat(data.images, net.input_shape[-1], -1) / np.float32(255), verbose=0)
settings = v.VGG16Settings(image_size=32, epochs=1, batch_size=4)
_, history = v.fit_classifier((data.images[::2], data.labels[::2]), (data.images[1::2], data.labels[1::2]), settings)
assert np.isfinite(history.loss).all() and np.ptp(found) > 1e-4
np.savez(sys.argv[1], probabilities=found)
