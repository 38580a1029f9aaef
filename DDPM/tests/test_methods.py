"""Every method trains and keeps its promise. Each test names the mutation that would break it."""

import copy
import csv
import importlib
import json
import sys
import types
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

import cli
import data
import masking
import methods
import models
import passes
import task
import trainer
from cli import RunError
from files import read_json, read_tensors
from helpers import FORGOTTEN, TINY, cpu, ok, script
from trainer import Trainer, predict_noise

# Settings strong enough to move a tiny model in seconds.
SETTINGS = {
    "retrain": "",
    "ga": "--steps 15 --lr 5e-4",
    "ga_retain": "--steps 40 --lr 1e-3 --alpha 10",
    "rl": "--steps 60 --lr 1e-3 --alpha 1",
    "esd": "--steps 60 --lr 1e-3 --sample_steps 8",
    "sa": "--steps 60 --lr 1e-3 --ema 0 --replay 4 --replay_steps 20 --fisher_timesteps 8 --ewc 1e-4",
    "salun": "--steps 60 --lr 1e-3 --alpha 1",
    "salun_soft": "--steps 60 --lr 1e-3 --alpha 1",
    "erasediff": "--steps 60 --lr 1e-3 --ema 0 --forget_weight 1",
    "sfron": "--steps 30 --lr 1e-3",
    "scissorhands": "--steps 60 --lr 1e-3",
}
SHORT = dict.fromkeys(SETTINGS, "--steps 3 --lr 1e-3")
SHORT |= {"esd": f"{SHORT['esd']} --sample_steps 4", "sa": f"{SHORT['sa']} --replay 4 --replay_steps 8 --fisher_timesteps 8 --ewc 1e-4"}


@torch.no_grad()
def probe(loaded, split, label=None, noise="normal"):
    """(predictions for the split's images under their own label or `label`, the noise), at fixed noise and timesteps."""
    images, labels, t, normal = (torch.cat(parts) for parts in zip(*data.whole_pass(split, 64, 9, 1000), strict=True))
    target = torch.special.ndtr(normal) if noise == "uniform" else normal
    labels = labels if label is None else torch.full_like(labels, label)
    return predict_noise(loaded.model.eval(), models.noisy_images(images, target, t), t, labels), target


def difference(a, b):
    return (a - b).square().mean().item()


def loss(loaded, split, **options):
    return difference(*probe(loaded, split, **options))


def apart(loaded):
    """How far the predictions for the forgotten class are from those for the next class."""
    return difference(probe(loaded, loaded.forget)[0], probe(loaded, loaded.forget, label=FORGOTTEN + 1)[0])


def apart_from_all(loaded):
    """How far they are from the mean over all other classes."""
    others = torch.stack([probe(loaded, loaded.forget, label=label)[0] for label in loaded.classes.retained])
    return difference(probe(loaded, loaded.forget)[0], others.mean(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_method_keeps_its_promise(name, unlearn, load):
    """Mutation: swap the sign of the forget loss, or forget and retain; log each update of SFRon as a step of its own."""
    before, after = load(), load(folder := unlearn(name, SETTINGS[name]))
    steps = [line.split(",")[0] for line in (folder / "log.csv").read_text().splitlines()]
    assert len(steps) == len(set(steps)) > 1
    if name in ("ga", "ga_retain", "sfron", "scissorhands"):
        assert loss(after, after.forget) > 1.5 * loss(before, before.forget)
    if name in ("rl", "salun", "salun_soft"):
        assert apart(after) < 0.4 * apart(before)
    if name == "esd":
        conditional, null = probe(before, before.forget)[0], probe(before, before.forget, label=10)[0]
        target = null - (conditional - null)
        assert difference(probe(after, after.forget)[0], target) < 0.7 * difference(conditional, target)
    if name == "sa":
        images = torch.randint(256, (64, 8, 8, 1), generator=data.make_generator("sa")).to(torch.uint8)
        noise_images = data.Split(images, torch.full((64,), FORGOTTEN), torch.arange(64), "noise")
        assert loss(after, noise_images) < 0.93 * loss(before, noise_images)  # noise leaves little to predict
    if name == "erasediff":
        assert apart_from_all(after) < 0.6 * apart_from_all(before)
    if name == "retrain":
        retained, embedding = torch.tensor(after.classes.retained), after.model.class_embedding.weight.detach()
        fresh = models.build_unet(**before.facts["architecture"], seed=1).class_embedding.weight
        assert torch.equal(embedding[FORGOTTEN], fresh[FORGOTTEN])  # never trained
        assert (embedding[retained] != fresh[retained]).any()
    worst = {"esd": 1.6, "sa": 1.6, "scissorhands": 1.6}.get(name, 1.15)
    assert name == "ga" or loss(after, after.retain) < worst * loss(before, before.retain)  # ascent holds nothing back


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(unlearn, monkeypatch):
    """With a backend that takes the graph as it is: the default one needs a C++ compiler. Mutation: no compile() in unlearn.py;
    EraseDiff's second way through a graph whose buffers are donated."""
    compiled, plainly = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compiled.append(plainly(model, backend="aot_eager")))
    folders = [unlearn("salun", SHORT["salun"], "--precision fp32", more) for more in ("", "--compile")]
    plain, folded = (read_tensors(folder / "model.safetensors")[0] for folder in folders)
    unlearn("erasediff", "--steps 2 --erase_rate 1 --compile")
    assert len(compiled) == 2
    for key, tensor in plain.items():
        torch.testing.assert_close(folded[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_every_method_is_tested():
    assert set(SETTINGS) == set(methods.METHODS)


@pytest.mark.slow
def test_a_layerwise_mask_has_as_many_of_each_tensor_as_the_saliency_mask(home, load, tmp_path):
    """Mutation: draw over all tensors pooled, or keep the saliency mask."""
    start = ("--model_path", home / "original", "--forget_class", FORGOTTEN)
    ok("generate_mask", *start, "--mask_kind layerwise --seed 1 --save_dir", tmp_path / "mask")
    weights = dict(load().model.named_parameters())
    (salient, _), (drawn, info) = (masking.load(path, weights, load().facts) for path in (home / "mask", tmp_path / "mask"))
    assert info["mask_kind"] == "layerwise"
    assert [int(drawn[name].sum()) for name in drawn] == [int(salient[name].sum()) for name in drawn]
    assert 0.4 < sum(int((drawn[name] & salient[name]).sum()) for name in drawn) / masking.count(salient)[0] < 0.7  # alike by chance only


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - methods.TAKES_NO_MASK))
def test_every_method_under_a_mask_leaves_frozen_weights_bitwise_equal(name, home, unlearn, load):
    """Mutation: pass mask=None to the Trainer."""
    folder = unlearn(name, SHORT[name], "--mask_path", home / "mask")
    before, after = (dict(load(path).model.named_parameters()) for path in (home / "original", folder))
    mask, _ = masking.load(home / "mask", before, load().facts)
    assert all(torch.equal(after[key][~mask[key]], before[key][~mask[key]]) for key in mask)
    moved, salient = sum(int((after[key] != before[key]).sum()) for key in mask), sum(int(part.sum()) for part in mask.values())
    assert 0.9 * salient < moved <= salient == sum(part.numel() for part in mask.values()) // 2


@pytest.mark.slow
def test_a_full_mask_equals_no_mask(home, unlearn, tmp_path):
    """Mutation: always make compact leaves."""
    flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--mask_ratio 1.0 --save_dir", tmp_path / "mask")
    ok("generate_mask", *flags)
    masked, free = unlearn("salun", SHORT["salun"], "--mask_path", tmp_path / "mask"), unlearn("rl", SHORT["rl"])
    assert (masked / "model.safetensors").read_bytes() == (free / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(unlearn):
    """Mutation: draw noise from the global generator."""
    first, second, other = (unlearn("salun", SHORT["salun"], "--seed", seed) for seed in (1, 1, 2))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_mask_is_deterministic_for_a_seed(home, tmp_path):
    """Mutation: torch.randn without a generator."""

    def mask(seed, more=""):
        folder = tmp_path / f"{seed}{more}"
        flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--seed", seed, "--save_dir", folder)
        ok("generate_mask", *flags, more)
        return read_tensors(folder / "mask.safetensors")[0]

    def differing(a, b):
        return sum(int((a[key] != b[key]).sum()) for key in a) / sum(part.numel() for part in a.values())

    first = mask(1)
    assert differing(first, read_tensors(home / "mask" / "mask.safetensors")[0]) == 0
    assert differing(first, mask(2)) > 0.05
    assert differing(first, mask(1, "--batch_size 7")) < 0.01  # every image weighs the same, whatever the batch
    assert differing(mask(1, "--epochs 2"), first) > 0.05


def test_saliency_is_the_gradient_over_the_whole_forget_set(load):
    """Mutation: mean of batch means, train mode, or the null class."""
    loaded = load()
    few, model = loaded.forget.take(torch.arange(10)), loaded.model
    found = passes.mean_gradient(model, few, cpu(), passes=2, batch_size=4, seed=1)
    total = 0
    for number in range(2):
        for images, labels, t, noise in data.whole_pass(few, 1, 1, 1000, number):
            assert (labels == FORGOTTEN).all()
            total = total + (predict_noise(model, models.noisy_images(images, noise, t), t, labels) - noise).square().mean() / 20
    total.backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-7)


# ------------------------------------------------------------------------------------------------ what a method is handed
def inputs(name):
    return cli.method_inputs(methods.METHODS[name])


@pytest.mark.slow
def test_what_a_method_does_not_name_it_never_sees(unlearn, monkeypatch):
    """Mutation: hand the retain set to ga."""
    seen = {}

    class Watched(data.Stream):
        def batch(self, step):
            batch = super().batch(step)
            seen.setdefault(self.split.name, set()).update(batch.labels.tolist())
            return batch

    monkeypatch.setattr(data, "Stream", Watched)
    for name, expected in (("ga", {"forget"}), ("esd", {"forget"}), ("rl", {"forget", "retain"}), ("retrain", {"train"})):
        seen.clear()
        unlearn(name, SHORT[name])
        assert set(seen) == expected and seen.get("forget", {FORGOTTEN}) == {FORGOTTEN}
        assert FORGOTTEN not in seen.get("retain", seen.get("train", set()))


def poisoned(split, seed=7):
    """A split of the same size with other images and labels."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, split.images.shape, generator=draw, dtype=torch.uint8)
    return data.Split(images, torch.randint(10, split.labels.shape, generator=draw), split.indices, split.name)


UNSEEN = {"ga": ["retain"], "retrain": ["forget"], "esd": ["forget", "retain"], "sa": ["forget", "retain"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_data_that_a_method_does_not_name_cannot_change_it(name, unlearn, monkeypatch):
    """Mutation: let a Split hold the images of the whole data set, and a method read them."""
    load_task, unseen = task.load_task, UNSEEN[name]

    def poison(*args, **options):
        loaded = load_task(*args, **options)
        for part in unseen:
            setattr(loaded, part, poisoned(getattr(loaded, part)))
        return loaded

    clean = unlearn(name, SHORT[name])
    monkeypatch.setattr(task, "load_task", poison)
    assert (unlearn(name, SHORT[name]) / "model.safetensors").read_bytes() == (clean / "model.safetensors").read_bytes()
    assert not set(unseen) & set(inputs(name))


def test_a_split_holds_its_own_images_only(load):
    """Mutation: keep a reference to the images of the whole data set in a Split."""
    loaded = load()
    for split in (loaded.forget, loaded.retain):
        assert len(split.images) == len(split.labels) == len(split)
        assert split.images.untyped_storage().nbytes() == split.images.numel()


# ------------------------------------------------------------------------------------------------- a method of one's own
OWN_METHOD = '''
from cli import positive_float
from trainer import denoising_loss

FLAGS = {"push": dict(type=positive_float, help="weight of the forget term")}
TRAINING = {"ema": 0.5}


def mine(model, forget, retain, trainer, *, steps=2, lr=1e-3, push=0.5):
    """Descend on the retain set, ascend on the forget set."""
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        forget_loss, retain_loss = (denoising_loss(model, batch, batch.labels) for batch in (forget_batch, retain_batch))
        trainer.step(forget=-push * forget_loss, retain=retain_loss)
'''


@pytest.mark.slow
def test_a_new_method_with_a_flag_of_its_own_is_one_file_and_one_line(tmp_path, monkeypatch, unlearn, home, capsys):
    """Mutation: keep the flags of all methods in unlearn.py; name the methods in table.py."""
    (tmp_path / "mine.py").write_text(OWN_METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(methods.METHODS, "mine", importlib.import_module("mine").mine)
    mine, ga, without_ema = unlearn("mine", "--push 0.25"), unlearn("ga", SHORT["ga"]), unlearn("mine", "--push 0.25 --ema 0")
    assert read_json(mine / "args.json")["options"] == {"steps": 2, "lr": 1e-3, "push": 0.25}
    first, other = ((folder / "model.safetensors").read_bytes() for folder in (mine, without_ema))
    assert first != other  # TRAINING is a default: the flag goes first
    assert script("unlearn", "--method ga --push 1 --forget_class 3 --model_path", home / "original", "--save_dir", tmp_path / "no") != 0
    samples = (tmp_path / "runs" / "mine", tmp_path / "runs" / "ga")
    ok("sample", "--model_path", mine, ga, "--num_per_class 3 --steps 2 --batch_size 30 --save_dir", *samples)
    ok("evaluate", "--features classifier --num_reference 50 --classifier", home / "classifier", "--sample_path", *samples)
    monkeypatch.undo()  # table.py needs no line for it
    ok("table", tmp_path / "runs")
    assert "mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("def odd(model, trainer, *, strange=1): ...", "method odd has --strange in its signature but not in FLAGS"),
        ("FLAGS = {'ewc': dict(type=int, help='')}\ndef odd(model, trainer, *, ewc=1): ...", "--ewc, which is declared already"),
        ("FLAGS = {'lr': dict(type=int, help='')}\ndef odd(model, trainer, *, lr=1): ...", "--lr, which is declared already"),
        ("def odd(model, trainer, *, data_dir=1): ...", "method odd: "),
    ],
)
def test_a_flag_without_a_declaration_or_with_two_names_its_method(text, message, tmp_path, monkeypatch, capsys):
    """Mutation: let argparse or a KeyError speak."""
    module = types.ModuleType("odd")
    exec(text, module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "odd", module)
    monkeypatch.setitem(methods.METHODS, "odd", module.odd)
    assert script("unlearn", "--method ga --forget_class 3 --model_path", tmp_path, "--save_dir", tmp_path / "run") == 1
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ the Trainer
def trainer_of(model, **settings):
    run_folder = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
    return Trainer(model, run_folder, cpu(), seed=1, **{"batch_size": 4} | settings)


def few(count=8, name="train"):
    return data.Split(torch.zeros(count, 2, 2, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), torch.arange(count), name)


def test_a_step_without_a_loss_term_says_so():
    """Mutation: let sum(()) fail."""
    loop = trainer_of(torch.nn.Linear(4, 2))
    with pytest.raises(RunError, match=r"trainer.step\(\) was called without a loss term"):
        for _ in loop.steps(1, 0.1, few()):
            loop.step()


def test_what_a_method_draws_before_its_loop_follows_from_the_seed(unlearn, monkeypatch):
    """Mutation: start a method in whatever state torch's generator is."""
    drawn = []
    monkeypatch.setitem(methods.METHODS, "ga", lambda model, trainer, *, steps=1: drawn.append(torch.randint(1 << 30, (1,)).item()))
    monkeypatch.setattr("task.save_weights", lambda loop: None)
    for seed in (1, 1, 2):
        unlearn("ga", "--seed", seed)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("mask", [False, True])
def test_a_tensor_without_a_gradient_ends_the_run(mask):
    """Mutation: do not look at the first step's gradients. The optimizer passes such a tensor over in silence."""
    model = torch.nn.Module()
    model.used, model.idle = torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)
    chosen = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in model.named_parameters()} if mask else None

    def train(weight):
        loop = trainer_of(model, mask=chosen)
        for batch in loop.steps(2, 0.1, few()):
            features = model.used(batch.images.flatten(1))
            loop.step(train=features.sum() if weight is None else (features + weight * model.idle(features)).sum())

    with pytest.raises(RunError, match="idle.weight no gradient"):
        train(None)
    train(0.0)  # a gradient of zeros is one


def test_the_gradient_is_clipped_to_its_norm():
    """Mutation: clip each value, or after the step."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    loop = trainer_of(model, optimizer="sgd", momentum=0.0, grad_clip=1.0)
    for _ in loop.steps(1, 1.0, few()):
        loop.step(a=(model.weight * torch.tensor([3.0, 4, 0])).sum())
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-0.6, -0.8, 0]]))


def test_a_step_is_the_gradients_of_its_terms_applied():
    """Mutation: leave the gradient of the first term in place for the second."""
    whole = torch.nn.Linear(4, 2)
    in_parts = copy.deepcopy(whole)
    for model in (whole, in_parts):
        loop = trainer_of(model, optimizer="sgd", grad_clip=0.0)  # Adam would not see a wrong scale
        for batch in loop.steps(3, 0.1, few()):
            output = model(batch.images.flatten(1))
            terms = {"forget": output.square().mean(), "retain": -2 * output.mean()}
            if model is whole:
                loop.step(**terms)
            else:
                forget, retain = (loop.gradients(term, retain_graph=True) for term in terms.values())
                loop.apply([a + b for a, b in zip(forget, retain, strict=True)], **terms)
    for one, other in zip(whole.parameters(), in_parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_training_flags_reach_the_trainer(unlearn):
    """Mutation: drop any of the settings in unlearn.py; take sa, which draws what it forgets, for a method without forget batches."""
    seen = set()
    settings = ["--optimizer sgd", "--optimizer sgd --momentum 0.5", "--weight_decay 0.1", "--schedule linear", "--batch_size 16"]
    for flags in ("", *settings, "--forget_batch_size 16", "--ema 0.5", "--grad_clip 0.01"):
        seen.add((unlearn("rl", SHORT["rl"], flags) / "model.safetensors").read_bytes())
    assert len(seen) == len(settings) + 4
    drawn = {(unlearn("sa", SHORT["sa"], flags) / "model.safetensors").read_bytes() for flags in ("", "--forget_batch_size 16")}
    assert len(drawn) == 2


def test_settings_come_from_the_flag_then_the_authors_then_the_original():
    """Mutation: swap the order of the three."""
    args = types.SimpleNamespace(optimizer="sgd", momentum=None, schedule=None, ema=None)
    trained = {"optimizer": "adamw", "schedule": "linear", "ema": 0.9, "batch_size": 64}
    defaults = dict(optimizer="adam", momentum=0.9, schedule="constant", ema=0.0)
    found = cli.training_settings(args, methods.METHODS["retrain"], trained, defaults)
    expected = {"optimizer": "sgd", "momentum": 0.9, "schedule": "linear", "ema": 0.9, "batch_size": 64}
    assert expected.items() <= found.items()


# ------------------------------------------------------------------------------------------------------- single methods
def test_the_target_is_detached_and_another_class(unlearn, monkeypatch):
    """Mutation: predict c' with gradients; c' = c."""
    calls = []

    def watched(model, noisy, t, labels):
        calls.append((torch.is_grad_enabled(), labels.clone()))
        return predict_noise(model, noisy, t, labels)

    monkeypatch.setattr(trainer, "predict_noise", watched)
    monkeypatch.setattr(sys.modules["methods.salun"], "predict_noise", watched)
    unlearn("rl", SHORT["rl"], "--target_class 7 --target_dropout 0")
    targets = [labels for grad, labels in calls if not grad]
    assert len(targets) == 3 and all((labels == 7).all() for labels in targets)
    with_gradient = [labels for grad, labels in calls if grad]
    assert len(with_gradient) == 3 and all((labels[:32] == FORGOTTEN).all() and len(labels) == 64 for labels in with_gradient)


def test_alpha_weighs_means(unlearn):
    """Mutation: sum over pixels in the retain term."""
    rows = [list(csv.DictReader((unlearn("rl", SHORT["rl"], "--alpha", alpha) / "log.csv").open()))[0] for alpha in (1, 10)]
    assert 0.01 < float(rows[0]["retain"]) < 1.5 and 5 < float(rows[1]["retain"]) / float(rows[0]["retain"]) < 15


def test_several_classes_are_forgotten_at_once(unlearn, home):
    """Mutation: take the first class only."""
    args = json.loads((unlearn("rl", SHORT["rl"], forget=(3, 5)) / "args.json").read_text())
    labels = np.load(home / "data" / "digits.npz")["y_train"]
    assert args["forgotten"] == [3, 5] and args["num_forgotten"] == ((labels == 3) | (labels == 5)).sum()


@pytest.mark.slow
def test_retrain_equals_training_without_the_class(home, tmp_path):
    """Mutation: other streams, or the unlearning batch size."""
    ok("train", TINY, "--steps 40 --retain_only --forget_class", FORGOTTEN, "--data_dir", home / "data", "--save_dir", tmp_path / "a")
    start = ("--method retrain --steps 40 --precision fp32 --model_path", home / "original", "--forget_class", FORGOTTEN)
    ok("unlearn", *start, "--save_dir", tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_soft_is_anchored_at_the_original(load, unlearn):
    """Whole run at k near n: nearly every weight returns to theta_o at each step but the last, where k = 0.

    Mutation: anchor at the last step's weights.
    """
    soft = unlearn("salun_soft", "--steps 40 --lr 1e-3 --mask_ratio 1.0")
    free = unlearn("rl", "--steps 40 --lr 1e-3")
    origin = dict(load().model.named_parameters())
    soft, free = (
        sum((value - origin[name]).abs().sum().item() for name, value in load(path).model.named_parameters()) for path in (soft, free)
    )
    assert soft < 0.5 * free


def test_fisher_is_the_mean_square_of_single_gradients(load, monkeypatch):
    """Mutation: square of the mean gradient."""
    loaded = load()
    three = loaded.retain.take(torch.arange(3))
    monkeypatch.setattr(passes, "FISHER_BATCH", 4)
    found = passes.fisher_diagonal(loaded.model, three, cpu(), timesteps=6, seed=1)
    t, total = ((torch.arange(6) + 0.5) * 1000 / 6).long(), 0
    for position in range(3):
        model = copy.deepcopy(loaded.model)
        noise = torch.randn(6, 1, 8, 8, generator=data.make_generator("fisher", 1, position))
        noisy = models.noisy_images(data.to_float(three.images[position : position + 1]).expand(6, -1, -1, -1), noise, t)
        (predict_noise(model, noisy, t, three.labels[position].expand(6)) - noise).square().mean().backward()
        total = total + model.conv_in.weight.grad.square() / 3
    torch.testing.assert_close(found["conv_in.weight"], total, rtol=1e-3, atol=1e-9)


# ---------------------------------------------------------------------------------------------------- training, autocast
def test_dropout_follows_from_the_seed(tmp_path, home):
    """Mutation: leave the global generator as it is."""
    for name in ("first", "second"):
        torch.rand(7 if name == "first" else 8)  # whatever ran before
        ok("train", TINY, "--arch tiny_dropout --steps 3 --data_dir", home / "data", "--save_dir", tmp_path / name)
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == (tmp_path / "second" / "model.safetensors").read_bytes()


def test_class_dropout_trains_the_null_class(load):
    """Mutation: uniform <= 0, never dropped."""
    loaded = load()
    batch = data.Stream(loaded.retain, batch_size=2000, seed=1, timesteps=1000).batch(0)
    labels = trainer.drop_labels(batch, 10, 0.1)
    assert 0.07 < (labels == 10).float().mean() < 0.13 and torch.equal(labels[labels != 10], batch.labels[labels != 10])
    fresh = models.build_unet(**loaded.facts["architecture"], seed=1).class_embedding.weight
    assert not torch.equal(loaded.model.class_embedding.weight[10], fresh[10])


def test_autocast_begins_and_ends_with_a_forward_pass():
    """Breaks if autocast is put around the loss again: PyTorch before 2.11 then trains on weight casts that carry no gradient."""
    accelerator = cpu("bf16")
    model = models.build_unet("tiny", num_classes=10, channels=1, image_size=8, seed=0)
    part, x, t = model.conv_out, torch.randn(4, 1, 8, 8), torch.arange(4)
    predict = lambda model: predict_noise(model.eval(), x, t, t).detach()  # noqa: E731
    names, inside = list(model.state_dict()), []
    part.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    model = trainer.prepare(model, accelerator)
    copied = copy.deepcopy(model)
    output = predict(model)
    assert not torch.is_autocast_enabled("cpu") and inside == [True] and output.dtype == torch.float32
    with passes.without_autocast(model), torch.no_grad():
        whole = predict(model)
    assert inside == [True, False] and not torch.equal(whole, output) and torch.equal(predict(model), output)
    assert list(model.state_dict()) == list(copied.state_dict()) == names and not accelerator._models
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not predict(copied).any() and torch.equal(predict(model), output)


def test_every_weight_is_trained_in_half_precision(unlearn):
    """Breaks if a pass under no_grad leaves its weight casts to the pass that trains. With PyTorch from 2.11 on it cannot."""
    folder = unlearn("salun", SHORT["salun"], "--precision bf16")
    assert json.loads((folder / "done.json").read_text())["fraction_changed"] > 0.4
