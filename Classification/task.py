"""What generate_mask.py, unlearn.py and evaluate.py start from: a trained model, its data, and what is forgotten."""

import argparse
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import torch

import cli
import data
import imagesets
import models
import networks
import trainer
import weights
from cli import RunError
from files import file_sha, read_json
from run_folder import moved, read_run
from table import describe

DEVICE_BYTES = 2 * 10**9  # images of up to that many bytes are kept on the device by default
DATA_ON = dict(choices=("host", "device"), help="where images are kept (default: on the device up to 2 GB, as uint8)")
EVAL_BATCH_SIZE = dict(type=cli.positive_int, metavar="N", help="images per forward pass (default: 1000 at 32 px, fewer for larger images)")
NORMALISE = (
    "how images in [0, 1] are scaled: data (mean and standard deviation of the training images), imagenet (those of ImageNet), none "
)
NORMALISE += "(as they are), or numbers M,M,M/S,S,S (default: data; weights at --model_path use the numbers that they carry, and need this "
NORMALISE += "flag if they carry none)"
NOT_HERE = {  # flags of the paper's own repository
    "gpu": "write --device cuda, and choose the GPU with CUDA_VISIBLE_DEVICES",
    "workers": "leave it out, all images are kept in memory",
    "num_workers": "leave it out, all images are kept in memory",
    "train_seed": "write --seed",
    "decreasing_lr": "write --schedule step, which drops the rate at 91/182 and 136/182 of the run",
    "no-aug": "write --no-augment (unlearn.py) or --crop 0 --no_flip (train.py), masks and measurements never augment",
    "no-l1-epochs": "leave it out, the weight of the L1 norm falls from the first epoch on",
    "warmup": "write --schedule linear, which warms up for 15 % of the run",
    "print_freq": "leave it out, log.csv has a row every 20 steps",
    "num_classes": "leave it out, the data set tells",
    "input_size": "leave it out, or write --image_size for --dataset folder",
    "unlearn_epochs": "leave it out, the mask is one exact gradient over the forget set",
    "unlearn_lr": "leave it out, the mask is one exact gradient over the forget set",
    "path": "write --mask_path",
    "mask": "write --model_path",
    "indexes_to_replace": "write them into a file and name it with --forget_indices",
    "checkpoint": "write --model_path",
}

FORGET_FLAGS = ("forget_class", "num_forget", "forget_indices", "split_seed")
HOW = ("arch", "dataset", "data_on")  # further flags of load_task: what the run knows, and where images are kept
TRAINING = ("dataset", "data_dir", "image_size", "val_fraction", "limit", "split_seed", "seed", "epochs", "batch_size", "lr", "schedule")
TRAINING += ("crop", "no_flip", "optimizer", "momentum", "weight_decay", "data_sha", "cwd")  # what a run remembers of its original


@dataclass
class Task:
    """model: on its device; build(seed): a new one; training: the original's flags; facts: for args.json.

    forgotten_classes: labels that are forgotten whole, of which no training image is retained.
    """

    model: torch.nn.Module
    build: object
    training: dict
    forget: data.Split
    retain: data.Split
    val: data.Split
    test: data.Split
    forgotten_classes: list
    facts: dict


def load_task(model_path, forget, accelerator, data_dir=None, cache_dir=None, kind="train"):
    """Rebuild the model of a run and split its data. forget: {flag: value} of the four FORGET_FLAGS and, where given, of HOW.

    The run must be of that kind: "train", or "unlearn", which carries its original's description along. Raises RunError for
    anything missing, unfinished or contradictory.
    """
    folder, recorded = read_run(model_path, kind)
    architecture, classes, training = recorded["architecture"], recorded["classes"], recorded.get("training", recorded)
    if forget.get("dataset") not in (None, training["dataset"]):
        raise RunError(f"{folder} was trained on {training['dataset']}, not on {forget['dataset']}: leave --dataset out")
    build = functools.partial(models.build, **architecture | {"arch": named_architecture(folder, architecture, forget.get("arch"))})
    data_dir = data_dir or moved(training["data_dir"], recorded, folder, training.get("cwd"))
    with accelerator.main_process_first():  # which writes the cache that the others read
        where = (accelerator.device, cache_dir, forget.get("data_on"))
        images = load_images(training["dataset"], data_dir, training["image_size"], *where)
    shape = {"channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}
    if images.classes != classes or shape.items() - architecture.items():
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other classes or another image size")
    if training.get("data_sha", images.sha) != images.sha:
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other images or labels")
    model = build(seed=0)
    parent_sha = file_sha(folder / "model.safetensors")  # before it is read: evaluate.py asks whether it was replaced since
    weights.load(model, folder / "model.safetensors")

    train, val = data.train_and_validation(images.y_train, training["split_seed"], training["val_fraction"], training["limit"])
    split_seed = training["split_seed"] if forget["split_seed"] is None else forget["split_seed"]
    file = forget["forget_indices"] and Path(forget["forget_indices"])
    if file and kind == "unlearn":
        file = moved(file, recorded, folder)
    named = forget["forget_class"], forget["num_forget"], file, split_seed
    indices = data.forget_indices(train, images.y_train, classes, *named, images.files)
    sha = data.forget_sha(indices)
    if recorded.get("forget_sha", sha) != sha:
        raise RunError(f"the forget set of {folder} cannot be found again: the data or the index file has changed since")
    remembered = {name: value for name, value in training.items() if name in TRAINING}
    facts = {"architecture": architecture, "classes": classes, "training": remembered, "parent": str(folder)}
    facts |= {"parent_sha": parent_sha, "forget_sha": sha, "num_forgotten": len(indices)}
    splits = images.train(indices, "forget"), images.train(train[~torch.isin(train, indices)], "retain"), images.train(val, "val")
    gone, kept = (split.labels.unique() for split in splits[:2])
    forgotten = gone[~torch.isin(gone, kept)].tolist()  # whole classes, however they were named
    return Task(trainer.prepare(model, accelerator), build, training, *splits, images.test(), forgotten, facts)


def named_architecture(folder, architecture, named):
    """The `arch` to build: that of the run in `folder`, or the file that the command line names. Its code runs only where it is named."""
    arch = architecture["arch"]
    if named is not None and networks.without_folder(named) != arch:
        raise RunError(f"{folder} is of --arch {arch}, not {named}: leave --arch out, or name that")
    if networks.own_file(arch):
        if named is None:
            raise RunError(f"{folder} is of {arch}, whose code runs only where you name it: pass --arch FOLDER/{arch}")
        architecture["source_sha"]  # a Record raises RunError for what it lacks
    return named or arch


def load_images(dataset, data_dir, image_size, device, cache_dir=None, data_on=None):
    """The Images of a data set. Their labels are on the device. They are there too, or on the host: data_on, by default by their size."""
    images = imagesets.load_images(dataset, data_dir, image_size, cache_dir=cache_dir)
    on_device = ["y_train", "y_test"]
    if data_on == "device" or (data_on is None and images.x_train.nbytes + images.x_test.nbytes <= DEVICE_BYTES):
        on_device += ["x_train", "x_test"]
    return dataclasses.replace(images, **{name: getattr(images, name).to(device) for name in on_device})


def dataset(name):
    return {"TinyImagenet": "tiny_imagenet"}.get(name, name)  # as the paper's own repository spells it


crop = cli.number(int, lambda value: 0 <= value <= 64, "0 to 64")


def normalisation(text):
    """The value of --normalise: a word, or (means, standard deviations) of M,M,M/S,S,S."""
    if text in ("data", "imagenet", "none"):
        return text
    try:
        mean, std = ([float(number) for number in half.split(",")] for half in text.split("/"))
    except ValueError:
        mean, std = [], [0.0]
    if len(mean) != len(std) or not all(abs(value) < 1000 for value in mean + std) or min(std) < 1e-6:
        raise argparse.ArgumentTypeError(f"must be data, imagenet, none, or as many means as positive deviations, M,M,M/S,S,S, not {text}")
    return mean, std


def load_unlearned(folder, recorded, accelerator, args):
    """The Task of a run of unlearn.py whose args.json is `recorded`. args: the flags of a script, HOW among them."""
    flags = {name: getattr(args, name) for name in HOW} | {name: recorded[name] for name in FORGET_FLAGS}
    return load_task(folder, flags, accelerator, args.data_dir, args.cache_dir, "unlearn")


def unlearned_runs(folder):
    """{name of a table's row: [(run folder, its args.json)]} of the finished runs of unlearn.py below a folder.

    Raises RunError for none, for one that has not finished, and where runs cannot be compared.
    """
    groups, options, copies, tasks = {}, {}, {}, {}
    for path in sorted(folder.rglob("args.json")):
        if read_json(path).get("kind") != "unlearn":
            continue
        run, recorded = read_run(path.parent, "unlearn")
        row = describe(recorded, recorded["training"]["seed"], {})
        groups.setdefault(row["method"], []).append((run, recorded))
        if options.setdefault(row["method"], row["options"]) != row["options"]:
            raise RunError(f"runs of {row['method']} below {folder} differ in their flags: name a folder that holds one setting")
        if (other := copies.setdefault((row["method"], file_sha(run / "model.safetensors")), run)) != run:
            advice = "train each with a --seed of its own" if row["method"] == "retrain" else "remove one of them"
            raise RunError(f"{other} and {run} are one model, not two: {advice}")
        forgotten = sorted(set(data.class_numbers(recorded["forget_class"] or [], recorded["classes"])))
        done = recorded["training"]["dataset"], recorded["architecture"]["arch"], recorded["num_forgotten"], forgotten
        tasks.setdefault(str(done), run)
    if len(tasks) > 1:
        listed = "; ".join(f"{run} {done}" for done, run in tasks.items())
        raise RunError(f"{folder} holds runs that cannot be compared, by data set, architecture, number and classes forgotten: {listed}")
    if not groups:
        raise RunError(f"there are no finished runs of unlearn.py below {folder}")
    return groups


def amount(text):
    """The value of --num_forget: '4500' is a count, '0.1' a fraction."""
    value = float(text)
    if value.is_integer() and 1 <= value <= cli.COUNT:
        return int(value)
    if 0 < value < 1:
        return value
    raise argparse.ArgumentTypeError(f"must be a whole number of samples or a fraction below 1, not {text}")


def add_how_flags(parser):
    """Add the flags of HOW."""
    own = dict(type=models.architecture, help="architecture of the run; only FILE.py:CLASS must be given again, because its code is run")
    parser.add(cli.DATA, "--arch", **own)
    parser.add(cli.DATA, "--dataset", type=dataset, choices=imagesets.DATASETS, help="as the run was trained: need not be given")
    parser.add(cli.DATA, "--data_on", **DATA_ON)


def add_forget_flags(parser):
    """Add the FORGET_FLAGS, and those of HOW."""
    add_how_flags(parser)
    parser.refuse(NOT_HERE)
    parser.add_shared("forget_class")
    number = dict(type=amount, metavar="N", help="forget N random samples (a fraction if below 1), of --forget_class if given")
    parser.add(cli.FORGET, "--num_forget", "--num_indexes_to_replace", **number)
    lines = "forget the samples in FILE: indices (.npy, or one per line), or paths of own images"
    parser.add(cli.FORGET, "--forget_indices", type=Path, metavar="FILE", help=lines)
    parser.add(cli.FORGET, "--split_seed", type=cli.seed, metavar="SEED", help="seed of a random forget set (default: the original's)")


def check_forget_flags(parser, args):
    """parser.error unless the flags name one forget set."""
    if args.forget_class == ["-1"] and (args.num_forget or args.forget_indices):
        data.say("--class_to_replace -1: of any class, as in the paper's repository")
        args.forget_class = None
    if args.forget_indices is not None and (args.forget_class or args.num_forget):
        parser.error("--forget_indices cannot be combined with --forget_class or --num_forget")
    if args.forget_indices is None and not args.forget_class and args.num_forget is None:
        parser.error("name what to forget: --forget_class, --num_forget or --forget_indices")


def forget_flags(args):
    """{flag: value} of the FORGET_FLAGS and of HOW."""
    return {name: getattr(args, name) for name in (*FORGET_FLAGS, *HOW)}
