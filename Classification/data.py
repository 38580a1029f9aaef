"""Splits of a data set, what is forgotten, and batches.

Images stay in memory as uint8 tensors (N, H, W, C), on the device or on the host. They become float in [0, 1], shape (B, C, H, W) in
channels_last, a batch at a time, augmented on the device: no per-image work, no worker processes.
"""

import functools
import hashlib
import math
import os
import sys
import unicodedata
from dataclasses import dataclass

import numpy as np
import torch

from cli import RunError


@dataclass
class Split:
    """Some images of a data set, and nothing else of it.

    images: uint8 (n, H, W, C), on the host or the device; labels: int64 (n,), on the device that the batches are for; indices: int64
    (n,), on the CPU, their positions in the data set, ascending; name: what the split stands for ("forget", "retain", ...).
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    name: str

    def __len__(self):
        return len(self.indices)

    def take(self, positions):
        """The samples at some positions of the split."""
        images, labels = (part[positions.to(part.device)] for part in (self.images, self.labels))
        return Split(images, labels, self.indices[positions], self.name)

    def some(self, count, *keys):
        """At most `count` samples, drawn by the keys, in their order."""
        if count >= len(self):
            return self
        return self.take(torch.randperm(len(self), generator=make_generator(*keys))[:count].sort().values)


def concatenate(first, second, name):
    """A Split of the samples of two, those of the first one first."""
    pairs = ((getattr(first, field), getattr(second, field)) for field in ("images", "labels", "indices"))
    return Split(*map(torch.cat, pairs), name)


def derive_seed(*keys):
    """A seed of its own for each label and numbers, so that no purpose disturbs another."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "little") >> 1


def make_generator(*keys):
    """A CPU generator of its own for each label and numbers. Equal keys give equal draws."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def train_and_validation(labels, split_seed, val_fraction, limit=None):
    """Return (train, validation) indices, int64 and ascending, of images with these labels (n,).

    `val_fraction` of each class is held out, by `split_seed`. At most `limit` training samples are kept.
    """
    draw, labels, train, val = make_generator("validation", split_seed), labels.cpu(), [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=draw)]
        held_out = round(val_fraction * len(rows))
        val.append(rows[:held_out])
        train.append(rows[held_out:])
    train, val = torch.cat(train).sort().values, torch.cat(val).sort().values
    if not len(train):
        raise RunError(f"--val_fraction {val_fraction} leaves no image to train on")
    if limit is not None:
        train = train[torch.randperm(len(train), generator=draw)[:limit]].sort().values
    return train, val


@functools.cache  # once per class, however often it is looked up
def say(line):
    print(line, file=sys.stderr)


def unpadded(word):
    """A number without zeros before it; any other word as it is."""
    return word.lstrip("0") or "0" if word.isascii() and word.isdigit() else word


def class_numbers(names, classes):
    """Turn class names or numbers into labels, in the order given. Raises RunError for one that does not exist or could be several.

    A name wins over a number, which counts from 0 and holds where no class has that name. Case, and zeros before a number, may differ
    where that leaves one class. Says on stderr which class it took where the word is also the number of another one.
    """
    labels = []
    for name in names:
        number = next((label for label in range(len(classes)) if str(label) == unpadded(name)), None)
        found = []
        for spell in (str, lambda word: unicodedata.normalize("NFC", word).casefold(), unpadded):  # from strict to lax
            found = found or [label for label, known in enumerate(classes) if spell(known) == spell(name)]
        if len({classes[label] for label in found}) < len(found):
            raise RunError(f"{len(found)} classes are called {name}: give the number of one, {' or '.join(map(str, found))}")
        if len(found) > 1:
            alike = " or ".join(classes[label] for label in found)
            raise RunError(f"the class {name} could be {alike}: spell it exactly")
        if not found and number is None:
            known = f"{', '.join(classes[:20])}{', ...' * (len(classes) > 20)}"
            raise RunError(f"there is no class {name}: known are 0 to {len(classes) - 1} ({known})")
        if found and number not in (None, found[0]):
            say(f"class {name}: taken as the class named {classes[found[0]]}, not as number {number}, which is named {classes[number]}")
        labels.append(found[0] if found else number)
    return labels


def forget_indices(train, labels, classes, forget_class=None, num_forget=None, indices_file=None, split_seed=1, files=None):
    """Return the indices to forget out of `train`, the training indices, both ascending. labels: (N,), of the data set's training images.

    One of: all samples of some classes; `num_forget` random samples (a fraction of them if below 1), of `forget_class` only if that
    is given; or a file of indices into the data set's training images, or of their paths where `files` has them. Raises RunError if a
    class or an index does not exist, or if nothing would be forgotten or nothing retained.
    """
    chosen = train
    if forget_class:
        chosen = train[torch.isin(labels.cpu()[train], torch.tensor(class_numbers(forget_class, classes)))]
    if indices_file is not None:
        chosen = read_indices(indices_file, files)
        outside = chosen[~torch.isin(chosen, train)]
        if len(outside):
            which = f"{len(outside)} of the indices in {indices_file}, the first {int(outside[0])},"
            why = "out of range, in the validation split (train.py --val_fraction 0 keeps none), or left out by train.py --limit"
            raise RunError(f"{which} are not among the model's training samples: {why}")
    if num_forget is not None:
        count = round(num_forget * len(chosen)) if isinstance(num_forget, float) else num_forget
        if count > len(chosen):
            raise RunError(f"--num_forget {num_forget} is more than the {len(chosen)} samples there are to forget from")
        chosen = chosen[torch.randperm(len(chosen), generator=make_generator("forget", split_seed))[:count]]
    if not 0 < len(chosen) < len(train):
        share = f"{len(chosen)} of {len(train)} training samples"
        raise RunError(f"{share} would be forgotten: at least one must be forgotten and one retained")
    return chosen.sort().values


def read_indices(path, files=None):
    """Indices, int64 (n,), out of a file of them, or of paths whose places in the list `files` they are."""
    if not path.is_file():
        raise RunError(f"{path} does not exist, or is no file")
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.array([int(word) for word in path.read_text().split()])
    except (ValueError, EOFError, OverflowError, MemoryError) as error:
        if not files or path.suffix == ".npy":
            raise RunError(f"{path} is not a list of indices ({error}): one whole number per line, or a .npy of integers") from error
        values = places(path, files)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
        raise RunError(f"{path} must hold at least one index, as whole numbers in one dimension")
    rows = torch.from_numpy(values.astype(np.int64))
    if len(rows.unique()) != len(rows):
        raise RunError(f"{path} names some indices twice")
    return rows


def places(path, files):
    """Where each of the paths in a file, one per line, stands in the list `files`."""
    rows, text = {name: row for row, name in enumerate(files)}, path.read_text(errors="surrogateescape")
    names = [os.path.normpath(line.strip()) for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    if absent := sorted((name for name in names if name not in rows), key=str.isdigit):  # a list of indices has one bad line
        how = f"write paths below --data_dir, as {files[0]}, or indices"
        raise RunError(f"{path} lists {absent[0]}, which is no training image, or one held out to test: {how}")
    return np.array([rows[name] for name in names])


def forget_sha(indices):
    """sha256 of the forget set. It travels with masks and runs, and a mismatch is refused."""
    return hashlib.sha256(indices.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


@dataclass
class Batch:
    """This process's slice of a global batch.

    images: float (B, C, H, W) in [0, 1]; labels: int64 (B,); positions: (B,), those of the samples in their split; size: of the
    global batch. mean(values) takes per-sample values (B,) to this process's share of their mean over the global batch: shares
    averaged over processes give that mean. draw(high) gives B integers in [0, high) that do not depend on the number of processes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    size: int
    weight: float
    part: slice
    noise: torch.Generator

    def mean(self, values):
        return values.mean() * self.weight

    def draw(self, high):
        return to_device(torch.randint(high, (self.size,), generator=self.noise)[self.part], self.labels.device)


def epoch_batches(split, batch_size, noise, augment=None, rank=0, world=1):
    """Yield the Batches of one pass over a split in random order.

    The pass is cut into ceil(n / batch_size) batches of nearly equal size, so that no short last batch weighs its samples more.
    `noise` draws order, augmentation and labels for the whole global batch; process `rank` of `world` takes its part of it.
    augment: an imagesets.Source, or None for images as they are.
    """
    for order in torch.randperm(len(split), generator=noise).tensor_split(math.ceil(len(split) / batch_size)):
        start, stop = len(order) * rank // world, len(order) * (rank + 1) // world
        weight = (stop - start) * world / len(order)
        # A process without a sample of its own takes one with weight 0, so that every process takes part in every step
        part = slice(start, stop) if stop > start else slice(0, 1)
        device = split.labels.device  # images may be kept on the host
        positions = to_device(order[part], device)
        shifts = flips = None
        if augment is not None:
            shifts = to_device(torch.randint(2 * augment.crop + 1, (2, len(order)), generator=noise)[:, part], device)
            flips = to_device((torch.rand(len(order), generator=noise) < 0.5)[part], device) if augment.flip else None
        mine = split.images[order[part] if split.images.is_cpu else positions]
        images = to_float(shift_and_flip(to_device(mine, device), shifts, flips, augment))
        yield Batch(images, split.labels[positions], positions, len(order), weight, part, noise)


def shift_and_flip(images, shifts, flips, source):
    """Random crops of uint8 images (B, H, W, C) padded with black, then mirrored where `flips` says so."""
    if source is None:
        return images
    count, height, width, _ = images.shape
    pad = source.crop
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    rows = shifts[0][:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    if flips is not None:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    columns = columns + shifts[1][:, None]
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]]


def to_device(tensor, device):
    """The tensor on a device. Copies to a GPU come from pinned memory, so that neither the CPU nor the GPU waits for the other."""
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" and tensor.is_cpu else tensor.to(device)


def to_float(images):
    """uint8 (B, H, W, C) to float (B, C, H, W) in [0, 1]; the strides are channels_last."""
    return images.permute(0, 3, 1, 2).float().div_(255)
