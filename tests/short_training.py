"""A short deterministic training in float32: `python short_training.py RESULTS_FOLDER`, run and killed by test_resume.py."""
import sys
from dataclasses import replace

import tensorflow as tf

from cxr_acgan import acgan

tf.config.experimental.enable_op_determinism()
acgan.PROFILES["singh"]["cpu"] = replace(acgan.SINGH, image_size=16, images=32, updates=41, batch_size=4, log_every=10,
                                         sample_updates=(0, 40), history_every=4, checkpoint_every=4)
print(acgan.train_acgan("singh", "cpu", "phantom", seed=3, out=sys.argv[1]).metrics["logged"])
