"""Every method trains and keeps its promise. Each test names the mutation that would break it."""

import copy
import csv
import functools
import importlib
import sys
import types
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import cli
import data
import families
import masking
import methods
import models
import passes
import pipelines
import sampling
import task
from cli import RunError
from files import read_json, read_tensors
from helpers import FORGOTTEN, cpu, ok, script
from methods.ca import start_token_detached
from methods.fmn import CrossAttention
from trainer import Trainer, prepare

THREE, FOUR = 3, 4
# Settings strong enough to move a tiny model in seconds.
GENERATED = "--num_images 16 --generation_steps 5 --generation_guidance_scale 2"
SETTINGS = {
    "ga": "--steps 15 --lr 5e-4",
    "ga_retain": "--steps 15 --lr 5e-4",
    "rl": "--steps 60 --lr 1e-3 --alpha 1 --batch_size 16",
    "esd": "--steps 60 --lr 1e-3 --sample_steps 4 --batch_size 16",
    "fmn": "--steps 40 --lr 1e-3",
    "salun": "--steps 60 --lr 1e-3 --alpha 1 --batch_size 16",
    "salun_soft": "--steps 60 --lr 1e-3 --alpha 1 --batch_size 24",
    "uce": "--preserve retained",
    "ca": f"--steps 60 --lr 1e-3 --train_method full --batch_size 16 {GENERATED}",  # keys and values alone do little in so small a network
}
SHORT = {name: f"{flags} --steps 3" if "--steps" in flags else flags for name, flags in SETTINGS.items()}


@pytest.fixture(scope="session")
def plain(unlearn):
    """plain(method) -> the run folder of unlearn(method, SHORT[method]), made once."""
    return functools.cache(lambda name: unlearn(name, SHORT[name]))


@torch.no_grad()
def probe(loaded, split, label=None):
    """(predictions for the split's latents under their own prompt or prompt `label`, their targets), at fixed noise and timesteps."""
    latents, labels, t, noise = (torch.cat(parts) for parts in zip(*data.whole_pass(split, 64, 9, 1000, "cpu"), strict=True))
    labels = labels if label is None else torch.full_like(labels, label)
    noisy = loaded.family.add_noise(latents, noise, t)
    prediction = loaded.family.predict(loaded.family.model.eval(), noisy, t, loaded.embeddings[labels])
    return prediction, loaded.family.target(latents, noise, t)


def difference(a, b):
    return (a - b).square().mean().item()


def loss(loaded, split):
    return difference(*probe(loaded, split))


def apart(loaded, a, b):
    """Mean squared distance of the predictions under two prompts."""
    return difference(probe(loaded, loaded.forget, a)[0], probe(loaded, loaded.forget, b)[0])


def attention_paid(loaded):
    """Mean attention probability that the word "three" gets."""
    latents, labels, t, noise = next(data.whole_pass(loaded.forget, 64, 9, 1000, "cpu"))
    with torch.no_grad(), CrossAttention(loaded.family.model) as attention:
        loaded.family.predict(loaded.family.model, loaded.family.add_noise(latents, noise, t), t, loaded.embeddings[labels])
    return torch.stack([found[..., 5].mean() for found in attention.found]).mean().item()  # start, an, image, of, a, three


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_method_keeps_its_promise(name, unlearn, load):
    """Mutation: swap the sign of the forget loss, or forget and retain."""
    before, after = load(), load(unlearn(name, SETTINGS[name]))
    if name in ("ga", "ga_retain"):
        assert loss(after, after.forget) > 1.5 * loss(before, before.forget)
    if name in ("rl", "salun", "salun_soft", "uce", "ca"):
        assert apart(after, THREE, FOUR) < 0.4 * apart(before, THREE, FOUR)
    if name == "esd":
        conditional, null = probe(before, before.forget)[0], probe(before, before.forget, len(before.prompts) - 1)[0]
        target = null - (conditional - null)
        assert difference(probe(after, after.forget)[0], target) < 0.7 * difference(conditional, target)
    if name == "fmn":
        assert attention_paid(after) < 0.5 * attention_paid(before)
    if name in ("rl", "salun", "salun_soft"):
        assert loss(after, after.retain) < 1.1 * loss(before, before.retain)  # the others hold nothing, or prompts, back
    if name == "uce":
        moved = {label: difference(probe(before, before.retain, label)[0], probe(after, after.retain, label)[0]) for label in (0, 3, 7)}
        assert max(moved[0], moved[7]) < 0.2 * moved[THREE]


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(unlearn, plain, monkeypatch):
    """With a backend that takes the graph as it is: the default one needs a C++ compiler. Mutation: no compile() in unlearn.py."""
    compiled, plainly = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compiled.append(plainly(model, backend="aot_eager")))
    folders = (plain("salun"), unlearn("salun", SHORT["salun"], "--compile"))
    expected, folded = (read_tensors(folder / "model/unet/diffusion_pytorch_model.safetensors")[0] for folder in folders)
    assert len(compiled) == 1
    for key, tensor in expected.items():
        torch.testing.assert_close(folded[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


def test_every_method_is_tested():
    assert set(SETTINGS) == set(methods.METHODS)


@pytest.mark.slow
def test_a_layerwise_mask_has_as_many_of_each_tensor_as_the_saliency_mask(home, load, tmp_path):
    """Mutation: draw over all tensors pooled, or keep the saliency mask."""
    start = ("--model_path", home / "original", "--batch_size 64 --forget_class", FORGOTTEN)
    ok("generate_mask", *start, "--mask_kind layerwise --seed 1 --save_dir", tmp_path / "mask")
    weights = dict(load().family.model.named_parameters())
    (salient, _), (drawn, info) = (masking.load(path, weights, load().facts) for path in (home / "mask", tmp_path / "mask"))
    assert info["mask_kind"] == "layerwise"
    assert [int(drawn[name].sum()) for name in drawn] == [int(salient[name].sum()) for name in drawn]
    assert 0.4 < sum(int((drawn[name] & salient[name]).sum()) for name in drawn) / masking.count(salient)[0] < 0.7  # alike by chance only


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - methods.TAKES_NO_MASK))
def test_every_method_under_a_mask_leaves_frozen_weights_bitwise_equal(name, home, unlearn, load):
    """Mutation: pass mask=None to the Trainer."""
    folder = unlearn(name, SHORT[name], "--train_method full --mask_path", home / "mask")
    before, after = (dict(load(path).family.model.named_parameters()) for path in (home / "original", folder))
    mask, _ = masking.load(home / "mask", before, load().facts)
    assert all(torch.equal(after[key][~mask[key]], before[key][~mask[key]]) for key in mask)
    moved, salient = sum(int((after[key] != before[key]).sum()) for key in mask), sum(int(part.sum()) for part in mask.values())
    assert 0.2 * salient < moved <= salient == sum(part.numel() for part in mask.values()) // 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train_method", "moves"),
    [
        ("xattn", lambda name: ".attn2." in name),
        ("noxattn", lambda name: not any(part in name for part in (".attn2.", "time_embedding", "conv_norm_out", "conv_out"))),
        ("xattn_kv", lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))),
        ("selfattn", lambda name: ".attn1." in name),
    ],
)
def test_train_method_moves_its_weights_alone(train_method, moves, home, unlearn, load):
    """Mutation: let restrict() return None."""
    before = dict(load().family.model.named_parameters())
    for mask in ((), ("--mask_path", home / "mask")):
        after = load(unlearn("rl", SHORT["rl"], "--train_method", train_method, *mask)).family.model
        changed = {name for name, parameter in after.named_parameters() if not torch.equal(parameter, before[name])}
        assert changed and all(moves(name) for name in changed)
        if mask:
            salient, _ = masking.load(home / "mask", before, load().facts)
            assert all(torch.equal(p[~salient[name]], before[name][~salient[name]]) for name, p in after.named_parameters())
        else:
            assert len(changed) > 0.9 * sum(map(moves, before))


@pytest.mark.slow
def test_the_method_says_which_weights_may_change_unless_a_flag_does(unlearn, load):
    """Mutation: leave TRAINING of esd.py unread; let it go before the flag."""
    before = dict(load().family.model.named_parameters())
    for flags, only_cross_attention in (("", True), ("--train_method full", False)):
        after = load(unlearn("esd", SHORT["esd"], flags)).family.model
        changed = [name for name, parameter in after.named_parameters() if not torch.equal(parameter, before[name])]
        assert all(".attn2." in name for name in changed) == only_cross_attention


@pytest.mark.slow
def test_vae_and_text_encoder_are_never_touched(home, unlearn):
    """Mutation: hand the parameters of pipeline.text_encoder to the Trainer."""
    after, before = (pipelines.open_pipeline(folder)[0] for folder in (unlearn("salun", SHORT["salun"]), home / "original"))
    assert models.sha(*after.frozen) == models.sha(*before.frozen)
    assert models.sha(after.model) != models.sha(before.model)


@pytest.mark.slow
def test_a_full_mask_equals_no_mask(home, unlearn, plain, tmp_path):
    """Mutation: always make compact leaves."""
    flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--mask_ratio 1.0 --save_dir", tmp_path / "mask")
    ok("generate_mask", *flags)
    masked = unlearn("salun", SHORT["salun"], "--mask_path", tmp_path / "mask")
    assert weights(masked) == weights(plain("rl"))


def weights(folder):
    return (folder / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["salun", "esd", "ca"])
def test_the_same_seed_gives_the_same_bytes(name, unlearn, plain):
    """Mutation: draw noise from the global generator. Of salun and esd, test_unlearning_resumes_... has two runs of one seed."""
    assert weights(plain(name)) != weights(unlearn(name, SHORT[name], "--seed 2"))
    if name == "ca":
        assert weights(plain(name)) == weights(unlearn(name, SHORT[name], "--seed 1"))


@pytest.fixture
def batches(monkeypatch):
    """{name of a split: the batches that were drawn from it}, as a run goes."""
    seen = {}
    draw = data.Stream.batch

    def watched(stream, step, part=0):
        batch = draw(stream, step, part)
        seen.setdefault(stream.split.name, []).append(batch)
        return batch

    monkeypatch.setattr(data.Stream, "batch", watched)
    return seen


def test_every_step_sees_a_new_batch(unlearn, batches):
    """Mutation: stream.batch(0), the official release's fault."""
    unlearn("rl", "--steps 4")
    assert set(batches) == {"forget", "retain"}
    for seen in batches.values():
        assert len(seen) == 4 and len({tuple(batch.t.tolist()) for batch in seen}) == 4
        for one, following in zip(seen, seen[1:], strict=False):
            assert not torch.equal(one.images, following.images) and not torch.equal(one.noise, following.noise)


@pytest.mark.slow
def test_what_a_method_does_not_name_it_never_sees(unlearn, batches):
    """Mutation: hand the retain set to ga."""
    for name, expected in (("ga", {"forget"}), ("fmn", {"forget"}), ("esd", {"forget"}), ("ca", {"anchor"}), ("rl", {"forget", "retain"})):
        batches.clear()
        unlearn(name, SHORT[name])
        labels = {split: {label for batch in seen for label in batch.labels.tolist()} for split, seen in batches.items()}
        assert set(labels) == expected and labels.get("forget", {THREE}) == {THREE} and THREE not in labels.get("retain", ())
        assert name != "ca" or labels["anchor"] == {FOUR}


UNSEEN = {"ga": ["retain"], "fmn": ["retain"], "esd": ["forget", "retain"], "uce": ["forget", "retain"], "ca": ["forget", "retain"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_data_that_a_method_does_not_name_cannot_change_it(name, unlearn, plain, monkeypatch):
    """Mutation: let a Split hold the latents of the whole data set, and a method read them."""
    load_task = task.load_task

    def poison(*args, **options):
        loaded = load_task(*args, **options)
        for part in UNSEEN[name]:
            split = getattr(loaded, part)
            poisoned = data.Split(torch.full(split.images.shape, torch.nan), torch.full_like(split.labels, THREE + 6), part)
            setattr(loaded, part, poisoned)
        return loaded

    clean = plain(name)
    monkeypatch.setattr(task, "load_task", poison)
    assert weights(unlearn(name, SHORT[name])) == weights(clean)
    assert not set(UNSEEN[name]) & set(cli.method_inputs(methods.METHODS[name]))


def test_poison_shows_where_it_is_read(unlearn, monkeypatch, capsys):
    """Mutation: let the Log pass over a loss that is not finite. It shows that the test above would see what a method reads."""
    load = data.Split.load
    monkeypatch.setattr(data.Split, "load", lambda split, *args: load(split, *args) * (torch.nan if split.name == "retain" else 1))
    with pytest.raises(AssertionError):
        unlearn("rl", "--steps 1")
    assert "the retain loss became nan" in capsys.readouterr().err


@pytest.mark.slow
def test_saliency_is_the_gradient_over_the_whole_forget_set(load):
    """And is no second copy. Mutation: mean of batch means, or guidance left out; divide the gradients into new tensors."""
    loaded = load()
    few = data.Split(loaded.forget.images[:10], loaded.forget.labels[:10], "forget")
    unet, embeddings = loaded.family.model, loaded.embeddings
    for scale in (1, 8.5):
        options = {"guidance_scale": scale, "passes": 2, "batch_size": 4, "seed": 1}
        summed = {}
        hooks = [
            p.register_post_accumulate_grad_hook(lambda p, summed=summed: summed.update({id(p): p.grad.data_ptr()}))
            for p in unet.parameters()
        ]
        found = passes.mean_gradient(loaded.family, few, embeddings, cpu(), **options)
        assert all(found[name].data_ptr() == summed[id(p)] for name, p in unet.named_parameters() if id(p) in summed) and summed
        for hook in hooks:
            hook.remove()
        total = 0
        for number in range(2):
            for latents, labels, t, noise in data.whole_pass(few, 1, 1, 1000, "cpu", number):
                assert (labels == THREE).all()
                noisy = loaded.family.add_noise(latents, noise, t)
                conditional, unconditional = (loaded.family.predict(unet, noisy, t, embeddings[[label]]) for label in (THREE, -1))
                total = total + (scale * conditional - (scale - 1) * unconditional - noise).square().mean() / 20
        total.backward()
        for name, parameter in unet.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-6)
        unet.zero_grad(set_to_none=True)


@pytest.mark.slow
def test_the_mask_follows_from_its_seed_and_not_from_the_batch_size(home, tmp_path):
    """Mutation: torch.randn without a generator."""

    def mask(seed, more=""):
        folder = tmp_path / f"{seed}{more}"
        start = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--seed", seed)
        ok("generate_mask", *start, more or "--batch_size 64", "--save_dir", folder)
        return read_tensors(folder / "mask.safetensors")[0]

    def differing(a, b):
        return sum(int((a[key] != b[key]).sum()) for key in a) / sum(part.numel() for part in a.values())

    first = mask(1)
    assert differing(first, read_tensors(home / "mask" / "mask.safetensors")[0]) == 0
    assert differing(first, mask(2)) > 0.05
    assert differing(first, mask(1, "--batch_size 7")) < 0.01
    assert differing(first, mask(1, "--mask_guidance 0")) > 0.05  # the spelling of earlier versions


@pytest.mark.slow
def test_alpha_weighs_the_retain_term(unlearn):
    """Mutation: leave alpha out, or sum over latent values."""

    def first_row(alpha):
        with (unlearn("rl", "--steps 1 --alpha", alpha) / "log.csv").open() as file:
            return next(csv.DictReader(file))

    one, ten = first_row(1), first_row(10)
    assert float(ten["retain"]) == pytest.approx(10 * float(one["retain"]), rel=1e-5) and one["forget"] == ten["forget"]
    assert 0.01 < float(one["retain"]) < 2  # a mean over latent values, of the order of the noise's variance


@pytest.mark.slow
def test_soft_starts_at_the_original_and_frees_the_weights_at_last(unlearn, load, monkeypatch):
    """Mutation: anchor at the previous step."""
    before = dict(load().family.model.named_parameters())

    def run():
        folder = unlearn("salun_soft", "--steps 10 --lr 1e-3 --mask_ratio 1.0")
        return read_json(folder / "done.json")["fraction_changed"], load(folder).family.model

    assert run()[0] > 0.9  # k has fallen to 0
    step = Trainer.step

    def half_way(trainer, **terms):
        proximal_step = trainer.after_step
        trainer.after_step = lambda salient, progress: proximal_step(salient, 0.5)
        step(trainer, **terms)
        trainer.after_step = proximal_step

    monkeypatch.setattr(Trainer, "step", half_way)  # as if the run never came further: k = 0.5 n
    moved, unet = run()
    assert 0.4 < moved < 0.55
    assert any((parameter == before[name]).any() for name, parameter in unet.named_parameters())


@pytest.mark.slow
def test_uce_solves_its_least_squares_problem(unlearn, load):
    """Mutation: swap before and after, or transpose."""
    before, after = load(), load(unlearn("uce", "--ridge 0.3 --erase_scale 2 --preserve retained --preserve_scale 1"))
    last = [len(before.family.own_tokens(prompt)) for prompt in before.prompts]
    E, key = before.embeddings.tokens.double(), "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    old, new = (dict(loaded.family.model.named_parameters())[key].detach().double() for loaded in (before, after))
    new.requires_grad_(True)
    length = E.shape[1] - last[THREE]
    moved = (E[THREE, last[THREE] :][:length] @ new.T - E[FOUR, last[FOUR] :][:length] @ old.T).square().sum()
    retained = sum((E[number] @ (new - old).T).square().sum() for number in range(len(E)) if number != THREE)
    objective = 2 * moved + retained + 0.3 * (new - old).square().sum()
    (gradient,) = torch.autograd.grad(objective, new)
    assert gradient.abs().max() < 1e-3 * (E[THREE].norm() ** 2)


def test_attention_is_what_the_layers_use(load):
    """Mutation: forget the scale, or mix up heads and pixels."""
    loaded = load()
    unet = loaded.family.model
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    seen = {}
    layer.register_forward_hook(lambda module, args, kwargs, result: seen.update(kwargs=kwargs, out=result), with_kwargs=True)
    latents, labels, t, noise = next(data.whole_pass(loaded.forget, 4, 9, 1000, "cpu"))
    with torch.no_grad(), CrossAttention(unet) as attention:
        loaded.family.predict(unet, loaded.family.add_noise(latents, noise, t), t, loaded.embeddings[labels])
    probabilities = attention.found[0]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    value = layer.head_to_batch_dim(layer.to_v(seen["kwargs"]["encoder_hidden_states"]))
    out = layer.to_out[0](layer.batch_to_head_dim(probabilities.flatten(0, 1) @ value))
    torch.testing.assert_close(out, seen["out"], rtol=1e-4, atol=1e-5)
    assert len(attention.found) == len(attention.layers) and not any(layer._forward_pre_hooks for layer in attention.layers)


@pytest.mark.parametrize(
    ("prompt", "target", "positions"), [([5, 6, 7], [5, 8], [2, 3]), ([5], [5, 6], [1]), ([], [5], [1]), ([5, 6], [], [1, 2])]
)
def test_the_tokens_of_a_concept_are_those_that_its_target_lacks(prompt, target, positions):
    """Mutation: count from the first word in place of the start token; let a prompt without tokens of its own have none."""
    assert sys.modules["methods.fmn"].concept_positions(prompt, target) == positions


def test_partially_denoised_samples_are_the_pipelines_own(load):
    """Mutation: guidance without the empty prompt, or another time order."""
    loaded = load()
    unet, scheduler, accelerator = loaded.family.model, loaded.family.pipeline.scheduler, cpu()
    split = data.prompts_alone([THREE] * 2, loaded.forget.shape, "forget")
    batch = data.Stream(split, batch_size=2, seed=1, timesteps=1000, device="cpu").batch(0)
    conditions, empty = loaded.embeddings[batch.labels], loaded.embeddings.empty(2)

    def partially_denoised(step):
        batch.step = step
        trainer = Mock(seed=1, accelerator=accelerator)
        return sampling.partially_denoised(loaded.family, unet, batch, conditions, empty, trainer, guidance_scale=3.0, steps=4)

    times = {int(partially_denoised(step)[1][0]) for step in range(30)}
    assert len(times) == 4 and max(times) > 700
    with torch.no_grad(), accelerator.autocast():
        options = {"num_inference_steps": 4, "output_type": "latent"}
        inputs = loaded.family.inputs(conditions, empty, 3.0)
        full = loaded.family.pipeline(**inputs, latents=batch.noise, **options).images
    last = next(step for step in range(50) if int(torch.randint(4, (1,), generator=data.make_generator("unfinished", 1, step))) == 3)
    noisy, t = partially_denoised(last)
    with torch.no_grad():
        conditional, unconditional = loaded.family.predict_together(unet, (noisy, t, conditions), (noisy, t, empty))
    scheduler.set_timesteps(4)
    end = scheduler.step(unconditional + 3.0 * (conditional - unconditional), t[0], noisy).prev_sample
    torch.testing.assert_close(end, full, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["salun", "esd", "fmn"])
def test_flags_that_save_memory_change_nothing_else(name, unlearn, plain, load):
    """Slices of unequal sizes. Mutation: recompute with other weights; step after each slice, weigh slices equally, draw anew."""
    flags = "--micro_batch 7" if name in methods.NO_CHECKPOINTING else "--micro_batch 7 --gradient_checkpointing"
    runs = [plain(name), unlearn(name, SHORT[name], flags)]
    expected, saving = (load(run).family.model for run in runs)
    for (key, a), (_, b) in zip(expected.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=key)  # a tenth of a step
    seen, logs = zip(*((read_json(run / "done.json")["images_seen"], (run / "log.csv").read_text()) for run in runs), strict=True)
    values = [[float(value) for value in log.splitlines()[-1].split(",")[:-1]] for log in logs]
    assert seen[0] == seen[1] and values[0] == pytest.approx(values[1], rel=1e-3)


def test_fp16_scales_the_gradients_and_undoes_it(load):
    """Mutation: no unscale_, so that clipping cuts everything."""
    results = []
    for scaled in (False, True):
        loaded = load()
        loop = trainer_of(loaded.family.model, batch_size=8, optimizer="sgd", momentum=0.0, grad_clip=1e-2)
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for batch in loop.steps(1, 1e-2, loaded.forget):
            loop.step(loss=loaded.family.loss(loaded.family.model, batch, loaded.embeddings[batch.labels]))
        results.append(torch.cat([parameter.detach().flatten() for parameter in loaded.family.model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-7)


def test_autocast_begins_and_ends_with_a_forward_pass(home):
    """Breaks if autocast is put around the loss again: PyTorch before 2.11 then trains on weight casts that carry no gradient."""
    accelerator = cpu("bf16")
    family, _ = pipelines.open_pipeline(home / "original")
    model, embeddings = family.model, families.Embeddings(encoder_hidden_states=torch.ones(4, 12, 32))
    part, x, t = model.conv_out, torch.randn(4, 4, 8, 8), torch.arange(4)
    output_of = lambda model: family.predict(model.eval(), x, t, embeddings).detach()  # noqa: E731
    names, inside = list(model.state_dict()), []
    part.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
    model = prepare(model, accelerator)
    copied = copy.deepcopy(model)
    output = output_of(model)
    assert not torch.is_autocast_enabled("cpu") and inside == [True] and output.dtype == torch.float32
    with passes.without_autocast(model), torch.no_grad():
        whole = output_of(model)
    assert inside == [True, False] and not torch.equal(whole, output) and torch.equal(output_of(model), output)
    assert list(model.state_dict()) == list(copied.state_dict()) == names and not accelerator._models
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not output_of(copied).any() and torch.equal(output_of(model), output)


@pytest.mark.slow
def test_every_weight_is_trained_in_half_precision(unlearn):
    """Breaks if a pass under no_grad leaves its weight casts to the pass that trains. With PyTorch from 2.11 on it cannot."""
    folder = unlearn("salun", SHORT["salun"], "--precision bf16")
    assert read_json(folder / "done.json")["fraction_changed"] > 0.4


# ------------------------------------------------------------------------------------------------------------ the Trainer
def trainer_of(model, **settings):
    run_folder = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
    return Trainer(model, run_folder, cpu(), seed=1, **{"batch_size": 4} | settings)


def few(count=8, name="train"):
    return data.Split(torch.zeros(count, 8, 2, 2), torch.zeros(count, dtype=torch.int64), name)


def test_a_step_without_a_loss_term_says_so():
    """Mutation: let sum(()) fail."""
    loop = trainer_of(torch.nn.Linear(4, 2))
    with pytest.raises(RunError, match=r"trainer.step\(\) was called without a loss term"):
        for _ in loop.steps(1, 0.1, few()):
            loop.step()


@pytest.mark.parametrize("mask", [False, True])
def test_a_tensor_without_a_gradient_ends_the_run(mask):
    """Mutation: do not look at the first step's gradients. The optimizer passes such a tensor over in silence."""
    model = torch.nn.Module()
    model.used, model.idle = torch.nn.Linear(4, 2), torch.nn.Linear(2, 2)
    chosen = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in model.named_parameters()} if mask else None

    def train(weight, **options):
        loop = trainer_of(model, mask=chosen)
        for batch in loop.steps(2, 0.1, few(), **options):
            features = model.used(batch.images.flatten(1)[:, :4])
            loop.step(train=features.sum() if weight is None else (features + weight * model.idle(features)).sum())

    with pytest.raises(RunError, match="idle.weight no gradient"):
        train(None)
    train(0.0)  # a gradient of zeros is one
    train(None, reaches_all=False)  # the method knows


def test_the_gradient_is_clipped_to_its_norm():
    """Mutation: clip each value, or after the step."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    loop = trainer_of(model, optimizer="sgd", momentum=0.0, grad_clip=1.0)
    for _ in loop.steps(1, 1.0, few()):
        loop.step(a=(model.weight * torch.tensor([3.0, 4, 0])).sum())
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-0.6, -0.8, 0]]))


@pytest.mark.slow
def test_training_flags_reach_the_trainer(unlearn, plain):
    """Mutation: drop any of the settings in unlearn.py."""
    seen = {weights(plain("rl"))}
    settings = ["--optimizer sgd", "--optimizer sgd --momentum 0.5", "--weight_decay 0.1", "--schedule linear", "--batch_size 8"]
    for flags in (*settings, "--forget_batch_size 8", "--ema 0.5"):
        seen.add(weights(unlearn("rl", SHORT["rl"], flags)))
    assert len(seen) == len(settings) + 3


# ------------------------------------------------------------------------------------------------- a method of one's own
OWN_METHOD = '''
from cli import positive_float

FLAGS = {"push": dict(type=positive_float, help="weight of the forget term")}
TRAINING = {"ema": 0.5, "train_method": "selfattn"}


def mine(model, forget, retain, trainer, family, embeddings, *, steps=2, lr=1e-3, push=0.5):
    """Descend on the retain set, ascend on the forget set."""
    for batches in trainer.steps(steps, lr, forget, retain):
        forget_loss, retain_loss = (family.loss(model, batch, embeddings[batch.labels]) for batch in batches)
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
    settings = [read_json(run / "args.json")["settings"] for run in (mine, without_ema)]
    assert [(one["ema"], one["train_method"], one["batch_size"]) for one in settings] == [(0.5, "selfattn", 32), (0, "selfattn", 32)]
    assert weights(mine) != weights(without_ema)  # TRAINING is a default: the flag goes first
    no = ("--method ga --push 1 --forget_class", FORGOTTEN, "--model_path", home / "original", "--save_dir", tmp_path / "no")
    assert script("unlearn", *no) != 0 and "does not read --push" in capsys.readouterr().err
    samples = (tmp_path / "runs" / "mine", tmp_path / "runs" / "ga")
    ok("generate_images", "--model_path", mine, ga, "--num_samples 3 --steps 2 --batch_size 30 --save_dir", *samples)
    ok("evaluate", "--features classifier --num_reference 50 --classifier", home / "classifier", "--sample_path", *samples)
    monkeypatch.undo()  # table.py needs no line for it
    ok("table", tmp_path / "runs")
    assert "mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("def odd(unet, trainer, *, strange=1): ...", "method odd has --strange in its signature but not in FLAGS"),
        ("FLAGS = {'ridge': dict(type=int, help='')}\ndef odd(unet, trainer, *, ridge=1): ...", "--ridge, which is declared already"),
        ("FLAGS = {'lr': dict(type=int, help='')}\ndef odd(unet, trainer, *, lr=1): ...", "--lr, which is declared already"),
        ("def odd(unet, trainer, *, data_dir=1): ...", "method odd: "),
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


def test_start_tokens_are_those_of_prompts(load):
    """Mutation: take SD 3.5's second attention among image patches, attn2 by name, for one to the prompt."""
    from diffusers import SD3Transformer2DModel

    small = dict(num_layers=1, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=4, sample_size=4, patch_size=1)
    width = dict(joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16)
    for model, hooked in ((SD3Transformer2DModel(**small, **width, dual_attention_layers=(0,)), False), (load().family.model, True)):
        with start_token_detached(model):
            assert any(module._forward_hooks for module in model.modules()) == hooked
