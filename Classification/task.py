"""What generate_mask.py, unlearn.py and evaluate.py start from: a trained model, its data, and what is forgotten."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

import cli
import data
import models
import trainer
from cli import RunError
from files import file_sha, read_json
from imagesets import load_images
from run_folder import moved, read_run
from table import describe

FORGET_FLAGS = ("forget_class", "num_forget", "forget_indices", "split_seed")
TRAINING = ("dataset", "data_dir", "image_size", "val_fraction", "limit", "split_seed", "seed", "epochs", "batch_size", "lr", "schedule")
TRAINING += ("optimizer", "momentum", "weight_decay", "data_sha")  # what a run remembers of its original's training


@dataclass
class Task:
    """model: on its device; training: the original's flags; forgotten_classes: labels; facts: for args.json."""

    model: torch.nn.Module
    training: dict
    forget: data.Split
    retain: data.Split
    val: data.Split
    test: data.Split
    forgotten_classes: list
    facts: dict


def load_task(model_path, forget, accelerator, data_dir=None, cache_dir=None, kind="train"):
    """Rebuild the model of a run and split its data. forget: {flag: value} of the four FORGET_FLAGS.

    The run must be of that kind: "train", or "unlearn", which carries its original's description along. Raises RunError for
    anything missing, unfinished or contradictory.
    """
    folder, recorded = read_run(model_path, kind)
    architecture, classes, training = recorded["architecture"], recorded["classes"], recorded.get("training", recorded)
    data_dir = data_dir or moved(training["data_dir"], recorded, folder)
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = load_images(training["dataset"], data_dir, training["image_size"], accelerator.device, cache_dir)
    shape = {"channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}
    if images.classes != classes or shape.items() - architecture.items():
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other classes or another image size")
    if training.get("data_sha", images.sha) != images.sha:
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other images or labels")
    model = models.build(**architecture, seed=0)
    models.load_weights(model, folder / "model.safetensors")

    train, val = data.train_and_validation(images.y_train, training["split_seed"], training["val_fraction"], training["limit"])
    split_seed = training["split_seed"] if forget["split_seed"] is None else forget["split_seed"]
    file = forget["forget_indices"] and Path(forget["forget_indices"])
    if file and kind == "unlearn":
        file = moved(file, recorded, folder)
    indices = data.forget_indices(train, images.y_train, classes, forget["forget_class"], forget["num_forget"], file, split_seed)
    forgotten = data.class_numbers(forget["forget_class"], classes) if forget["forget_class"] and forget["num_forget"] is None else []
    sha = data.forget_sha(indices)
    if recorded.get("forget_sha", sha) != sha:
        raise RunError(f"the forget set of {folder} cannot be found again: the data or the index file has changed since")
    remembered = {name: value for name, value in training.items() if name in TRAINING}
    facts = {"architecture": architecture, "classes": classes, "training": remembered, "parent": str(folder)}
    facts |= {"parent_sha": file_sha(folder / "model.safetensors"), "forget_sha": sha, "num_forgotten": len(indices)}
    splits = images.train(indices, "forget"), images.train(train[~torch.isin(train, indices)], "retain"), images.train(val, "val")
    return Task(trainer.prepare(model, accelerator), training, *splits, images.test(), forgotten, facts)


def load_unlearned(folder, recorded, accelerator, data_dir=None, cache_dir=None):
    """The Task of a run of unlearn.py whose args.json is `recorded`."""
    flags = {name: recorded[name] for name in FORGET_FLAGS}
    return load_task(folder, flags, accelerator, data_dir, cache_dir, "unlearn")


def unlearned_runs(folder):
    """{name of a table's row: [(run folder, its args.json)]} of the finished runs of unlearn.py below a folder.

    Raises RunError for none, and where runs of one method differ in their flags.
    """
    groups, options = {}, {}
    for path in sorted(folder.rglob("args.json")):
        recorded = read_json(path)
        if recorded.get("kind") != "unlearn" or not (path.parent / "done.json").is_file():
            continue
        row = describe(recorded, recorded["training"]["seed"], {})
        groups.setdefault(row["method"], []).append((path.parent, recorded))
        if options.setdefault(row["method"], row["options"]) != row["options"]:
            raise RunError(f"runs of {row['method']} below {folder} differ in their flags: name a folder that holds one setting")
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


def add_forget_flags(parser):
    parser.add_shared("forget_class")
    number = dict(type=amount, metavar="N", help="forget N random samples (a fraction if below 1), of --forget_class if given")
    parser.add(cli.FORGET, "--num_forget", "--num_indexes_to_replace", **number)
    file = dict(type=Path, metavar="FILE", help="forget the samples in FILE (.npy, or one per line)")
    parser.add(cli.FORGET, "--forget_indices", **file)
    parser.add(cli.FORGET, "--split_seed", type=cli.seed, metavar="SEED", help="seed of a random forget set (default: the original's)")


def check_forget_flags(parser, args):
    """parser.error unless the flags name one forget set."""
    if args.forget_indices is not None and (args.forget_class or args.num_forget):
        parser.error("--forget_indices cannot be combined with --forget_class or --num_forget")
    if args.forget_indices is None and not args.forget_class and args.num_forget is None:
        parser.error("name what to forget: --forget_class, --num_forget or --forget_indices")


def forget_flags(args):
    """{flag: value} of the FORGET_FLAGS."""
    return {name: getattr(args, name) for name in FORGET_FLAGS}
