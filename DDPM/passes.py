"""Evaluation-mode passes over a split: mean gradient and Fisher diagonal."""

import contextlib
import itertools
import math

import torch
from tqdm import tqdm

import data
import models
from sampling import guided
from trainer import predict_noise, squared_error

FISHER_BATCH = 64  # timesteps of an image that go through the model together


@contextlib.contextmanager
def without_autocast(model, compiled=False):
    """While entered, the model's forward pass is its class's own, without prepare()'s autocast, nor compiled unless asked."""
    prepared = model.__dict__.pop("forward", None)
    try:
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            yield
    finally:
        if prepared is not None:
            model.forward = prepared


def loss_scale(accelerator, batches):
    """Factor on the loss of one of `batches` parts of a whole pass: float16 would round its small gradients to 0."""
    return 2.0 ** math.ceil(10 + math.log2(batches)) if accelerator.mixed_precision == "fp16" else 1.0


def mean_gradient(model, split, accelerator, *, passes, batch_size, seed, cond_scale=0.0):
    """Gradient of the noise-prediction loss over a whole split, {name: tensor} whose magnitude is SalUn's saliency.

    Eval mode, no augmentation, every image weighted once in each of `passes` passes with timesteps and noise of their own,
    accumulated in float32 in place, without a second copy. cond_scale: w > 0 for the loss of the guided prediction.
    """
    null = model.config.num_class_embeds - 1
    model.eval()
    model.zero_grad(set_to_none=True)
    here, scale = (accelerator.process_index, accelerator.num_processes), loss_scale(accelerator, passes * len(split) / batch_size)
    for number in range(passes):
        batches = data.whole_pass(split, batch_size, seed, models.TIMESTEPS, number, *here)
        for images, labels, t, noise in tqdm(batches, "gradient", disable=None):
            prediction = guided(model, models.noisy_images(images, noise, t), t, labels, null, cond_scale)
            (squared_error(prediction, noise).sum() / (passes * len(split)) * scale).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.div_(scale) for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") for name, tensor in gradient.items()}


def batch_gradients(model, split, accelerator, *, passes, batch_size, seed, cond_scale, transform, clip=1.0):
    """Mean over batches of transform(gradient of the batch), {name: tensor}: the official release's saliency, or SFRon's Fisher.

    A batch's loss is the sum over pixels of the guided prediction's squared error. Its gradient is clipped to norm 1, so that every batch
    weighs the same, or with clip None left as it is. Whole batches are shared among processes.
    """
    model.eval()
    null, count = model.config.num_class_embeds - 1, passes * math.ceil(len(split) / batch_size)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    batches = (batch for number in range(passes) for batch in data.whole_pass(split, batch_size, seed, models.TIMESTEPS, number))
    mine = itertools.islice(batches, accelerator.process_index, None, accelerator.num_processes)
    for images, labels, t, noise in tqdm(mine, "gradient", disable=None):
        model.zero_grad(set_to_none=True)
        prediction = guided(model, models.noisy_images(images, noise, t), t, labels, null, cond_scale)
        (images[0].numel() * squared_error(prediction, noise).mean()).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name].add_(transform(parameter.grad), alpha=1 / count)
    model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") for name, tensor in total.items()}


def fisher_diagonal(model, split, accelerator, *, timesteps, seed):
    """Mean over a split of each image's squared gradient, {name: tensor}: the diagonal of the Fisher information.

    An image's gradient is that of its noise-prediction loss, mean-reduced over pixels and over `timesteps` timesteps spread evenly
    over the noise range, with noise of their own (selective amnesia, arXiv 2305.10120, takes all 1,000). Not in float16, in which single
    gradients overflow or are rounded to 0, whatever the scale of the loss.
    """
    if accelerator.mixed_precision == "fp16":
        with without_autocast(model, compiled=True):
            return squared_gradients(model, split, accelerator, timesteps, seed)
    return squared_gradients(model, split, accelerator, timesteps, seed)


def squared_gradients(model, split, accelerator, timesteps, seed):
    """What fisher_diagonal() returns, in the precision that the model has."""
    model.eval()
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    t = ((torch.arange(timesteps) + 0.5) * models.TIMESTEPS / timesteps).long()
    positions = torch.arange(len(split)).tensor_split(accelerator.num_processes)[accelerator.process_index]
    for position in tqdm(positions.tolist(), "fisher", disable=None, mininterval=1):
        image, label = data.to_float(split.images[position : position + 1]), split.labels[position]
        noises = torch.randn(timesteps, *image.shape[1:], generator=data.make_generator("fisher", seed, position))
        for part in torch.arange(timesteps).split(FISHER_BATCH):
            times, noise = t[part].to(image.device), noises[part].to(image.device)
            noisy = models.noisy_images(image.expand_as(noise), noise, times)
            prediction = predict_noise(model, noisy, times, label.expand(len(part)))
            (squared_error(prediction, noise).sum() / timesteps).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name].addcmul_(parameter.grad, parameter.grad)
        model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") / len(split) for name, tensor in total.items()}
