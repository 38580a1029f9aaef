import torch

import data
import models
from cli import non_negative_float, positive_int
from passes import fisher_diagonal
from sampling import generate_split
from trainer import denoising_losses

FLAGS = {
    "replay": dict(type=positive_int, metavar="N", help="samples that the original draws of each class"),
    "replay_steps": dict(type=positive_int, metavar="N", help="sampling steps of each of them"),
    "ewc": dict(type=non_negative_float, help="weight of the Fisher-weighted distance to the original's weights"),
    "fisher_timesteps": dict(type=positive_int, metavar="N", help="timesteps in the gradient of an image"),
}
TRAINING = {"ema": 0.9999}


def sa(model, trainer, classes, *, steps=20_000, lr=1e-4, alpha=1.0, replay=500, replay_steps=1000, ewc=10.0, fisher_timesteps=1000):
    """Selective amnesia (Heng & Soh 2023, arXiv 2305.10120): the forgotten classes are mapped to images of uniform noise, new ones in
    each batch, the others are replayed from samples that the original generates, and sum F_i (theta_i - theta_o,i)^2 holds the weights
    back. Reads no training images.

    `replay` images per class are drawn once, and F is the Fisher diagonal over all of them, of losses summed over the D values of an
    image and the T timesteps, as in the authors' code: the squared gradient of the mean loss times (T * D)^2. Their lambda is `ewc`. Losses
    are sums over D, on which the gradient is clipped to norm 1. Their samples have eta 1 and no clipping, the replay here is DDIM's.
    """
    generated = generate_split(model, range(classes.null), replay, classes, trainer, "retain", replay_steps)
    retain = generated.take((~torch.isin(generated.labels.cpu(), torch.tensor(classes.forgotten))).nonzero().squeeze(1))
    labels = torch.tensor(classes.forgotten, device=generated.labels.device)
    forget = data.Split(torch.empty_like(generated.images[: len(labels)]), labels, torch.arange(len(labels)), "forget", noise=True)

    origin = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fisher = fisher_diagonal(model, generated, trainer.accelerator, timesteps=fisher_timesteps, seed=trainer.seed)
    pixels = generated.images[0].numel()
    importance = {name: ewc * (models.TIMESTEPS * pixels) ** 2 * value for name, value in fisher.items()}
    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        elastic = sum((importance[name] * (parameter - origin[name]).square()).sum() for name, parameter in model.named_parameters())
        forget_loss, retain_loss = denoising_losses(model, forget_batch, retain_batch)
        trainer.step(forget=pixels * forget_loss, retain=alpha * pixels * retain_loss, elastic=elastic)
