import math

import torch

from cli import RunError, non_negative_float, share
from data import make_generator
from masking import largest
from passes import loss_scale, mean_gradient, plain_batches
from trainer import cross_entropy

MARGIN, RIDGE = 0.5, 1e-3  # of the projection, as in project2cone2()
FLAGS = {
    "trim_sparsity": dict(type=share, help="share of the weights that are not reinitialised"),
    "trim_layers": dict(nargs="+", metavar="PART", help="parts of the names of the layers that are reinitialised and projected"),
    "forget_weight": dict(type=non_negative_float, help="weight of the forget loss that is ascended"),
}


def scissorhands(
    model, forget, retain, trainer, *, epochs=10, lr=5e-3, trim_sparsity=0.97, trim_layers=("layer3", "layer4", "fc"), forget_weight=0.05
):
    """Scissorhands (Wu & Harandi 2024, arXiv 2401.06187): new weights where the forget set mattered most, then repair.

    Trimming: of the weights with the largest |theta * gradient| on a batch of the forget set, those in `trim_layers` start anew. Repair:
    CE(retain) - forget_weight * CE(forget) in each step as long as the forget set lasts, then CE(retain). A joint gradient that points
    against the ascent on a forget batch, taken anew in each epoch, is projected onto it. All as in the authors' SHs_cifar10.py, settings
    as in main_0.1_cifar10.sh with --project; the layers' names are a ResNet's, so other models need --trim_layers.
    """
    names = [name for name, _ in model.named_parameters()]
    if absent := [part for part in trim_layers if not any(part in name for name in names)]:
        raise RunError(f"no layer's name has {' or '.join(absent)} in it: name parts of {', '.join(names)} by --trim_layers")
    chosen = [name for name in names if any(part in name for part in trim_layers)]
    size = trainer.settings.forget_batch_size or trainer.settings.batch_size

    def sample(*key):
        order = torch.randperm(len(forget), generator=make_generator("scissorhands", trainer.seed, *key))
        return trainer.count(forget.take(order[:size]))

    trainer.update(trimmed(model, mean_gradient(model, sample("trim"), trainer.accelerator, size), chosen, trim_sparsity, trainer.seed))
    for epoch in trainer.epochs(epochs, lr, retain):
        memory = trainer.salient.pick(ascent(model, sample(epoch), trainer.accelerator))
        forgetting = trainer.batches(forget)
        for batch in trainer.batches(retain):
            forget_batch = next(forgetting, None)
            trainer.before_step = None
            if forget_batch is None:
                trainer.step(retain=cross_entropy(model, batch))
                continue
            trainer.before_step = lambda salient, memory=memory: project(salient, memory, chosen)
            trainer.step(retain=cross_entropy(model, batch), forget=-forget_weight * cross_entropy(model, forget_batch))


def trimmed(model, gradient, chosen, sparsity, seed):
    """{name: weights}, new where |theta * gradient| is among the largest 1 - sparsity of the model, in `chosen` and outside BatchNorm."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    norms = {
        f"{name}.{part}"
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        for part in ("weight", "bias")
    }
    total = sum(parameter.numel() for parameter in parameters.values())
    salient = largest({name: parameter * gradient[name] for name, parameter in parameters.items()}, total - math.floor(sparsity * total))
    new = dict(parameters)
    for name in set(chosen) - norms:
        start = torch.zeros(parameters[name].shape)
        if start.dim() > 1:
            torch.nn.init.kaiming_uniform_(start, a=5**0.5, generator=make_generator("scissorhands", seed, name))
        new[name] = torch.where(salient[name], start.to(parameters[name].device), parameters[name])
    return new


def ascent(model, split, accelerator):
    """Gradient of -CE on a split in evaluation mode, {name: tensor} of what is trained. Leaves the model in training mode.

    Averaged over processes, whose GPUs may round differently: what is done to averaged gradients must be the same in all.
    """
    model.eval()
    scale = loss_scale(accelerator, 1)
    images, labels = next(plain_batches(split, len(split)))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(-scale * torch.nn.functional.cross_entropy(model(images), labels), list(trained.values()))
    model.train()
    return {name: accelerator.reduce(gradient / scale, "mean") for name, gradient in zip(trained, gradients, strict=True)}


def project(salient, memory, chosen):
    """Where the gradient of the leaves in `chosen` has a negative product with `memory`, add so much of it that GEM's dual asks for."""
    leaves = [(salient.tensors[name].grad, memory[name]) for name in chosen if name in salient.tensors]
    product = sum(float((gradient * kept).sum()) for gradient, kept in leaves)
    if product < 0:
        amount = max(-product / (sum(float(kept.square().sum()) for _, kept in leaves) + RIDGE), MARGIN)
        for gradient, kept in leaves:
            gradient.add_(kept, alpha=amount)
