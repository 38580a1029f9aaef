import torch

import data
import models
from engine import predict_together, squared_error


def sa(
    model, fit, scheduler, classes, own_samples, fisher, seed, *, steps=1000, lr=1e-4, alpha=1.0, replay=500, ewc=10.0, fisher_timesteps=50
):
    """Selective amnesia (Heng & Soh 2023, arXiv 2305.10120): the forgotten classes are mapped to images of uniform noise, the others are
    replayed from the original's own samples, and sum F_i (theta_i - theta_o,i)^2 holds the weights back. Reads no training images.

    `replay` images a class are drawn once, and F is the Fisher diagonal over all of them. The terms are means over the D values of
    an image, where the authors' code takes sums over them and over the T timesteps: their lambda is `ewc` here, which therefore weighs
    the squared gradient of the mean loss by T^2 * D.
    """
    samples = own_samples(tuple(range(classes.null)), replay)
    retained = samples.rows[~torch.isin(samples.y, torch.tensor(classes.forgotten, device=samples.y.device)).cpu()]
    noise = torch.randint(256, (replay * len(classes.forgotten), *samples.x.shape[1:]), generator=data.generator("noise images", seed))
    labels = torch.tensor(classes.forgotten).repeat_interleave(replay)
    device = samples.x.device
    splits = {
        "forget": data.Split(noise.to(torch.uint8).to(device), labels.to(device), torch.arange(len(labels))),
        "retain": data.Split(samples.x, samples.y, retained),
    }
    scale = ewc * models.TIMESTEPS**2 * samples.x[0].numel()
    origin = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    importance = {name: scale * value for name, value in fisher(samples, timesteps=fisher_timesteps).items()}

    def loss(forget, retain):
        parts = [(scheduler.add_noise(batch.x, batch.noise, batch.t), batch.t, batch.y) for batch in (forget, retain)]
        prediction, kept = predict_together(model, *parts)
        held = sum((importance[name] * (parameter - origin[name]).square()).sum() for name, parameter in model.named_parameters())
        return {
            "forget": forget.mean(squared_error(prediction, forget.noise)),
            "retain": alpha * retain.mean(squared_error(kept, retain.noise)),
            "elastic": held,
        }

    fit(splits, loss, steps=steps, lr=lr)
