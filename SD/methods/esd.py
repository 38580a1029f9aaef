import copy

import torch

from cli import non_negative_float
from data import TIMESTEPS, prompts_alone
from models import sampling_steps
from sampling import partially_denoised
from trainer import squared_error

FLAGS = {
    "negative_guidance": dict(type=non_negative_float, help="strength of the guidance away from the prompt"),
    "draw_from": dict(choices=("trained", "original"), help="the model that samples x_t, as in the authors' code of 2023 or of 2025"),
    "sample_guidance_scale": dict(type=non_negative_float, metavar="S", help="guidance scale used to sample x_t, 1: none"),
    "sample_steps": dict(type=sampling_steps, help="steps of the sampling runs that x_t is taken from"),
}
TRAINING = {"train_method": "xattn", "batch_size": 1}  # batch: train-esd.py of the authors, which leaves the weights to the user


def esd(
    model,
    trainer,
    family,
    embeddings,
    forgotten,
    latent_shape,
    *,
    steps=1000,
    lr=1e-5,
    negative_guidance=1.0,
    sample_guidance_scale=3.0,
    draw_from="trained",
    sample_steps=50,
):
    """Erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345): train eps(x_t | c) towards
    eps_o(x_t | null) - eta * (eps_o(x_t | c) - eps_o(x_t | null)), eta = negative_guidance.

    Reads no images: x_t is where a sampling run at `sample_guidance_scale` stands after a random number of its `sample_steps` steps. In
    the authors' train-esd.py of 2023 the model in training draws x_t, and t is drawn anew within the step of the sampler. In their
    esd_sd.py of 2025 the original draws it, and t is the sampler's. Its eta counts from eps_o(x_t | c), so that 2 there is 1 here.
    --train_method xattn is ESD-x, noxattn ESD-u, selfattn and full are the paper's other two.
    """
    shared = {id(p): p for name, p in model.named_parameters() if trainer.mask is not None and not trainer.mask[name].any()}
    teacher = copy.deepcopy(model, shared).eval().requires_grad_(False)  # what stays frozen is there once
    for batch in trainer.steps(steps, lr, prompts_alone(forgotten, latent_shape, "forget")):
        conditions, empty = embeddings[batch.labels], embeddings.empty(len(batch.labels))
        options = {"guidance_scale": sample_guidance_scale, "steps": sample_steps}
        with torch.no_grad():
            drawing = model if draw_from == "trained" else teacher
            noisy, t = partially_denoised(family, drawing, batch, conditions, empty, trainer, **options)
            if draw_from == "trained":
                width = TIMESTEPS // sample_steps
                t = (t - t % width + (width * batch.uniform).long()).clamp_max(TIMESTEPS - 1)
            conditional, unconditional = family.predict_together(teacher, (noisy, t, conditions), (noisy, t, empty))
            target = unconditional - negative_guidance * (conditional - unconditional)
        trainer.step(forget=batch.mean(squared_error(family.predict(model, noisy, t, conditions), target)))
