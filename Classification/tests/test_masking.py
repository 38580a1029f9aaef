"""The mask: exact, and hard. Each names the mutation that would break it."""

import math

import pytest
import torch

import masking
from cli import RunError
from files import write_tensors

OPTIMIZERS = {
    "sgd": lambda leaves: torch.optim.SGD(leaves, 0.1, momentum=0.9, weight_decay=0.05),
    "adam": lambda leaves: torch.optim.Adam(leaves, 0.01, weight_decay=0.05),
    "adamw": lambda leaves: torch.optim.AdamW(leaves, 0.01, weight_decay=0.5),
}


def saliency(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(7, 3, 3, 3, generator=draw).to(memory_format=torch.channels_last),
        "b": torch.randn(11, generator=draw),
        "c": torch.randn(40, 30, generator=draw),
    }


def by_sorting(saliency, ratio):
    flat = torch.cat([tensor.reshape(-1) for tensor in saliency.values()]).abs()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i].item(), i))
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[order[: math.floor(ratio * len(flat))]] = True
    return keep


@pytest.mark.parametrize("ratio", [0.0001, 0.1, 0.5, 0.999, 1.0])
def test_select_equals_sorting(ratio, monkeypatch):
    """Mutation: round() for floor(), or LOW_BITS one bit off."""
    monkeypatch.setattr(masking, "CHUNK", 100)  # ties and thresholds must hold across chunks
    mask = masking.select(saliency(), ratio)
    assert torch.equal(torch.cat([part.reshape(-1) for part in mask.values()]), by_sorting(saliency(), ratio))


def test_select_breaks_ties_by_position(monkeypatch):
    """Mutation: drop the [:ties] in select."""
    monkeypatch.setattr(masking, "CHUNK", 5)
    tied = {"a": torch.tensor([1.0, -1, 0, 1]), "b": torch.tensor([2.0, 1, -1, 0, 0, 1, 1, 0.5])}
    for k in range(13):
        mask = masking.select(tied, k / 12 + 1e-9)
        assert torch.equal(torch.cat(list(mask.values())), by_sorting(tied, k / 12 + 1e-9))


def test_select_handles_all_zero_and_denormal():
    """Mutation: a histogram over values in place of bits."""
    mask = masking.select({"a": torch.zeros(10), "b": torch.full((10,), 1e-42)}, 0.6)
    assert mask["b"].all() and mask["a"].tolist() == [True] * 2 + [False] * 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_select_refuses_non_finite(bad):
    """Mutation: drop the check of the top bins."""
    with pytest.raises(RunError, match="NaN or infinite"):
        masking.select({"a": torch.tensor([1.0, bad, 2.0])}, 0.5)


def flat(mask):
    return torch.cat([part.reshape(-1) for part in mask.values()])


@pytest.mark.parametrize("ratio", [0.001, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", masking.KINDS)
def test_every_kind_keeps_exactly_its_share(kind, ratio, monkeypatch):
    """Mutation: draw each weight with probability `ratio`; round the layers' shares; take the complement at the same ratio."""
    monkeypatch.setattr(masking, "CHUNK", 100)
    gradient, weights = saliency(), saliency(1)
    mask = masking.make(kind, ratio, weights, lambda: gradient, seed=3)
    assert {name: part.shape for name, part in mask.items()} == {name: part.shape for name, part in weights.items()}
    assert masking.count(mask) == (math.floor(ratio * 1400), 1400)
    with pytest.raises(RunError, match="0.0001 keeps none of 1,400 weights"):
        masking.make(kind, 0.0001, weights, lambda: gradient, seed=3)
    if kind == "layerwise":
        assert [int(part.sum()) for part in mask.values()] == [int(part.sum()) for part in masking.select(gradient, ratio).values()]
    if kind == "magnitude":
        assert torch.equal(flat(mask), by_sorting(weights, ratio))
    if kind == "least_salient" and ratio < 1:
        sizes, kept = flat(gradient).abs(), flat(mask)
        assert torch.equal(sizes[kept].sort().values, sizes.sort().values[: int(kept.sum())])


def test_a_kind_without_a_branch_is_no_saliency_mask(monkeypatch):
    """Mutation: let it fall through."""
    monkeypatch.setitem(masking.KINDS, "smallest", "the smallest weights")
    with pytest.raises(RunError, match="no branch makes a mask of the kind smallest"):
        masking.make("smallest", 0.5, saliency(1), saliency)


def test_random_masks_follow_their_seed_and_nothing_else():
    """Mutation: the global generator; the same scores for all tensors; ask for the gradient; 24-bit scores, whose ties favour the start."""
    weights, made = {"a": torch.zeros(400, 500), "b": torch.zeros(400, 500)}, {}
    for seed in (1, 2):
        made[seed] = masking.make("random", 0.25, weights, None, seed)
        assert torch.equal(flat(made[seed]), flat(masking.make("random", 0.25, weights, None, seed)))
    for one, other in ((flat(made[1]), flat(made[2])), (made[1]["a"], made[1]["b"])):  # independent: 1/16 of the weights are in both
        assert (one & other).double().mean().item() == pytest.approx(1 / 16, abs=0.003)
    halves = flat(made[1]).view(8, -1).double().mean(1)
    assert halves.tolist() == pytest.approx([0.25] * 8, abs=0.01)


def network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(6 * 16, 5)
    )
    return net.to(memory_format=torch.channels_last)


def train(net, mask, name, steps=6):
    with masking.SalientParameters(dict(net.named_parameters()), mask) as salient:
        optimizer = OPTIMIZERS[name](salient.parameters())
        for step in range(steps):
            draw = torch.Generator().manual_seed(step)
            x, y = torch.randn(8, 2, 6, 6, generator=draw), torch.randint(5, (8,), generator=draw)
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            salient.scatter()
        return sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value) and value.dim()
        )


def test_the_gradient_of_the_saliency_is_no_part_of_the_first_step():
    """Nor does a frozen layer come back to life. Mutation: leave parameter.grad as it is, of compact leaves or of parameters that are
    salient everywhere; require gradients of all on exit."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    x, before = torch.randn(8, 4), [parameter.detach().clone() for parameter in net.parameters()]
    (100 * net(x).sum()).backward()
    mask = masking.select({name: parameter.grad for name, parameter in net.named_parameters()}, 0.5)
    mask["0.bias"][:], mask["1.bias"][:] = True, False
    net[1].bias.requires_grad_(False)
    with masking.SalientParameters(dict(net.named_parameters()), mask) as salient:
        optimizer = torch.optim.SGD(salient.parameters(), lr=1.0)
        net(x).sum().backward()
        optimizer.step()
        salient.scatter()
    assert not net[1].bias.requires_grad and net[0].weight.requires_grad
    for (name, parameter), start in zip(net.named_parameters(), before, strict=True):
        assert (start - parameter)[~mask[name]].eq(0).all()
    saved = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2))
    saved.load_state_dict(dict(zip(saved.state_dict(), before, strict=True)))
    saved(x).sum().backward()
    for (name, parameter), start, other in zip(net.named_parameters(), before, saved.parameters(), strict=True):
        torch.testing.assert_close((start - parameter)[mask[name]], other.grad[mask[name]])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_weights_stay_bitwise_equal(optimizer):
    """Mutation: hand the optimizer net.parameters() and mask gradients instead."""
    net = network()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    mask = masking.select(
        {name: torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) for name, parameter in before.items()}, 0.5
    )
    mask["4.bias"][:] = False  # a parameter frozen whole
    train(net, mask, optimizer)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter[~mask[name]], before[name][~mask[name]])
        assert (parameter[mask[name]] != before[name][mask[name]]).all()
        assert parameter.requires_grad


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_salient_weights_move_as_in_dense_training_with_masked_gradients(kind):
    """Mutation: scatter in row-major order for a channels_last tensor."""
    masked, dense = network(), network()
    mask = {
        name: torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2)) < 0.5 for name, parameter in dense.named_parameters()
    }
    train(masked, mask, kind, steps=4)
    start = {name: parameter.detach().clone() for name, parameter in dense.named_parameters()}
    optimizer = OPTIMIZERS[kind](dense.parameters())
    for step in range(4):
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 2, 6, 6, generator=draw), torch.randint(5, (8,), generator=draw)
        torch.nn.functional.cross_entropy(dense(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                parameter.copy_(torch.where(mask[name], parameter, start[name]))
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(parameter, dict(dense.named_parameters())[name], rtol=1e-4, atol=1e-6)


def test_full_mask_equals_no_mask():
    """Mutation: always make compact leaves."""
    masked, free = network(), network()
    train(masked, {name: torch.ones_like(parameter, dtype=torch.bool) for name, parameter in masked.named_parameters()}, "adamw")
    train(free, None, "adamw")
    assert all(torch.equal(a, b) for a, b in zip(masked.state_dict().values(), free.state_dict().values(), strict=True))


def test_batchnorm_statistics_lie_outside_the_mask():
    """Mutation: put the model in eval mode under a mask."""
    net = network()
    before = net[1].running_mean.clone()
    train(
        net,
        {
            name: torch.zeros_like(parameter, dtype=torch.bool).index_fill_(0, torch.tensor([0]), True)
            for name, parameter in net.named_parameters()
        },
        "sgd",
        steps=2,
    )
    assert not torch.equal(net[1].running_mean, before)


def test_optimizer_memory_shrinks_with_the_mask():
    """Mutation: leaves of the dense shape."""
    mask = masking.select({name: parameter.detach() for name, parameter in network().named_parameters()}, 0.25)
    assert train(network(), mask, "adam", steps=1) == pytest.approx(0.25 * train(network(), None, "adam", steps=1), rel=0.02)


def test_gradients_accumulate_over_backward_passes():
    """Mutation: overwrite leaf.grad in take_gradient."""
    net = network()
    mask = {name: torch.rand(parameter.shape) < 0.5 for name, parameter in net.named_parameters()}
    x = torch.randn(4, 2, 6, 6)
    with masking.SalientParameters(dict(net.named_parameters()), mask) as salient:
        net.eval()
        net(x).square().sum().backward()
        once = [leaf.grad.clone() for leaf in salient.parameters()]
        net(x).square().sum().backward()
        for leaf, grad in zip(salient.parameters(), once, strict=True):
            torch.testing.assert_close(leaf.grad, 2 * grad)


def test_mask_file_round_trip_and_size(tmp_path):
    """Mutation: save the bool tensors unpacked."""

    class Here:
        save = staticmethod(lambda name, tensors, metadata: write_tensors(tmp_path / name, tensors, metadata))

    weights = {"w": torch.randn(1000, 1001), "b": torch.randn(13)}
    mask = masking.select(weights, 0.3)
    facts = {"forget_sha": "f", "parent_sha": "p"}
    masking.save(Here, mask, facts, mask_ratio=0.3, seconds=1.5, epochs=2)
    loaded, info = masking.load(tmp_path, weights, facts)
    assert all(torch.equal(mask[name], loaded[name]) for name in mask)
    assert info == {"mask_ratio": 0.3, "mask_seconds": 1.5, "mask_kind": "saliency", "mask_flags": {"epochs": 2}}
    assert (tmp_path / "mask.safetensors").stat().st_size < 1001013 / 8 + 1000
    for parameters, change, message in (
        ({"w": weights["w"]}, {}, "another model"),
        (weights | {"b": torch.zeros(14)}, {}, "another model"),
        (weights, {"forget_sha": "g"}, "another forget set"),
        (weights, {"parent_sha": "q"}, "made from another model"),
    ):
        with pytest.raises(RunError, match=message):
            masking.load(tmp_path, parameters, facts | change)


@pytest.mark.parametrize("k", [1, 2, 250, 999, 1000])
def test_the_histograms_find_the_kth_smallest(k):
    """Mutation: count from the other end, or one off."""
    values = torch.randn(1000).abs()
    values[100:120] = values[7]
    bits, _ = masking.kth_largest([values], len(values) - k + 1)
    assert torch.tensor(bits, dtype=torch.int32).view(torch.float32) == values.kthvalue(k).values


def test_check_change_sees_a_frozen_weight_move():
    """Mutation: return the fraction without looking at the mask."""
    before, mask = {"w": torch.zeros(10)}, {"w": torch.arange(10) < 5}
    assert masking.check_change(before, {"w": (torch.arange(10) < 3).float()}, mask) == 0.3
    with pytest.raises(RunError, match="outside the mask"):
        masking.check_change(before, {"w": (torch.arange(10) > 8).float()}, mask)
    with pytest.raises(RunError, match="NaN"):
        masking.check_change(before, {"w": torch.full((10,), math.nan)}, mask)
