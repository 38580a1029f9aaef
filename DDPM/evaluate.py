"""Measure from samples how far a class is forgotten, and what happened to the others. Writes metrics.json into each sample run.

    python evaluate.py --sample_path runs/c10/samples/{retrain,salun} --classifier runs/c10/classifier
    python evaluate.py --sample_path runs/c10/samples/original --forget_class 0 --classifier runs/c10/classifier --save_dir runs/c10/before

What was forgotten is known from the model that drew the samples; --forget_class says it for samples of the original, the row `original`
of the tables. With --save_dir their numbers go to a run folder of their own, so that one set of samples serves several classes.
The reference images are the data set's training images of the retained classes.
"""

import functools
import re
import tempfile

import numpy as np
import torch

import data
import engine
import job
import metrics
import models
import run

PACKAGES = (*job.PACKAGES, "torch-fidelity")


def parse(argv=None):
    parser = run.parser(__doc__)
    path = run.FLAGS["model_path"][1]["type"]
    parser.add_argument("--sample_path", nargs="+", type=path, required=True, metavar="RUN", help="runs of sample.py to measure")
    parser.add_argument("--classifier", type=path, required=True, metavar="RUN", help="run of train_classifier.py")
    run.add_flags(parser, "save_dir", "data_dir", "forget_class")
    parser.add_argument(
        "--features",
        choices=("inception", "classifier"),
        default="inception",
        help="classifier: for where Inception cannot be had; no FID then",
    )
    parser.add_argument("--inception_weights", type=path, metavar="FILE", help="torch-fidelity's Inception weights (default: downloaded)")
    parser.add_argument(
        "--num_reference",
        type=run.positive_int,
        metavar="N",
        help="reference images, drawn by --seed (default: all; distances need N^2 steps)",
    )
    run.add_flags(parser, "resume", "overwrite", "device", seed=1)
    args = parser.parse_args(argv)
    if args.save_dir is not None and (len(args.sample_path) > 1 or not args.forget_class):
        parser.error("--save_dir takes the numbers of one --sample_path, of an original model, and needs --forget_class")
    if args.inception_weights is not None and args.features != "inception":
        parser.error("--inception_weights contradicts --features classifier")
    if args.inception_weights is not None and not args.inception_weights.is_file():
        parser.error(f"--inception_weights {args.inception_weights} does not exist")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, "fp32")
    classifier = open_classifier(args.classifier, accelerator)
    if accelerator.is_main_process:
        print("\n".join(f"{name:20s}{what} [better: {better}]" for name, (what, better) in metrics.DEFINITIONS.items()))
    with tempfile.TemporaryDirectory() as cache:
        measure = functools.partial(measure_samples, args=args, accelerator=accelerator, classifier=classifier, cache=cache)
        if args.save_dir is not None:
            return measure_apart(args, accelerator, measure)
        runs = [open_samples(path, args, accelerator) for path in args.sample_path]  # together: the first process writes the cache
        for folder, recorded, images in runs[accelerator.process_index :: accelerator.num_processes]:
            if (folder / "metrics.json").is_file() and not args.overwrite:
                if not args.resume:
                    raise run.RunError(f"{folder} has metrics.json already: pass --overwrite to measure again, --resume to skip it")
                continue
            report(folder, measure(folder, recorded, images))
    accelerator.wait_for_everyone()


def measure_apart(args, accelerator, measure):
    """Measure an original's samples against what would be forgotten, into --save_dir."""
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")
    folder, recorded, images = open_samples(args.sample_path[0], args, accelerator)
    if accelerator.is_main_process:
        result = measure(folder, recorded, images)
        record.begin(PACKAGES, kind="evaluation", model=recorded["model"], **{name: recorded[name] for name in DRAWN})
        report(record.folder, result)
        record.finish(seconds=record.seconds())
    accelerator.wait_for_everyone()


DRAWN = ("num_per_class", "sampler", "steps", "guidance", "eta")  # of a sample run: what its numbers depend on


def open_samples(path, args, accelerator):
    """(folder, args of the run, Images of the data set that its model was trained on)."""
    folder, recorded = run.read_run(path)
    if recorded.get("kind") != "samples":
        raise run.RunError(f"{folder} is a run of kind {recorded.get('kind')}, where one of sample.py is needed")
    model = recorded["model"]
    origin = model["training"] if model["kind"] == "unlearn" else model
    source = [origin[name] for name in ("image_size", "limit", "seed")]
    return folder, recorded, job.open_images(origin["dataset"], args.data_dir or origin["data_dir"], *source, accelerator)


def open_classifier(path, accelerator):
    """(model, name of its features for torch-fidelity, args of its run)."""
    folder, recorded = run.read_run(path)
    if recorded.get("kind") != "classifier":
        raise run.RunError(f"{folder} is no run of train_classifier.py")
    model = models.build_classifier(**recorded["architecture"], seed=0)
    models.load_weights(model, folder / "model.safetensors")
    model = model.to(accelerator.device).eval()
    return model, metrics.register_features(model), recorded | {"sha": run.file_sha(folder / "model.safetensors")}


def read_samples(folder, shape):
    """Return (uint8 images (N, H, W, C), labels (N,)) of the PNGs in a sample folder, in the order of their names."""
    from PIL import Image, UnidentifiedImageError

    named = sorted(
        (tuple(map(int, found.groups())), path) for path in folder.glob("*.png") if (found := re.fullmatch(r"(\d+)_(\d+)\.png", path.name))
    )
    if not named:
        raise run.RunError(f"{folder} holds no samples named <class>_<index>.png: draw them with sample.py")
    images = np.empty((len(named), *shape), np.uint8)
    for i, (_, path) in enumerate(named):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNGs
            raise run.RunError(
                f"{path} cannot be read as an image ({error}): remove it and draw it again with sample.py --resume"
            ) from error
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.shape != shape:
            raise run.RunError(
                f"{path} is {pixels.shape}, where the model draws {shape} (height, width, channels): remove what sample.py did not draw"
            )
        images[i] = pixels
    return torch.from_numpy(images), torch.tensor([label for (label, _), _ in named])


def forgotten_classes(model, names, folder):
    """The Classes to measure: what the model forgot, or what --forget_class names for an original."""
    if names is not None:
        classes = data.forget_classes(names, model["classes"])
        if model["forgotten"] and sorted(model["forgotten"]) != sorted(classes.forgotten) and model["method"] != "original":
            raise run.RunError(f"the model of {folder} forgot class {model['forgotten']}, not --forget_class {' '.join(names)}")
        return classes
    if not model["forgotten"]:
        raise run.RunError(f"{folder} was drawn from an original model: say with --forget_class what would be forgotten")
    return data.Classes(model["classes"], tuple(model["forgotten"]))


def measure_samples(folder, recorded, images, *, args, accelerator, classifier, cache):
    """All metrics of one sample run, {name: value}."""
    judge, features, judge_args = classifier
    model, done = recorded["model"], recorded["model_done"]
    classes = forgotten_classes(model, args.forget_class, folder)
    if judge_args["classes"] != classes.names:
        raise run.RunError(f"the classifier {args.classifier} knows other classes than the model of {folder}")
    samples, labels = read_samples(folder / "samples", tuple(images.x_train.shape[1:]))
    of_retained = torch.isin(labels, torch.tensor(classes.retained))
    reference = data.split(images, classes)[1].rows
    if args.num_reference is not None:
        order = torch.randperm(len(reference), generator=data.generator("reference", args.seed))
        reference = reference[order[: args.num_reference]].sort().values
    result = {
        "classifier_sha": judge_args["sha"],
        "forgotten": list(classes.forgotten),
        "samples": len(labels),
        "reference_images": len(reference),
        "reference_sha": data.forget_sha(reference),
    }
    result |= metrics.forgetting(metrics.judge(judge, samples), labels, classes.forgotten)
    result |= metrics.fidelity(
        samples[of_retained],
        images.x_train[reference.to(images.x_train.device)],
        **({"extractor": features} if args.features == "classifier" else {"weights": args.inception_weights}),
        cuda=accelerator.device.type == "cuda",
        cache=cache,
        cache_name=f"reference-{result['reference_sha']}",
    )
    if model["method"] != "original":
        result["RTE"] = (done["seconds"] + done.get("mask_seconds", 0.0)) / 60
        result |= {name: float(done[name]) for name in ("peak_memory_mb", "images_seen")}
        if "fraction_changed" in done:
            result["changed"] = 100 * done["fraction_changed"]
    return result


def report(folder, result):
    run.write_json(folder / "metrics.json", result)
    print(f"{folder}: " + "  ".join(f"{name} {result[name]:.2f}" for name in metrics.DEFINITIONS if name in result))


if __name__ == "__main__":
    run.cli(main)
