"""What generate_mask.py, unlearn.py and evaluate.py start from: a trained model, its data, and what is forgotten."""

from dataclasses import dataclass
from pathlib import Path

import torch

import data
import models
import trainer
from cli import RunError
from imagesets import load_images
from run_folder import file_sha, read_run

FORGET_FLAGS = ("forget_class", "num_forget", "forget_indices", "split_seed")
TRAINING = ("dataset", "data_dir", "image_size", "val_fraction", "limit", "split_seed", "seed", "epochs", "batch_size", "lr", "schedule")
TRAINING += ("optimizer", "momentum", "weight_decay")  # what a run remembers of its original's training


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


def load_task(model_path, forget, accelerator, data_dir=None, kind="train"):
    """Rebuild the model of a run and split its data. forget: {flag: value} of the four FORGET_FLAGS.

    The run must be of that kind: "train", or "unlearn", which carries its original's description along. Raises RunError for
    anything missing, unfinished or contradictory.
    """
    folder, recorded = read_run(model_path)
    if recorded.get("kind") != kind:
        raise RunError(
            f"{folder} is a run of kind {recorded.get('kind')}, where one of kind {kind} is needed (to forget more, start from "
            "the original and forget both sets together)"
        )
    architecture, classes, training = recorded["architecture"], recorded["classes"], recorded.get("training", recorded)
    data_dir = Path(data_dir or training["data_dir"])
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = load_images(training["dataset"], data_dir, training["image_size"], accelerator.device)
    shape = {"channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}
    if images.classes != classes or shape.items() - architecture.items():
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other classes or another image size")
    model = models.build(**architecture, seed=0)
    models.load_weights(model, folder / "model.safetensors")

    train, val = data.train_and_validation(images.y_train, training["split_seed"], training["val_fraction"], training["limit"])
    indices = find_forget_set(forget, train, images, training)
    forgotten = data.class_numbers(forget["forget_class"], classes) if forget["forget_class"] and forget["num_forget"] is None else []
    sha = data.forget_sha(indices)
    if recorded.get("forget_sha", sha) != sha:
        raise RunError(f"the forget set of {folder} cannot be found again: the data or the index file has changed since")
    facts = {
        "architecture": architecture,
        "classes": classes,
        "training": {name: value for name, value in training.items() if name in TRAINING},
        "parent": str(folder),
        "parent_sha": file_sha(folder / "model.safetensors"),
        "forget_sha": sha,
        "num_forgotten": len(indices),
    }
    return Task(
        trainer.prepare(model, accelerator),
        training,
        images.train(indices, "forget"),
        images.train(train[~torch.isin(train, indices)], "retain"),
        images.train(val, "val"),
        images.test(),
        forgotten,
        facts,
    )


def find_forget_set(forget, train, images, training):
    """The indices that the forget flags name, out of the training indices `train`."""
    split_seed = training["split_seed"] if forget["split_seed"] is None else forget["split_seed"]
    file = Path(forget["forget_indices"]) if forget["forget_indices"] else None
    return data.forget_indices(train, images.y_train, images.classes, forget["forget_class"], forget["num_forget"], file, split_seed)


def forget_flags(args):
    """{flag: value} of the FORGET_FLAGS."""
    return {name: getattr(args, name) for name in FORGET_FLAGS}
