"""Every method trains and keeps its promise. Beside each property stands the mutation that would break it."""

import copy
import csv
import functools
import json
from unittest.mock import Mock

import pytest
import torch

import data
import engine
import masking
import methods
import models
import run
import sampling
from helpers import FORGOTTEN, cpu, script
from methods.fmn import CrossAttention

THREE, FOUR = 3, 4
# Settings strong enough to move a tiny model in seconds.
OWN = ["--num_images", 16, "--own_steps", 5, "--own_guidance", 2]
SETTINGS = {
    "ga": ["--steps", 15, "--lr", 5e-4],
    "rl": ["--steps", 60, "--lr", 1e-3, "--alpha", 1],
    "esd": ["--steps", 60, "--lr", 1e-3, "--sample_steps", 4],
    "fmn": ["--steps", 40, "--lr", 1e-3],
    "salun": ["--steps", 60, "--lr", 1e-3, "--alpha", 1],
    "salun_soft": ["--steps", 60, "--lr", 1e-3, "--alpha", 1],
    "uce": [],
    "ca": ["--steps", 60, "--lr", 1e-3, *OWN],
}
SHORT = {name: [*(["--steps", 3] if flags else []), *flags[2:]] for name, flags in SETTINGS.items()}


@torch.no_grad()
def probe(job, split, label=None):
    """(predictions for the split's latents under their own prompt or prompt `label`, what they should be), at fixed noise and timesteps."""
    x, y, t, noise = (torch.cat(parts) for parts in zip(*data.whole_pass(split, 64, 9, 1000, "cpu"), strict=True))
    y = y if label is None else torch.full_like(y, label)
    prediction = engine.predict(job.pipeline.unet.eval(), job.scheduler.add_noise(x, noise, t), t, job.embeddings[y])
    return prediction, engine.wanted(job.scheduler, x, noise, t)


def loss(job, split):
    return engine.squared_error(*probe(job, split)).mean().item()


def apart(job, a, b, split=None):
    """Mean squared distance of the predictions under two prompts."""
    split = split or job.forget
    return (probe(job, split, a)[0] - probe(job, split, b)[0]).square().mean().item()


def paid(job):
    """Mean attention probability that the word "three" gets."""
    x, y, t, noise = next(data.whole_pass(job.forget, 64, 9, 1000, "cpu"))
    with torch.no_grad(), CrossAttention(job.pipeline.unet) as attention:
        engine.predict(job.pipeline.unet, job.scheduler.add_noise(x, noise, t), t, job.embeddings[y])
    return torch.stack([found[..., 5].mean() for found in attention.found]).mean().item()  # start, an, image, of, a, three


@pytest.mark.parametrize("name", methods.METHODS)
def test_method_keeps_its_promise(name, unlearn, opened):  # mutation: swap the sign of the forget loss, or forget and retain
    before, after = opened(), opened(unlearn(name, *SETTINGS[name]))
    if name == "ga":
        assert loss(after, after.forget) > 1.5 * loss(before, before.forget)
    if name in ("rl", "salun", "salun_soft", "uce", "ca"):
        assert apart(after, THREE, FOUR) < 0.4 * apart(before, THREE, FOUR)
    if name == "esd":
        conditional, null = probe(before, before.forget)[0], probe(before, before.forget, before.null)[0]
        target = null - (conditional - null)
        distance = lambda job: (probe(job, job.forget)[0] - target).square().mean().item()  # noqa: E731
        assert distance(after) < 0.7 * distance(before)
    if name == "fmn":
        assert paid(after) < 0.5 * paid(before)
    if name in ("rl", "salun", "salun_soft"):
        assert loss(after, after.retain) < 1.1 * loss(before, before.retain)  # the others hold nothing, or prompts, back
    if name == "uce":
        kept = [apart_of(before, after, label) for label in (0, 7)]
        assert max(kept) < 0.2 * apart_of(before, after, THREE)


@torch.no_grad()
def apart_of(before, after, label):
    """Mean squared distance of two models' predictions under one prompt."""
    return (probe(before, before.retain, label)[0] - probe(after, after.retain, label)[0]).square().mean().item()


def test_every_method_is_tested():
    assert set(SETTINGS) == set(methods.METHODS)


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - methods.TAKES_NO_MASK))
def test_every_method_under_a_mask_leaves_frozen_weights_bitwise_equal(name, home, unlearn, opened):  # mutation: fit without mask=
    train_method = ["--train_method", "full"]
    folder = unlearn(name, *SHORT[name], *train_method, "--mask_path", home / "mask")
    before, after = (dict(opened(path).pipeline.unet.named_parameters()) for path in (home / "original", folder))
    mask, _ = masking.load(home / "mask", before, opened().facts["forget_sha"])
    assert all(torch.equal(after[key][~mask[key]], before[key][~mask[key]]) for key in mask)
    moved, salient = sum(int((after[key] != before[key]).sum()) for key in mask), sum(int(part.sum()) for part in mask.values())
    assert 0.2 * salient < moved <= salient == sum(part.numel() for part in mask.values()) // 2


@pytest.mark.parametrize(
    ("train_method", "moves"),
    [
        ("xattn", lambda name: ".attn2." in name),
        ("noxattn", lambda name: ".attn2." not in name),
        ("selfattn", lambda name: ".attn1." in name),
    ],
)
def test_train_method_moves_its_weights_alone(train_method, moves, home, unlearn, opened):  # mutation: restrict() returns None
    before = dict(opened().pipeline.unet.named_parameters())
    for mask in ((), ("--mask_path", home / "mask")):
        after = opened(unlearn("rl", *SHORT["rl"], "--train_method", train_method, *mask)).pipeline.unet
        changed = {name for name, parameter in after.named_parameters() if not torch.equal(parameter, before[name])}
        assert changed and all(moves(name) for name in changed)
        if mask:
            kept, _ = masking.load(home / "mask", before, opened().facts["forget_sha"])
            assert all(torch.equal(parameter[~kept[name]], before[name][~kept[name]]) for name, parameter in after.named_parameters())
        else:
            assert len(changed) > 0.9 * sum(map(moves, before))


def test_vae_and_text_encoder_are_never_touched(home, unlearn):  # mutation: hand pipeline.text_encoder's parameters to fit
    after, before = (models.open_pipeline(folder)[0] for folder in (unlearn("salun", *SHORT["salun"]), home / "original"))
    assert models.sha(after.vae, after.text_encoder) == models.sha(before.vae, before.text_encoder)
    assert models.sha(after.unet) != models.sha(before.unet)


def test_a_full_mask_equals_no_mask(home, unlearn, tmp_path):  # mutation: always make compact leaves
    flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--mask_ratio", 1.0, "--save_dir", tmp_path / "mask")
    assert script("generate_mask", *flags) == 0
    masked, free = unlearn("salun", *SHORT["salun"], "--mask_path", tmp_path / "mask"), unlearn("rl", *SHORT["rl"])
    assert weights(masked) == weights(free)


def weights(folder):
    return (folder / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["salun", "esd", "ca"])
def test_the_same_seed_gives_the_same_bytes(name, unlearn):  # mutation: draw noise from the global generator
    first, second, other = (unlearn(name, *SHORT[name], "--seed", seed) for seed in (1, 1, 2))
    assert weights(first) == weights(second) != weights(other)


def test_every_step_sees_a_new_batch(unlearn, monkeypatch):  # mutation: stream.batch(0), the official release's fault
    seen = {}
    whole = data.Stream.batch

    def watched(stream, step):
        batch = whole(stream, step)
        seen.setdefault(stream.name, []).append((batch.x.clone(), batch.noise.clone(), tuple(batch.t.tolist())))
        return batch

    monkeypatch.setattr(data.Stream, "batch", watched)
    unlearn("rl", "--steps", 4)
    assert set(seen) == {"forget", "retain"}
    for batches in seen.values():
        assert len(batches) == 4 and len({times for _, _, times in batches}) == 4
        for i in range(3):
            assert not torch.equal(batches[i][0], batches[i + 1][0]) and not torch.equal(batches[i][1], batches[i + 1][1])


def test_what_a_method_does_not_name_it_never_sees(unlearn, monkeypatch):  # mutation: hand the retain set to ga
    seen = {}
    whole = data.Stream.batch

    def watched(stream, step):
        batch = whole(stream, step)
        seen.setdefault(stream.name, set()).update(batch.y.tolist())
        return batch

    monkeypatch.setattr(data.Stream, "batch", watched)
    for name, expected in (("ga", {"forget"}), ("fmn", {"forget"}), ("esd", {"forget"}), ("ca", {"anchor"}), ("rl", {"forget", "retain"})):
        seen.clear()
        unlearn(name, *SHORT[name])
        assert set(seen) == expected and seen.get("forget", {THREE}) == {THREE} and THREE not in seen.get("retain", ())
        assert name != "ca" or seen["anchor"] == {FOUR}


def test_saliency_is_the_gradient_over_the_whole_forget_set(opened):  # mutation: mean of batch means, or guidance left out
    job = opened()
    few = data.Split(job.forget.x, job.forget.y, job.forget.rows[:10])
    unet = job.pipeline.unet
    for guidance in (0, 7.5):
        options = {"guidance": guidance, "passes": 2, "batch_size": 4, "seed": 1}
        found = engine.mean_gradient(unet, job.scheduler, few, job.embeddings, job.null, cpu(), **options)
        total = 0
        for number in range(2):
            for x, y, t, noise in data.whole_pass(few, 1, 1, 1000, "cpu", number):
                assert (y == THREE).all()
                x_t = job.scheduler.add_noise(x, noise, t)
                asked, nothing = (engine.predict(unet, x_t, t, job.embeddings[number][None]) for number in (THREE, job.null))
                total = total + ((1 + guidance) * asked - guidance * nothing - noise).square().mean() / 20
        total.backward()
        for name, parameter in unet.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-6)
        unet.zero_grad(set_to_none=True)


def test_the_mask_follows_from_its_seed_and_not_from_the_batch_size(home, tmp_path):  # mutation: torch.randn without a generator
    from run import read_tensors

    def mask(seed, **more):
        folder = tmp_path / f"{seed}{more}"
        flags = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--seed", seed, "--save_dir", folder)
        assert script("generate_mask", *flags, *(word for name, value in more.items() for word in (f"--{name}", value))) == 0
        return read_tensors(folder / "mask.safetensors")[0]

    def differing(a, b):
        return sum(int((a[key] != b[key]).sum()) for key in a) / sum(part.numel() for part in a.values())

    first = mask(1, batch_size=64)
    assert differing(first, read_tensors(home / "mask" / "mask.safetensors")[0]) == 0
    assert differing(first, mask(2)) > 0.05
    assert differing(first, mask(1, batch_size=7)) < 0.01
    assert differing(first, mask(1, mask_guidance=0)) > 0.05


def test_alpha_weighs_the_retain_term(unlearn):  # mutation: leave alpha out, or sum over latent values
    def first_row(alpha):
        with (unlearn("rl", "--steps", 1, "--alpha", alpha) / "log.csv").open() as file:
            return next(csv.DictReader(file))

    one, ten = first_row(1), first_row(10)
    assert float(ten["retain"]) == pytest.approx(10 * float(one["retain"]), rel=1e-5) and one["forget"] == ten["forget"]
    assert 0.01 < float(one["retain"]) < 2  # a mean over latent values, of the order of the noise's variance


def test_soft_starts_at_the_original_and_frees_the_weights_at_last(home, unlearn, opened):  # mutation: anchor at the previous step
    before = dict(opened().pipeline.unet.named_parameters())

    def share(steps, ratio):
        folder = unlearn("salun_soft", "--steps", steps, "--lr", 1e-3, "--mask_ratio", ratio)
        return json.loads((folder / "done.json").read_text())["fraction_changed"], opened(folder).pipeline.unet

    assert share(10, 1.0)[0] > 0.9  # k has fallen to 0
    import functools
    from unittest import mock

    whole = engine.fit
    with mock.patch.object(engine, "fit", functools.partial(stopped, whole)):  # at progress 0.5: k = 0.5 n
        moved, unet = share(10, 1.0)
    assert 0.4 < moved < 0.55
    assert any(torch.equal(parameter, before[name]) or (parameter == before[name]).any() for name, parameter in unet.named_parameters())


def stopped(whole, *args, after_step, **options):
    """fit() whose proximal steps all stand at half of the run."""
    return whole(*args, after_step=lambda leaves, progress: after_step(leaves, 0.5), **options)


def test_uce_solves_its_least_squares_problem(unlearn, opened):  # mutation: swap before and after, or transpose
    before, after = opened(), opened(unlearn("uce", "--ridge", 0.3, "--erase_scale", 2))
    words = lambda number: job_words(before, number)  # noqa: E731
    E, key = before.embeddings.double(), "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    old, new = (dict(job.pipeline.unet.named_parameters())[key].detach().double() for job in (before, after))
    new.requires_grad_(True)
    length = E.shape[1] - words(THREE)
    moved = (E[THREE, words(THREE) :][:length] @ new.T - E[FOUR, words(FOUR) :][:length] @ old.T).square().sum()
    kept = sum((E[number, words(number) :] @ (new - old).T).square().sum() for number in range(len(E)) if number != THREE)
    objective = 2 * moved + kept + 0.3 * (new - old).square().sum()
    (gradient,) = torch.autograd.grad(objective, new)
    assert gradient.abs().max() < 1e-3 * (E[THREE].norm() ** 2)


def job_words(job, number):
    return len(models.word_tokens(job.pipeline.tokenizer, job.prompts[number]))


def test_attention_is_what_the_layers_use(opened):  # mutation: forget the scale, or mix up heads and pixels
    job = opened()
    unet = job.pipeline.unet
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    seen = {}
    layer.register_forward_hook(lambda module, args, kwargs, result: seen.update(args=args, kwargs=kwargs, out=result), with_kwargs=True)
    x, y, t, noise = next(data.whole_pass(job.forget, 4, 9, 1000, "cpu"))
    with torch.no_grad(), CrossAttention(unet) as attention:
        engine.predict(unet, job.scheduler.add_noise(x, noise, t), t, job.embeddings[y])
    probabilities = attention.found[0]
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    value = layer.head_to_batch_dim(layer.to_v(seen["kwargs"]["encoder_hidden_states"]))
    out = layer.to_out[0](layer.batch_to_head_dim(probabilities.flatten(0, 1) @ value))
    torch.testing.assert_close(out, seen["out"], rtol=1e-4, atol=1e-5)
    assert len(attention.found) == len(attention.layers) and not any(layer._forward_pre_hooks for layer in attention.layers)


def test_unfinished_samples_are_the_pipelines_own(opened):  # mutation: guidance without the empty prompt, or another time order
    job = opened()
    accelerator, unet = cpu(), job.pipeline.unet
    stream = data.Stream(data.prompts_alone([THREE] * 2, job.forget.shape), "forget", batch_size=2, seed=1, timesteps=1000, device="cpu")
    batch = stream.batch(0)
    asked, nothing = job.embeddings[batch.y], job.embeddings[job.null].expand(2, -1, -1)
    counts = set()
    for step in range(30):
        batch.step = step
        x_t, t = sampling.unfinished(unet, job.scheduler, batch, asked, nothing, accelerator=accelerator, guidance=3.0, steps=4, seed=1)
        counts.add(int(t[0]))
    assert len(counts) == 4 and max(counts) > 700
    with torch.no_grad(), accelerator.autocast():
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
        full = job.pipeline(prompt_embeds=asked, negative_prompt_embeds=nothing, latents=batch.noise, **options).images
    last = next(step for step in range(50) if int(torch.randint(4, (1,), generator=data.generator("unfinished", 1, step))) == 3)
    batch.step = last
    x_t, t = sampling.unfinished(unet, job.scheduler, batch, asked, nothing, accelerator=accelerator, guidance=3.0, steps=4, seed=1)
    with torch.no_grad():
        parts = engine.predict_together(unet, (x_t, t, asked), (x_t, t, nothing))
    scheduler = job.pipeline.scheduler
    scheduler.set_timesteps(4)
    end = scheduler.step(parts[1] + 3.0 * (parts[0] - parts[1]), t[0], x_t).prev_sample
    torch.testing.assert_close(end, full, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["salun", "esd"])
def test_gradient_checkpointing_changes_nothing_but_memory(name, unlearn, opened):  # mutation: recompute with other weights
    plain, saving = (opened(unlearn(name, *SHORT[name], *more)).pipeline.unet for more in ((), ("--gradient_checkpointing",)))
    for (key, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


def test_fp16_scales_the_gradients_and_undoes_it(opened):  # mutation: no unscale_, so that clipping cuts everything
    results = []
    for scaled in (False, True):
        job, accelerator = opened(), cpu()
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        unet = job.pipeline.unet
        with masking.Leaves(dict(unet.named_parameters())) as leaves:
            solver = torch.optim.SGD(leaves.parameters(), 1e-2)
            batch = data.Stream(job.forget, "forget", batch_size=8, seed=1, timesteps=1000, device="cpu").batch(0)

            def error(forget, job=job, unet=unet):
                x_t = job.scheduler.add_noise(forget.x, forget.noise, forget.t)
                prediction = engine.predict(unet, x_t, forget.t, job.embeddings[forget.y])
                return {"loss": engine.squared_error(prediction, forget.noise).mean()}

            engine.train_step(error, {"forget": batch}, solver, leaves.parameters(), accelerator, 1e-2)
        results.append(torch.cat([parameter.detach().flatten() for parameter in unet.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-7)


def test_autocast_begins_and_ends_with_a_forward_pass(home):
    """Breaks if autocast is put around the loss again: PyTorch before 2.11 then trains on weight casts that carry no gradient."""
    accelerator = cpu("bf16")
    model = models.open_pipeline(home / "original")[0].unet
    part, x, t = model.conv_out, torch.randn(4, 4, 8, 8), torch.arange(4)
    predict = lambda model: engine.predict(model.eval(), x, t, torch.ones(4, 12, 32)).detach()  # noqa: E731
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
    split = data.Split(torch.zeros(8, 8, 2, 2), torch.zeros(8, dtype=torch.int64), torch.arange(8))
    log = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
    options = {"lr": 0.1, "batch_size": 4, "seed": 1, "accelerator": cpu(), "run": log, "mask": chosen}

    def loss(train, weight=None):
        features = model.used(train.x.flatten(1)[:, :4])
        return {"train": features.sum() if weight is None else (features + weight * model.idle(features)).sum()}

    with pytest.raises(run.RunError, match="idle.weight no gradient"):
        engine.fit(model, {"train": split}, loss, steps=2, **options)
    zeros = functools.partial(loss, weight=0.0)
    engine.fit(model, {"train": split}, zeros, steps=2, **options)  # zeros are a gradient
