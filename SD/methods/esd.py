import torch

import data
from engine import predict, predict_together, squared_error


def esd(
    unet,
    original,
    fit,
    embeddings,
    null,
    forgotten,
    unfinished,
    latent_shape,
    *,
    steps=1000,
    lr=1e-5,
    negative_guidance=1.0,
    guidance=3.0,
    sample_steps=50,
    train_method="xattn",
):
    """Erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345): train eps(x_t | c) towards
    eps_o(x_t | null) - eta * (eps_o(x_t | c) - eps_o(x_t | null)), eta = negative_guidance.

    Reads no images: x_t is where a sampling run of the model in training, at `guidance`, has come after a random number of its
    `sample_steps` steps. --train_method xattn is ESD-x, noxattn ESD-u, selfattn and full the paper's other two.
    """
    teacher = original()

    def loss(forget):
        asked, nothing = embeddings[forget.y], embeddings[null].expand(len(forget.y), -1, -1)
        with torch.no_grad():
            x_t, t = unfinished(forget, asked, nothing, guidance=guidance, steps=sample_steps)
            conditional, unconditional = predict_together(teacher, (x_t, t, asked), (x_t, t, nothing))
            target = unconditional - negative_guidance * (conditional - unconditional)
        return {"forget": forget.mean(squared_error(predict(unet, x_t, t, asked), target))}

    splits = {"forget": data.prompts_alone(forgotten, latent_shape)}
    fit(splits, loss, steps=steps, lr=lr, train_method=train_method)
