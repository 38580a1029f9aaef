"""The saliency mask m of SalUn: which weights may change, and parameters for an optimizer that cannot move any other.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts). True = trainable, everywhere.
A mask maps parameter names to bool tensors of the parameters' shapes. Buffers (BatchNorm's running statistics) are no
parameters and lie outside it: they follow the data in train mode, whatever the mask says.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from cli import RunError
from data import make_generator
from files import check_shapes, read_tensors

KINDS = {  # what a mask keeps, at an exact share of the weights; all but the first are controls
    "saliency": "the largest gradients of the forget loss",
    "random": "weights at random",
    "least_salient": "the smallest gradients",
    "magnitude": "the largest weights",
    "layerwise": "weights at random, as many of each tensor as the saliency mask",
}
SEEDED = ("random", "layerwise")  # kinds that draw

CHUNK = 1 << 22  # entries looked at together: bounds the memory of the selection
SMALL = 1 << 16  # positions in larger tensors are int32; in small ones the conversion to int64 would cost more than the memory is worth
HALF = (torch.float16, torch.bfloat16)  # precisions too coarse for the steps of an optimizer
LOW_BITS = 15  # a non-negative float has 31 bits: 16 for the first pass, 15 for the second


def magnitudes(tensor):
    """Yield |x| as int32, CHUNK entries at a time: for floats without sign the order of the bits is the order of the values."""
    for chunk in tensor.detach().reshape(-1).float().split(CHUNK):
        yield chunk.view(torch.int32) & 0x7FFFFFFF


def histogram(values, bins):
    """How often each of 0 ... bins - 1 occurs in chunks of integers."""
    return sum(torch.bincount(chunk, minlength=bins) for chunk in values)


class RandomScores(Mapping):
    """A random score for each weight, {name: float tensor of the parameter's shape}. Drawn anew, and equal, at each look: none is kept."""

    def __init__(self, parameters, seed):
        self.shapes, self.seed = {name: parameter.shape for name, parameter in parameters.items()}, seed

    def __getitem__(self, name):
        bits = torch.randint(0x7F800000, self.shapes[name], dtype=torch.int32, generator=make_generator("mask", self.seed, name))
        return bits.view(torch.float32)  # finite, without sign: 31 random bits, where rand() has 24

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


class Packed(Mapping):
    """A mask that takes a bit per weight. A tensor is unpacked, onto its parameter's device, at each look."""

    def __init__(self, bits, parameters):
        self.bits, self.parameters = bits, parameters

    def __getitem__(self, name):
        like = self.parameters[name]
        bits = np.unpackbits(self.bits[name].numpy(), count=like.numel()).view(bool)
        return torch.from_numpy(bits).view(like.shape).to(like.device)

    def __iter__(self):
        return iter(self.bits)

    def __len__(self):
        return len(self.bits)


def make(kind, mask_ratio, parameters, saliency, seed=None):
    """Return the mask of a kind of KINDS that keeps exactly floor(mask_ratio * n) of the parameters {name: tensor}.

    saliency: function without arguments that gives {name: gradient of the forget loss}, called where the kind needs it. seed: of the
    kinds in SEEDED. least_salient is the complement of the saliency mask of the other weights.
    """
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    kept = math.floor(mask_ratio * sum(sizes.values()))
    if not kept:
        raise RunError(f"--mask_ratio {mask_ratio} keeps none of {sum(sizes.values()):,} weights: raise it")
    if kind == "random":
        return largest(RandomScores(parameters, seed), kept)
    if kind == "magnitude":
        return largest(parameters, kept)
    if kind == "least_salient":
        return {name: ~part for name, part in largest(saliency(), sum(sizes.values()) - kept).items()}
    mask = largest(saliency(), kept)
    if kind == "layerwise":
        scores, counts = RandomScores(parameters, seed), {name: int(part.sum()) for name, part in mask.items()}
        return {name: largest({name: scores[name]}, counts[name])[name] for name in parameters}
    if kind != "saliency":
        raise RunError(f"no branch makes a mask of the kind {kind}: add one")
    return mask


def select(saliency, mask_ratio):
    """Return the mask of exactly floor(mask_ratio * n) weights with the largest |saliency|, all tensors pooled: see largest()."""
    return largest(saliency, math.floor(mask_ratio * sum(tensor.numel() for tensor in saliency.values())))


def largest(saliency, k):
    """Return the mask of the k weights with the largest |saliency|, all tensors pooled.

    saliency: {name: float tensor}, e.g. the gradient of the forget loss. Ties go to the earlier position, in the order of
    the dict and then row-major. Two radix passes over the float bits find the threshold: no sort, no concatenated copy, and
    4 * CHUNK bytes a few times over beyond the mask itself. Raises RunError if an entry is NaN or infinite.
    """
    threshold, ties = kth_largest(saliency.values(), k)
    mask = {}
    for name, tensor in saliency.items():
        parts = []
        for bits in magnitudes(tensor):
            parts.append(bits > threshold)
            if ties:
                equal = (bits == threshold).nonzero().squeeze(1)[:ties]
                parts[-1][equal] = True
                ties -= len(equal)
        mask[name] = torch.cat(parts).view(tensor.shape)
    return mask


def kth_largest(tensors, k):
    """(bits of the k-th largest magnitude in all the tensors, how many of the values equal to it are among the k largest)."""
    high = histogram((bits >> LOW_BITS for tensor in tensors for bits in magnitudes(tensor)), 1 << 16)
    if int(high[0x7F800000 >> LOW_BITS :].sum()):
        raise RunError("the saliency holds NaN or infinite values: check the model and the data it was computed on")
    top_bin, above = kth_bin(high, k)
    in_bin = (bits[(bits >> LOW_BITS) == top_bin] for tensor in tensors for bits in magnitudes(tensor))
    low_bin, above_low = kth_bin(histogram((bits & ((1 << LOW_BITS) - 1) for bits in in_bin), 1 << LOW_BITS), k - above)
    return (top_bin << LOW_BITS) | low_bin, k - above - above_low


def kth_smallest(values, k):
    """The k-th smallest of non-negative floats (n,). On a GPU, kthvalue would read all of them on one multiprocessor, sixteen times."""
    if values.device.type == "cpu":
        return float(values.kthvalue(k).values)
    bits, _ = kth_largest([values], len(values) - k + 1)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def kth_bin(counts, k):
    """Bin that holds the k-th largest entry, and how many entries lie in higher bins."""
    from_top = counts.flip(0).cumsum(0)
    position = int((from_top < k).sum())
    above = int(from_top[position - 1]) if position else 0
    return len(counts) - 1 - position, above


def count(mask):
    """(salient weights, all weights) of a mask."""
    return sum(int(part.sum()) for part in mask.values()), sum(part.numel() for part in mask.values())


def save(run_folder, mask, facts, *, mask_ratio, seconds, kind="saliency", **flags):
    """Write mask.safetensors, eight weights per byte. facts: those of its task, of which forget_sha and parent_sha are kept.

    flags: of the command that made it, whose value tells one experiment from another.
    """
    packed = {name: torch.from_numpy(np.packbits(part.cpu().numpy().reshape(-1))) for name, part in mask.items()}
    shapes = {name: list(part.shape) for name, part in mask.items()}
    metadata = {"kind": "saliency mask", "mask_kind": kind, "mask_ratio": repr(mask_ratio), "seconds": repr(seconds)}
    metadata |= {"shapes": json.dumps(shapes), "flags": json.dumps(flags)}
    metadata |= {name: facts[name] for name in ("forget_sha", "parent_sha")}
    run_folder.save("mask.safetensors", packed, metadata)


def load(path, parameters, facts=None):
    """Return (mask, info) of a run folder of generate_mask.py or of its mask.safetensors.

    parameters: {name: parameter} the mask must fit; facts: of the task, with forget_sha and parent_sha, None asks for neither. info has
    mask_ratio, mask_kind, mask_flags if there are any, and the seconds the mask took. Raises RunError if the file is none of ours, was made
    from another model or for another forget set, or contradicts its ratio.
    """
    path = Path(path, "mask.safetensors") if Path(path).is_dir() else path
    packed, metadata = read_tensors(path)
    if metadata.get("kind") != "saliency mask":
        raise RunError(f"{path} is not a mask: make one with generate_mask.py")
    try:
        shapes = {name: tuple(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        mask_ratio, seconds = float(metadata["mask_ratio"]), float(metadata["seconds"])
        flags = dict(json.loads(metadata.get("flags", "{}")))  # masks of earlier versions do not tell
        if not (0 < mask_ratio <= 1 and 0 <= seconds < math.inf):
            raise ValueError(f"mask_ratio {mask_ratio}, seconds {seconds}")
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is a damaged mask ({error}): make it again") from error
    check_shapes(f"the mask {path}", shapes, parameters)
    bytes_of = {name: (math.ceil(math.prod(shape) / 8),) for name, shape in shapes.items()}
    check_shapes(f"the mask {path}", packed, bytes_of)
    facts = metadata if facts is None else facts
    if metadata["forget_sha"] != facts["forget_sha"]:
        raise RunError(f"the mask {path} was made for another forget set: make one with the forget flags of this run")
    if metadata.get("parent_sha", facts.get("parent_sha")) != facts.get("parent_sha"):  # masks of earlier versions do not tell
        raise RunError(f"the mask {path} was made from another model than the one at --model_path: make one from that")
    mask = Packed(packed, parameters)
    kept, total = count(mask)
    if kept != math.floor(mask_ratio * total):
        raise RunError(f"the mask {path} keeps {kept} of {total} weights, not the share {mask_ratio} it states: make it again")
    kind = metadata.get("mask_kind", "saliency")  # masks of earlier versions do not tell
    if kind not in KINDS:
        raise RunError(f"the mask {path} is of an unknown kind, {kind}: make it again")
    info = {"mask_ratio": mask_ratio, "mask_seconds": seconds, "mask_kind": kind}
    return mask, info | ({"mask_flags": flags} if flags else {})


class SalientParameters:
    """What the optimizer holds: the salient entries of each parameter, gathered into one compact leaf tensor, `tensors` {name: leaf}, those
    of half precision in float32.

    A weight outside the mask is in no leaf. So neither weight decay nor momentum nor Adam can move it, and optimizer memory
    shrinks with the mask. As soon as a parameter's gradient is complete, its salient entries are gathered and the dense
    gradient is freed. scatter() writes the leaves back after a step. A parameter of float32 that is salient everywhere is its own
    leaf, so a mask of ratio 1 is the same computation as no mask. A parameter without a salient entry requires no gradient.

    parameters: {name: parameter}. mask: a mask for the same names, or None for dense training. Used as a context manager:
    on exit the hooks are gone and every parameter requires gradients as before.
    """

    def __init__(self, parameters, mask=None):
        self.tensors, self._read, self._compact, self._hooks, self._frozen = {}, {}, [], [], []
        for name, parameter in parameters.items():
            salient = None if mask is None else mask[name]
            if salient is None or bool(salient.all()):
                if parameter.dtype in HALF:
                    self._add(name, parameter, parameter.detach(), None, lambda tensor: tensor)
                else:
                    parameter.grad = None  # as in _add()
                    self.tensors[name], self._read[name] = parameter, lambda tensor: tensor
            elif not bool(salient.any()):
                self._frozen.append((parameter, parameter.requires_grad))
                parameter.requires_grad_(False)
            else:
                self._add_compact(name, parameter, salient)

    def _add_compact(self, name, parameter, salient):
        # Positions count in storage order, whatever the memory format, so that reading and writing work on flat views.
        order = sorted(range(parameter.dim()), key=lambda d: -parameter.stride(d))
        index = salient.permute(order).reshape(-1).nonzero().squeeze(1)
        if len(index) > SMALL:
            index = index.to(torch.int32)
        flat = parameter.detach().permute(order).view(-1)
        self._add(name, parameter, flat, index, lambda tensor: tensor.permute(order).reshape(-1).index_select(0, index))

    def _add(self, name, parameter, view, index, pick):
        """A leaf of the entries that `pick` takes of a tensor. view: the parameter's storage, where the leaf belongs at `index`."""

        def read(tensor):
            return pick(tensor).float() if tensor.dtype in HALF else pick(tensor)

        leaf = read(parameter.detach()).requires_grad_(True)

        def take_gradient(parameter):
            leaf.grad = read(parameter.grad) if leaf.grad is None else leaf.grad.add_(read(parameter.grad))
            parameter.grad = None

        parameter.grad = None  # one of the saliency would count as a part of the first step's
        self._hooks.append(parameter.register_post_accumulate_grad_hook(take_gradient))
        self._compact.append((leaf, view, index))
        self.tensors[name], self._read[name] = leaf, read

    def parameters(self):
        """The leaf tensors, for the optimizer, for gradient clipping and for averaging gradients over processes."""
        return list(self.tensors.values())

    @torch.no_grad()
    def scatter(self):
        """Write the leaves into the model. The positions outside the mask are not touched."""
        for leaf, view, index in self._compact:
            if index is None:
                view.copy_(leaf)
            else:
                view.index_copy_(0, index.long(), leaf.to(view.dtype))

    def pick(self, tensors):
        """The entries of {name: tensor of the parameter's shape} that each leaf stands for, {name: tensor of the leaf's shape}."""
        return {name: read(tensors[name].detach()) for name, read in self._read.items()}

    @torch.no_grad()
    def gather(self, parameters):
        """Read the leaves from the model again, after something else changed it (a checkpoint was loaded)."""
        for name, values in self.pick(parameters).items():
            self.tensors[name].copy_(values)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        for parameter, required in self._frozen:
            parameter.requires_grad_(required)


@torch.no_grad()
def apply_where(parameters, new, mask):
    """Write `new` {name: tensor} into the parameters, at the salient positions only if there is a mask: for closed-form methods."""
    for name, parameter in parameters.items():
        parameter.copy_(new[name] if mask is None else torch.where(mask[name], new[name], parameter))


@torch.no_grad()
def check_change(before, parameters, mask):
    """Return the share of the weights whose value changed, in [0, 1]. Raises RunError if one outside the mask did, or is not finite now."""
    changed = 0
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise RunError(f"{name} holds NaN or infinite values after unlearning: lower --lr; no weights were written")
        moved = before[name].to(parameter.device) != parameter
        if mask is not None and bool((moved & ~mask[name].to(moved.device)).any()):
            raise RunError(f"{name} changed outside the mask: this is a fault of the method, please report it")
        changed += int(moved.sum())
    return changed / sum(parameter.numel() for parameter in parameters.values())
