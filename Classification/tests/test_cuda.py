"""The scripts with --device cuda on a GPU that is a fake (fake_cuda.py): no device fault, and the CPU's results. Each test names a mutation."""

import json

import pytest
import torch

import fake_cuda
import methods
from helpers import NUM_FORGET, TINY, ok
from run_folder import read_tensors
from test_methods import short

pytestmark = pytest.mark.slow


@pytest.fixture
def on_both(tmp_path):
    """on_both(script, flags, file) -> the tensors of that file as the CPU and as the fake GPU make it."""

    def call(name, *flags, file="model.safetensors"):
        ok(name, *flags, "--device cpu --save_dir", tmp_path / "cpu")
        with fake_cuda.installed():
            ok(name, *flags, "--device cuda --save_dir", tmp_path / "cuda")
        assert json.loads((tmp_path / "cuda" / "args.json").read_text())["computed_on"] == "cuda"
        return tuple(read_tensors(tmp_path / device / file)[0] for device in ("cpu", "cuda"))

    return call


def same(results):
    here, there = results
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_equals_the_cpu(precision, on_both, home):
    """Mutation: leave a batch's labels, or the model, on the CPU."""
    assert same(on_both("train", TINY, "--epochs 1 --data_dir", home / "data", "--precision", precision))


def test_the_mask_equals_the_cpu(on_both, home):
    """Mutation: leave the sum of the gradients on the CPU."""
    start = ("--model_path", home / "original", "--num_forget", NUM_FORGET)
    assert same(on_both("generate_mask", *start, file="mask.safetensors"))


@pytest.mark.parametrize("name", methods.METHODS)
def test_unlearning_equals_the_cpu(name, on_both, home):
    """Mutation: leave the mask on the CPU, or make a new tensor without device=."""
    mask = () if name in methods.TAKES_NO_MASK else ("--mask_path", home / "mask")
    start = ("--method", name, "--model_path", home / "original", "--num_forget", NUM_FORGET, *mask)
    assert same(on_both("unlearn", *start, short(name), "--precision fp32"))
