"""What generate_mask.py, unlearn.py and evaluate.py start from: a trained model, its data, and what is to be forgotten."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

import data
import datasets
import engine
import models
import run

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "safetensors")
FORGET_FLAGS = ("forget_class", "num_forget", "forget_indices", "split_seed")
TRAINING = (  # what a run remembers of its original's training
    *("dataset", "data_dir", "image_size", "val_fraction", "limit", "split_seed", "seed", "epochs", "batch_size"),
    *("lr", "schedule", "optimizer", "momentum", "weight_decay"),
)
load_images = functools.lru_cache(maxsize=1)(datasets.load_images)


@dataclass
class Job:
    """model: on its device; architecture: what models.build takes; training: the original's flags; splits; facts: for args.json."""

    model: torch.nn.Module
    architecture: dict
    training: dict
    forget: data.Split
    retain: data.Split
    val: data.Split
    test: data.Split
    forgotten_classes: list
    facts: dict


def open_job(model_path, flags, accelerator, data_dir=None, kind="train"):
    """Rebuild the model of a run and split its data. `flags` has the four FORGET_FLAGS.

    The run must be of that kind: "train", or "unlearn", which carries its original's description along. Raises RunError for
    anything missing, unfinished or contradictory.
    """
    folder, recorded = run.read_run(model_path)
    if recorded.get("kind") != kind:
        raise run.RunError(
            f"{folder} is a run of kind {recorded.get('kind')}, where one of kind {kind} is needed (to forget more, start from "
            "the original and forget both sets together)"
        )
    architecture, classes = recorded["architecture"], recorded["classes"]
    training = recorded.get("training", recorded)
    data_dir = Path(data_dir or training["data_dir"])
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = load_images(training["dataset"], data_dir, training["image_size"], accelerator.device)
    shape = {"channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}
    if images.classes != classes or any(architecture[name] != size for name, size in shape.items()):
        raise run.RunError(f"the data in {data_dir} is not what {folder} was trained on: other classes or another image size")
    model = models.build(**architecture, seed=0)
    models.load_weights(model, folder / "model.safetensors")

    train, val = data.train_and_validation(images, training["split_seed"], training["val_fraction"], training["limit"])
    split_seed = training["split_seed"] if flags["split_seed"] is None else flags["split_seed"]
    indices = Path(flags["forget_indices"]) if flags["forget_indices"] else None
    rows = data.forget_rows(train, classes, flags["forget_class"], flags["num_forget"], indices, split_seed)
    whole_classes = data.class_numbers(flags["forget_class"], classes) if flags["forget_class"] and flags["num_forget"] is None else []
    sha = data.forget_sha(rows)
    if recorded.get("forget_sha", sha) != sha:
        raise run.RunError(f"the forget set of {folder} cannot be found again: the data or the index file has changed since")
    facts = {
        "architecture": architecture,
        "classes": classes,
        "training": {name: value for name, value in training.items() if name in TRAINING},
        "parent": str(folder),
        "parent_sha": run.file_sha(folder / "model.safetensors"),
        "forget_sha": sha,
        "num_forgotten": len(rows),
        "processes": accelerator.num_processes,
        "computed_on": str(accelerator.device),
        "autocast": accelerator.mixed_precision,
    }
    return Job(
        engine.place(model, accelerator),
        architecture,
        training,
        train.take(rows),
        train.take(train.rows[~torch.isin(train.rows, rows)]),
        val,
        data.Split(images.x_test, images.y_test, torch.arange(len(images.y_test))),
        whole_classes,
        facts,
    )


def forget_flags(args):
    return {name: getattr(args, name) for name in FORGET_FLAGS}
