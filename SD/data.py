"""Prompts, latents and batches of them, and what is forgotten.

Prompts are numbers into a table of embeddings; images are the mean and the standard deviation of their latents, encoded once. What a
step sees follows from the seed and the step's number alone, so that a run can continue at any step and does not depend on the number
of processes.
"""

import functools
import hashlib
import sys
import unicodedata
from dataclasses import dataclass

import torch

from cli import RunError, number

NULL = ""  # the empty prompt: no condition, for guidance
TIMESTEPS = 1000  # of every noise schedule here


@dataclass
class Split:
    """Some images of a data set, and nothing else of it.

    images: uint8 (n, H, W, 3), or moments (n, 2C, h, w), float: mean and standard deviation of each image's latent, scaled as the
    U-Net sees it; labels: int64 (n,), the number of each image's prompt (or class); name: what the split stands for ("forget", ...).
    """

    images: torch.Tensor
    labels: torch.Tensor
    name: str

    def __len__(self):
        return len(self.labels)

    @property
    def of_pixels(self):
        return self.images.dtype == torch.uint8

    @property
    def shape(self):
        """Shape (C, H, W) of an image, or (C, h, w) of a latent."""
        if self.of_pixels:
            return (self.images.shape[3], *self.images.shape[1:3])
        return (self.images.shape[1] // 2, *self.images.shape[2:])

    def load(self, positions, normal):
        """Images (B, C, H, W) in [-1, 1], or latents mean + std * normal."""
        if self.of_pixels:
            return to_float(to_device(self.images[positions], normal.device))
        mean, std = to_device(self.images[positions], normal.device).chunk(2, dim=1)
        return mean + std * normal


def prompts_alone(prompts, shape, name):
    """A Split of prompts without images, latents zero: for methods that start from noise. prompts: numbers; shape: (C, h, w)."""
    return Split(torch.zeros(1, 2 * shape[0], *shape[1:]).expand(len(prompts), -1, -1, -1), torch.as_tensor(prompts), name)


def is_utf8(text):
    """Whether text can be written in UTF-8. Odd bytes of a command line or a file name come as surrogates, which cannot."""
    return text.encode(errors="replace").decode() == text


# argparse types: a prompt, perhaps the empty one; a prompt that is not empty; a prompt with a place for the name of a class
prompt = number(str, is_utf8, "text in UTF-8")
full_prompt = number(str, lambda text: text.strip() and is_utf8(text), "text in UTF-8, not empty")
one_place = "text in UTF-8 with one {}, where the name of the class goes, and no other braces"
template = number(str, lambda text: is_utf8(text) and text.count("{}") == text.count("{") == text.count("}") == 1, one_place)


def derive_seed(*keys):
    """A seed of its own for each label and numbers, so that no purpose disturbs another."""
    return int.from_bytes(hashlib.sha256(repr(keys).encode()).digest()[:8], "little") >> 1


def make_generator(*keys):
    """A CPU generator of its own for each label and numbers. Equal keys give equal draws."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def need(record, *names):
    """RunError unless a files.Record, which has checked the types of its values, gives all of these names."""
    for name in names:
        if record[name] is None:
            raise RunError(f"{record.path} has nothing for {name}: it was edited or damaged. Make the run again")


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


def next_retained(label, forgotten, count):
    """The class c' != c that stands in for a forgotten one: the next one that is retained, as in the official release."""
    return next(other % count for other in range(label + 1, label + count) if other % count not in forgotten)


def to_device(tensor, device):
    """The tensor on a device. Copies to a GPU come from pinned memory, so that neither the CPU nor the GPU waits for the other."""
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" and tensor.is_cpu else tensor.to(device)


def to_float(images):
    """uint8 (B, H, W, C) to float (B, C, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


@dataclass
class Batch:
    """A slice of a global batch: this process's, or a part of it.

    images: latents (B, C, h, w), or images in [-1, 1]; labels: numbers of their prompts (B,); t: timesteps (B,), antithetic over the
    global batch; noise: standard normal, like images; uniform: (B,) in [0, 1), for prompt dropout. mean(values) takes per-sample
    values (B,) to this slice's share of their mean over the global batch: shares averaged over the slices give that mean.
    """

    images: torch.Tensor
    labels: torch.Tensor
    t: torch.Tensor
    noise: torch.Tensor
    uniform: torch.Tensor
    weight: float
    step: int

    def mean(self, values):
        return values.mean() * self.weight


class Stream:
    """The endless series of batches of a split: whole random passes after one another, cut into batches of equal size.

    batch(step, part) is what process `rank` of `world` sees of a step, on `device`, or of that the part-th of `parts` slices. Latents,
    timesteps (in pairs t, T - 1 - t), noise and dropout are drawn for the whole global batch, on the CPU, from seed, name of the split and
    step. So neither the number of processes nor that of slices changes them.
    """

    def __init__(self, split, *, batch_size, seed, timesteps, device, rank=0, world=1, parts=1):
        self.split, self.batch_size, self.seed, self.timesteps = split, batch_size, seed, timesteps
        self.device, self.rank, self.world, self.parts = device, rank, world, parts
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

    def batch(self, step, part=0):
        size, slices, number = self.batch_size, self.world * self.parts, self.rank * self.parts + part
        first, last = size * number // slices, size * (number + 1) // slices
        # A process without a sample of its own takes one with weight 0, so that every process takes part in every step
        rows = slice(first, last) if last > first else slice(0, 1)
        draw = make_generator("batch", self.seed, self.split.name, step)
        half = torch.randint(self.timesteps, ((size + 1) // 2,), generator=draw)
        t = torch.cat([half, self.timesteps - 1 - half])[:size]
        uniform = torch.rand(size, generator=draw)
        noise, normal = (torch.randn(size, *self.split.shape, generator=draw) for _ in range(2))
        t, uniform, noise, normal = (to_device(value[rows], self.device) for value in (t, uniform, noise, normal))
        positions, weight = self.positions(step)[rows], (last - first) * slices / size
        labels = to_device(self.split.labels[positions], self.device)
        return Batch(self.split.load(positions, normal), labels, t, noise, uniform, weight, step)


def whole_pass(split, batch_size, seed, timesteps, device, number=0, rank=0, world=1):
    """Yield (latents, labels, t, noise) over a split once, every image weighted once, in order.

    Timesteps are stratified over the split: the i-th of n images in a random order has t = floor(T * (i + u) / n), u uniform in
    [0, 1), so that each pass covers the whole noise range evenly. All draws follow from the seed and the pass's number.
    """
    draw, count = make_generator("pass", seed, number), len(split)
    places = torch.randperm(count, generator=draw) + torch.rand(count, generator=draw).double()
    t = (timesteps * places / count).long().clamp_max(timesteps - 1)
    for positions in torch.arange(count).tensor_split(world)[rank].split(batch_size):
        if not len(positions):  # fewer images than processes
            continue
        draws = [torch.randn(2, *split.shape, generator=make_generator("noise", seed, number, int(i))) for i in positions]
        noise, normal = to_device(torch.stack(draws), device).unbind(1)
        yield split.load(positions, normal), to_device(split.labels[positions], device), to_device(t[positions], device), noise
