"""Samples follow from seed, class and index alone. Each test names the mutation that would break it."""

import gc
import weakref

import pytest
import torch

import data
import sampling
from cli import RunError
from helpers import cpu, ok, words
from trainer import predict_noise

KEYS = [(label, index) for label in (0, 3, 7) for index in range(4)]
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def model(load):
    return load().model


@pytest.fixture(scope="module")
def accelerator():
    return cpu()


def draw(model, accelerator, keys=KEYS, **options):
    return sampling.draw(model, keys, accelerator, null=10, **{"seed": 1, "steps": 8} | options)


def assert_same(a, b):
    """Equal but for the rounding of sums in another order."""
    difference = (a.int() - b.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("options", [{}, {"sampler": "ddpm"}, {"eta": 1.0}, {"cond_scale": 0.0}])
def test_any_batch_size_gives_the_same_images(options, model, accelerator):
    """Mutation: one generator for the batch."""
    together = draw(model, accelerator, **options)
    alone = torch.cat([draw(model, accelerator, [key], **options) for key in KEYS])
    assert_same(together, alone)
    assert_same(draw(model, accelerator, KEYS[::-1], **options).flip(0), together)
    assert not torch.equal(draw(model, accelerator, seed=2, **options), together)


def test_guidance_is_ho_and_salimans(model):
    """Mutation: the other convention, null + w * (conditional - null)."""
    x, t, y = torch.randn(5, *SHAPE), torch.randint(1000, (5,)), torch.arange(5)
    with torch.no_grad():
        conditional, null = predict_noise(model, x, t, y), predict_noise(model, x, t, torch.full_like(y, 10))
        for w in (0.0, 0.5, 2.0):
            torch.testing.assert_close(sampling.guided(model, x, t, y, 10, w), (1 + w) * conditional - w * null, rtol=1e-4, atol=1e-5)


def test_guidance_takes_one_forward_pass_per_step(model, accelerator):
    """Mutation: two calls of the model."""
    sizes = []
    hook = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    draw(model, accelerator)
    draw(model, accelerator, cond_scale=0.0)
    hook.remove()
    assert sizes == [2 * len(KEYS)] * 8 + [len(KEYS)] * 8


@pytest.mark.slow
def test_no_step_stays_in_memory(model, accelerator, monkeypatch):
    """Mutation: collect x in a list."""
    make, alive = sampling.make_scheduler, []

    def watched(*arguments):
        scheduler = make(*arguments)
        step = scheduler.step

        def counted(noise, t, x, **options):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 1  # x itself
            result = step(noise, t, x, **options)
            alive.append(weakref.ref(result.prev_sample))
            return result

        scheduler.step = counted
        return scheduler

    monkeypatch.setattr(sampling, "make_scheduler", watched)
    draw(model, accelerator, steps=12)
    assert len(alive) == 12


def test_an_interrupted_run_draws_what_is_missing(home, tmp_path):
    """Mutation: draw all again; or take seeds from the position in the batch."""

    def command(*more):
        flags = "--classes x0,1,2,4,5,6 3 --num_per_class 3 5 --steps 6 --batch_size 4 --save_dir"
        return ("sample --model_path", home / "original", flags, tmp_path / "run", *more)

    ok(*words(*command()))
    folder = tmp_path / "run" / "samples"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == sorted(f"{label}_{index:05d}.png" for label in (3, 7, 8, 9) for index in range(3))
    (tmp_path / "run" / "done.json").unlink()
    for name in ("3_00001.png", "8_00002.png", "9_00000.png"):
        (folder / name).unlink()
    kept = (folder / "7_00000.png").stat().st_mtime_ns
    ok(*words(*command("--resume")))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (folder / "7_00000.png").stat().st_mtime_ns == kept


def test_ten_steps_differ_from_twenty_and_1001_are_refused(model, accelerator):
    """Mutation: ignore --steps."""
    assert not torch.equal(draw(model, accelerator, steps=10), draw(model, accelerator, steps=20))
    with pytest.raises(RunError, match="more than the 1000 steps"):
        draw(model, accelerator, steps=1001)


def test_noise_belongs_to_the_clipped_image(model, accelerator, monkeypatch):
    """A prediction that overshoots, as guidance makes it: DDIM by hand with x_0 clipped and the noise that leads from there to x_t.

    Mutation: use_clipped_model_output=False.
    """
    monkeypatch.setattr(sampling, "guided", lambda model, x, *rest: 3 * x)
    scheduler = sampling.make_scheduler("ddim", 4)
    x = torch.stack([torch.randn(SHAPE, generator=data.make_generator("image", 1, *key)) for key in KEYS])
    for t in scheduler.timesteps.tolist():
        a, before = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 250] if t >= 250 else torch.tensor(1.0)
        x_0 = ((x - (1 - a).sqrt() * 3 * x) / a.sqrt()).clamp(-1, 1)
        x = before.sqrt() * x_0 + (1 - before).sqrt() * (x - a.sqrt() * x_0) / (1 - a).sqrt()
    assert_same(draw(model, accelerator, steps=4), data.to_uint8(x))
