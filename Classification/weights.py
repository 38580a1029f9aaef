"""Weights from elsewhere: files whose names, normalisation or precision are not this project's."""

import os

from cli import RunError
from files import check_finite, check_shapes, read_tensors

# The official release keeps mean and standard deviation, of shape (C,), under the first two names
NORMALISATION = {"normalize.mean": "pixel_mean", "normalize.std": "pixel_std", "pixel_mean": "pixel_mean", "pixel_std": "pixel_std"}
COUNTER = "num_batches_tracked"  # of BatchNorm: PyTorch before 0.4.1 had none


def load(model, path, normalise=None):
    """Load a .safetensors file into a model.

    A prefix that all names share ("module.", "model.backbone.") may differ, counters of BatchNorm may be missing, and half precision
    becomes float32. normalise: the value of --normalise, which the model has already, for a file that carries no normalisation of its
    own. Raises RunError for a file that does not fit, is not finite, or leaves open how images are normalised.
    """
    wanted, (tensors, _) = model.state_dict(), read_tensors(path)
    scaling = {name: wanted.pop(name) for name in ("pixel_mean", "pixel_std")}
    tensors = renamed(tensors, wanted, path)
    carried = take_normalisation(tensors, wanted)
    tensors = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)} | tensors
    try:
        check_shapes(path, tensors, wanted)
    except RunError as error:
        stem, ours = (tuple(part["conv1.weight"].shape[2:]) if "conv1.weight" in part else None for part in (tensors, wanted))
        if (stem, ours) != ((7, 7), (3, 3)):
            raise
        raise RunError(f"{error}. Up to 64 px, ResNets here have a stem of 3 x 3: --arch torchvision:resnet18 is unmodified") from error
    if carried:
        check_shapes(path, carried, scaling)
    if bool(carried) == (normalise is not None):
        told = "carries a normalisation of its own, which is used: leave --normalise out"
        untold = "carries no normalisation: say with train.py --normalise how its images were scaled when it was trained"
        raise RunError(f"{path} {told if carried else untold}")
    tensors |= carried or scaling
    for name, into in (wanted | scaling).items():
        if into.is_floating_point() and not (tensor := tensors[name]).is_floating_point():
            raise RunError(
                f"{path} holds {str(tensor.dtype).removeprefix('torch.')} numbers for {name}: quantised weights cannot be trained"
            )
    check_finite(tensors, path)
    model.load_state_dict(tensors)


def prefix(names):
    """The leading parts, up to a dot, that all names share: "model." of model.fc.weight and model.fc.bias."""
    shared = os.path.commonprefix(list(names))
    return shared[: shared.rfind(".") + 1]


def renamed(tensors, wanted, path):
    """{name: tensor} by the names of `wanted`: the prefix that hides most of them is exchanged for the one of `wanted`. Others stay."""
    own = prefix(wanted)
    candidates = dict.fromkeys(["", *(name[: end + 1] for name in tensors for end, letter in enumerate(name) if letter == ".")])

    def under(start):
        inner = {name: name[len(start) :] for name in tensors if name.startswith(start)}
        return {name: short if short in wanted else own + short for name, short in inner.items() if {short, own + short} & wanted.keys()}

    names = max(map(under, candidates), key=len)
    result = {names.get(name, name): tensor for name, tensor in tensors.items()}
    if len(result) < len(tensors):
        raise RunError(f"{path} holds some weights under two names: keep one of each")
    return result


def take_normalisation(tensors, wanted=()):
    """Remove mean and standard deviation of the pixels from {name: tensor}, whatever their prefix, unless the model wants those names.

    Return {"pixel_mean", "pixel_std": tensor (1, C, 1, 1)}, or {} where there are none.
    """
    taken = {}
    for name in [*tensors]:
        end = next((end for end in NORMALISATION if f".{name}".endswith(f".{end}")), None)
        if end is not None and name not in wanted:
            taken[NORMALISATION[end]] = tensors.pop(name).reshape(1, -1, 1, 1)
    return taken
