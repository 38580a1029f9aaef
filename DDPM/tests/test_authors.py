"""The first step of each method against its authors' formula, written anew in a few lines. Each test names the mutation that breaks it.

The files of the authors' code that the formulas were read in are in the parity table of README.md.
"""

import copy
import types
from unittest.mock import Mock

import pytest
import torch

import cli
import data
import masking
import methods
import passes
import sampling
from helpers import FORGOTTEN, cpu
from trainer import Trainer

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
SIZE, PIXELS, NULL = 8, 64, 10
TRAINING = {"class_dropout": 0.1, "loss": "sum", "steps": 1, "lr": 1e-3}


def mixed(x, noise, t):
    """x_t."""
    a = ABAR[t].view(-1, 1, 1, 1)
    return a.sqrt() * x + (1 - a).sqrt() * noise


def eps(model, x_t, t, c):
    return model(x_t, t, class_labels=c).sample


def sums(prediction, target):
    """Squared error of each sample, summed over pixels."""
    return (prediction - target).square().flatten(1).sum(1)


def denoising_sums(model, batch, labels=None):
    labels = batch.labels if labels is None else labels
    return sums(eps(model, mixed(batch.images, batch.noise, batch.t), batch.t, labels), batch.noise)


def dropped(batch):
    return torch.where(batch.uniform < 0.1, NULL, batch.labels)


class Watched(Trainer):
    """Keeps the loss terms of each step, the gradients of each apply(), and the weights before both."""

    def step(self, **terms):
        self.seen.append(({name: value.item() for name, value in terms.items()}, None))
        super().step(**terms)

    def apply(self, gradients, **terms):
        self.seen.append(({name: value.item() for name, value in terms.items()}, [gradient.clone() for gradient in gradients]))
        super().apply(gradients, **terms)


@pytest.fixture
def run(load):
    """run(method, **options) -> what the first steps were, the original, the batches that they saw, and the trained model."""

    def call(name, steps=1, **options):
        loaded = load()
        loaded.forget, loaded.retain = loaded.forget.take(torch.arange(20)), loaded.retain.take(torch.arange(24))
        before = copy.deepcopy(loaded.model)
        run_folder = Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})
        loop = Watched(loaded.model, run_folder, cpu(), seed=1, batch_size=SIZE)
        loop.seen = []
        streams = (data.Stream(split, batch_size=SIZE, seed=1, timesteps=1000) for split in (loaded.forget, loaded.retain))
        everything = {"model": loaded.model, "forget": loaded.forget, "retain": loaded.retain, "trainer": loop, "classes": loaded.classes}
        everything |= {"targets": data.targets(loaded.classes), "training": TRAINING, "fresh": lambda: copy.deepcopy(before)}
        method = methods.METHODS[name]
        method(**{key: everything[key] for key in cli.method_inputs(method)}, steps=steps, lr=1e-3, **options)
        forget, retain = (stream.batch(0) for stream in streams)
        return types.SimpleNamespace(
            seen=loop.seen, loop=loop, model=loaded.model, before=before, loaded=loaded, forget=forget, retain=retain
        )

    return call


def close(found, **expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(torch.as_tensor(value).detach()), rel=2e-4), name


@pytest.mark.parametrize("name", ["rl", "salun_soft"])
def test_salun_is_the_release_with_its_two_reductions(name, run):
    """Mutation: sum_alpha without the pixels, or c' in the place of c."""
    found = run(name, sum_alpha=1e-3, target_dropout=0.0)
    x_t, t = mixed(found.forget.images, found.forget.noise, found.forget.t), found.forget.t
    other, own = (eps(found.before, x_t, t, torch.full_like(t, c)) for c in (FORGOTTEN + 1, FORGOTTEN))
    release = torch.nn.functional.mse_loss(other, own)
    retain = denoising_sums(found.before, found.retain, dropped(found.retain)).mean()
    close(found.seen[0][0], forget=release, retain=1e-3 * retain)


def test_labels_of_forget_and_target_are_dropped_independently():
    """Mutation: drop both with one draw."""
    batch = Mock(uniform=torch.arange(100_000) / 100_000, labels=torch.zeros(100_000, dtype=torch.int64))
    own, other = methods.salun.__globals__["drop_both"](batch, torch.ones_like(batch.labels), NULL, 0.1)
    first, second = own == NULL, other == NULL
    for share, expected in ((first, 0.1), (second, 0.1), (first & second, 0.01)):
        assert share.float().mean().item() == pytest.approx(expected, abs=1e-3)
    assert (own[~first] == 0).all() and (other[~second] == 1).all()


def test_ascent_with_and_without_a_retain_term(run):
    """Mutation: a mean in ga_retain; labels that are not dropped."""
    found = run("ga")
    close(found.seen[0][0], forget=-denoising_sums(found.before, found.forget).mean() / PIXELS)
    found = run("ga_retain", alpha=0.5)
    forget, retain = (denoising_sums(found.before, batch, dropped(batch)).mean() for batch in (found.forget, found.retain))
    close(found.seen[0][0], forget=-forget, retain=0.5 * retain)


def test_retrain_descends_the_sum_where_the_original_did(run):
    """Mutation: forget --loss in Retrain."""
    found = run("retrain")
    batch = data.Stream(data.Split(*vars(found.loaded.retain).values()), batch_size=SIZE, seed=1, timesteps=1000)
    batch.split.name = "train"
    batch = batch.batch(0)
    close(found.seen[0][0], train=denoising_sums(found.before, batch, dropped(batch)).mean())


@pytest.mark.parametrize("draw_from", ["trained", "original"])
def test_esd_trains_on_partially_denoised_samples(draw_from, run):
    """A later step, when the two models differ. Mutation: draw from the other one; noise the samples; swap the sign of eta."""
    stops = [int(torch.randint(4, (), generator=data.make_generator("stop", 1, number))) for number in range(9)]
    number = next(number for number in range(1, 9) if stops[number] > 1)
    found = run("esd", steps=number + 1, draw_from=draw_from, sample_steps=4, negative_guidance=3.0)
    first = run("esd", steps=number, draw_from=draw_from, sample_steps=4, negative_guidance=3.0)
    drawn, stop = first.model if draw_from == "trained" else first.before, stops[number]
    blank = data.Split(torch.zeros(1, 8, 8, 1, dtype=torch.uint8), torch.tensor([FORGOTTEN]), torch.arange(1), "forget")
    batch = data.Stream(blank, batch_size=SIZE, seed=1, timesteps=1000).batch(number)
    x, c, null = batch.noise, batch.labels, torch.full_like(batch.labels, NULL)
    with torch.no_grad():
        for now in (750, 500, 250)[:stop]:
            t = torch.full_like(c, now)
            guided = 3 * eps(drawn, x, t, c) - 2 * eps(drawn, x, t, null)
            x_0 = ((x - (1 - ABAR[now]).sqrt() * guided) / ABAR[now].sqrt()).clamp(-1, 1)
            noise = (x - ABAR[now].sqrt() * x_0) / (1 - ABAR[now]).sqrt()
            x = mixed(x_0, noise, torch.full_like(c, now - 250))
        t = torch.full_like(c, 750 - 250 * stop)
        own, without = eps(found.before, x, t, c), eps(found.before, x, t, null)
        expected = torch.nn.functional.mse_loss(eps(first.model, x, t, c), without - 3.0 * (own - without))
    close(found.seen[number][0], forget=expected)


@pytest.mark.slow
def test_sa_is_the_authors_elbo(run, monkeypatch):
    """Two steps: the elastic term is 0 in the first. Mutation: means in place of sums in any of the terms."""
    drawn = []
    generate = sampling.generate_split
    monkeypatch.setitem(methods.sa.__globals__, "generate_split", lambda *rest: drawn.append(generate(*rest)) or drawn[-1])
    found = run("sa", steps=2, replay=1, replay_steps=4, ewc=2.0, fisher_timesteps=2)
    one = run("sa", steps=1, replay=1, replay_steps=4, ewc=2.0, fisher_timesteps=2)
    images, labels, t = data.to_float(drawn[0].images), drawn[0].labels, torch.tensor([250, 750])
    squares = 0
    for i in range(10):
        model = copy.deepcopy(found.before)
        noise = torch.randn(2, 1, 8, 8, generator=data.make_generator("fisher", 1, i))
        x_t = mixed(images[i].expand(2, -1, -1, -1), noise, t)
        (500 * sums(eps(model, x_t, t, labels[i].expand(2)), noise).sum()).backward()  # two stand for a thousand timesteps
        squares = squares + torch.cat([p.grad.flatten() for p in model.parameters()]).square() / 10
    moved = torch.cat([(a - b).flatten() for a, b in zip(one.model.parameters(), one.before.parameters(), strict=True)])
    assert found.seen[0][0]["elastic"] == 0
    assert found.seen[1][0]["elastic"] == pytest.approx(2.0 * (squares * moved.square()).sum().item(), rel=2e-3)
    retained = drawn[0].take(torch.tensor([i for i in range(10) if i != FORGOTTEN]))
    batch = data.Stream(retained, batch_size=SIZE, seed=1, timesteps=1000).batch(0)
    assert found.seen[0][0]["retain"] == pytest.approx(denoising_sums(found.before, batch).mean().item(), rel=2e-4)
    blank = data.Split(drawn[0].images[:1], torch.tensor([FORGOTTEN]), torch.arange(1), "forget", noise=True)
    batch = data.Stream(blank, batch_size=SIZE, seed=1, timesteps=1000).batch(0)
    assert found.seen[0][0]["forget"] == pytest.approx(denoising_sums(found.before, batch).mean().item(), rel=2e-4)


def flat(loss, model):
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(model.parameters()), allow_unused=False)])


def test_erasediff_relabels_with_a_fixed_or_an_adaptive_weight(run):
    """Mutation: another class for each sample; BOME's quotient in place of the cosine."""
    fixed, adaptive = run("erasediff", target_dropout=0.0), run("erasediff", target_dropout=0.0, erase_rate=0.3)
    other = fixed.loaded.classes.retained[int(torch.randint(9, (), generator=data.make_generator("class", 1, 0)))]
    model, batch = fixed.before, fixed.forget
    x_t = mixed(batch.images, batch.noise, batch.t)
    target = eps(model, x_t, batch.t, torch.full_like(batch.t, other)).detach()
    forget = torch.nn.functional.mse_loss(eps(model, x_t, batch.t, batch.labels), target)
    retain = denoising_sums(model, fixed.retain).mean() / PIXELS
    close(fixed.seen[0][0], forget=0.1 * forget, retain=retain)
    g_f, g_r = flat(forget, model), flat(retain, model)
    weight = max(0.3 - float(torch.nn.functional.cosine_similarity(g_f, g_r, 0)), 0)
    found = torch.cat([gradient.flatten() for gradient in adaptive.seen[0][1]])
    torch.testing.assert_close(found, g_r + weight * g_f, rtol=1e-3, atol=1e-6)


def test_erasediff_as_it_was_fits_uniform_noise(run):
    """Mutation: normal noise in x_t, uniform noise in the target alone."""
    found = run("erasediff", forget_target="uniform")
    noise = 0.5 * (1 + torch.erf(found.forget.noise / 2**0.5))
    x_t = mixed(found.forget.images, noise, found.forget.t)
    expected = torch.nn.functional.mse_loss(eps(found.before, x_t, found.forget.t, found.forget.labels), noise)
    assert found.seen[0][0]["forget"] == pytest.approx(0.1 * expected.item(), rel=2e-4)


def batches(split):
    """Sums over pixels of the guided loss of each batch of a split, means over the batch: what saliency and Fisher are made of."""

    def losses(model):
        for images, labels, t, noise in data.whole_pass(split, SIZE, 1, 1000):
            x_t = mixed(images, noise, t)
            guided = 3 * eps(model, x_t, t, labels) - 2 * eps(model, x_t, t, torch.full_like(labels, NULL))
            yield sums(guided, noise).mean()

    return losses


def clipped(gradient):
    return gradient / max(1.0, float(gradient.norm()))


def test_sfron_ascends_where_the_fisher_ratio_is_large(run):
    """Mutation: weights that rise with the loss; a mask on the retain step; the decay of another length."""
    found = run("sfron", fisher_ratio=1.5)
    model = found.before
    fishers = []
    for split in (found.loaded.forget, found.loaded.retain):
        squares = [clipped(flat(loss, model)).square() for loss in batches(split)(model)]
        fishers.append(sum(squares) / len(squares))
    salient = fishers[0] / fishers[1].clamp_min(1e-15) >= 1.5
    losses = denoising_sums(model, found.forget, dropped(found.forget))
    weights = losses.detach() ** -0.5
    expected = flat(-10 * (weights / weights.sum() * losses).sum(), model) * salient
    gradient = torch.cat([part.flatten() for part in found.seen[0][1]])
    sure = (fishers[0] / fishers[1].clamp_min(1e-15) / 1.5).log().abs() > 1e-2
    assert 0.05 < salient.float().mean() < 0.95 and len(found.seen) == 2
    torch.testing.assert_close(gradient[sure], expected[sure], rtol=2e-3, atol=1e-3)
    assert set(found.seen[1][0]) == {"retain"} and (found.loop.run_folder.images_seen == 2 * SIZE)
    moved = torch.cat([(a != b).flatten() for a, b in zip(found.model.parameters(), model.parameters(), strict=True)])
    assert moved[~salient].float().mean() > 0.9


def test_scissorhands_draws_the_sensitive_weights_anew(run):
    """Mutation: |gradient| without the weight; norms drawn anew; the ascent at weight 1."""
    found = run("scissorhands", trim_ratio=0.01)
    trimmed = run("scissorhands", steps=0, trim_ratio=0.01).model
    model = found.before
    gradients = sum(flat(loss, model).abs() for loss in batches(found.loaded.forget)(model))
    sensitivity = gradients * torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = masking.select({"all": sensitivity}, 0.01)["all"]
    norms = torch.cat([torch.full((p.numel(),), "norm" in name) for name, p in model.named_parameters()])
    changed = torch.cat([(a != b).flatten() for a, b in zip(trimmed.parameters(), model.parameters(), strict=True)])
    assert (changed != (expected & ~norms)).sum() <= 4  # ties and rounding
    forget, retain = (denoising_sums(trimmed, batch).mean() / PIXELS for batch in (found.forget, found.retain))
    close(found.seen[0][0], forget=-0.1 * forget, retain=retain)


def test_soft_thresholding_is_the_releases(run):
    """At three quarters of the run k is a quarter of the weights. Mutation: the k-th largest; k not falling."""
    soft = run("salun_soft", mask_ratio=1.0)
    before = {name: parameter.detach() for name, parameter in soft.before.named_parameters()}
    moved = {name: value + 0.01 * torch.randn(value.shape, generator=data.make_generator(name)) for name, value in before.items()}
    leaves = types.SimpleNamespace(tensors={name: value.clone() for name, value in moved.items()}, pick=lambda tensors: tensors)
    soft.loop.after_step(leaves, 0.75)
    distances = torch.cat([(moved[name] - before[name]).abs().flatten() for name in before])
    threshold = distances.sort().values[len(distances) // 4 - 1]
    for name, value in before.items():
        distance = moved[name] - value
        expected = value + distance.sign() * (distance.abs() - threshold).clamp_min(0)
        torch.testing.assert_close(leaves.tensors[name], expected, rtol=1e-5, atol=1e-7)


def test_a_mask_of_clipped_batches_is_the_releases(load):
    """Mutation: weigh batches by their images; leave out the guidance."""
    loaded = load()
    few = loaded.forget.take(torch.arange(20))
    options = {"passes": 1, "batch_size": SIZE, "seed": 1, "cond_scale": 2.0}
    found = passes.batch_gradients(loaded.model, few, cpu(), transform=torch.clone, **options)
    expected = sum(clipped(flat(loss, loaded.model)) for loss in batches(few)(loaded.model)) / 3
    torch.testing.assert_close(torch.cat([part.flatten() for part in found.values()]), expected, rtol=2e-3, atol=1e-6)
    plain = passes.mean_gradient(loaded.model, few, cpu(), **options)
    of_each = [loss * count / 20 / PIXELS for loss, count in zip(batches(few)(loaded.model), (8, 8, 4), strict=True)]
    expected = flat(sum(of_each), loaded.model)
    torch.testing.assert_close(torch.cat([part.flatten() for part in plain.values()]), expected, rtol=2e-3, atol=1e-6)
