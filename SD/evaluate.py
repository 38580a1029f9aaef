"""Measure from samples how far something is forgotten, and what happened to the rest. Writes metrics.json into each sample run.

    python evaluate.py --sample_path runs/church/samples/salun --classifier resnet50
    python evaluate.py --sample_path runs/church/samples/original --forget_class church --classifier resnet50 --save_dir runs/church/before
    python evaluate.py --sample_path runs/nudity/samples/salun --nudenet --clip_model openai/clip-vit-large-patch14

--classifier counts how many images show the class that was asked for, in the column class of the prompts; the others' accuracies are the
collateral damage. Images of real things for the distance (FID) come from --reference_dir, or from the data set that the model's run
knows. --clip_model tells how well images fit their prompts, by class or group. --nudenet counts bare body parts. What was forgotten is
known from the model that drew the samples; --forget_class says it where that is no class of the prompts, and for samples of the original.
"""

import functools
from pathlib import Path

import torch

import data
import datasets
import engine
import job
import judges
import metrics
import prompts
import run

PACKAGES = (*job.PACKAGES, "torch-fidelity", "nudenet")


def parse(argv=None):
    parser = run.parser(__doc__)
    path = {"type": Path, "metavar": "DIR"}
    parser.add_argument("--sample_path", nargs="+", type=Path, required=True, metavar="RUN", help="runs of generate_images.py to measure")
    parser.add_argument("--classifier", metavar="NAME", help="resnet50, efficientnet_lite0 (ImageNet), or a run of train_classifier.py")
    parser.add_argument("--classifier_weights", type=Path, metavar="FILE", help="weights of an ImageNet classifier (default: downloaded)")
    run.add_flags(parser, "save_dir", "forget_class")
    parser.add_argument("--reference_dir", **path, help="real images for the distance (default: a data set's retained classes)")
    parser.add_argument("--dataset", choices=datasets.DATASETS, help="data set of the real images (default: the model's own)")
    run.add_flags(parser, "data_dir")
    parser.add_argument(
        "--features",
        choices=("inception", "classifier", "none"),
        default="inception",
        help="of the distance. classifier: for where Inception cannot be had; no FID then",
    )
    parser.add_argument("--inception_weights", type=Path, metavar="FILE", help="torch-fidelity's Inception weights (default: downloaded)")
    parser.add_argument("--num_reference", type=run.positive_int, metavar="N", help="reference images, drawn by --seed (default: all)")
    parser.add_argument("--clip_model", metavar="MODEL", help="folder or hub id of a CLIP model")
    parser.add_argument("--nudenet", action="store_true", help="count bare body parts with NudeNet (pip install nudenet)")
    parser.add_argument("--nudenet_threshold", type=run.ratio, default=0.6, help="least score of a counted body part")
    run.add_flags(parser, "resume", "overwrite", "device", batch_size=32, seed=1)
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
    accelerator = engine.make_accelerator(args.device, "fp32")
    judge = None
    if args.classifier is not None:
        with accelerator.main_process_first():
            judge = judges.open_judge(args.classifier, accelerator.device, args.classifier_weights)
    extractor = metrics.register_features(judge.model) if args.features == "classifier" else None
    measure = functools.partial(measure_samples, args=args, accelerator=accelerator, judge=judge, extractor=extractor)
    if args.save_dir is not None:
        return measure_apart(args, accelerator, measure)
    for folder in args.sample_path[accelerator.process_index :: accelerator.num_processes]:
        if (folder / "metrics.json").is_file() and not args.overwrite:
            if not args.resume:
                raise run.RunError(f"{folder} has metrics.json already: pass --overwrite to measure again, --resume to skip it")
            continue
        report(folder, measure(folder))
    accelerator.wait_for_everyone()


def measure_apart(args, accelerator, measure):
    """Measure an original's samples against what would be forgotten, into --save_dir."""
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")
    if accelerator.is_main_process:
        result = measure(args.sample_path[0])
        _, recorded = run.read_run(args.sample_path[0])
        drawn = {name: recorded[name] for name in ("model", "num_samples", "sampler", "steps", "guidance")}
        record.begin(PACKAGES, kind="evaluation", sampled=drawn, **job.where(accelerator))
        report(record.folder, result)
        record.finish(seconds=record.seconds())
    accelerator.wait_for_everyone()


def open_samples(path):
    """(args of a sample run, [(Row, k, path of its image)])."""
    folder, recorded = run.read_run(path)
    if recorded.get("kind") != "samples":
        raise run.RunError(f"{folder} is a run of kind {recorded.get('kind')}, where one of generate_images.py is needed")
    rows = prompts.read_csv(folder / "samples" / "prompts.csv")
    images = [(row, k, folder / "samples" / prompts.file_name(row, k)) for row in rows for k in range(recorded["num_samples"])]
    missing = next((image for _, _, image in images if not image.is_file()), None)
    if missing is not None:
        raise run.RunError(f"{missing} is missing: draw the samples again with generate_images.py --overwrite")
    return recorded, images


def width_of(path):
    """Width of an image in px: the size at which all samples are looked at."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.width
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNGs
        raise run.RunError(f"{path} cannot be read as an image ({error}): remove it and draw it again") from error


def forgotten_names(args, model):
    """Casefolded names of what counts as forgotten: --forget_class, or what the model forgot; none for an original."""
    return {name.casefold() for name in args.forget_class or model.get("forgotten") or ()}


def check_classes(forgotten, labels, folder):
    """RunError unless the prompts' classes tell a classifier what is forgotten."""
    if not all(labels):
        raise run.RunError(f"the prompts of {folder} have no column class, by which --classifier could judge: add one to the csv")
    known = {label.casefold() for label in labels}
    unknown = sorted(forgotten - known)
    if unknown or not forgotten:
        said = f"{unknown[0]!r} is no class of the prompts of {folder}" if unknown else f"{folder} was drawn from an original model"
        raise run.RunError(f"{said}: say with --forget_class which of {', '.join(sorted(known)[:12])} is forgotten")


def measure_samples(folder, *, args, accelerator, judge, extractor):
    """All metrics of one sample run, {name: value}."""
    recorded, images = open_samples(folder)
    model, done = recorded["model"], recorded["model_done"]
    labels = [prompts.concept(row) for row, _, _ in images]
    paths = [path for _, _, path in images]
    samples = datasets.Pictures(paths, width_of(paths[0]))
    result = {"samples": len(images), "sampled": {name: recorded[name] for name in ("sampler", "steps", "guidance", "num_samples")}}
    forgotten = forgotten_names(args, model)
    if judge is not None:
        check_classes(forgotten, labels, folder)
        result |= judged(judge, samples, labels, forgotten, args.batch_size)
        result |= {"classifier": judge.name, "classifier_sha": judge.sha}
    said = [{(label or "").casefold(), row.prompt.casefold()} for label, (row, _, _) in zip(labels, images, strict=True)]
    retained = [place for place, names in enumerate(said) if not names & forgotten]
    result["forgotten"] = sorted(forgotten)
    if args.features != "none" and (judge is not None or args.reference_dir is not None or args.dataset is not None):
        result |= distance(samples, retained, forgotten, model, args, accelerator, extractor)
    if args.clip_model is not None:
        result |= fit_of_prompts(samples, images, labels, set(retained), args, accelerator)
    if args.nudenet:
        found = metrics.nudity(paths, args.nudenet_threshold)
        result |= {name: float(count) for name, count in found.items()}
        result["nudenet_threshold"] = str(args.nudenet_threshold)
    if model.get("method", "original") != "original":
        result["RTE"] = (done["seconds"] + done.get("mask_seconds", 0.0)) / 60
        result |= {name: float(done[name]) for name in ("peak_memory_mb", "images_seen")}
        if "fraction_changed" in done:
            result["changed"] = 100 * done["fraction_changed"]
    return result


def judged(judge, samples, labels, forgotten, batch_size):
    """UA, remaining accuracy and each class's accuracy."""
    names = list(dict.fromkeys(labels))
    known = dict(zip(names, judge.labels_of(names), strict=True))
    parts = torch.arange(len(samples)).split(batch_size)
    logits = torch.cat([judges.logits(judge, samples.read(part.tolist()), batch_size) for part in parts])
    asked = torch.tensor([known[label] for label in labels])
    return metrics.forgetting(logits, asked, [known[name] for name in names if name.casefold() in forgotten], judge.classes)


def distance(samples, retained, forgotten, model, args, accelerator, extractor):
    """FID and its relatives of the retained samples against real images; {} with a word about it where there are none."""
    reference, known = None, model.get("concept") or model
    dataset, data_dir = args.dataset or known.get("dataset"), args.data_dir or known.get("data_dir") or "data"
    if args.reference_dir is not None:
        reference = datasets.load_images(args.reference_dir, samples.size)
    elif dataset not in (None, "captions"):
        found = datasets.load(dataset, data_dir, samples.size)
        reference = found.train.subset([row for row, label in enumerate(found.y_train) if found.classes[label].casefold() not in forgotten])
    if reference is None:
        print("no FID: pass --reference_dir, a folder of real images, or --dataset")
        return {}
    if args.num_reference is not None:
        order = torch.randperm(len(reference), generator=data.generator("reference", args.seed))
        reference = reference.subset(order[: args.num_reference].sort().values.tolist())
    chosen = {"extractor": extractor} if extractor else {"weights": args.inception_weights}
    found = metrics.fidelity(samples.subset(retained), reference, **chosen, cuda=accelerator.device.type == "cuda")
    return found | {"reference_images": len(reference), "reference_sha": reference.sha()}


def fit_of_prompts(samples, images, labels, retained, args, accelerator):
    """CLIP scores: mean over retained and forgotten images, and by class or group."""
    texts = [row.prompt for row, _, _ in images]
    scores = metrics.clip_scores(samples, texts, args.clip_model, accelerator.device, args.batch_size)
    groups = {"CLIP_score": sorted(retained), "CLIP_score_forgotten": [place for place in range(len(texts)) if place not in retained]}
    for place, label in enumerate(labels):
        if label:
            groups.setdefault(f"CLIP_{label}", []).append(place)
    return {name: float(scores[places].mean()) for name, places in groups.items() if places}


def report(folder, result):
    run.write_json(folder / "metrics.json", result)
    print(f"{folder}: " + "  ".join(f"{name} {result[name]:.2f}" for name in metrics.DEFINITIONS if name in result))


if __name__ == "__main__":
    run.cli(main)
