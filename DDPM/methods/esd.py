import copy

import torch

from cli import non_negative_float
from sampling import generate_split
from trainer import noisy_images, predict_noise, predict_together, squared_error

FLAGS = {"negative_guidance": dict(type=non_negative_float, help="strength of the guidance away from the class")}


def esd(model, trainer, classes, *, steps=1000, lr=1e-5, negative_guidance=1.0, replay=500):
    """Erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345) with the class in place of the prompt: train
    eps(x_t | c) towards eps_o(x_t | null) - eta * (eps_o(x_t | c) - eps_o(x_t | null)), eta = negative_guidance.

    Reads no training images. x_t are `replay` samples of each forgotten class by the original model, noised. The ESD paper takes
    them from unfinished sampling runs of the model in training, at some twenty times the cost per step.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    generated = generate_split(model, classes.forgotten, replay, classes, trainer, "forget")
    for batch in trainer.steps(steps, lr, generated):
        noisy, null = noisy_images(batch), torch.full_like(batch.labels, classes.null)
        with torch.no_grad():
            conditional, unconditional = predict_together(teacher, (noisy, batch.t, batch.labels), (noisy, batch.t, null))
            target = unconditional - negative_guidance * (conditional - unconditional)
        trainer.step(forget=batch.mean(squared_error(predict_noise(model, noisy, batch.t, batch.labels), target)))
