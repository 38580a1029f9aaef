"""The evaluation-mode pass over a split: the gradient of the forget loss."""

import contextlib
import math
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

import data
from cli import RunError
from trainer import squared_error


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


def mean_gradient(family, split, embeddings, accelerator, *, guidance_scale, passes, batch_size, seed, offload=None):
    """Gradient of the forget loss over a whole split, {name: tensor} whose magnitude is SalUn's saliency.

    The loss is the mean squared error of the guided prediction s f(c) - (s - 1) f(null), s = guidance_scale, as in the official release; at
    s = 1 it is the plain training loss. embeddings: of all prompts, the empty one last. Eval mode. Every image is weighted once in each
    of `passes` passes, with timesteps and noise of their own. Accumulated in float32: in place, without a second copy, but for weights in
    half precision, and with `offload` in the host's memory ("host") or in a file in that folder.
    """
    model = family.model.eval()
    model.zero_grad(set_to_none=True)
    apart = family.model.dtype != torch.float32 or offload is not None
    sums = Sums(dict(model.named_parameters()), offload) if apart else contextlib.nullcontext()
    here, scale = (accelerator.process_index, accelerator.num_processes), loss_scale(accelerator, passes * len(split) / batch_size)
    with sums:
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
    if apart:
        gradient = {name: total.div_(scale) for name, total in sums.tensors.items()}
    else:
        gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad.div_(scale) for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    if accelerator.num_processes > 1:
        for tensor in gradient.values():  # one at a time, in place: they may lie in a file
            tensor.copy_(accelerator.reduce(tensor.to(accelerator.device), "sum"))
    return gradient


class Sums:
    """While entered, adds each gradient to a float32 tensor of its own, in `tensors` {name: tensor}, and frees it at once.

    where: None for the parameters' device, "host" for the host's memory, or a folder for a file in it, which the tensors are mapped to.
    """

    def __init__(self, parameters, where=None):
        self.parameters, self.where, self.tensors = parameters, where, {}

    def __enter__(self):
        sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        if self.where in (None, "host"):
            device = {"device": "cpu"} if self.where else {}
            empty = {name: torch.zeros_like(p, dtype=torch.float32, **device) for name, p in self.parameters.items()}
        else:
            empty = on_disk(self.where, sum(sizes.values())).split(list(sizes.values()))
            empty = {name: part.view(self.parameters[name].shape) for name, part in zip(sizes, empty, strict=True)}
        self.tensors = empty
        self.hooks = [p.register_post_accumulate_grad_hook(self._adds_to(empty[name])) for name, p in self.parameters.items()]
        return self

    @staticmethod
    def _adds_to(total):
        def add(parameter):
            total.add_(parameter.grad.to(total.device, torch.float32))
            parameter.grad = None

        return add

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


def on_disk(folder, count):
    """A float32 tensor (count,) of zeros that is mapped to a file in a folder. The file has no name, and ends with the tensor."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.truncate(4 * count)
            return torch.from_file(file.name, shared=True, size=count, dtype=torch.float32)
    except OSError as error:
        raise RunError(f"--offload_saliency {folder}: no file of {4 * count / 2**30:.1f} GiB can be made there ({error})") from error
