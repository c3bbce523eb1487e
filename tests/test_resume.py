"""A training that is killed and started again ends with the weights of one that was not."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from cxr_acgan.results import RunRecord

SCRIPT = str(Path(__file__).with_name("short_training.py"))
ENV = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
RECORD = Path("results/singh/cpu-seed3")
RUN = Path("runs/singh/cpu-seed3")


def train(folder):
    run = subprocess.run([sys.executable, SCRIPT, str(folder / "results")], env=ENV, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def train_and_kill(folder, after_updates):
    process = subprocess.Popen([sys.executable, SCRIPT, str(folder / "results")], env=ENV, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    losses, start = folder / RUN / "losses.csv", time.time()
    while not (losses.exists() and len(losses.read_text().splitlines()) > after_updates):
        assert process.poll() is None, "training ended before it could be killed"
        assert time.time() - start < 120, "training did not get going"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / RECORD / "run.json").exists(), "a killed run must leave no record"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_killed_twice_and_resumed(whole, tmp_path):
    for after in (4, 16):
        train_and_kill(tmp_path, after)
    train(tmp_path)
    for network in ("generator", "discriminator"):
        expected, found = (keras.saving.load_model(f / RUN / f"{network}.keras").get_weights() for f in (whole, tmp_path))
        assert all(np.array_equal(a, b) for a, b in zip(expected, found)), f"{network} differs after resuming"
    a, b = (RunRecord.read(f / RECORD) for f in (whole, tmp_path))
    pd.testing.assert_frame_equal(a.history, b.history)
    assert a.metrics["logged"] == b.metrics["logged"] and [row["update"] for row in a.metrics["logged"]] == [0, 10, 20, 30, 40]
    assert not (tmp_path / RUN / "backup").exists()


def test_backup_of_another_run_is_refused(tmp_path):
    train_and_kill(tmp_path, 4)
    path = tmp_path / RUN / "training.json"
    path.write_text(path.read_text().replace('"batch_size": 4', '"batch_size": 8'))
    run = subprocess.run([sys.executable, SCRIPT, str(tmp_path / "results")], env=ENV, capture_output=True, text=True)
    assert run.returncode != 0 and "unfinished training with other settings" in run.stderr
