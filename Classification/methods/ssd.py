import argparse
import math

import torch

from cli import RunError, positive_float
from data import concatenate
from masking import kth_largest
from passes import fisher_diagonal


def threshold(text):
    """A value of --ssd_alpha: 'auto', a percentile like '97.5%', or a number."""
    if text == "auto":
        return text
    if text.endswith("%"):
        if not 0 < float(text[:-1]) < 100:
            raise argparse.ArgumentTypeError(f"must be a percentile between 0% and 100%, not {text}")
        return text
    return positive_float(text)


HELP = """dampen a weight where its Fisher information on the forget set, I_f, exceeds ssd_alpha times that on all data, I: a number, a
percentile of I_f / I over the weights (97.5%%), or auto, which is the percentile 100 - ln(1 + 100 n_f / N). With n_f of N samples
forgotten, no ratio exceeds N / n_f"""
FLAGS = {
    "ssd_alpha": dict(type=threshold, metavar="ALPHA", help=" ".join(HELP.split())),
    "ssd_lambda": dict(type=positive_float, help="strength of the dampening"),
}


def ssd(model, forget, retain, trainer, *, ssd_alpha="auto", ssd_lambda=1.0, fisher_samples=0):
    """Selective synaptic dampening (Foster et al. 2024, arXiv 2308.07707), without training.

    I is the Fisher diagonal of the whole training set, I_f that of the forget set: means of the squared gradients of single samples, as
    in the paper (the authors' code squares the gradient of a batch's mean loss). Where I_f > ssd_alpha * I, the weight is multiplied by
    min(ssd_lambda * I / I_f, 1). I = (n_f / N) I_f + ..., so I_f / I <= N / n_f: the authors' alpha of 10 is for 100 of 60,000 samples
    and selects nothing where a tenth is forgotten. The default percentile is that of adaptive SSD (arXiv 2402.10098).
    fisher_samples: estimate I on that many samples (0: all). Raises RunError where nothing would be selected.
    """
    both = concatenate(forget, retain, "both")
    order = both.indices.argsort()
    if 0 < fisher_samples < len(order):
        order = order[torch.linspace(0, len(order) - 1, fisher_samples).round().long()]
    whole, of_forget = (fisher_diagonal(model, trainer.count(split)) for split in (both.take(order), forget))
    share = len(forget) / len(both)
    alpha = resolve(ssd_alpha, whole, of_forget, share)
    new, selected = {}, 0
    for name, parameter in model.named_parameters():
        where = of_forget[name] > alpha * whole[name]
        factor = (ssd_lambda * whole[name] / of_forget[name]).clamp(max=1)
        new[name] = torch.where(where, parameter * factor, parameter).detach()
        selected += int(where.sum())
    if not selected:
        largest = max(float(ratio.max()) for ratio in ratios(whole, of_forget).values())
        bound = "" if fisher_samples else f", and none can exceed N / n_f = {1 / share:.4g}"  # I of a few samples is another one
        what = f"the largest I_f / I is {largest:.4g}{bound}"
        raise RunError(f"--ssd_alpha {ssd_alpha} selects no weight: {what}. Pass a lower one, or auto")
    trainer.update(new)


def ratios(whole, of_forget):
    """I_f / I of each weight, {name: tensor}; 0 where I is 0, which says nothing."""
    return {name: torch.where(whole[name] > 0, of_forget[name] / whole[name], 0.0) for name in whole}


def resolve(ssd_alpha, whole, of_forget, share):
    """--ssd_alpha as a number. A percentile becomes the ratio that this percentage of the weights does not exceed."""
    if isinstance(ssd_alpha, float):
        return ssd_alpha
    percent = 100 - math.log(1 + 100 * share) if ssd_alpha == "auto" else float(ssd_alpha[:-1])
    found = ratios(whole, of_forget)
    total = sum(ratio.numel() for ratio in found.values())
    bits, _ = kth_largest(found.values(), math.floor((1 - percent / 100) * total) + 1)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
