import copy

import torch
from torch.nn import functional as F

from cli import non_negative_int
from trainer import cross_entropy

TEMPERATURE = 4.0  # of the distillation, as in the authors' code
FLAGS = {"ascent_epochs": dict(type=non_negative_int, help="number of first epochs that also push the forget set away")}


def scrub(model, forget, retain, trainer, *, epochs=10, lr=0.005, alpha=1.0, gamma=1.0, ascent_epochs=3):
    """SCRUB (Kurmanji et al. 2023, arXiv 2302.09880): a student leaves its old self on the forget set and follows it elsewhere.

    Minimises alpha * KL + gamma * CE on the retain set. In each of the first `ascent_epochs` epochs, a pass that maximises KL on the
    forget set comes first. KL is between outputs at temperature 4, scaled by its square.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def divergence(batch):
        with torch.no_grad():
            target = F.log_softmax(teacher(batch.images) / TEMPERATURE, 1)
        output = F.log_softmax(model(batch.images) / TEMPERATURE, 1)
        return batch.mean(F.kl_div(output, target, reduction="none", log_target=True).sum(1)) * TEMPERATURE**2

    ascents = min(ascent_epochs, epochs)
    for epoch in trainer.epochs(epochs, lr, total=ascents * trainer.count_steps(forget) + epochs * trainer.count_steps(retain)):
        if epoch < ascents:
            for batch in trainer.batches(forget):
                trainer.step(forget=-divergence(batch))
        for batch in trainer.batches(retain):
            trainer.step(retain=alpha * divergence(batch), cross_entropy=gamma * cross_entropy(model, batch))
