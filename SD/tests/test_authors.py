"""Each method against its authors' code: one step, or the closed form, of an independent formula written anew from it, its settings, and
the commands of the official release."""

import argparse
import math
import sys
from unittest.mock import Mock

import pytest
import torch

import cli
import data
import generate_mask
import methods
import unlearn
from families import StableDiffusion
from helpers import cpu, script, words
from trainer import Trainer

PROMPTS = ["an image of a three", "an image of a four", "an image of a five", data.NULL]
FORGET, TARGET, OTHER, EMPTY = range(4)
ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)  # Stable Diffusion's


@pytest.fixture
def task():
    """A tiny random pipeline, prompts of a three to forget and a four that stands in for it, and four latents of each kind."""
    family = StableDiffusion.build("test", PROMPTS[:-1], 16, seed=3)
    with torch.no_grad():  # biases of zero and output layers of zero would hide mistakes
        for parameter in family.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=data.make_generator("weights", parameter.numel())))
    family.model.eval()
    moments = torch.randn(8, 8, 8, 8, generator=data.make_generator("latents"))
    moments[:, 4:] = moments[:, 4:].abs()
    return {
        "family": family,
        "model": family.model,
        "forget": data.Split(moments[:4], torch.full((4,), FORGET), "forget"),
        "retain": data.Split(moments[4:], torch.full((4,), OTHER), "retain"),
        "embeddings": family.encode_prompts(PROMPTS),
        "targets": torch.tensor([TARGET, TARGET, OTHER, EMPTY]),
        "forgotten": [FORGET],
        "retained": [TARGET, OTHER, EMPTY],
        "named": [OTHER, EMPTY],
        "words": [family.own_tokens(prompt) for prompt in PROMPTS],
        "ends": [family.last_positions(prompt) for prompt in PROMPTS],
        "latent_shape": (4, 8, 8),
        "generated": lambda numbers, name: data.Split(moments[4:], torch.tensor(numbers * 4), name),
    }


def step_of(name, task, batch_size=4, lr=10.0, **options):
    """The gradient {name: tensor} that a method's first step goes down, by one step of plain SGD."""
    unet, method = task["model"], methods.METHODS[name]
    before = {key: parameter.detach().clone() for key, parameter in unet.named_parameters()}
    run_folder = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
    sgd = {"optimizer": "sgd", "momentum": 0.0, "grad_clip": 0.0, "batch_size": batch_size}
    inputs = task | {"trainer": Trainer(unet, run_folder, cpu(), seed=1, **sgd)}
    method(**{key: inputs[key] for key in cli.method_inputs(method)}, steps=1, lr=lr, **options)
    with torch.no_grad():
        found = {key: (before[key] - parameter) / lr for key, parameter in unet.named_parameters()}
        for key, parameter in unet.named_parameters():
            parameter.copy_(before[key])
    return found


def batch_of(split, batch_size=4):
    """What the first step sees: (latents, prompts, t, noise, uniform)."""
    batch = data.Stream(split, batch_size=batch_size, seed=1, timesteps=1000, device="cpu").batch(0)
    return batch.images, batch.labels, batch.t, batch.noise, batch.uniform


def noisy(latents, t, noise):
    share = ABAR[t].float()[:, None, None, None]
    return share.sqrt() * latents + (1 - share).sqrt() * noise


def eps(task, x, t, prompts):
    return task["model"](x, t, encoder_hidden_states=task["embeddings"].tokens[prompts]).sample


def same_gradient(found, loss, unet):
    """Assert that `found` is the gradient of the loss."""
    unet.zero_grad()
    loss.backward()
    pairs = [(found[key], torch.zeros_like(p) if p.grad is None else p.grad) for key, p in unet.named_parameters()]
    ours, theirs = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    assert theirs.norm() > 1e-4
    assert (ours - theirs).norm() < 2e-3 * theirs.norm(), (ours.norm(), theirs.norm())


@pytest.mark.parametrize("name", ["rl", "salun"])
def test_relabelling_is_random_label_py(name, task):
    """Mutation: sum in place of the mean; let the gradient flow into the target."""
    found = step_of(name, task, alpha=0.5)
    x, prompts, t, noise, _ = batch_of(task["forget"])
    kept, kept_prompts, kept_t, kept_noise, _ = batch_of(task["retain"])
    mse = torch.nn.MSELoss()
    pseudo = eps(task, noisy(x, t, noise), t, torch.full_like(prompts, TARGET)).detach()
    forget = mse(eps(task, noisy(x, t, noise), t, prompts), pseudo)
    remain = mse(eps(task, noisy(kept, kept_t, kept_noise), kept_t, kept_prompts), kept_noise)
    same_gradient(found, forget + 0.5 * remain, task["model"])


@pytest.mark.parametrize(("name", "alpha"), [("ga", 0.0), ("ga_retain", 0.1)])
def test_gradient_ascent_is_gradient_ascent_py_with_its_retain_term_or_without(name, alpha, task):
    """Mutation: descend; leave the retain term out, or weigh it by 1."""
    found = step_of(name, task)
    x, prompts, t, noise, _ = batch_of(task["forget"])
    kept, kept_prompts, kept_t, kept_noise, _ = batch_of(task["retain"])
    mse = torch.nn.MSELoss()
    forget = -mse(eps(task, noisy(x, t, noise), t, prompts), noise)
    retain = mse(eps(task, noisy(kept, kept_t, kept_noise), kept_t, kept_prompts), kept_noise)
    same_gradient(found, forget + alpha * retain, task["model"])


def test_salun_soft_is_proximal_gradient_py(task):
    """Mutation: hard in place of soft thresholding; a threshold per tensor. Three steps, so that the anchor shows."""
    origin = torch.cat([p.detach().flatten() for p in task["model"].parameters()]).clone()
    plain = step_of("rl", task)
    step = torch.cat([-10.0 * part.flatten() for part in plain.values()])
    # Its one step of one: k falls to 0 at the end, so nothing is thresholded; of the first of two, half of the share remains
    run_folder = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
    loop = Trainer(task["model"], run_folder, cpu(), seed=1, optimizer="sgd", momentum=0.0, grad_clip=0.0, batch_size=4)
    after = []
    scatter = loop.__class__.step

    def watched(**terms):
        scatter(loop, **terms)
        after.append(torch.cat([p.detach().flatten() for p in task["model"].parameters()]))

    loop.step = watched
    method = methods.METHODS["salun_soft"]
    inputs = task | {"trainer": loop}
    method(**{key: inputs[key] for key in cli.method_inputs(method)}, steps=2, lr=10.0, mask_ratio=0.6)
    threshold = step.abs().sort().values[math.floor(0.3 * len(step)) - 1]
    expected = origin + torch.sign(step) * torch.clamp(step.abs() - threshold, min=0)
    moved = (expected - origin).norm()
    assert moved > 0 and (after[0] - expected).norm() < 2e-3 * moved


@pytest.mark.parametrize("draw_from", ["trained", "original"])
def test_esd_is_its_authors_code(draw_from, task):
    """Mutation: another sign of eta; the sampler's own t in the code of 2023, or another one in that of 2025."""
    steps = 5
    split = data.prompts_alone([FORGET], (4, 8, 8), "forget")
    found = step_of("esd", task, sample_steps=steps, sample_guidance_scale=3.0, draw_from=draw_from)
    _, prompts, _, x, uniform = batch_of(split)
    empty = torch.full_like(prompts, EMPTY)
    # DDIM without noise from the last of 5 levels, until a random one
    levels = [200 * index + 1 for index in reversed(range(steps))]
    count = int(torch.randint(steps, (1,), generator=data.make_generator("unfinished", 1, 0)))
    assert count > 0
    with torch.no_grad():
        for place in range(count):
            t = torch.full_like(prompts, levels[place])
            conditional, null = eps(task, x, t, prompts), eps(task, x, t, empty)
            guided = null + 3 * (conditional - null)
            here, there = ABAR[levels[place]].float(), ABAR[levels[place + 1]].float()
            clean = (x - (1 - here).sqrt() * guided) / here.sqrt()
            x = there.sqrt() * clean + (1 - there).sqrt() * guided
        index = steps - 1 - count
        low, high = round(index / steps * 1000), round((index + 1) / steps * 1000)
        t = low + ((high - low) * uniform).long() if draw_from == "trained" else torch.full_like(prompts, levels[count])
        e_0, e_p = eps(task, x, t, empty), eps(task, x, t, prompts)
        target = e_0 - 1.0 * (e_p - e_0) if draw_from == "trained" else e_p - 2.0 * (e_p - e_0)
    same_gradient(found, torch.nn.MSELoss()(eps(task, x, t, prompts), target), task["model"])


@pytest.mark.parametrize("draw_from", ["trained", "original"])
def test_esd_draws_with_the_model_that_its_authors_draw_with(draw_from, task, monkeypatch):
    """Mutation: draw x_t with the original in the code of 2023, or with the model in training in that of 2025."""
    module, drawn = sys.modules["methods.esd"], []

    def watched(family, model, *args, **options):
        drawn.append(model)
        return partially_denoised(family, model, *args, **options)

    partially_denoised = module.partially_denoised
    monkeypatch.setattr(module, "partially_denoised", watched)
    step_of("esd", task, sample_steps=2, draw_from=draw_from)
    assert [unet is task["model"] for unet in drawn] == [draw_from == "trained"]


def attention(task, x, t, prompts):
    """[(B, heads, pixels, tokens)]: the cross-attention of every layer, by the definition."""
    found, layers = [], [layer for name, layer in task["model"].named_modules() if name.endswith("attn2")]

    def look(layer, args, kwargs):
        parts = layer.to_q(args[0]), layer.to_k(kwargs["encoder_hidden_states"])
        query, key = (part.unflatten(2, (layer.heads, -1)) for part in parts)
        found.append(torch.einsum("bihd,bjhd->bhij", query, key).div(query.shape[-1] ** 0.5).softmax(-1))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    eps(task, x, t, prompts)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("end", ["padding", "one", "none"])
def test_fmn_is_train_attn_py(end, task):
    """Mutation: a mean square per layer; count one end token where the padding consists of them."""
    if end == "one":  # Stable Diffusion 2.x pads with another token
        task["family"].pipeline.tokenizer = Mock(pad_token_id=0, eos_token_id=1)
    found = step_of("fmn", task, batch_size=1, end_token=end != "none")
    x, prompts, t, noise, _ = batch_of(task["forget"], 1)
    columns = [5] + {"padding": list(range(6, 12)), "one": [6], "none": []}[end]  # start, an, image, of, a, three, end, ...
    chosen = torch.zeros(12, dtype=torch.bool)
    chosen[columns] = True
    picked = [
        probabilities.masked_select(chosen).reshape(-1, len(columns)) for probabilities in attention(task, noisy(x, t, noise), t, prompts)
    ]
    same_gradient(found, torch.cat(picked).norm(), task["model"])


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_ca_is_model_py(alpha, task):
    """Mutation: let the start token's keys and values have a gradient; weigh the forget term by alpha."""
    found = step_of("ca", task, alpha=alpha)
    unet = task["model"]
    x, prompts, t, noise, _ = batch_of(data.Split(task["retain"].images, torch.full((4,), TARGET), "anchor"))
    kept, layers = {}, {name: layer for name, layer in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}

    def keep(name):
        def hook(layer, args, out):
            out.retain_grad()
            kept.setdefault(name, []).append((args[0], out))

        return hook

    anchor = eps(task, noisy(x, t, noise), t, prompts).detach()
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    loss = torch.nn.MSELoss()(eps(task, noisy(x, t, noise), t, torch.full_like(prompts, FORGET)), anchor)
    if alpha:
        loss = loss + alpha * torch.nn.MSELoss()(eps(task, noisy(x, t, noise), t, prompts), noise)
    unet.zero_grad()
    loss.backward()
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():  # what the start token, at position 0, adds to the gradient is left out
        start = sum(out.grad[:, 0].T @ context[:, 0] for context, out in kept[name])
        expected = layer.weight.grad - start
        assert start.norm() > 1e-2 * layer.weight.grad.norm()
        assert (found[f"{name}.weight"] - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize(("code", "preserve"), [("2023", "named"), ("2023", "retained"), ("2025", "named")])
def test_uce_is_its_authors_closed_form(code, preserve, task):
    """Mutation: keep prompts from their last own token on in 2023; another preserve scale; align at the first token."""
    unet, embeddings = task["model"], task["embeddings"].tokens.double()
    before = {key: parameter.detach().double() for key, parameter in unet.named_parameters()}
    method = methods.METHODS["uce"]
    method(**{key: task[key] for key in cli.method_inputs(method)}, authors_code=code, preserve=preserve)
    last = 5  # place of the last own token: start, an, image, of, a, three
    kept = {"named": [OTHER, EMPTY], "retained": [TARGET, OTHER, EMPTY]}[preserve]
    for key, parameter in unet.named_parameters():
        if not key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            assert torch.equal(parameter.double(), before[key])
            continue
        old = before[key]
        if code == "2023":
            pairs = [(embeddings[FORGET, last:], embeddings[TARGET, last:], 1.0)]
            pairs += [(embeddings[number], embeddings[number], max(0.1, 1 / len(kept))) for number in kept]
        else:
            pairs = [
                (embeddings[FORGET, [last]], embeddings[TARGET, [last]], 1.0),
                (embeddings[OTHER, [last]], embeddings[OTHER, [last]], 1.0),
            ]
        mat1, mat2 = 0.5 * old, 0.5 * torch.eye(old.shape[1], dtype=torch.float64)
        for contexts, new_contexts, scale in pairs:
            for context, new_context in zip(contexts, new_contexts, strict=True):
                mat1 = mat1 + scale * torch.outer(old @ new_context, context)
                mat2 = mat2 + scale * torch.outer(context, context)
        expected = mat1 @ torch.inverse(mat2)
        assert (expected - old).norm() > 0.05 * old.norm()
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-4, atol=1e-5)


# What the authors' code has as defaults, or says in its commands: file names in README.md
SETTINGS = {
    "salun": dict(steps=600, lr=1e-5, alpha=0.5, train_method="full", optimizer="adam", weight_decay=0.0, batch_size=8, grad_clip=0.0),
    "esd": dict(steps=1000, lr=1e-5, negative_guidance=1.0, sample_guidance_scale=3.0, sample_steps=50, draw_from="trained")
    | dict(train_method="xattn", optimizer="adam", weight_decay=0.0, batch_size=1, grad_clip=0.0),
    "fmn": dict(steps=35, lr=2e-6, end_token=True, train_method="full", optimizer="adamw", weight_decay=0.01, batch_size=1, grad_clip=1.0),
    "uce": dict(erase_scale=1.0, preserve="named", preserve_scale="auto", ridge=0.5, authors_code=None, train_method="readers"),
    "ca": dict(steps=100, lr=1.6e-5, alpha=0.0, train_method="xattn_kv", optimizer="adamw", weight_decay=0.01, batch_size=8, grad_clip=0.0),
}
SETTINGS |= dict.fromkeys(("rl", "salun_soft"), SETTINGS["salun"])
SETTINGS["ga_retain"] = SETTINGS["salun"] | {"steps": 1200, "alpha": 0.1}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_defaults_are_those_of_the_authors(name):
    """Mutation: any other number in a method's signature or TRAINING; clipping by default in unlearn.py."""
    method, unset = methods.METHODS[name], argparse.Namespace(**dict.fromkeys(unlearn.SETTINGS))
    found = cli.method_flags(method) | cli.training_settings(unset, method, {}, unlearn.SETTINGS)
    assert {key: found[key] for key in SETTINGS[name]} == SETTINGS[name]
    assert found["ema"] == 0 and found["schedule"] == "constant"


@pytest.mark.parametrize(
    ("name", "command", "message"),
    [
        ("generate_mask", "--ckpt_path x.ckpt --classes 6 --device 4 --save_dir RUN", "choose the GPU with CUDA_VISIBLE_DEVICES=4"),
        ("generate_mask", "--ckpt_path x.ckpt --nsfw True --device 0", "there is no --nsfw here: write --forget_prompt"),
        ("unlearn", "--class_to_forget 6 --epochs 5 --device cuda:0", "there is no --epochs here: write --steps"),
        ("unlearn", "--method esd --prompt church --devices 0,1", "there is no --prompt here: write --forget_prompt"),
        ("generate_images", "--prompts_path x.csv --save_path RUN --model_name x", "there is no --model_name here: write --model_path"),
        ("evaluate", "--folder_path x", "there is no --folder_path here: write --sample_path"),
    ],
)
def test_commands_of_the_official_release_say_what_to_write(name, command, message, tmp_path, monkeypatch, capsys):
    """Mutation: leave parser.refuse() out of a script; take any GPU's number for cuda."""
    monkeypatch.chdir(tmp_path)
    assert script(name, command) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_spellings_of_the_official_release_mean_the_same():
    """Mutation: drop an alias; count --mask_guidance from 1."""
    start = "--save_dir RUN --model_path x --forget_class 6 --guidance_scale 8.5 --device cuda"
    release = "--save_dir RUN --ckpt_path x --classes 6 --c_guidance 7.5 --device cuda:0"
    assert generate_mask.parse(words(start)) == generate_mask.parse(words(release))
    args = generate_mask.parse(words("--save_dir RUN --model_path x --forget_class 6"))
    assert (args.guidance_scale, args.num_images, args.generation_steps) == (8.5, 100, 50)
