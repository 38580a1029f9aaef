"""Every method trains and keeps its promise. Beside each property stands the mutation that would break it."""

import copy
import csv
import functools
import json
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import data
import engine
import masking
import methods
import models
import run
from helpers import FORGOTTEN, cpu, script, tiny

SCHEDULER = models.noise_scheduler()
# Settings strong enough to move a tiny model in seconds.
SETTINGS = {
    "retrain": [],
    "ga": ["--steps", 15, "--lr", 5e-4],
    "rl": ["--steps", 60, "--lr", 1e-3, "--alpha", 1],
    "esd": ["--steps", 60, "--lr", 1e-3, "--replay", 16],
    "sa": ["--steps", 60, "--lr", 1e-3, "--replay", 4, "--fisher_timesteps", 8, "--ewc", 1e-4],
    "salun": ["--steps", 60, "--lr", 1e-3, "--alpha", 1],
    "salun_soft": ["--steps", 60, "--lr", 1e-3, "--alpha", 1],
    "erasediff": ["--steps", 60, "--lr", 1e-3],
}
SHORT = {name: ["--steps", 3, "--lr", 1e-3, *(flags[4:] if name in ("esd", "sa") else [])] for name, flags in SETTINGS.items()}


@torch.no_grad()
def probe(job, split, labels=None, noise="normal"):
    """(predictions for the split's images under their own label or `labels`, the noise), at fixed noise and timesteps."""
    x, y, t, normal = (torch.cat(parts) for parts in zip(*data.whole_pass(split, 64, 9, 1000), strict=True))
    target = torch.special.ndtr(normal) if noise == "uniform" else normal
    y = y if labels is None else torch.full_like(y, labels)
    return engine.predict(job.model.eval(), SCHEDULER.add_noise(x, target, t), t, y), target


def loss(job, split, **options):
    prediction, noise = probe(job, split, **options)
    return (prediction - noise).square().mean().item()


@pytest.mark.parametrize("name", methods.METHODS)
def test_method_keeps_its_promise(name, unlearn, opened):  # mutation: swap the sign of the forget loss, or forget and retain
    before, after = opened(), opened(unlearn(name, *SETTINGS[name]))
    apart = lambda job: (probe(job, job.forget)[0] - probe(job, job.forget, labels=FORGOTTEN + 1)[0]).square().mean().item()  # noqa: E731
    if name == "ga":
        assert loss(after, after.forget) > 1.5 * loss(before, before.forget)
    if name in ("rl", "salun", "salun_soft"):
        assert apart(after) < 0.4 * apart(before)
    if name == "esd":
        conditional, null = probe(before, before.forget)[0], probe(before, before.forget, labels=10)[0]
        target = null - (conditional - null)
        distance = lambda job: (probe(job, job.forget)[0] - target).square().mean().item()  # noqa: E731
        assert distance(after) < 0.7 * distance(before)
    if name == "sa":
        x = torch.randint(256, (64, 8, 8, 1), generator=data.generator("sa")).to(torch.uint8)
        noise_images = data.Split(x, torch.full((64,), FORGOTTEN), torch.arange(64))
        assert loss(after, noise_images) < 0.93 * loss(before, noise_images)  # noise leaves little to predict
    if name == "erasediff":
        assert loss(after, after.forget, noise="uniform") < 0.7 * loss(before, before.forget, noise="uniform")
    if name == "retrain":
        retained = torch.tensor(after.classes.retained)
        embedding = lambda job: job.model.class_embedding.weight.detach()  # noqa: E731
        fresh = models.build_unet(**before.architecture, seed=1).class_embedding.weight
        assert torch.equal(embedding(after)[FORGOTTEN], fresh[FORGOTTEN])  # never trained
        assert (embedding(after)[retained] != fresh[retained]).any()
    worst = {"esd": 1.6, "sa": 1.6, "erasediff": 1.5}.get(name, 1.15)
    assert name == "ga" or loss(after, after.retain) < worst * loss(before, before.retain)  # ascent holds nothing back


def test_every_method_is_tested():
    assert set(SETTINGS) == set(methods.METHODS)


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - methods.TAKES_NO_MASK))
def test_every_method_under_a_mask_leaves_frozen_weights_bitwise_equal(name, home, unlearn, opened):  # mutation: pass mask=None to fit
    folder = unlearn(name, *SHORT[name], "--mask_path", home / "mask")
    before, after = (dict(opened(path).model.named_parameters()) for path in (home / "original", folder))
    mask, _ = masking.load(home / "mask", before, opened().facts["forget_sha"])
    assert all(torch.equal(after[key][~mask[key]], before[key][~mask[key]]) for key in mask)
    moved, salient = sum(int((after[key] != before[key]).sum()) for key in mask), sum(int(part.sum()) for part in mask.values())
    assert 0.9 * salient < moved <= salient == sum(part.numel() for part in mask.values()) // 2


def test_a_full_mask_equals_no_mask(home, unlearn, tmp_path):  # mutation: always make compact leaves
    flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--mask_ratio", 1.0, "--save_dir", tmp_path / "mask")
    assert script("generate_mask", *flags) == 0
    masked, free = unlearn("salun", *SHORT["salun"], "--mask_path", tmp_path / "mask"), unlearn("rl", *SHORT["rl"])
    assert (masked / "model.safetensors").read_bytes() == (free / "model.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_bytes(unlearn):  # mutation: draw noise from the global generator
    first, second, other = (unlearn("salun", *SHORT["salun"], "--seed", seed) for seed in (1, 1, 2))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_the_mask_is_deterministic_for_a_seed(home, tmp_path):  # mutation: torch.randn without a generator
    def mask(seed, **more):
        folder = tmp_path / f"{seed}{more}"
        more = [word for item in more.items() for word in (f"--{item[0]}", item[1])]
        flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--seed", seed, "--save_dir", folder)
        assert script("generate_mask", *flags, *more) == 0
        return run.read_tensors(folder / "mask.safetensors")[0]

    def differing(a, b):
        return sum(int((a[key] != b[key]).sum()) for key in a) / sum(part.numel() for part in a.values())

    first = mask(1)
    assert differing(first, run.read_tensors(home / "mask" / "mask.safetensors")[0]) == 0
    assert differing(first, mask(2)) > 0.05
    assert differing(first, mask(1, batch_size=7)) < 0.01  # every image weighs the same, whatever the batch
    assert differing(mask(1, epochs=2), first) > 0.05


def test_saliency_is_the_gradient_over_the_whole_forget_set(opened):  # mutation: mean of batch means, train mode, or the null class
    job = opened()
    few = data.Split(job.forget.x, job.forget.y, job.forget.rows[:10])
    accelerator = cpu()
    found = engine.mean_gradient(job.model, SCHEDULER, few, accelerator, passes=2, batch_size=4, seed=1)
    total = 0
    for number in range(2):
        for x, y, t, noise in data.whole_pass(few, 1, 1, 1000, number):
            assert (y == FORGOTTEN).all()
            total = total + (engine.predict(job.model, SCHEDULER.add_noise(x, noise, t), t, y) - noise).square().mean() / 20
    total.backward()
    for name, parameter in job.model.named_parameters():
        torch.testing.assert_close(
            found[name], torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, rtol=1e-3, atol=1e-7
        )


def test_what_a_method_does_not_name_it_never_sees(unlearn, monkeypatch):  # mutation: hand the retain set to ga
    seen = {}

    class Watched(data.Stream):
        def batch(self, step):
            batch = super().batch(step)
            seen.setdefault(self.name, set()).update(batch.y.tolist())
            return batch

    monkeypatch.setattr(data, "Stream", Watched)
    for name, expected in (("ga", {"forget"}), ("esd", {"forget"}), ("rl", {"forget", "retain"}), ("retrain", {"train"})):
        seen.clear()
        unlearn(name, *SHORT[name])
        assert set(seen) == expected and seen.get("forget", {FORGOTTEN}) == {FORGOTTEN}
        assert FORGOTTEN not in seen.get("retain", seen.get("train", set()))
    assert methods.reads("esd") == methods.reads("sa") == () and methods.reads("ga") == ("forget",)


def test_the_target_is_detached_and_another_class(unlearn, monkeypatch):  # mutation: predict c' with gradients; c' = c
    calls, predict = [], engine.predict

    def watched(model, x_t, t, labels):
        calls.append((torch.is_grad_enabled(), labels.clone()))
        return predict(model, x_t, t, labels)

    monkeypatch.setattr(engine, "predict", watched)
    monkeypatch.setattr(sys.modules["methods.rl"], "predict", watched)
    unlearn("rl", *SHORT["rl"], "--target_class", 7)
    targets = [labels for grad, labels in calls if not grad]
    assert len(targets) == 3 and all((labels == 7).all() for labels in targets)
    with_gradient = [labels for grad, labels in calls if grad]
    assert len(with_gradient) == 3 and all((labels[:32] == FORGOTTEN).all() and len(labels) == 64 for labels in with_gradient)


def test_alpha_weighs_means(unlearn):  # mutation: sum over pixels in the retain term
    rows = [list(csv.DictReader((unlearn("rl", *SHORT["rl"], "--alpha", alpha) / "log.csv").open()))[0] for alpha in (1, 10)]
    assert 0.01 < float(rows[0]["retain"]) < 1.5 and 5 < float(rows[1]["retain"]) / float(rows[0]["retain"]) < 15


def test_several_classes_are_forgotten_at_once(unlearn, home):  # mutation: take the first class only
    args = json.loads((unlearn("rl", *SHORT["rl"], forget=(3, 5)) / "args.json").read_text())
    labels = np.load(home / "data" / "digits.npz")["y_train"]
    assert args["forgotten"] == [3, 5] and args["num_forgotten"] == ((labels == 3) | (labels == 5)).sum()


def test_retrain_equals_training_without_the_class(home, unlearn, tmp_path):  # mutation: other streams, or the unlearning batch size
    assert (
        script(
            *tiny("--data_dir", home / "data", "--steps", 40, "--retain_only", "--forget_class", FORGOTTEN, "--save_dir", tmp_path / "run")
        )
        == 0
    )
    other = unlearn("retrain", "--steps", 40)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_soft_is_anchored_at_the_original(opened, unlearn, home):  # mutation: anchor at the last step's weights
    """Whole run at k near n: nearly every weight returns to theta_o at each step but the last, where k = 0."""
    folder = unlearn("salun_soft", "--steps", 40, "--lr", 1e-3, "--mask_ratio", 1.0)
    free = unlearn("rl", "--steps", 40, "--lr", 1e-3)
    origin = dict(opened().model.named_parameters())
    far = lambda path: sum((value - origin[name]).abs().sum().item() for name, value in opened(path).model.named_parameters())  # noqa: E731
    assert far(folder) < 0.5 * far(free)


def test_erasediff_lowers_the_forget_loss_at_the_rate_asked_for(monkeypatch):  # mutation: drop max(0, .); swap the two gradients
    kept = {}
    methods.erasediff(None, None, None, lambda splits, loss, **options: kept.update(options), None, erase_rate=0.5)
    retain, forget = [torch.tensor([1.0, 0]), torch.tensor([2.0])], [torch.tensor([-1.0, 1]), torch.tensor([0.5])]
    flat = lambda tensors: torch.cat([tensor.flatten() for tensor in tensors])  # noqa: E731
    direction, g_f = flat(kept["combine"]({"retain": retain, "forget": forget})), flat(forget)
    assert (direction @ g_f).item() == pytest.approx(0.5 * (g_f @ g_f).item())  # here <g_r, g_f> = 0 < 0.5 |g_f|^2
    agreeing = kept["combine"]({"retain": [5 * value for value in forget], "forget": forget})
    assert torch.equal(flat(agreeing), 5 * g_f)  # going down L_r alone is enough


def test_fisher_is_the_mean_square_of_single_gradients(opened, monkeypatch):  # mutation: square of the mean gradient
    job = opened()
    few = data.Split(job.retain.x, job.retain.y, job.retain.rows[:3])
    monkeypatch.setattr(engine, "FISHER_BATCH", 4)
    found = engine.fisher_diagonal(job.model, SCHEDULER, few, cpu(), timesteps=6, seed=1)
    t, total = ((torch.arange(6) + 0.5) * 1000 / 6).long(), 0
    for row in few.rows.tolist():
        model = copy.deepcopy(job.model)
        noise = torch.randn(6, 1, 8, 8, generator=data.generator("fisher", 1, row))
        x_t = SCHEDULER.add_noise(data.to_float(few.x[row : row + 1]).expand(6, -1, -1, -1), noise, t)
        (engine.predict(model, x_t, t, few.y[row].expand(6)) - noise).square().mean().backward()
        total = total + model.conv_in.weight.grad.square() / 3
    torch.testing.assert_close(found["conv_in.weight"], total, rtol=1e-3, atol=1e-9)


def test_ema_is_what_is_saved(tmp_path, home):  # mutation: save the last weights
    runs = {}
    for ema in (0, 0.9):
        assert script(*tiny("--data_dir", home / "data", "--steps", 30, "--ema", ema, "--save_dir", tmp_path / str(ema))) == 0
        runs[ema] = run.read_tensors(tmp_path / str(ema) / "model.safetensors")[0]
    assert any(not torch.equal(runs[0][name], runs[0.9][name]) for name in runs[0])


def test_dropout_follows_from_the_seed(tmp_path, home):  # mutation: leave the global generator as it is
    for name in ("first", "second"):
        torch.rand(7 if name == "first" else 8)  # whatever ran before
        flags = ("--data_dir", home / "data", "--arch", "tiny_dropout", "--steps", 3, "--save_dir", tmp_path / name)
        assert script(*tiny(*flags)) == 0
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (tmp_path / "second" / "model.safetensors").read_bytes()


def test_class_dropout_trains_the_null_class(opened):  # mutation: uniform <= 0, never dropped
    job = opened()
    stream = data.Stream(job.retain, "train", batch_size=2000, seed=1, timesteps=1000)
    batch = stream.batch(0)
    labels = engine.dropped(batch, 10, 0.1)
    assert 0.07 < (labels == 10).float().mean() < 0.13 and torch.equal(labels[labels != 10], batch.y[labels != 10])
    fresh = models.build_unet(**job.architecture, seed=1).class_embedding.weight
    assert not torch.equal(job.model.class_embedding.weight[10], fresh[10])


def test_the_gradient_is_clipped_to_its_norm():  # mutation: clip each value, or after the step
    torch.manual_seed(0)
    leaf = torch.zeros(3, requires_grad=True)
    accelerator = cpu()
    solver = torch.optim.SGD([leaf], 1.0)
    engine.train_step(lambda: {"a": (leaf * torch.tensor([3.0, 4, 0])).sum()}, {}, solver, [leaf], accelerator, 1.0, None)
    torch.testing.assert_close(leaf.detach(), torch.tensor([-0.6, -0.8, 0]))


def test_autocast_begins_and_ends_with_a_forward_pass():
    """Breaks if autocast is put around the loss again: PyTorch before 2.11 then trains on weight casts that carry no gradient."""
    accelerator = cpu("bf16")
    model = models.build_unet("tiny", num_classes=10, channels=1, image_size=8, seed=0)
    part, x, t = model.conv_out, torch.randn(4, 1, 8, 8), torch.arange(4)
    predict = lambda model: engine.predict(model.eval(), x, t, t).detach()  # noqa: E731
    names, inside = list(model.state_dict()), []
    part.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    model = engine.place(model, accelerator)
    copied = copy.deepcopy(model)
    output = predict(model)
    assert not torch.is_autocast_enabled("cpu") and inside == [True] and output.dtype == torch.float32
    with engine.without_autocast(model), torch.no_grad():
        whole = predict(model)
    assert inside == [True, False] and not torch.equal(whole, output) and torch.equal(predict(model), output)
    assert list(model.state_dict()) == list(copied.state_dict()) == names and not accelerator._models
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not predict(copied).any() and torch.equal(predict(model), output)


def test_every_weight_is_trained_in_half_precision(unlearn):
    """Breaks if a pass under no_grad leaves its weight casts to the pass that trains. With PyTorch from 2.11 on it cannot."""
    folder = unlearn("salun", *SHORT["salun"], "--precision", "bf16")
    assert json.loads((folder / "done.json").read_text())["fraction_changed"] > 0.4


@pytest.mark.parametrize("mask", [False, True])
def test_a_tensor_without_a_gradient_ends_the_run(mask):
    """Breaks if fit() does not look at the first step's gradients: the optimizer passes such a tensor over in silence."""
    model = torch.nn.Module()
    model.used, model.idle = torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)
    chosen = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in model.named_parameters()} if mask else None
    split = data.Split(torch.zeros(8, 2, 2, 1, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), torch.arange(8))
    log = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
    options = {"lr": 0.1, "batch_size": 4, "seed": 1, "accelerator": cpu(), "run": log, "mask": chosen}

    def loss(train, weight=None):
        features = model.used(train.x.flatten(1)[:, :4])
        return {"train": features.sum() if weight is None else (features + weight * model.idle(features)).sum()}

    with pytest.raises(run.RunError, match="idle.weight no gradient"):
        engine.fit(model, {"train": split}, loss, steps=2, **options)
    zeros = functools.partial(loss, weight=0.0)
    engine.fit(model, {"train": split}, zeros, steps=2, **options)  # zeros are a gradient
