"""Every script with --device cuda on a GPU that is a fake: no device fault, and the CPU's results. Each test names a mutation."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import benchmark
import data
import fake_cuda
import methods
import models
import passes
import task
import trainer
from files import read_tensors
from helpers import FORGOTTEN, TINY, ok, script

pytestmark = pytest.mark.slow
MASK, WEIGHTS = "mask.safetensors", "model.safetensors"
SHORT = {"esd": "--sample_steps 3", "sa": "--replay 2 --replay_steps 4 --fisher_timesteps 2 --ewc 1e-4"}
SHORT |= {"sfron": "--batch_size 200"}  # of its passes over all images


@pytest.fixture
def on_both(tmp_path, monkeypatch):
    """on_both(script, flags, file) -> what that file holds, {name: value}, as the CPU and as the fake GPU make it."""

    def call(name, *flags, file=WEIGHTS):
        ok(name, *flags, "--device cpu --save_dir", tmp_path / "cpu")
        with fake_cuda.installed(), monkeypatch.context() as patch:
            patch.setattr(torch, "channels_last", torch.contiguous_format)  # a GPU's format, in which convolutions round differently
            ok(name, *flags, "--device cuda --save_dir", tmp_path / "cuda")
        assert json.loads((tmp_path / "cuda" / "args.json").read_text())["computed_on"] == "cuda"
        paths = [tmp_path / device / file for device in ("cpu", "cuda")]
        return [json.loads(path.read_text()) if path.suffix == ".json" else read_tensors(path)[0] for path in paths]

    return call


def same(results):
    here, there = results
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def pictures(folder):
    return {path.name: np.array(Image.open(path)).astype(int) for path in sorted((folder / "samples").glob("*.png"))}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_equals_the_cpu(precision, on_both, home):
    """Mutation: leave a batch's noise or timesteps, or the averaged weights, on the CPU."""
    assert same(on_both("train", TINY, "--steps 4 --save_every 4 --data_dir", home / "data", "--precision", precision))


def test_the_classifier_equals_the_cpu(on_both, home):
    """Mutation: leave the labels on the CPU."""
    flags = "--dataset digits --arch cnn --lr 3e-3 --head_lr_factor 1 --epochs 1 --precision fp32 --data_dir"
    assert same(on_both("train_classifier", flags, home / "data"))


def test_half_precision_scales_its_gradients(home, tmp_path, monkeypatch):
    """Mutation: hand the scaler's optimizer fused=True, step without the scaler, leave out the scale in passes.py, or square gradients in
    float16."""
    flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--device cuda --precision")
    with fake_cuda.installed(fused=True):
        for precision in ("fp16", "fp32"):
            ok("generate_mask", *flags, precision, "--save_dir", tmp_path / precision / "mask")
            start = ("unlearn", *flags, precision, "--steps 2 --lr 1e-3 --batch_size 4 --mask_path", home / "mask")
            ok(*start, "--save_dir", tmp_path / precision / "run")
    half, full = (read_tensors(tmp_path / precision / "mask" / MASK)[0] for precision in ("fp16", "fp32"))
    monkeypatch.setattr(passes, "squared_error", lambda *pair: 1e-4 * trainer.squared_error(*pair))  # as small as of larger images
    with fake_cuda.installed():
        found = []
        for precision in ("fp16", "fp32"):
            AcceleratorState._reset_state(reset_partial_state=True)
            accelerator = trainer.make_accelerator("cuda", precision)
            model = task.load_model(home / "original", accelerator)[0]
            drawn = torch.randint(256, (2, 8, 8, 1), generator=data.make_generator("x")).to(torch.uint8), torch.tensor([0, 1])
            images = data.Split(*(tensor.to(accelerator.device) for tensor in drawn), torch.arange(2), "retain")
            found.append(passes.fisher_diagonal(model, images, accelerator, timesteps=64, seed=1))
    for name, tensor in found[1].items():  # float16 would overflow here
        torch.testing.assert_close(found[0][name], tensor, msg=name)
    differing = sum(int(np.unpackbits((half[name] ^ full[name]).numpy()).sum()) for name in full)
    assert 0 < differing < 0.05 * 8 * sum(part.numel() for part in full.values())
    half, full = (read_tensors(tmp_path / precision / "run" / WEIGHTS)[0] for precision in ("fp16", "fp32"))
    for name, tensor in full.items():
        torch.testing.assert_close(half[name], tensor, rtol=0.02, atol=2.5e-3, msg=name)


@pytest.mark.parametrize("method, more", [("salun", "--mask_path {home}/mask"), ("ga", "")])
def test_no_step_waits_for_the_gpu(method, more, home, tmp_path):
    """Clipping is off: it groups gradients by device in C++, which sees the CPU. Mutation: copy noise from memory that is not pinned."""
    waits = []
    for steps in (1, 2, 4):  # the first run of a process waits once more
        flags = (
            f"--method {method} --steps {steps} --lr 1e-3 --batch_size 4 --grad_clip 0 --device cuda {more.format(home=home)} --save_dir"
        )
        with fake_cuda.installed(fused=True) as gpu:
            ok("unlearn", "--model_path", home / "original", "--forget_class", FORGOTTEN, flags, tmp_path / str(steps))
        waits.append(gpu.waits)
    assert waits[1] == waits[2]


def test_the_mask_equals_the_cpu(on_both, home):
    """Mutation: leave the sum of the gradients on the CPU."""
    assert same(on_both("generate_mask", "--model_path", home / "original", "--forget_class", FORGOTTEN, file=MASK))


@pytest.mark.parametrize("name", methods.METHODS)
def test_unlearning_equals_the_cpu(name, on_both, home):
    """Mutation: leave the mask on the CPU, or make a new tensor without device=."""
    mask = () if name in methods.TAKES_NO_MASK else ("--mask_path", home / "mask")
    start = ("--method", name, "--model_path", home / "original", "--forget_class", FORGOTTEN, *mask)
    assert same(on_both("unlearn", *start, "--steps 3 --batch_size 16 --precision fp32", SHORT.get(name, "")))


@pytest.mark.parametrize("flags", ["--sampler ddim --eta 1", "--sampler ddpm --cond_scale 0 --precision bf16"])
def test_samples_and_their_measures_equal_the_cpu(flags, home, tmp_path):
    """Mutation: draw the noise of a step, or the timesteps, on the CPU; leave samples and classifier on two devices."""
    flags = ("--model_path", home / "original", flags, "--steps 3 --num_per_class 3 --batch_size 30 --save_dir")
    measure = ("--features classifier --num_reference 50 --classifier", home / "classifier", "--forget_class", FORGOTTEN, "--sample_path")
    ok("sample", *flags, tmp_path / "cpu")
    ok("evaluate", *measure, tmp_path / "cpu", "--save_dir", tmp_path / "cpu_measured")
    with fake_cuda.installed():
        ok("sample", *flags, tmp_path / "cuda", "--device cuda")
        ok("evaluate", *measure, tmp_path / "cpu", "--save_dir", tmp_path / "cuda_measured", "--device cuda")
    here, there = pictures(tmp_path / "cpu"), pictures(tmp_path / "cuda")
    assert len(here) == 30 and here.keys() == there.keys()
    # A GPU's channels_last rounds bf16 differently: a few pixels move by a few levels (mean 0.03), other noise moves all by tens.
    assert np.mean([np.abs(here[name] - there[name]) for name in here]) < 0.25
    here, there = ((tmp_path / f"{device}_measured" / "metrics.json").read_bytes() for device in ("cpu", "cuda"))
    assert here == there


def test_relearning_equals_the_cpu(on_both, home, tmp_path):
    """Mutation: leave the chosen images on the CPU."""
    start = ("unlearn --method rl --steps 1 --batch_size 4 --model_path", home / "original", "--forget_class", FORGOTTEN)
    ok(*" ".join(map(str, start)).split(), "--precision fp32 --save_dir", tmp_path / "unlearned")
    assert same(on_both("relearn", "--model_path", tmp_path / "unlearned", "--steps 2 --lr 1e-3 --batch_size 8 --precision fp32"))


def test_a_run_resumes_on_cuda(home, tmp_path, monkeypatch):
    """Mutation: load the optimizer's state in another memory format than its parameters': fused optimizers do not look at strides."""

    def save_and_stop(self, save=trainer.Trainer._save_checkpoint):
        save(self)
        raise KeyboardInterrupt

    flags = ("train", TINY, "--steps 3 --device cuda --data_dir", home / "data", "--save_dir")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    with fake_cuda.installed(fused=True):
        ok(*flags, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_save_checkpoint", save_and_stop)
            assert script(*flags, tmp_path / "cut") != 0
        ok(*flags, tmp_path / "cut", "--resume")
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_the_benchmark_runs_on_cuda(monkeypatch):
    """Mutation: make the labels without device=."""
    monkeypatch.setattr(benchmark, "paper_unet", lambda here: trainer.prepare(models.build_unet("tiny", 10, 3, 32, seed=0), here))
    results = {}
    with fake_cuda.installed(fused=True):
        benchmark.unlearning_steps(results, trainer.make_accelerator("cuda", "fp32"), rounds=1, batch_size=2)
    assert len(results) == 2
