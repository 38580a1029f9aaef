import math

import torch

from cli import non_negative_float
from passes import batch_gradients
from trainer import denoising_loss, drop_labels, noisy_images, predict_noise, squared_error

FLAGS = {
    "forget_alpha": dict(type=non_negative_float, help="weight of the ascent at first; it falls to 0 by half a cosine"),
    "adapt": dict(type=non_negative_float, help="lambda: each forget sample is weighted by its loss to the power -lambda"),
    "fisher_ratio": dict(
        type=non_negative_float, help="gamma: the ascent moves only weights whose forget-to-retain Fisher ratio is at least this"
    ),
}


def sfron(
    model, forget, retain, trainer, classes, training, *, steps=150, lr=1e-4, alpha=1.0, forget_alpha=10.0, adapt=0.5, fisher_ratio=1.0
):
    """SFRon (Huang et al., NeurIPS 2024, arXiv 2409.19732) as its authors run it on CIFAR-10: in turns a step of gradient ascent on the
    forgotten classes, of the weights with F_f / F_r >= fisher_ratio, and a step down the retain loss, of all weights, by one Adam.

    F: passes.batch_gradients, guided by w = 2. Ascent: a sample of loss l has the weight l^-adapt, over the batch's mean of it. Losses
    are sums over pixels, on which the gradient is clipped to norm 1, and labels are dropped as in training.
    """
    options = {"passes": 1, "batch_size": trainer.settings.batch_size, "seed": trainer.seed, "cond_scale": 2.0, "transform": torch.square}
    of_forget, of_retain = (batch_gradients(model, split, trainer.accelerator, **options) for split in (forget, retain))
    chosen = {name: (of_forget[name] + 1e-15) / (of_retain[name] + 1e-15) >= fisher_ratio for name in of_forget}
    pixels, dropout = forget.images[0].numel(), training["class_dropout"]
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        labels = drop_labels(forget_batch, classes.null, dropout)
        prediction = predict_noise(model, noisy_images(forget_batch), forget_batch.t, labels)
        losses = pixels * squared_error(prediction, forget_batch.noise)
        weights = 1 / (losses.detach() ** adapt + 1e-8)
        mean_weight = trainer.accelerator.reduce(forget_batch.mean(weights), "mean")
        decay = (1 + math.cos(math.pi * trainer.number / steps)) / 2
        ascent = -forget_alpha * decay * forget_batch.mean(weights / mean_weight * losses)
        gradients = zip(trainer.gradients(ascent), trainer.salient.pick(chosen).values(), strict=True)
        trainer.apply([gradient * salient for gradient, salient in gradients], forget=ascent)

        labels = drop_labels(retain_batch, classes.null, dropout)
        trainer.step(retain=alpha * pixels * denoising_loss(model, retain_batch, labels))
