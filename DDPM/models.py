"""The U-Net, its noise schedule, and the classifiers that measure its samples.

The U-Net is diffusers' UNet2DModel. Its class embedding has one entry more than there are classes: the last one, the null
class, stands for no class (classifier-free guidance, Ho & Salimans 2022).
"""

import functools
import inspect
import json
import pickle
from pathlib import Path

import torch
from torch import nn

from cli import RunError
from files import check_finite, check_shapes, read_json, read_tensors

TIMESTEPS = 1000
NOISE = {"num_train_timesteps": TIMESTEPS, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}  # Ho et al. 2020

# widths of the levels, residual blocks per level, the largest feature map with attention in px, dropout
UNETS = {
    "unet128": dict(widths=(128, 256, 256, 256), layers=2, attention=16, dropout=0.1),  # the paper's, CIFAR-10
    "unet128_deep": dict(widths=(128, 256, 256, 256, 512), layers=2, attention=16, dropout=0.1),  # the official release's for STL-10
    "unet48": dict(widths=(48, 96, 96), layers=1, attention=7, dropout=0.0),  # Fashion-MNIST on a CPU
    "unet32_deep": dict(widths=(32, 64, 64), layers=1, attention=8, dropout=0.0),  # CIFAR-10 on a CPU
    "unet32": dict(widths=(32, 64), layers=1, attention=4, dropout=0.0),  # 8x8 digits
}


def build_unet(arch, num_classes, channels, image_size, seed):
    """Return a freshly initialised UNet2DModel that takes (x_t (B, C, H, W), t (B,), class_labels (B,)). Same seed, same weights.

    Attention is at the first level whose feature map is at most `attention` px. Raises RunError for an image size that the
    levels cannot halve.
    """
    from diffusers import UNet2DModel

    spec = UNETS[arch]
    widths = spec["widths"]
    if image_size % 2 ** (len(widths) - 1):
        why = f"{arch} halves its images {len(widths) - 1} times, which {image_size} px do not allow"
        raise RunError(f"{why}: take another --arch or --image_size")
    level = next((level for level in range(len(widths)) if image_size >> level <= spec["attention"]), len(widths) - 1)
    down = ["AttnDownBlock2D" if i == level else "DownBlock2D" for i in range(len(widths))]
    options = dict(sample_size=image_size, in_channels=channels, out_channels=channels, num_class_embeds=num_classes + 1)
    options |= dict(block_out_channels=widths, layers_per_block=spec["layers"], dropout=spec["dropout"])
    options |= dict(down_block_types=tuple(down), up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)))
    options |= dict(norm_num_groups=min(32, widths[0] // 4), attention_head_dim=None)  # one head, as in Ho et al. 2020
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**options)


@functools.cache  # one for all noisy images
def training_scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(**NOISE, variance_type="fixed_large")  # of sample.py --sampler ddpm, for pipelines made of it


def noisy_images(images, noise, t):
    """x_t: images (B, C, H, W) noised up to the timesteps t (B,)."""
    return training_scheduler().add_noise(images, noise, t)


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


class WideResNet6(Classifier):
    """Two of torchvision's residual blocks behind a stem of stride 2, 256 features: CIFAR-10 on a CPU. As in Classification."""

    def __init__(self, num_classes, channels):
        from torchvision.models.resnet import BasicBlock

        super().__init__(channels)
        layers = [nn.Conv2d(channels, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        for before, after in ((64, 128), (128, 256)):
            shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
            layers.append(BasicBlock(before, after, stride=2, downsample=shortcut))
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(256, num_classes)


class ResNet34(Classifier):
    """torchvision's ResNet-34 on images scaled to 224 px, as in the paper's evaluation, its last layer by Xavier. 512 features."""

    def __init__(self, num_classes, channels):
        from torchvision.models import resnet34

        super().__init__(3)  # one channel is repeated
        self.body = resnet34()
        self.body.fc = nn.Identity()
        self.fc = nn.Linear(512, num_classes)
        nn.init.xavier_uniform_(self.fc.weight)

    def features(self, x):
        x = nn.functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        return super().features(x).flatten(1)

    def set_normalisation(self, x):
        """None: images stay in [-1, 1], as in the official release, which fine-tunes the ImageNet weights on such."""


CLASSIFIERS = {"resnet34": ResNet34, "wide_resnet6": WideResNet6, "cnn": SmallCNN}


def build_classifier(arch, num_classes, channels, seed):
    """Return a freshly initialised Classifier. The same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLASSIFIERS[arch](num_classes, channels)


def load_weights(model, path):
    """Load model.safetensors into a model. Raises RunError when they do not fit or are not finite."""
    (tensors, _), own, embedding = read_tensors(path), model.state_dict(), "class_embedding.weight"
    if embedding in own and len(tensors.get(embedding, ())) != len(own[embedding]):
        needed = f"the U-Net of these data needs classes + 1 embeddings, the last one null: {len(own[embedding])}"
        raise RunError(f"{path} has {len(tensors.get(embedding, ()))} class embeddings: {needed}")
    check_shapes(path, tensors, own)
    check_finite(tensors, path)
    model.load_state_dict(tensors)


def load_start(unet, path):
    """Load the weights that train.py starts from: of a run folder, a .safetensors file, or a diffusers folder (a pipeline's or its unet).

    Raises RunError as load_weights() does, and for a diffusers folder that makes another function of the same weights.
    """
    file = "diffusion_pytorch_model.safetensors"
    folder = path.parent if path.name == file else path / "unet" if (path / "unet").is_dir() else path
    if not (folder / "config.json").is_file():
        return load_weights(unet, path / "model.safetensors" if path.is_dir() else path)
    config = json.loads(json.dumps(dict(unet.config)))  # lists for tuples, as in the file
    defaults = {name: parameter.default for name, parameter in inspect.signature(type(unet)).parameters.items()}
    # Not compared: what load_weights() tells better, what changes nothing in a U-Net like ours, and dropout, which is --arch's
    apart = ("num_class_embeds", "time_embedding_dim", "sample_size", "num_train_timesteps", "dropout")
    expected = {name: config[name] for name in defaults if name not in apart}
    check_config(folder / "config.json", json.loads(json.dumps(defaults)), expected, "this --arch has")
    scheduler = folder.resolve().parent / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        unsaid = {"prediction_type": "epsilon", "trained_betas": None, "rescale_betas_zero_snr": False}  # by earlier versions of diffusers
        check_config(scheduler, unsaid, NOISE | unsaid, "models here are trained with")
    load_weights(unet, folder / file)


def check_config(path, defaults, expected, where):
    """Raise RunError unless a diffusers config has the values `expected`. defaults: of what it does not name."""
    found = defaults | read_json(path)
    differing = [f"{name} is {found.get(name)}, where {where} {value}" for name, value in expected.items() if found.get(name) != value]
    if differing:
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise RunError(f"{path} describes a model that computes something else: {differing[0]}{more}")


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
