import torch

from engine import predict, predict_together, squared_error


def esd(model, original, fit, scheduler, classes, own_samples, *, steps=1000, lr=1e-5, negative_guidance=1.0, replay=500):
    """Erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345) with the class in the prompt's place: train
    eps(x_t | c) towards eps_o(x_t | null) - eta * (eps_o(x_t | c) - eps_o(x_t | null)), eta = negative_guidance.

    Reads no training images. x_t are `replay` samples of each forgotten class by the original model, noised; the ESD paper takes
    them from unfinished sampling runs of the model in training, at some twenty times the cost of a step.
    """
    teacher = original()

    def loss(forget):
        x_t = scheduler.add_noise(forget.x, forget.noise, forget.t)
        null = torch.full_like(forget.y, classes.null)
        with torch.no_grad():
            conditional, unconditional = predict_together(teacher, (x_t, forget.t, forget.y), (x_t, forget.t, null))
            target = unconditional - negative_guidance * (conditional - unconditional)
        return {"forget": forget.mean(squared_error(predict(model, x_t, forget.t, forget.y), target))}

    fit({"forget": own_samples(classes.forgotten, replay)}, loss, steps=steps, lr=lr)
