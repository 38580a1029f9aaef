"""Data sets, decoded once into memory.

First use decodes a data set and keeps `<data_dir>/<dataset>.npz` with x_train, y_train, x_test, y_test (images uint8 of shape
(N, H, W, C), labels integers). A file of that name that is there already is used as it is. A folder of a user's images is decoded
again when it changes; files.cache_folder says where its .npz is kept.
"""

import hashlib
import os
import re
import struct
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cli import RunError
from data import Split, say
from files import cache_folder, one_at_a_time, writable, write_whole

MOST_CLASSES = 1 << 20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")  # whatever a file is called: Pillow hands EPS to Ghostscript
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")


def load_digits(data_dir, image_size):
    from sklearn.datasets import load_digits as digits  # 8x8 digits that come with scikit-learn

    images, labels = digits(return_X_y=True)
    images = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test], [str(digit) for digit in range(10)]


def from_torchvision(name):
    """A loader for a torchvision data set with train= and a download of its own."""

    def load(data_dir, image_size):
        import torchvision

        arrays = []
        for train in (True, False):
            try:
                data = getattr(torchvision.datasets, name)(data_dir, train=train, download=True)
            except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError on a failed download
                raise RunError(f"{name} is neither in {data_dir} nor could it be downloaded ({error})") from error
            images = np.asarray(data.data)
            arrays += [images.reshape(*images.shape[:3], -1), np.asarray(data.targets)]
        return *arrays, list(data.classes)

    return load


def load_stl10(data_dir, image_size):
    """The labelled part of STL-10 by torchvision, 96 px scaled to `image_size`."""
    import torchvision
    from PIL import Image

    arrays = []
    for part in ("train", "test"):
        try:
            data = torchvision.datasets.STL10(data_dir, split=part, download=True)
        except (OSError, RuntimeError) as error:
            raise RunError(f"STL10 is neither in {data_dir} nor could it be downloaded ({error})") from error
        images = [
            Image.fromarray(image.transpose(1, 2, 0)).resize((image_size, image_size), Image.Resampling.BICUBIC) for image in data.data
        ]
        arrays += [np.stack([np.asarray(image) for image in images]), np.asarray(data.labels)]
    return *arrays, list(data.classes)


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


def read_folder(root, allow_empty=False):
    """torchvision's ImageFolder, links followed. Says which files it leaves out."""
    from torchvision.datasets import ImageFolder

    class Folder(ImageFolder):
        def find_classes(self, directory):
            names = class_folders(directory)
            return names, {name: label for label, name in enumerate(names)}

    def is_image(path):
        image, hidden = path.lower().endswith(IMAGE_ENDINGS), os.path.basename(path).startswith(".")
        others.extend([path] * (not image and not hidden))
        return image and not hidden

    others = []
    found = Folder(root, is_valid_file=is_image, allow_empty=allow_empty)
    if others:
        say(f"{root}: {len(others):,} not read, as no images by their names. The first is {others[0]}")
    return found


def load_folder(data_dir, image_size):
    """A user's own images: <data_dir>/train/<class>/* with test/ or val/ next to it, or <data_dir>/<class>/*, a tenth of each class held
    out to test."""
    train_root, test_root = find_splits(Path(data_dir))
    if len(class_folders(train_root)) < 2:
        raise RunError(f"{train_root} must hold at least two class folders of images; it holds {len(class_folders(train_root))}")
    train = read_folder(train_root)
    if test_root is None:
        draw, held_out = np.random.default_rng(0), set()
        for label in range(len(train.classes)):
            mine = draw.permutation([i for i, number in enumerate(train.targets) if number == label])
            held_out.update(mine[: max(len(mine) // 10, len(mine) > 1)].tolist())
        rows = [[row for i, row in enumerate(train.samples) if (i in held_out) == part] for part in (False, True)]
    else:
        test = read_folder(test_root, allow_empty=True)
        if unknown := set(test.classes) - set(train.classes):
            raise RunError(f"{test_root} has classes that {train_root} lacks: {', '.join(sorted(unknown))}")
        rows = [train.samples, [(path, train.class_to_idx[test.classes[label]]) for path, label in test.samples]]
    if not rows[1]:
        where = f"{test_root} holds none" if test_root else f"each class in {train_root} has only one"
        raise RunError(f"there is no image to test on: {where}. Add some")
    return *decode_both(*rows, image_size), train.classes


def open_image(path):
    """The image of a file, decoded and upright, in 8 bits. Raises RunError for one that cannot be read."""
    from PIL import Image, ImageOps

    if not os.path.isfile(path):
        raise RunError(f"{path} is no file: remove it")
    # Pillow raises SyntaxError for some broken PNGs, ValueError for long texts in them, and others for other damage
    damage = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, Image.DecompressionBombError)
    try:
        with Image.open(path, formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode[0] not in "IF":
                return upright
            grey = np.asarray(upright, np.float64)
            wide = upright.mode == "I" and image.format != "PPM"  # Pillow scales those to 16 bits
            if upright.mode == "F" or (wide and not (grey.min() >= 0 and 256 <= grey.max() <= 65535)):
                raise ValueError(f"it has 32 bits, with numbers of {grey.min():g} to {grey.max():g}: save it with 8 or 16")
            return Image.fromarray((grey / 257).round().clip(0, 255).astype(np.uint8))  # 16 bits
    except damage as error:
        raise RunError(f"{path} cannot be read as an image ({error}): repair or remove it") from error


def decode(rows, size):
    """Return (uint8 images (N, size, size, 3), labels (N,)): shorter side scaled to `size`, then the centre cut out."""
    from PIL import Image, ImageOps
    from tqdm import tqdm

    images = np.empty((len(rows), size, size, 3), np.uint8)

    def read(i):
        """Decode into its place. Returns what is wrong with the file, or None."""
        try:
            images[i] = np.asarray(ImageOps.fit(open_image(rows[i][0]).convert("RGB"), (size, size), Image.Resampling.BICUBIC))
        except RunError as error:
            return str(error)

    pool = ThreadPoolExecutor(min(16, os.cpu_count()))  # Pillow decodes and scales without the interpreter's lock
    try:
        said = list(tqdm(pool.map(read, range(len(rows))), "decode", len(rows), disable=None))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    if broken := [error for error in said if error]:
        more = f" (and {len(broken) - 5} more)" if len(broken) > 5 else ""
        raise RunError(f"{'; '.join(broken[:5])}{more}")
    return images, np.array([label for _, label in rows], np.int64)


def decode_both(train, test, size):
    """decode() of the training and of the test rows, together: whatever is broken is named at once."""
    images, labels = decode([*train, *test], size)
    return images[: len(train)], labels[: len(train)], images[len(train) :], labels[len(train) :]


@dataclass(frozen=True)
class Source:
    """How a data set is decoded, its image size, and whether its images may be mirrored."""

    load: object
    size: int
    flip: bool


DATASETS = {
    "cifar10": Source(from_torchvision("CIFAR10"), 32, True),
    "stl10": Source(load_stl10, 64, True),
    "fashion_mnist": Source(from_torchvision("FashionMNIST"), 28, False),
    "digits": Source(load_digits, 8, False),
    "folder": Source(load_folder, 64, True),
}


@dataclass
class Images:
    """A whole data set. x_*: uint8 (N, H, W, C); y_*: int64 (N,); classes: names by label; sha: sha256 of images and labels."""

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: list
    sha: str

    def train(self, indices, name):
        """A Split of the training images at `indices`, int64 on the CPU."""
        here = indices.to(self.x_train.device)
        return Split(self.x_train[here], self.y_train[here], indices, name)


def load_images(dataset, data_dir, image_size=None, device="cpu", cache_dir=None):
    """Return the Images of a data set. Raises RunError for missing, truncated or contradictory data."""
    data_dir = Path(data_dir).expanduser()
    if image_size and dataset != "folder":
        raise RunError("--image_size is for --dataset folder: the other data sets have a size of their own")
    size = image_size or DATASETS[dataset].size
    own = dataset == "folder"
    name, folder = f"folder_{size}.npz" if own else f"{dataset}.npz", cache_folder(data_dir, own, cache_dir)
    cache = (data_dir if (data_dir / name).is_file() and not own else folder) / name
    stamp = folder_stamp(data_dir) if own else None
    arrays = read_cache(cache, stamp)
    if arrays is None:
        if own and not data_dir.is_dir():
            raise RunError(f"--data_dir {data_dir} is not a folder")
        data_dir.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder):
            arrays = read_cache(cache, stamp) or make_cache(dataset, data_dir, size, stamp, cache)  # another run may have made it meanwhile
    check_arrays(cache, arrays)
    kinds = {"x_train": np.uint8, "y_train": np.int64, "x_test": np.uint8, "y_test": np.int64}
    tensors = [torch.from_numpy(np.ascontiguousarray(arrays[name], kind)) for name, kind in kinds.items()]
    count = int(max(tensors[1].max(), tensors[3].max())) + 1
    classes = [str(name) for name in arrays["classes"]] if "classes" in arrays else [str(label) for label in range(count)]
    if count > len(classes):
        raise RunError(f"{cache} has label {count - 1} but only {len(classes)} class names")
    x_train, y_train, x_test, y_test = (tensor.to(device) for tensor in tensors)
    return Images(x_train, y_train, x_test, y_test, classes, content_sha(arrays))


def make_cache(dataset, data_dir, size, stamp, cache):
    """{name: array} of a data set, downloaded if need be, which are kept in the file `cache`."""
    names = ("x_train", "y_train", "x_test", "y_test", "classes")
    arrays = dict(zip(names, DATASETS[dataset].load(data_dir, size), strict=True)) | ({"stamp": stamp} if stamp else {})
    if writable(cache.parent):
        write_whole(cache, lambda partial: np.savez(partial.open("wb"), **arrays))
    else:
        warnings.warn(f"{cache.parent} is read-only: the images are decoded again in every run", stacklevel=3)
    return arrays


def read_cache(cache, stamp):
    """{name: array} of a .npz file; None where there is none, or one of another stamp (stamp None: as it is)."""
    if not cache.is_file():
        return None
    try:
        if not zipfile.is_zipfile(cache):
            raise zipfile.BadZipFile("it is not an archive, or cut off")
        with np.load(cache, allow_pickle=False) as file:
            return dict(file) if stamp is None or str(file.get("stamp", "")) == stamp else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise RunError(f"{cache} holds Python objects, which are never read: save class names as np.array(names, dtype=str)") from error
        what = f"{cache} is an incomplete or damaged .npz file ({error})"
        raise RunError(f"{what}: copy it again if it is your own, else remove it and it is made again") from error


def check_arrays(cache, arrays):
    for part in ("train", "test"):
        x, y = arrays.get(f"x_{part}"), arrays.get(f"y_{part}")
        if x is None or y is None or not len(x):
            raise RunError(f"{cache} holds no {part} images: it must have x_{part} and y_{part}")
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise RunError(f"x_{part} in {cache} must be uint8 of shape (N, H, W, 1 or 3), not {x.dtype} {x.shape}")
        if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= MOST_CLASSES:
            raise RunError(f"y_{part} in {cache} must be {len(x)} labels of 0 to {MOST_CLASSES - 1}, not {y.dtype} {y.shape}")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise RunError(f"x_train and x_test in {cache} hold images of different sizes")
    names = np.asarray(arrays.get("classes", ["0"]))
    if names.ndim != 1 or names.dtype.kind not in "Uiu":
        raise RunError(f"classes in {cache} must be text of shape (K,), not {names.dtype} {names.shape}: np.array(names, dtype=str)")


def content_sha(arrays):
    """sha256 of all images and labels: what a run was made from, wherever it lies."""
    digest = hashlib.sha256()
    for name, kind in (("x_train", np.uint8), ("y_train", np.int64), ("x_test", np.uint8), ("y_test", np.int64)):
        digest.update(np.ascontiguousarray(arrays[name], kind))
    return digest.hexdigest()


def folder_stamp(data_dir):
    """Names, sizes and times of all images below a folder, hashed: a changed folder is decoded again.

    Raises RunError for a link to a folder that holds the link: its images would count forty times.
    """
    paths = []
    for folder, inner, files in os.walk(data_dir, followlinks=True):
        for link in filter(os.path.islink, (os.path.join(folder, name) for name in inner)):
            if os.path.commonpath([os.path.realpath(folder), target := os.path.realpath(link)]) == target:
                raise RunError(f"{link} is a link to a folder that holds it: remove it")
        paths += [os.path.join(folder, file) for file in files if file.lower().endswith(IMAGE_ENDINGS)]
    rows = sorted((os.path.relpath(path, data_dir), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths)
    return hashlib.sha256(repr(rows).encode()).hexdigest()
