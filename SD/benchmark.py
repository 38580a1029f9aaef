"""Speed and memory of the mask and the unlearning step, as ratios and sizes measured in one run.

    python benchmark.py --folder runs/benchmark

A SalUn step on cached latents and embeddings is timed in turns with one that encodes its images and prompts again, as the official
release does, on a model with the structure of Stable Diffusion v1 and an eighth of its widths; all weights are random. The U-Net of
Stable Diffusion v1 at full size (859,520,964 weights, latents of 64x64, batch 1) makes a mask and takes two steps with it and without,
each in a process of its own, whose peak memory is reported. Writes FOLDER/benchmark.json and benchmark.md.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import cli
import data
import masking
import models
import passes
import trainer
from cli import RunError
from families import Embeddings, StableDiffusion
from files import write_json, write_tensors, write_whole
from methods.salun import salun
from run_folder import machine, peak_memory_mb, versions

WEIGHTS = 859_520_964  # of Stable Diffusion v1's U-Net
BLOCKS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
PARTS = ("mask", "masked", "dense")


def null_run_folder(folder):
    """What takes the place of a RunFolder where only a mask is written."""

    def save(name, tensors, metadata=None):
        write_tensors(folder / name, tensors, metadata)

    rest = {"log": lambda **row: None, "checkpoint": lambda tensors, **state: None, "last_checkpoint": lambda: None}
    return SimpleNamespace(folder=folder, save=save, images_seen=0, seconds=lambda: 0.0, **rest)


class TimedTrainer(trainer.Trainer):
    """A Trainer that calls encode(batches) before every second step. seconds: {"cached", "encoding": those of each step}."""

    def steps(self, steps, lr, *splits):
        self.seconds = {"cached": [], "encoding": []}
        for number, batches in enumerate(super().steps(steps, lr, *splits)):
            start, name = time.perf_counter(), ("cached", "encoding")[number % 2]
            if name == "encoding":
                self.encode(batches)
            yield batches
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number > 1:  # the first ones warm up
                self.seconds[name].append(time.perf_counter() - start)


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add(cli.RUN, "--folder", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder to write into")
    parser.add(cli.RUN, "--rounds", type=cli.positive_int, default=5, help="timed steps of each kind")
    parser.add(cli.RUN, "--part", choices=PARTS, help="measure this part of the full-size check alone, in this process")
    divide = "divide the widths of the full-size U-Net, for a quick look"
    parser.add(cli.RUN, "--divide", type=cli.positive_int, default=1, help=divide)
    parser.add_shared("device", precision="auto")
    return parser.parse_args(argv)


def sd_unet(divide):
    """The U-Net of Stable Diffusion v1 with random weights, its widths divided by `divide`."""
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": BLOCKS, "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(BLOCKS))}
    widths = tuple(width // divide for width in (320, 640, 1280, 1280))
    heads = {"cross_attention_dim": 768 // divide, "attention_head_dim": 8, "norm_num_groups": 32 // divide}
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, block_out_channels=widths, **blocks, **heads)
    unet = unet.to_empty(device="cpu")
    for name, parameter in unet.named_parameters():
        with torch.no_grad():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(float("norm" in name and name.endswith("weight")))
    return unet


def sd_family(divide):
    """Autoencoder, text encoder and U-Net of Stable Diffusion v1, random, with their widths divided; the tokenizer is a small one."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = models.build_tokenizer(["an image of a church"], length=77)
    text = CLIPTextConfig(hidden_size=768 // divide, intermediate_size=3072 // divide, num_attention_heads=12, vocab_size=49408)
    widths = tuple(width // divide for width in (128, 256, 512, 512))
    vae = models.build_vae(widths, sample_size=512, layers_per_block=2, norm_num_groups=32 // divide)
    parts = {"vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": sd_unet(divide)}
    vae.requires_grad_(False)
    return StableDiffusion.of_parts(**parts, scheduler=DDIMScheduler(**models.NOISE))


def one_image_each(moments):
    """(forget, retain): Splits of the first and the second image, under the prompts 0 and 2."""
    return data.Split(moments[:1], torch.tensor([0]), "forget"), data.Split(moments[1:], torch.tensor([2]), "retain")


def cached_against_encoding(results, name, family, size, accelerator, rounds):
    """SalUn's steps on what was encoded once, in turns with steps that encode their images and prompts."""
    device = accelerator.device
    family.pipeline.to(device)
    model = trainer.prepare(family.model, accelerator)
    prompts = ["an image of a church", "an image of a dog", ""]
    images = torch.randint(256, (2, size, size, 3), dtype=torch.uint8)
    moments, embeddings = family.encode_images(images), family.encode_prompts(prompts)
    mask = masking.select({key: torch.randn_like(p) for key, p in model.named_parameters()}, 0.5)

    def encode(batches):
        with accelerator.autocast():
            means = family.encode_images(images).chunk(2, dim=1)[0]
            embeddings.tokens.copy_(family.encode_prompts(prompts).tokens)
        for batch, mean in zip(batches, means, strict=True):
            batch.images = mean[None].to(device)

    timed = TimedTrainer(model, null_run_folder(None), accelerator, seed=1, batch_size=1, mask=mask)
    timed.encode = encode
    targets = torch.tensor([1, 1, 2], device=device)
    salun(model, *one_image_each(moments), timed, family, embeddings, targets, steps=2 * (rounds + 1))
    seconds = {key: statistics.median(values) for key, values in timed.seconds.items()}
    ratio = {"time, encoding / cached": seconds["encoding"] / seconds["cached"]}
    results[f"SalUn step, {name}, batch 1 + 1"] = {f"{key}, seconds": value for key, value in seconds.items()} | ratio


def full_size(part, args, accelerator):
    """One part of the check on the exact U-Net of Stable Diffusion v1, in this process: {figure: value}."""
    from diffusers import DDIMScheduler

    unet = trainer.prepare(sd_unet(args.divide), accelerator)
    family = StableDiffusion(SimpleNamespace(unet=unet, scheduler=DDIMScheduler(**models.NOISE)))
    count = sum(parameter.numel() for parameter in unet.parameters())
    if args.divide == 1 and count != WEIGHTS:
        raise RunError(f"the U-Net has {count} weights, where Stable Diffusion v1 has {WEIGHTS}: look at sd_unet()")
    unet.enable_gradient_checkpointing()
    draw = data.make_generator("benchmark")
    embeddings = Embeddings(encoder_hidden_states=torch.randn(3, 77, 768 // args.divide, generator=draw).to(accelerator.device))
    forget, retain = one_image_each(torch.randn(2, 8, 64, 64, generator=draw).abs())
    figures, path, run_folder = {"weights": count}, args.folder / "mask.safetensors", null_run_folder(args.folder)
    start = time.perf_counter()
    if part == "mask":
        options = {"guidance_scale": 8.5, "passes": 1, "batch_size": 1, "seed": 1}
        saliency = passes.mean_gradient(family, forget, embeddings, accelerator, **options)
        middle = time.perf_counter()
        mask = masking.select(saliency, 0.5)
        figures |= {"gradient, seconds": middle - start, "select, seconds": time.perf_counter() - middle}
        masking.save(run_folder, mask, {"forget_sha": "", "parent_sha": ""}, mask_ratio=0.5, seconds=0.0)
        figures |= {"file, bytes": path.stat().st_size, "as int64, bytes": 8 * count}
    else:
        before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in unet.named_parameters()}
        mask = masking.load(path, dict(unet.named_parameters()), {"forget_sha": "", "parent_sha": ""})[0] if part == "masked" else None
        loop = trainer.Trainer(unet, run_folder, accelerator, seed=1, batch_size=1, mask=mask)
        start = time.perf_counter()
        salun(unet, forget, retain, loop, family, embeddings, torch.tensor([1, 1, 2], device=accelerator.device), steps=2)
        figures["two steps, seconds"] = time.perf_counter() - start
        values = [value for state in loop.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        figures["optimizer, bytes"] = sum(value.numel() * value.element_size() for value in values)
        after = {name: parameter.detach().cpu() for name, parameter in unet.named_parameters()}
        figures["changed, share"] = masking.check_change(before, after, mask and {name: part.cpu() for name, part in mask.items()})
    figures["peak memory, GiB"] = peak_memory_mb(accelerator.device) / 1024
    return figures


def in_processes(results, args):
    """full_size() of every part, each in a process of its own."""
    for part in PARTS:
        flags = ["--folder", str(args.folder), "--part", part, "--divide", str(args.divide), "--precision", args.precision]
        done = subprocess.run([sys.executable, __file__, *flags, "--device", args.device], capture_output=True, text=True)
        name = f"Stable Diffusion v1's U-Net, {part}"
        results[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"not measured, status": done.returncode}
        print(f"{name}: {results[name]} {done.stderr[-300:] if done.returncode else ''}", flush=True)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        return print(json.dumps(full_size(args.part, args, accelerator)))
    results = {"machine": machine(), "autocast": accelerator.mixed_precision, "versions": versions()}
    in_processes(results, args)
    (args.folder / "mask.safetensors").unlink(missing_ok=True)
    digits = StableDiffusion.build("tiny", ["an image of a three"], 16, seed=0)
    cached_against_encoding(results, "digits pipeline at 16 px", digits, 16, accelerator, 4 * args.rounds)
    cached_against_encoding(results, "1/8 of Stable Diffusion v1's widths at 256 px", sd_family(8), 256, accelerator, args.rounds)
    write_json(args.folder / "benchmark.json", results)
    rows = {name: row for name, row in results.items() if name not in ("machine", "versions", "autocast")}
    on = f"{results['machine']}, torch {results['versions']['torch']}, autocast {results['autocast']}"
    lines = [f"Measured on {on}, by benchmark.sh.", "", "| what | figures |", "|---|---|"]
    lines += [f"| {name} | {'; '.join(f'{key} {shown(value)}' for key, value in row.items())} |" for name, row in rows.items()]
    write_whole(args.folder / "benchmark.md", lambda partial: partial.write_text("\n".join(lines) + "\n"))
    print("\n".join(lines))
    print(f"written: {args.folder.resolve()}/benchmark.md, benchmark.json")


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    cli.run(main)
