"""Tests run the scripts' own main() on tiny data in this process, so that each import is paid for once."""

import functools
import os
import sys
import tempfile
from pathlib import Path

import pytest
import sklearn.datasets
import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["SALUN_DEBUG"] = "1"  # what nobody foresaw fails a test
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="salun-tests-")  # what is decoded of own images
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are the same on every machine: on the CPU
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are faster so

import methods  # noqa: E402
from helpers import FORGOTTEN, TINY, cpu, ok  # noqa: E402

sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
tqdm.tqdm.monitor_interval = 0  # no thread that a fork could catch with a lock


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with a trained original, a mask of the digit three at ratio 0.5, a classifier, and the caches in data/."""
    home = tmp_path_factory.mktemp("home")
    data_dir = ("--data_dir", home / "data")
    ok("train", TINY, *data_dir, "--save_dir", home / "original")
    start = ("--model_path", home / "original", "--forget_class", FORGOTTEN)
    ok("generate_mask", *start, "--batch_size 64 --save_dir", home / "mask")
    ok("train_classifier", "--epochs 3 --lr 3e-3 --precision fp32", *data_dir, "--save_dir", home / "classifier")
    return home


@pytest.fixture(scope="session")
def unlearn(home, tmp_path_factory):
    """unlearn(method, *flags) -> run folder of that method on the original, the digit three forgotten."""

    def call(method, *flags, forget=("--forget_class", FORGOTTEN)):
        folder = tmp_path_factory.mktemp(method) / "run"
        mask = ("--mask_path", home / "mask") if method in methods.NEEDS_MASK and "--mask_path" not in flags else ()
        start = ("--method", method, "--model_path", home / "original", *forget, *mask)
        ok("unlearn", *start, "--batch_size 32 --precision fp32 --save_dir", folder, *flags)
        return folder

    return call


@pytest.fixture(scope="session")
def load(home):
    """load(run folder) -> the Task of the original with that run's U-Net: what the scripts see."""
    import concepts
    import pipelines
    import task

    def call(folder=home / "original", **flags):
        flags = dict.fromkeys(concepts.CONCEPT_FLAGS) | (flags or {"forget_class": [FORGOTTEN]})
        loaded = task.load_task(home / "original", flags, cpu())
        loaded.family.model.load_state_dict(pipelines.open_pipeline(folder)[0].model.state_dict())
        return loaded

    return call
