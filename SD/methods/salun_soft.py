import math

import torch
from torch.nn import functional as F

from cli import RunError
from masking import kth_smallest

from .salun import salun


def salun_soft(model, forget, retain, trainer, family, embeddings, targets, *, steps=600, lr=1e-5, alpha=0.5, mask_ratio=0.5):
    """SalUn-soft: SalUn's loss + beta * |theta - theta_o|_1 by proximal gradient, in place of a mask.

    After each step theta - theta_o is soft-thresholded at its k-th smallest magnitude. k falls linearly from mask_ratio * n to 0
    over the run. So at first mask_ratio of the weights return to theta_o, and at last all may move. theta_o is the original
    model throughout: it is taken before training starts, on --resume too. With --mask_path only salient weights take part.
    """
    origin = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def proximal_step(salient, progress):
        anchors = salient.pick(origin)
        distances = torch.cat([(salient.tensors[name] - anchor).abs().flatten() for name, anchor in anchors.items()])
        k = math.floor(mask_ratio * (1 - progress) * len(distances))
        if k == 0:
            return
        if not torch.isfinite(distances).all():
            raise RunError("the weights became NaN or infinite: lower --lr")
        threshold = kth_smallest(distances, k)
        for name, anchor in anchors.items():
            salient.tensors[name].copy_(anchor + F.softshrink(salient.tensors[name] - anchor, threshold))

    trainer.after_step = proximal_step
    salun(model, forget, retain, trainer, family, embeddings, targets, steps=steps, lr=lr, alpha=alpha)
