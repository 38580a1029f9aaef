"""Speed and memory of the mask, the unlearning step and the samplers, as ratios and sizes measured in one run.

    python benchmark.py --model_path runs/quickstart/seed1/original --classifier runs/quickstart/seed1/classifier

Timings of several things are taken in turns and their medians compared, so that a busy machine bears on all. The steps are those of
the paper's U-Net for CIFAR-10 with random weights; sampling quality is that of the model given. Writes FOLDER/benchmark.json and .md.
"""

import functools
import resource
import statistics
import time
from pathlib import Path

import torch

import data
import engine
import evaluate
import job
import masking
import metrics
import models
import run
import sampling


class Scratch:
    """Takes the place of a Run where nothing is to be kept."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def save(self, name, tensors, metadata=None):
        run.write_tensors(self.folder / name, tensors, metadata)


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, required=["model_path"])
    parser.add_argument("--classifier", type=Path, required=True, metavar="RUN", help="run of train_classifier.py")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder to write into")
    parser.add_argument("--rounds", type=run.positive_int, default=7, help="timed calls of each thing")
    parser.add_argument("--guidance", type=run.non_negative_float, default=2.0, help="guidance of the samples")
    parser.add_argument("--num_per_class", type=run.positive_int, default=50, help="samples of each class")
    run.add_flags(parser, "device", "precision", batch_size=8)
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


def paper_unet(accelerator):
    return engine.place(models.build_unet("unet128", 10, 3, 32, seed=0), accelerator)


def batches(accelerator, batch_size):
    images = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8).to(accelerator.device)
    split = data.Split(images, torch.randint(10, (64,), device=accelerator.device), torch.arange(64))
    return [data.Stream(split, name, batch_size=batch_size, seed=1, timesteps=models.TIMESTEPS).batch(0) for name in ("forget", "retain")]


def relabelling(model, scheduler, forget, retain, how):
    """SalUn's loss, Eq. 7, with its three predictions (target c', prediction c, retain) in one, two or three forward passes."""
    forget_t, retain_t = (scheduler.add_noise(batch.x, batch.noise, batch.t) for batch in (forget, retain))
    target, prediction, kept = (forget_t, forget.t, (forget.y + 1) % 10), (forget_t, forget.t, forget.y), (retain_t, retain.t, retain.y)
    if how == "one pass":  # the target goes through the backward pass too, with gradients of zero
        wanted, predicted, remembered = engine.predict_together(model, target, prediction, kept)
    else:
        with torch.no_grad():
            wanted = engine.predict(model, *target)
        if how == "two passes":
            predicted, remembered = engine.predict_together(model, prediction, kept)
        else:
            predicted, remembered = engine.predict(model, *prediction), engine.predict(model, *kept)
    loss = engine.squared_error(predicted, wanted.detach()) + engine.squared_error(remembered, retain.noise)
    return loss.mean()


def steps(results, accelerator, rounds, batch_size):
    """An unlearning step of the paper's U-Net with and without a mask, and the ways of batching its predictions."""
    forget, retain = batches(accelerator, batch_size)
    scheduler, functions, memory = models.noise_scheduler(), {}, {}
    for name, ratio in (("dense", None), ("masked", 0.5)):
        model = paper_unet(accelerator)
        mask = None if ratio is None else masking.select({key: torch.randn_like(p) for key, p in model.named_parameters()}, ratio)
        leaves = masking.Leaves(dict(model.named_parameters()), mask)
        solver = torch.optim.Adam(leaves.parameters(), 1e-4)

        def step(model=model, leaves=leaves, solver=solver):
            def loss():
                return {"loss": relabelling(model, scheduler, forget, retain, "two passes")}

            engine.train_step(loss, {}, solver, leaves.parameters(), accelerator, 1.0, None)
            leaves.scatter()

        functions[name] = step
        step()
        state = [value for values in solver.state.values() for value in values.values() if torch.is_tensor(value)]
        memory[name] = sum(value.numel() * value.element_size() for value in state) / 1e6
    seconds = in_turns(functions, rounds)
    results[f"SalUn step at ratio 0.5, paper's U-Net, batch {batch_size}"] = {
        **{f"{name}, seconds": value for name, value in seconds.items()},
        "time, masked / dense": seconds["masked"] / seconds["dense"],
        **{f"optimizer, {name}, MB": value for name, value in memory.items()},
        "memory, masked / dense": memory["masked"] / memory["dense"],
    }
    model = paper_unet(accelerator)

    def backward(how):
        relabelling(model, scheduler, forget, retain, how).backward()
        model.zero_grad(set_to_none=True)

    ways = ("one pass", "two passes", "three passes")
    seconds = in_turns({how: functools.partial(backward, how) for how in ways}, rounds)
    results[f"gradient of SalUn's loss, paper's U-Net, batch {batch_size}"] = {
        **{f"{how}, seconds": seconds[how] for how in ways},
        "time, two / one": seconds["two passes"] / seconds["one pass"],
        "time, two / three": seconds["two passes"] / seconds["three passes"],
    }


def mask_of_the_paper(results, accelerator, folder):
    """Selection and file of a mask of the paper's U-Net."""
    gradient = {name: torch.randn_like(parameter) for name, parameter in paper_unet(accelerator).named_parameters()}
    seconds = in_turns({"select": lambda: masking.select(gradient, 0.5)}, 3)["select"]
    start = time.perf_counter()
    masking.save(Scratch(folder), masking.select(gradient, 0.5), mask_ratio=0.5, forget_sha="", seconds=seconds)
    weights = sum(tensor.numel() for tensor in gradient.values())
    results["mask of the paper's U-Net"] = {
        "weights": weights,
        "select, seconds": seconds,
        "select and save, seconds": time.perf_counter() - start,
        "file, bytes": (folder / "mask.safetensors").stat().st_size,
        "as int64, bytes": 8 * weights,
    }


def samplers(results, args, accelerator):
    """50-step DDIM against 1,000-step sampling: time, what the classifier recognises, distance to the training images."""
    model, _, recorded = job.open_model(args.model_path, accelerator)
    classifier, features, _ = evaluate.open_classifier(args.classifier, accelerator)
    images = job.open_images(*(recorded[name] for name in ("dataset", "data_dir", "image_size", "limit", "seed")), accelerator)
    keys = [(label, index) for label in range(len(images.classes)) for index in range(args.num_per_class)]
    labels = torch.tensor([label for label, _ in keys])
    shape = (images.x_train.shape[3], *images.x_train.shape[1:3])
    seconds = {}
    for name, sampler, steps_ in (
        ("ddim, 25", "ddim", 25),
        ("ddim, 50", "ddim", 50),
        ("ddim, 1000", "ddim", 1000),
        ("ddpm, 1000", "ddpm", 1000),
    ):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        drawn = sampling.draw(
            model, keys, shape, accelerator, null=len(images.classes), seed=1, steps=steps_, sampler=sampler, guidance=args.guidance
        )
        seconds[name] = time.perf_counter() - start
        results[f"{len(keys)} samples of {recorded['dataset']}, {name} steps, guidance {args.guidance:g}"] = {
            "seconds": seconds[name],
            "recognised, %": metrics.accuracy(metrics.judge(classifier, drawn), labels),
            "feature_distance": metrics.fidelity(drawn, images.x_train, extractor=features)["feature_distance"],
            "memory grown by, MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        }
    results["time, 1000 / 50 steps"] = {name: seconds[name] / seconds["ddim, 50"] for name in ("ddim, 1000", "ddpm, 1000")}


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    results = {"machine": run.machine(), "autocast": accelerator.mixed_precision, "versions": run.versions(*job.PACKAGES)}
    args.folder.mkdir(parents=True, exist_ok=True)
    samplers(results, args, accelerator)
    mask_of_the_paper(results, accelerator, args.folder)
    (args.folder / "mask.safetensors").unlink()
    steps(results, accelerator, args.rounds, args.batch_size)
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
