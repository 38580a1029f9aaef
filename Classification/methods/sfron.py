import itertools
import math

import torch
from torch.nn import functional as F

from cli import non_negative_float, positive_float, positive_int
from data import make_generator
from passes import loss_scale, plain_batches
from trainer import cross_entropy

LARGEST_NORM = 7.0  # of the gradient of a forget step
FLAGS = {
    "forget_every": dict(type=positive_int, help="take one forget step every N retain steps"),
    "forget_alpha": dict(type=positive_float, help="weight of the forget loss in the first step; it falls to 0 along a cosine"),
    "adapt": dict(type=non_negative_float, help="lambda: each forget sample is weighted by its loss to the power -lambda"),
    "fisher_ratio": dict(type=non_negative_float, help="gamma: forget steps move only weights whose I_f / I_r is at least this"),
}
TRAINING = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128, "schedule": "cosine"}  # unlearn/sfron.py


def sfron(model, forget, retain, trainer, *, steps=1500, lr=0.01, forget_every=5, forget_alpha=25.0, adapt=0.5, fisher_ratio=1.0):
    """SFRon (Huang et al. 2024, arXiv 2409.19732): rare ascent where the forget set matters more, descent on the retain set otherwise.

    Before every `forget_every`-th retain step comes a step up a weighted CE on the forget set, sum_i w_i CE_i / sum_i w_i with
    w_i = CE_i^-adapt, times a factor that falls from forget_alpha to 0. It moves the weights whose Fisher information, squares of the
    gradients of batches, is at least `fisher_ratio` times as large on the forget as on the retain set, and its gradient is clipped.
    The authors' average with the last weights is left out: their ema_beta of 1 leaves the weights as they are.
    """
    of_forget, of_retain = (batch_fisher(model, trainer.count(split), trainer) for split in (forget, retain))
    where = {name: (of_forget[name] + 1e-15) / (of_retain[name] + 1e-15) >= fisher_ratio for name in of_forget}
    rounds = math.ceil(steps / forget_every)

    def clip(salient):
        for name, matters in salient.pick(where).items():
            salient.tensors[name].grad.mul_(matters)
        torch.nn.utils.clip_grad_norm_(salient.parameters(), LARGEST_NORM)

    for number in trainer.epochs(rounds, lr, total=rounds + steps):
        factor = forget_alpha * (1 + math.cos(math.pi * number * forget_every / steps)) / 2
        batch = next(trainer.batches(forget))
        losses = F.cross_entropy(model(batch.images), batch.labels, reduction="none")
        weights = 1 / (losses.detach() ** adapt + 1e-15)
        total = trainer.accelerator.reduce(batch.mean(weights), "mean")
        trainer.before_step = clip
        trainer.step(forget=-factor * batch.mean(weights * losses) / total)
        trainer.before_step = None
        stream = itertools.chain.from_iterable(trainer.batches(retain) for _ in itertools.count())
        for batch in itertools.islice(stream, min(forget_every, steps - number * forget_every)):
            trainer.step(retain=cross_entropy(model, batch))


def batch_fisher(model, split, trainer):
    """Mean over batches in random order of the squared gradient of a batch's mean cross-entropy, {name: tensor}, in evaluation mode.

    Averaged over processes, as in Scissorhands.
    """
    model.eval()
    size, parameters = trainer.settings.batch_size, dict(model.named_parameters())
    shuffled = split.take(torch.randperm(len(split), generator=make_generator("sfron", trainer.seed, split.name)))
    total, scale = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, loss_scale(trainer.accelerator, 1)
    for images, labels in plain_batches(shuffled, size):
        gradients = torch.autograd.grad(scale * F.cross_entropy(model(images), labels), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += (gradient / scale).square() / math.ceil(len(split) / size)
    return {name: trainer.accelerator.reduce(tensor, "mean") for name, tensor in total.items()}
