"""Speed and memory of the mask and the loop, as ratios and sizes measured in one run.

    python benchmark.py --data_dir ~/data

Timings of two things are taken in turns and their medians compared, so that a busy machine affects both. The accuracies come
from training ResNet-20 on CIFAR-10 for --epochs epochs in either precision. Writes FOLDER/benchmark.json and benchmark.md.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

import cli
import data
import masking
import models
import passes
from files import read_json, write_json, write_tensors, write_whole
from imagesets import load_images
from methods.fisher import model_fisher
from run_folder import machine, versions
from table import markdown_table


def in_turns(*functions, rounds):
    """Median seconds of each function, called in turns, after one warm-up call of each."""
    times = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():  # it computes on after a call
                torch.cuda.synchronize()
            if number:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def mask_selection(folder):
    """Threshold selection and mask file for a ResNet-18, against sorting a concatenated copy and saving int64 masks."""
    gradient = {name: torch.randn_like(p) for name, p in models.build("resnet18", 10, 3, 32, 0).named_parameters()}

    def by_sorting():
        flat = torch.cat([tensor.abs().flatten() for tensor in gradient.values()])
        return (flat.argsort(descending=True).argsort() < len(flat) // 2).long()

    select, sorting = in_turns(lambda: masking.select(gradient, 0.5), by_sorting, rounds=3)
    scratch = SimpleNamespace(save=lambda name, *rest: write_tensors(folder / name, *rest))  # masking.save only writes into it
    masking.save(scratch, masking.select(gradient, 0.5), {"forget_sha": "", "parent_sha": ""}, mask_ratio=0.5, seconds=0.0)
    weights, size = sum(tensor.numel() for tensor in gradient.values()), (folder / "mask.safetensors").stat().st_size
    times = {"select, seconds": select, "sorting, seconds": sorting, "time, sorting / select": sorting / select}
    return {"weights": weights, **times, "file, MB": size / 1e6, "as int64, MB": 8 * weights / 1e6}


def make_step(arch, ratio, bf16, channels_last, device, batch):
    """(a function that does one SGD step, the bytes of its optimizer's state)"""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = models.build(arch, 10, 3, 32, 0).to(device, memory_format=layout)
    images = torch.rand(batch, 3, 32, 32, device=device).to(memory_format=layout)
    labels = torch.randint(10, (batch,), device=device)
    mask = None if ratio is None else masking.select({name: torch.randn_like(p) for name, p in model.named_parameters()}, ratio)
    salient = masking.SalientParameters(dict(model.named_parameters()), mask)
    optimizer = torch.optim.SGD(salient.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        salient.scatter()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return step, sum(value.numel() * value.element_size() for value in kept)


def masked_step(rounds, device, batch=256):
    """A masked against a dense step of ResNet-18, at the paper's batch size, and the optimizer's memory."""
    (dense, dense_bytes), (masked, masked_bytes) = (make_step("resnet18", ratio, True, True, device, batch) for ratio in (None, 0.5))
    dense_seconds, masked_seconds = in_turns(dense, masked, rounds=rounds)
    times = {"dense, seconds": dense_seconds, "masked, seconds": masked_seconds, "time, masked / dense": masked_seconds / dense_seconds}
    memory = {"optimizer, dense, MB": dense_bytes / 1e6, "masked, MB": masked_bytes / 1e6}
    return times | memory | {"memory, masked / dense": masked_bytes / dense_bytes}


def precisions(arch, rounds, device, batch):
    """bf16 with channels_last against fp32 in either layout."""
    variants = {"bf16 channels_last": (True, True), "fp32 channels_last": (False, True), "fp32 plain": (False, False)}
    seconds = in_turns(*(make_step(arch, None, *variant, device, batch)[0] for variant in variants.values()), rounds=rounds)
    ratios = {"time, fp32 plain / bf16": seconds[2] / seconds[0], "time, fp32 channels_last / bf16": seconds[1] / seconds[0]}
    return {f"{name}, seconds": value for name, value in zip(variants, seconds, strict=True)} | ratios


def mask_kinds():
    """Every kind of mask of a ResNet-18 at ratio 0.5, without the gradient that three of them take."""
    parameters = dict(models.build("resnet18", 10, 3, 32, 0).named_parameters())
    gradient = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
    seconds = in_turns(*(partial(masking.make, kind, 0.5, parameters, lambda: gradient, 1) for kind in masking.KINDS), rounds=3)
    return {f"{kind}, seconds": value for kind, value in zip(masking.KINDS, seconds, strict=True)}


def sample_passes(arch, device, count=16, batch=128):
    """Images per second of the passes that ssd, fisher and iu_exact take over single samples, and of a training step in fp32."""
    model = models.build(arch, 10, 3, 32, 0).to(device)
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, device=device)
    split = data.Split(images, torch.arange(count, device=device) % 10, torch.arange(count), "retain")
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    step, _ = make_step(arch, None, False, True, device, batch=batch)
    others = {
        "Fisher diagonal (ssd)": lambda: passes.fisher_diagonal(model, split),
        "F u (iu_exact, a step)": lambda: passes.fisher_times(model, split, direction),
        "Fisher diagonal over all labels (fisher)": lambda: model_fisher(model, split),
    }
    training, *seconds = in_turns(step, *others.values(), rounds=1)
    rates = {name: count / value for name, value in zip(others, seconds, strict=True)}
    row = {"training step, images/s": batch / training} | {f"{name}, images/s": rate for name, rate in rates.items()}
    return row | {f"rate, training step / {name}": batch / training / rate for name, rate in rates.items()}


def epoch(data_dir, epochs, folder, device):
    """ResNet-20 on CIFAR-10 by train.py in either precision: time and accuracy."""
    row = {}
    for precision in ("bf16", "fp32"):
        command = f"--dataset cifar10 --arch resnet20 --epochs {epochs} --lr 0.2 --batch_size 256 --schedule linear --precision {precision}"
        where = ["--data_dir", data_dir, "--save_dir", folder / precision, "--device", device]
        subprocess.run([sys.executable, "train.py", *command.split(), *map(str, where)], cwd=Path(__file__).parent, check=True)
        done = read_json(folder / precision / "done.json")
        row |= {f"{precision}, seconds per epoch": done["seconds"] / epochs, f"{precision}, validation accuracy": done["accuracy"]}
    return row


def loading(folder, count):
    """A user's own images, `count` JPEGs of 224 px, at 64 px: decoded at first, then from the cache."""
    for number in range(count):
        path = folder / "photos" / str(number % 4) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(256, size=(28, 28, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC).save(path)
    row = {}
    for name in ("first", "cached"):
        start, cpu = time.perf_counter(), time.process_time()
        load_images("folder", folder / "photos", 64, cache_dir=folder / "cache")
        row |= {f"{name}, seconds": time.perf_counter() - start, f"{name}, CPU seconds": time.process_time() - cpu}
    return row


def main(argv=None):
    args = parse(argv)
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        rows = {"mask of ResNet-18": mask_selection(Path(folder))}
        photographs = min(13_394, 2000 * args.rounds)  # as many as Imagenette has
        rows[f"{photographs:,} photographs of 224 px loaded at 64 px"] = loading(Path(folder), photographs)
        rows["kinds of mask of ResNet-18"] = mask_kinds()
        for arch in ("resnet20", "resnet18"):
            rows[f"passes over single samples, {arch}, fp32"] = sample_passes(arch, device)
        rows[f"masked step at ratio 0.5, ResNet-18, batch {args.batch_size}"] = masked_step(args.rounds, device, args.batch_size)
        for arch in ("resnet20", "resnet18"):
            rows[f"step in three precisions, {arch}, batch {args.batch_size}"] = precisions(arch, args.rounds, device, args.batch_size)
        data_dir = args.data_dir.expanduser().resolve()
        rows[f"{args.epochs} epochs of ResNet-20 on CIFAR-10, 45,000 images"] = epoch(data_dir, args.epochs, Path(folder), device)
    origin = {"machine": machine(), "versions": versions()}
    args.folder.mkdir(parents=True, exist_ok=True)
    write_json(args.folder / "benchmark.json", origin | rows)
    cells = [["what", "figures"], *([name, "; ".join(f"{key} {shown(value)}" for key, value in row.items())] for name, row in rows.items())]
    how = f"Measured on {origin['machine']}, torch {origin['versions']['torch']}, by scripts/benchmark.sh."
    lines = [how, "", *markdown_table(cells)]
    write_whole(args.folder / "benchmark.md", lambda partial: partial.write_text("\n".join(lines) + "\n"))
    print("\n".join([*lines, f"written: {args.folder.resolve()}/benchmark.md, benchmark.json"]))


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add(cli.RUN, "--folder", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder to write into")
    parser.add(cli.RUN, "--rounds", type=cli.positive_int, default=7, help="timed calls of each thing")
    parser.add_shared("device", data_dir=Path("data"), epochs=2, batch_size=256)
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
