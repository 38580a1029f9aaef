import torch
from torch.nn import functional as F

from engine import cross_entropy, plain_batches, without_autocast


def nearest_wrong_class(model, split, bound):
    """Label (N,) by position in the data set: the wrong class the model favours after one FGSM step of `bound` in pixel space."""
    model.eval()
    labels = split.y.clone()
    for (x, y), rows in zip(plain_batches(split, 256), split.rows.split(256), strict=True):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        with torch.no_grad():
            logits = model((x + bound * gradient.sign()).clamp(0, 1))
        labels[rows.to(y.device)] = logits.scatter(1, y[:, None], float("-inf")).argmax(1)
    return labels


def bs(model, forget, fit, *, epochs=10, lr=1e-5, fgsm_bound=0.1):
    """Boundary shrink (Chen et al. 2023, arXiv 2303.11570): train each forget sample towards the nearest wrong class.

    That class is found once, on the original model and the image without augmentation. Reads no retain data.
    """
    with without_autocast(model):  # the sign of a small gradient is at stake
        labels = nearest_wrong_class(model, forget, fgsm_bound)
    fit(
        lambda epoch: [{"forget": forget}],
        lambda forget: {"forget": cross_entropy(model, forget, labels[forget.rows.to(labels.device)])},
        epochs=epochs,
        lr=lr,
    )
