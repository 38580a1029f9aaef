import torch
from torch.nn import functional as F

from cli import positive_float
from passes import plain_batches, without_autocast
from trainer import cross_entropy

FLAGS = {"fgsm_bound": dict(type=positive_float, help="FGSM step in pixel space [0, 1]")}


def nearest_wrong_class(model, split, bound):
    """Labels (n,) of a split: the wrong class the model favours after one FGSM step of `bound` in pixel space."""
    model.eval()
    found = []
    for images, labels in plain_batches(split, 256):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
        with torch.no_grad():
            logits = model((images + bound * gradient.sign()).clamp(0, 1))
        found.append(logits.scatter(1, labels[:, None], float("-inf")).argmax(1))
    return torch.cat(found)


def bs(model, forget, trainer, *, epochs=10, lr=1e-5, fgsm_bound=0.1):
    """Boundary shrink (Chen et al. 2023, arXiv 2303.11570): train each forget sample towards the nearest wrong class.

    That class is found once, on the original model and the image without augmentation. Reads no retain data.
    """
    with without_autocast(model):  # the sign of a small gradient is at stake
        nearest = nearest_wrong_class(model, forget, fgsm_bound)
    for _ in trainer.epochs(epochs, lr, forget):
        for batch in trainer.batches(forget):
            trainer.step(forget=cross_entropy(model, batch, nearest[batch.positions]))
