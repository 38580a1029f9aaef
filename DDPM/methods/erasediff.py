import torch
from torch._functorch import config as functorch

import data
import models
from cli import non_negative_float
from trainer import noisy_images, predict_together, squared_error

from .salun import detached_prediction, drop_both

FLAGS = {
    "forget_target": dict(
        choices=("relabel", "uniform"), help="what is predicted for a forgotten class: another class's, or uniform noise"
    ),
    "erase_rate": dict(type=non_negative_float, help="eta of a weight that adapts to the gradients, in place of --forget_weight"),
}
TRAINING = {"ema": 0.99}


def erasediff(
    model,
    forget,
    retain,
    trainer,
    classes,
    *,
    steps=288,
    lr=1e-4,
    forget_target="relabel",
    forget_weight=0.1,
    erase_rate=None,
    target_dropout=0.1,
):
    """EraseDiff (Wu et al., CVPR 2025, arXiv 2401.05779), a successor of SalUn: minimise the retain loss L_r while the forget loss L_f
    is at its minimum, by steps down L_r + lambda * L_f.

    L_f as in the authors' code since August 2024 is that of SalUn with one random retained class c' for the whole batch. "uniform" is
    what it had before: predict uniform noise for forgotten images noised with it. lambda is fixed as there, or with erase_rate
    max(0, erase_rate - cos(g_r, g_f)). Both terms are means over pixels. The inner minimisation of L_f is left out: in their code it adds
    a constant to the loss, restores the weights, and leaves a trace in Adam's moments only.
    """
    functorch.donated_buffer = False  # --compile: with erase_rate a graph is gone through twice
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        if forget_target == "relabel":
            draw = data.make_generator("class", trainer.seed, trainer.number)
            other = classes.retained[int(torch.randint(len(classes.retained), (), generator=draw))]
            c, other = drop_both(forget_batch, torch.full_like(forget_batch.labels, other), classes.null, target_dropout)
            noisy = noisy_images(forget_batch)
            target = detached_prediction(model, noisy, forget_batch.t, other, dropout=target_dropout > 0)
        else:
            target = torch.special.ndtr(forget_batch.noise)  # a normal variable's distribution function makes it uniform in (0, 1)
            c, noisy = forget_batch.labels, models.noisy_images(forget_batch.images, target, forget_batch.t)
        forget_prediction, retain_prediction = predict_together(
            model, (noisy, forget_batch.t, c), (noisy_images(retain_batch), retain_batch.t, retain_batch.labels)
        )
        forget_loss = forget_batch.mean(squared_error(forget_prediction, target))
        retain_loss = retain_batch.mean(squared_error(retain_prediction, retain_batch.noise))
        if erase_rate is None:
            trainer.step(forget=forget_weight * forget_loss, retain=retain_loss)
        else:
            forget_gradient, retain_gradient = trainer.gradients(forget_loss, retain_graph=True), trainer.gradients(retain_loss)
            flat = (torch.cat([part.flatten() for part in each]) for each in (forget_gradient, retain_gradient))
            weight = (erase_rate - torch.cosine_similarity(*flat, dim=0)).clamp_min(0)
            combined = [a + weight * b for a, b in zip(retain_gradient, forget_gradient, strict=True)]
            trainer.apply(combined, forget=forget_loss, retain=retain_loss)
