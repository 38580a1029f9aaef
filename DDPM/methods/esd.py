import copy

import torch

import data
from cli import non_negative_float, positive_int
from sampling import partially_denoised
from trainer import predict_noise, predict_together, squared_error

FLAGS = {
    "negative_guidance": dict(type=non_negative_float, help="strength of the guidance away from the class"),
    "draw_from": dict(choices=("trained", "original"), help="the model whose partially denoised samples are trained on"),
    "sample_steps": dict(type=positive_int, metavar="N", help="steps of a whole sampling run"),
}
TRAINING = {"batch_size": 1}


def esd(model, trainer, classes, *, steps=1000, lr=1e-5, negative_guidance=1.0, draw_from="trained", sample_steps=50):
    """Erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345) with the class in place of the prompt: train
    eps(x_t | c) towards eps_o(x_t | null) - eta * (eps_o(x_t | c) - eps_o(x_t | null)), eta = negative_guidance.

    Reads no images. x_t is a partially denoised sample of the class, guided by w = 2, of the model in training as in the paper. Its
    authors' code has since taken the original's (draw_from), with 200 steps, lr 5e-5 and a negative guidance that is eta = 1 here. A
    batch is drawn up to one step of the sampler, at random.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    drawn = model if draw_from == "trained" else teacher
    labels, shape = torch.tensor(classes.forgotten), (model.config.sample_size, model.config.sample_size, model.config.in_channels)
    blank = torch.zeros(len(labels), *shape, dtype=torch.uint8)  # a batch's labels and noise are what is used of it
    blank = data.Split(blank.to(trainer.accelerator.device), labels.to(trainer.accelerator.device), torch.arange(len(labels)), "forget")
    for batch in trainer.steps(steps, lr, blank):
        stop = int(torch.randint(sample_steps, (), generator=data.make_generator("stop", trainer.seed, trainer.number)))
        noisy, t = partially_denoised(drawn, batch.noise, batch.labels, stop, null=classes.null, steps=sample_steps, cond_scale=2.0)
        model.train()
        t, null = torch.full_like(batch.t, t), torch.full_like(batch.labels, classes.null)
        with torch.no_grad():
            conditional, unconditional = predict_together(teacher, (noisy, t, batch.labels), (noisy, t, null))
            target = unconditional - negative_guidance * (conditional - unconditional)
        trainer.step(forget=batch.mean(squared_error(predict_noise(model, noisy, t, batch.labels), target)))
