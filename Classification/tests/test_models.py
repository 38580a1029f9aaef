"""Every architecture builds, trains a step under a mask and gives per-sample gradients."""

import pytest
import torch

import data
import masking
import models
import passes
from cli import RunError


def build(arch, size=32, channels=3, seed=0):
    return models.build(arch, 4, channels, size, seed)


def slow(names, *large):
    return [pytest.param(name, marks=pytest.mark.slow if name in large else ()) for name in names]


@pytest.mark.parametrize("arch", slow(models.MODELS, "vgg16_bn", "resnet50"))
def test_architecture(arch):
    """Mutation: leave the normalisation out of the forward pass."""
    model = build(arch)
    assert models.head(model).out_features == 4
    x = torch.rand(2, 3, 32, 32)
    plain = model.eval()(x)
    model.pixel_mean.fill_(0.5)
    assert plain.shape == (2, 4) and not torch.equal(model(x), plain)
    mask = {name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in model.named_parameters()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with masking.SalientParameters(dict(model.named_parameters()), mask) as salient:
        optimizer = torch.optim.SGD(salient.parameters(), 0.1, weight_decay=0.1)
        model(x).square().sum().backward()
        optimizer.step()
        salient.scatter()
    assert 0.3 < masking.check_change(before, dict(model.named_parameters()), mask) <= 0.5


@pytest.mark.parametrize("arch", slow(["cnn", "resnet20", "wide_resnet6", "swin_t"], "swin_t"))
def test_per_sample_gradients_equal_single_backward_passes(arch):
    """Mutation: gradients in train mode."""
    model, size = build(arch, 16), 16
    split = data.Split(torch.randint(256, (3, size, size, 3), dtype=torch.uint8), torch.tensor([0, 3, 1]), torch.arange(3), "train")
    blocks = list(passes.sample_gradients(model, split))
    for i, (x, y) in enumerate(passes.plain_batches(split, 1)):
        expected = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(torch.cat([block[name] for block in blocks])[i], gradient, rtol=1e-3, atol=1e-5)


def test_same_seed_same_weights_without_touching_global_randomness():
    """Mutation: torch.manual_seed without fork_rng."""
    state = torch.get_rng_state()
    first, second, other = build("cnn", 8), build("cnn", 8), build("cnn", 8, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters())) and torch.equal(torch.get_rng_state(), state)


def test_grey_images_and_large_images():
    """Mutation: a fixed three-channel stem."""
    assert build("resnet18", 28, 1)(torch.rand(1, 1, 28, 28)).shape == (1, 4)
    assert build("resnet18", 96).conv1.kernel_size == (7, 7)
    with pytest.raises(RunError, match="32 px"):
        build("vgg16_bn", 8)
