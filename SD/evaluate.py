"""Measure from samples how far something is forgotten, and what happened to the rest. Writes metrics.json into each sample run.

    python evaluate.py --sample_path runs/church/samples/salun --classifier resnet50
    python evaluate.py --sample_path runs/church/samples/original --forget_class church --classifier resnet50 --save_dir runs/church/before
    python evaluate.py --sample_path runs/nudity/samples/salun --nudenet --clip_model openai/clip-vit-large-patch14

--classifier counts how many images show the class that was asked for, in the column class of the prompts; the others' accuracies are the
collateral damage. Images of real things for the distance (FID) come from --reference_dir, or from the data set that the model's run
knows. --clip_model tells how well images fit their prompts, by class or group. --nudenet counts exposed body parts. What was forgotten is
known from the model that drew the samples. Pass --forget_class for samples of the original, or if what was forgotten is not a
class of the prompts.
"""

import functools
from pathlib import Path

import torch
from PIL import Image

import classifiers
import cli
import data
import imagesets
import metrics
import prompts
import trainer
from cli import RunError
from concepts import NOT_HERE, words_given
from files import file_sha, write_json
from run_folder import RunFolder, is_measured, read_run
from table import describe


def parse(argv=None):
    parser = cli.Parser(__doc__)
    file = {"type": Path, "metavar": "FILE"}
    parser.add(cli.DATA, "--sample_path", nargs="+", type=Path, required=True, metavar="RUN", help="runs of generate_images.py to measure")
    classifier = "resnet50, efficientnet_lite0 (ImageNet), or a run of train_classifier.py"
    parser.add(cli.METHOD, "--classifier", metavar="NAME", help=classifier)
    parser.add(cli.METHOD, "--classifier_weights", **file, help="weights of an ImageNet classifier (default: downloaded)")
    parser.add_shared("save_dir", "forget_class")
    reference = "real images for the distance (default: a data set's retained classes)"
    parser.add(cli.DATA, "--reference_dir", type=Path, metavar="DIR", help=reference)
    parser.add(cli.DATA, "--dataset", choices=imagesets.DATASETS, help="data set of the real images (default: the model's own)")
    parser.add_shared("data_dir")
    features = "network of the features; classifier: where Inception's weights are not available (no FID then)"
    parser.add(cli.METHOD, "--features", choices=("inception", "classifier", "none"), default="inception", help=features)
    parser.add(cli.METHOD, "--inception_weights", **file, help="torch-fidelity's Inception weights (default: downloaded)")
    number = "reference images, drawn by --seed (default: all)"
    parser.add(cli.METHOD, "--num_reference", type=cli.positive_int, metavar="N", help=number)
    parser.add(cli.METHOD, "--clip_model", metavar="MODEL", help="folder or hub id of a CLIP model")
    parser.add(cli.METHOD, "--nudenet", action="store_true", help="count exposed body parts with NudeNet (pip install nudenet)")
    parser.add(cli.METHOD, "--nudenet_threshold", type=cli.ratio, default=0.6, help="lowest score of a body part that counts")
    options = {"seed": dict(help="seed of the draw of --num_reference")}
    parser.add_shared("resume", "overwrite", "device", options=options, batch_size=32, seed=1)
    parser.refuse(NOT_HERE)
    args = parser.parse_args(argv)
    if args.save_dir is not None and len(args.sample_path) > 1:
        parser.error("--save_dir takes the numbers of one --sample_path")
    if args.classifier is None and args.clip_model is None and not args.nudenet:
        parser.error("say what to measure: --classifier, --clip_model or --nudenet")
    if args.classifier is None and args.features == "classifier":
        parser.error("--features classifier needs --classifier")
    if args.dataset is not None and args.reference_dir is not None:
        parser.error("--dataset and --reference_dir contradict each other: pass one of them")
    if args.inception_weights is not None and args.features != "inception":
        parser.error(f"--inception_weights contradicts --features {args.features}")
    for name in ("inception_weights", "reference_dir", "classifier_weights"):
        if getattr(args, name) is not None and not getattr(args, name).exists():
            parser.error(f"--{name} {getattr(args, name)} does not exist")
    return args


def main(argv=None):
    args = parse(argv)
    if args.nudenet:
        metrics.nude_detector()  # a missing package is said before anything is measured
    accelerator = trainer.make_accelerator(args.device, "fp32")
    classifier = None
    if args.classifier is not None:
        with accelerator.main_process_first():
            classifier = classifiers.load_classifier(args.classifier, accelerator.device, args.classifier_weights)
    extractor = metrics.register_features(classifier.model) if args.features == "classifier" else metrics.INCEPTION
    measure = functools.partial(measure_samples, args=args, accelerator=accelerator, classifier=classifier, extractor=extractor)
    if args.save_dir is not None:
        return measure_original(args, accelerator, measure)

    names = "features num_reference seed reference_dir dataset forget_class clip_model nudenet nudenet_threshold"
    how = {name: str(getattr(args, name)) for name in names.split()} | {"classifier_sha": classifier and classifier.sha}
    how["data_dir"] = str(args.data_dir and args.data_dir.resolve())
    how["inception_weights"] = args.inception_weights and file_sha(args.inception_weights)

    def measure_one(folder):
        if not is_measured(folder, args, how):
            print(f"{folder}: {write_metrics(folder, folder, measure(folder) | {'how': how})}")

    folders = list(dict.fromkeys(args.sample_path))
    cli.for_each(folders[accelerator.process_index :: accelerator.num_processes], measure_one, accelerator.wait_for_everyone)


def measure_original(args, accelerator, measure):
    """The row `original`: an original's samples, measured on what would be forgotten, into --save_dir."""
    run_folder = RunFolder(args, accelerator)
    if accelerator.is_main_process:
        measured = measure(args.sample_path[0])
        run_folder.begin(kind="evaluation")
        run_folder.finish(write_metrics(run_folder.folder, args.sample_path[0], measured), seconds=run_folder.seconds())
    accelerator.wait_for_everyone()


def load_samples(path):
    """(args of a sample run, [(Row, k, path of its image)])."""
    folder, recorded = read_run(path, "samples")
    data.need(recorded, "model", "model_done", "num_samples", "steps", "seed")
    drawn_with(recorded)
    if recorded["model"].get("method", "original") != "original":
        data.need(recorded["model_done"], "seconds", "peak_memory_mb", "images_seen")
    images = []
    for row in prompts.read_csv(folder / "samples" / "prompts.csv"):
        for k in range(max(1, recorded["num_samples"])):
            images.append((row, k, folder / "samples" / prompts.file_name(row, k)))
            if not images[-1][2].is_file():
                raise RunError(f"{images[-1][2]} is missing: draw the samples again with generate_images.py --overwrite")
    return recorded, images


def drawn_with(recorded):
    """(sampler, guidance scale in words) of a run of generate_images.py. RunError where it does not tell them."""
    options = recorded.get("options", recorded)  # earlier versions knew one family, whose defaults were the flags'
    if "guidance_scales" in options:  # the list of prompts has several
        data.need(options, "sampler")
        return options["sampler"], "per prompt"
    scale = "guidance_scale" if "guidance_scale" in options else "guidance"  # its name in earlier versions
    data.need(options, "sampler", scale)
    return options["sampler"], f"s = {options[scale]:g}"


def check_classes(forgotten, labels, folder):
    """RunError unless the prompts' classes tell a classifier what is forgotten."""
    if not all(labels):
        raise RunError(f"the prompts of {folder} have no column class, by which --classifier could measure: add one to the csv")
    known = {label.casefold() for label in labels}
    unknown = sorted(forgotten - known)
    if unknown or not forgotten:
        said = f"{unknown[0]!r} is no class of the prompts of {folder}" if unknown else f"{folder} was drawn from an original model"
        raise RunError(f"{said}: name with --forget_class which of {', '.join(sorted(known)[:12])} is forgotten")


def measure_samples(folder, *, args, accelerator, classifier, extractor):
    """All metrics of one sample run, and what they depend on, {name: value}."""
    recorded, images = load_samples(folder)
    model, done = recorded["model"], recorded["model_done"]
    labels = [prompts.concept(row) for row, _, _ in images]
    paths = [path for _, _, path in images]
    compared = classifier is not None or args.clip_model is not None or args.reference_dir is not None or args.dataset is not None
    samples = imagesets.Pictures(paths, common_edge(paths)) if compared else None  # NudeNet takes images of any size
    result = {"samples": len(images)}
    # --forget_class, by name or number, or what the model forgot; none for an original
    classes = {str(number): name for number, name in enumerate(model.get("classes") or ())}
    named = [word if word in classes.values() else classes.get(data.unpadded(word), word) for word in args.forget_class or ()]
    forgotten = {name.casefold() for name in named or model.get("forgotten") or ()}
    names = [{(label or "").casefold(), row.prompt.casefold()} for label, (row, _, _) in zip(labels, images, strict=True)]
    if classifier is not None:
        check_classes(forgotten, labels, folder)
        result |= recognition(classifier, samples, labels, forgotten, args.batch_size)
        result |= {"classifier": classifier.name, "classifier_sha": classifier.sha}
    elif compared and (absent := sorted(forgotten.difference(*names))):  # a style has many prompts, and none may be its name
        print(f"{folder} has no class or prompt {absent[0]!r}: if some of its images show it, name their class or prompt by --forget_class")
    retained = [place for place, names_of in enumerate(names) if not names_of & forgotten]
    result["forgotten"] = sorted(forgotten)
    if args.features != "none" and (classifier is not None or args.reference_dir is not None or args.dataset is not None):
        result |= distance(samples, retained, forgotten, model, args, accelerator, extractor)
    if args.clip_model is not None:
        result |= clip_scores(samples, images, labels, set(retained), args, accelerator)
    if args.nudenet:
        found = metrics.nudity(paths, args.nudenet_threshold)
        result |= {name: float(count) for name, count in found.items()}
        result["nudenet_threshold"] = str(args.nudenet_threshold)
    if model.get("method", "original") != "original" and "relearned_images" not in model.get("options", {}):
        result["RTE"] = (done["seconds"] + done.get("mask_seconds", 0.0)) / 60
        result |= {name: float(done[name]) for name in ("peak_memory_mb", "images_seen")}
        if "fraction_changed" in done:
            result["changed"] = 100 * done["fraction_changed"]
    return result


def common_edge(paths):
    """Shorter edge in px of images, at which they are measured. RunError unless all have one size, and one that a model draws."""
    sizes = {}
    for path in paths:
        try:
            with Image.open(path, formats=imagesets.FORMATS) as image:  # reads the header alone
                sizes.setdefault(image.size, path)
        except (OSError, ValueError, Image.DecompressionBombError):
            imagesets.open_image(path)  # says what is wrong
            raise
    (size, first), *others = sizes.items()
    if others:
        both = f"{first} has {size[0]} x {size[1]} px and {others[0][1].name} {others[0][0][0]} x {others[0][0][1]}"
        raise RunError(f"{both}: only --nudenet measures several sizes; generate_images.py --ignore_columns draws one")
    if min(size) < 4 or max(size) > 8 * min(size):
        raise RunError(f"{first} has {size[0]} x {size[1]} px, a shape that cannot be measured: draw the samples again")
    return min(size)


def recognition(classifier, samples, labels, forgotten, batch_size):
    """UA, remaining accuracy and each class's accuracy."""
    known = {name: classifier.label_of(name) for name in dict.fromkeys(labels)}
    parts = torch.arange(len(samples)).split(batch_size)
    logits = torch.cat([classifiers.logits(classifier, samples.read(part.tolist()), batch_size) for part in parts])
    drawn = torch.tensor([known[label] for label in labels])
    return metrics.forgetting(logits, drawn, [label for name, label in known.items() if name.casefold() in forgotten], classifier.classes)


def distance(samples, retained, forgotten, model, args, accelerator, extractor):
    """FID and its relatives of the retained samples against real images; {} with a word about it where there are none."""
    reference, known = None, model.get("concept") or model
    dataset, data_dir = args.dataset or known.get("dataset"), args.data_dir or known.get("data_dir") or "data"
    if args.reference_dir is not None:
        reference = imagesets.load_images(args.reference_dir, samples.size)
    elif dataset not in (None, "captions"):
        found = imagesets.load(dataset, data_dir, samples.size)
        reference = found.train.subset([row for row, label in enumerate(found.y_train) if found.classes[label].casefold() not in forgotten])
    if reference is None:
        print("no FID: pass --reference_dir, a folder of real images, or --dataset")
        return {}
    if args.num_reference is not None:
        order = torch.randperm(len(reference), generator=data.make_generator("reference", args.seed))
        reference = reference.subset(order[: args.num_reference].sort().values.tolist())
    options = {"extractor": extractor, "weights": args.inception_weights, "cuda": accelerator.device.type == "cuda"}
    found = metrics.fidelity(samples.subset(retained), reference, **options)
    return found | {"reference_images": len(reference), "reference_sha": reference.sha()}


def clip_scores(samples, images, labels, retained, args, accelerator):
    """CLIP scores: mean over retained and forgotten images, and by class or group."""
    texts = [row.prompt for row, _, _ in images]
    scores = metrics.clip_scores(samples, texts, args.clip_model, accelerator.device, args.batch_size)
    groups = {"CLIP_score": sorted(retained), "CLIP_score_forgotten": [place for place in range(len(texts)) if place not in retained]}
    for place, label in enumerate(labels):
        if label:
            groups.setdefault(f"CLIP_{label}", []).append(place)
    return {name: float(scores[places].mean()) for name, places in groups.items() if places}


def write_metrics(folder, sample_folder, measured):
    """Write metrics.json, all that table.py reads. measured: {metric: number}. Return a line of figures."""
    _, recorded = read_run(sample_folder, "samples")
    model = recorded["model"]  # {} for a model from elsewhere
    method = model.get("method", "original")
    training = model.get("training") or ({} if model.get("kind") == "unlearn" else model)  # whose --dataset is of what is forgotten
    sampler, scale = drawn_with(recorded)
    source = ", ".join(str(training[name]) for name in ("dataset", "arch") if training.get(name)) or str(model.get("parent", ""))
    features = "Inception" if "FID" in measured else "the classifier" if "feature_distance" in measured else None
    facts = {
        "model": source if training.get("arch") or method != "original" else None,  # an original may come from elsewhere
        "forgotten": ", ".join(measured["forgotten"]),
        "sampler": f"{sampler}, {recorded['steps']} steps, guidance scale {scale}",
        "samples": f"{recorded['num_samples']:,} per prompt",
        "classifier": Path(measured["classifier"]).name if "classifier" in measured else None,
        "features": features and f"{features}, {measured['reference_images']:,} reference images",
    }
    if "relearned_images" in (options := model.get("options", {})):
        facts["relearned"] = "{relearned_images} images of what was forgotten, {steps} steps, lr {lr:g}".format(**options)
    row = describe(model, model.get("seed", recorded["seed"]), facts)
    if model.get("kind") == "unlearn" and "relearned_images" not in options:  # a relearned run holds these of what it came from
        row["options"] |= words_given(model)
    source = {"sample_path": str(sample_folder), "num_samples": recorded["num_samples"], "weights_sha": recorded.get("parent_sha")}
    write_json(folder / "metrics.json", row | measured | source)
    return "  ".join(f"{name} {measured[name]:.2f}" for name in metrics.COLUMNS if name in measured)


if __name__ == "__main__":
    cli.run(main)
