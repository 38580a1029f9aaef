"""The evaluation-mode pass over a split: the gradient of the forget loss."""

import contextlib
import math

import torch
from tqdm import tqdm

import data
from trainer import squared_error


@contextlib.contextmanager
def without_autocast(model):
    """While entered, the model's forward pass is its class's own, without the autocast that prepare() gave it and not compiled."""
    prepared = model.__dict__.pop("forward", None)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if prepared is not None:
            model.forward = prepared


def loss_scale(accelerator, batches):
    """Factor on the loss of one of `batches` parts of a whole pass: float16 would round its small gradients to 0."""
    return 2.0 ** math.ceil(10 + math.log2(batches)) if accelerator.mixed_precision == "fp16" else 1.0


def mean_gradient(family, split, embeddings, accelerator, *, guidance_scale, passes, batch_size, seed):
    """Gradient of the forget loss over a whole split, {name: tensor} whose magnitude is SalUn's saliency.

    The loss is the mean squared error of the guided prediction s f(c) - (s - 1) f(null), s = guidance_scale, as in the official release; at
    s = 1 it is the plain training loss. embeddings: of all prompts, the empty one last. Eval mode. Every image is weighted once in each
    of `passes` passes, with timesteps and noise of their own. Accumulated in float32 in place, without a second copy.
    """
    model = family.model.eval()
    model.zero_grad(set_to_none=True)
    here, scale = (accelerator.process_index, accelerator.num_processes), loss_scale(accelerator, passes * len(split) / batch_size)
    for number in range(passes):
        batches = data.whole_pass(split, batch_size, seed, data.TIMESTEPS, accelerator.device, number, *here)
        for latents, labels, t, noise in tqdm(batches, "gradient", disable=None):
            noisy, conditions = family.add_noise(latents, noise, t), embeddings[labels]
            if guidance_scale == 1:
                prediction = family.predict(model, noisy, t, conditions)
            else:
                parts = (noisy, t, conditions), (noisy, t, embeddings.empty(len(t)))
                conditional, unconditional = family.predict_together(model, *parts)
                prediction = guidance_scale * conditional - (guidance_scale - 1) * unconditional
            (squared_error(prediction, family.target(latents, noise, t)).sum() / (passes * len(split)) * scale).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad / scale for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    if accelerator.num_processes > 1:
        gradient = {name: accelerator.reduce(tensor, "sum") for name, tensor in gradient.items()}
    return gradient
