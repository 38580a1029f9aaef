"""Every script with --device cuda on a GPU that is a fake: no device fault, and the CPU's results. Each test names a mutation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark
import fake_cuda
import latents
import methods
import passes
import sampling
import trainer
from files import read_tensors
from helpers import FORGOTTEN, TINY, ok, script

pytestmark = pytest.mark.slow
MODEL, MASK = "model/unet/diffusion_pytorch_model.safetensors", "mask.safetensors"
SHORT = {"esd": "--sample_steps 4", "ca": "--num_images 2 --generation_steps 2 --generation_guidance_scale 2"}


@pytest.fixture
def on_both(tmp_path, monkeypatch):
    """on_both(script, flags, file) -> what that file holds, {name: value}, as the CPU and as the fake GPU make it."""

    monkeypatch.setattr(latents, "cached", lambda data_dir, what, accelerator, make, *rest: make())  # each device is to encode for itself
    monkeypatch.setattr(sampling, "draw", lambda *args, draw=sampling.draw, **options: draw(*args, **options | {"steps": 2}))

    def call(name, *flags, file=MODEL):
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


@pytest.mark.parametrize("flags", ["--precision fp32 --save_every 2", "--precision bf16 --gradient_checkpointing"])
def test_training_equals_the_cpu(flags, on_both, home):
    """Mutation: leave a batch's noise or timesteps, the embeddings or the averaged weights on the CPU."""
    assert same(on_both("train", TINY, "--vae_steps 2 --steps 2 --limit 60 --batch_size 4", flags, "--data_dir", home / "data"))


def test_the_classifier_equals_the_cpu(on_both, home):
    """Mutation: leave the labels on the CPU."""
    flags = ("--epochs 1 --lr 3e-3 --precision fp32 --data_dir", home / "data")
    assert same(on_both("train_classifier", *flags, file="model.safetensors"))


def test_the_mask_equals_the_cpu(on_both, home):
    """Mutation: leave the sum of the gradients, or the prompts' numbers, on the CPU."""
    start = ("--model_path", home / "original", "--forget_class", FORGOTTEN)
    assert same(on_both("generate_mask", *start, "--batch_size 64", file=MASK))


@pytest.mark.parametrize("name", methods.METHODS)
def test_unlearning_equals_the_cpu(name, on_both, home):
    """Mutation: leave the mask on the CPU, or make a new tensor without device=."""
    mask = () if name in methods.TAKES_NO_MASK else ("--train_method full --mask_path", home / "mask")
    steps = "" if name in methods.TAKES_NO_MASK else "--steps 2"
    start = ("--method", name, "--model_path", home / "original", "--forget_class", FORGOTTEN, *mask, steps)
    assert same(on_both("unlearn", *start, SHORT.get(name, ""), "--batch_size 4 --precision fp32"))


def test_own_images_of_a_prompt_equal_the_cpu(on_both, home):
    """Mutation: draw the original's images, or add their latents, on two devices."""
    prompts = ("--forget_prompt", "an image of a three", "--target_prompt", "an image of a five", "--retain_prompts", "an image of a six")
    flags = f"--method rl --steps 2 --save_every 2 --single_file --batch_size 4 --precision bf16 {SHORT['ca']}"
    assert same(on_both("unlearn", "--model_path", home / "original", *prompts, flags))


def test_half_precision_scales_its_gradients(home, tmp_path):
    """Mutation: hand the scaler's optimizer fused=True, step without the scaler, or leave out the scale in passes.mean_gradient."""
    task = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--device cuda --precision")
    with fake_cuda.installed(fused=True):
        for precision in ("fp16", "fp32"):
            ok("generate_mask", *task, precision, "--batch_size 64 --epochs 1", "--save_dir", tmp_path / precision / "mask")
            start = ("unlearn", *task, precision, "--steps 2 --lr 1e-3 --batch_size 4 --mask_path", home / "mask")
            ok(*start, "--save_dir", tmp_path / precision / "run")
    half, full = (read_tensors(tmp_path / precision / "mask" / MASK)[0] for precision in ("fp16", "fp32"))
    differing = sum(int(np.unpackbits((half[name] ^ full[name]).numpy()).sum()) for name in full)
    assert 0 < differing < 0.05 * 8 * sum(part.numel() for part in full.values())
    half, full = (read_tensors(tmp_path / precision / "run" / MODEL)[0] for precision in ("fp16", "fp32"))
    for name, tensor in full.items():
        torch.testing.assert_close(half[name], tensor, rtol=0.02, atol=2.5e-3, msg=name)


@pytest.mark.parametrize("method, more", [("salun", "--mask_path {home}/mask"), ("ga", "")])
def test_no_step_waits_for_the_gpu(method, more, home, tmp_path):
    """Clipping is off: it groups gradients by device in C++, which sees the CPU. Mutation: copy noise from memory that is not pinned."""
    waits = []
    for steps in (2, 4):
        flags = (
            f"--method {method} --steps {steps} --lr 1e-3 --batch_size 4 --grad_clip 0 --device cuda {more.format(home=home)} --save_dir"
        )
        with fake_cuda.installed(fused=True) as gpu:
            ok("unlearn", "--model_path", home / "original", "--forget_class", FORGOTTEN, flags, tmp_path / str(steps))
        waits.append(gpu.waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize("flags", ["--sampler ddim --precision fp32", "--sampler own --precision bf16"])
def test_samples_and_their_measures_equal_the_cpu(flags, home, tmp_path):
    """Mutation: leave an embedding, or the starting noise, on the CPU; leave samples and classifier on two devices."""
    flags = ("--model_path", home / "original", flags, "--num_samples 2 --steps 3 --guidance_scale 2 --batch_size 20 --save_dir")
    measure = ("--features classifier --num_reference 50 --classifier", home / "classifier", "--forget_class", FORGOTTEN, "--sample_path")
    ok("generate_images", *flags, tmp_path / "cpu", "--device cpu")
    ok("evaluate", *measure, tmp_path / "cpu", "--save_dir", tmp_path / "cpu_measured", "--device cpu")
    with fake_cuda.installed():
        ok("generate_images", *flags, tmp_path / "cuda", "--device cuda")
        ok("evaluate", *measure, tmp_path / "cpu", "--save_dir", tmp_path / "cuda_measured", "--device cuda")
    here, there = pictures(tmp_path / "cpu"), pictures(tmp_path / "cuda")
    assert len(here) == 20 and here.keys() == there.keys() and all(np.array_equal(here[name], there[name]) for name in here)
    here, there = ((tmp_path / f"{device}_measured" / "metrics.json").read_bytes() for device in ("cpu", "cuda"))
    assert here == there


def test_relearning_equals_the_cpu(on_both, home, tmp_path):
    """Mutation: leave the chosen images on the CPU."""
    start = ("unlearn --method rl --steps 1 --batch_size 4 --model_path", home / "original", "--forget_class", FORGOTTEN)
    ok(*" ".join(map(str, start)).split(), "--precision fp32 --save_dir", tmp_path / "unlearned")
    assert same(on_both("relearn", "--model_path", tmp_path / "unlearned", "--steps 2 --lr 1e-3 --batch_size 4 --precision fp32"))


def test_a_run_resumes_on_cuda(home, tmp_path, monkeypatch):
    """Mutation: leave the optimizer's state on the CPU."""

    def save_and_stop(self, save=trainer.Trainer._save_checkpoint):
        save(self)
        raise KeyboardInterrupt

    start = ("--method ga --model_path", home / "original", "--forget_class", FORGOTTEN, "--train_method full")
    flags = ("unlearn", *start, "--steps 2 --batch_size 4 --precision fp32 --device cuda --save_dir")
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    with fake_cuda.installed(fused=True):
        ok(*flags, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_save_checkpoint", save_and_stop)
            assert script(*flags, tmp_path / "cut") != 0
        ok(*flags, tmp_path / "cut", "--resume")
    whole, cut = ((tmp_path / name / MODEL).read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_the_benchmark_runs_on_cuda(tmp_path, capsys, monkeypatch):
    """Mutation: hand check_change weights of one device and a mask of another."""
    magnitudes = lambda family, *_, **__: {name: weights.detach().abs() for name, weights in family.model.named_parameters()}  # noqa: E731
    monkeypatch.setattr(passes, "mean_gradient", magnitudes)
    monkeypatch.setitem(benchmark.MORE, "sdxl", benchmark.MORE["sdxl"] | {"transformer_layers_per_block": 1})  # of 2 and 10: time alone
    monkeypatch.setattr(benchmark, "one_image_each", lambda moments, split=benchmark.one_image_each: split(moments[..., :8, :8]))
    with fake_cuda.installed(fused=True):
        for part in ("sd-mask", "sd-masked", "sdxl-bf16-mask", "sdxl-bf16-masked"):
            ok("benchmark", "--divide 32 --precision fp32 --device cuda --folder", tmp_path, "--part", part)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["changed, share"] > 0
