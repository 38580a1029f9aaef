import torch

from cli import positive_float
from data import concatenate
from passes import fisher_diagonal

FLAGS = {
    "ssd_alpha": dict(
        type=positive_float, help="dampen a weight where the Fisher information of the forget set exceeds ssd_alpha times that of all data"
    ),
    "ssd_lambda": dict(type=positive_float, help="strength of the dampening"),
}


def ssd(model, forget, retain, trainer, *, ssd_alpha=10.0, ssd_lambda=1.0, fisher_samples=0):
    """Selective synaptic dampening (Foster et al. 2024, arXiv 2308.07707), without training.

    I is the Fisher diagonal of the whole training set, I_f that of the forget set. Where I_f > ssd_alpha * I, the weight is
    multiplied by min(ssd_lambda * I / I_f, 1). fisher_samples: estimate I on that many samples (0: all).
    """
    both = concatenate(forget, retain, "both")
    order = both.indices.argsort()
    if 0 < fisher_samples < len(order):
        order = order[torch.linspace(0, len(order) - 1, fisher_samples).round().long()]
    whole, of_forget = (fisher_diagonal(model, trainer.count(split)) for split in (both.take(order), forget))
    new = {}
    for name, parameter in model.named_parameters():
        factor = (ssd_lambda * whole[name] / of_forget[name]).clamp(max=1)
        new[name] = torch.where(of_forget[name] > ssd_alpha * whole[name], parameter * factor, parameter).detach()
    trainer.update(new)
