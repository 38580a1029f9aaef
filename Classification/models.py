"""Classifiers for small images. Normalisation is part of the model: it takes floats in [0, 1].

Parameter names are torchvision's own. Two buffers, pixel_mean and pixel_std, come on top. Besides the MODELS of this file, `arch` may be
torchvision:NAME, timm:NAME, or FILE.py:CLASS, a class in a file of the user's own that takes num_classes. The code of such a file runs
only where a command line names it.
"""

import argparse

import torch
from torch import nn

from cli import RunError
from networks import LIBRARIES, NETWORK_ERRORS, linear_layers, own_file, own_network, source_of, try_out


class SmallCNN(nn.Module):
    """Three convolutions with BatchNorm, 94,186 weights for grey images of 10 classes: enough for 8x8 digits, seconds to train on a CPU."""

    def __init__(self, num_classes, channels):
        super().__init__()
        widths = (channels, 32, 64, 128)
        layers = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers[:6], nn.MaxPool2d(2), *layers[6:])
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class BasicResNet(nn.Module):
    """A ResNet of torchvision's basic blocks, with 1x1 convolutions as shortcuts where the shape changes.

    stem: (width, stride) of the first convolution; blocks: the same of each block.
    """

    def __init__(self, num_classes, channels, stem, blocks):
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        width, stride = stem
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        layers = []
        for out, stride in blocks:
            shortcut = None
            if (width, 1) != (out, stride):
                shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            layers.append(BasicBlock(width, out, stride, shortcut))
            width = out
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def resnet20(num_classes, channels, image_size):
    """ResNet-20 of He et al. 2016, section 4.2: 272,474 weights for 10 classes."""
    blocks = ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1))
    return BasicResNet(num_classes, channels, (16, 1), blocks)


def wide_resnet6(num_classes, channels, image_size):
    """A wide, short ResNet for CPUs: 1,153,610 weights for 10 classes, four times ResNet-20's, at half its time per image.

    Its stem halves the image at once. On CIFAR-10 it fits all of its training images, as the networks of the paper do and ResNet-20 does
    not.
    """
    return BasicResNet(num_classes, channels, (64, 2), ((128, 2), (256, 2)))


def torchvision_resnet(name):
    """torchvision's ResNet; up to 64 px its stem is a 3x3 convolution without stride and without pooling."""

    def build(num_classes, channels, image_size):
        import torchvision

        model = getattr(torchvision.models, name)(num_classes=num_classes)
        if image_size <= 64:
            model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        elif channels != 3:
            model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        return model

    return build


def vgg16_bn(num_classes, channels, image_size):
    """torchvision's VGG-16 with BatchNorm, global pooling and one linear layer, as is usual on CIFAR."""
    import torchvision

    if image_size < 32:
        raise RunError(f"vgg16_bn halves its input five times and needs images of 32 px or more, not {image_size}")
    model = torchvision.models.vgg16_bn(num_classes=num_classes)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, num_classes)
    return model


def swin_t(num_classes, channels, image_size):
    """torchvision's Swin-T; up to 64 px it takes patches of 2 px and windows of 4. Without stochastic depth, whose noise would make
    results depend on the number of processes."""
    from torchvision.models.swin_transformer import SwinTransformer

    patch, window = (2, 4) if image_size <= 64 else (4, 7)
    shape = {"patch_size": [patch, patch], "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    model = SwinTransformer(**shape, window_size=[window, window], stochastic_depth_prob=0.0, num_classes=num_classes)
    if channels != 3:
        model.features[0][0] = nn.Conv2d(channels, 96, patch, patch)
    return model


MODELS = {
    "cnn": lambda num_classes, channels, image_size: SmallCNN(num_classes, channels),
    "resnet20": resnet20,
    "wide_resnet6": wide_resnet6,
    "resnet18": torchvision_resnet("resnet18"),
    "resnet50": torchvision_resnet("resnet50"),
    "vgg16_bn": vgg16_bn,
    "swin_t": swin_t,
}


PAPER_SPELLINGS = {"vgg16_bn_lth": "vgg16_bn"}  # of the paper's own repository


def architecture(text):
    """The value of --arch. Raises ArgumentTypeError for one that cannot be built."""
    arch = PAPER_SPELLINGS.get(text, text)
    library, _, name = arch.partition(":")
    if arch == "resnet20s":
        raise argparse.ArgumentTypeError("resnet20s has shortcuts without weights: write resnet20, which has 1x1 convolutions there")
    if arch not in MODELS and library not in LIBRARIES and own_file(arch) is None:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(MODELS)}, torchvision:NAME, timm:NAME and FILE.py:CLASS, not {text}")
    try:
        if library in LIBRARIES:
            LIBRARIES[library](name)
        elif own_file(arch):
            source_of(own_file(arch)[0])
    except RunError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return arch


def normalize(model, inputs):
    return ((inputs[0] - model.pixel_mean) / model.pixel_std,)


def build(arch, num_classes, channels, image_size, seed, source_sha=None):
    """Return a freshly initialised model in channels_last. The same seed gives the same weights.

    source_sha: sha256 of the file, where arch is FILE.py:CLASS. Raises RunError for a network that cannot be built, does not take such
    images, or does not give one score per class.
    """
    library, _, name = arch.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch in MODELS:
            model = MODELS[arch](num_classes, channels, image_size)
            model.head_name = linear_layers(model, num_classes)[-1]
        elif library in LIBRARIES or own_file(arch):
            try:
                make = LIBRARIES[library](name) if library in LIBRARIES else own_network(*own_file(arch), source_sha)
                model = make(num_classes, channels, image_size)
            except NETWORK_ERRORS as error:
                raise RunError(f"--arch {arch} cannot be built for {num_classes} classes: {type(error).__name__}, {error}") from error
            model.head_name = try_out(model, arch, num_classes, torch.rand(2, channels, image_size, image_size))
        else:
            raise RunError(f"there is no architecture {arch}: it was removed, or args.json was edited")
    model.register_buffer("pixel_mean", torch.zeros(1, channels, 1, 1))
    model.register_buffer("pixel_std", torch.ones(1, channels, 1, 1))
    model.register_forward_pre_hook(normalize)
    return model.to(memory_format=torch.channels_last)


def head(model):
    """The linear layer that turns features into class scores."""
    return model.get_submodule(model.head_name)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def set_normalisation(model, x, how="data"):
    """Set the mean and standard deviation by which the model scales its images.

    x: uint8 images (N, H, W, C). how: "data" (those of x), "imagenet", "none", or a pair of lists with a number per channel.
    """
    if how == "data":
        mean, std = channel_statistics(x)
    else:
        numbers = {"imagenet": IMAGENET, "none": ([0.0] * x.shape[3], [1.0] * x.shape[3])}.get(how) if isinstance(how, str) else how
        mean, std = (torch.tensor(values) for values in numbers)
    if len(mean) != x.shape[3]:
        raise RunError(f"--normalise has numbers for {len(mean)} channels, but the images have {x.shape[3]}")
    model.pixel_mean.copy_(mean.view(1, -1, 1, 1))
    model.pixel_std.copy_(std.view(1, -1, 1, 1))


def channel_statistics(x):
    """Mean and standard deviation of each channel, float64 (C,), of uint8 images (N, H, W, C) as numbers in [0, 1]."""
    count, total, squares = x[..., 0].numel(), 0.0, 0.0
    for part in x.split(4096):
        part = part.double() / 255
        total, squares = total + part.sum((0, 1, 2)), squares + (part * part).sum((0, 1, 2))
    mean = total / count
    return mean, (squares / count - mean**2).clamp_min(1e-6).sqrt()
