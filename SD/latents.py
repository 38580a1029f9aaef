"""The cache of latents and embeddings: everything is encoded or drawn once, never per step."""

import contextlib
import functools
import hashlib
import json
import warnings
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

import data
import sampling
from cli import RunError
from families.base import Embeddings
from files import read_tensors, writable, write_tensors


def digest(*parts):
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(folder, what, accelerator, make, shape):
    """The tensor that make() returns, kept in <folder>/cache under the digest of `what` ({name: value}: all that it depends on).

    make() runs in every process; the main one writes. A file whose own record of `what` differs is refused, or with another shape.
    """
    path = Path(folder) / "cache" / f"{digest(what)[:20]}.safetensors"
    (found,) = broadcast_object_list([path.is_file()])  # one answer for all processes, whatever a network file system shows each
    accelerator.wait_for_everyone()
    if not found:
        tensor = make()
        if not writable(path.parent):
            warnings.warn(f"{path.parent} is read-only: latents are made again in every run", stacklevel=2)
        elif accelerator.is_main_process:
            write_tensors(path, {"values": tensor}, {"what": json.dumps(what, sort_keys=True)})
        accelerator.wait_for_everyone()
        return tensor
    tensors, metadata = read_tensors(path)
    found = tensors.get("values", torch.empty(0))
    fits = metadata.get("what") == json.dumps(what, sort_keys=True) and found.dtype == torch.float32 and found.shape == tuple(shape)
    if not fits or not torch.isfinite(found).all():
        raise RunError(f"{path} is not the cache it should be (another model, images or prompts, or NaN): remove it, it is made again")
    return found


@contextlib.contextmanager
def on_device(accelerator, *modules):
    """Hold modules on the accelerator's device for a while: text encoder and VAE are not needed while the U-Net trains."""
    try:
        for module in modules:
            module.to(accelerator.device)
        yield
    finally:
        for module in modules:
            module.to("cpu")


def encode_pictures(family, pictures, vae_sha, folder, accelerator, batch_size=8):
    """Moments (N, 2C, h, w), on the CPU, of all pictures, encoded once and cached in `folder`; the processes share the work."""
    vae, shape = family.pipeline.vae, moments_shape(family, len(pictures), pictures.size)

    def make():
        found = torch.zeros(shape)
        batches = list(torch.arange(len(pictures)).split(batch_size))
        with on_device(accelerator, vae):
            for number, rows in enumerate(tqdm(batches, "encode", disable=None if accelerator.is_main_process else True)):
                if number % accelerator.num_processes == accelerator.process_index:
                    found[rows] = family.encode_images(pictures.read(rows.tolist()))
        return accelerator.reduce(found.to(accelerator.device), "sum").cpu() if accelerator.num_processes > 1 else found

    what = {"latents": pictures.sha(), "vae": vae_sha, "scaling_factor": vae.config.scaling_factor}
    if vae.config.get("shift_factor") is not None:
        what["shift_factor"] = vae.config.shift_factor
    return cached(folder, what, accelerator, make, shape)


def embed(family, prompts, accelerator, device=None, batch_size=64):
    """The Embeddings of prompts, encoded once, in the model's precision.

    They are kept on the accelerator's device, or on another: those of a long list of prompts would take more room than the model.
    """
    device, parts = device or accelerator.device, [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    with on_device(accelerator, *family.encoders):
        return Embeddings.cat([family.encode_prompts(part).to(device, family.model.dtype) for part in parts])


def moments_shape(family, count, edge):
    """Shape (count, 2C, h, w) of the moments of images of that edge in px."""
    channels, *sides = family.latent_shape(edge)
    return count, 2 * channels, *sides


def no_moments(family, count):
    """Moments of zero in place of `count` images that nobody reads: they take no memory."""
    return torch.zeros(moments_shape(family, 1, family.image_size)).expand(count, -1, -1, -1)


def generated_moments(family, prompts, generation, model_sha, folder, accelerator):
    """(function that returns the moments, identity) of images that the original generates for prompts, cached in `folder`.

    generation: {"num_images": per prompt, "generation_steps", "generation_guidance_scale"}.
    """
    edge = family.image_size
    steps, guidance_scale = generation["generation_steps"], generation["generation_guidance_scale"]
    guidance_scale = family.GUIDANCE if guidance_scale is None else guidance_scale
    options = {"steps": steps, "size": [edge, edge], "sampler": family.SAMPLERS[0]}
    what = {"own images": prompts, "count": generation["num_images"], **options, "guidance": guidance_scale, "model": model_sha}
    config = family.pipeline.scheduler.config  # what it does not name itself may get another default in another version of diffusers
    defaults = config.get("_use_default_values", ())
    what["scheduler"] = {name: value for name, value in config.items() if name[0] != "_" and name not in defaults}

    what |= {name: family.pipeline.config[name] for name in ("force_zeros_for_empty_prompt",) if name in family.pipeline.config}

    def draw():
        embeddings = embed(family, [*prompts, data.NULL], accelerator)
        options["guidance_scale"] = guidance_scale
        with on_device(accelerator, family.pipeline.vae):  # diffusers draws where the pipeline's parts are
            return sampling.generate_moments(family, prompts, embeddings, generation["num_images"], accelerator, **options)

    shape = moments_shape(family, len(prompts) * generation["num_images"], edge)
    return functools.partial(cached, folder, what, accelerator, draw, shape), digest(what)
