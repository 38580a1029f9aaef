"""Splits of a data set, what is forgotten, and batches of noised images.

Images stay in memory as uint8 tensors (N, H, W, C). They become float in [-1, 1], shape (B, C, H, W), a batch at a time on the
device they live on: no per-image work, no worker processes. What a step sees follows from the seed and the step's number alone,
so that a run can continue at any step and does not depend on the number of processes.
"""

import functools
import hashlib
import sys
import unicodedata
from dataclasses import dataclass

import torch

from cli import RunError


@dataclass
class Split:
    """Some images of a data set, and nothing else of it.

    images: uint8 (n, H, W, C); labels: int64 (n,); indices: int64 (n,), on the CPU, their positions in the data set, ascending;
    name: what the split stands for ("forget", "retain", ...); noise: every batch gets images of uniform noise instead, drawn anew.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    name: str
    noise: bool = False

    def __len__(self):
        return len(self.indices)

    def take(self, positions):
        """The samples at some positions of the split."""
        here = positions.to(self.images.device)
        return Split(self.images[here], self.labels[here], self.indices[positions], self.name)


@dataclass(frozen=True)
class Classes:
    """names: by label; forgotten: labels. The label after the last one, `null`, stands for no class."""

    names: list
    forgotten: tuple = ()

    @property
    def null(self):
        return len(self.names)

    @property
    def retained(self):
        return tuple(label for label in range(len(self.names)) if label not in self.forgotten)


def derive_seed(*keys):
    """A seed of its own for each label and numbers, so that no purpose disturbs another."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "little") >> 1


def make_generator(*keys):
    """A CPU generator of its own for each label and numbers. Equal keys give equal draws."""
    return torch.Generator().manual_seed(derive_seed(*keys))


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


def select_classes(words, classes):
    """Labels that a list like "0,3", "cat", "all" or "x0" (all but 0, as in the paper's repository) names, in order, without doubles."""
    labels = []
    for word in words:
        if word == "all":
            labels += range(len(classes))
        elif word.startswith("x") and word.casefold() not in map(str.casefold, classes):
            excluded = word[1:].split(",")
            padded = next((part for part in excluded if part not in classes and unpadded(part) != part), None)
            if padded:  # 01 is 0 and 1 in the paper's repository: never read it as 1
                raise RunError(f"there is no class {padded} to leave out: write x0,1 to leave out 0 and 1")
            excluded = class_numbers(excluded, classes)
            labels += [label for label in range(len(classes)) if label not in excluded]
        else:
            labels += class_numbers(word.split(","), classes)
    return list(dict.fromkeys(labels))


def forget_classes(names, classes):
    """Return the Classes with the forgotten ones. Raises RunError if one does not exist or none would be retained."""
    forgotten = tuple(sorted(set(class_numbers(names, classes))))
    if len(forgotten) == len(classes):
        raise RunError("all classes would be forgotten: at least one must be retained")
    return Classes(list(classes), forgotten)


def targets(classes, target_class=None):
    """The class c' != c that stands in for each label in Eq. 7 of the paper: int64 (K,).

    For a forgotten class it is `target_class`, or else the next retained one, as in the official release ((c + 1) mod 10);
    a retained class stands for itself. Raises RunError if the target does not exist or is forgotten too.
    """
    count = len(classes.names)
    table = list(range(count))
    for label in classes.forgotten:
        if target_class is None:
            table[label] = next(other % count for other in range(label + 1, label + count) if other % count in classes.retained)
        else:
            table[label] = class_numbers([target_class], classes.names)[0]
            if table[label] in classes.forgotten:
                raise RunError(f"--target_class {target_class} is forgotten itself: name a class that is retained")
    return torch.tensor(table)


def split(images, classes):
    """Return (forget, retain) Splits: the training images of the forgotten classes, and all others."""
    forgotten = torch.isin(images.y_train.cpu(), torch.tensor(classes.forgotten, dtype=torch.int64))
    parts = images.train(forgotten.nonzero().squeeze(1), "forget"), images.train((~forgotten).nonzero().squeeze(1), "retain")
    if classes.forgotten and not (len(parts[0]) and len(parts[1])):
        share = f"{len(parts[0])} of {len(forgotten)} training images"
        raise RunError(f"{share} are of the classes to forget: some must be forgotten and some retained")
    return parts


def forget_sha(indices):
    """sha256 of the forget set. It travels with masks and runs, and a mismatch is refused."""
    return hashlib.sha256(indices.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


def to_device(tensor, device):
    """The tensor on a device. Copies to a GPU come from pinned memory, so that neither the CPU nor the GPU waits for the other."""
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" and tensor.is_cpu else tensor.to(device)


def to_float(x):
    """uint8 (B, H, W, C) to float (B, C, H, W) in [-1, 1]."""
    return x.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(x):
    """float (B, C, H, W) in [-1, 1], clipped, to uint8 (B, H, W, C)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


@dataclass
class Batch:
    """This process's slice of a global batch.

    images: float (B, C, H, W) in [-1, 1]; labels: (B,); t: timesteps (B,), antithetic over the global batch; noise: standard normal,
    like images; uniform: (B,) in [0, 1), for class dropout. mean(values) takes per-sample values (B,) to this process's share of
    their mean over the global batch: shares averaged over processes give that mean.
    """

    images: torch.Tensor
    labels: torch.Tensor
    t: torch.Tensor
    noise: torch.Tensor
    uniform: torch.Tensor
    weight: float

    def mean(self, values):
        return values.mean() * self.weight


class Stream:
    """The endless series of batches of a split: whole random passes after one another, cut into batches of equal size.

    batch(step) is what process `rank` of `world` sees of a step. Timesteps t and T - 1 - t in pairs (antithetic, as in the official
    release), noise and flips are drawn for the whole global batch, on the CPU, from seed, name of the split and step.
    """

    def __init__(self, split, *, batch_size, seed, timesteps, flip=False, rank=0, world=1):
        self.split, self.batch_size, self.seed, self.timesteps = split, batch_size, seed, timesteps
        self.flip, self.rank, self.world = flip, rank, world
        self._order = functools.lru_cache(2)(self._shuffle)  # of this pass and the next

    def _shuffle(self, epoch):
        return torch.randperm(len(self.split), generator=make_generator("order", self.seed, self.split.name, epoch))

    def positions(self, step):
        """int64 (batch_size,): where in the split the images of a step's global batch are."""
        parts, start, stop = [], step * self.batch_size, (step + 1) * self.batch_size
        while start < stop:
            epoch, offset = divmod(start, len(self.split))
            parts.append(self._order(epoch)[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def batch(self, step):
        size, device = self.batch_size, self.split.images.device
        first, last = size * self.rank // self.world, size * (self.rank + 1) // self.world
        # A process without a sample of its own takes one with weight 0, so that every process takes part in every step
        part = slice(first, last) if last > first else slice(0, 1)
        draw = make_generator("batch", self.seed, self.split.name, step)
        half = torch.randint(self.timesteps, ((size + 1) // 2,), generator=draw)
        t = torch.cat([half, self.timesteps - 1 - half])[:size]
        uniform, mirrored = torch.rand(size, generator=draw), torch.rand(size, generator=draw) < 0.5
        _, height, width, channels = self.split.images.shape
        noise = torch.randn(size, channels, height, width, generator=draw)
        positions = to_device(self.positions(step)[part], device)
        if self.split.noise:
            images = to_device(torch.rand(noise.shape, generator=draw)[part] * 2 - 1, device)
        else:
            images = to_float(self.split.images[positions])
        if self.flip:
            images = torch.where(to_device(mirrored[part], device).view(-1, 1, 1, 1), images.flip(3), images)
        values = (to_device(value[part], device) for value in (t, noise, uniform))
        return Batch(images, self.split.labels[positions], *values, weight=(last - first) * self.world / size)


def whole_pass(split, batch_size, seed, timesteps, number=0, rank=0, world=1):
    """Yield (images, labels, t, noise) over a split once, every image weighted once, in order, without augmentation.

    Timesteps are stratified over the split: the i-th of n images in a random order has t = floor(T * (i + u) / n), u uniform in
    [0, 1), so that each pass covers the whole noise range evenly. All draws follow from the seed and the pass's number.
    """
    draw, count = make_generator("pass", seed, number), len(split)
    places = torch.randperm(count, generator=draw) + torch.rand(count, generator=draw).double()
    t = (timesteps * places / count).long().clamp_max(timesteps - 1)
    for positions in torch.arange(count).tensor_split(world)[rank].split(batch_size):
        if not len(positions):  # fewer images than processes
            continue
        part = split.take(positions)
        images = to_float(part.images)
        noise = torch.stack([torch.randn(images.shape[1:], generator=make_generator("noise", seed, number, int(i))) for i in positions])
        yield images, part.labels, to_device(t[positions], images.device), to_device(noise, images.device)
