import torch

from data import Split
from masking import apply_where


def ssd(model, forget, retain, fisher, mask, *, ssd_alpha=10.0, ssd_lambda=1.0, fisher_samples=0):
    """Selective synaptic dampening (Foster et al. 2024, arXiv 2308.07707), without training.

    With Fisher diagonals I of the whole training set and I_f of the forget set: where I_f > ssd_alpha * I, the weight is
    multiplied by min(ssd_lambda * I / I_f, 1). fisher_samples: estimate I on that many samples (0: all).
    """
    everything = torch.cat([forget.rows, retain.rows]).sort().values
    if 0 < fisher_samples < len(everything):
        everything = everything[torch.linspace(0, len(everything) - 1, fisher_samples).round().long()]
    whole, of_forget = fisher(Split(forget.x, forget.y, everything)), fisher(forget)
    parameters = dict(model.named_parameters())
    new = {}
    for name, parameter in parameters.items():
        factor = (ssd_lambda * whole[name] / of_forget[name]).clamp(max=1)
        new[name] = torch.where(of_forget[name] > ssd_alpha * whole[name], parameter * factor, parameter).detach()
    apply_where(parameters, new, mask)
