import torch

from passes import mean_gradient, slopes


def iu(model, forget, retain, trainer, *, iu_scale=10.0, fisher_samples=1000):
    """Influence unlearning as in the paper's table and its release (Wfisher.py): theta_o + iu_scale * k.

    v = (sum of gradients on the forget set) / N - (sum of gradients on the retain set) * n_f / (N * n_r), N = n_f + n_r. The release
    turns v into k by a recursion over `fisher_samples` retain samples that keeps one auxiliary vector. That vector never leaves the
    direction of the first sample's gradient, so k differs from v by a multiple of it, in practice by less than a percent: this is one
    plain step along v, without curvature. iu_exact has the inverse that is meant.
    """
    v = influence(model, forget, retain, trainer)
    few = retain.some(fisher_samples or len(retain), "iu", trainer.seed)
    first = mean_gradient(model, few.take(torch.zeros(1, dtype=torch.int64)), trainer.accelerator, 1)
    along_v, along_first = (slopes(model, trainer.count(few), direction) for direction in (v, first))
    scale = coefficient(along_v, along_first)
    parameters = dict(model.named_parameters())
    trainer.update({name: (p + iu_scale * (v[name] + scale * first[name])).detach() for name, p in parameters.items()})


def influence(model, forget, retain, trainer):
    """v, {name: tensor}."""
    of_forget, of_retain = (
        mean_gradient(model, trainer.count(split), trainer.accelerator, trainer.settings.batch_size) for split in (forget, retain)
    )
    share = len(forget) / (len(forget) + len(retain))
    return {name: (of_forget[name] - of_retain[name]) * share for name in of_forget}


def coefficient(along_v, along_first):
    """c of k = v + c g_1, where the release's recursion ends. along_v (s,): v . g_i; along_first (s,): g_1 . g_i of the samples."""
    count, scale, rest = len(along_v), 0.0, 1.0  # the auxiliary vector is rest * g_1
    for of_v, of_first in zip(along_v.tolist()[1:], along_first.tolist()[1:], strict=True):
        of_rest = rest * of_first
        scale -= (of_v + scale * of_first) / (count + of_rest) * rest
        rest -= of_rest / (count + of_rest) * rest
    return scale
