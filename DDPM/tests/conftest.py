"""Tests run the scripts' own main() on tiny data in this process, so that each import is paid for once."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["SALUN_DEBUG"] = "1"  # what nobody foresaw fails a test
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="salun-tests-")  # what is decoded of own images
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are the same on every machine: on the CPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are faster so

import methods  # noqa: E402
from helpers import FORGOTTEN, TINY, cpu, ok  # noqa: E402


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a trained original, a mask of the digit 3 at ratio 0.5, a classifier, and the digits' cache in data/."""
    home = tmp_path_factory.mktemp("home")
    ok("train", TINY, "--data_dir", home / "data", "--save_dir", home / "original")
    ok("generate_mask", "--model_path", home / "original", "--forget_class", FORGOTTEN, "--save_dir", home / "mask")
    flags = "--dataset digits --arch cnn --lr 3e-3 --head_lr_factor 1 --epochs 3 --batch_size 64 --data_dir"
    ok("train_classifier", flags, home / "data", "--save_dir", home / "classifier")
    return home


@pytest.fixture(scope="session")
def unlearn(home, tmp_path_factory):
    """unlearn(method, *flags) -> run folder of that method on the original, the digit 3 forgotten."""

    def call(method, *flags, forget=(FORGOTTEN,)):
        folder = tmp_path_factory.mktemp(method) / "run"
        mask = ("--mask_path", home / "mask") if method in methods.NEEDS_MASK and "--mask_path" not in flags else ()
        start = ("--method", method, "--model_path", home / "original", "--forget_class", *forget)
        ok("unlearn", *start, *mask, "--batch_size 32 --precision fp32 --save_dir", folder, *flags)
        return folder

    return call


@pytest.fixture(scope="session")
def load(home):
    """load(run folder) -> the Task of the original with that run's weights: what the scripts see."""
    import models
    import task

    def call(folder=home / "original"):
        loaded = task.load_task(home / "original", [str(FORGOTTEN)], cpu())
        models.load_weights(loaded.model, folder / "model.safetensors")
        return loaded

    return call
