"""Tests run the scripts' own main() on tiny data in this process, so that each import is paid for once."""

import argparse
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

NO_CONCEPT = dict(dataset=None, data_dir=None, caption=None, forget_class=None, forget_prompt=None, target_prompt=None, retain_prompts=None)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a trained original, a mask of the digit three at ratio 0.5, a classifier, and the caches in data/."""
    home = tmp_path_factory.mktemp("home")
    data_dir = ("--data_dir", home / "data")
    assert script(*tiny(*data_dir, "--save_dir", home / "original")) == 0
    start = ("--model_path", home / "original", "--forget_class", FORGOTTEN)
    assert script("generate_mask", *start, "--batch_size", 64, "--save_dir", home / "mask") == 0
    flags = ("--epochs", 3, "--lr", "3e-3", "--precision", "fp32")
    assert script("train_classifier", *flags, *data_dir, "--save_dir", home / "classifier") == 0
    return home


@pytest.fixture(scope="session")
def unlearn(home, tmp_path_factory):
    """unlearn(method, *flags) -> run folder of that method on the original, the digit three forgotten."""

    def call(method, *flags, forget=("--forget_class", FORGOTTEN), model=None):
        folder = tmp_path_factory.mktemp(method) / "run"
        mask = ("--mask_path", home / "mask") if method == "salun" and "--mask_path" not in flags else ()
        base = ("--method", method, "--model_path", model or home / "original", "--batch_size", 32, "--precision", "fp32")
        assert script("unlearn", *base, *forget, *mask, *flags, "--save_dir", folder) == 0
        return folder

    return call


@pytest.fixture(scope="session")
def opened(home):
    """opened(run folder) -> the Job of the original with that run's U-Net: what the scripts see."""
    import job
    import models

    def call(folder=home / "original", **concept):
        flags = NO_CONCEPT | (concept or {"forget_class": [FORGOTTEN]})
        accelerator = cpu()
        found = job.open_job(argparse.Namespace(model_path=home / "original", **flags), accelerator)
        found.pipeline.unet.load_state_dict(models.open_pipeline(folder)[0].unet.state_dict())
        return found

    return call
