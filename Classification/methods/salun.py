import torch
from torch.nn import functional as F

from data import concatenate
from models import head
from trainer import cross_entropy


def other_labels(batch, num_classes):
    """Random labels y' != y, fresh at every step."""
    return (batch.labels + 1 + batch.draw(num_classes - 1)) % num_classes


def salun(model, forget, retain, trainer, *, epochs=10, lr=0.013, alpha=1.0, mix=False):
    """SalUn, the paper's method (Eq. 6): CE(x, y') on the forget set, with random labels y' != y, + alpha * CE(x, y) on the retain set.

    Only the salient weights move, theta_u = m * (delta + theta_o) + (1 - m) * theta_o: the trainer's optimizer holds no others.
    An epoch is one pass over the forget set, then one over the retain set. With `mix` it is one pass over both, shuffled.
    """
    if mix:
        return mixed(model, forget, retain, trainer, epochs, lr, alpha)
    num_classes = head(model).out_features
    for _ in trainer.epochs(epochs, lr, forget, retain):
        for batch in trainer.batches(forget):
            trainer.step(forget=cross_entropy(model, batch, other_labels(batch, num_classes)))
        for batch in trainer.batches(retain):
            trainer.step(retain=alpha * cross_entropy(model, batch))


def mixed(model, forget, retain, trainer, epochs, lr, alpha):
    """The same loss in one pass over both sets."""
    trainer.mixes()
    num_classes, both = head(model).out_features, concatenate(forget, retain, "both")
    for _ in trainer.epochs(epochs, lr, both):
        for batch in trainer.batches(both):
            of_forget = batch.positions < len(forget)
            labels = torch.where(of_forget, other_labels(batch, num_classes), batch.labels)
            losses = F.cross_entropy(model(batch.images), labels, reduction="none")
            trainer.step(forget=batch.mean(losses * of_forget), retain=alpha * batch.mean(losses * ~of_forget))
