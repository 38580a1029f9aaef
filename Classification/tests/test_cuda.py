"""Every script with --device cuda on a GPU that is a fake: no device fault, and the CPU's results. Each test names a mutation."""

import json

import pytest
import torch

import benchmark
import fake_cuda
import methods
import models
import trainer
from files import read_tensors
from helpers import NUM_FORGET, TINY, ok, script
from test_methods import short

pytestmark = pytest.mark.slow


@pytest.fixture
def on_both(tmp_path):
    """on_both(script, flags, file) -> what that file holds, {name: value}, as the CPU and as the fake GPU make it."""

    def call(name, *flags, file="model.safetensors"):
        ok(name, *flags, "--device cpu --save_dir", tmp_path / "cpu")
        with fake_cuda.installed():
            ok(name, *flags, "--device cuda --save_dir", tmp_path / "cuda")
        assert json.loads((tmp_path / "cuda" / "args.json").read_text())["computed_on"] == "cuda"
        paths = [tmp_path / device / file for device in ("cpu", "cuda")]
        return [json.loads(path.read_text()) if path.suffix == ".json" else read_tensors(path)[0] for path in paths]

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
    assert same(on_both("generate_mask", "--model_path", home / "original", "--num_forget", NUM_FORGET, file="mask.safetensors"))


@pytest.mark.parametrize("name", methods.METHODS)
def test_unlearning_equals_the_cpu(name, on_both, home):
    """Mutation: leave the mask on the CPU, or make a new tensor without device=."""
    mask = () if name in methods.TAKES_NO_MASK else ("--mask_path", home / "mask")
    start = ("--method", name, "--model_path", home / "original", "--num_forget", NUM_FORGET, *mask)
    assert same(on_both("unlearn", *start, short(name), "--precision fp32"))


def test_measures_equal_the_cpu(on_both, home):
    """Mutation: leave out .cpu() where logits or labels are handed over."""
    here, there = on_both("evaluate", "--precision fp32 --forget_class 3 --model_path", home / "original", file="metrics.json")
    assert here == there and "UA" in here


def test_a_run_resumes_on_cuda(home, tmp_path, monkeypatch):
    """Mutation: load the optimizer's state in another memory format than its parameters': fused optimizers do not look at strides."""

    def save_and_stop(self, save=trainer.Trainer._save_checkpoint):
        save(self)
        raise KeyboardInterrupt

    flags = ("train", TINY, "--optimizer adam --lr 1e-3 --epochs 2 --device cuda --data_dir", home / "data", "--save_dir")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    with fake_cuda.installed(fused=True):
        ok(*flags, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_save_checkpoint", save_and_stop)
            assert script(*flags, tmp_path / "cut") != 0
        ok(*flags, tmp_path / "cut", "--resume")
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize("arch", models.MODELS)
def test_every_model_moves_to_cuda(arch):
    """Mutation: keep pixel_mean as an attribute and not as a buffer."""
    size = 32 if arch in ("vgg16_bn", "swin_t") else 8
    model, images = models.build(arch, 10, 3, size, 0).eval(), torch.rand(2, 3, size, size)
    with torch.no_grad(), fake_cuda.installed():
        assert torch.equal(model(images), model.to("cuda")(images.to("cuda")).cpu())


def test_the_benchmark_runs_on_cuda():
    """Mutation: make the labels without device=."""
    with fake_cuda.installed(fused=True):
        step, memory = benchmark.make_step("cnn", 0.5, True, True, "cuda", batch=4)
        step()
    assert memory
