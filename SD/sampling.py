"""Drawing images: seeds, files, grids and the GIF. The sampler itself is diffusers' pipeline.

The starting noise of an image follows from its own seed alone, so that batch size, number of processes and interruptions do not matter.
"""

import contextlib
import inspect

import torch
from tqdm import tqdm

import data
import models
from cli import RunError
from files import write_whole
from passes import without_autocast

# diffusers' schedulers; "own" is the one that the pipeline came with
SAMPLERS = dict(ddim="DDIMScheduler", pndm="PNDMScheduler", lms="LMSDiscreteScheduler", dpm="DPMSolverMultistepScheduler")

# the fewest and most steps in which they draw, where these are not 1 and one less than the noise schedule has
STEPS = dict(pndm=(4, data.TIMESTEPS - 1), lms=(1, data.TIMESTEPS), own=(1, data.TIMESTEPS))


def set_sampler(family, sampler):
    """Give a family's pipeline the scheduler of a sampler, with its own noise schedule. Returns the one it had."""
    import diffusers

    pipeline = family.pipeline
    family.check_sampler(sampler)
    before = pipeline.scheduler
    cls = type(before) if sampler == "own" else getattr(diffusers, SAMPLERS[sampler])
    if before.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in inspect.signature(cls).parameters:
        raise RunError(f"--sampler {sampler} cannot draw on this model's noise schedule, which ends in pure noise: take ddim")
    pipeline.scheduler = models.reschedule(cls, before)
    return before


@contextlib.contextmanager
def without_encoders(family):
    """While entered, the pipeline has no text encoders: prompts are encoded, and diffusers would draw on the device that these are on."""
    parts = vars(family.pipeline)  # setattr() would write it into the pipeline's config
    encoders = {name: parts[name] for name in family.PARTS if name.startswith("text_encoder")}
    parts.update(dict.fromkeys(encoders))
    try:
        yield
    finally:
        parts.update(encoders)


@contextlib.contextmanager
def precise_decoder(vae, wanted):
    """While entered, and where it is wanted, the VAE decodes in float32: XL's overflows in float16."""
    decode = vae.decode

    def decoded(latents, *args, **options):
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.float(), *args, **options)

    if wanted:
        vae.decode = decoded
    try:
        yield
    finally:
        vae.__dict__.pop("decode", None)


@torch.no_grad()
def draw(
    family,
    embeddings,
    empty,
    seeds,
    accelerator,
    *,
    steps,
    guidance_scale,
    size,
    sampler=None,
    latents=False,
    autocast=True,
    compiled=False,
):
    """Draw one image for each seed in one batch. embeddings, empty: of the prompts, and as many of the empty one; size: (width, height).

    guidance_scale is Stable Diffusion's s: f(null) + s * (f(c) - f(null)); at most 1 means none. sampler: None is the family's. Returns
    uint8 images (B, H, W, 3) on the CPU, or with `latents` their latents as the model sees them. Raises RunError if they are not finite.
    """
    pipeline, where = family.pipeline, (accelerator.device, family.model.dtype)
    family.check_size(*size)
    sampler, conditions = sampler or family.SAMPLERS[0], family.inputs(embeddings.to(*where), empty.to(*where), guidance_scale)
    before = set_sampler(family, sampler)
    options = {"num_inference_steps": steps, "width": size[0], "height": size[1], "output_type": "latent" if latents else "pt"}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        # One autocast for U-Net and VAE, which casts each weight once for all steps: nothing here takes gradients
        half = accelerator.autocast() if autocast else contextlib.nullcontext()
        half_vae = autocast and accelerator.mixed_precision == "fp16"
        with (
            without_encoders(family),
            without_autocast(family.model, compiled),
            half,
            precise_decoder(pipeline.vae, half_vae),
            torch.random.fork_rng(devices=[]),
        ):
            drawn = pipeline(**conditions, **options, generator=generators).images
    except (IndexError, ValueError) as error:
        raise RunError(f"the sampler {sampler} cannot draw in {steps} steps of {size[0]} x {size[1]} px ({error}): take others") from error
    finally:
        pipeline.scheduler = before
    if not torch.isfinite(drawn).all():
        raise RunError("the model draws NaN or infinite values: it was ruined by its training or unlearning; lower --lr there")
    if latents:
        return family.drawn_latents(drawn, size).float().cpu()
    return (drawn.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def generate_moments(family, prompts, embeddings, count, accelerator, *, batch_size=8, **options):
    """Latents of `count` images of each prompt, drawn by the model and shared among the processes.

    prompts: texts, from which the seeds follow; embeddings: theirs, and last that of the empty prompt. Returns moments (P * count, 2C, h,
    w), whose second half, the standard deviation, is 0. Never under autocast: they are data, the same for the mask and for unlearning
    whatever the --precision.
    """
    keys = [(number, index) for number in range(len(prompts)) for index in range(count)]
    found = torch.zeros(len(keys), *family.latent_shape(options["size"][0]))
    blocks = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    for place, block in enumerate(tqdm(blocks, "generate", disable=None if accelerator.is_main_process else True)):
        if place % accelerator.num_processes == accelerator.process_index:
            seeds = [data.derive_seed("own image", prompts[number], index) for number, index in block]
            conditions = embeddings[[number for number, _ in block]]
            empty = embeddings.empty(len(block))
            drawn = draw(family, conditions, empty, seeds, accelerator, latents=True, autocast=False, **options)
            found[place * batch_size : place * batch_size + len(block)] = drawn
    if accelerator.num_processes > 1:
        found = accelerator.reduce(found.to(accelerator.device), "sum").cpu()
    return torch.cat([found, torch.zeros_like(found)], dim=1)


@torch.no_grad()
def partially_denoised(family, model, batch, conditions, empty, trainer, *, guidance_scale, steps):
    """Return (x_t (B, C, h, w), t (B,)): where a run of `steps` sampling steps from batch.noise stands after a random number of them.

    conditions, empty: Embeddings of the prompts, and as many of the empty one. The number is the same for the global batch, and
    follows from the trainer's seed and the batch's step (ESD, arXiv 2303.07345).
    """
    timesteps, step = family.denoiser(steps, batch.noise.device)
    count = int(torch.randint(steps, (1,), generator=data.make_generator("unfinished", trainer.seed, batch.step)))
    latents = batch.noise
    with trainer.accelerator.autocast():  # around all of them, so that each weight is cast once
        for number in range(count):
            same = timesteps[number].expand(len(latents))
            conditional, unconditional = family.predict_together(model, (latents, same, conditions), (latents, same, empty))
            latents = step(unconditional + guidance_scale * (conditional - unconditional), number, latents)
    return latents, timesteps[count].expand(len(latents))


# ---------------------------------------------------------------------------------------------------------------- pictures
def write_png(path, x):
    """Write a uint8 array or tensor (H, W, 3)."""
    from PIL import Image

    image = Image.fromarray(x.numpy() if torch.is_tensor(x) else x)
    write_whole(path, lambda partial: image.save(partial, format="PNG"))


def grid(images, columns):
    """Lay uint8 images (N, H, W, C) out in rows of `columns`, small ones enlarged by whole pixels to about 48 px; returns (h, w, C)."""
    from torchvision.utils import make_grid

    scale, channels = max(1, 48 // images.shape[1]), images.shape[3]
    big = images.permute(0, 3, 1, 2).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(big, columns, padding=1, pad_value=255)[:channels, 1:-1, 1:-1].permute(1, 2, 0)


def write_gif(path, frames, milliseconds=250):
    """Write frames (paths of PNGs) as an endless GIF that rests on its last one."""
    from PIL import Image

    first, *others = (Image.open(frame).convert("RGB").quantize(64) for frame in frames)
    options = {"append_images": others, "duration": [milliseconds] * len(others) + [6 * milliseconds], "loop": 0}
    write_whole(path, lambda partial: first.save(partial, format="GIF", save_all=True, **options))
