import copy

import torch
from torch.nn import functional as F

from engine import cross_entropy

TEMPERATURE = 4.0  # of the distillation, as in the authors' code


def scrub(model, forget, retain, fit, *, epochs=10, lr=0.005, alpha=1.0, gamma=1.0, ascent_epochs=3):
    """SCRUB (Kurmanji et al. 2023, arXiv 2302.09880): a student leaves its old self on the forget set and follows it elsewhere.

    Minimises alpha * KL + gamma * CE on the retain set; in the first `ascent_epochs` epochs a pass that maximises KL on the forget
    set comes before it. KL is between outputs at temperature 4, scaled by its square.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)

    def divergence(batch):
        with torch.no_grad():
            target = F.log_softmax(teacher(batch.x) / TEMPERATURE, 1)
        output = F.log_softmax(model(batch.x) / TEMPERATURE, 1)
        return batch.mean(F.kl_div(output, target, reduction="none", log_target=True).sum(1)) * TEMPERATURE**2

    def loss(forget=None, retain=None):
        if forget is not None:
            return {"forget": -divergence(forget)}
        return {"retain": alpha * divergence(retain), "cross_entropy": gamma * cross_entropy(model, retain)}

    fit(lambda epoch: ([{"forget": forget}] if epoch < ascent_epochs else []) + [{"retain": retain}], loss, epochs=epochs, lr=lr)
