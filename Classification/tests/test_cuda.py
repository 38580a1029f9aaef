"""Every script with --device cuda on a GPU that is a fake: no device fault, and the CPU's results. Each test names a mutation."""

import contextlib
import json

import numpy as np
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
MASK, WEIGHTS = "mask.safetensors", "model.safetensors"


@pytest.fixture
def on_both(tmp_path):
    """on_both(script, flags, file) -> what that file holds, {name: value}, as the CPU and as the fake GPU make it."""

    def call(name, *flags, file=WEIGHTS):
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


def test_half_precision_scales_its_gradients(home, tmp_path):
    """Mutation: hand the scaler's optimizer fused=True, step without the scaler, or leave out the scale in passes.mean_gradient."""
    task = ("--model_path", home / "original", "--num_forget", NUM_FORGET, "--device cuda --precision")
    with fake_cuda.installed(fused=True):
        for precision in ("fp16", "fp32"):
            ok("generate_mask", *task, precision, "--save_dir", tmp_path / precision / "mask")
            start = ("unlearn", *task, precision, "--lr 0.1 --epochs 1 --batch_size 2000 --mask_path", home / "mask")
            ok(*start, "--save_dir", tmp_path / precision / "run")
    half, full = (read_tensors(tmp_path / precision / "mask" / MASK)[0] for precision in ("fp16", "fp32"))
    differing = sum(int(np.unpackbits((half[name] ^ full[name]).numpy()).sum()) for name in full)
    assert 0 < differing < 0.02 * 8 * sum(part.numel() for part in full.values())
    half, full = (read_tensors(tmp_path / precision / "run" / WEIGHTS)[0] for precision in ("fp16", "fp32"))
    for name, tensor in full.items():
        torch.testing.assert_close(half[name], tensor, rtol=0.02, atol=2e-3, msg=name)


@pytest.mark.parametrize("method, more", [("salun", "--mask_path {home}/mask"), ("scrub", ""), ("retrain", "")])
def test_no_step_waits_for_the_gpu(method, more, home, tmp_path, monkeypatch):
    """Mutation: copy a batch's positions or labels from memory that is not pinned, or read a loss in every step."""
    monkeypatch.setattr(trainer, "LOG_STEPS", 1000)
    waits = []
    for size in (120, 60):  # one pass over the data in twice as many steps
        flags = f"--method {method} --epochs 1 --lr 0.01 --batch_size {size} --device cuda {more.format(home=home)} --save_dir"
        with fake_cuda.installed(fused=True) as gpu:
            ok("unlearn", "--model_path", home / "original", "--num_forget", NUM_FORGET, flags, tmp_path / str(size))
        waits.append(gpu.waits)
    assert waits[0] == waits[1]


def test_the_mask_equals_the_cpu(on_both, home):
    """Mutation: leave the sum of the gradients on the CPU."""
    assert same(on_both("generate_mask", "--model_path", home / "original", "--num_forget", NUM_FORGET, file=MASK))


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


def test_scripts_over_many_runs_equal_the_cpu(home, tmp_path):
    """Mutation: leave the labels of the images to learn again on the CPU."""
    for seed in ("1", "2"):
        original = tmp_path / f"original_{seed}"
        ok("train", TINY, "--epochs 1 --device cpu --data_dir", home / "data", "--seed", seed, "--save_dir", original)
        for method in ("retrain", "ft"):
            start = ("--method", method, "--model_path", original, "--num_forget", NUM_FORGET, "--epochs 1 --lr 0.01 --seed", seed)
            ok("unlearn", *start, "--precision fp32 --device cpu --save_dir", tmp_path / "runs" / f"{method}_{seed}")
    found = {}
    for device in ("cpu", "cuda"):
        with fake_cuda.installed() if device == "cuda" else contextlib.nullcontext():
            for name in ("evaluate_many", "relearn"):
                ok(name, tmp_path / "runs", "--precision fp32 --device", device)
        found[device] = {path.name: path.read_text() for path in (tmp_path / "runs").glob("*.json")}
    assert len(found["cpu"]) >= 2 and found["cpu"] == found["cuda"]


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
