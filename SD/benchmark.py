"""Speed and memory of the mask and the unlearning step, as ratios and sizes measured in one run.

    python benchmark.py --folder runs/benchmark

A SalUn step on cached latents and embeddings is timed in turns with one that encodes its images and prompts anew, as the official release
does, on a model with the structure of Stable Diffusion v1 and an eighth of its widths; all weights are random. The U-Net of Stable
Diffusion v1 at full size (859,520,964 weights, latents of 64x64, batch 1) makes a mask and takes two steps with it and without, each in a
process of its own, whose largest resident set is reported. Writes FOLDER/benchmark.json and .md.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import data
import engine
import job
import masking
import models
import run
from methods.rl import rl

WEIGHTS = 859_520_964  # of Stable Diffusion v1's U-Net
BLOCKS = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
PARTS = ("mask", "masked", "dense")


class Scratch:
    """Takes the place of a Run where nothing but a mask is to be kept."""

    images_seen = 0

    def __init__(self, folder):
        self.folder = Path(folder)

    def save(self, name, tensors, metadata=None):
        run.write_tensors(self.folder / name, tensors, metadata)

    def log(self, **row):
        pass

    def checkpoint(self, tensors, **state):
        pass

    def last_checkpoint(self):
        return None

    def seconds(self):
        return 0.0


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder to write into")
    parser.add_argument("--rounds", type=run.positive_int, default=5, help="timed calls of each thing")
    parser.add_argument("--part", choices=PARTS, help="measure this part of the full-size check alone, in this process")
    parser.add_argument("--divide", type=run.positive_int, default=1, help="divide the widths of the full-size U-Net, for a quick look")
    run.add_flags(parser, "device", seed=1)
    job.add_precision(parser)
    return parser.parse_args(argv)


def in_turns(functions, rounds):
    """{name: median seconds} of each function, called in turns, after one warm-up call of each."""
    times = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def sd_unet(divide):
    """The U-Net of Stable Diffusion v1 with random weights, its widths divided by `divide`."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=tuple(width // divide for width in (320, 640, 1280, 1280)),
            down_block_types=BLOCKS,
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(BLOCKS)),
            cross_attention_dim=768 // divide,
            attention_head_dim=8,
            norm_num_groups=32 // divide,
        )
    unet = unet.to_empty(device="cpu")
    for name, parameter in unet.named_parameters():
        with torch.no_grad():
            parameter.normal_(std=0.02) if parameter.dim() > 1 else parameter.fill_(float("norm" in name and name.endswith("weight")))
    return unet


def sd_pipeline(divide):
    """Autoencoder, text encoder and U-Net of Stable Diffusion v1, random, with their widths divided; the tokenizer is a small one."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = models.build_tokenizer(["an image of a church"], length=77)
    text = CLIPTextConfig(hidden_size=768 // divide, intermediate_size=3072 // divide, num_attention_heads=12, vocab_size=49408)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(width // divide for width in (128, 256, 512, 512)),
        layers_per_block=2,
        norm_num_groups=32 // divide,
        sample_size=512,
    )
    parts = {"vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": sd_unet(divide)}
    pipeline = models.bare(StableDiffusionPipeline, **parts, scheduler=DDIMScheduler(**models.NOISE))
    vae.requires_grad_(False)
    return pipeline


def salun_step(unet, scheduler, mask, forget, retain, accelerator):
    """A function that takes one step of SalUn on two batches, given the prompts' embeddings."""
    leaves = masking.Leaves(dict(unet.named_parameters()), mask)
    solver = torch.optim.Adam(leaves.parameters(), 1e-5)

    def step(embeddings):
        def fit(_, loss, **options):
            engine.train_step(loss, {"forget": forget, "retain": retain}, solver, leaves.parameters(), accelerator, 1.0)

        rl(unet, None, None, fit, scheduler, embeddings, torch.tensor([1, 1, 2], device=embeddings.device))
        leaves.scatter()

    return step


def cached_against_encoding(results, name, pipeline, size, accelerator, rounds):
    """A step on what was encoded once, and the same step with images and prompts encoded in it."""
    unet, scheduler, device = pipeline.unet, models.noise_scheduler(pipeline.scheduler), accelerator.device
    pipeline.to(device)
    engine.place(unet, accelerator)
    prompts = ["an image of a church", "an image of a dog", ""]
    images = torch.randint(256, (2, size, size, 3), dtype=torch.uint8)
    moments, embeddings = models.encode_images(pipeline, images), models.encode_prompts(pipeline, prompts)
    split = data.Split(moments, torch.tensor([0, 2]), torch.arange(2))
    same = {"batch_size": 1, "seed": 1, "timesteps": models.TIMESTEPS, "device": device}
    alone = [data.Split(split.x, split.y, split.rows[i : i + 1]) for i in (0, 1)]
    forget, retain = (data.Stream(one, "a", **same).batch(0) for one in alone)
    mask = masking.select({key: torch.randn_like(p) for key, p in unet.named_parameters()}, 0.5)
    step = salun_step(unet, scheduler, mask, forget, retain, accelerator)

    def encoding():
        with accelerator.autocast():
            moments = models.encode_images(pipeline, images)
            asked = models.encode_prompts(pipeline, prompts)
        for batch, mean in zip((forget, retain), moments.chunk(2, dim=1)[0], strict=True):
            batch.x = mean[None].to(device)
        step(asked)

    seconds = in_turns({"cached": lambda: step(embeddings), "encoding": encoding}, rounds)
    results[f"SalUn step, {name}, batch 1 + 1"] = {
        **{f"{key}, seconds": value for key, value in seconds.items()},
        "time, encoding / cached": seconds["encoding"] / seconds["cached"],
    }


def full_size(part, args, accelerator):
    """One part of the check on the exact U-Net of Stable Diffusion v1, in this process: {figure: value}."""
    from diffusers import DDIMScheduler

    unet = engine.place(sd_unet(args.divide), accelerator)
    count = sum(parameter.numel() for parameter in unet.parameters())
    if args.divide == 1 and count != WEIGHTS:
        raise run.RunError(f"the U-Net has {count} weights, where Stable Diffusion v1 has {WEIGHTS}: look at sd_unet()")
    unet.enable_gradient_checkpointing()
    scheduler = models.noise_scheduler(DDIMScheduler(**models.NOISE))
    draw = data.generator("benchmark")
    embeddings = torch.randn(3, 77, 768 // args.divide, generator=draw).to(accelerator.device)
    split = data.Split(torch.randn(2, 8, 64, 64, generator=draw).abs(), torch.tensor([0, 2]), torch.arange(2))
    forget, retain = (data.Split(split.x, split.y, split.rows[i : i + 1]) for i in (0, 1))
    figures, path = {"weights": count}, args.folder / "mask.safetensors"
    if part == "mask":
        start = time.perf_counter()
        options = {"guidance": 7.5, "passes": 1, "batch_size": 1, "seed": 1}
        saliency = engine.mean_gradient(unet, scheduler, forget, embeddings, 2, accelerator, **options)
        middle = time.perf_counter()
        mask = masking.select(saliency, 0.5)
        figures |= {"gradient, seconds": middle - start, "select, seconds": time.perf_counter() - middle}
        masking.save(Scratch(args.folder), mask, mask_ratio=0.5, forget_sha="", seconds=0.0)
        figures |= {"file, bytes": path.stat().st_size, "as int64, bytes": 8 * count}
    else:
        before = {name: parameter.detach().to("cpu", copy=True) for name, parameter in unet.named_parameters()}
        mask = masking.load(path, dict(unet.named_parameters()), "")[0] if part == "masked" else None
        states = []
        whole = engine.OPTIMIZERS["adam"]
        engine.OPTIMIZERS["adam"] = lambda *given: states.append(whole(*given)) or states[0]
        start = time.perf_counter()

        def fit(splits, loss, **options):
            same = dict(batch_size=1, seed=1, accelerator=accelerator, run=Scratch(args.folder), mask=mask)
            options.pop("train_method")
            engine.fit(unet, splits, loss, **same, **options)

        rl(unet, forget, retain, fit, scheduler, embeddings, torch.tensor([1, 1, 2], device=accelerator.device), steps=2)
        figures["two steps, seconds"] = time.perf_counter() - start
        values = [value for state in states[0].state.values() for value in state.values() if torch.is_tensor(value)]
        figures["optimizer, bytes"] = sum(value.numel() * value.element_size() for value in values)
        figures["changed, share"] = masking.check_change(before, dict(unet.named_parameters()), mask)
    figures["peak memory, GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
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
    accelerator = engine.make_accelerator(args.device, args.precision)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        return print(json.dumps(full_size(args.part, args, accelerator)))
    results = {"machine": run.machine(), "autocast": accelerator.mixed_precision, "versions": run.versions(*job.PACKAGES)}
    in_processes(results, args)
    (args.folder / "mask.safetensors").unlink(missing_ok=True)
    digits = models.build_pipeline("tiny", ["an image of a three"], 16, seed=0)
    cached_against_encoding(results, "digits pipeline at 16 px", digits, 16, accelerator, 4 * args.rounds)
    cached_against_encoding(results, "1/8 of Stable Diffusion v1's widths at 256 px", sd_pipeline(8), 256, accelerator, args.rounds)
    run.write_json(args.folder / "benchmark.json", results)
    rows = {name: row for name, row in results.items() if name not in ("machine", "versions", "autocast")}
    lines = [
        f"Measured on {results['machine']}, torch {results['versions']['torch']}, autocast {results['autocast']}, by benchmark.sh.",
        "",
        "| what | figures |",
        "|---|---|",
        *(f"| {name} | {'; '.join(f'{key} {shown(value)}' for key, value in row.items())} |" for name, row in rows.items()),
    ]
    run.write_whole(args.folder / "benchmark.md", lambda beside: beside.write_text("\n".join(lines) + "\n"))
    print("\n".join(lines))
    print(f"written: {args.folder.resolve()}/benchmark.md, benchmark.json")


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    run.cli(main)
