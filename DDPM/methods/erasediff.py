import torch

import models
from cli import positive_float
from trainer import noisy_images, predict_together, squared_error

FLAGS = {"erase_rate": dict(type=positive_float, help="lower bound on the rate at which the forget loss falls")}


def erasediff(model, forget, retain, trainer, *, steps=1000, lr=1e-4, erase_rate=0.5):
    """EraseDiff (Wu et al., CVPR 2025, arXiv 2401.05779), a successor of SalUn: minimise the retain loss L_r while the forget loss L_f
    is at its minimum. L_f is the loss of predicting uniform noise for the forgotten classes, noised with it, in place of normal noise.

    The authors' code had uniform noise in early 2024 and has relabelled since August 2024. The multiplier below is that of the bilevel
    method it builds on, unverified against the paper.
    The constraint's gradient is that of L_f (its minimum, a constant, drops out). Each step goes along g_r + lambda * g_f with
    lambda = max(0, erase_rate - <g_r, g_f> / |g_f|^2). So L_f falls at a rate of at least erase_rate * |g_f|^2 while L_r is minimised.
    """
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        uniform = torch.special.ndtr(forget_batch.noise)  # a normal variable's distribution function makes it uniform in (0, 1)
        forget_noisy = models.noisy_images(forget_batch.images, uniform, forget_batch.t)
        forget_prediction, retain_prediction = predict_together(
            model, (forget_noisy, forget_batch.t, forget_batch.labels), (noisy_images(retain_batch), retain_batch.t, retain_batch.labels)
        )
        forget_loss = forget_batch.mean(squared_error(forget_prediction, uniform))
        retain_loss = retain_batch.mean(squared_error(retain_prediction, retain_batch.noise))

        forget_gradient = trainer.gradients(forget_loss, retain_graph=True)
        retain_gradient = trainer.gradients(retain_loss)
        inner = sum((a * b).sum() for a, b in zip(retain_gradient, forget_gradient, strict=True))
        square = sum(b.square().sum() for b in forget_gradient)
        weight = (erase_rate - inner / square.clamp_min(1e-30)).clamp_min(0)
        combined = [a + weight * b for a, b in zip(retain_gradient, forget_gradient, strict=True)]
        trainer.apply(combined, forget=forget_loss, retain=retain_loss)
