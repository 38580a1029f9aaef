"""What the scripts start from: a trained model, its data, and what is forgotten."""

import dataclasses
import sys
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
TRAINING += ("class_dropout", "ema", "grad_clip")  # what a run remembers of its original's training
NEWER = ("data_sha", "with_test", "only_class", "loss", "cwd")  # and what runs of earlier versions do not tell

WEIGHTS = dict(choices=("ema", "last"), default="ema", help="averaged weights, or the last ones, which the official release starts from")
WITH_TEST = dict(action="store_true", help="train on the test images too, as in the official release's STL-10")
ONLY_CLASS = dict(nargs="+", metavar="CLASS", help="use only these classes, two or more, by name or number")


def refuse_release(parser, argv, instead):
    """parser.error with what to write here for a command of the paper's repository, which names a --config and a --mode.

    instead: {mode: command here}.
    """
    words = [part for word in (sys.argv[1:] if argv is None else argv) for part in str(word).split("=", 1)]
    if {"--config", "--mode"} & set(words):
        mode = words[words.index("--mode") + 1] if "--mode" in words[:-1] else None
        command = instead.get(mode, next(iter(instead.values())))
        parser.error(f"--config and --mode are the paper's repository's, here every setting is a flag: write {command}")


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


def load_images(dataset, data_dir, image_size, limit, seed, accelerator, cache_dir=None, with_test=False, only_class=None):
    """A data set's Images. Of the training images at most `limit`, drawn by `seed`. with_test: the test images are training images too.

    only_class: names or numbers of the classes to take; None takes all.
    """
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = imagesets.load_images(dataset, Path(data_dir), image_size, accelerator.device, cache_dir)
    if images.x_train.shape[1] != images.x_train.shape[2]:
        height, width = images.x_train.shape[1:3]
        raise RunError(f"the images in {data_dir} have {width} x {height} px, and the U-Nets here draw square ones: cut them to squares")
    if with_test:
        x, y = torch.cat([images.x_train, images.x_test]), torch.cat([images.y_train, images.y_test])
        images = dataclasses.replace(images, x_train=x, y_train=y)
    if only_class is not None:
        images = images_of(images, only_class)
    if empty := [name for name, count in zip(images.classes, counts_of(images), strict=True) if not count]:
        raise RunError(f"the data in {data_dir} has no training image of {', '.join(empty)}: name the others by --only_class")
    if limit is None or limit >= len(images.y_train):
        return images
    order = torch.randperm(len(images.y_train), generator=data.make_generator("limit", seed))[:limit].sort().values
    few = images.train(order, "train")
    return dataclasses.replace(images, x_train=few.images, y_train=few.labels)


def counts_of(images):
    """Training images of each class."""
    return torch.bincount(images.y_train, minlength=len(images.classes)).tolist()


def images_of(images, names):
    """The Images of some classes alone, whose labels count anew in the old order. Raises RunError for fewer than two."""
    kept = sorted(set(data.class_numbers(names, images.classes)))
    if len(kept) < 2:
        raise RunError(f"--only_class {' '.join(names)} is one class: name two or more")
    parts = {}
    for part in ("train", "test"):
        x, y = getattr(images, f"x_{part}"), getattr(images, f"y_{part}")
        wanted = torch.tensor(kept, device=y.device)
        here = torch.isin(y, wanted)
        parts |= {f"x_{part}": x[here], f"y_{part}": torch.searchsorted(wanted, y[here])}
    return dataclasses.replace(images, classes=[images.classes[label] for label in kept], **parts)


def save_weights(loop):
    """Write model.safetensors after the loop of a Trainer and, where those are averaged weights, the last ones into last.safetensors."""
    loop.run_folder.save("model.safetensors", loop.model.state_dict())
    if loop.average is not None:
        loop.average.restore(loop.model.parameters())
        loop.run_folder.save("last.safetensors", loop.model.state_dict())


def weights_file(folder, recorded, weights):
    """The file of a run's averaged weights (weights "ema") or of its last ones ("last"): one file where nothing was averaged.

    Raises RunError for a run that kept the averaged ones alone.
    """
    last = folder / "last.safetensors"
    if weights == "last" and not last.is_file() and recorded["kind"] == "train" and recorded["ema"]:
        raise RunError(f"{folder} kept only its averaged weights: pass --weights ema, or train it again")
    return last if weights == "last" and last.is_file() else folder / "model.safetensors"


def load_model(model_path, accelerator, weights="ema"):
    """Return (model, file of its weights, args) of a run of train.py or unlearn.py. Raises RunError for any other, unfinished or broken."""
    folder, recorded = read_run(model_path, "train", "unlearn")
    model, file = models.build_unet(**recorded["architecture"], seed=0), weights_file(folder, recorded, weights)
    if Path(model_path).is_file() and Path(model_path).name != file.name:
        raise RunError(f"{model_path} is not {file.name}, which --weights {weights} takes: name the run, and --weights ema or last")
    models.load_weights(model, file)
    return trainer.prepare(model, accelerator), file, recorded


def data_of(origin, data_dir, accelerator, cache_dir=None):
    """Images that a model was trained on. origin: flags of its training. Raises RunError where the data in `data_dir` are others."""
    place = [origin["dataset"], data_dir, *(origin[name] for name in ("image_size", "limit", "seed"))]
    images = load_images(*place, accelerator, cache_dir, origin.get("with_test", False), origin.get("only_class"))
    if origin.get("data_sha") not in (None, images.sha):
        raise RunError(f"the data in {data_dir} is not what the model was trained on: other images or labels")
    return images


def load_task(model_path, forget_class, accelerator, data_dir=None, cache_dir=None, weights="ema"):
    """Rebuild the original of a run of train.py and split its data. weights: which of its weights, "ema" or "last".

    Raises RunError for anything missing, unfinished or contradictory, and for a model that has forgotten already.
    """
    folder, recorded = read_run(model_path, "train")
    if recorded["method"] != "original":
        raise RunError(f"{folder} is not an original model: it was trained with --retain_only")
    training = {name: recorded[name] for name in TRAINING} | {name: recorded.get(name) for name in NEWER}
    training |= {"model_path": recorded["model_path"]} if recorded.get("model_path") else {}  # it started from weights
    data_dir = data_dir or moved(training["data_dir"], recorded, folder)
    images = data_of(training, data_dir, accelerator, cache_dir)
    if images.classes != recorded["classes"] or shape_of(images).items() - recorded["architecture"].items():
        raise RunError(f"the data in {data_dir} is not what {folder} was trained on: other classes or another image size")
    classes = data.forget_classes(forget_class, images.classes)
    forget, retain = data.split(images, classes)
    model, file, _ = load_model(model_path, accelerator, weights)
    facts = {"architecture": recorded["architecture"], "classes": images.classes, "forgotten": list(classes.forgotten)}
    facts |= {"training": training, "parent": str(folder), "parent_sha": file_sha(file)}
    facts |= {"forget_sha": data.forget_sha(forget.indices), "num_forgotten": len(forget)}
    return Task(model, training, classes, forget, retain, facts)
