"""Features of the space `cxr` on the backend of $KERAS_BACKEND: `python backend_features.py OUT.npz`; see test_features.py."""
import os
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # any import of it fails, as where it is not installed

import numpy as np

from cxr_acgan.data import draw_phantom
from cxr_acgan.features import image_features

np.savez(sys.argv[1], features=image_features(draw_phantom(20, image_size=100).images, batch_size=8))
