import torch

import data
import masking
from cli import ratio
from passes import batch_gradients
from trainer import denoising_losses

FLAGS = {"trim_ratio": dict(type=ratio, help="share of all weights that are reinitialised, the most sensitive ones")}


def scissorhands(model, forget, retain, trainer, *, steps=360, lr=2e-5, forget_weight=0.1, trim_ratio=0.001):
    """Scissorhands (Wu & Harandi, ECCV 2024, arXiv 2401.06187): draw the weights anew that the forgotten classes depend on most, then
    train down L_r - forget_weight * L_f. Both losses are means over pixels.

    Its authors have no code for DDPM. Settings, the missing gradient projection, the truncated normal of deviation 0.02 and the zeros for
    biases are those of their Stable Diffusion code. A weight's sensitivity is |weight| times the sum of |gradient| over batches, of the
    guided loss. There it may be drawn anew in two attention layers, here anywhere but in normalisation layers, as in their classifiers.
    """
    options = {"passes": 1, "batch_size": trainer.settings.batch_size, "seed": trainer.seed, "cond_scale": 2.0, "clip": None}
    gradients = batch_gradients(model, forget, trainer.accelerator, transform=torch.abs, **options)
    parameters, new = dict(model.named_parameters()), {}
    chosen = masking.select({name: gradients[name] * parameter for name, parameter in parameters.items()}, trim_ratio)
    draw = data.make_generator("trimmed weights", trainer.seed)
    for name, parameter in parameters.items():
        fresh = torch.zeros(parameter.shape)
        if not name.endswith("bias"):
            torch.nn.init.trunc_normal_(fresh, std=0.02, generator=draw)
        new[name] = parameter if "norm" in name else torch.where(chosen[name], fresh.to(parameter.device), parameter)
    masking.apply_where(parameters, new, trainer.mask)

    for forget_batch, retain_batch in trainer.steps(steps, lr, forget, retain):
        forget_loss, retain_loss = denoising_losses(model, forget_batch, retain_batch)
        trainer.step(forget=-forget_weight * forget_loss, retain=retain_loss)
