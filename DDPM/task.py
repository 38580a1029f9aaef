"""What the scripts start from: a trained model, its data, and what is forgotten."""

from dataclasses import dataclass
from pathlib import Path

import torch

import data
import imagesets
import models
import trainer
from cli import RunError
from files import file_sha
from run_folder import moved, read_run

TRAINING = ("dataset", "data_dir", "image_size", "limit", "seed", "steps", "batch_size", "lr", "schedule", "optimizer", "weight_decay")
TRAINING += ("class_dropout", "ema", "grad_clip", "data_sha")  # what a run remembers of its original's training


@dataclass
class Task:
    """model: on its device; training: the original's flags; facts: for args.json."""

    model: torch.nn.Module
    training: dict
    classes: data.Classes
    forget: data.Split
    retain: data.Split
    facts: dict


def shape_of(images):
    return {"num_classes": len(images.classes), "channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}


def load_images(dataset, data_dir, image_size, limit, seed, accelerator, cache_dir=None):
    """A data set's Images. Of the training images at most `limit`, drawn by `seed`."""
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = imagesets.load_images(dataset, Path(data_dir), image_size, accelerator.device, cache_dir)
    if limit is None or limit >= len(images.y_train):
        return images
    order = torch.randperm(len(images.y_train), generator=data.make_generator("limit", seed))[:limit].sort().values
    few = images.train(order, "train")
    return imagesets.Images(few.images, few.labels, images.x_test, images.y_test, images.classes, images.sha)


def load_model(model_path, accelerator):
    """Return (model, folder, args) of a run of train.py or unlearn.py. Raises RunError for any other, unfinished or broken one."""
    folder, recorded = read_run(model_path, "train", "unlearn")
    model = models.build_unet(**recorded["architecture"], seed=0)
    models.load_weights(model, folder / "model.safetensors")
    return trainer.prepare(model, accelerator), folder, recorded


def load_task(model_path, forget_class, accelerator, data_dir=None, cache_dir=None):
    """Rebuild the original of a run of train.py and split its data.

    Raises RunError for anything missing, unfinished or contradictory, and for a model that has forgotten already.
    """
    folder, recorded = read_run(model_path, "train")
    if recorded["method"] != "original":
        raise RunError(f"{folder} is no original model: it was trained with --retain_only")
    training = {name: recorded.get(name) if name == "data_sha" else recorded[name] for name in TRAINING}  # older runs do not tell it
    data_dir = data_dir or moved(training["data_dir"], recorded, folder)
    images = load_images(training["dataset"], data_dir, training["image_size"], training["limit"], training["seed"], accelerator, cache_dir)
    if images.classes != recorded["classes"] or shape_of(images).items() - recorded["architecture"].items():
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other classes or another image size")
    if training["data_sha"] not in (None, images.sha):
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other images or labels")
    classes = data.forget_classes(forget_class, images.classes)
    forget, retain = data.split(images, classes)
    facts = {"architecture": recorded["architecture"], "classes": images.classes, "forgotten": list(classes.forgotten)}
    facts |= {"training": training, "parent": str(folder), "parent_sha": file_sha(folder / "model.safetensors")}
    facts |= {"forget_sha": data.forget_sha(forget.indices), "num_forgotten": len(forget)}
    return Task(load_model(folder, accelerator)[0], training, classes, forget, retain, facts)
