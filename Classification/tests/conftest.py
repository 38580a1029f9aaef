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
from helpers import NUM_FORGET, TINY, cpu, ok  # noqa: E402


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a trained original (runs/original), a mask of 60 random samples at ratio 0.5, and the digits' cache in data/."""
    home = tmp_path_factory.mktemp("home")
    ok("train", TINY, "--data_dir", home / "data", "--save_dir", home / "original")
    ok("generate_mask", "--model_path", home / "original", "--num_forget", NUM_FORGET, "--save_dir", home / "mask")
    return home


@pytest.fixture(scope="session")
def unlearn(home, tmp_path_factory):
    """unlearn(method, *flags) -> run folder of that method on the original, 60 random samples forgotten."""

    def call(method, *flags, forget=f"--num_forget {NUM_FORGET}"):
        folder = tmp_path_factory.mktemp(method) / "run"
        mask = ("--mask_path", home / "mask") if method in methods.NEEDS_MASK and "--mask_path" not in flags else ()
        start = ("--method", method, "--model_path", home / "original", forget)
        ok("unlearn", *start, *mask, "--precision fp32 --save_dir", folder, *flags)
        return folder

    return call


@pytest.fixture(scope="session")
def load(home):
    """load() -> the Task of the original model, load(folder) -> that of an unlearned one: model, forget set, retain set."""
    import task

    flags = {"forget_class": None, "num_forget": NUM_FORGET, "forget_indices": None, "split_seed": None}

    def call(path=home / "original", precision="fp32", **other):
        kind = "train" if path == home / "original" else "unlearn"
        return task.load_task(path, flags | other, cpu(precision), kind=kind)

    return call
