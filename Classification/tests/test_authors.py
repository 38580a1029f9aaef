"""Each method against its authors' formula, written anew in a few lines of float64. Each test names the mutation that would break it."""

import copy
import importlib
import types

import pytest
import torch
from torch.nn import functional as F

import data
import masking
import methods
import passes
from cli import RunError
from helpers import trainer_of
from trainer import Trainer


class Tiny(torch.nn.Module):
    """108 weights for 8x8 images."""

    head_name = "fc"

    def __init__(self):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(1, 3, 3, stride=3), torch.nn.Linear(12, 6)

    def forward(self, x):
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


def tiny_problem(load):
    """(model, forget, retain, per-sample gradients (n_r, 108) of the retain set, v (108,)) in float64 where it can be."""
    torch.manual_seed(0)
    model, loaded = Tiny(), load()
    few = lambda split: split.take((split.labels.cpu() < 6).nonzero().squeeze(1)[:30])  # noqa: E731
    forget, retain = few(loaded.forget), few(loaded.retain)

    def rows(split):
        def one(image, label):
            loss = torch.nn.functional.cross_entropy(model(image[None]), label[None])
            return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

        return torch.stack([one(*sample) for sample in zip(data.to_float(split.images), split.labels, strict=True)]).double()

    total = len(forget) + len(retain)
    v = rows(forget).sum(0) / total - rows(retain).sum(0) * len(forget) / (total * len(retain))
    return model, forget, retain, rows(retain), v


def moved_by(model, method, *splits, **options):
    """Change (n,) of the weights that a closed-form method makes."""
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    method(model, *splits, trainer_of(model), **options)
    return (torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - before).double()


class Attention(torch.nn.Module):
    """For 8x8 images: PyTorch's own layer, or its function of attention."""

    def __init__(self, layer):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(1, 8, 4, stride=4), torch.nn.Linear(8, 10)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) if layer else None

    def forward(self, x):
        tokens = self.conv(x).flatten(2).mT
        return self.fc((self.layer(tokens) if self.layer else torch.nn.functional.scaled_dot_product_attention(*[tokens] * 3)).mean(1))


@pytest.mark.parametrize("layer", (True, False))
def test_attention_has_a_forward_derivative(layer, load):
    """Mutation: leave on PyTorch's fast path of whole layers, or its fused attention; leave either off for good."""
    torch.manual_seed(0)
    model, few = Attention(layer), load().forget.take(torch.arange(7))
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    flags = lambda: (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled())  # noqa: E731
    before = flags()
    found = passes.slopes(model, few, direction)
    assert flags() == before == (True, True)
    losses = torch.nn.functional.cross_entropy(model(data.to_float(few.images)), few.labels, reduction="none")
    gradients = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    expected = [sum((one * other).sum() for one, other in zip(parts, direction.values(), strict=True)) for parts in gradients]
    torch.testing.assert_close(found.float(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    product = passes.fisher_times(model, few, direction)
    whole = sum((product[name] * direction[name]).sum() for name in direction)  # u F u is the mean of the squared slopes
    torch.testing.assert_close(whole, found.square().mean().float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damping", [1.0, 1e-2])
def test_exact_influence_equals_the_explicit_inverse(damping, load, monkeypatch):
    """Mutation: leave the mean over the samples out of F, or stop after three steps and not say so."""
    module = importlib.import_module("methods.iu_exact")
    monkeypatch.setattr(module, "DAMPING", damping)
    model, forget, retain, rows, v = tiny_problem(load)
    expected = 0.5 * torch.linalg.solve(damping * torch.eye(len(v)) + rows.T @ rows / len(rows), v)
    counted = []
    monkeypatch.setattr(Trainer, "count", lambda self, split: counted.append(split.name) or split)
    moved = moved_by(model, module.iu_exact, forget, retain, iu_scale=0.5, fisher_samples=0)
    torch.testing.assert_close(moved, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
    assert 2 * (len(counted) - 2) <= 30  # passes over the samples, of which two are for v
    if damping < 1:
        with pytest.raises(RunError, match="raise --cg_steps"):
            module.iu_exact(model, forget, retain, trainer_of(model), cg_steps=1)


def test_influence_of_the_release_is_its_recursion_and_nearly_one_plain_step(load):
    """Mutation: update the auxiliary vector before k, or forget one of the two products of k with the gradient."""
    model, forget, retain, rows, v = tiny_problem(load)
    k, o = v.clone(), rows[0].clone()
    for gradient in rows[1:]:
        tmp = torch.dot(o, gradient)
        k -= torch.dot(k, gradient) / (len(rows) + tmp) * o
        o -= tmp / (len(rows) + tmp) * o
    moved = moved_by(model, methods.METHODS["iu"], forget, retain, iu_scale=2.0, fisher_samples=0)
    torch.testing.assert_close(moved, 2 * k, rtol=1e-3, atol=1e-3 * float(k.abs().max()))
    assert 0 < (k - v).norm() < 0.2 * v.norm()


class Precise(Tiny):
    """Tiny in float64, as deep as the formulas."""

    def forward(self, x):
        return super().forward(x.double())


def precise_problem(load, count=24):
    """(Precise, forget, retain): `count` images of six classes each."""
    torch.manual_seed(0)
    loaded = load()
    few = (split.take((split.labels.cpu() < 6).nonzero().squeeze(1)[:count]) for split in (loaded.forget, loaded.retain))
    return Precise().double(), *few


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def record(module, monkeypatch, name="cross_entropy"):
    """Every (images, labels) that a method asks `name` of its file for, in order."""
    seen, original = [], getattr(module, name)

    def wrapper(model, batch, labels=None):
        seen.append((batch.images, batch.labels if labels is None else labels))
        return original(model, batch, labels)

    monkeypatch.setattr(module, name, wrapper)
    return seen


def close(model, expected, tolerance=1e-10):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=tolerance)


class Sgd:
    """SGD with momentum and weight decay by hand."""

    def __init__(self, model, lr, momentum=0.0, decay=0.0):
        self.model, self.lr, self.momentum, self.decay, self.buffers = model, lr, momentum, decay, {}

    def step(self, loss):
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        gradients = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        self.move(gradients)

    @torch.no_grad()
    def move(self, gradients):
        for name, parameter in self.model.named_parameters():
            gradient = gradients[name] + self.decay * parameter
            self.buffers[name] = self.momentum * self.buffers[name] + gradient if name in self.buffers else gradient
            parameter -= self.lr * self.buffers[name]


# ------------------------------------------------------------------------------------------------------------------ SalUn
def test_salun_is_a_masked_step_after_a_plain_one(load, monkeypatch):
    """Ten steps with momentum, weight decay and relabelling: theta <- m * SGD(theta) + (1 - m) * theta_o, equal to 1e-10.

    Mutation: mask the gradient alone, forget alpha, or average over a short last batch as over a full one."""
    module = importlib.import_module("methods.salun")
    model, forget, retain = precise_problem(load)
    other, origin = copy.deepcopy(model), weights(model)
    mask = masking.select({name: torch.randn_like(tensor) for name, tensor in origin.items()}, 0.5)
    seen = record(module, monkeypatch)
    loop = trainer_of(model, mask, batch_size=5, momentum=0.9, weight_decay=0.01)
    module.salun(model, forget, retain, loop, epochs=1, lr=0.1, alpha=0.7)
    assert len(seen) == 10
    for (_, labels), truth in zip(seen[:5], true_labels(seen, forget), strict=True):
        assert (labels != truth).all()
    sgd = Sgd(other, 0.1, 0.9, 0.01)
    for number, (images, labels) in enumerate(seen):
        sgd.step((1.0 if number < 5 else 0.7) * F.cross_entropy(other(images), labels))
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.copy_(torch.where(mask[name], parameter, origin[name]))
    close(model, weights(other))


def true_labels(seen, split):
    """The labels of the first batches' images, found again by their pixels."""
    known = data.to_float(split.images).flatten(1)
    for images, _ in seen[:5]:
        yield split.labels[torch.cdist(images.flatten(1), known).argmin(1)]


# ------------------------------------------------------------------------------------------------------ steps of training
def test_neggrad_plus_is_one_plain_step_down_both_losses(load, monkeypatch):
    """Mutation: inherit momentum, or swap beta and 1 - beta."""
    module = importlib.import_module("methods.neggrad_plus")
    model, forget, retain = precise_problem(load)
    other, seen = copy.deepcopy(model), record(module, monkeypatch)
    settings = {name: value for name, value in module.TRAINING.items() if name != "augment"}
    module.neggrad_plus(model, forget, retain, trainer_of(model, **settings), epochs=3)
    assert len(seen) == 6
    sgd = Sgd(other, 0.01)
    for (forget_images, forget_labels), (images, labels) in zip(seen[::2], seen[1::2], strict=True):
        sgd.step(0.95 * F.cross_entropy(other(images), labels) - 0.05 * F.cross_entropy(other(forget_images), forget_labels))
    close(model, weights(other))


def test_scrub_ascends_the_kl_and_then_descends_it_with_the_labels(load, monkeypatch):
    """One epoch of one step each. Mutation: the KL the other way round, no T^2, a decay that comes an epoch early."""
    module = importlib.import_module("methods.scrub")
    model, forget, retain = precise_problem(load)
    other, teacher = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (*model.parameters(), *other.parameters()):
            parameter.mul_(1.1)  # a student that is its teacher already has no gradient
    monkeypatch.setattr(module, "copy", types.SimpleNamespace(deepcopy=lambda model: teacher))
    loop = trainer_of(model, batch_size=128, momentum=0.9, weight_decay=5e-4)
    module.scrub(model, forget, retain, retain, loop, epochs=2, lr=0.1, alpha=0.5, gamma=0.9, ascent_epochs=1, decay_epochs=(1,))

    def kl(split):
        images = data.to_float(split.images)
        p, q = (net(images).div(4).softmax(1) for net in (teacher, other))
        return 16 * (p.detach() * (p.detach() / q).log()).sum(1).mean()

    sgd = Sgd(other, 0.1, 0.9, 5e-4)
    sgd.step(-kl(forget))
    for lr in (0.1, 0.01):
        sgd.lr = lr
        sgd.step(0.5 * kl(retain) + 0.9 * F.cross_entropy(other(data.to_float(retain.images)), retain.labels))
    close(model, weights(other))


def test_bad_teacher_learns_from_the_untrained_model_on_the_forget_set(load):
    """Mutation: swap the teachers, or KL(student | teacher)."""
    module = importlib.import_module("methods.bad_teacher")
    model, forget, retain = precise_problem(load)
    other, good, bad = (copy.deepcopy(model) for _ in range(3))
    with torch.no_grad():
        for parameter in (*bad.parameters(),):
            parameter.normal_()
    loop = trainer_of(model, batch_size=128, momentum=0.0, weight_decay=0.0)
    module.bad_teacher(model, forget, retain, loop, lambda: bad, epochs=1, lr=0.1, retain_share=1.0)
    of_forget, of_retain = (data.to_float(split.images) for split in (forget, retain))
    target = torch.cat([bad(of_forget), good(of_retain)]).softmax(1).detach()
    student = other(torch.cat([of_forget, of_retain])).softmax(1)
    Sgd(other, 0.1).step((target * (target / student).log()).sum(1).mean())
    close(model, weights(other))


def test_sfron_climbs_where_the_forget_set_matters_and_then_descends(load, monkeypatch):
    """Mutation: no weights, no clipping, weights of another power, the mask on retain steps too, a constant forget_alpha."""
    module = importlib.import_module("methods.sfron")
    monkeypatch.setattr(module, "LARGEST_NORM", 0.05)
    model, forget, retain = precise_problem(load)
    other = copy.deepcopy(model)
    loop = trainer_of(model, batch_size=128, momentum=0.0, weight_decay=0.0)
    module.sfron(model, forget, retain, loop, steps=4, lr=0.1, forget_every=2, forget_alpha=3.0)
    names = [name for name, _ in other.named_parameters()]

    def gradient(loss):
        return dict(zip(names, torch.autograd.grad(loss, list(other.parameters())), strict=True))

    def losses(split):
        return F.cross_entropy(other(data.to_float(split.images)), split.labels, reduction="none")

    squares = [{name: g.square() for name, g in gradient(losses(split).mean()).items()} for split in (forget, retain)]
    where, sgd = {name: squares[0][name] >= squares[1][name] for name in names}, Sgd(other, 0.1)
    for factor in (3.0, 1.5):
        each = losses(forget)
        share = each.detach() ** -0.5
        up = gradient(-factor * (share / share.sum() * each).sum())
        up = {name: g * where[name] for name, g in up.items()}
        norm = torch.stack([g.square().sum() for g in up.values()]).sum().sqrt()
        assert norm > 0.05 and 0 < sum(int(w.sum()) for w in where.values()) < 108
        sgd.move({name: g * 0.05 / (norm + 1e-6) for name, g in up.items()})
        for _ in range(2):
            sgd.step(losses(retain).mean())
    close(model, weights(other))


def test_munba_weighs_the_losses_as_nash_bargaining_asks():
    """The weights a solve G^T G a = 1 / a, of which the authors' code has a closed form. Mutation: swap g1 and g3, or drop a square."""
    module = importlib.import_module("methods.munba")
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        both = torch.randn(2, 50, generator=draw, dtype=torch.float64) * torch.tensor([[1.0], [3.0]])
        found = torch.tensor(module.bargain(*both), dtype=torch.float64)
        torch.testing.assert_close(both @ both.T @ found, 1 / found, rtol=1e-3, atol=1e-4)
    assert module.bargain(both[0], both[0]) == (1.0, 0.1)  # the closed form has no positive answer


def test_munba_steps_down_the_weighed_losses(load, monkeypatch):
    """Mutation: leave out the clipping, or clip the retain steps that follow the forget set."""
    module = importlib.import_module("methods.munba")
    model, forget, retain = precise_problem(load)
    with torch.no_grad():
        model.fc.weight.mul_(30)  # a gradient above the bound
    other, seen = copy.deepcopy(model), record(module, monkeypatch)
    module.munba(model, forget.take(torch.arange(12)), retain, trainer_of(model, batch_size=12, momentum=0.0, weight_decay=0.0), epochs=1)
    sgd, (first, random, second) = Sgd(other, 0.01), seen
    of_retain, of_forget = (F.cross_entropy(other(images), labels) for images, labels in (first, random))
    names, parameters = zip(*other.named_parameters(), strict=True)
    flat = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in (of_retain, of_forget)]
    a, b = module.bargain(*flat)
    joint = dict(zip(names, torch.autograd.grad(a * of_retain + b * of_forget, parameters), strict=True))
    norm = torch.stack([g.square().sum() for g in joint.values()]).sum().sqrt()
    sgd.move({name: g * min(1.0, float(1 / (norm + 1e-6))) for name, g in joint.items()})
    sgd.step(F.cross_entropy(other(second[0]), second[1]))
    close(model, weights(other))


def test_scissorhands_renews_the_most_salient_weights_of_its_layers():
    """Mutation: rank by the gradient alone, or renew BatchNorm."""
    module = importlib.import_module("methods.scissorhands")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm2d(5), torch.nn.Linear(5, 4))
    gradient = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    new = module.trimmed(model, gradient, ["1.weight", "2.weight", "2.bias"], 0.7, seed=1)
    saliency = torch.cat([(parameter * gradient[name]).abs().flatten() for name, parameter in model.named_parameters()])
    least = saliency.sort().values[int(0.7 * len(saliency))]
    for name, parameter in model.named_parameters():
        renewed = ((parameter * gradient[name]).abs() >= least) & name.startswith("2")
        assert torch.equal(new[name] != parameter, renewed & ~((parameter == 0) & (new[name] == 0)))
        assert name != "2.bias" or not new[name][renewed].any()
    assert (new["2.weight"] != model[2].weight).any()


@pytest.mark.parametrize("against", [-3.0, -0.01, 2.0])
def test_scissorhands_projects_a_gradient_that_points_against_the_ascent(against):
    """min (P v^2 / 2 - q v) over v >= 0.5 by a fine grid, P = |m|^2 + 1e-3, q = -g m. Mutation: v >= 0, or project in any case."""
    module = importlib.import_module("methods.scissorhands")
    memory, leaf = {"w": torch.tensor([1.0, 2.0])}, torch.zeros(2)
    leaf.grad = torch.tensor([against, 0.0])
    salient = type("Salient", (), {"tensors": {"w": leaf}})
    grid = torch.linspace(0.5, 5, 450_001, dtype=torch.float64)
    best = grid[(0.5 * 5.001 * grid**2 + against * grid).argmin()] if against < 0 else 0.0
    module.project(salient, memory, ["w"])
    torch.testing.assert_close(leaf.grad, torch.tensor([against, 0.0]) + float(best) * memory["w"], rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- closed forms
def test_fisher_forgetting_draws_noise_of_the_authors_variance(load, monkeypatch):
    """Mutation: true labels in the Fisher information, no mean over the second dimension, the head's bound for all tensors."""
    module = importlib.import_module("methods.fisher")
    model, _, retain = precise_problem(load, 12)
    model = Tiny()
    information = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for image in data.to_float(retain.images):
        log_p = model(image[None]).log_softmax(1)[0]
        for label in range(6):
            gradients = torch.autograd.grad(log_p[label], list(model.parameters()), retain_graph=True)
            for name, gradient in zip(information, gradients, strict=True):
                information[name] += log_p[label].exp().detach() * gradient**2 / len(retain)
    before, moved, found = weights(model), [], module.model_fisher(model, retain)
    monkeypatch.setattr(module, "model_fisher", lambda model, split: found)  # the same for all seeds
    for seed in range(300):
        model.load_state_dict(before)
        loop = trainer_of(model)
        loop.seed = seed
        module.fisher(model, retain, retain, loop, noise_scale=1e-2)
        moved.append({name: parameter - before[name] for name, parameter in weights(model).items()})
    for name, known in information.items():
        torch.testing.assert_close(found[name], known, rtol=1e-3, atol=1e-7)
        variance = 1e-2 * (1 / (known + 1e-8)).clamp(max=1e2 if "fc" in name else 1e3)
        variance = variance.mean(1, keepdim=True).expand_as(known) if known.dim() > 1 else variance
        variance = variance * (10 if "fc" in name or known.dim() == 1 else 1)
        seen = torch.stack([one[name] for one in moved]).square().mean(0)
        assert (seen / variance).log().abs().max() < 0.45  # 300 draws: a standard error of 0.08


def test_dampening_follows_its_equation(load, monkeypatch):
    """Mutation: swap I and I_f, or drop the clamp at 1."""
    module = importlib.import_module("methods.ssd")
    loaded = load()
    model = loaded.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    of_forget, whole = passes.fisher_diagonal(model, loaded.forget), passes.fisher_diagonal(model, loaded.retain)
    answers = iter([whole, of_forget])
    monkeypatch.setattr(module, "fisher_diagonal", lambda model, split: next(answers))
    module.ssd(model, loaded.forget, loaded.retain, trainer_of(model), ssd_alpha=2.0, ssd_lambda=5.0)
    for name, parameter in model.named_parameters():
        i, i_f = whole[name], of_forget[name]
        expected = torch.where(i_f > 2.0 * i, before[name] * (5.0 * i / i_f).clamp(max=1), before[name])
        assert torch.equal(parameter, expected)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("alpha", ["auto", "90%"])
def test_dampening_by_a_percentile_selects_that_share_of_the_weights(alpha, load):
    """Mutation: the percentile of I_f, or of each tensor; a share of 1 - p."""
    module, (_, forget, retain) = importlib.import_module("methods.ssd"), precise_problem(load)
    model = Tiny()
    before = weights(model)
    module.ssd(model, forget, retain, trainer_of(model), ssd_alpha=alpha)
    moved = sum(int((parameter != before[name]).sum()) for name, parameter in weights(model).items())
    share = 0.1 if alpha == "90%" else torch.log(torch.tensor(1 + 100 * 0.5)).item() / 100
    assert moved == int(share * 108)


def test_dampening_that_can_select_nothing_is_refused(load):
    """Mutation: leave the weights as they are and say nothing."""
    module, (_, forget, retain) = importlib.import_module("methods.ssd"), precise_problem(load)
    with pytest.raises(RunError, match=r"selects no weight: the largest I_f / I is 1\.\d+, and none can exceed N / n_f = 2"):
        module.ssd(Tiny(), forget, retain, trainer_of(Tiny()), ssd_alpha=2.0)
