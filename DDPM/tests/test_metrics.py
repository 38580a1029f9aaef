"""Numbers that can be known beforehand. Each test names the mutation that would break it."""

import math
import pickle

import numpy as np
import pytest
import torch

import metrics
from cli import RunError
from helpers import Payload


class Flat(torch.nn.Module):
    """A 'classifier' whose features are the pixels themselves."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        torch.manual_seed(0)
        torch.nn.init.normal_(self.fc.weight)

    def features(self, x):
        return ((x + 1) * 127.5).flatten(1)


@pytest.fixture(scope="module")
def flat():
    return metrics.register_features(Flat())


def gaussian(mean, sd, count=6000, seed=0):
    draws = np.random.default_rng(seed).normal(mean, sd, (count, 2, 2, 1))
    return torch.from_numpy(draws.round().clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_distance_of_two_known_gaussians(flat):
    """Mutation: leave out the trace of the covariances, or swap in the standard deviations."""
    found = metrics.fidelity(gaussian(120, 10), gaussian(130, 20, seed=1), extractor=flat)
    assert found["feature_distance"] == pytest.approx(4 * (10**2 + (20 - 10) ** 2), rel=0.06)  # |mu1 - mu2|^2 + sum (sd1 - sd2)^2
    assert "FID" not in found
    same = metrics.fidelity(gaussian(120, 10), gaussian(120, 10, seed=2), extractor=flat)
    assert same["feature_distance"] < 1 and same["feature_precision"] > 90 and same["feature_recall"] > 90


def test_precision_and_recall_are_not_swapped(flat):
    """Mutation: hand samples and reference over in the other order."""
    found = metrics.fidelity(gaussian(128, 3, 1500), gaussian(128, 30, 1500, seed=1), extractor=flat)  # narrow samples in wide data
    assert found["feature_precision"] > 90 and found["feature_recall"] < 20


def test_forgetting_by_hand():
    """Mutation: UA as the accuracy itself; the entropy in bits."""
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]]).repeat(2, 1)
    labels = torch.tensor([0, 0, 0, 1, 2, 2]).repeat(2)
    names = ["none", "one", "two"]
    found = metrics.forgetting(logits[:6], labels[:6], (0,), names)
    p = logits[:3].double().softmax(1)
    assert found["UA"] == pytest.approx(100 / 3)  # the tie of the third goes to class 0
    assert found["forget_probability"] == pytest.approx(100 * p[:, 0].mean().item())
    assert found["forget_entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item())
    assert found["remaining_accuracy"] == pytest.approx(200 / 3)
    assert found["class_accuracy"] == pytest.approx({"none": 200 / 3, "one": 100, "two": 50})
    both = metrics.forgetting(logits, labels, (0, 2), names)
    assert both["UA"] == pytest.approx(100 * 2 / 5) and both["remaining_accuracy"] == 100
    for forgotten, message in (((0, 1, 2), "only"), ((5,), "none of")):
        with pytest.raises(RunError, match=message):
            metrics.forgetting(logits, labels, forgotten, names)


def test_too_few_images_and_no_inception_are_said(flat, tmp_path, monkeypatch):
    """Mutation: drop the check; let URLError through."""
    with pytest.raises(RunError, match="too few"):
        metrics.fidelity(gaussian(1, 1, 5), gaussian(1, 1, 50), extractor=flat)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(RunError, match="--inception_weights"):
        metrics.fidelity(gaussian(1, 1, 20), gaussian(1, 1, 20))


@pytest.mark.slow
def test_inception_from_a_file(tmp_path, monkeypatch):
    """Random weights of Inception's shape: the path, not the number.

    Mutation: ignore --inception_weights; one channel given to Inception.
    """
    import torch_fidelity.feature_extractor_inceptionv3 as inception

    built = {}
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: built)
    monkeypatch.setattr(
        inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: built.update(torch.nn.Module.state_dict(self))
    )
    inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    monkeypatch.undo()
    torch.save(built, tmp_path / "inception.pth")
    found = metrics.fidelity(gaussian(100, 20, 12), gaussian(100, 20, 12, seed=1), weights=tmp_path / "inception.pth")
    assert set(found) == {"FID", "IS", "KID", "precision", "recall"} and all(math.isfinite(value) for value in found.values())


def test_a_distance_that_is_no_number_is_refused(monkeypatch):
    """Mutation: write it into metrics.json."""
    import torch_fidelity

    monkeypatch.setattr(torch_fidelity, "calculate_metrics", lambda **options: {"kernel_inception_distance_mean": math.nan})
    monkeypatch.setattr(metrics, "checked_inception", lambda *rest: "")
    with pytest.raises(RunError, match="kernel_inception_distance_mean of the samples is nan"):
        metrics.fidelity(gaussian(10, 20, 12), gaussian(10, 20, 12, seed=1))


@pytest.mark.parametrize("cached", (False, True))
def test_files_that_are_no_inception_end_in_one_sentence(cached, tmp_path, monkeypatch):
    """Breaks if torch-fidelity is handed the file or its cache as it is, or if its RuntimeError for other tensors goes through."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    path = tmp_path / ("home/hub/checkpoints/" + URL_INCEPTION_V3.split("/")[-1] if cached else "inception.pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.ones(100)}, tmp_path / "whole.pth")
    bad = {"payload": lambda: torch.save({"weight": Payload(tmp_path / "ran")}, path)}
    bad["old payload"] = lambda: torch.save({"weight": Payload(tmp_path / "ran")}, path, _use_new_zipfile_serialization=False)
    bad["raw pickle"] = lambda: path.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    bad["text"] = lambda: path.write_text("no weights at all, but a text of several words")
    bad["truncated"] = lambda: path.write_bytes((tmp_path / "whole.pth").read_bytes()[:-200])
    bad["numbers for names"] = lambda: torch.save({1: torch.ones(2)}, path)
    bad["other tensors"] = lambda: torch.save({"weight": torch.ones(2)}, path)
    for name, write in bad.items():
        write()
        with pytest.raises(RunError, match="damaged or holds more|holds no table|does not hold the weights of torch-fidelity"):
            metrics.fidelity(gaussian(1, 1, 12), gaussian(1, 1, 12), weights=None if cached else path)
        assert not (tmp_path / "ran").exists(), name
