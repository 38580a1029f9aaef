"""Drawing images: seeds, files, grids and the GIF. The sampler itself is diffusers' pipeline.

The starting noise of an image follows from its own seed alone, so that batch size, number of processes and interruptions do not matter.
"""

import contextlib

import torch
from tqdm import tqdm

import data
import engine
import models
import run

SAMPLERS = {  # diffusers' schedulers; "own" is the one that the pipeline came with
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
}


def set_sampler(pipeline, sampler):
    """Give a pipeline the scheduler of a sampler, with its own noise schedule. Returns the one it had."""
    import diffusers

    before = pipeline.scheduler
    if sampler != "own":
        with models.quiet():
            pipeline.scheduler = getattr(diffusers, SAMPLERS[sampler]).from_config(before.config)
    return before


@torch.no_grad()
def draw(pipeline, embeddings, null, seeds, accelerator, *, steps, guidance, size, sampler="ddim", latents=False, autocast=True):
    """Draw one image for each seed in one batch. embeddings: (B, L, D); null: (L, D), that of the empty prompt; size: (width, height).

    guidance is Stable Diffusion's scale s: f(null) + s * (f(c) - f(null)); at most 1 means none. Returns uint8 images (B, H, W, 3) on
    the CPU, or with `latents` their latents as the U-Net sees them. Raises RunError if they are not finite.
    """
    dtype, device, before = pipeline.unet.dtype, accelerator.device, set_sampler(pipeline, sampler)
    negative = null.expand_as(embeddings).to(device, dtype) if guidance > 1 else None
    try:
        # One autocast for U-Net and VAE, which casts each weight once for all steps: nothing here takes gradients
        half = accelerator.autocast() if autocast else contextlib.nullcontext()
        with engine.without_autocast(pipeline.unet), half, torch.random.fork_rng(devices=[]):
            drawn = pipeline(
                prompt_embeds=embeddings.to(device, dtype),
                negative_prompt_embeds=negative,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=steps,
                guidance_scale=guidance,
                width=size[0],
                height=size[1],
                output_type="latent" if latents else "pt",
            ).images
    finally:
        pipeline.scheduler = before
    if not torch.isfinite(drawn).all():
        raise run.RunError("the model draws NaN or infinite values: it was ruined by its training or unlearning; lower --lr there")
    if latents:
        return drawn.float().cpu()
    return (drawn.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def own_images(pipeline, prompts, embeddings, null, count, accelerator, *, batch_size=8, **options):
    """Latents of `count` images of each prompt, drawn by the model itself, shared among the processes.

    prompts: texts, from which the seeds follow; embeddings: (P, L, D). Returns moments (P * count, 2C, h, w), whose second half, the
    standard deviation, is 0. Always in float32: they are data, the same for the mask and for unlearning in any precision.
    """
    keys = [(number, index) for number in range(len(prompts)) for index in range(count)]
    width, height = (edge // pipeline.vae_scale_factor for edge in options["size"])
    found = torch.zeros(len(keys), pipeline.unet.config.in_channels, height, width)
    blocks = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    for place, block in enumerate(tqdm(blocks, "own images", disable=None if accelerator.is_main_process else True)):
        if place % accelerator.num_processes == accelerator.process_index:
            seeds = [data.mix("own image", prompts[number], index) for number, index in block]
            asked = embeddings[[number for number, _ in block]]
            drawn = draw(pipeline, asked, null, seeds, accelerator, latents=True, autocast=False, **options)
            found[place * batch_size : place * batch_size + len(block)] = drawn
    if accelerator.num_processes > 1:
        found = accelerator.reduce(found.to(accelerator.device), "sum").cpu()
    return torch.cat([found, torch.zeros_like(found)], dim=1)


@torch.no_grad()
def unfinished(unet, scheduler, batch, asked, nothing, *, accelerator, guidance, steps, seed):
    """Return (x_t (B, C, h, w), t (B,)): where a DDIM run of `steps` steps from batch.noise stands after a random number of them.

    asked, nothing: embeddings (B, L, D) of the prompts and of the empty one. The number is the same for the global batch, and follows
    from the seed and the batch's step (ESD, arXiv 2303.07345).
    """
    from diffusers import DDIMScheduler

    with models.quiet():
        ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps, device=batch.noise.device)
    count = int(torch.randint(steps, (1,), generator=data.generator("unfinished", seed, batch.step)))
    x = batch.noise * ddim.init_noise_sigma
    with accelerator.autocast():  # around all of them, so that each weight is cast once
        for t in ddim.timesteps[:count]:
            together = t.expand(len(x))
            conditional, unconditional = engine.predict_together(unet, (x, together, asked), (x, together, nothing))
            x = ddim.step(unconditional + guidance * (conditional - unconditional), t, x).prev_sample
    return x, ddim.timesteps[count].expand(len(x))


# ---------------------------------------------------------------------------------------------------------------- pictures
def write_png(path, x):
    """Write a uint8 array (H, W, 3)."""
    from PIL import Image

    image = Image.fromarray(x.numpy() if torch.is_tensor(x) else x)
    run.write_whole(path, lambda beside: image.save(beside, format="PNG"))


def grid(images, columns, gap=1):
    """Lay uint8 images (N, H, W, 3) out in rows of `columns`, small ones enlarged by whole pixels to about 48 px; returns (h, w, 3)."""
    count, height, width, _ = images.shape
    scale = max(1, 48 // height)
    big = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    height, width = height * scale + gap, width * scale + gap
    canvas = torch.full((-(-count // columns) * height - gap, columns * width - gap, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(big):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height - gap, left : left + width - gap] = image
    return canvas


def write_gif(path, frames, milliseconds=250):
    """Write frames (paths of PNGs) as an endless GIF that rests on its last one."""
    from PIL import Image

    pictures = [Image.open(frame).convert("RGB").quantize(64) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [6 * milliseconds]
    run.write_whole(
        path, lambda beside: pictures[0].save(beside, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    )
