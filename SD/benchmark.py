"""Speed and memory of the mask and the unlearning step, as ratios and sizes measured in one run.

    python benchmark.py --folder runs/benchmark

A SalUn step on cached latents and embeddings is timed in turns with one that encodes its images and prompts again, as the official
release does, on a model with the structure of Stable Diffusion v1 and an eighth of its widths; all weights are random. The U-Nets of
Stable Diffusion v1 and XL at full size (859,520,964 and 2,567,463,684 weights, latents of 64x64, batch 1) make a mask and take two steps
with it and without, each in a process of its own, whose peak memory is reported. What unlearning holds of larger models is counted
from their shapes. Writes FOLDER/benchmark.json, benchmark.md and memory.md.
"""

import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import safetensors
import torch

import cli
import data
import masking
import models
import passes
import trainer
from cli import RunError
from families import FAMILIES, Embeddings
from files import write_json, write_tensors, write_whole
from methods.salun import salun
from pipelines import Stored
from run_folder import machine, peak_memory_mb, versions
from table import markdown_table

WEIGHTS = {"sd": 859_520_964, "sdxl": 2_567_463_684}  # of the U-Nets of Stable Diffusion v1 and XL
BLOCKS = {"sd": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "sdxl": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2}
MORE = {
    "sd": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
NAMES = {"sd": "Stable Diffusion v1", "sdxl": "Stable Diffusion XL"}
# What is measured on U-Nets at full size: family, precision of the weights, what is done, mask ratio
PARTS = {
    "sd-mask": ("sd", "fp32", "mask", 0.5),
    "sd-masked": ("sd", "fp32", "masked", 0.5),
    "sd-dense": ("sd", "fp32", "dense", 1.0),
    "sd-bf16-mask": ("sd", "bf16", "mask", 0.5),
    "sd-bf16-masked": ("sd", "bf16", "masked", 0.5),
    "sdxl-bf16-mask": ("sdxl", "bf16", "mask", 0.1),
    "sdxl-bf16-masked": ("sdxl", "bf16", "masked", 0.1),
}
TRANSFORMERS = {  # the larger models' shapes, as their configs have them; FLUX.1's are the defaults of its class
    "Stable Diffusion 3.5 medium": (
        "SD3Transformer2DModel",
        dict(num_layers=24, num_attention_heads=24, caption_projection_dim=1536, qk_norm="rms_norm", pos_embed_max_size=384)
        | dict(dual_attention_layers=tuple(range(13))),
    ),
    "FLUX.1": ("FluxTransformer2DModel", dict(guidance_embeds=True)),
}
RATIOS, GPUS = (0.5, 0.1, 0.02), (12, 24, 40, 80)


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


def shape_of(kind, divide=1):
    """The U-Net of Stable Diffusion v1 or XL on the meta device, its widths divided by `divide`."""
    from diffusers import UNet2DConditionModel

    blocks = {"down_block_types": BLOCKS[kind], "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(BLOCKS[kind]))}
    more = MORE[kind] | {"block_out_channels": tuple(width // divide for width in MORE[kind]["block_out_channels"])}
    more |= {"cross_attention_dim": more["cross_attention_dim"] // divide, "norm_num_groups": 32 // divide}
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, **blocks, **more)


def unet_of(kind, divide, dtype="fp32"):
    """That U-Net with random weights."""
    unet = shape_of(kind, divide).to(models.DTYPES[dtype]).to_empty(device="cpu")
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
    parts = {"vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer, "unet": unet_of("sd", divide)}
    vae.requires_grad_(False)
    return FAMILIES["sd"].of_parts(**parts, scheduler=DDIMScheduler(**models.NOISE))


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
    """One part of the check on a U-Net at full size, in this process: {figure: value}."""
    from diffusers import DDIMScheduler

    kind, dtype, what, ratio = PARTS[part]
    unet = trainer.prepare(unet_of(kind, args.divide, dtype), accelerator)
    vae = {"vae_scale_factor": 8, "scheduler": DDIMScheduler(**models.NOISE)}
    family = FAMILIES[kind](SimpleNamespace(unet=unet, **vae))
    count = sum(parameter.numel() for parameter in unet.parameters())
    if args.divide == 1 and count != WEIGHTS[kind]:
        raise RunError(f"the U-Net has {count} weights, where {NAMES[kind]} has {WEIGHTS[kind]}: look at shape_of()")
    unet.enable_gradient_checkpointing()
    draw = data.make_generator("benchmark")
    tensors = {"encoder_hidden_states": torch.randn(3, 77, unet.config.cross_attention_dim, generator=draw)}
    if kind == "sdxl":
        tensors["text_embeds"] = torch.randn(3, 1280, generator=draw)
    embeddings = Embeddings(**tensors).to(accelerator.device, unet.dtype)
    forget, retain = one_image_each(torch.randn(2, 8, 64, 64, generator=draw).abs())
    figures, path, run_folder = {"weights": count}, args.folder / f"{kind}-{dtype}.safetensors", null_run_folder(args.folder)
    facts = {"forget_sha": "", "parent_sha": ""}
    start = time.perf_counter()
    if what == "mask":
        options = {"guidance_scale": 8.5, "passes": 1, "batch_size": 1, "seed": 1}
        saliency = passes.mean_gradient(family, forget, embeddings, accelerator, **options)
        if accelerator.device.type == "cuda":  # it computes on after a call
            torch.cuda.synchronize()
        middle = time.perf_counter()
        mask = masking.select(saliency, ratio)
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        figures |= {"gradient, seconds": middle - start, "select, seconds": time.perf_counter() - middle}
        masking.save(run_folder, mask, facts, mask_ratio=ratio, seconds=0.0)
        (args.folder / "mask.safetensors").rename(path)
        figures |= {"file, bytes": path.stat().st_size, "as int64, bytes": 8 * count}
    else:
        parameters = dict(unet.named_parameters())
        write_tensors(args.folder / "original.safetensors", parameters)
        before = Stored([safetensors.safe_open(args.folder / "original.safetensors", framework="pt")], parameters)
        mask = masking.load(path, parameters, facts)[0] if what == "masked" else None
        loop = trainer.Trainer(unet, run_folder, accelerator, seed=1, batch_size=1, mask=mask)
        start = time.perf_counter()
        salun(unet, forget, retain, loop, family, embeddings, torch.tensor([1, 1, 2], device=accelerator.device), steps=2)
        figures["two steps, seconds"] = time.perf_counter() - start
        values = [value for state in loop.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        figures["optimizer, bytes"] = sum(value.numel() * value.element_size() for value in values)
        figures["changed, share"] = masking.check_change(before, parameters, mask)
    figures["peak memory, GiB"] = peak_memory_mb(accelerator.device) / 1024
    return figures


def in_processes(results, args):
    """full_size() of every part, each in a process of its own."""
    for part, (kind, dtype, what, ratio) in PARTS.items():
        flags = ["--folder", str(args.folder), "--part", part, "--divide", str(args.divide), "--precision", args.precision]
        done = subprocess.run([sys.executable, __file__, *flags, "--device", args.device], capture_output=True, text=True)
        name = f"{NAMES[kind]}'s U-Net, weights in {dtype}, {what}" + (f" at ratio {ratio:g}" if what != "dense" else "")
        results[name] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"not measured, status": done.returncode}
        print(f"{name}: {results[name]} {done.stderr[-300:] if done.returncode else ''}", flush=True)
    for path in args.folder.glob("*.safetensors"):
        path.unlink()


def held(parameters, ratio, dtype):
    """Bytes that unlearning with Adam holds of {name: tensor of any device}, {part: bytes}: at a mask ratio, equal in all tensors.

    `gradient` is the largest that is there at one time: a gradient's salient entries are gathered as soon as it is complete.
    """
    width, salient = models.DTYPES[dtype].itemsize, {name: math.ceil(ratio * tensor.numel()) for name, tensor in parameters.items()}
    count, chosen = sum(tensor.numel() for tensor in parameters.values()), sum(salient.values())
    whole = ratio == 1 and dtype == "fp32"  # then weights are their own leaves, with dense gradients
    return {
        "weights": width * count,
        "mask": 0 if ratio == 1 else sum(math.ceil(tensor.numel() / 8) for tensor in parameters.values()),
        "positions": 0 if ratio == 1 else sum((4 if part > masking.SMALL else 8) * part for part in salient.values()),
        "leaves": 0 if whole else 4 * chosen,
        "gradients of the leaves": 4 * chosen,
        "optimizer": 8 * chosen,
        "gradient": 0 if whole else width * max(tensor.numel() for tensor in parameters.values()),
    }


def memory_table():
    """Markdown lines: what unlearning holds of each model, and the smallest GPU that holds it, without activations."""
    import diffusers

    shapes = {NAMES[kind]: shape_of(kind) for kind in WEIGHTS}
    with torch.device("meta"):
        shapes |= {name: getattr(diffusers, kind)(**config) for name, (kind, config) in TRANSFORMERS.items()}
    cases = [("fp32", 1.0), *(("bf16", ratio) for ratio in RATIOS)]
    cells = [["model", "weights", *(f"{dtype}, {'no mask' if ratio == 1 else f'ratio {ratio:g}'}" for dtype, ratio in cases)]]
    for name, model in shapes.items():
        parameters = dict(model.named_parameters())
        cells.append([name, f"{sum(tensor.numel() for tensor in parameters.values()):,}"])
        for dtype, ratio in cases:
            size = sum(held(parameters, ratio, dtype).values())
            fits = next((f"{gpu} GB" for gpu in GPUS if size < gpu * 1e9), "none of these")
            cells[-1].append(f"{size / 2**30:.1f} GiB ({fits})")
    return markdown_table(cells)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision, PARTS[args.part][1] if args.part else "fp32")
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        return print(json.dumps(full_size(args.part, args, accelerator)))
    results = {"machine": machine(), "autocast": accelerator.mixed_precision, "versions": versions()}
    write_whole(args.folder / "memory.md", lambda partial: partial.write_text("\n".join(memory_table()) + "\n"))
    in_processes(results, args)
    digits = FAMILIES["sd"].build("tiny", ["an image of a three"], 16, seed=0)
    cached_against_encoding(results, "digits pipeline at 16 px", digits, 16, accelerator, 4 * args.rounds)
    cached_against_encoding(results, "1/8 of Stable Diffusion v1's widths at 256 px", sd_family(8), 256, accelerator, args.rounds)
    write_json(args.folder / "benchmark.json", results)
    on = f"{results['machine']}, torch {results['versions']['torch']}, autocast {results['autocast']}"
    rows = [(name, row) for name, row in results.items() if name not in ("machine", "versions", "autocast")]
    cells = [["what", "figures"], *([name, "; ".join(f"{key} {shown(value)}" for key, value in row.items())] for name, row in rows)]
    text = "\n".join([f"Measured on {on}, by scripts/benchmark.sh.", "", *markdown_table(cells)])
    write_whole(args.folder / "benchmark.md", lambda partial: partial.write_text(text + "\n"))
    print(f"{text}\nwritten: {args.folder.resolve()}/benchmark.md, memory.md, benchmark.json")


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    cli.run(main)
