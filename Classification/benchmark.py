"""Speed and memory of the mask and the loop, as ratios and sizes measured in one run.

    python benchmark.py --data_dir ~/data

Timings of two things are taken in turns and their medians compared, so that a busy machine bears on both. The accuracies come
from training ResNet-20 on CIFAR-10 for --epochs epochs in either precision. Writes FOLDER/benchmark.json and benchmark.md.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import data
import datasets
import job
import masking
import models
import run


class Scratch:
    """Takes the place of a Run where nothing is to be kept."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def save(self, name, tensors, metadata=None):
        run.write_tensors(self.folder / name, tensors, metadata)


def in_turns(*functions, rounds):
    """Median seconds of each function, called in turns, after one warm-up call of each."""
    times = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if number:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def sd_unet_shapes():
    """Shapes of all parameters of Stable Diffusion v1's U-Net: 859,520,964 weights."""

    def norm(c):
        return [(c,), (c,)]

    def linear(out, into, bias=True):
        return [(out, into)] + ([(out,)] if bias else [])

    def conv(out, into, size=3):
        return [(out, into, size, size), (out,)]

    def resnet(into, out):
        return norm(into) + conv(out, into) + linear(out, 1280) + norm(out) + conv(out, out) + (conv(out, into, 1) if into != out else [])

    def attention(c):
        attend = [part for keys in (c, 768) for part in linear(c, c, False) + 2 * linear(c, keys, False) + linear(c, c)]
        return norm(c) + conv(c, c, 1) + 3 * norm(c) + attend + linear(8 * c, c) + linear(c, 4 * c) + conv(c, c, 1)

    widths = (320, 640, 1280, 1280)
    shapes, skips, width = conv(320, 4) + linear(1280, 320) + linear(1280, 1280), [320], 320
    for level, out in enumerate(widths):
        for _ in range(2):
            shapes += resnet(width, out) + (attention(out) if level < 3 else [])
            width = out
            skips.append(out)
        if level < 3:
            shapes += conv(out, out)
            skips.append(out)
    shapes += resnet(1280, 1280) + attention(1280) + resnet(1280, 1280)
    for level, out in enumerate(reversed(widths)):
        for _ in range(3):
            shapes += resnet(width + skips.pop(), out) + (attention(out) if level > 0 else [])
            width = out
        if level < 3:
            shapes += conv(out, out)
    return shapes + norm(320) + conv(4, 320)


def select_small(results, scratch):
    """Threshold selection and mask file for a ResNet-18, against sorting a concatenated copy and saving int64 masks."""
    gradient = {name: torch.randn_like(p) for name, p in models.build("resnet18", 10, 3, 32, 0).named_parameters()}

    def by_sorting():
        flat = torch.cat([tensor.abs().flatten() for tensor in gradient.values()])
        ranks = flat.argsort(descending=True).argsort()
        return (ranks < len(flat) // 2).long()

    ours, sorting = in_turns(lambda: masking.select(gradient, 0.5), by_sorting, rounds=3)
    masking.save(scratch, masking.select(gradient, 0.5), mask_ratio=0.5, forget_sha="", seconds=0.0)
    weights = sum(tensor.numel() for tensor in gradient.values())
    results["mask of ResNet-18"] = {
        "weights": weights,
        "select_seconds": ours,
        "sorting_seconds": sorting,
        "times_faster": sorting / ours,
        "file_mb": (scratch.folder / "mask.safetensors").stat().st_size / 1e6,
        "int64_file_mb": 8 * weights / 1e6,
    }


def select_large(results):
    """Threshold selection over 860 M weights in the shapes of SD v1's U-Net. Memory: beyond the gradients, mask included."""
    gradient = {str(i): torch.randn(shape) for i, shape in enumerate(sd_unet_shapes())}
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    mask = masking.select(gradient, 0.5)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = sum(tensor.numel() for tensor in gradient.values())
    assert sum(int(part.sum()) for part in mask.values()) == weights // 2
    results["mask of SD v1's U-Net"] = {"weights": weights, "select_seconds": seconds, "extra_mb": (after - before) / 1024}


def make_step(arch, ratio, batch, bf16, channels_last, device):
    """A function that does one SGD step, and the bytes of its optimizer's state."""
    model = models.build(arch, 10, 3, 32, 0).to(device)
    x, y = torch.rand(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    mask = None if ratio is None else masking.select({name: torch.randn_like(p) for name, p in model.named_parameters()}, ratio)
    leaves = masking.Leaves(dict(model.named_parameters()), mask)
    solver = torch.optim.SGD(leaves.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        solver.step()
        solver.zero_grad(set_to_none=True)
        leaves.scatter()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    return step, sum(
        value.numel() * value.element_size() for state in solver.state.values() for value in state.values() if torch.is_tensor(value)
    )


def masked_step(results, rounds, device):
    """A masked against a dense step of ResNet-18, batch 256 as in the paper, and the optimizer's memory."""
    dense, dense_bytes = make_step("resnet18", None, 256, True, True, device)
    masked, masked_bytes = make_step("resnet18", 0.5, 256, True, True, device)
    dense_seconds, masked_seconds = in_turns(dense, masked, rounds=rounds)
    results["masked step at ratio 0.5, ResNet-18, batch 256"] = {
        "dense, seconds": dense_seconds,
        "masked, seconds": masked_seconds,
        "time, masked / dense": masked_seconds / dense_seconds,
        "optimizer, dense, MB": dense_bytes / 1e6,
        "masked, MB": masked_bytes / 1e6,
        "memory, masked / dense": masked_bytes / dense_bytes,
    }


def precisions(results, rounds, device):
    """bf16 with channels_last against fp32 in either layout."""
    variants = {"bf16 channels_last": (True, True), "fp32 channels_last": (False, True), "fp32 plain": (False, False)}
    for arch in ("resnet20", "resnet18"):
        seconds = in_turns(*(make_step(arch, None, 256, *variant, device)[0] for variant in variants.values()), rounds=rounds)
        results[f"step in three precisions, {arch}, batch 256"] = {
            f"{name}, seconds": value for name, value in zip(variants, seconds, strict=True)
        } | {"time, fp32 plain / bf16": seconds[2] / seconds[0], "time, fp32 channels_last / bf16": seconds[1] / seconds[0]}


def epoch(results, data_dir, epochs, folder, device):
    """ResNet-20 on CIFAR-10 by train.py in either precision: accuracy, and the share of the epoch that data and augmentation take."""
    row = {}
    for precision in ("bf16", "fp32"):
        command = f"--dataset cifar10 --arch resnet20 --epochs {epochs} --lr 0.2 --batch_size 256 --schedule linear --precision {precision}"
        where = ["--data_dir", data_dir, "--save_dir", folder / precision, "--device", device]
        subprocess.run([sys.executable, "train.py", *command.split(), *map(str, where)], cwd=Path(__file__).parent, check=True)
        done = run.read_json(folder / precision / "done.json")
        row[f"{precision}, seconds an epoch"] = done["seconds"] / epochs
        row[f"{precision}, validation accuracy"] = done["accuracy"]
    train, _ = data.train_and_validation(datasets.load_images("cifar10", data_dir, device=device), 1, 0.1)
    start = time.perf_counter()
    for _ in data.epoch_batches(train, 256, data.generator("benchmark"), datasets.DATASETS["cifar10"]):
        pass
    row["data and augmentation, seconds an epoch"] = time.perf_counter() - start
    row["their share of the bf16 epoch, %"] = 100 * row["data and augmentation, seconds an epoch"] / row["bf16, seconds an epoch"]
    results[f"{epochs} epochs of ResNet-20 on CIFAR-10, 45,000 images"] = row


def main(argv=None):
    args = parse(argv)
    results = {"machine": run.machine(), "versions": run.versions(*job.PACKAGES)}
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        select_large(results)
        select_small(results, Scratch(folder))
        masked_step(results, args.rounds, device)
        precisions(results, args.rounds, device)
        epoch(results, args.data_dir.expanduser().resolve(), args.epochs, Path(folder), device)
    args.folder.mkdir(parents=True, exist_ok=True)
    run.write_json(args.folder / "benchmark.json", results)
    lines = [
        f"Measured on {results['machine']}, torch {results['versions']['torch']}, by scripts/benchmark.sh.",
        "",
        "| what | figures |",
        "|---|---|",
    ]
    lines += [
        f"| {name} | {'; '.join(f'{key} {shown(value)}' for key, value in row.items())} |"
        for name, row in results.items()
        if name not in ("machine", "versions")
    ]
    run.write_whole(args.folder / "benchmark.md", lambda beside: beside.write_text("\n".join(lines) + "\n"))
    print("\n".join(lines))
    print(f"written: {args.folder.resolve()}/benchmark.md, benchmark.json")


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder to write into")
    parser.add_argument("--rounds", type=run.positive_int, default=7, help="timed calls of each thing")
    run.add_flags(parser, "device", data_dir=Path("data"), epochs=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    run.cli(main)
