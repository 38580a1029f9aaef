"""Classifiers for small images. Normalisation is part of the model: it takes floats in [0, 1].

Parameter names are torchvision's own. Two buffers, pixel_mean and pixel_std, come on top.
"""

import torch
from torch import nn

from cli import RunError
from files import check_finite, check_shapes, read_tensors


class SmallCNN(nn.Module):
    """Three convolutions with BatchNorm, 93,610 weights for 10 classes: enough for 8x8 digits, seconds to train on a CPU."""

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


class ResNet20(nn.Module):
    """ResNet-20 of He et al. 2016, section 4.2, 1x1 convolutions as shortcuts where the shape changes; blocks are torchvision's."""

    def __init__(self, num_classes, channels):
        from torchvision.models.resnet import BasicBlock

        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, width = [], 16
        for out, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
            shortcut = None if stride == 1 else nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            blocks.append(BasicBlock(width, out, stride, shortcut))
            width = out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


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
    "resnet20": lambda num_classes, channels, image_size: ResNet20(num_classes, channels),
    "resnet18": torchvision_resnet("resnet18"),
    "resnet50": torchvision_resnet("resnet50"),
    "vgg16_bn": vgg16_bn,
    "swin_t": swin_t,
}


def normalize(model, inputs):
    return ((inputs[0] - model.pixel_mean) / model.pixel_std,)


def build(arch, num_classes, channels, image_size, seed):
    """Return a freshly initialised model in channels_last. The same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[arch](num_classes, channels, image_size)
    model.register_buffer("pixel_mean", torch.zeros(1, channels, 1, 1))
    model.register_buffer("pixel_std", torch.ones(1, channels, 1, 1))
    model.register_forward_pre_hook(normalize)
    return model.to(memory_format=torch.channels_last)


def set_normalisation(model, x):
    """Take mean and standard deviation of each channel from uint8 images (N, H, W, C)."""
    count, total, squares = x[..., 0].numel(), 0.0, 0.0
    for part in x.split(4096):
        part = part.double() / 255
        total, squares = total + part.sum((0, 1, 2)), squares + (part * part).sum((0, 1, 2))
    mean = total / count
    model.pixel_mean.copy_(mean.view(1, -1, 1, 1))
    model.pixel_std.copy_((squares / count - mean**2).clamp_min(1e-6).sqrt().view(1, -1, 1, 1))


def load_weights(model, path):
    """Load model.safetensors into a model. Raises RunError when they do not fit or are not finite."""
    tensors, _ = read_tensors(path)
    check_shapes(path, *({name: tuple(tensor.shape) for name, tensor in state.items()} for state in (tensors, model.state_dict())))
    check_finite(tensors, path)
    model.load_state_dict(tensors)


def head(model):
    """The last linear layer: what turns features into class scores."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
