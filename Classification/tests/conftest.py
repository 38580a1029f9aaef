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

from helpers import NUM_FORGET, cpu, script, tiny  # noqa: E402


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a trained original (runs/original), a mask of 60 random samples at ratio 0.5, and the digits' cache in data/."""
    home = tmp_path_factory.mktemp("home")
    assert script(*tiny("--data_dir", home / "data", "--save_dir", home / "original")) == 0
    assert script("generate_mask", "--model_path", home / "original", "--num_forget", NUM_FORGET, "--save_dir", home / "mask") == 0
    return home


@pytest.fixture(scope="session")
def unlearn(home, tmp_path_factory):
    """unlearn(method, *flags) -> run folder of that method on the original, 60 random samples forgotten."""

    def call(method, *flags, forget=("--num_forget", NUM_FORGET)):
        folder = tmp_path_factory.mktemp(method) / "run"
        mask = ("--mask_path", home / "mask") if method == "salun" and "--mask_path" not in flags else ()
        assert (
            script(
                "unlearn",
                "--method",
                method,
                "--model_path",
                home / "original",
                *forget,
                *mask,
                "--precision",
                "fp32",
                "--save_dir",
                folder,
                *flags,
            )
            == 0
        )
        return folder

    return call


@pytest.fixture(scope="session")
def opened(home):
    """The original model, its splits and the forget set, as the scripts see them."""
    import job

    flags = {"forget_class": None, "num_forget": NUM_FORGET, "forget_indices": None, "split_seed": None}

    def call(path=home / "original", **other):
        kind = "train" if path == home / "original" else "unlearn"
        return job.open_job(path, flags | other, cpu(), kind=kind)

    return call
