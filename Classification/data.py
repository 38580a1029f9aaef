"""Splits of a data set, what is forgotten, and batches.

Images stay in memory as uint8 tensors (N, H, W, C). They become float in [0, 1], shape (B, C, H, W) in channels_last, a batch
at a time, augmented on the device they live on: no per-image work, no worker processes.
"""

import functools
import hashlib
import sys
from dataclasses import dataclass

import numpy as np
import torch

import run


@dataclass
class Split:
    """Some rows of an image tensor. x: all images; y: all labels; rows: int64 positions that belong to the split."""

    x: torch.Tensor
    y: torch.Tensor
    rows: torch.Tensor

    def __len__(self):
        return len(self.rows)

    def labels(self):
        """int64 (n,) on the CPU."""
        return self.y.cpu()[self.rows]

    def take(self, rows):
        return Split(self.x, self.y, rows)


def mix(*keys):
    """A seed made of a purpose and numbers, so that no purpose disturbs another."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "little") >> 1


def generator(*keys):
    """A CPU generator of its own for a purpose: equal keys give equal draws."""
    return torch.Generator().manual_seed(mix(*keys))


def train_and_validation(images, split_seed, val_fraction, limit=None):
    """Return (train, validation) Splits: `val_fraction` of each class is held out, by `split_seed`; at most `limit` training samples."""
    draw, labels, train, val = generator("validation", split_seed), images.y_train.cpu(), [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=draw)]
        held_out = round(val_fraction * len(rows))
        val.append(rows[:held_out])
        train.append(rows[held_out:])
    train, val = torch.cat(train).sort().values, torch.cat(val).sort().values
    if limit is not None:
        train = train[torch.randperm(len(train), generator=draw)[:limit]].sort().values
    return Split(images.x_train, images.y_train, train), Split(images.x_train, images.y_train, val)


@functools.cache  # once for each class, however often it is looked up
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
        for spell in (str, str.casefold, unpadded):  # from strict to lax
            found = found or [label for label, known in enumerate(classes) if spell(known) == spell(name)]
        if len(found) > 1:
            alike = " or ".join(classes[label] for label in found)
            raise run.RunError(f"the class {name} could be {alike}: spell it exactly")
        if not found and number is None:
            known = f"{', '.join(classes[:20])}{', ...' * (len(classes) > 20)}"
            raise run.RunError(f"there is no class {name}: known are 0 to {len(classes) - 1} ({known})")
        if found and number not in (None, found[0]):
            say(f"class {name}: taken as the class named {classes[found[0]]}, not as number {number}, which is named {classes[number]}")
        labels.append(found[0] if found else number)
    return labels


def forget_rows(train, classes, forget_class=None, num_forget=None, forget_indices=None, split_seed=1):
    """Return the rows of the training split to forget, sorted.

    One of: all of some classes; `num_forget` random samples (a fraction of the split if below 1), with `forget_class` of those
    classes only; or a file of indices into the data set's training images. Raises RunError if a class or an index does not
    exist, or if nothing would be forgotten or nothing retained.
    """
    rows = train.rows
    if forget_class:
        wanted = torch.tensor(class_numbers(forget_class, classes))
        rows = rows[torch.isin(train.y.cpu()[rows], wanted)]
    if forget_indices is not None:
        rows = read_indices(forget_indices)
        outside = rows[~torch.isin(rows, train.rows)]
        if len(outside):
            raise run.RunError(
                f"{len(outside)} of the indices in {forget_indices}, the first {int(outside[0])}, are not among the model's training "
                "samples (out of range, or in the validation split: train.py --val_fraction 0 keeps none)"
            )
    if num_forget is not None:
        count = round(num_forget * len(rows)) if isinstance(num_forget, float) else num_forget
        if count > len(rows):
            raise run.RunError(f"--num_forget {num_forget} is more than the {len(rows)} samples there are to forget from")
        rows = rows[torch.randperm(len(rows), generator=generator("forget", split_seed))[:count]]
    if not 0 < len(rows) < len(train):
        raise run.RunError(
            f"{len(rows)} of {len(train)} training samples would be forgotten: at least one must be forgotten and one retained"
        )
    return rows.sort().values


def read_indices(path):
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.array([int(word) for word in path.read_text().split()])
    except (ValueError, EOFError) as error:
        raise run.RunError(f"{path} is no list of indices ({error}): one whole number a line, or a .npy of integers") from error
    if values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
        raise run.RunError(f"{path} must hold at least one index, as whole numbers in one dimension")
    rows = torch.from_numpy(values.astype(np.int64))
    if len(rows.unique()) != len(rows):
        raise run.RunError(f"{path} names some indices twice")
    return rows


def forget_sha(rows):
    """sha256 of the forget set: it travels with masks and runs, and a mismatch is refused."""
    return hashlib.sha256(rows.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


@dataclass
class Batch:
    """This process's slice of a global batch. x: float (B, C, H, W) in [0, 1]; y: int64 (B,); rows: positions in the data set.

    mean(values) takes per-sample values (B,) to this process's share of their mean over the global batch: shares averaged over
    processes give that mean. draw(high) gives B integers in [0, high) that do not depend on the number of processes.
    """

    x: torch.Tensor
    y: torch.Tensor
    rows: torch.Tensor
    weight: float
    part: slice
    size: int
    noise: torch.Generator

    def mean(self, values):
        return values.mean() * self.weight

    def draw(self, high):
        return torch.randint(high, (self.size,), generator=self.noise)[self.part].to(self.y.device)


def epoch_batches(split, batch_size, noise, augment=None, rank=0, world=1):
    """Yield the batches of one pass over a split in random order.

    The pass is cut into ceil(n / batch_size) batches of nearly equal size, so that no short last batch weighs its samples more.
    `noise` draws order, augmentation and labels for the whole global batch; process `rank` of `world` takes its part of it.
    augment: a Source, or None for images as they are.
    """
    order = split.rows[torch.randperm(len(split), generator=noise)]
    for rows in order.tensor_split(-(-len(order) // batch_size)):
        start, stop = len(rows) * rank // world, len(rows) * (rank + 1) // world
        weight = (stop - start) * world / len(rows)
        part = slice(start, stop) if stop > start else slice(0, 1)  # with weight 0: every process takes part in every step
        mine = rows[part].to(split.x.device)
        shifts = flips = None
        if augment is not None:
            shifts = torch.randint(2 * augment.crop + 1, (2, len(rows)), generator=noise)[:, part].to(split.x.device)
            flips = (torch.rand(len(rows), generator=noise) < 0.5)[part].to(split.x.device) if augment.flip else None
        yield Batch(
            to_float(shift_and_flip(split.x[mine], shifts, flips, augment)), split.y[mine], rows[part], weight, part, len(rows), noise
        )


def shift_and_flip(x, shifts, flips, source):
    """Random crops of uint8 images (B, H, W, C) padded with black, then mirrored where `flips` says so."""
    if source is None:
        return x
    count, height, width, _ = x.shape
    pad = source.crop
    padded = torch.nn.functional.pad(x, (0, 0, pad, pad, pad, pad))
    rows = shifts[0][:, None] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(count, width)
    if flips is not None:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    columns = columns + shifts[1][:, None]
    batch = torch.arange(count, device=x.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]]


def to_float(x):
    """uint8 (B, H, W, C) to float (B, C, H, W) in [0, 1]; the strides are channels_last."""
    return x.permute(0, 3, 1, 2).float().div_(255)
