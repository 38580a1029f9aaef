"""Measure from samples how far a class is forgotten, and what happened to the others. Writes metrics.json into each sample run.

    python evaluate.py --sample_path runs/c10/samples/{retrain,salun} --classifier runs/c10/classifier
    python evaluate.py --sample_path runs/c10/samples/original --forget_class 0 --classifier runs/c10/classifier --save_dir runs/c10/before

What was forgotten is known from the model that drew the samples. For samples of the original, the row `original` of the tables,
--forget_class says it. With --save_dir their numbers go to a run folder of their own, so that one set of samples serves several classes.
The reference images are the data set's training images of the retained classes.
"""

import hashlib
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

import cli
import data
import imagesets
import metrics
import models
import task
import trainer
from cli import RunError
from files import file_sha, read_json, write_json
from run_folder import RunFolder, is_measured, moved, read_run
from table import describe


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add(cli.DATA, "--sample_path", nargs="+", type=Path, required=True, metavar="RUN", help="runs of sample.py to measure")
    parser.add(cli.DATA, "--classifier", type=Path, required=True, metavar="RUN", help="run of train_classifier.py")
    parser.add_shared("save_dir", "data_dir", "cache_dir", "forget_class")
    features = "network of the features; classifier: where Inception's weights are not available (no FID then)"
    parser.add(cli.METHOD, "--features", choices=("inception", "classifier"), default="inception", help=features)
    inception_weights = "torch-fidelity's Inception weights (default: downloaded)"
    parser.add(cli.METHOD, "--inception_weights", type=Path, metavar="FILE", help=inception_weights)
    num_reference = "reference images, drawn by --seed (default: all; distances take N^2 steps)"
    parser.add(cli.METHOD, "--num_reference", type=cli.positive_int, metavar="N", help=num_reference)
    options = {"seed": dict(help="seed of the draw of --num_reference")}
    parser.add_shared("resume", "overwrite", "device", options=options, seed=1)
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
    accelerator = trainer.make_accelerator(args.device, "fp32")
    classifier, classifier_args = load_classifier(args.classifier, accelerator)
    extractor = metrics.register_features(classifier) if args.features == "classifier" else metrics.INCEPTION
    run_folder = RunFolder(args, accelerator) if args.save_dir is not None else None  # of the row `original`
    runs = load_samples(args.sample_path, args.data_dir, accelerator, args.cache_dir)  # together: the first process writes the cache
    how = {"classifier": classifier_args["sha"]} | {name: getattr(args, name) for name in ("features", "num_reference", "seed")}
    how["inception_weights"] = args.inception_weights and file_sha(args.inception_weights)
    known = {"classifier": classifier, "classifier_args": classifier_args, "extractor": extractor}

    def measure(run):
        folder, recorded, images = run
        asked = how | {"forgotten": list(forgotten_classes(recorded["model"], args.forget_class, folder).forgotten)}
        if run_folder is None and is_measured(folder, args, asked):
            return
        measured = measure_samples(folder, recorded, images, args=args, accelerator=accelerator, cache=cache, **known)
        if run_folder is not None:
            run_folder.begin(kind="evaluation", model=recorded["model"])
        message = write_metrics(run_folder.folder if run_folder else folder, folder, recorded, measured | {"how": asked}, classifier_args)
        run_folder.finish(message, seconds=run_folder.seconds()) if run_folder else print(f"{folder}: {message}")

    with tempfile.TemporaryDirectory() as cache:
        cli.for_each(runs[accelerator.process_index :: accelerator.num_processes], measure, accelerator.wait_for_everyone)


def load_samples(paths, data_dir, accelerator, cache_dir=None):
    """[(folder, args of the run, Images of the data set that its model was trained on)] of runs of sample.py."""
    runs, loaded = [], {}
    for path in paths:
        folder, recorded = read_run(path, "samples")
        model = recorded["model"]
        origin = model["training"] if model["kind"] == "unlearn" else model
        place = data_dir or moved(origin["data_dir"], recorded, folder, origin.get("cwd"))
        names = ("dataset", "image_size", "limit", "seed", "with_test", "only_class", "data_sha")
        source = (place, *(str(origin.get(name)) for name in names))
        if source not in loaded:
            loaded[source] = task.data_of(origin, place, accelerator, cache_dir)
        runs.append((folder, recorded, loaded[source]))
    return runs


def load_classifier(path, accelerator):
    """(model, args of its run)."""
    folder, recorded = read_run(path, "classifier")
    model = models.build_classifier(**recorded["architecture"], seed=0)
    models.load_weights(model, folder / "model.safetensors")
    return model.to(accelerator.device).eval(), recorded | {"sha": file_sha(folder / "model.safetensors")}


def read_samples(folder, shape):
    """Return (uint8 images (N, H, W, C), labels (N,)) of the PNGs in a sample folder, in the order of their names."""
    matches = ((path, re.fullmatch(r"(\d+)_(\d+)\.png", path.name)) for path in folder.glob("*.png"))
    named = sorted((tuple(map(int, match.groups())), path) for path, match in matches if match)
    if not named:
        raise RunError(f"{folder} holds no samples named <class>_<index>.png: draw them with sample.py")
    images = np.empty((len(named), *shape), np.uint8)
    for i, (_, path) in enumerate(named):
        pixels = np.asarray(imagesets.open_image(path))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.shape != shape:
            wanted = f"the model draws {shape} (height, width, channels)"
            raise RunError(f"{path} is {pixels.shape}, where {wanted}: remove what sample.py did not draw")
        images[i] = pixels
    return torch.from_numpy(images), torch.tensor([label for (label, _), _ in named])


def forgotten_classes(model, names, folder):
    """The Classes to measure: what the model forgot, or what --forget_class names for an original."""
    if names is not None:
        classes = data.forget_classes(names, model["classes"])
        if model["forgotten"] and sorted(model["forgotten"]) != sorted(classes.forgotten) and model["method"] != "original":
            raise RunError(f"the model of {folder} forgot class {model['forgotten']}, not --forget_class {' '.join(names)}")
        return classes
    if not model["forgotten"]:
        raise RunError(f"{folder} was drawn from an original model: say with --forget_class what would be forgotten")
    return data.Classes(model["classes"], tuple(model["forgotten"]))


def measure_samples(folder, recorded, images, *, args, accelerator, classifier, classifier_args, extractor, cache):
    """All metrics of one sample run, and what they depend on, {name: value}."""
    model, done = recorded["model"], recorded["model_done"]
    classes = forgotten_classes(model, args.forget_class, folder)
    if classifier_args["classes"] != classes.names:
        raise RunError(f"the classifier {args.classifier} knows other classes than the model of {folder}")
    size, taught = images.x_train.shape[1], classifier_args.get("trained_on", {}).get("image_size")
    if taught not in (None, size):
        cure = f"train one by train_classifier.py --image_size {size}"
        raise RunError(f"the classifier {args.classifier} was trained on images of {taught} px, the model draws {size}: {cure}")
    samples, labels = read_samples(folder / "samples", tuple(images.x_train.shape[1:]))
    promised = read_json(folder / "done.json")["images"]
    if len(labels) != promised:
        raise RunError(f"{folder} holds {len(labels)} samples where sample.py drew {promised}: draw them again with --overwrite")
    of_retained = torch.isin(labels, torch.tensor(classes.retained))
    reference = data.split(images, classes)[1]
    if args.num_reference is not None:
        order = torch.randperm(len(reference), generator=data.make_generator("reference", args.seed))
        reference = reference.take(order[: args.num_reference].sort().values)
    result = {"classifier_sha": classifier_args["sha"], "forgotten": list(classes.forgotten), "samples": len(labels)}
    drawn = torch.bincount(labels, minlength=len(classes.names))
    result |= {"retained_drawn": drawn[list(classes.retained)].tolist(), "forgotten_drawn": drawn[list(classes.forgotten)].tolist()}
    result |= {"reference_images": len(reference), "reference_sha": data.forget_sha(reference.indices)}
    result |= metrics.forgetting(metrics.classify(classifier, samples), labels, classes.forgotten, classes.names)
    options = {"extractor": extractor, "weights": args.inception_weights, "cuda": accelerator.device.type == "cuda"}
    content = hashlib.sha256(np.ascontiguousarray(reference.images.cpu())).hexdigest()  # other data have images at the same positions
    cached = {"cache": cache, "cache_name": f"reference-{content}"}
    result |= metrics.fidelity(samples[of_retained], reference.images, **options, **cached)
    if model["method"] != "original" and "relearned_images" not in model.get("options", {}):
        result["RTE"] = (done["seconds"] + done.get("mask_seconds", 0.0)) / 60
        result |= {name: float(done[name]) for name in ("peak_memory_mb", "images_seen")}
        if "fraction_changed" in done:
            result["changed"] = 100 * done["fraction_changed"]
    return result


def per_class(counts):
    return " or ".join(f"{count:,}" for count in sorted(set(counts))) + " per class"


def write_metrics(folder, sample_folder, recorded, measured, classifier_args):
    """Write metrics.json, all that table.py reads. recorded: args of the sample run; measured: {metric: number}. Return a summary."""
    model = recorded["model"]
    training = model["training"] if model["kind"] == "unlearn" else model
    cond_scale = recorded["cond_scale"] if "cond_scale" in recorded else recorded["guidance"]  # its name in earlier versions
    how = f", eta {recorded['eta']:g}" if recorded["eta"] else ""
    how += "".join(f", {said}" for name, said in (("no_clip", "x0 not clipped"), ("stretch", "stretched")) if recorded.get(name))
    only = f", {len(model['classes'])} classes" if training.get("only_class") else ""
    facts = {
        "data set": training["dataset"] + only,
        "architecture": model["architecture"]["arch"],
        "forgotten": ", ".join(model["classes"][label] for label in measured["forgotten"]),
        "sampler": f"{recorded['sampler']}, {recorded['steps']} steps, guidance w = {cond_scale:g}{how}",
        "samples": per_class(measured["retained_drawn"]),
        "samples of the forgotten": per_class(measured["forgotten_drawn"]) if folder == sample_folder else None,  # shared by all classes
        "classifier": classifier_args["architecture"]["arch"],
        "features": f"{'Inception' if 'FID' in measured else 'the classifier'}, {measured['reference_images']:,} training images",
    }
    if "relearned_images" in (options := model.get("options", {})):
        facts["relearned"] = "{relearned_images} forgotten images, {steps} steps, lr {lr:g}".format(**options)
    picture = {"sample_path": str(sample_folder), "classes": model["classes"], "weights_sha": recorded["parent_sha"]}
    row = describe(model, training["seed"], facts)
    if recorded.get("weights") == "last":  # no repetition of a run whose averaged weights were drawn from
        row["options"] = row["options"] | {"weights": "last"}
    write_json(folder / "metrics.json", row | measured | picture)
    return "  ".join(f"{name} {measured[name]:.2f}" for name in metrics.COLUMNS if name in measured)


if __name__ == "__main__":
    cli.run(main)
