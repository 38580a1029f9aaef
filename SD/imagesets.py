"""Captioned images: class folders, Imagenette, a folder with captions, and digits for a small machine.

Pictures are listed, not held: they are decoded a batch at a time, once, when their latents are encoded.
"""

import csv
import hashlib
import os
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cli import RunError
from data import is_utf8, make_generator, say
from files import one_at_a_time

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")  # whatever a file is called: Pillow hands EPS to Ghostscript
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")
# Imagenette's {folder name: class, as ImageNet calls it}
IMAGENETTE = {"n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw"}
IMAGENETTE |= {"n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump"}
IMAGENETTE |= {"n03445777": "golf ball", "n03888257": "parachute"}
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def open_image(path):
    """The RGB image of a file, decoded and upright, in 8 bits. Raises RunError for one that cannot be read."""
    from PIL import Image, ImageOps

    # Pillow raises SyntaxError for some broken PNGs, ValueError for long texts in them, and others for other damage
    damage = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(path, formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode[0] in "IF":
                grey = np.asarray(upright, np.float64)
                wide = upright.mode == "I" and image.format != "PPM"  # Pillow scales those to 16 bits
                if upright.mode == "F" or (wide and not (grey.min() >= 0 and 256 <= grey.max() <= 65535)):
                    raise ValueError(f"it has 32 bits, with numbers of {grey.min():g} to {grey.max():g}: save it with 8 or 16")
                upright = Image.fromarray((grey / 257).round().clip(0, 255).astype(np.uint8))  # 16 bits
            return upright.convert("RGB")
    except damage as error:
        raise RunError(f"{path} cannot be read as an image ({error}): repair or remove it") from error


@dataclass
class Pictures:
    """Images at `size` px: files, or uint8 arrays (N, h, w, 3). Shorter side scaled to `size`, then the centre cut out."""

    items: object
    size: int

    def __len__(self):
        return len(self.items)

    def read(self, rows):
        """uint8 (B, size, size, 3) of some rows. Raises RunError naming a file that cannot be decoded."""
        from PIL import Image, ImageOps

        images = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for i, row in enumerate(rows):
            item = self.items[row]
            image = Image.fromarray(item).convert("RGB") if isinstance(item, np.ndarray) else open_image(item)
            images[i] = np.asarray(ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC))
        return torch.from_numpy(images)

    def __getitem__(self, place):
        """uint8 (size, size, 3) of one image, or (B, size, size, 3) of a slice."""
        return self.read(range(*place.indices(len(self)))) if isinstance(place, slice) else self.read([place])[0]

    def subset(self, rows):
        return Pictures([self.items[row] for row in rows], self.size)

    def sha(self):
        """sha256 of the contents of all images, in order, and of their size."""
        digest = hashlib.sha256(str(self.size).encode())
        for item in self.items:
            content = item if isinstance(item, np.ndarray) else Path(item).read_bytes()
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


@dataclass
class Dataset:
    """Training and test pictures with their classes; captions: a caption for each training picture, where they have no classes."""

    train: Pictures
    y_train: list
    test: Pictures = None
    y_test: list = field(default_factory=list)
    classes: list = field(default_factory=list)
    captions: list = field(default_factory=list)

    def limited(self, limit, seed):
        """This data set with at most `limit` training pictures, drawn by `seed`; None takes all."""
        if limit is None or limit >= len(self.train):
            return self
        rows = torch.randperm(len(self.train), generator=make_generator("limit", seed))[:limit].sort().values.tolist()
        return replace(self, train=self.train.subset(rows), y_train=[self.y_train[row] for row in rows])


def load_digits(data_dir, size):
    from sklearn.datasets import load_digits as digits  # 8x8 digits that come with scikit-learn

    images, labels = digits(return_X_y=True)
    images = np.repeat(np.round(images * 255 / 16).astype(np.uint8)[..., None].reshape(-1, 8, 8, 1), 3, axis=3)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1437], order[1437:]
    return Dataset(Pictures(images[train], size), labels[train].tolist(), Pictures(images[test], size), labels[test].tolist(), DIGITS)


def load_imagenette(data_dir, size):
    """Imagenette as it was unpacked in data_dir, or else downloaded there by torchvision."""
    with one_at_a_time(data_dir):  # another run may be downloading it
        places = [data_dir, *sorted(data_dir.glob("imagenette*"))]
        root = next((place for place in places if (place / "train" / "n03028079").is_dir()), None)
        if root is None:
            from torchvision.datasets import Imagenette

            try:
                Imagenette(data_dir, "train", size="full", download=True)
            except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError on a failed download
                raise RunError(f"Imagenette is neither in {data_dir} nor could it be downloaded ({error})") from error
            root = data_dir / "imagenette2"
    found = load_folder(root, size)
    found.classes = [IMAGENETTE.get(name, name) for name in found.classes]
    return found


def class_folders(root):
    """Names of the class folders in a folder: hidden ones, and what macOS puts into archives, are none."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else []
    return [name for name in names if not name.startswith((".", "__MACOSX"))]


def find_splits(root):
    """(training, test or None): folders of class folders. They are `root` and None where it holds the classes itself.

    train/ or training/ beside test/, testing/, val/, valid/ or validation/, in any case. One class may be called so, too: a split on its
    own holds at least two class folders.
    """
    named = {name.casefold(): root / name for name in class_folders(root)}
    train = next((named[name] for name in ("train", "training") if name in named), None)
    tests = [named[name] for name in ("test", "testing", "val", "valid", "validation") if name in named]
    if train and (tests or len(class_folders(train)) > 1):
        test = next((folder for folder in tests if class_folders(folder)), None)
        unread = [name for name in class_folders(root) if root / name not in (train, test)]
        if unread:
            say(f"{root}: not read beside {train.name}{f' and {test.name}' if test else ''}: {', '.join(unread)}")
        return train, test
    if test := next((folder for folder in tests if len(class_folders(folder)) > 1), None):
        raise RunError(f"{root} holds {test.name} and no folder train beside it: add one, or name a folder of class folders")
    parts = r"(train|test|val|dev|eval)(ing|id|idation)?[ _-]?(set|data|images?|\d+)?"
    if (names := class_folders(root)) and all(re.fullmatch(parts, name.casefold()) for name in names):
        raise RunError(f"{root} holds {', '.join(names)}, which are no classes: call the parts train and test, or name one of them")
    return root, None


def load_folder(data_dir, size):
    """A user's own images: <data_dir>/train/<class>/* with test/ or val/ next to it, or <data_dir>/<class>/*."""
    train_root, test_root = find_splits(data_dir)
    classes = class_folders(train_root)
    if len(classes) < 2:
        raise RunError(f"{train_root} must hold at least two class folders of images; it holds {len(classes)} folders")
    parts = []
    for root in (train_root, test_root):
        rows = [(path, label) for label, name in enumerate(classes) for path in (list_images(root / name) if root else [])]
        parts += [Pictures([path for path, _ in rows], size), [label for _, label in rows]]
    missing = [name for label, name in enumerate(classes) if label not in parts[1]]
    if missing:
        raise RunError(f"class folder {train_root / missing[0]} holds no images")
    return Dataset(*parts, classes)


def list_images(folder):
    """Files below a folder that are images by their names, links followed. Says which others it leaves out; hidden ones are no data."""
    paths = (Path(inside, name) for inside, _, names in os.walk(folder, followlinks=True) for name in names if name[0] != ".")
    paths = sorted(path for path in paths if path.is_file())  # a pipe would be waited for without end
    if others := [path for path in paths if path.suffix.lower() not in IMAGE_ENDINGS]:
        say(f"{folder}: {len(others):,} not read, as no images by their names. The first is {others[0]}")
    return [path for path in paths if path.suffix.lower() in IMAGE_ENDINGS]


def load_captions(data_dir, size):
    """Images with a caption each: <data_dir>/metadata.csv with the columns file_name and text."""
    table = data_dir / "metadata.csv"
    if not table.is_file():
        raise RunError(f"{table} does not exist: it must name each image and its caption, in the columns file_name and text")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("file_name", "text") if name not in (reader.fieldnames or [])]
            if missing:
                raise RunError(f"{table} lacks the column {' and '.join(missing)}; it has {', '.join(reader.fieldnames or ['none'])[:300]}")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{table} is not a csv file in UTF-8 ({error}): save it again as one") from error
    odd = next((number for number, row in enumerate(rows, start=1) if None in row or None in row.values()), None)
    if odd is not None:
        raise RunError(f"row {odd} of {table} has other columns than the header: put captions with commas in double quotes")
    absent = next((row["file_name"] for row in rows if not (data_dir / row["file_name"]).is_file()), None)
    if absent is not None or not rows:
        raise RunError(f"{table} names {absent}, which is not in {data_dir}" if rows else f"{table} has no rows")
    pictures = Pictures([data_dir / row["file_name"] for row in rows], size)
    return Dataset(pictures, list(range(len(rows))), captions=[row["text"] for row in rows])


def load_images(folder, size):
    """All images below a folder, of no class. Raises RunError if there is none."""
    found = list_images(folder) if folder.is_dir() else []
    if not found:
        raise RunError(f"{folder} is not a folder of images" if not folder.is_dir() else f"{folder} holds no images")
    return Pictures(found, size)


OWN = ("folder", "captions")  # data sets of users
DATASETS = {"digits": load_digits, "imagenette": load_imagenette, "folder": load_folder, "captions": load_captions}


def load(name, data_dir, size):
    """Return a Dataset with images at `size` px. Raises RunError if data_dir does not hold it."""
    data_dir = Path(data_dir)
    if name not in DATASETS or not 0 < size <= 8192:  # a run's args.json may say so
        raise RunError(f"there are no images {str(name)[:60]!r} at {size} px: known are {', '.join(DATASETS)}, of up to 8192 px")
    if name in OWN and not data_dir.is_dir():
        raise RunError(f"--data_dir {data_dir} is not a folder")
    found = DATASETS[name](data_dir, size)
    odd = next((text for text in (*found.classes, *found.captions) if not is_utf8(text)), None)
    if odd is not None:
        raise RunError(f"the class {odd!a} in {data_dir} has a name that is not in UTF-8: rename its folder")
    return found
