import torch

from cli import positive_float
from data import Split, make_generator
from models import head
from passes import predict_logits, sample_gradients

FLAGS = {"noise_scale": dict(type=positive_float, help="variance of the noise, as a multiple of the inverse Fisher information")}


def fisher(model, forget, retain, trainer, *, noise_scale=1e-6, fisher_samples=0):
    """Fisher forgetting (Golatkar et al. 2020, arXiv 1911.04933): noise where the retain set does not need a weight. No training.

    The Fisher diagonal is the mean over retain samples (`fisher_samples` of them, 0: all) of sum_y p(y | x) (d log p(y | x) / d theta)^2.
    Variances and their bounds are those of the authors' get_mean_var() (Forgetting.ipynb; fisher_new in Unlearn-Sparse and SalUn's
    release, which squares gradients of batches of 32 instead of single samples): noise_scale / Fisher, at most 1e3 * noise_scale (1e2 in
    the last layer), averaged over a tensor's second dimension, ten times as large in the last layer and in vectors. A class that is
    forgotten whole loses its row of the last layer.
    """
    information = model_fisher(model, trainer.count(retain.some(fisher_samples or len(retain), "fisher", trainer.seed)))
    last, gone = head(model), forget.labels.unique()
    gone = gone[~torch.isin(gone, retain.labels)]
    new = {}
    for name, parameter in model.named_parameters():
        of_head = parameter is last.weight or parameter is last.bias
        mean, variance = parameter.detach().clone(), noise_scale * (1 / (information[name] + 1e-8)).clamp(max=1e2 if of_head else 1e3)
        if parameter.dim() > 1:
            variance = variance.mean(1, keepdim=True).expand_as(parameter).clone()
        if of_head:
            mean[gone], variance[gone] = 0.0, 1e-4
        if of_head or parameter.dim() == 1:
            variance *= 10
        noise = torch.randn(parameter.shape, generator=make_generator("fisher", trainer.seed, name)).to(parameter.device)
        new[name] = mean + variance.sqrt() * noise
    trainer.update(new)


def model_fisher(model, split):
    """Mean over a split of sum_y p(y | x) (d log p(y | x) / d theta)^2, {name: tensor}: labels are the model's own."""
    probabilities = predict_logits(model, split).softmax(1)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for label, weights in enumerate(probabilities.T):
        start, answers = 0, Split(split.images, torch.full_like(split.labels, label), split.indices, split.name)
        for block in sample_gradients(model, answers):
            count = len(next(iter(block.values())))
            weight = weights[start : start + count].to(split.labels.device)
            start += count
            for name, gradients in block.items():
                total[name] += torch.einsum("b,b...->...", weight, gradients.square())
    return {name: tensor / len(split) for name, tensor in total.items()}
