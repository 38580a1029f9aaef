"""Every method trains and keeps its promise. Each test names the mutation that would break it."""

import argparse
import copy
import importlib
import json
import sys
import types
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import PartialState
from torch import nn

import cli
import data
import masking
import methods
import metrics
import models
import passes
import trainer
from cli import RunError
from files import read_tensors
from helpers import NUM_FORGET, TINY, cpu, null_run_folder, ok, script, trainer_of
from trainer import Trainer

# Settings strong enough to move a tiny model in a second, and what must come of them: 'away' where the model must err more
# on the forget set, 'stay' where it only must keep the rest.
PROMISES = {
    "retrain": ("", "stay"),
    "ft": ("--lr 0.05 --epochs 2", "stay"),
    "rl": ("--lr 0.02 --epochs 4", "away"),
    "ga": ("--lr 0.003 --epochs 4", "away"),
    "iu": ("--iu_scale 0.3 --fisher_samples 100", "away"),
    "iu_exact": ("--iu_scale 1 --fisher_samples 100", "away"),
    "fisher": ("--fisher_samples 100", "away"),
    "be": ("--lr 0.003 --epochs 6", "away"),
    "bs": ("--lr 0.003 --epochs 6", "away"),
    "l1_sparse": ("--lr 0.05 --epochs 2", "stay"),
    "salun": ("--lr 0.02 --epochs 4", "away"),
    "salun_soft": ("--lr 0.02 --epochs 4", "away"),
    "neggrad_plus": ("--lr 0.02 --epochs 3 --beta 0.9", "away"),
    "scrub": ("--lr 0.01 --epochs 3 --ascent_epochs 3 --alpha 1 --gamma 1", "away"),
    "ssd": ("--ssd_alpha 1.2 --ssd_lambda 0.5", "away"),
    "bad_teacher": ("--lr 0.003 --epochs 4 --batch_size 64 --retain_share 1", "away"),
    "sfron": ("--steps 100", "away"),
    "scissorhands": ("--lr 0.01 --epochs 3 --batch_size 64 --trim_layers fc", "away"),
    "munba": ("--lr 0.02 --epochs 3", "away"),
}


@pytest.fixture(scope="module")
def class_mask(home):
    ok("generate_mask", "--model_path", home / "original", "--forget_class 3 --save_dir", home / "class_mask")
    return home / "class_mask"


def loss_and_accuracy(model, split):
    logits = passes.predict_logits(model, split)
    return torch.nn.functional.cross_entropy(logits, split.labels).item(), metrics.accuracy(logits, split.labels)


def inputs(name):
    return cli.method_inputs(methods.METHODS[name])


SHORT = {"epochs": "1", "fisher_samples": "50", "steps": "10", "trim_layers": "features fc"}


def short(name):
    """Flags that make a method quick."""
    flags = cli.method_flags(methods.METHODS[name])
    return " ".join(f"--{flag} {value}" for flag, value in SHORT.items() if flag in flags)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_method_keeps_its_promise_on_a_class(name, unlearn, load, class_mask):
    """Mutation: swap the sign of the forget loss, or forget and retain."""
    flags, promise = PROMISES[name]
    mask = ["--mask_path", class_mask] if name in methods.NEEDS_MASK else []
    folder = unlearn(name, flags, *mask, forget="--forget_class 3")
    before, after = load(forget_class=["3"], num_forget=None), load(folder, forget_class=["3"], num_forget=None)
    (forget_before, _), (forget_after, forget_accuracy) = (loss_and_accuracy(one.model, one.forget) for one in (before, after))
    (_, retain_before), (_, retain_after) = (loss_and_accuracy(one.model, one.retain) for one in (before, after))
    if promise == "away":
        assert forget_after > forget_before + 0.2
    if name in ("retrain", "rl", "salun", "salun_soft"):
        assert forget_accuracy < 20
    assert retain_after > retain_before - (40 if "retain" not in inputs(name) or name in ("iu", "ssd") else 8)
    done = json.loads((folder / "done.json").read_text())
    assert 0 < done["fraction_changed"] <= 1 and done["images_seen"] > 0 and done["seconds"] > 0


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(unlearn, monkeypatch):
    """With a backend that takes the graph as it is: the default one needs a C++ compiler. Mutation: no compile() in unlearn.py; MUNBa's
    second way through a graph whose buffers are donated."""
    compiled, plainly = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compiled.append(plainly(model, backend="aot_eager")))
    folders = [unlearn("salun", short("salun"), "--precision fp32", more) for more in ("", "--compile")]
    plain, folded = (read_tensors(folder / "model.safetensors")[0] for folder in folders)
    unlearn("munba", short("munba"), "--compile")
    assert len(compiled) == 2
    for key, tensor in plain.items():
        torch.testing.assert_close(folded[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_every_method_is_tested():
    assert set(PROMISES) == set(methods.METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - methods.TAKES_NO_MASK))
def test_every_method_under_a_mask_leaves_frozen_weights_bitwise_equal(name, home, unlearn, load):
    """Mutation: pass mask=None to the Trainer or to apply_where."""
    folder = unlearn(name, short(name), "--mask_path", home / "mask")
    before, after = dict(load().model.named_parameters()), dict(load(folder).model.named_parameters())
    mask, _ = masking.load(home / "mask", before, load().facts)
    for key in before:
        assert torch.equal(before[key][~mask[key]], after[key][~mask[key]])
    assert json.loads((folder / "done.json").read_text())["fraction_changed"] <= 0.5


@pytest.mark.slow
def test_a_mask_of_ratio_one_equals_no_mask(home, unlearn):
    """Mutation: floor(ratio * n) - 1."""
    ok("generate_mask", "--model_path", home / "original", "--num_forget 60 --mask_ratio 1.0 --save_dir", home / "mask_1")
    with_mask, without = unlearn("salun", "--epochs 1", "--mask_path", home / "mask_1"), unlearn("rl", "--epochs 1")
    assert (with_mask / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_same_seed_same_bytes_and_another_seed_others(unlearn):
    """Mutation: seed from the clock."""
    first, second, other = (unlearn("salun", f"--epochs 1 --seed {seed}") / "model.safetensors" for seed in (0, 0, 1))
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


# ------------------------------------------------------------------------------------------------ what a method is handed
def poisoned(split, seed=7):
    """A split of the same size with other images and labels."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, split.images.shape, generator=draw, dtype=torch.uint8)
    return data.Split(images, torch.randint(10, split.labels.shape, generator=draw), split.indices, split.name)


@pytest.mark.parametrize(
    "name, unseen", [(name, "retain") for name in ("ga", "be", "bs")] + [(name, "forget") for name in ("ft", "l1_sparse", "retrain")]
)
def test_a_method_never_sees_the_data_that_it_does_not_name(name, unseen, unlearn, monkeypatch):
    """Mutation: let a Split hold the images of the whole data set, and a method read them."""
    import task

    load_task = task.load_task

    def poison(*args, **options):
        loaded = load_task(*args, **options)
        setattr(loaded, unseen, poisoned(getattr(loaded, unseen)))
        return loaded

    clean = unlearn(name, "--epochs 1")
    monkeypatch.setattr(task, "load_task", poison)
    assert (unlearn(name, "--epochs 1") / "model.safetensors").read_bytes() == (clean / "model.safetensors").read_bytes()
    assert unseen not in inputs(name)


def test_a_split_holds_its_own_images_only(load):
    """Mutation: keep a reference to the images of the whole data set in a Split."""
    loaded = load()
    for split in (loaded.forget, loaded.retain):
        assert len(split.images) == len(split.labels) == len(split)
        assert split.images.untyped_storage().nbytes() == split.images.numel()


# ------------------------------------------------------------------------------------------------- a method of one's own
OWN_METHOD = '''
from cli import positive_float
from trainer import cross_entropy

FLAGS = {"push": dict(type=positive_float, help="weight of the forget term")}
TRAINING = {"momentum": 0.0}


def mine(model, forget, retain, trainer, *, epochs=1, lr=0.01, push=0.5):
    """Descend on the retain set, ascend on the forget set."""
    for _ in trainer.epochs(epochs, lr, total=epochs * trainer.count_steps(forget, retain)):
        for forget_batch, retain_batch in trainer.batches(forget, retain):
            trainer.step(forget=-push * cross_entropy(model, forget_batch), retain=cross_entropy(model, retain_batch))
'''


def module_of(tmp_path, monkeypatch, name, text):
    """Import a file of one method and give its function a line in METHODS."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(name)
    monkeypatch.setitem(methods.METHODS, name, getattr(module, name))
    return module


@pytest.mark.slow
def test_a_new_method_with_a_flag_of_its_own_is_one_file_and_one_line(tmp_path, monkeypatch, unlearn, home, capsys):
    """Mutation: keep the flags of all methods in unlearn.py; name the methods in table.py."""
    module_of(tmp_path, monkeypatch, "mine", OWN_METHOD)
    folders = [unlearn("mine", "--push 0.25"), unlearn("ft", "--epochs 1"), unlearn("mine", "--push 0.25 --momentum 0.9")]
    args = json.loads((folders[0] / "args.json").read_text())
    assert args["options"] == {"epochs": 1, "lr": 0.01, "push": 0.25}
    first, _, with_momentum = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first != with_momentum  # TRAINING is a default: the flag goes first
    ok("evaluate", "--precision fp32 --model_path", *folders[:2])
    (tmp_path / "runs").mkdir()
    for folder in folders[:2]:
        folder.rename(tmp_path / "runs" / folder.parent.name)
    monkeypatch.undo()  # table.py needs no line for it
    ok("table", tmp_path / "runs")
    assert "mine" in capsys.readouterr().out
    assert script("unlearn", "--method ft --push 1 --num_forget 60 --model_path", home / "original", "--save_dir", tmp_path / "no") != 0


def test_what_a_method_cannot_be_handed_is_named(monkeypatch):
    """Mutation: let a KeyError or a TypeError speak."""

    def odd(model, mask, epochs=1): ...

    with pytest.raises(RunError, match=r"odd asks for mask, epochs: there are model, and flags stand after a \*"):
        cli.handed(odd, {"model": 0})
    assert cli.handed(odd, {"model": 0, "mask": 1, "epochs": 2, "val": 3}) == {"model": 0, "mask": 1, "epochs": 2}
    monkeypatch.setattr(sys.modules[__name__], "TRAINING", {"lr": 1.0}, raising=False)
    with pytest.raises(RunError, match="TRAINING of odd has lr"):
        cli.training_settings(argparse.Namespace(batch_size=None), odd, {}, {"batch_size": 3})


@pytest.mark.parametrize(
    "text, message",
    [
        ("def odd(model, trainer, *, strange=1): ...", "method odd has --strange in its signature but not in FLAGS"),
        ("FLAGS = {'beta': dict(type=int, help='')}\ndef odd(model, trainer, *, beta=1): ...", "--beta, which is declared already"),
        ("FLAGS = {'lr': dict(type=int, help='')}\ndef odd(model, trainer, *, lr=1): ...", "--lr, which is declared already"),
        ("FLAGS = {'device': dict(type=int, help='')}\ndef odd(model, trainer, *, device=1): ...", "--device, which is declared already"),
        ("def odd(model, trainer, *, data_dir=1): ...", "method odd: "),
    ],
)
def test_a_flag_without_a_declaration_or_with_two_names_its_method(text, message, tmp_path, monkeypatch, capsys):
    """Mutation: let argparse or a KeyError speak."""
    module = types.ModuleType("odd")
    exec(text, module.__dict__)
    monkeypatch.setitem(sys.modules, "odd", module)
    monkeypatch.setitem(methods.METHODS, "odd", module.odd)
    assert script("unlearn", "--method ft --num_forget 60 --model_path", tmp_path, "--save_dir", tmp_path / "run") == 1
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ the Trainer
def few(count=8, name="train"):
    return data.Split(torch.zeros(count, 2, 2, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), torch.arange(count), name)


def test_a_step_without_a_loss_term_says_so():
    """Mutation: let sum(()) fail."""
    loop, split = trainer_of(torch.nn.Linear(4, 2)), few()
    with pytest.raises(RunError, match=r"trainer.step\(\) was called without a loss term"):
        for _ in loop.epochs(1, 0.1, split):
            loop.step()


@pytest.mark.parametrize("passes", [0, 2])
def test_a_method_takes_the_steps_that_it_announces(passes):
    """Mutation: let the schedule end early, or go on, to a rate below zero."""
    model = torch.nn.Linear(4, 2)
    loop, split = trainer_of(model, schedule="linear"), few()
    with pytest.raises(RunError, match=r"announced .*to trainer.epochs"):
        for _ in loop.epochs(1, 0.1, split):
            for batch in [batch for _ in range(passes) for batch in loop.batches(split)]:
                loop.step(train=model(batch.images.flatten(1)).sum())


def test_what_is_done_to_averaged_gradients_is_averaged_itself(load):
    """GPUs may round differently, and nothing would bring their models together again. Mutation: leave out either reduce()."""
    scissorhands, sfron = (importlib.import_module(f"methods.{name}") for name in ("scissorhands", "sfron"))
    loaded, found = load(), {"ascent": [], "fisher": []}
    for factor in (1, 2):
        accelerator = types.SimpleNamespace(mixed_precision="no", reduce=lambda tensor, how, factor=factor: factor * tensor)
        loop = types.SimpleNamespace(accelerator=accelerator, seed=1, settings=types.SimpleNamespace(batch_size=20))
        found["ascent"].append(scissorhands.ascent(loaded.model, loaded.forget, accelerator))
        found["fisher"].append(sfron.batch_fisher(loaded.model, loaded.forget, loop))
    for once, twice in found.values():
        for name, tensor in once.items():
            torch.testing.assert_close(twice[name], 2 * tensor, msg=name)


def test_what_a_method_draws_before_its_loop_follows_from_the_seed(unlearn, monkeypatch):
    """Mutation: start a method in whatever state torch's generator is."""
    drawn = []
    monkeypatch.setitem(methods.METHODS, "ga", lambda model, *, lr=1.0: drawn.append(torch.randint(1 << 30, (1,)).item()))
    for seed in (1, 1, 2):
        unlearn("ga", "--seed", seed)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("mask", [False, True])
def test_a_tensor_without_a_gradient_ends_the_run(mask):
    """Mutation: do not look at the first step's gradients. The optimizer passes such a tensor over in silence."""
    model = torch.nn.Module()
    model.used, model.idle = torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)
    chosen = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in model.named_parameters()} if mask else None
    split = few()

    def run(weight):
        loop = trainer_of(model, chosen)
        for _ in loop.epochs(1, 0.1, split):
            for batch in loop.batches(split):
                features = model.used(batch.images.flatten(1)[:, :4])
                loop.step(train=features.sum() if weight is None else (features + weight * model.idle(features)).sum())

    with pytest.raises(RunError, match="idle.weight no gradient"):
        run(None)
    run(0.0)  # a gradient of zeros is one


@pytest.mark.slow
def test_training_flags_reach_the_trainer(unlearn):
    """Mutation: drop any of the settings in unlearn.py."""
    plain = (unlearn("rl", "--epochs 1") / "model.safetensors").read_bytes()
    for flags in ("--optimizer adam", "--momentum 0.5", "--weight_decay 0.1", "--schedule cosine", "--batch_size 32", "--no-augment"):
        assert (unlearn("rl", "--epochs 1", flags) / "model.safetensors").read_bytes() != plain, flags
    folder = unlearn("ga", "--epochs 1 --forget_batch_size 20")
    assert (folder / "log.csv").read_text().splitlines()[-1].startswith("3,")  # 60 samples in 3 steps, where 64 would make 1


def test_unlearning_augments_as_the_original_was_trained(home, tmp_path):
    """Mutation: DATASETS[dataset] in unlearn.py."""
    written = {"original": set(), "ft": set()}
    for crop in (0, 1):
        original, unlearned = tmp_path / f"original{crop}", tmp_path / f"ft{crop}"
        start = ("--data_dir", home / "data", "--model_path", home / "original", "--save_dir", original)
        ok("train", TINY, "--epochs 0 --crop", crop, *start)
        flags = ("--num_forget", NUM_FORGET, "--epochs 1 --precision fp32 --save_dir", unlearned)
        ok("unlearn", "--method ft --model_path", original, *flags)
        for name, folder in zip(written, (original, unlearned), strict=True):
            written[name].add((folder / "model.safetensors").read_bytes())
    assert len(written["original"]) == 1 and len(written["ft"]) == 2


def test_settings_come_from_the_flag_then_the_authors_then_the_original():
    """Mutation: swap the order of the three."""
    args = types.SimpleNamespace(optimizer="adam", momentum=None, weight_decay=None, schedule=None)
    trained = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "step"}
    defaults = dict(optimizer=None, momentum=None, weight_decay=0.0, schedule="constant")
    found = cli.training_settings(args, methods.METHODS["retrain"], trained, defaults)
    assert found == {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0, "schedule": "step"}


# ------------------------------------------------------------------------------------------------------- single methods
def test_boundary_expanding_leaves_no_extra_class(unlearn, home, load):
    """Mutation: replace the head and forget to put the old shape back."""
    folder = unlearn("be", "--epochs 1")
    saved, original = (read_tensors(path / "model.safetensors")[0] for path in (folder, home / "original"))
    assert {name: tensor.shape for name, tensor in saved.items()} == {name: tensor.shape for name, tensor in original.items()}
    assert not models.head(load(folder).model)._forward_hooks


def test_boundary_shrink_takes_the_answer_to_the_attacked_image(load):
    """Mutation: never take the true class, take it with bs_exclude_true, or take the prediction on the clean image."""
    from methods.bs import nearest_class

    loaded = load()
    labels, wrong = (nearest_class(loaded.model, loaded.forget, 0.02, exclude) for exclude in (False, True))
    truth = loaded.forget.labels
    assert 0 < int((labels == truth).sum()) < len(truth) and (wrong != truth).all()
    for at in (0, int((labels != truth).nonzero()[0])):
        images, true = data.to_float(loaded.forget.images[at : at + 1]), truth[at : at + 1]
        images.requires_grad_(True)
        torch.nn.functional.cross_entropy(loaded.model(images), true).backward()
        logits = loaded.model((images + 0.02 * images.grad.sign()).clamp(0, 1))[0].tolist()
        assert int(labels[at]) == max(range(10), key=logits.__getitem__)
        logits[int(true)] = float("-inf")
        assert int(wrong[at]) == max(range(10), key=logits.__getitem__)


def test_retrain_sees_the_images_as_the_original_did(unlearn, home):
    """Mutation: load the fresh model's buffers, whose mean is 0 and whose deviation is 1."""
    retrained, original = (read_tensors(path / "model.safetensors")[0] for path in (unlearn("retrain", "--epochs 1"), home / "original"))
    for name in ("pixel_mean", "pixel_std"):
        assert torch.equal(retrained[name], original[name]) and original[name].item() not in (0.0, 1.0)


def test_scrub_rewinds_to_the_epoch_whose_forget_error_is_that_of_unseen_images(monkeypatch):
    """Mutation: take the first epoch, the last one, or validation images of all classes."""
    module, model, split = importlib.import_module("methods.scrub"), torch.nn.Linear(1, 1), few(8)
    errors = {0.0: 0.0, 1.0: 0.25, 2.0: 0.5}  # by the weight
    states = module.States(model, 3)
    for epoch in range(3):
        torch.nn.init.constant_(model.weight, float(epoch))
        states.keep(epoch, model)
    wrong = lambda share: torch.eye(2)[(torch.arange(8) < 8 * share).long()]  # noqa: E731
    monkeypatch.setattr(module, "predict_logits", lambda model, one: wrong(0.3 if one is not split else errors[model.weight.item()]))
    module.go_back(model, states, 3, types.SimpleNamespace(count=lambda one: one), split, few(8, "val"))
    assert model.weight.item() == 1.0
    with pytest.raises(RunError, match="--rewind needs validation images of the forgotten classes"):
        val = data.Split(split.images, split.labels + 1, split.indices, "val")
        module.scrub(model, split, split, val, trainer_of(model), rewind=True)


def test_an_ascent_that_runs_away_ends_in_a_sentence(home, tmp_path, capsys):
    """Mutation: look for NaN alone: the KL is finite, and huge."""
    flags = "--method scrub --num_forget 60 --lr 50 --epochs 3 --precision fp32"
    assert script("unlearn", flags, "--model_path", home / "original", "--save_dir", tmp_path / "run") == 1
    assert "the ascent diverged, to a KL of" in capsys.readouterr().err and not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("spelling, ours", [("wfisher", "iu_scale"), ("FT_prune", "gamma"), ("fisher_new", "noise_scale")])
def test_alpha_of_the_paper_repository_is_the_flag_of_that_method(spelling, ours, home, tmp_path, capsys):
    """Mutation: refuse --alpha, or let it win over the flag itself."""
    import unlearn

    command = [
        "--unlearn",
        spelling,
        "--alpha",
        "0.25",
        "--num_forget",
        "60",
        "--model_path",
        str(home),
        "--save_dir",
        str(tmp_path / "run"),
    ]
    assert unlearn.parse(command).options[ours] == 0.25
    assert script("unlearn", *command, f"--{ours} 1") != 0
    assert f"--alpha is the paper repository's spelling of --{ours}" in capsys.readouterr().err


def test_soft_threshold_is_anchored_at_the_original(load, monkeypatch):
    """Mutation: take the anchor inside proximal_step, each step or epoch."""
    module = importlib.import_module("methods.salun_soft")
    loaded = load()
    model, origin, loop = loaded.model, copy.deepcopy(loaded.model), trainer_of(loaded.model)
    monkeypatch.setattr(module, "salun", lambda *args, **options: None)
    module.salun_soft(model, loaded.forget, loaded.retain, loop, {"dataset": "digits"}, mask_ratio=0.5)
    seen = []
    with masking.SalientParameters(dict(model.named_parameters())) as salient, torch.no_grad():
        for progress in (0.0, 0.5, 1.0):
            for leaf in salient.parameters():
                leaf.add_(torch.randn(leaf.shape, generator=torch.Generator().manual_seed(leaf.numel())), alpha=0.01)
            loop.after_step(salient, progress)
            moved = torch.cat([(a != b).flatten() for a, b in zip(model.parameters(), origin.parameters(), strict=True)])
            seen.append(moved.double().mean().item())
    assert seen == pytest.approx([0.5, 0.75, 1.0], abs=0.001)


@pytest.mark.parametrize("dataset, mix, mixes", [("cifar10", None, True), ("svhn", None, False), ("cifar10", False, False)])
def test_soft_salun_mixes_where_the_release_does(dataset, mix, mixes, monkeypatch):
    """Mutation: leave out cifar10, or let the data set win over the flag."""
    module, seen = importlib.import_module("methods.salun_soft"), {}
    monkeypatch.setattr(module, "salun", lambda *args, **options: seen.update(options))
    module.salun_soft(torch.nn.Linear(1, 1), None, None, Mock(), {"dataset": dataset}, mix=mix)
    assert seen["mix"] is mixes


class Recorder(Trainer):
    """A Trainer that keeps the loss terms of each step and changes nothing."""

    def step(self, **terms):
        self.terms = [*getattr(self, "terms", []), {name: value.item() for name, value in terms.items()}]
        self.steps_done += 1


def test_l1_weight_falls_linearly_to_zero(load):
    """Mutation: a constant weight."""
    loaded = load()
    norm = sum(parameter.abs().sum().item() for parameter in loaded.model.parameters())
    loop = Recorder(loaded.model, null_run_folder(), cpu(), seed=1, batch_size=2000)
    methods.METHODS["l1_sparse"](loaded.model, loaded.retain, loop, epochs=4, gamma=1e-3)
    assert [terms["l1"] / norm for terms in loop.terms] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4], rel=1e-4)


def test_mixed_passes_relabel_the_forget_set_only(load, monkeypatch):
    """Mutation: relabel by position in the batch."""
    loaded = load()
    loop = Recorder(loaded.model, null_run_folder(), cpu(), seed=1, batch_size=10_000)
    model = loaded.model.eval()
    monkeypatch.setattr(model, "train", lambda mode=True: model)  # stay in eval mode, for the comparison below
    methods.METHODS["rl"](model, loaded.forget, loaded.retain, loop, epochs=1, mix=True, alpha=2.0)
    total = len(loaded.forget) + len(loaded.retain)
    with torch.no_grad():
        logits = loaded.model(data.to_float(loaded.retain.images))
        retain = torch.nn.functional.cross_entropy(logits, loaded.retain.labels, reduction="sum") / total
    (terms,) = loop.terms
    assert terms["retain"] == pytest.approx(2 * float(retain), rel=1e-3)
    assert terms["forget"] > 3 * len(loaded.forget) / total  # wrong labels on a trained model


# ------------------------------------------------------------------------------------------------------- passes, autocast
def test_saliency_is_the_gradient_of_the_mean_loss_whatever_the_batches(load):
    """Mutation: average the gradients of batches."""
    loaded, accelerator = load(), cpu()
    whole, in_parts = (passes.mean_gradient(loaded.model, loaded.forget, accelerator, size) for size in (60, 7))
    images, labels = next(passes.plain_batches(loaded.forget, 1000))
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(loaded.model.eval()(images), labels), list(loaded.model.parameters()))
    for name, gradient in zip(whole, expected, strict=True):
        torch.testing.assert_close(whole[name], gradient, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(in_parts[name], gradient, rtol=1e-3, atol=1e-6)


def test_autocast_begins_and_ends_with_a_forward_pass():
    """Breaks if autocast is put around the loss again: PyTorch before 2.11 then trains on weight casts that carry no gradient."""
    accelerator = cpu("bf16")
    model = models.build("cnn", num_classes=10, channels=1, image_size=8, seed=0)
    part, x = models.head(model), torch.rand(4, 1, 8, 8)
    predict = lambda model: model.eval()(x).detach()  # noqa: E731
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
    """Mutation: a pass under no_grad that leaves its weight casts to the pass that trains. With PyTorch from 2.11 on it cannot."""
    folder = unlearn("salun", "--epochs 1 --precision bf16")
    assert json.loads((folder / "done.json").read_text())["fraction_changed"] > 0.4


def test_gradients_of_single_samples_stay_in_float32(load):
    """Mutation: run sample_gradients() under the autocast of the model's forward pass."""
    whole, half = (passes.fisher_diagonal(one.model, one.forget) for one in (load(precision="fp32"), load(precision="bf16")))
    assert all(torch.equal(whole[name], half[name]) for name in whole)


def test_a_job_opens_whatever_ran_before_in_this_process(load, monkeypatch):
    """Mutation: make the accelerator of a fixture without resetting accelerate's state, which a run on another device leaves behind."""
    cpu()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda"))
    assert load().forget.images.device.type == "cpu"
