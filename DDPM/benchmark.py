"""Speed and memory of the mask, the unlearning step and the samplers, as ratios and sizes measured in one run.

    python benchmark.py --model_path runs/quickstart/seed1/original --classifier runs/quickstart/seed1/classifier

Timings of several things are taken in turns and their medians compared, so that a busy machine affects all. The steps are those of
the paper's U-Net for CIFAR-10 with random weights. Sampling quality is that of the model given. Writes FOLDER/benchmark.json and .md.
"""

import functools
import statistics
import time
from pathlib import Path

import torch

import cli
import data
import evaluate
import masking
import metrics
import models
import sampling
import task
import trainer
from files import write_json, write_whole
from run_folder import machine, moved, peak_memory_mb, versions
from table import markdown_table
from trainer import noisy_images, predict_noise, predict_together, squared_error


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared(required=["model_path"])
    parser.add(cli.DATA, "--classifier", type=Path, required=True, metavar="RUN", help="run of train_classifier.py")
    parser.add(cli.RUN, "--folder", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder to write into")
    parser.add(cli.RUN, "--rounds", type=cli.positive_int, default=7, help="timed calls of each thing")
    cond_scale = "weight w of the samples' classifier-free guidance"
    parser.add(cli.METHOD, "--cond_scale", "--guidance", type=cli.non_negative_float, default=2.0, metavar="W", help=cond_scale)
    parser.add(cli.METHOD, "--num_per_class", type=cli.positive_int, default=50, help="samples of each class")
    parser.add_shared("device", "precision", batch_size=8)
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
    return trainer.prepare(models.build_unet("unet128", 10, 3, 32, seed=0), accelerator)


def salun_loss(model, forget, retain, together=False):
    """SalUn's loss, Eq. 7. together: the prediction for c' goes through the forward pass of the other two, and so through backward."""
    noisy = noisy_images(forget)
    of_target, of_c = (noisy, forget.t, (forget.labels + 1) % 10), (noisy, forget.t, forget.labels)
    of_retain = (noisy_images(retain), retain.t, retain.labels)
    if together:
        target, prediction, others = predict_together(model, of_target, of_c, of_retain)
    else:
        with torch.no_grad():
            target = predict_noise(model, *of_target)
        prediction, others = predict_together(model, of_c, of_retain)
    return (squared_error(prediction, target.detach()) + squared_error(others, retain.noise)).mean()


def make_step(accelerator, forget, retain, ratio):
    """A function that does one step of Adam on SalUn's loss, and the MB of its optimizer's state."""
    model = paper_unet(accelerator)
    mask = None if ratio is None else masking.select({name: torch.randn_like(p) for name, p in model.named_parameters()}, ratio)
    salient = masking.SalientParameters(dict(model.named_parameters()), mask)
    optimizer = torch.optim.Adam(salient.parameters(), 1e-4)

    def step():
        salun_loss(model, forget, retain).backward()
        torch.nn.utils.clip_grad_norm_(salient.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        salient.scatter()

    step()
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    return step, sum(value.numel() * value.element_size() for value in state) / 1e6


def unlearning_steps(results, accelerator, rounds, batch_size):
    """An unlearning step of the paper's U-Net with and without a mask, and the ways of batching its predictions, on random images."""
    images = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8).to(accelerator.device)
    labels = torch.randint(10, (64,), device=accelerator.device)
    splits = (data.Split(images, labels, torch.arange(64), name) for name in ("forget", "retain"))
    forget, retain = (data.Stream(split, batch_size=batch_size, seed=1, timesteps=models.TIMESTEPS).batch(0) for split in splits)
    steps, megabytes = {}, {}
    for name, ratio in (("dense", None), ("masked", 0.5)):
        steps[name], megabytes[name] = make_step(accelerator, forget, retain, ratio)
    seconds = in_turns(steps, rounds)
    results[f"SalUn step at ratio 0.5, paper's U-Net, batch {batch_size}"] = {
        **{f"{name}, seconds": value for name, value in seconds.items()},
        "time, masked / dense": seconds["masked"] / seconds["dense"],
        **{f"optimizer, {name}, MB": value for name, value in megabytes.items()},
        "memory, masked / dense": megabytes["masked"] / megabytes["dense"],
    }
    model = paper_unet(accelerator)

    def backward(together):
        salun_loss(model, forget, retain, together).backward()
        model.zero_grad(set_to_none=True)

    ways = {"one pass": functools.partial(backward, True), "two passes": functools.partial(backward, False)}
    seconds = in_turns(ways, rounds)
    row = {f"{how}, seconds": value for how, value in seconds.items()} | {"time, two / one": seconds["two passes"] / seconds["one pass"]}
    results[f"gradient of SalUn's loss, paper's U-Net, batch {batch_size}"] = row


def samplers(results, args, accelerator):
    """50-step DDIM against 1,000-step sampling: time, what the classifier recognises, distance to the training images."""
    model, _, recorded = task.load_model(args.model_path, accelerator)
    classifier, _ = evaluate.load_classifier(args.classifier, accelerator)
    features = metrics.register_features(classifier)
    images = task.data_of(recorded, moved(recorded["data_dir"], recorded, args.model_path), accelerator)
    keys = [(label, index) for label in range(len(images.classes)) for index in range(args.num_per_class)]
    labels = torch.tensor([label for label, _ in keys])
    options = {"null": len(images.classes), "seed": 1, "cond_scale": args.cond_scale}
    seconds = {}
    for sampler, steps in (("ddim", 25), ("ddim", 50), ("ddim", 1000), ("ddpm", 1000)):
        name = f"{sampler}, {steps}"
        before, start = peak_memory_mb(accelerator.device), time.perf_counter()
        drawn = sampling.draw(model, keys, accelerator, steps=steps, sampler=sampler, **options)
        seconds[name] = time.perf_counter() - start
        results[f"{len(keys)} samples of {recorded['dataset']}, {name} steps, guidance w = {args.cond_scale:g}"] = {
            "seconds": seconds[name],
            "recognised, %": metrics.accuracy(metrics.classify(classifier, drawn), labels),
            "feature_distance": metrics.fidelity(drawn, images.x_train, extractor=features)["feature_distance"],
            "memory grown by, MB": peak_memory_mb(accelerator.device) - before,
        }
    results["time, 1000 / 50 steps"] = {name: seconds[name] / seconds["ddim, 50"] for name in ("ddim, 1000", "ddpm, 1000")}


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    results = {"machine": machine(), "autocast": accelerator.mixed_precision, "versions": versions()}
    samplers(results, args, accelerator)
    unlearning_steps(results, accelerator, args.rounds, args.batch_size)
    args.folder.mkdir(parents=True, exist_ok=True)
    write_json(args.folder / "benchmark.json", results)
    how = f"torch {results['versions']['torch']}, autocast {results['autocast']}"
    rows = [(name, row) for name, row in results.items() if name not in ("machine", "versions", "autocast")]
    cells = [["what", "figures"], *([name, "; ".join(f"{key} {shown(value)}" for key, value in row.items())] for name, row in rows)]
    text = "\n".join([f"Measured on {results['machine']}, {how}, by scripts/benchmark.sh.", "", *markdown_table(cells)])
    write_whole(args.folder / "benchmark.md", lambda partial: partial.write_text(text + "\n"))
    print(f"{text}\nwritten: {args.folder.resolve()}/benchmark.md, benchmark.json")


def shown(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    cli.run(main)
