"""Drawing images from a model: samplers, seeds, files and grids.

Every image has a seed of its own made of the run's seed, its class and its index. Its starting noise, and the noise that a
stochastic sampler adds, depend on nothing else, so that batch size, number of processes and interruptions do not matter.
"""

import numpy as np
import torch
from tqdm import tqdm

import data
import models
from cli import RunError
from files import write_whole
from trainer import predict_noise, predict_together


def make_scheduler(sampler, steps, clip=True):
    """diffusers' scheduler for "ddim" (Song et al. 2021) or "ddpm" (Ho et al. 2020), spread over `steps` steps.

    clip: x_0 to the range of pixels at every step.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    if steps > models.TIMESTEPS:
        raise RunError(f"--steps {steps} is more than the {models.TIMESTEPS} steps of the noise schedule")
    gap = models.TIMESTEPS // steps  # of diffusers' spacing, which counts up from 0 and leaves out what remains above
    if steps * gap < 0.9 * models.TIMESTEPS:
        fit = f"take a number that divides {models.TIMESTEPS}, or nearly"
        raise RunError(f"{steps} sampling steps would begin at timestep {(steps - 1) * gap}, far from pure noise: {fit}")
    options = {} if sampler == "ddim" else {"variance_type": "fixed_large"}
    scheduler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler](**models.NOISE, clip_sample=clip, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def guided(model, x, t, labels, null, cond_scale):
    """(1 + w) eps(x | c) - w eps(x | null), w = cond_scale (Ho & Salimans 2022): one batched forward pass; at 0 of half the size."""
    if cond_scale == 0:
        return predict_noise(model, x, t, labels)
    conditional, unconditional = predict_together(model, (x, t, labels), (x, t, torch.full_like(labels, null)))
    return (1 + cond_scale) * conditional - cond_scale * unconditional


@torch.no_grad()
def draw(model, keys, accelerator, *, null, seed, steps, sampler="ddim", cond_scale=2.0, eta=0.0, clip=True, stretch=False, progress=None):
    """Return uint8 images (N, H, W, C) for keys [(label, index)], in one batch. No step is kept in memory.

    clip: x_0 at every step. stretch: each image to its own darkest and brightest value at the end, as the official release saves them.
    """
    model.eval()
    scheduler, device = make_scheduler(sampler, steps, clip), accelerator.device
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    draws = [data.make_generator("image", seed, *key) for key in keys]
    x = torch.stack([torch.randn(shape, generator=each) for each in draws]).to(device)
    labels = torch.tensor([label for label, _ in keys], device=device)
    # Guidance overshoots: x_0 is clipped to the range of pixels, and the noise must be the one that belongs to the clipped x_0. Without
    # this DDIM leaves noise in the samples, the more of it the more steps it takes.
    extra = {"eta": eta, "use_clipped_model_output": True} if sampler == "ddim" else {}
    for t, there in zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True):  # a copy in each step would wait for the GPU
        noise = guided(model, x, there.expand(len(keys)), labels, null, cond_scale)
        x = scheduler.step(noise, t, x, generator=draws, **extra).prev_sample
        if progress is not None:
            progress.update(len(keys))
    if not torch.isfinite(x).all():
        raise RunError("the model draws NaN or infinite values: it was ruined by its training or unlearning; lower --lr there")
    if stretch:
        x = x.clamp(-1, 1)
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        x = (x - low) / (high - low).clamp_min(1e-5) * 2 - 1
    return data.to_uint8(x).cpu()


def partially_denoised(model, x, labels, stop, *, null, steps, cond_scale):
    """(x_t, t) of sampling runs by `steps` steps of DDIM that were stopped before step number `stop`. x: their starting noise (B, C, H, W).

    t is the timestep, an int, that x_t has the noise of.
    """
    model.eval()
    scheduler = make_scheduler("ddim", steps)
    with torch.no_grad():
        for t in scheduler.timesteps[:stop]:
            noise = guided(model, x, t.to(x.device).expand(len(x)), labels, null, cond_scale)
            x = scheduler.step(noise, t, x, use_clipped_model_output=True).prev_sample
    return x, int(scheduler.timesteps[stop])


def file_name(label, index):
    return f"{label}_{index:05d}.png"


def draw_files(model, keys, folder, accelerator, *, batch_size, steps, **options):
    """Draw the images of `keys` that `folder` lacks, each process its share, into PNGs named <class>_<index>.png."""
    missing = [key for key in keys if not (folder / file_name(*key)).is_file()]
    accelerator.wait_for_everyone()  # before any process draws: all must share out the same list
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    with tqdm(total=len(mine) * steps, desc="sample", unit="image steps", disable=None, mininterval=1) as bar:
        for start in range(0, len(mine), batch_size):
            some = mine[start : start + batch_size]
            for key, image in zip(some, draw(model, some, accelerator, steps=steps, progress=bar, **options), strict=True):
                write_png(folder / file_name(*key), image)


def generate_split(model, labels, count, classes, trainer, name, steps=50, batch_size=256):
    """`count` images of each label, drawn by the model in `steps` steps and shared among the processes, as a data.Split of that name."""
    accelerator, size, channels = trainer.accelerator, model.config.sample_size, model.config.in_channels
    options = {"null": classes.null, "seed": data.derive_seed("replay", trainer.seed), "steps": steps, "cond_scale": 2.0}
    keys = [(label, index) for label in labels for index in range(count)]
    blocks = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    images = torch.zeros(len(keys), size, size, channels, dtype=torch.int32, device=accelerator.device)
    for number, block in enumerate(tqdm(blocks, "draw", disable=None if accelerator.is_main_process else True)):
        if number % accelerator.num_processes == accelerator.process_index:
            drawn = draw(model, block, accelerator, **options)
            images[number * batch_size : number * batch_size + len(block)] = drawn.int().to(images.device)
    images = accelerator.reduce(images, "sum").to(torch.uint8)
    return data.Split(images, torch.tensor([label for label, _ in keys], device=images.device), torch.arange(len(keys)), name)


# ---------------------------------------------------------------------------------------------------------------- pictures
def write_png(path, x):
    """Write a uint8 array or tensor (H, W, 1 or 3)."""
    from PIL import Image

    x = np.asarray(x)
    image = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
    write_whole(path, lambda partial: image.save(partial, format="PNG"))


def grid(images, columns):
    """Lay uint8 images (N, H, W, C) out in rows of `columns`, small ones enlarged by whole pixels to about 48 px; returns (h, w, C)."""
    from torchvision.utils import make_grid

    scale, channels = max(1, 48 // images.shape[1]), images.shape[3]
    big = images.permute(0, 3, 1, 2).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(big, columns, padding=1, pad_value=255)[:channels, 1:-1, 1:-1].permute(1, 2, 0)


def draw_step(step, *, model, labels, columns, folder, accelerator, null, seed):
    """samples/step_<step>.png in a run folder: a row of `columns` samples of each label, by 25 steps of DDIM."""
    keys = [(label, index) for label in labels for index in range(columns)]
    images = draw(model, keys, accelerator, null=null, seed=seed, steps=25)
    if accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        write_png(folder / "samples" / f"step_{step:06d}.png", grid(images, columns))


def write_gif(path, frames, milliseconds=250):
    """Write frames (paths of PNGs) as an endless GIF that rests on its last one."""
    from PIL import Image

    first, *others = (Image.open(frame).convert("RGB").quantize(64) for frame in frames)
    options = {"append_images": others, "duration": [milliseconds] * len(others) + [6 * milliseconds], "loop": 0}
    write_whole(path, lambda partial: first.save(partial, format="GIF", save_all=True, **options))
