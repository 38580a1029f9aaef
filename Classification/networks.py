"""Networks from elsewhere: torchvision's, timm's, and those of a file of the user's own.

They are tried out before they are used: on images of the data set's size, in both modes, for the layer that gives the class scores.
"""

import hashlib
import re
import sys
import types
from pathlib import Path

import torch
from torch import nn

from cli import RunError

# What building or calling somebody else's network may raise
NETWORK_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError)
NETWORK_ERRORS += (RuntimeError, SyntaxError, TypeError, ValueError)


def own_file(arch):
    """(path, class name) of FILE.py:CLASS, or None for any other architecture."""
    match = re.fullmatch(r"(.+\.py):(\w+)", arch, re.DOTALL)
    return match and (Path(match[1]), match[2])


def torchvision_network(name):
    """A builder of torchvision's network of that name, as torchvision has it, with new random weights."""
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise RunError(f"torchvision {torchvision.__version__} has no classifier {name}: torchvision.models.list_models() lists them")

    def build(num_classes, channels, image_size):
        size = {"vit": {"image_size": image_size}, "maxvit": {"input_size": (image_size, image_size)}}.get(name.split("_")[0], {})
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **size)
        place, first = next((place, module) for place, module in model.named_modules() if isinstance(module, nn.Conv2d))
        if channels != first.in_channels:
            shape = (first.out_channels, first.kernel_size, first.stride, first.padding)
            model.set_submodule(place, nn.Conv2d(channels, *shape, bias=first.bias is not None))
        return model

    return build


def timm_network(name):
    """A builder of timm's network of that name, with new random weights."""
    try:
        import timm
    except ImportError as error:
        raise RunError(f"timm is not installed, or does not load ({error}): pip install timm") from error
    if not timm.is_model(name):
        raise RunError(f"timm {timm.__version__} has no network {name}: timm.list_models() lists them")

    def build(num_classes, channels, image_size):
        shape = {"num_classes": num_classes, "in_chans": channels}
        try:
            return timm.create_model(name, pretrained=False, img_size=image_size, **shape)
        except TypeError:  # a network for images of any size
            return timm.create_model(name, pretrained=False, **shape)

    return build


LIBRARIES = {"torchvision": torchvision_network, "timm": timm_network}


def without_folder(arch):
    """`arch` as args.json keeps it: of FILE.py:CLASS without the folder, which may be another one next time."""
    file = own_file(arch)
    return f"{file[0].name}:{file[1]}" if file else arch


def source_of(path):
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise RunError(f"the network's file {path} cannot be read ({error.strerror})") from error


def source_sha(arch):
    """{"source_sha": sha256 of the file of FILE.py:CLASS}, or {} for any other architecture."""
    file = own_file(arch)
    return {"source_sha": hashlib.sha256(source_of(file[0])).hexdigest()} if file else {}


def own_network(path, name, sha):
    """A builder of the class `name` of a file, whose code is run. Raises RunError unless the file's sha256 is `sha`."""
    source = source_of(path)
    if hashlib.sha256(source).hexdigest() != sha:
        raise RunError(f"{path} has changed since the run was trained with it: name the file as it was")
    module = sys.modules["own_network"] = types.ModuleType("own_network")
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec"), module.__dict__)
    if not callable(getattr(module, name, None)):
        raise RunError(f"{path} has no class {name}")
    return lambda num_classes, channels, image_size: getattr(module, name)(num_classes=num_classes)


@torch.no_grad()
def try_out(model, arch, num_classes, images):
    """Return the name of a network's head: the last linear layer whose further output is a further class score of the model.

    Raises RunError where it has none, does not take such images or gives no class scores. Weights and buffers stay as they are.
    """
    if not isinstance(model, nn.Module):
        raise RunError(f"--arch {arch} gives no torch.nn.Module")
    if hasattr(model, "pixel_mean") or hasattr(model, "pixel_std"):
        raise RunError(f"--arch {arch} has a pixel_mean or pixel_std of its own: leave them out and say --normalise")
    size = " x ".join(map(str, images.shape[1:]))
    try:
        model.eval()(images)  # lazy layers take their shape here
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        outputs = [model.train(mode)(images) for mode in (False, True)]
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    except NETWORK_ERRORS as error:
        raise RunError(f"--arch {arch} takes no images of {size} (channels x height x width): {type(error).__name__}, {error}") from error
    for output in outputs:
        if not isinstance(output, torch.Tensor):
            raise RunError(
                f"--arch {arch} gives {type(output).__name__} and not one tensor: write a file of your own without further outputs"
            )
        if output.shape != (len(images), num_classes):
            raise RunError(f"--arch {arch} gives {tuple(output.shape)} for {len(images)} images of {num_classes} classes")
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        raise RunError(f"--arch {arch} has a frozen weight, {frozen[0]}: make it a buffer (register_buffer), or let it be trained")
    names = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and (other := names.setdefault(tensor.data_ptr(), name)) != name:
            raise RunError(f"--arch {arch} keeps {other} and {name} in one place, which no .safetensors file can: give each its own")
    model.eval()
    for name in reversed(linear_layers(model, num_classes)):
        hook = widen(model.get_submodule(name), lambda features: features[..., :1])
        try:
            if model(images).shape == (len(images), num_classes + 1):
                model.train()
                return name
        except RuntimeError:  # another layer cannot take what is wider now: this is not the head
            continue
        finally:
            hook.remove()
    raise RunError(f"--arch {arch} has no nn.Linear whose outputs are the {num_classes} class scores: wrap it in a file of your own")


def linear_layers(model, num_classes):
    """Names of the linear layers with that many outputs, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == num_classes]


def widen(layer, extra):
    """Append extra(features) to the outputs of a linear layer: scores of further classes. Returns the hook, whose remove() undoes it."""
    return layer.register_forward_hook(lambda layer, inputs, output: torch.cat([output, extra(inputs[0])], -1))
