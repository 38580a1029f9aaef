"""Every method trains and keeps its promise. Beside each property stands the mutation that would break it."""

import copy
import functools
import json
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import PartialState

import data
import engine
import masking
import methods
import metrics
import models
import run
from helpers import cpu, script

# Settings strong enough to move a tiny model in a second, and what must come of them: 'away' where the model must err more
# on the forget set, 'stay' where it only must keep the rest.
PROMISES = {
    "retrain": ([], "stay"),
    "ft": (["--lr", "0.05", "--epochs", "2"], "stay"),
    "rl": (["--lr", "0.02", "--epochs", "4"], "away"),
    "ga": (["--lr", "0.003", "--epochs", "4"], "away"),
    "iu": (["--iu_scale", "1", "--fisher_samples", "100"], "away"),
    "be": (["--lr", "0.003", "--epochs", "6"], "away"),
    "bs": (["--lr", "0.003", "--epochs", "6"], "away"),
    "l1_sparse": (["--lr", "0.05", "--epochs", "2"], "stay"),
    "salun": (["--lr", "0.02", "--epochs", "4"], "away"),
    "salun_soft": (["--lr", "0.02", "--epochs", "4"], "away"),
    "neggrad_plus": (["--lr", "0.02", "--epochs", "3", "--beta", "0.9"], "away"),
    "scrub": (["--lr", "0.01", "--epochs", "3", "--ascent_epochs", "3"], "away"),
    "ssd": (["--ssd_alpha", "1.2", "--ssd_lambda", "0.5"], "away"),
}
CLASS = ("--forget_class", "3")


@pytest.fixture(scope="module")
def class_mask(home):
    assert script("generate_mask", "--model_path", home / "original", *CLASS, "--save_dir", home / "class_mask") == 0
    return home / "class_mask"


def loss_and_accuracy(opened, split):
    logits = engine.predict(opened.model, split)
    return torch.nn.functional.cross_entropy(logits, split.labels()).item(), metrics.accuracy(logits, split.labels())


@pytest.mark.parametrize("name", methods.METHODS)
def test_method_keeps_its_promise_on_a_class(
    name, unlearn, opened, class_mask
):  # mutation: swap the sign of the forget loss, or forget and retain
    flags, promise = PROMISES[name]
    mask = ["--mask_path", class_mask] if name == "salun" else []
    folder = unlearn(name, *flags, *mask, forget=CLASS)
    before, after = opened(forget_class=["3"], num_forget=None), opened(folder, forget_class=["3"], num_forget=None)
    (forget_before, _), (forget_after, forget_accuracy) = loss_and_accuracy(before, before.forget), loss_and_accuracy(after, after.forget)
    (_, retain_before), (_, retain_after) = loss_and_accuracy(before, before.retain), loss_and_accuracy(after, after.retain)
    if promise == "away":
        assert forget_after > forget_before + 0.2
    if name in ("retrain", "rl", "salun", "salun_soft"):
        assert forget_accuracy < 20
    assert retain_after > retain_before - (40 if methods.reads(name) == ("forget",) or name in ("iu", "ssd") else 8)
    done = json.loads((folder / "done.json").read_text())
    assert 0 < done["fraction_changed"] <= 1 and done["images_seen"] > 0 and done["seconds"] > 0


def test_a_job_opens_whatever_ran_before_in_this_process(opened, monkeypatch):
    """Breaks if the fixture makes its accelerator without resetting accelerate's state, which a run on another device leaves behind."""
    cpu()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda"))
    assert opened().forget.x.device.type == "cpu"


def test_every_method_is_tested():
    assert set(PROMISES) == set(methods.METHODS)


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - methods.TAKES_NO_MASK))
def test_every_method_under_a_mask_leaves_frozen_weights_bitwise_equal(
    name, home, unlearn, opened
):  # mutation: pass mask=None to fit or to apply_where
    short = [
        word
        for flag, word in (("--epochs", "1"), ("--fisher_samples", "50"))
        if flag.strip("-") in methods.flags(name)
        for word in (flag, word)
    ]
    folder = unlearn(name, *short, "--mask_path", home / "mask")
    before, after = dict(opened().model.named_parameters()), dict(opened(folder).model.named_parameters())
    mask, _ = masking.load(home / "mask", before, opened().facts["forget_sha"])
    for key in before:
        assert torch.equal(before[key][~mask[key]], after[key][~mask[key]])
    assert json.loads((folder / "done.json").read_text())["fraction_changed"] <= 0.5


def test_a_mask_of_ratio_one_equals_no_mask(home, unlearn):  # mutation: floor(ratio * n) - 1
    assert (
        script("generate_mask", "--model_path", home / "original", "--num_forget", 60, "--mask_ratio", "1.0", "--save_dir", home / "mask_1")
        == 0
    )
    with_mask, without = unlearn("salun", "--epochs", "1", "--mask_path", home / "mask_1"), unlearn("rl", "--epochs", "1")
    assert (with_mask / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()


def test_same_seed_same_bytes_and_another_seed_others(unlearn):  # mutation: seed from the clock
    first, second, other = (unlearn("salun", "--epochs", "1", "--seed", seed) / "model.safetensors" for seed in (0, 0, 1))
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_retain_free_methods_are_handed_no_retain_data():  # mutation: hand every method everything
    assert methods.reads("ga") == methods.reads("be") == methods.reads("bs") == ("forget",)
    assert methods.reads("ft") == methods.reads("retrain") == methods.reads("l1_sparse") == ("retain",)
    assert methods.reads("salun") == ("forget", "retain")


def test_boundary_expanding_leaves_no_extra_class(unlearn, home, opened):  # mutation: replace the head and forget to put the old shape back
    folder = unlearn("be", "--epochs", "1")
    saved, _ = run.read_tensors(folder / "model.safetensors")
    original, _ = run.read_tensors(home / "original" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in saved.items()} == {name: tensor.shape for name, tensor in original.items()}
    assert not models.head(opened(folder).model)._forward_hooks


def test_boundary_shrink_picks_the_nearest_wrong_class(
    opened,
):  # mutation: drop the scatter of -inf, or take the prediction on the clean image
    from methods.bs import nearest_wrong_class

    job = opened()
    labels = nearest_wrong_class(job.model, job.forget, 0.1)[job.forget.rows]
    assert (labels != job.forget.labels()).all()
    x, y = next(engine.plain_batches(job.forget, 1))
    x.requires_grad_(True)
    torch.nn.functional.cross_entropy(job.model(x), y).backward()
    logits = job.model((x + 0.1 * x.grad.sign()).clamp(0, 1))[0].tolist()
    logits[int(y)] = float("-inf")
    assert int(labels[0]) == max(range(10), key=logits.__getitem__)


def test_soft_threshold_is_anchored_at_the_original(
    opened, monkeypatch
):  # mutation: take the anchor inside proximal_step, each step or epoch
    from methods.salun_soft import salun_soft

    job = opened()
    origin = copy.deepcopy(job.model)
    seen = []

    def fit(passes, loss, *, after_step, **options):
        with masking.Leaves(dict(job.model.named_parameters())) as leaves, torch.no_grad():
            for progress in (0.0, 0.5, 1.0):
                for leaf in leaves.parameters():
                    leaf.add_(torch.randn(leaf.shape, generator=torch.Generator().manual_seed(leaf.numel())), alpha=0.01)
                after_step(leaves, progress)
                moved = torch.cat([(a != b).flatten() for a, b in zip(job.model.parameters(), origin.parameters(), strict=True)])
                seen.append(moved.double().mean().item())

    salun_soft(job.model, job.forget, job.retain, fit, mask_ratio=0.5)
    assert seen == pytest.approx([0.5, 0.75, 1.0], abs=0.001)


def test_influence_step_equals_the_explicit_inverse(
    opened, monkeypatch
):  # mutation: forget the division by DAMPING, or s in the Woodbury identity
    module = __import__("methods.iu", fromlist=["iu"])
    job = opened()
    few = job.retain.take(job.retain.rows[:30])
    total = sum(parameter.numel() for parameter in job.model.parameters())
    draw = torch.Generator().manual_seed(0)
    project = torch.randn(total, 40, generator=draw) / total**0.5  # a small problem made of the same gradients

    def samples(split):
        for block in engine.sample_gradients(job.model, split):
            rows = torch.cat([gradients.flatten(1) for gradients in block.values()], 1)
            yield {"p": rows @ project}

    v = torch.randn(40, generator=draw)
    rows = torch.cat([block["p"] for block in samples(few)])
    for damping in (1.0, 1e-3):
        monkeypatch.setattr(module, "DAMPING", damping)
        expected = torch.linalg.solve((damping * torch.eye(40) + rows.T @ rows / 30).double(), v.double()).float()
        for size in (2 << 30, 4 * 40 * 7):  # in one block, and in five
            monkeypatch.setattr(module, "BLOCK_BYTES", size)
            torch.testing.assert_close(module.inverse_times(v, samples, few), expected, rtol=1e-3, atol=1e-4)


def test_dampening_follows_its_equation(opened):  # mutation: swap I and I_f, or drop the clamp at 1
    from methods.ssd import ssd

    job = opened()
    before = {name: parameter.detach().clone() for name, parameter in job.model.named_parameters()}
    of_forget, whole = engine.fisher_diagonal(job.model, job.forget), engine.fisher_diagonal(job.model, job.retain)
    answers = iter([whole, of_forget])
    ssd(job.model, job.forget, job.retain, lambda split: next(answers), None, ssd_alpha=2.0, ssd_lambda=5.0)
    for name, parameter in job.model.named_parameters():
        i, i_f = whole[name], of_forget[name]
        expected = torch.where(i_f > 2.0 * i, before[name] * (5.0 * i / i_f).clamp(max=1), before[name])
        assert torch.equal(parameter, expected)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in job.model.named_parameters())


def test_l1_weight_falls_linearly_to_zero(opened):  # mutation: a constant weight
    from methods.l1_sparse import l1_sparse

    job, weights = opened(), []

    def fit(passes, loss, *, epochs, lr):
        for epoch in range(epochs):
            passes(epoch)
            batch = next(data.epoch_batches(job.retain, 64, data.generator(0)))
            weights.append(loss(retain=batch)["l1"].item() / sum(parameter.abs().sum().item() for parameter in job.model.parameters()))

    l1_sparse(job.model, job.retain, fit, epochs=4, gamma=1e-3)
    assert weights == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4], rel=1e-4)


def test_mixed_passes_relabel_the_forget_set_only(opened):  # mutation: relabel by position in the batch
    from methods.rl import rl

    job, terms = opened(), {}
    job.model.eval()

    def fit(passes, loss, *, epochs, lr):
        (splits,) = passes(0)
        assert len(splits["both"]) == len(job.forget) + len(job.retain)
        batch = next(data.epoch_batches(splits["both"], 10_000, data.generator(0)))
        terms.update(loss(both=batch))

    rl(job.model, job.forget, job.retain, fit, mix=True, alpha=2.0)
    total = len(job.forget) + len(job.retain)
    with torch.no_grad():
        retain = (
            torch.nn.functional.cross_entropy(job.model(data.to_float(job.retain.x[job.retain.rows])), job.retain.labels(), reduction="sum")
            / total
        )
    assert terms["retain"].item() == pytest.approx(2 * float(retain), rel=1e-3)
    assert terms["forget"].item() > 3 * len(job.forget) / total  # wrong labels on a trained model


def test_saliency_is_the_gradient_of_the_mean_loss_whatever_the_batches(opened):  # mutation: average the gradients of batches
    job = opened()
    accelerator = cpu()
    whole, in_parts = (
        engine.mean_gradient(job.model, job.forget, accelerator, 60),
        engine.mean_gradient(job.model, job.forget, accelerator, 7),
    )
    x, y = next(engine.plain_batches(job.forget, 1000))
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(job.model.eval()(x), y), list(job.model.parameters()))
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
    folder = unlearn("salun", *["--epochs", "1"], "--precision", "bf16")
    assert json.loads((folder / "done.json").read_text())["fraction_changed"] > 0.4


def test_gradients_of_single_samples_stay_in_float32(home):
    """Breaks if sample_gradients() runs under the autocast of the model's forward pass."""
    import job

    flags = {"forget_class": None, "num_forget": 20, "forget_indices": None, "split_seed": None}
    jobs = [job.open_job(home / "original", flags, cpu(precision)) for precision in ("fp32", "bf16")]
    whole, half = (engine.fisher_diagonal(one.model, one.forget) for one in jobs)
    assert all(torch.equal(whole[name], half[name]) for name in whole)


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
        engine.fit(model, lambda epoch: [{"train": split}], loss, epochs=1, **options)
    engine.fit(
        model, lambda epoch: [{"train": split}], functools.partial(loss, weight=0.0), epochs=1, **options
    )  # a gradient of zeros is one
