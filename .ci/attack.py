"""Attack the project's promises: kill runs, feed them bad input, race them against each other, plant code in what they read.

    python .ci/attack.py                                     all parts on all folders, at most 30 minutes on two cores
    python .ci/attack.py --folders SD --parts kills --minutes 5 --seed 7

For each folder one interpreter imports the folder's modules and forks a child per command, which calls cli.run(main) as the script
does. Everything happens on tiny models of the digits, below a temporary folder. The promises:

    kills     a run that is killed at a random moment and resumed ends in the files of an undisturbed one, and leaves no others
    inputs    what cannot be right ends in one sentence: at most 1 % tracebacks, no hang, no done.json, nothing changed that is read
    races     one of two runs on one --save_dir wins, the other is refused in a sentence; runs that share a fresh data_dir all succeed
    payloads  code in a file or a model's folder never runs

Prints a line per broken promise, then a table of counts. Exit status 1 if a promise did not hold.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PARTS = {"payloads": 0.15, "races": 0.2, "kills": 0.3, "inputs": 0.35}  # in this order; the share of the time, what is left goes on
NUMBERS = {"kills": 24, "inputs": 160, "races": 12, "payloads": 1000}  # cases a folder; payloads: as many as there are
LIMIT = 20  # seconds after which a command hangs
MEMORY = 12 << 30  # bytes of address space for a child: a case that asks for everything must not take the machine down
CLOCKS = {"RTE", "seconds", "mask_seconds", "peak_memory_mb", "started"}  # values that differ between undisturbed runs

# Commands by name; {name} is that run of the home folder, or a damaged copy of it. START: how the home folder is made, in this order.
START, COMMANDS = {}, {}
START["Classification"] = {
    "original": "train {tiny} --data_dir {data}",
    "other": "train {tiny} --data_dir {data} --arch resnet20 --epochs 1",
    "mask": "generate_mask --model_path {original} --num_forget 60",
    "table/salun": "unlearn --method salun --mask_path {mask} --epochs 2 --num_forget 60 --precision fp32 --model_path {original}",
    "table/retrain": "unlearn --method retrain --num_forget 60 --precision fp32 --model_path {original}",
    "": "evaluate --precision fp32 --model_path {table}/salun {table}/retrain",
    "cut": "train {tiny} --epochs 60 --data_dir {data}",
}
COMMANDS["Classification"] = {
    "train": "train {tiny} --epochs 1 --data_dir {data}",
    "tune": "train {tiny} --epochs 1 --data_dir {data} --model_path {original}",
    "pictures": "train --dataset folder --image_size 16 --arch cnn --epochs 1 --data_dir {pictures}",
    "mask": "generate_mask --num_forget 60 --model_path {original}",
    "unlearn": "unlearn --method salun --mask_path {mask} --epochs 1 --num_forget 60 --model_path {original}",
    "cifar10": "train {tiny} --dataset cifar10",
    "npy": "generate_mask --forget_indices {lists}/rows.npy --model_path {original}",
    "txt": "generate_mask --forget_indices {lists}/rows.txt --model_path {original}",
    "evaluate": "evaluate --num_forget 60 --model_path {original}",
    "measure": "evaluate --overwrite --model_path {table}/salun",
    "table": "table {table}",
    "resume": "train {tiny} --epochs 60 --data_dir {data} --resume",
}

START["DDPM"] = {
    "original": "train {tiny} --steps 60 --data_dir {data}",
    "other": "train {tiny} --steps 1 --arch tiny_dropout --data_dir {data} --seed 2",
    "mask": "generate_mask --model_path {original} --forget_class 3",
    "classifier": "train_classifier --dataset digits --arch cnn --lr 3e-3 --head_lr_factor 1 --batch_size 64 --data_dir {data} --epochs 2",
    "models/salun": "unlearn --method salun --mask_path {mask} --forget_class 3 --steps 3 --precision fp32 --model_path {original}",
    "models/retrain": "unlearn --method retrain --forget_class 3 --steps 20 --precision fp32 --model_path {original}",
    "samples": "sample --model_path {original} --num_per_class 3 --steps 3",
    "table/salun": "sample --model_path {models}/salun --num_per_class 3 --steps 3",
    "table/retrain": "sample --model_path {models}/retrain --num_per_class 3 --steps 3",
    "": "evaluate --features classifier --num_reference 100 --classifier {classifier} --sample_path {table}/salun {table}/retrain",
    "cut": "train {tiny} --steps 200 --data_dir {data}",
}
COMMANDS["DDPM"] = {
    "train": "train {tiny} --steps 25 --data_dir {data}",
    "tune": "train {tiny} --steps 2 --data_dir {data} --model_path {original}",
    "pictures": "train {tiny} --dataset folder --image_size 8 --steps 2 --data_dir {pictures}",
    "classifier": "train_classifier --dataset digits --arch cnn --batch_size 256 --data_dir {data} --epochs 2",
    "resnet34": "train_classifier --dataset digits --limit 4 --data_dir {data} --epochs 1 --batch_size 4",
    "mask": "generate_mask --batch_size 32 --forget_class 3 --model_path {original}",
    "unlearn": "unlearn --method salun --mask_path {mask} --steps 3 --forget_class 3 --model_path {original}",
    "relearn": "relearn --num_images 10 --steps 15 --precision fp32 --model_path {models}/salun",
    "sample": "sample --num_per_class 2 --steps 3 --batch_size 4 --model_path {original}",
    "evaluate": "evaluate --features classifier --num_reference 100 --classifier {classifier} --forget_class 3 --sample_path {samples}",
    "inception": "evaluate --num_reference 100 --classifier {classifier} --forget_class 3 --sample_path {samples}",
    "measure": "evaluate --features classifier --num_reference 100 --classifier {classifier} --overwrite --sample_path {table}/salun",
    "table": "table {table}",
    "resume": "train {tiny} --steps 200 --data_dir {data} --resume",
}

DRAWN = "generate_images --num_samples 2 --steps 3 --guidance_scale 2 --batch_size 4 --precision fp32 --model_path"
JUDGED = "evaluate --features classifier --num_reference 100 --classifier {classifier}"
START["SD"] = {
    "original": "train {tiny} --vae_steps 20 --steps 30 --data_dir {data}",
    "other": "train {tiny} --vae_steps 1 --steps 1 --arch small --image_size 16 --limit 40 --data_dir {data}",
    "mask": "generate_mask --batch_size 64 --model_path {original} --forget_class three --data_dir {data}",
    "classifier": "train_classifier --epochs 1 --lr 3e-3 --precision fp32 --data_dir {data}",
    "models/salun": "unlearn --method salun --mask_path {mask} --forget_class three --steps 2 --precision fp32 --model_path {original}",
    "models/retrain": "train {tiny} --vae_steps 5 --steps 5 --retain_only --forget_class three --data_dir {data}",
    "samples": DRAWN + " {original}",
    "table/salun": DRAWN + " {models}/salun",
    "table/retrain": DRAWN + " {models}/retrain",
    "": JUDGED + " --sample_path {table}/salun {table}/retrain",
    "cut": "train {tiny} --vae_steps 2 --steps 150 --limit 40 --data_dir {data}",
}
COMMANDS["SD"] = {
    "train": "train {tiny} --vae_steps 15 --steps 15 --limit 100 --data_dir {data}",
    "tune": "train --dataset digits --steps 2 --limit 40 --precision fp32 --data_dir {data} --model_path {original}",
    "import": "train --steps 0 --precision fp32 --model_config {original}/model --model_path {original}",
    "pictures": "train --from_scratch --arch test --dataset folder --vae_steps 1 --steps 1 --data_dir {pictures}",
    "captions": "train --from_scratch --arch test --dataset captions --vae_steps 1 --steps 1 --data_dir {captions}",
    "classifier": "train_classifier --epochs 1 --precision fp32 --data_dir {data}",
    "mask": "generate_mask --batch_size 64 --forget_class three --model_path {original}",
    "unlearn": "unlearn --method salun --mask_path {mask} --steps 2 --forget_class three --precision fp32 --model_path {original}",
    "sample": DRAWN + " {original}",
    "prompts": DRAWN + " {original} --prompts_path {lists}/prompts.csv",
    "folder": DRAWN + " {original}/model",
    "own": "unlearn --method esd --steps 1 --sample_steps 3 --forget_prompt three --precision fp32 --model_path {original}",
    "forget_dir": "unlearn --method ga --steps 1 --forget_prompt three --forget_dir {pictures} --precision fp32 --model_path {original}",
    "evaluate": JUDGED + " --forget_class three --sample_path {samples}",
    "inception": "evaluate --num_reference 100 --classifier {classifier} --forget_class three --sample_path {samples}",
    "resnet50": "evaluate --features none --classifier resnet50 --forget_class three --sample_path {samples}",
    "clip": "evaluate --features none --forget_class three --sample_path {samples} --clip_model {original}",
    "measure": JUDGED + " --overwrite --sample_path {table}/salun",
    "table": "table {table}",
    "resume": "train {tiny} --vae_steps 2 --steps 150 --limit 40 --data_dir {data} --resume",
}
KILLED = ("train", "classifier", "mask", "relearn", "sample", "evaluate")  # beside all methods
UNSAVED = ("table", "measure")  # these write into what they read, and take no --save_dir

# fmt: off
METHOD_FLAGS = {  # "": the command of a method that is killed; *: flags of those that are not named
    "Classification": {"": "unlearn --num_forget 60 --precision fp32 --model_path {original}", "*": "--epochs 5", "iu": "", "ssd": ""},
    "DDPM": {"": "unlearn --forget_class 3 --precision fp32 --model_path {original}", "*": "--steps 15",
             "esd": "--steps 15 --batch_size 8 --sample_steps 4",
             "sa": "--steps 15 --replay 4 --replay_steps 8 --fisher_timesteps 8 --ewc 1e-4"},
    "SD": {"": "unlearn --forget_class three --precision fp32 --model_path {original}", "*": "--steps 8", "uce": "",
           "esd": "--steps 8 --sample_steps 3", "ca": "--steps 8 --num_images 4 --generation_steps 3"},
}
# Payloads go in place of every file of every run, and here: what reads it, command, more flags, files below the case's folder ($)
HUB = "$/torch/hub/checkpoints/"
FLAGGED = {"--model_path": ("unlearn", "tune"), "--mask_path": ("unlearn",), "--pretrained": ("resnet34",), "--classifier": ("evaluate",),
           "--classifier_weights": ("resnet50",), "--inception_weights": ("inception",)}
PLANTS = [(f"{name} {flag} {end}", name, f"{flag} $/x{end}", f"$/x{end}")
          for flag, names in FLAGGED.items() for name in names for end in (".pth", ".ckpt", ".safetensors")]
PLANTS += [
    ("Inception in torch's cache", "inception", "", HUB + "weights-inception-2015-12-05-6726825d.pth"),
    ("ResNet-34 in torch's cache", "resnet34", "", HUB + "resnet34-b627a593.pth"),
    ("ResNet-50 in torch's cache", "resnet50", "", HUB + "resnet50-11ad3fa6.pth"),
    ("a CLIP model", "clip", "--clip_model $/clip", "$/clip/open_clip_pytorch_model.bin $/clip/pytorch_model.bin"),
    ("CIFAR-10's files", "cifar10", "--data_dir $", "$/cifar-10-batches-py/data_batch_1 $/cifar-10-batches-py/batches.meta"),
]
# In SD's models: pickles that weights could be read from, and parts that could name code of their own
PICKLED = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}
CODE = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "_evil", "pipeline", "auto_map")

# ---------------------------------------------------------------------------------------------------------------- damage
NUMBERS_AS_TEXT = ["-1", "0", "nan", "inf", "-inf", "", "x", "²", "1.5", "1e38", "1e308", "1e400", "18446744073709551616", "9" * 20]
PATHS = ["", "absent", "fifo", "empty", "text", "loop", "/dev/null", "/proc/self/mem", "~none/x", "x" * 5000, "{classifier}", "{samples}"]
TEXTS = ["", "nope", "../../x", "²", "--5", "-1", "99", "\udcff", "3,,4", "{", "{} {", "a {} and {}", "{:>99999999999}{}", "x" * 5000]
CONTRADICTIONS = [
    "--resume --overwrite", "--save_dir {original}", "--save_dir {original} --overwrite", "--save_dir {original}/x --overwrite", "x",
    "--nope", "--save_dir {data}", "--save_dir text", "--save_dir fifo/x", "--save_dir {mask} --resume", "--mask_path {original}",
    "--seed 1 --seed", "--model_path {mask}", "--model_path {other}", "--image_size 1", "--image_size 10000000", "--retain_only",
    "--limit 1 --batch_size 1", "--forget_class 0 1 2 3 4 5 6 7 8 9", "--device cuda --precision bf16",
]
VALUES = [None, -1, 0, 1e400, 10**30, "x", "a\0b", [], {}, [None], {"x": [1]}, True]  # for a key of hand-edited JSON
TEXT_FILES = [b"", b"[]", b"null", b"3", b'"x"', b"{}", b"[{}]", b"NaN", b"{", b"[" * 99999, b"9" * 5000, b"\xff\xfe\x00x", b"{} x", b"\0"]
CASES = "case_number,prompt,evaluation_seed"
CSV_FILES = [b"a,b\n1,2\n", b"file_name,text\nx\n", f"{CASES}\n".encode(), f"{CASES}\n1\n".encode(), b'"\n']
CSV_FILES += [f"{CASES}\n1,a,{value}\n".encode() for value in ("", "x", "1.5", "9" * 30, "-1", "nan")]
CSV_FILES += [f"{CASES},width\n1,a,1,{value}\n".encode() for value in ("0", "-8", "x", "8000000", str(2**63 - 8))]
CSV_FILES += ["file_name,text\né.png,é\n".encode(code) for code in ("latin-1", "utf-16")] + [b"file_name,text\n../../x,a\n"]
CSV_FILES += [b"step,loss\nabc,1\n", b"step\n1.0\n", b"loss\n1\n", b"step,step\n1,1,1,1\n", b"file_name,text\n" + b"x" * 200_000]
ROWS = ["-1", "1000000000", "99999999999999999999", "1.5", "x", "", "1 1", "nan", "0x10", "²", "\0", "1,2"]
# fmt: on


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip(path, place):
    """Flip one bit at a share of the file."""
    content = bytearray(path.read_bytes())
    if content:
        content[min(int(len(content) * place), len(content) - 1)] ^= 16
    path.write_bytes(content)


def replace(path, make):
    path.unlink()
    make(path)


def of_bytes():
    """Damages of any file, by name."""
    yield from ((f"cut at {share}", lambda path, share=share: cut(path, share)) for share in (0, 0.01, 0.5, 0.99))
    yield from ((f"bit flipped at {place}", lambda path, place=place: flip(path, place)) for place in (0, 0.001, 0.01, 0.3, 0.6, 0.97, 1))
    yield "random bytes", lambda path: path.write_bytes(random.Random(0).randbytes(500))
    yield "text", lambda path: path.write_text("hello")
    yield "a FIFO", lambda path: replace(path, os.mkfifo)
    yield "a folder", lambda path: replace(path, Path.mkdir)
    yield "a link to itself", lambda path: replace(path, lambda path: path.symlink_to(path))
    yield "gone", lambda path: path.unlink()


def of_json(path):
    """Damages of a JSON file: other contents, and every key missing or with a value of another kind."""
    yield from ((f"holds {text[:20]}", lambda path, text=text: path.write_bytes(text)) for text in TEXT_FILES)
    recorded = json.loads(path.read_text())
    places = [(key,) for key in recorded]
    places += [(key, inner) for key, value in recorded.items() if isinstance(value, dict) for inner in value]
    for place in places:
        for value in ("gone", *VALUES):

            def edit(path, place=place, value=value):
                content = json.loads(path.read_text())
                target = content[place[0]] if len(place) == 2 else content
                if value == "gone":
                    del target[place[-1]]
                else:
                    target[place[-1]] = value
                path.write_text(json.dumps(content))

            yield f"{'.'.join(place)}={value!r:.20}", edit


def of_tensors(path):
    """Damages of a safetensors file that stay readable: other values, types, shapes, names, metadata."""
    import safetensors.torch
    import torch

    def edit(change, meta=lambda metadata: metadata):
        def damage(path):
            with safetensors.safe_open(path, "pt") as file:
                tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
            first = next((name for name in sorted(tensors) if tensors[name].is_floating_point()), min(tensors))
            change(tensors, first)
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, meta(dict(metadata)))

        return damage

    def everywhere(convert):
        return edit(lambda tensors, first: tensors.update({name: convert(tensor) for name, tensor in tensors.items()}))

    for kind in ("float8_e4m3fn", "complex64", "int64", "bool", "float16", "float64", "uint16"):
        yield f"all {kind}", everywhere(lambda tensor, kind=kind: tensor.float().to(getattr(torch, kind)))
    for value in (math.nan, math.inf, 3e38, 0.0):
        yield f"all {value}", everywhere(lambda tensor, value=value: torch.full(tensor.shape, value))
    yield "a NaN", edit(lambda tensors, first: tensors.update({first: tensors[first].float() * math.nan}))
    yield "a tensor missing", edit(lambda tensors, first: tensors.pop(first))
    yield "a tensor more", edit(lambda tensors, first: tensors.update(x=torch.zeros(1)))
    yield "another shape", edit(lambda tensors, first: tensors.update({first: tensors[first][None, ..., None]}))
    yield "an empty tensor", edit(lambda tensors, first: tensors.update({first: tensors[first].flatten()[:0]}))
    yield "no tensors", edit(lambda tensors, first: tensors.clear())
    yield "no metadata", edit(lambda tensors, first: None, lambda metadata: {})
    with safetensors.safe_open(path, "pt") as file:
        names = file.metadata() or {}
    for name in names:
        yield f"no {name} in the metadata", edit(lambda *_: None, lambda old, name=name: {key: old[key] for key in old if key != name})
        for value in ("", "x", "nan", "inf", "-1", "[]", "{}", "{", '{"step": 0}', '{"a": 3}'):
            yield f"metadata {name}={value}", edit(lambda *_: None, lambda old, name=name, value=value: old | {name: value})


def of_npz(path):
    """Damages of a cache of images."""
    import numpy as np

    changes = {name: (lambda array, name=name: array.astype(name)) for name in ("f4", "O", "u2", "u8", ">i8", "m8[s]", "U", "i1")}
    changes |= {"flat": lambda array: array.ravel(), "empty": lambda array: array[:0], "0-d": lambda array: np.array(0)}
    changes |= {"huge": lambda array: array.astype("i8") + 10**9, "negative": lambda array: array.astype("i8") - 100}
    changes |= {"one": lambda array: array[:1], "other size": lambda array: np.concatenate([array, array], axis=int(array.ndim > 1))}
    with np.load(path) as file:
        names = [name for name in file if name != "stamp"]

    def edit(name, change, write=np.savez):
        def damage(path):
            with np.load(path) as file:
                arrays = dict(file)
            arrays.update({name: change(arrays[name])}) if change else arrays.pop(name)
            with path.open("wb") as file:
                write(file, **arrays)

        return damage

    for name, (how, change) in itertools.product(names, (changes | {"gone": None}).items()):
        if how in ("f4", "huge", "negative", "m8[s]", "i1") and name == "classes":
            continue
        yield f"{name} {how}", edit(name, change)
    yield "compressed and flipped", lambda path: (edit("x_train", lambda array: array, np.savez_compressed)(path), flip(path, 0.3))
    yield "an array", lambda path: np.save(path.open("wb"), np.arange(3))
    yield "a huge header", lambda path: huge_header(path, "x_train.npy")


def huge_header(path, member=None):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    if member is None:
        return path.write_bytes(content)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, content)


def of_rows(path):
    """Damages of a list of indices, .npy or text."""
    import numpy as np

    if path.suffix == ".txt":
        yield from ((f"holds {text!r}", lambda path, text=text: path.write_text(text)) for text in ROWS)
        return
    arrays = [
        np.array(value) for value in ([-1], [10**9], [[1, 2]], [], [1.0], [1, 1], [math.nan], ["x"], 5, [True], [2**64 - 1], range(9999))
    ]
    for array in arrays:
        yield f"holds {array.dtype} {array.shape}", lambda path, array=array: np.save(path, array)
    yield "an npz", lambda path: np.savez(path.open("wb"), x=np.arange(3))
    yield "a huge header", huge_header


def of_picture():
    """Damages of a PNG that Pillow may trip over."""
    from PIL import Image, PngImagePlugin

    def bomb(path):
        Image.new("1", (20_000, 20_000)).save(path)

    def text(path):
        info = PngImagePlugin.PngInfo()
        info.add_text("x", "0" * (1 << 26), zip=True)
        Image.new("RGB", (8, 8)).save(path, pnginfo=info)

    yield from {"a bomb": bomb, "a text bomb": text}.items()
    for mode in ("1", "L", "P", "RGBA", "I;16", "LA"):
        yield f"mode {mode}", lambda path, mode=mode: Image.new(mode, (8, 8)).save(path)
    yield from ((f"{size} px", lambda path, size=size: Image.new("RGB", size).save(path)) for size in ((1, 1), (3, 900), (4000, 1)))
    yield "PostScript", lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n")


def damages(path):
    """(name, function that damages a file like this one)."""
    yield from of_bytes()
    if path.suffix == ".json":
        yield from of_json(path)
    elif path.suffix == ".safetensors":
        yield from of_tensors(path)
    elif path.suffix == ".npz":
        yield from of_npz(path)
    elif path.name.startswith("rows."):
        yield from of_rows(path)
    elif path.suffix == ".png":
        yield from of_picture()
    elif path.suffix in (".csv", ".txt"):
        yield from ((f"holds {text[:30]}", lambda path, text=text: path.write_bytes(text)) for text in CSV_FILES + TEXT_FILES)


# --------------------------------------------------------------------------------------------------------------- payload
class Payload:
    """Unpickled, it makes the file `marker`."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def payloads(marker):
    """{name: function that writes a payload to a path}."""
    import numpy as np
    import torch

    bad, tensors = Payload(marker), {"fc.bias": torch.zeros(10)}
    whole = np.array([bad], dtype=object)
    return {
        "pickle": lambda path: path.write_bytes(pickle.dumps(bad)),
        "old pickle": lambda path: path.write_bytes(pickle.dumps(bad, protocol=0)),
        "torch.save": lambda path: torch.save({"state_dict": tensors | {"x": bad}}, path),
        "old torch.save": lambda path: torch.save({"x": bad}, path, _use_new_zipfile_serialization=False),
        "npy": lambda path: np.save(path.open("wb"), whole, allow_pickle=True),
        "npz": lambda path: np.savez(path.open("wb"), x_train=whole, y_train=whole, x_test=whole, y_test=whole, values=whole),
    }


def evil_code(marker, how):
    """A function that gives a diffusers folder code of its own."""
    code = f"open({str(marker)!r}, 'w')\nclass Evil:\n    def from_pretrained(*args, **options):\n        open({str(marker)!r}, 'w')\n"

    def plant(folder):
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            for name in ("evil", "pipeline", "modeling_evil", place.name):
                (place / f"{name}.py").write_text(code)
        index = json.loads((folder / "model_index.json").read_text())
        if how == "pipeline":
            index["_class_name"] = ["pipeline", "Evil"]
        elif how == "auto_map":
            for path in folder.glob("*/*config.json"):
                recorded = json.loads(path.read_text())
                path.write_text(json.dumps(recorded | {"auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}}))
        else:
            index[how] = ["evil", "Evil"]
        (folder / "model_index.json").write_text(json.dumps(index))

    return plant


# ---------------------------------------------------------------------------------------------------------------- running
@dataclass
class Result:
    """How a command ended. kind: sentence, traceback, accepted or hang."""

    status: int
    text: str
    hung: bool = False

    @property
    def kind(self):
        if self.hung:
            return "hang"
        if self.status == 0:
            return "accepted"
        said = re.findall(r"^(?:\w+\.py: )?error: ", re.sub(r"[^\r\n]*\d+%\|[^\r\n]*?\]", "\n", self.text), re.MULTILINE)
        return "sentence" if self.status in (1, 2) and len(said) == 1 and "Traceback (most" not in self.text else "traceback"

    @property
    def last_line(self):
        return (self.text.strip().splitlines() or [f"nothing (status {self.status})"])[-1][:200]


class Found(Exception):
    """Carries an argument parser out of a script that parses."""


class Folder:
    """The modules of one of the three folders, a home with small runs, and what is counted."""

    def __init__(self, name, root, options, deadline):
        self.name, self.home, self.options, self.deadline = name, root / "home", options, deadline
        self.counts, self.skipped, self.failures, self.number, self.root = collections.Counter(), [], 0, 0, root
        self.random = random.Random(f"{options.seed} {name}")
        code = Path(__file__).resolve().parents[1] / name
        sys.path[:0] = [str(code), str(code / "tests")]
        scripts = {shlex.split(command)[0] for command in COMMANDS[name].values()}
        self.modules = {script: importlib.import_module(script) for script in sorted(scripts)}
        import torch

        import cli  # these are of the folder
        import files
        import helpers
        import methods
        import trainer

        if name == "DDPM":
            importlib.import_module("diffusers")
        if name == "SD":
            from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
            from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
        torch.set_num_threads(1)
        self.cli, self.trainer, self.read_tensors, self.tiny = cli, trainer, files.read_tensors, helpers.TINY
        self.methods, self.needs_mask = methods.METHODS, methods.NEEDS_MASK

    # ------------------------------------------------------------------------------------------------------------ commands
    def places(self, **changed):
        """{name: path} for the placeholders of commands."""
        names = ["original", "other", "mask", "classifier", "samples", "models", "table", "data", "pictures", "captions", "lists", "cut"]
        return {name: str(self.home / name) for name in names} | {"tiny": self.tiny} | {k: str(v) for k, v in changed.items()}

    def command(self, text, *more, **changed):
        return [*shlex.split(text.format(**self.places(**changed))), *(str(word) for word in more)]

    def start(self, command, tmp, often=False, environment=()):
        """Fork a child that runs a command; returns (process id, file of what it says, command). often: checkpoints every step."""
        self.number += 1
        said = tmp / f".said{self.number}"
        pid = os.fork()
        if pid:
            return pid, said, command
        status = 1
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 1), os.dup2(1, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout, sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb"), "utf-8", "replace"), os.fdopen(2, "w", 1, errors="replace")
            os.chdir(tmp)
            os.environ.update(environment)
            if often:
                self.trainer.CHECKPOINT_SECONDS = 0
            sys.argv = [f"{command[0]}.py", *command[1:]]
            self.cli.run(self.modules[command[0]].main)
            status = 0
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(status)

    def wait(self, child, limit=LIMIT):
        """The Result of a child. It hangs after `limit` seconds in which it computed for half as long, or where it waits for something."""
        (pid, said, _), hung, seen = child, False, -1
        end = time.monotonic() + limit
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end and not hung:
                computed = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")
                hung = computed > limit / 2 or computed == seen
                seen, end = computed, end + 4  # on a crowded machine a child that goes on computing is given more time
                if hung:
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(0.01)
        return Result(os.waitstatus_to_exitcode(ended[1]), said.read_text(errors="replace") if said.exists() else "", hung)

    def call(self, command, tmp, **options):
        return self.wait(self.start(command, tmp, **options))

    def must(self, command, tmp, **options):
        """Run what has to work, else nothing here can be tested."""
        result = self.wait(self.start(command, tmp, **options), limit=120)
        if result.status:
            raise SystemExit(f"{self.name}: {shlex.join(command)} failed, so nothing can be attacked: {result.text[-1500:]}")

    def fails(self, what, command, line):
        """Report a promise that did not hold."""
        self.failures += 1
        print(f"FAILED {self.name}: {what}: {shlex.join(command)[:400]}\n       {line}".replace(str(self.root), "TMP"), flush=True)

    def scratch(self):
        self.number += 1
        folder = self.root / f"case{self.number}"
        folder.mkdir()
        return folder

    # ---------------------------------------------------------------------------------------------------------------- home
    def build(self):
        from PIL import Image

        self.home.mkdir(parents=True)
        for place in [f"train/{name}" for name in ("cat", "dog")] + ["test/cat"]:
            (self.home / "pictures" / place).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (16, 16), (40 * i, 90, 10)).save(self.home / "pictures" / place / f"{i}.png")
        captions = ("captions", "metadata.csv", "file_name,text\na.png,a cat\nb.png,a dog\n")
        for folder, name, text in (captions, ("lists", "rows.txt", "1 2 3\n")):
            (self.home / folder).mkdir()
            (self.home / folder / name).write_text(text)
        for name in "ab":
            Image.new("RGB", (16, 16)).save(self.home / "captions" / f"{name}.png")
        (self.home / "lists" / "prompts.csv").write_text("case_number,prompt,evaluation_seed,class\n1,a three,5,three\n")
        import numpy as np

        np.save(self.home / "lists" / "rows.npy", np.arange(9))
        for run, text in START[self.name].items():
            command = self.command(text, *(("--save_dir", self.home / run) if run else ()))
            if run == "cut":  # stopped as soon as it has a checkpoint
                child = self.start(command, self.root, often=True)
                while not (self.home / "cut" / "checkpoint.safetensors").exists() and not os.waitpid(child[0], os.WNOHANG)[0]:
                    time.sleep(0.01)
                os.kill(child[0], signal.SIGKILL)
                os.waitpid(child[0], 0)
            else:
                self.must(command, self.root)

    def same_files(self, folder):
        """{path: size, time, number} of all files below a folder: another write gives another value."""
        stats = ((path, path.lstat()) for path in sorted(folder.rglob("*")) if not path.is_dir())
        return {str(path): (stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats}

    def contents(self, folder):
        """{file: what must be equal after a kill} of a run folder: tensors, pictures, metrics but for clocks, and which files there are."""
        found = {}

        def timeless(value):
            return {key: timeless(inner) for key, inner in value.items() if key not in CLOCKS} if isinstance(value, dict) else value

        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_dir():
                continue
            if path.suffix == ".safetensors":
                tensors, metadata = self.read_tensors(path)
                digest = hashlib.sha256(repr(sorted(timeless(metadata).items())).encode())
                for key, tensor in sorted(tensors.items()):
                    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
                found[name] = digest.hexdigest()
            elif name in ("done.json", "metrics.json"):
                found[name] = timeless(json.loads(path.read_text()))
            else:
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in (".png", ".gif") else "there"
        return found

    def go_on(self, part, end):
        """Whether a part has time and cases left."""
        return self.counts[part] < (self.options.number or NUMBERS[part]) and time.monotonic() < end

    # --------------------------------------------------------------------------------------------------------------- parts
    def kills(self, end):
        jobs = {name: self.command(COMMANDS[self.name][name]) for name in KILLED if name in COMMANDS[self.name]}
        for method in self.methods:
            flags = METHOD_FLAGS[self.name].get(method, METHOD_FLAGS[self.name]["*"]).split()
            mask = ["--mask_path", str(self.home / "mask")] if method in self.needs_mask else []
            jobs[method] = [*self.command(METHOD_FLAGS[self.name][""]), "--method", method, *flags, *mask]
        whole = {}
        order = list(jobs)
        self.random.shuffle(order)
        for turn in itertools.count():
            name = order[turn // 2 % len(order)]
            if not self.go_on("kills", end) or turn > 20 * len(order):
                break
            if name not in whole:
                folder, start = self.scratch(), time.monotonic()
                self.must([*jobs[name], "--save_dir", str(folder / "run")], folder, often=True)
                whole[name] = time.monotonic() - start, self.contents(folder / "run")
            self.kill(jobs[name], *whole[name])

    def kill(self, command, seconds, expected):
        tmp = self.scratch()
        command = [*command, "--save_dir", str(tmp / "run")]
        for again in range(1 + (self.random.random() < 0.3)):  # sometimes the resumed run is killed too
            child, moment = self.start([*command, "--resume"] if again else command, tmp, often=True), self.random.uniform(0.02, seconds)
            time.sleep(moment)
            gentle = (self.counts["kills"] + again) % 4 == 3
            sent = self.random.choice((signal.SIGTERM, signal.SIGINT)) if gentle else signal.SIGKILL
            if os.waitpid(child[0], os.WNOHANG)[0]:
                return  # it was faster
            os.kill(child[0], sent)
            result = self.wait(child)
            if sent == signal.SIGINT and f'{command[0]}.py", line' in result.text:
                self.fails(f"SIGINT after {moment:.2f} s", command, result.last_line)
        self.counts["kills"] += 1
        result = self.call([*command, "--resume"], tmp)
        found = self.contents(tmp / "run") if result.status == 0 else {}
        left = sorted(set(found) - set(expected))
        differ = sorted(name for name in expected if found.get(name, "absent") != expected[name])
        if result.status:
            self.counts["kills: resume failed"] += 1
            self.fails(f"--resume after {sent.name} at {moment:.2f} s", command, result.last_line)
        elif differ:
            self.counts["kills: differs"] += 1
            self.fails(f"{sent.name} at {moment:.2f} s", command, f"differs: {', '.join(differ)[:200]}")
        elif left:
            self.counts["kills: file left behind"] += 1
            self.fails(f"{sent.name} at {moment:.2f} s", command, f"left behind: {', '.join(left)[:200]}")
        else:
            self.counts["kills: equal"] += 1
        shutil.rmtree(tmp)

    def flags(self, script):
        """The flags of a script: argparse's actions."""

        def stop(parser, argv=None):
            raise Found(parser)

        original, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, stop
        try:
            self.modules[script].main([])
        except Found as found:
            return found.args[0]._actions
        finally:
            argparse.ArgumentParser.parse_args = original

    def read_files(self):
        """(command, run, file of it) of every command that reads runs, one picture of a folder. A command with --resume reads `cut`."""
        for name, text in COMMANDS[self.name].items():
            places = re.findall(r"\{(\w+)\}(\S*)", text) + ([("cut", "")] if text.endswith("--resume") else [])
            for run, rest in places:
                source, seen = Path(f"{self.home / run}{rest}"), set()
                for path in [source] if source.is_file() else sorted(source.rglob("[!.]*")):
                    alike = (path.parent, path.suffix) if path.suffix == ".png" else path
                    if not path.is_dir() and alike not in seen:
                        seen.add(alike)
                        yield name, run, path

    def copy(self, run, path, tmp):
        """Copy a run into tmp; returns (what changes in the commands, the copy of a file of it). `cut` becomes the run to write.

        The table is copied too: the commands of UNSAVED write into it.
        """
        folder = tmp / ("out" if run == "cut" else run)
        for name, place in {"table": tmp / "table", run: folder}.items():
            shutil.copytree(self.home / name, place)
        return {"table": tmp / "table", run: folder}, folder / path.relative_to(self.home / run)

    def cases(self):
        """Groups of bad inputs, {group: [(command, run to copy or None, function that damages a file of the copy, label)]}."""
        groups = collections.defaultdict(list)
        first = {shlex.split(text)[0]: name for name, text in reversed(COMMANDS[self.name].items())}
        for script, name in first.items():
            for action in self.flags(script):
                flag, kind = (action.option_strings or [""])[0], getattr(action.type, "__name__", "")
                if action.nargs == 0:
                    continue
                values = NUMBERS_AS_TEXT if kind in ("int", "float", "amount") else TEXTS
                if kind == "Path" or re.search("path|dir|weights|model|classifier|pretrained", flag):
                    values = PATHS
                method = next((m for m in self.methods if script == "unlearn" and flag[2:] in self.cli.method_flags(self.methods[m])), None)
                for value in values:
                    text = value.format(**self.places()) if value.startswith("{c") or value.startswith("{s") else value
                    more = (["--method", method] if method else []) + [f"{flag}={text}" if flag else text]
                    groups[f"flag {script}"].append((name, more, None, None, flag))
            groups["contradictions"] += [(name, self.command(text), None, None, "") for text in CONTRADICTIONS]
        for name, run, path in self.read_files():
            for label, damage in damages(path):
                groups[f"file {path.suffix} {run}"].append((name, [], run, (path, damage), label))
        return groups

    def inputs(self, end):
        groups = self.cases()
        self.counts["inputs: in the tables"] = sum(map(len, groups.values()))
        for cases in groups.values():
            self.random.shuffle(cases)
        originals = self.same_files(self.home)
        for case in itertools.chain.from_iterable(itertools.zip_longest(*groups.values())):
            if case is None:
                continue
            if not self.go_on("inputs", end):
                break
            self.bad_input(*case, originals)

    def bad_input(self, name, more, run, damaged, label, originals):
        tmp, changed = self.scratch(), {}
        os.mkfifo(tmp / "fifo"), (tmp / "empty").mkdir(), (tmp / "text").write_text("hello"), (tmp / "loop").symlink_to("loop")
        if run:
            changed, path = self.copy(run, damaged[0], tmp)
            damaged[1](path)
            label = f"{path.relative_to(tmp)} {label}"
        save = [] if name in UNSAVED or "--save_dir" in more else ["--save_dir", str(tmp / "out")]
        command = [*self.command(COMMANDS[self.name][name], **changed), *save, *more]
        before = self.same_files(tmp / run) if run and run != "cut" else {}
        result = self.call(command, tmp)
        kind = result.kind
        if kind == "hang" and ((tmp / "out" / "log.csv").exists() or any((tmp / "out" / "samples").glob("*.png"))):
            kind = "accepted"  # it works on what was asked for, a very long time
        self.counts["inputs"] += 1
        self.counts[f"inputs: {kind}"] += 1
        if kind in ("hang", "traceback"):
            self.fails(f"{kind}: {label}", command, result.last_line)
        if kind in ("sentence", "traceback"):
            after = self.same_files(tmp / run) if before else {}
            if (tmp / "out" / "done.json").exists() or not before.items() <= after.items():
                self.counts["inputs: changed what it read"] += 1
                self.fails(f"a failure left done.json or changed what it read: {label}", command, result.last_line)
        now = self.same_files(self.home)
        if not originals.items() <= now.items():  # new files are caches
            self.counts["inputs: changed what it read"] += 1
            self.fails(f"changed {', '.join(sorted(dict(originals.items() - now.items())))[:300]}: {label}", command, result.last_line)
            originals.clear(), originals.update(now)
        shutil.rmtree(tmp)

    def races(self, end):
        text, many = COMMANDS[self.name]["train"], 4
        whole = {}
        for seed in range(1, many + 1):
            tmp = self.scratch()
            self.must(self.command(text, "--seed", seed, "--save_dir", tmp / "run"), tmp)
            whole[seed] = self.contents(tmp / "run")
        for turn in itertools.count():
            if not self.go_on("races", end):
                break
            race = (self.race_fresh, self.race_resumed, self.race_data)[turn % 3]
            tmp = self.scratch()
            before = self.failures
            race(tmp, text, many, whole)
            self.counts["races"] += 1
            self.counts["races: lost"] += self.failures > before
            shutil.rmtree(tmp)

    def together(self, commands, tmp):
        children = []
        for command in commands:
            children.append(self.start(command, tmp))
            time.sleep(self.random.choice((0, 0, 0.02, 0.1)))
        return [self.wait(child, 2 * LIMIT) for child in children]

    def race_fresh(self, tmp, text, many, whole):
        """Two runs on one --save_dir."""
        commands = [self.command(text, "--seed", seed, "--save_dir", tmp / "run") for seed in (1, 2)]
        results = self.together(commands, tmp)
        kinds = sorted(result.kind for result in results)
        if kinds != ["accepted", "sentence"]:
            self.fails("two runs on one fresh --save_dir", commands[0], f"{kinds}: {' | '.join(result.last_line for result in results)}")
        done = tmp / "run" / "done.json"
        if "accepted" in kinds and not (
            done.is_file() and self.contents(tmp / "run") == whole[json.loads((tmp / "run/args.json").read_text())["seed"]]
        ):
            self.fails("two runs on one fresh --save_dir", commands[0], "the files are not those of the run that args.json tells of")

    def race_resumed(self, tmp, text, many, whole):
        """Two --resume of one run that was killed."""
        command = self.command(text, "--seed", 1, "--save_dir", tmp / "run")
        child = self.start(command, tmp, often=True)
        while not (tmp / "run" / "checkpoint.safetensors").exists() and not os.waitpid(child[0], os.WNOHANG)[0]:
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child[0], signal.SIGKILL)
            os.waitpid(child[0], 0)
        results = self.together([[*command, "--resume"]] * 2, tmp)
        kinds = sorted(result.kind for result in results)
        if kinds not in (["accepted", "accepted"], ["accepted", "sentence"]):
            self.fails("two --resume of one run", command, f"{kinds}: {' | '.join(result.last_line for result in results)}")
        elif (found := self.contents(tmp / "run")) != whole[1]:
            differ = sorted(name for name in found.keys() | whole[1].keys() if found.get(name, 0) != whole[1].get(name, 0))
            self.fails("two --resume of one run", command, f"differs: {', '.join(differ)[:200]}")

    def race_data(self, tmp, text, many, whole):
        """Several runs on one fresh data_dir."""
        seeds = range(1, many + 1)
        commands = [self.command(text, "--seed", seed, "--save_dir", tmp / f"run{seed}", data=tmp / "fresh") for seed in seeds]
        for seed, result, command in zip(seeds, self.together(commands, tmp), commands, strict=True):
            if result.status or self.contents(tmp / f"run{seed}") != whole[seed]:
                self.fails("several runs on one fresh data_dir", command, result.last_line if result.status else "differs from a run alone")

    def payloads(self, end):
        tmp = self.scratch()
        for name, write in payloads(tmp / "ran").items():  # each of them is armed
            write(tmp / "file")
            with contextlib.suppress(Exception):
                import numpy as np
                import torch

                load = {"n": lambda path: dict(np.load(path, allow_pickle=True)), "t": lambda path: torch.load(path, weights_only=False)}
                load["o"] = load["t"] if "torch" in name else (lambda path: pickle.loads(path.read_bytes()))
                np.load(tmp / "file", allow_pickle=True) if name == "npy" else load.get(name[0], load["o"])(tmp / "file")
            if not (tmp / "ran").exists():
                raise SystemExit(f"the payload {name} does not work, so its cases would say nothing")
            (tmp / "ran").unlink()
        cases = [(f"{how} as {label}", name, more, None, files, how) for label, name, more, files in PLANTS for how in payloads("")]
        cases += [("pickle of a part", "unlearn", "", ("original", f"model/{part}"), stem, "torch.save") for part, stem in PICKLED.items()]
        cases += [
            (f"code for {how}", name, "", ("original", "model"), how, None) for how in CODE for name in ("unlearn", "sample", "folder")
        ]
        seen = set()
        for name, run, path in self.read_files():
            if path not in seen:
                seen.add(path)
                cases += [(f"{how} as {path.name}", name, "", (run, path), None, how) for how in self.random.sample(list(payloads("")), 2)]
        cases = [
            case
            for case in cases
            if case[1] in COMMANDS[self.name] and (self.name == "SD" or not case[0].startswith(("code", "pickle of")))
        ]
        self.random.shuffle(cases)
        for done, case in enumerate(cases):
            if not self.go_on("payloads", end):
                return self.skipped.append(f"payloads: {done} of {len(cases)}, for lack of time")
            self.plant(*case)

    def plant(self, label, name, more, place, files, how):
        """Plant a payload: at `files`, in place of a file of a run, or in a part of SD's model."""
        tmp = self.scratch()
        marker, changed = tmp / "marker", {}
        paths = [Path(word.replace("$", str(tmp))) for word in (files or "").split() if not place]
        if place:
            path = place[1] if isinstance(place[1], Path) else self.home / place[0] / place[1]
            changed, path = self.copy(place[0], path, tmp)
            if path.is_file():
                path.unlink()
            elif how is not None:
                (path / f"{files}.safetensors").unlink(missing_ok=True), (path / "model.safetensors").unlink(missing_ok=True)
                path = path / f"{files}.bin"
            paths = [path]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            (evil_code(marker, files) if how is None else payloads(marker)[how])(path)
        save = [] if name in UNSAVED else ["--save_dir", str(tmp / "out")]
        command = [*self.command(COMMANDS[self.name][name], **changed), *more.replace("$", str(tmp)).split(), *save]
        result = self.call(command, tmp, environment={"TORCH_HOME": str(tmp / "torch")})
        self.counts["payloads"] += 1
        self.counts[f"payloads: {result.kind}"] += 1
        if marker.exists():
            self.counts["payloads: ran"] += 1
            self.fails(f"a payload ran: {label}", command, result.last_line)
        elif result.kind in ("traceback", "hang"):
            print(
                f"note {self.name}: {result.kind}: {label}: {shlex.join(command)[:300]}\n       {result.last_line}".replace(
                    str(self.root), "TMP"
                )
            )
        shutil.rmtree(tmp)


# ------------------------------------------------------------------------------------------------------------------- main
def attack_folder(options):
    """What one folder's process does: all parts, then a line of JSON for the table."""
    root, start = Path(options.root), time.monotonic()
    folder = Folder(options.folder, root, options, start + 60 * options.minutes)
    folder.build()
    spent, seconds = 0, {"home": time.monotonic() - start}
    shares = sum(PARTS[part] for part in options.parts)
    begun, allowed = time.monotonic(), folder.deadline - time.monotonic()
    for part in (part for part in PARTS if part in options.parts):
        spent += PARTS[part] / shares
        before, wanted = time.monotonic(), options.number or NUMBERS[part]
        getattr(folder, part)(begun + spent * allowed)
        seconds[part] = time.monotonic() - before
        if part != "payloads" and folder.counts[part] < wanted:
            folder.skipped.append(f"{part}: {folder.counts[part]} of {wanted}, for lack of time or cases")
    found = {"counts": folder.counts, "skipped": folder.skipped, "failures": folder.failures, "seconds": seconds}
    (root / "found.json").write_text(json.dumps(found))


def attack(name, options, root, minutes):
    """Attack one folder in a process of its own; returns what it counted."""
    folder = root / name
    folder.mkdir()
    command = [sys.executable, __file__, "--folder", name, "--root", str(folder), "--minutes", str(minutes), "--seed", str(options.seed)]
    quiet = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",
    }
    quiet |= {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    quiet |= dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")  # nothing is downloaded
    command += ["--number", str(options.number), "--parts", *options.parts]
    status = subprocess.run(command, env=os.environ | quiet).returncode
    found = folder / "found.json"
    return (
        json.loads(found.read_text())
        if found.is_file()
        else {"counts": {}, "skipped": [f"stopped with status {status}"], "failures": 1, "seconds": {}}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", nargs="+", choices=START, default=list(START))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=30, help="time for all of it; what does not fit in is named at the end")
    parser.add_argument("--number", type=int, default=0, help=f"cases of a part in each folder (default: {NUMBERS})")
    parser.add_argument("--jobs", type=int, default=2, help="folders that are attacked at once")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments and the choice of cases")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # these two for the processes that this one starts
    parser.add_argument("--root", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        return attack_folder(options)
    names = options.folders
    start, left = time.monotonic(), len(names)

    def one(name):
        nonlocal left
        rest = options.minutes - (time.monotonic() - start) / 60
        minutes, left = rest / math.ceil(left / options.jobs), left - 1
        return attack(name, options, Path(root), minutes)

    with tempfile.TemporaryDirectory(prefix="attack") as root, ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(names, pool.map(one, names), strict=True))
    rows = sorted(
        {name for result in found.values() for name in result["counts"]}, key=lambda row: (list(PARTS).index(row.split(":")[0]), row)
    )
    print(f"\n| | {' | '.join(names)} | all |\n|---|{'---:|' * (len(names) + 1)}")
    for row in rows:
        numbers = [result["counts"].get(row, 0) for result in found.values()]
        print(f"| {row} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    for name, result in found.items():
        print(f"{name}: " + ", ".join(f"{part} {value:.0f} s" for part, value in result["seconds"].items()), *result["skipped"], sep="; ")
    total = collections.Counter()
    for result in found.values():
        total.update(result["counts"])
    broken = sum(result["failures"] for result in found.values())
    broken -= total["inputs: traceback"] if total["inputs: traceback"] <= total["inputs"] / 100 else 0  # the goal, not a promise of none
    print(f"{broken} broken promises, {(time.monotonic() - start) / 60:.0f} min")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
