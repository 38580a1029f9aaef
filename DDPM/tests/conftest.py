"""Tests run the scripts' own main() on tiny data in this process, so that each import is paid for once."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are the same on every machine: on the CPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are faster so

from helpers import FORGOTTEN, cpu, script, tiny  # noqa: E402


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a trained original, a mask of the digit 3 at ratio 0.5, a classifier, and the digits' cache in data/."""
    home = tmp_path_factory.mktemp("home")
    data_dir = ("--data_dir", home / "data")
    assert script(*tiny(*data_dir, "--save_dir", home / "original")) == 0
    assert script("generate_mask", "--model_path", home / "original", "--forget_class", FORGOTTEN, "--save_dir", home / "mask") == 0
    flags = ("--dataset", "digits", "--arch", "cnn", "--lr", "3e-3", "--head_lr_factor", "1", "--epochs", "3", "--batch_size", "64")
    assert script("train_classifier", *flags, *data_dir, "--save_dir", home / "classifier") == 0
    return home


@pytest.fixture(scope="session")
def unlearn(home, tmp_path_factory):
    """unlearn(method, *flags) -> run folder of that method on the original, the digit 3 forgotten."""

    def call(method, *flags, forget=(FORGOTTEN,)):
        folder = tmp_path_factory.mktemp(method) / "run"
        mask = ("--mask_path", home / "mask") if method == "salun" and "--mask_path" not in flags else ()
        base = ("--method", method, "--model_path", home / "original", "--batch_size", 32, "--precision", "fp32", "--save_dir", folder)
        assert script("unlearn", *base, "--forget_class", *forget, *mask, *flags) == 0
        return folder

    return call


@pytest.fixture(scope="session")
def opened(home):
    """opened(run folder) -> the Job of the original with that run's weights: what the scripts see."""
    import job
    import models

    def call(folder=home / "original"):
        found = job.open_job(home / "original", [str(FORGOTTEN)], cpu())
        models.load_weights(found.model, folder / "model.safetensors")
        return found

    return call
