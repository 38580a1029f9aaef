"""Weights, masks and networks that this project did not make, and the paper repository's commands. Each test names a mutation."""

import argparse
import dataclasses
import importlib
import math
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import convert
import evaluate
import fake_cuda
import masking
import models
import networks
import passes
import train
import trainer
import unlearn
import weights
from cli import RunError
from conftest import ROOT
from files import read_json, read_tensors, write_tensors
from helpers import NUM_FORGET, TINY, one_error, script, words

FORGET = f"--num_forget {NUM_FORGET} --precision fp32"


def build(arch="cnn", size=8, channels=1, seed=0, classes=10, **sha):
    return models.build(arch, classes, channels, size, seed, **sha)


def plain(model):
    """A state_dict as it is found elsewhere: without pixel_mean and pixel_std."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("pixel_")}


def status(*argv):
    """Exit status of a script, whose name is the first word."""
    name, _, flags = argv[0].partition(" ")
    return script(name, flags, *argv[1:])


def ok(*argv):
    assert status(*argv) == 0, words(*argv)


# ------------------------------------------------------------------------------------------------------------- weights
FORMS = {
    "as they are": lambda state: state,
    "prefixes": lambda state: {f"module.model.backbone.{name}": tensor for name, tensor in state.items()},
    "no counters": lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
    "half": lambda state: {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
    "bf16": lambda state: {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_from_elsewhere_load(form, tmp_path):
    """Breaks if names are compared as they stand, a missing counter is a mismatch, or half precision stays."""
    other, model = build(seed=1), build(seed=2)
    write_tensors(tmp_path / "w.safetensors", FORMS[form](plain(other)))
    weights.load(model, tmp_path / "w.safetensors", "data")
    for name, tensor in plain(model).items():
        kind = {"half": torch.half, "bf16": torch.bfloat16}.get(form, torch.float32)
        expected = plain(other)[name]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected.to(kind).float() if tensor.is_floating_point() else expected)


def test_a_prefix_of_the_model_is_found_too(tmp_path):
    """Mutation: remove prefixes of the file only."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 3)
            self.register_buffer("pixel_mean", torch.zeros(1, 1, 1, 1))
            self.register_buffer("pixel_std", torch.ones(1, 1, 1, 1))

    model = Wrapped()
    for prefix in ("", "inner.", "module.", "module.inner."):
        write_tensors(tmp_path / "w.safetensors", {f"{prefix}weight": torch.ones(3, 2), f"{prefix}bias": torch.ones(3)})
        nn.init.zeros_(model.inner.weight)
        weights.load(model, tmp_path / "w.safetensors", "none")
        assert model.inner.weight.sum() == 6
    write_tensors(tmp_path / "w.safetensors", {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3), "inner.bias": torch.ones(3)})
    with pytest.raises(RunError, match="under two names"):
        weights.load(model, tmp_path / "w.safetensors", "none")


def test_a_file_keeps_its_normalisation_and_without_one_it_must_be_told(tmp_path):
    """Breaks if the training images' own numbers silently stand in for those of the file."""
    images = torch.randint(256, (50, 8, 8, 3), dtype=torch.uint8)
    model, path = build(channels=3), tmp_path / "w.safetensors"
    state = plain(model)
    write_tensors(path, {f"module.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(RunError, match="--normalise"):
        weights.load(model, path)
    expected = {"data": images.float().div(255).mean((0, 1, 2)), "imagenet": torch.tensor([0.485, 0.456, 0.406]), "none": torch.zeros(3)}
    expected |= {((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)): torch.tensor([0.1, 0.2, 0.3])}
    for how, mean in expected.items():
        models.set_normalisation(model, images, how)
        weights.load(model, path, how)
        torch.testing.assert_close(model.pixel_mean.flatten(), mean)
    own = {"normalize.mean": torch.tensor([0.5, 0.6, 0.7]), "normalize.std": torch.tensor([0.1, 0.2, 0.3])}
    for prefix in ("", "module."):
        write_tensors(path, {prefix + name: tensor for name, tensor in (state | own).items()})
        weights.load(model, path)
        assert torch.equal(model.pixel_std.flatten(), own["normalize.std"]) and model.pixel_std.shape == (1, 3, 1, 1)
    with pytest.raises(RunError, match="leave --normalise out"):
        weights.load(model, path, "data")
    with pytest.raises(RunError, match="3 channels, but the images have 1"):
        models.set_normalisation(build(), images[..., :1], "imagenet")


def test_a_mismatch_is_told_as_it_is(tmp_path):
    """Mutation: compare pixel_mean first; name the first difference only; no hint at torchvision's own stem."""
    state = plain(build())
    state["head.weight"], state["fc.bias"] = state.pop("fc.weight"), torch.zeros(1000)
    write_tensors(tmp_path / "w.safetensors", state)
    with pytest.raises(RunError) as error:
        weights.load(build(), tmp_path / "w.safetensors")
    for part in ("it lacks fc.weight", "the model has no head.weight", "fc.bias is (1000,) there and (10,) in the model"):
        assert part in str(error.value)
    assert "pixel" not in str(error.value)
    state = plain(build()) | {"fc.weight": torch.zeros(10, 128, dtype=torch.int8)}
    write_tensors(tmp_path / "w.safetensors", state)
    with pytest.raises(RunError, match="int8 numbers for fc.weight"):
        weights.load(build(), tmp_path / "w.safetensors", "none")
    write_tensors(tmp_path / "w.safetensors", {"conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(RunError, match=r"it lacks .*; of other shapes: conv1.weight .*--arch torchvision:resnet18 is unmodified"):
        weights.load(build("resnet18", 32, 3), tmp_path / "w.safetensors", "none")


def test_checkpoints_of_the_official_release_load(tmp_path):
    """Breaks if the state_dict is not found in the checkpoint, or normalize.mean keeps its name or shape."""
    model = build("resnet18", 32, 3, seed=1)
    state = plain(model)
    assert len(state) == 122
    state |= {"normalize.mean": torch.tensor([0.49, 0.48, 0.45]), "normalize.std": torch.tensor([0.25, 0.24, 0.26])}
    optimizer = torch.optim.SGD(model.parameters(), 0.1).state_dict()
    checkpoint = {"result": {"test_ta": [1.0]}, "epoch": 3, "state_dict": state, "best_sa": 1.0, "optimizer": optimizer}
    torch.save(checkpoint, tmp_path / "model.pth.tar")
    ok("convert", tmp_path / "model.pth.tar", tmp_path / "model.safetensors")
    fresh = build("resnet18", 32, 3, seed=2)
    weights.load(fresh, tmp_path / "model.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in plain(fresh).items())
    torch.testing.assert_close(fresh.pixel_mean.flatten(), state["normalize.mean"])


def test_a_pickle_becomes_an_original_by_the_command_that_the_error_names(home, tmp_path, capsys, monkeypatch):
    """Mutation: name another command; skip map_location, prefixes, half precision or the flags that a checkpoint keeps."""
    monkeypatch.chdir(tmp_path)
    state = {f"module.{name}": tensor.half() for name, tensor in plain(build(seed=1)).items()}
    torch.save({"args": argparse.Namespace(lr=0.1), "model": state, "epoch": 3}, "w.pth")
    train = ("train", TINY, "--epochs 0 --normalise data --data_dir", home / "data", "--save_dir run --model_path")
    assert status(*train, "w.pth") == 1
    command = one_error(capsys).split("convert it with python convert.py ")[1]
    ok("convert", command)
    assert all(
        not name.startswith("module") and tensor.dtype != torch.half for name, tensor in read_tensors("model.safetensors")[0].items()
    )
    ok(*train, "model.safetensors")
    assert status("convert", command) == 1 and "pass --overwrite" in one_error(capsys)
    assert status("convert ./w.pth w.pth --overwrite") == 1 and "w.pth is the file to read" in one_error(capsys)


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_that_cannot_be_converted_end_in_one_sentence(tmp_path, capsys):
    """Mutation: weights_only=False; take the first table of any name; walk down a table that holds itself for ever."""
    state = plain(build())
    itself = {}
    itself["model"] = itself
    cases = {
        "module": (build(), "write torch.save(model.state_dict()"),
        "payload": ({"state_dict": state, "x": Payload(tmp_path / "ran")}, "whose loading could run code"),
        "two": ({"a": state, "b": state}, "it holds a, b, one of which --key may name"),
        "list": ([1, 2], "it holds a list"),
        "empty": ({}, "it holds a dict"),
        "itself": (itself, "no table of named tensors"),
        "nan": (state | {"fc.bias": torch.full((10,), math.nan)}, "NaN or infinite values in fc.bias"),
        "mask": ({"w": torch.ones(3, dtype=torch.int64)}, "is a mask: say with --model_path"),
    }
    for name, (content, message) in cases.items():
        model = content if name != "module" else nn.Sequential(nn.Linear(2, 2))
        torch.save(model, tmp_path / f"{name}.pth")
        assert status("convert", tmp_path / f"{name}.pth", tmp_path / "out.safetensors") == 1
        assert message in one_error(capsys), name
    for name, content in {"text": b"no pickle", "zip": b"PK\3\4", "plain": pickle.dumps({"a": 1})}.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
        assert status("convert", tmp_path / f"{name}.pth", tmp_path / "out.safetensors") == 1 and one_error(capsys)
    assert not (tmp_path / "out.safetensors").exists() and not (tmp_path / "ran").exists()
    ok("convert", tmp_path / "two.pth", tmp_path / "out.safetensors", "--key b")


def test_masks_of_the_official_release_convert(home, tmp_path, capsys):
    """Breaks if the ratio is not the one that the share of ones stands for, or the mask is taken without a forget set."""
    parameters, _ = read_tensors(home / "original" / "model.safetensors")
    names = [name for name, _ in build().named_parameters()]
    total = sum(parameters[name].numel() for name in names)
    chosen = torch.zeros(total, dtype=torch.int64)
    chosen[torch.randperm(total, generator=torch.Generator().manual_seed(0))[: int(total * 0.3)]] = 1
    parts = chosen.split([parameters[name].numel() for name in names])
    mask = {f"module.{name}": part.view(parameters[name].shape) for name, part in zip(names, parts, strict=True)}
    torch.save(mask, tmp_path / "with_0.3.pt")
    command = ("convert", tmp_path / "with_0.3.pt", tmp_path / "mask", "--model_path", home / "original")
    assert status(*command) != 0 and "name what to forget" in one_error(capsys)
    ok(*command, f"--num_forget {NUM_FORGET}")
    assert read_json(tmp_path / "mask" / "args.json")["mask_ratio"] == 0.3
    ok("unlearn --epochs 1 --model_path", home / "original", "--mask_path", tmp_path / "mask", FORGET, "--save_dir", tmp_path / "salun")
    before, after = (read_tensors(folder / "model.safetensors")[0] for folder in (home / "original", tmp_path / "salun"))
    moved = torch.cat([(before[name] != after[name]).flatten() for name in names])
    assert moved.any() and not (moved & (chosen == 0)).any()
    torch.save(mask | {"module.fc.bias": torch.ones(3, dtype=torch.int64)}, tmp_path / "other.pt")
    torch.save(plain(build()), tmp_path / "weights.pt")
    for file, message in {"other.pt": "belongs to another model", "weights.pt": "holds weights and no mask"}.items():
        assert status(*command[:1], tmp_path / file, tmp_path / "no", *command[3:], f"--num_forget {NUM_FORGET}") == 1
        assert message in one_error(capsys) and not (tmp_path / "no").exists()


def test_any_share_of_ones_is_a_ratio():
    """Mutation: kept / total, which is no ratio that somebody wrote; round down."""
    assert [convert.ratio_of(math.floor(ratio * 11173962), 11173962) for ratio in (0.1, 0.35, 0.5, 1.0)] == [0.1, 0.35, 0.5, 1.0]
    for total in (10, 49, 93610, 11173962, 10**11 + 1):
        for kept in (1, 3, total // 9, total // 7, total // 2, total * 7 // 10, total - 1, total):
            ratio = convert.ratio_of(kept, total)
            assert 0 < ratio <= 1 and math.floor(ratio * total) == kept


# ---------------------------------------------------------------------------------------------------------------- data
def own_folder(root):
    """Classes named by numbers, in other alphabets, with spaces, some images in deeper folders; a tenth is held out."""
    for label, name in enumerate(("10", "2", "猫", "golden retriever")):
        (root / name / "deeper" / "down").mkdir(parents=True)
        for i in range(12):
            picture = np.full((9, 12, 3), 60 * label + i, np.uint8)
            Image.fromarray(picture).save(root / name / ("deeper/down" if i % 3 == 0 else "") / f"{i}.png")
    return "--dataset folder --image_size 8", ["10", "golden retriever"], 22


def own_arrays(root):
    """Arrays under the name of a data set, with names of the classes."""
    labels = np.arange(48, dtype=np.uint16) % 4
    images = (60 * labels[:, None, None, None] + np.zeros((1, 8, 8, 1))).astype(np.uint8)
    names = np.array(["10", "2", "猫", "golden retriever"])
    np.savez(root / "cifar10.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8], classes=names)
    return "--dataset cifar10", ["10", "golden retriever"], 24


@pytest.mark.slow
@pytest.mark.parametrize("make", [own_folder, own_arrays])
def test_data_of_ones_own_goes_all_the_way(make, tmp_path):
    """Breaks if a class is named by its label first, deeper folders are not read, or labels must be int64."""
    (tmp_path / "data").mkdir()
    flags, classes, count = make(tmp_path / "data")
    train = "--arch cnn --val_fraction 0 --epochs 2 --batch_size 16 --precision fp32"
    ok("train", flags, train, "--data_dir", tmp_path / "data", "--save_dir", tmp_path / "original")
    forget = ["--forget_class", *(Path(name) for name in classes)]  # a Path is one word
    ok("unlearn --method ga --epochs 1 --model_path", tmp_path / "original", *forget, "--save_dir", tmp_path / "ga")
    assert read_json(tmp_path / "ga" / "args.json")["num_forgotten"] == count
    ok("evaluate --model_path", tmp_path / "ga")
    assert "UA_test" in read_json(tmp_path / "ga" / "metrics.json")
    (tmp_path / "forget.txt").write_text("0\n5\n7\n")
    indices = ("--forget_indices", tmp_path / "forget.txt")
    ok("unlearn --method ga --epochs 1 --model_path", tmp_path / "original", *indices, "--save_dir", tmp_path / "three")
    assert read_json(tmp_path / "three" / "args.json")["num_forgotten"] == 3


# ------------------------------------------------------------------------------------------------------------ networks
OWN = '''
from torch import nn

class MyNet(nn.Module):
    """No BatchNorm, lazy layers, dropout, and a classifier in a Sequential that stands before other layers."""

    def __init__(self, num_classes):
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, num_classes))
        self.features = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.decoy = nn.Linear(128, num_classes)

    def forward(self, x):
        features = self.features(x)
        return self.classifier(features) + 0 * self.decoy(features).sum()

class Two(MyNet):
    def forward(self, x):
        return super().forward(x), x

class Auxiliary(MyNet):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

class Convolution(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.LazyConv2d(num_classes, 1)

    def forward(self, x):
        return self.head(x).mean((2, 3))

class Large(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 17)

    def forward(self, x):
        return self.stem(x)

class Wrong(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(8, num_classes + 1)

class Scaled(MyNet):
    pixel_mean = 0.5

class Frozen(MyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.decoy.requires_grad_(False)

class Tied(MyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.classifier[3].bias = self.decoy.bias

class Normed(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))

class Broken:
    def __init__(self):
        pass

def number(num_classes):
    return 3
'''
REFUSED = {
    "Two": "gives tuple and not one tensor",
    "Auxiliary": "gives tuple and not one tensor",
    "Convolution": "no nn.Linear whose outputs are the 10 class scores",
    "Large": "takes no images of 1 x 8 x 8",
    "Wrong": "gives (2, 1, 8, 11) for 2 images of 10 classes",
    "Scaled": "has a pixel_mean or pixel_std of its own",
    "Frozen": "has a frozen weight, decoy.weight",
    "Tied": "keeps classifier.3.bias and decoy.bias in one place",
    "Broken": "cannot be built for 10 classes: TypeError",
    "number": "gives no torch.nn.Module",
    "Absent": "has no class Absent",
}


@pytest.fixture
def own(tmp_path):
    (tmp_path / "mynet.py").write_text(OWN)
    return tmp_path / "mynet.py"


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_no_classifiers_are_refused(name, own):
    """Mutation: try the network in one mode only, or take the last linear layer without a trial."""
    arch = f"{own}:{name}"
    with pytest.raises(RunError) as error:
        build(arch, **networks.source_sha(arch))
    assert REFUSED[name] in str(error.value)


def test_a_network_of_ones_own_goes_all_the_way(own, home, tmp_path, capsys):
    """Breaks if args.json's file is run without being named, a changed file is run, or `be` widens the layer that comes last."""
    network = ("--arch", f"{own}:MyNet")
    ok("train", TINY, *network, "--epochs 1 --data_dir", home / "data", "--save_dir", tmp_path / "original")
    assert read_json(tmp_path / "original" / "args.json")["architecture"]["arch"] == "mynet.py:MyNet"
    (tmp_path / "moved").mkdir()
    own.rename(tmp_path / "moved" / "mynet.py")
    network = ("--arch", f"{tmp_path / 'moved' / 'mynet.py'}:MyNet")
    commands = {
        "mask": ("generate_mask --device cpu", "--num_forget 60"),
        "be": ("unlearn --method be --epochs 1", "--num_forget 60 --mask_path", tmp_path / "mask"),
        "retrain": ("unlearn --method retrain", "--num_forget 60"),
    }
    for name, (line, *flags) in commands.items():
        command = (line, "--model_path", tmp_path / "original", *flags, "--save_dir", tmp_path / name)
        assert status(*command) == 1 and "whose code runs only where you name it" in one_error(capsys)
        ok(*command, *network)
    ok("evaluate --precision fp32 --model_path", tmp_path / "be", tmp_path / "retrain", *network)
    before, after = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("original", "be"))
    assert {name: tensor.shape for name, tensor in before.items()} == {name: tensor.shape for name, tensor in after.items()}
    assert before["classifier.3.bias"].shape == (10,)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    evaluation = ("evaluate --overwrite --model_path", tmp_path / "be", "--arch")
    assert status(*evaluation, "resnet18") == 1 and "is of --arch mynet.py:MyNet, not resnet18" in one_error(capsys)
    (tmp_path / "moved" / "mynet.py").write_text(OWN + "\nopen('ran', 'w')\n")
    assert status(*evaluation, network[1]) == 1 and "has changed since" in one_error(capsys)


def test_a_batch_too_small_for_batchnorm_says_what_to_raise(own, home, tmp_path, capsys):
    """Breaks if one of the two scripts lets BatchNorm's own error through, or another ValueError is taken for it."""
    network = ("--arch", f"{own}:Normed")
    train = ("train", TINY, *network, "--epochs 1 --limit 3 --data_dir", home / "data", "--save_dir", tmp_path / "original")
    assert status(*train, "--batch_size 2") == 1 and "BatchNorm: change --batch_size" in one_error(capsys)
    ok(*train, "--batch_size 3 --overwrite")
    command = ("unlearn --method rl --num_forget 1 --model_path", tmp_path / "original", *network, "--save_dir", tmp_path / "rl")
    assert status(*command) == 1 and "forget more than one image" in one_error(capsys)
    with pytest.raises(ValueError, match="^other$"), trainer.batches_large_enough("x"):
        raise ValueError("other")


def test_the_code_of_a_strangers_run_does_not_run(home, tmp_path, capsys):
    """Breaks if a file that args.json names, or that lies in the run, is run unasked."""
    shutil.copytree(home / "original", tmp_path / "run")
    (tmp_path / "run" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom torch.nn import Linear as Net\n")
    args = read_json(tmp_path / "run" / "args.json")
    for arch in (f"{tmp_path / 'run' / 'evil.py'}:Net", "evil.py:Net", "timm:hf-hub:somebody/evil", "torchvision:evil", "os:system"):
        text = (home / "original" / "args.json").read_text().replace('"arch": "cnn",\n    "num', f'"arch": "{arch}",\n    "num')
        text = text.replace('"arch": "cnn"\n', f'"arch": "{arch}"\n')
        assert args["architecture"]["arch"] == "cnn" and arch in text
        (tmp_path / "run" / "args.json").write_text(text)
        assert status("unlearn --method ft --model_path", tmp_path / "run", FORGET, "--save_dir", tmp_path / "ft") == 1
        assert one_error(capsys)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ft").exists()


def test_torchvisions_networks_build_as_they_are():
    """Breaks if the trial moves a buffer, the seed is not obeyed, global randomness is touched, or grey images are refused."""
    state = torch.get_rng_state()
    first, second, other = (build("torchvision:resnet18", 32, 1, seed, classes=7) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight) and torch.equal(torch.get_rng_state(), state)
    assert first.bn1.running_mean.abs().sum() == 0 and int(first.bn1.num_batches_tracked) == 0
    assert first.conv1.kernel_size == (7, 7) and models.head(first) is first.fc and first.fc.out_features == 7
    assert models.head(build("torchvision:mobilenet_v3_small", 32, 3)).out_features == 10
    with pytest.raises(RunError, match="has no classifier evil"):
        build("torchvision:evil")


@pytest.mark.slow
@pytest.mark.parametrize("name, size, message", [("googlenet", 64, "GoogLeNetOutputs"), ("squeezenet1_1", 64, "no nn.Linear whose")])
def test_torchvisions_exceptions_are_told(name, size, message):
    """Mutation: try the network in evaluation mode only."""
    with pytest.raises(RunError, match=message):
        build(f"torchvision:{name}", size, 3)


@pytest.mark.slow
def test_the_vision_transformer_is_built_for_the_size_of_the_images():
    """Mutation: leave image_size at torchvision's 224."""
    assert models.head(build("torchvision:vit_b_16", 32, 3)).out_features == 10


def test_timm_is_optional(monkeypatch):
    """Mutation: import timm with the module."""
    monkeypatch.setitem(importlib.sys.modules, "timm", None)
    with pytest.raises(argparse.ArgumentTypeError, match="pip install timm"):
        models.architecture("timm:resnet18")


class FakeTimm:
    """What timm promises: is_model, create_model, and a TypeError for img_size where a network takes any."""

    __version__ = "0"

    @staticmethod
    def is_model(name):
        return name in ("fixed", "any")

    @staticmethod
    def create_model(name, pretrained, num_classes, in_chans, **size):
        if name == "any" and size:
            raise TypeError("img_size")
        assert not pretrained
        features = nn.Flatten() if name == "fixed" else nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return nn.Sequential(features, nn.Linear(in_chans * size.get("img_size", 2) ** 2, num_classes))


def test_timms_networks_get_the_size_where_they_take_one(monkeypatch):
    """Mutation: never pass img_size; always pass it."""
    monkeypatch.setitem(importlib.sys.modules, "timm", FakeTimm)
    assert models.head(build("timm:fixed", 8, 3)).in_features == 192
    assert models.head(build("timm:any", 8, 3)).in_features == 12
    with pytest.raises(argparse.ArgumentTypeError, match="has no network hf-hub"):
        models.architecture("timm:hf-hub:somebody/evil")


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("test_resnet", 32), ("test_vit", 32), ("deit_tiny_distilled_patch16_224", 32)])
def test_real_networks_of_timm(name, size):
    """Mutation: take the last linear layer without a trial: a distilled network has two."""
    pytest.importorskip("timm")
    if "distilled" in name:
        with pytest.raises(RunError, match="no nn.Linear whose"):
            build(f"timm:{name}", size, 3)
    else:
        assert models.head(build(f"timm:{name}", size, 3)).out_features == 10


# -------------------------------------------------------------------------------------------------------------- memory
def test_smaller_predictions_give_the_same_logits(load):
    """Mutation: ignore the batch size; lose the last part."""
    loaded = load()
    whole = passes.predict_logits(loaded.model, loaded.test)
    sizes = []
    hook = loaded.model.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(passes.predict_logits(loaded.model, loaded.test, 7), whole)
    hook.remove()
    assert set(sizes) == {7, 360 % 7}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["salun --mix", "bs", "iu", "fisher"])
def test_images_on_the_host_give_the_same_weights(method, home, tmp_path):
    """Mutation: move labels to the images; index images on the host with positions on the device."""
    name, *flags = method.split()
    short = "--fisher_samples 20" if name in ("iu", "fisher") else "--epochs 1"
    start = ("unlearn --method", name, "--model_path", home / "original", "--mask_path", home / "mask", FORGET, short, *flags)
    ok(*start, "--device cpu --save_dir", tmp_path / "cpu")
    with fake_cuda.installed():
        ok(*start, "--device cuda --data_on host --save_dir", tmp_path / "host")
    cpu, host = (read_tensors(tmp_path / where / "model.safetensors")[0] for where in ("cpu", "host"))
    assert all(torch.equal(cpu[key], host[key]) for key in cpu)


def test_a_run_that_found_too_little_memory_resumes_with_less(home, tmp_path, monkeypatch):
    """Mutation: compare --eval_batch_size or --data_on with the run that stopped."""
    train = ("train", TINY, "--epochs 1 --data_dir", home / "data", "--save_dir", tmp_path / "run")

    def none_left(*args):
        raise RunError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(passes, "predict_logits", none_left)
        assert status(*train) == 1
    ok(*train, "--resume --eval_batch_size 10 --data_on host")


def test_images_lie_where_they_are_told_to(monkeypatch, home):
    """Mutation: let the default ignore the size."""
    import task

    with fake_cuda.installed():
        for data_on, limit, on_device in (("host", 10**9, False), ("device", 0, True), (None, 10**9, True), (None, 0, False)):
            monkeypatch.setattr(task, "DEVICE_BYTES", limit)
            images = task.load_images("digits", home / "data", None, "cuda", data_on=data_on)
            assert images.x_train.is_cuda == on_device and images.y_train.is_cuda


# ------------------------------------------------------------------------------------------------- evaluate, and commands
def test_held_out_images_of_forgotten_classes_alone_are_no_measure(load):
    """Mutation: let the attack run without a sample that was never seen."""
    loaded = dataclasses.replace(load(), forgotten_classes=list(range(10)))
    with pytest.raises(RunError, match="held-out images are of forgotten classes"):
        evaluate.measure(loaded, argparse.Namespace(held_out="test", num_retain=None, eval_batch_size=None, seed=1), None)


def test_classes_that_are_forgotten_whole_are_told_by_the_labels(load, home, tmp_path):
    """Breaks if a class counts as forgotten whole only where --forget_class alone says so, or always, or if tables see its spelling."""
    whole = load(forget_class=["3"], num_forget=None)
    (tmp_path / "list.txt").write_text("\n".join(map(str, whole.forget.indices.tolist())))
    listed = {"num_forget": None, "forget_indices": tmp_path / "list.txt"}
    for flags in (listed, {"forget_class": ["3"], "num_forget": len(whole.forget)}):
        assert load(**flags).forgotten_classes == whole.forgotten_classes == [3]
    assert load(forget_class=["3"], num_forget=len(whole.forget) - 1).forgotten_classes == []
    recorded = read_json(home / "original" / "args.json") | {"forget_class": ["5", "3", "03"], "num_forgotten": 9}
    evaluate.write_metrics(tmp_path, recorded, whole, {}, {"held_out": "test", "num_retain": None})
    assert read_json(tmp_path / "metrics.json")["facts"]["forgotten"] == "9 training samples of class 3, 5"


PAPER = {  # the paper repository's flags: (script and flags, part of the message)
    "--gpu": ("unlearn --unlearn GA --gpu 0", "write --device cuda"),
    "--workers": ("train --workers 4", "images are kept in memory"),
    "--train_seed": ("train --train_seed 1", "write --seed"),
    "--decreasing_lr": ("train --decreasing_lr 91,136", "write --schedule step"),
    "--no-aug": ("generate_mask --no-aug", "never augment"),
    "epochs of a mask": ("generate_mask --unlearn_epochs 1", "one exact gradient"),
    "resnet20s": ("train --arch resnet20s", "write resnet20,"),
    "another --dataset": (
        "unlearn --unlearn GA --num_forget 60 --dataset TinyImagenet --model_path {home}/original --save_dir {tmp}",
        "on digits",
    ),
    "another --arch": (
        "unlearn --unlearn GA --num_forget 60 --arch vgg16_bn_lth --model_path {home}/original --save_dir {tmp}",
        "is of --arch cnn",
    ),
    "no class alone": ("unlearn --unlearn GA --class_to_replace -1 --model_path {home}/original --save_dir {tmp}", "there is no class -1"),
}


@pytest.mark.parametrize("name", PAPER)
def test_flags_of_the_papers_repository_that_mean_something_else(name, home, tmp_path, capsys):
    """Mutation: take the flag and ignore it, or call it unrecognized."""
    line, message = PAPER[name]
    assert status(line.format(home=home, tmp=tmp_path / "run")) != 0
    error = one_error(capsys)
    assert message in error and "unrecognized" not in error and not (tmp_path / "run").exists()


def test_commands_of_the_papers_repository_run(home, tmp_path):
    """Mutation: take --class_to_replace -1 for a class; refuse the --arch and --dataset that the run has."""
    known = "--arch cnn --dataset digits --class_to_replace -1 --num_indexes_to_replace 60 --unlearn_epochs 1 --unlearn_lr 0.001"
    for name in ("GA", "FT_prune"):
        ok("unlearn --precision fp32 --unlearn", name, known, "--model_path", home / "original", "--save_dir", tmp_path / name)
    assert read_json(tmp_path / "GA" / "args.json")["forget_sha"] == read_json(home / "mask" / "args.json")["forget_sha"]
    with pytest.raises(SystemExit):  # Mutation: let them train the original
        train.parse(["--dataset", "digits", "--save_dir", "x", "--unlearn_lr", "0.1"])
    with pytest.raises(SystemExit):  # Mutation: let them train the reference
        unlearn.parse(["--method", "retrain", "--model_path", "x", "--num_forget", "1", "--save_dir", "y", "--unlearn_epochs=2"])
    assert models.architecture("vgg16_bn_lth") == "vgg16_bn"


@pytest.mark.slow
def test_the_python_of_the_readme_runs(load, unlearn, tmp_path, monkeypatch):
    """Breaks if a name in it is renamed, if images had to be normalised, or if its loop moves a weight outside the mask."""
    opening, looping = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "runs" / "c10").mkdir(parents=True)
    (tmp_path / "runs" / "c10" / "salun").symlink_to(unlearn("salun", "--epochs 1"))
    loaded = load(tmp_path / "runs" / "c10" / "salun")
    images, labels = loaded.forget.images.permute(0, 3, 1, 2) / 255, loaded.forget.labels
    scope = {"forget_loss": lambda model: F.cross_entropy(model(images), labels), "batches": [images, images]}
    exec(opening, scope)
    model = scope["model"]
    torch.testing.assert_close(model(images), passes.predict_logits(loaded.model, loaded.forget), rtol=1e-4, atol=1e-4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    exec(looping, scope | {"loss": lambda model, batch: F.cross_entropy(model(batch), labels)})
    changed = masking.check_change(before, dict(model.named_parameters()), None)
    assert 0.3 < changed <= 0.5
