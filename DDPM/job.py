"""What the scripts start from: a trained model, its data, and what is to be forgotten."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

import data
import datasets
import engine
import models
import run

PACKAGES = ("torch", "torchvision", "diffusers", "accelerate", "numpy", "safetensors")
TRAINING = (  # what a run remembers of its original's training
    *("dataset", "data_dir", "image_size", "limit", "seed", "steps", "batch_size", "lr", "schedule", "optimizer", "weight_decay"),
    *("class_dropout", "ema", "grad_clip"),
)
load_images = functools.lru_cache(maxsize=1)(datasets.load_images)


@dataclass
class Job:
    """model: on its device; architecture: what models.build_unet takes; training: the original's flags; splits; facts: for args.json."""

    model: torch.nn.Module
    architecture: dict
    training: dict
    classes: data.Classes
    forget: data.Split
    retain: data.Split
    facts: dict


def shape_of(images):
    return {"num_classes": len(images.classes), "channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}


def open_images(dataset, data_dir, image_size, limit, seed, accelerator):
    """A data set's Images; at most `limit` training images, drawn by `seed`."""
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = load_images(dataset, Path(data_dir), image_size, accelerator.device)
    if limit is None or limit >= len(images.y_train):
        return images
    rows = torch.randperm(len(images.y_train), generator=data.generator("limit", seed))[:limit].sort().values.to(images.x_train.device)
    return datasets.Images(images.x_train[rows], images.y_train[rows], images.x_test, images.y_test, images.classes)


def open_model(model_path, accelerator):
    """Return (model, folder, args) of a run of train.py or unlearn.py. Raises RunError for any other, unfinished or broken one."""
    folder, recorded = run.read_run(model_path)
    if recorded.get("kind") not in ("train", "unlearn"):
        raise run.RunError(f"{folder} is a run of kind {recorded.get('kind')}, where a model of train.py or unlearn.py is needed")
    model = models.build_unet(**recorded["architecture"], seed=0)
    models.load_weights(model, folder / "model.safetensors")
    return engine.place(model, accelerator), folder, recorded


def open_job(model_path, forget_class, accelerator, data_dir=None):
    """Rebuild the original of a run of train.py and split its data.

    Raises RunError for anything missing, unfinished or contradictory, and for a model that has forgotten already.
    """
    folder, recorded = run.read_run(model_path)
    if recorded.get("kind") != "train" or recorded.get("method") != "original":
        raise run.RunError(
            f"{folder} is no original model of train.py (to forget more, start from the original and forget all the classes together)"
        )
    images = open_images(
        recorded["dataset"], data_dir or recorded["data_dir"], recorded["image_size"], recorded["limit"], recorded["seed"], accelerator
    )
    if images.classes != recorded["classes"] or shape_of(images).items() - recorded["architecture"].items():
        raise run.RunError(
            f"the data in {data_dir or recorded['data_dir']} is not what {folder} was trained on: other classes or another image size"
        )
    classes = data.forget_classes(forget_class, images.classes)
    forget, retain = data.split(images, classes)
    model, _, _ = open_model(folder, accelerator)
    facts = {
        "architecture": recorded["architecture"],
        "classes": images.classes,
        "forgotten": list(classes.forgotten),
        "training": {name: recorded[name] for name in TRAINING},
        "parent": str(folder),
        "parent_sha": run.file_sha(folder / "model.safetensors"),
        "forget_sha": data.forget_sha(forget.rows),
        "num_forgotten": len(forget),
        **where(accelerator),
    }
    return Job(model, recorded["architecture"], facts["training"], classes, forget, retain, facts)


def where(accelerator):
    return {"processes": accelerator.num_processes, "computed_on": str(accelerator.device), "autocast": accelerator.mixed_precision}
