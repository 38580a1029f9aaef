from argparse import BooleanOptionalAction

import torch
from torch.nn import functional as F

from cli import positive_float
from passes import plain_batches, without_autocast
from trainer import cross_entropy

FLAGS = {
    "fgsm_bound": dict(type=positive_float, help="FGSM step in pixel space [0, 1]"),
    "bs_exclude_true": dict(action=BooleanOptionalAction, help="never take the true class for the nearest one, as the paper words it"),
}
TRAINING = {"batch_size": 64, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "augment": False}  # boundary_unlearning.py, main.py


def nearest_class(model, split, bound, exclude_true):
    """Labels (n,) of a split: the class the model gives to each image after one FGSM step of `bound` in pixel space.

    Where the step does not change the prediction, that is the true class, unless it is excluded.
    """
    model.eval()
    found = []
    for images, labels in plain_batches(split, 256):
        images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(images), labels), images)
        with torch.no_grad():
            logits = model((images + bound * gradient.sign()).clamp(0, 1))
        found.append((logits.scatter(1, labels[:, None], float("-inf")) if exclude_true else logits).argmax(1))
    return torch.cat(found)


def bs(model, forget, trainer, *, epochs=10, lr=1e-5, fgsm_bound=0.1, bs_exclude_true=False):
    """Boundary shrink (Chen et al. 2023, arXiv 2303.11570): train each forget sample towards the nearest class.

    That class is the original model's answer to the attacked image, as in the authors' code and in SalUn's release: where the attack
    fails, the sample keeps its label. The paper's wording, "nearest but incorrect", is --bs_exclude_true, a far harsher method. The class
    is found once, on the image without augmentation. Reads no retain data.
    """
    with without_autocast(model):  # the sign of a small gradient is at stake
        nearest = nearest_class(model, trainer.count(forget), fgsm_bound, bs_exclude_true)
    for _ in trainer.epochs(epochs, lr, forget):
        for batch in trainer.batches(forget):
            trainer.step(forget=cross_entropy(model, batch, nearest[batch.positions]))
