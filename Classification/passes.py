"""Evaluation-mode passes over a split: logits, mean gradient, per-sample gradients, the Fisher information's diagonal and its products."""

import contextlib
import math
import warnings

import torch
from torch.nn import functional as F
from tqdm import tqdm

import data
from cli import RunError

GRADIENT_BYTES = 512 << 20  # memory for per-sample gradients held at once


def plain_batches(split, batch_size):
    """Yield (images, labels) over a split in order, without augmentation."""
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        yield data.to_float(data.to_device(images, labels.device)), labels


@torch.no_grad()
def predict_logits(model, split, batch_size=None):
    """Return the logits (N, K), float32 on the CPU, of a split in eval mode without augmentation.

    batch_size: by default 1,000 images of up to 32 px, and fewer that are larger, in proportion to their area.
    """
    batch_size = batch_size or max(1, 1000 * 32**2 // max(32**2, split.images[0, ..., 0].numel() if len(split) else 0))
    model.eval()
    batches = tqdm(plain_batches(split, batch_size), "predict", math.ceil(len(split) / batch_size), disable=None, mininterval=1)
    outputs = torch.cat([model(images).cpu() for images, _ in batches]) if len(split) else torch.empty(0, 0)
    if not torch.isfinite(outputs).all():
        raise RunError("the model gives NaN or infinite outputs: its training or unlearning ruined it, lower --lr there")
    return outputs


def loss_scale(accelerator, batches):
    """Factor on the loss of one of `batches` parts of a whole pass: float16 would round its small gradients to 0."""
    return 2.0 ** math.ceil(10 + math.log2(batches)) if accelerator.mixed_precision == "fp16" else 1.0


def mean_gradient(model, split, accelerator, batch_size=256):
    """Gradient of the mean cross-entropy over a whole split, {name: tensor}. Its magnitude is SalUn's saliency.

    Eval mode, no augmentation, every sample weighted once. It is accumulated in float32 in place, without a second copy.
    """
    model.eval()
    model.zero_grad(set_to_none=True)
    scale = loss_scale(accelerator, len(split) / batch_size)
    mine = split.take(torch.arange(len(split)).tensor_split(accelerator.num_processes)[accelerator.process_index])
    batches = tqdm(plain_batches(mine, batch_size), "gradient", math.ceil(len(mine) / batch_size), disable=None, mininterval=1)
    for images, labels in batches:
        (F.cross_entropy(model(images), labels, reduction="sum") / len(split) * scale).backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.div_(scale) for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return {name: accelerator.reduce(tensor, "sum") for name, tensor in gradient.items()}


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


@contextlib.contextmanager
def plain_attention():
    """While entered, attention is computed in steps that have a forward derivative: PyTorch's fused kernels have none."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def sample_gradients(model, split):
    """Yield {name: (B, *shape)}: each sample's gradient of the cross-entropy, in eval mode and float32, in blocks bounded by memory."""
    model.eval()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())
    size = sum(parameter.numel() for parameter in parameters.values()) * 4

    def loss(parameters, image, label):
        logits = torch.func.functional_call(model, (parameters, buffers), (image[None],))
        return F.cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    for images, labels in plain_batches(split, max(1, min(64, GRADIENT_BYTES // size))):
        with without_autocast(model):
            gradients = each(parameters, images, labels)
        yield gradients


def batch_losses(model, split, batch_size):
    """Yield, for each batch in order, the function of {name: parameter} that gives its samples' cross-entropies (B,), in float32."""
    model.eval()
    buffers = dict(model.named_buffers())
    for images, labels in plain_batches(split, batch_size):

        def losses(parameters, images=images, labels=labels):
            return F.cross_entropy(torch.func.functional_call(model, (parameters, buffers), (images,)), labels, reduction="none")

        with without_autocast(model), plain_attention():
            yield losses


def slopes(model, split, direction, batch_size=256):
    """Derivative of each sample's cross-entropy along a direction {name: tensor}, g_i . u: (n,), float64 on the CPU, by forward mode."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return torch.cat([along(losses, parameters, direction).double().cpu() for losses in batch_losses(model, split, batch_size)])


def along(losses, parameters, direction):
    """Derivatives (B,) of losses(parameters) along a direction {name: tensor}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, about its torch.jit.script
        return torch.func.jvp(losses, (parameters,), (direction,))[1]


def fisher_times(model, split, direction, batch_size=256):
    """F u, {name: tensor}, where F is the mean of g g^T over the samples' gradients: slopes first, then a backward pass weighted by them.

    Nothing of the size of samples times weights is held.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for losses in batch_losses(model, split, batch_size):
        weights = along(losses, parameters, direction) / len(split)
        _, backward = torch.func.vjp(losses, parameters)
        for name, gradient in backward(weights)[0].items():
            total[name] += gradient
    return total


def fisher_diagonal(model, split):
    """Mean over a split of each sample's squared gradient, {name: tensor}: the diagonal of the empirical Fisher information."""
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    with tqdm(total=len(split), desc="fisher", disable=None, mininterval=1) as bar:
        for block in sample_gradients(model, split):
            for name, gradients in block.items():
                total[name] += gradients.square().sum(0)
            bar.update(len(gradients))
    return {name: tensor / len(split) for name, tensor in total.items()}
