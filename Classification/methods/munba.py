import torch
from torch._functorch import config as functorch

from models import head
from passes import loss_scale
from trainer import cross_entropy

LARGEST_NORM = 1.0  # of the gradient of a joint step


def munba(model, forget, retain, trainer, *, epochs=10, lr=0.01):
    """MUNBa (Wu & Harandi 2025, arXiv 2411.15537): each step is what the forget and the retain gradient agree on by Nash bargaining.

    The two losses are CE on the retain set and CE towards random labels, the true one among them, on the forget set. A pass over the
    retain set is an epoch. As long as the forget set lasts, a step is joint, otherwise it is the retain loss alone, as in the authors'
    MUNBa.py. Rate and epochs are the defaults of their arg_parser.py: it states none for its tables.
    """
    num_classes = head(model).out_features
    functorch.donated_buffer = False  # --compile: a graph is gone through twice

    def clip(salient):
        torch.nn.utils.clip_grad_norm_(salient.parameters(), LARGEST_NORM)

    for _ in trainer.epochs(epochs, lr, retain):
        forgetting = trainer.batches(forget)
        for batch in trainer.batches(retain):
            of_retain, forget_batch = cross_entropy(model, batch), next(forgetting, None)
            if forget_batch is None:
                trainer.before_step = None
                trainer.step(retain=of_retain)
                continue
            of_forget = cross_entropy(model, forget_batch, forget_batch.draw(num_classes))
            weights = bargain(*(flat_gradient(model, trainer, loss) for loss in (of_retain, of_forget)))
            trainer.before_step = clip
            trainer.step(retain=weights[0] * of_retain, forget=weights[1] * of_forget)


def flat_gradient(model, trainer, loss):
    """Gradient (n,) of a loss for all that is trained, averaged over processes. The loss can still be stepped down."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    scale = loss_scale(trainer.accelerator, 1)
    gradients = dict(zip(parameters, torch.autograd.grad(scale * loss, list(parameters.values()), retain_graph=True), strict=True))
    flat = torch.cat([part.reshape(-1) for part in trainer.salient.pick(gradients).values()]) / scale
    return trainer.accelerator.reduce(flat, "mean")


def bargain(retain, forget):
    """Weights of the two losses, from their gradients (n,): the authors' closed form, or (1, 0.1) where it is not positive."""
    g1, g2, g3 = (float(torch.dot(a, b)) for a, b in ((retain, retain), (retain, forget), (forget, forget)))
    squared = (g1 * g3 - g2 * (g1 * g3) ** 0.5) / (g1 * g1 * g3 - g1 * g2 * g2 + 1e-8)
    first = max(squared, 0.0) ** 0.5
    second = (1 - g1 * first**2) / (g2 * first + 1e-8)
    return (first, second) if first > 0 and second > 0 else (1.0, 0.1)
