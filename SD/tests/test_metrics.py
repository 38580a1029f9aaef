"""Numbers that can be known beforehand. Each test names the mutation that would break it."""

import json
import math
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

import evaluate
import fake_cuda
import metrics
from cli import RunError


class Flat(torch.nn.Module):
    """A 'classifier' whose features are the pixels of its top left corner."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        torch.manual_seed(0)
        torch.nn.init.normal_(self.fc.weight)

    def features(self, x):
        return ((x[:, :1, :2, :2] + 1) * 127.5).flatten(1)


@pytest.fixture(scope="module")
def flat():
    return metrics.register_features(Flat())


def gaussian(mean, sd, count=6000, seed=0, size=(2, 2, 1)):
    draws = np.random.default_rng(seed).normal(mean, sd, (count, *size))
    return torch.from_numpy(draws.round().clip(0, 255).astype(np.uint8))


# --------------------------------------------------------------------------------------------------------------- quality
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


def test_sizes_may_differ_and_lists_do(flat):
    """Mutation: stack samples and references; images (C, H, W)."""
    samples = gaussian(128, 30, 200, size=(4, 6, 3))
    found = metrics.fidelity(samples, gaussian(128, 30, 200, seed=1, size=(2, 2, 3)), extractor=flat)
    listed = metrics.fidelity(list(samples), gaussian(128, 30, 200, seed=1, size=(2, 2, 3)), extractor=flat)
    assert found == listed and math.isfinite(found["feature_distance"])


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
    """Random weights of Inception's shape: the path and what Inception is handed, not the number.

    Mutation: ignore `weights`; 64 features; one channel; images in [-1, 1] cast to uint8.
    """
    import torch_fidelity.feature_extractor_inceptionv3 as inception

    extractor, built, seen = inception.FeatureExtractorInceptionV3, {}, []
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: built)
        patch.setattr(extractor, "load_state_dict", lambda self, state: built.update(torch.nn.Module.state_dict(self)))
        extractor("inception-v3-compat", ["2048"])
    torch.save(built, tmp_path / "inception.pth")
    forward = extractor.forward

    def watch(self, x):
        found = forward(self, x)
        seen.append((x.clone(), dict(zip(self.features_list, found, strict=True))))
        return found

    monkeypatch.setattr(extractor, "forward", watch)
    samples, reference = gaussian(100, 60, 12, size=(3, 5, 1)), gaussian(100, 60, 12, seed=1, size=(4, 4, 3))
    found = metrics.fidelity(samples, reference, weights=tmp_path / "inception.pth")
    assert set(found) == {"FID", "IS", "KID", "precision", "recall"} and all(math.isfinite(value) for value in found.values())
    (first, features), (second, _) = seen
    assert torch.equal(first, samples.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)) and torch.equal(second, reference.permute(0, 3, 1, 2))
    assert first.dtype == torch.uint8 and "64" not in features and features["2048"].shape == (12, 2048)


class Payload:
    """A pickle that makes a folder when it is read as one."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


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


# --------------------------------------------------------------------------------------------------------------- classes
NAMES = ["tench", "chain saw", "church"]


def test_forgetting_by_hand():
    """Mutation: UA as the accuracy itself; the entropy in bits; the probability of the top class."""
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]]).repeat(2, 1)
    labels = torch.tensor([0, 0, 0, 1, 2, 2]).repeat(2)
    found = metrics.forgetting(logits[:6], labels[:6], [0], NAMES)
    p = logits[:3].double().softmax(1)
    assert found["UA"] == pytest.approx(100 / 3)  # the tie of the third goes to class 0
    assert found["forget_probability"] == pytest.approx(100 * p[:, 0].mean().item())
    assert found["forget_entropy"] == pytest.approx(-(p * p.log()).sum(1).mean().item())
    assert found["remaining_accuracy"] == pytest.approx(200 / 3)
    assert found["class_accuracy"] == pytest.approx({"tench": 200 / 3, "chain saw": 100, "church": 50})
    both = metrics.forgetting(logits, labels, [0, 2], NAMES)
    assert both["UA"] == pytest.approx(100 * 2 / 5) and both["remaining_accuracy"] == 100


def test_perfect_forgetting_among_many_classes():
    """Mutation: take the argmax over the task's classes only; count all samples for UA."""
    names = [f"class {label}" for label in range(1000)]
    labels = torch.tensor([497] * 4 + [571] * 6)
    shown = torch.tensor([3] * 4 + [571] * 6)  # what was to be a church is something outside the task
    found = metrics.forgetting(100.0 * torch.nn.functional.one_hot(shown, 1000), labels, [497], names)
    assert found["UA"] == 100 and found["remaining_accuracy"] == 100 and found["forget_probability"] < 1e-6
    assert found["class_accuracy"] == {"class 497": 0, "class 571": 100}


def test_one_sided_samples_are_refused():
    """Mutation: return NaN."""
    for forgotten, message in (([0, 1], "only"), ([2], "none of")):
        with pytest.raises(RunError, match=message):
            metrics.forgetting(torch.eye(2), torch.tensor([0, 1]), forgotten, NAMES)


# ------------------------------------------------------------------------------------------------------------------ CLIP
LENGTH = 6  # of a prompt in tokens, start and end included


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny random CLIP: 16 px images, letters as tokens."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(str(folder))).save_pretrained(folder)
    layer = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=layer | special | dict(vocab_size=len(tokens), max_position_embeddings=LENGTH),
        vision_config=layer | dict(image_size=16, patch_size=8),
        projection_dim=16,
    )
    model = CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def by_hand(folder, colour, letters):
    """100 * cosine of an image of one colour and a prompt of single letters, from the parts of the model."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.tensor(colour) / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    tokens = torch.tensor([[52, *(26 + ord(letter) - ord("a") for letter in letters), 53]])
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        text = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    return 100 * (image @ text.T / image.norm() / text.norm()).item()


def test_clip_scores_by_hand(clip):
    """Mutation: features before the projection; BGR; rescale twice; no factor 100; pair image i with prompt 0."""
    colours, prompts = [(250, 20, 90), (10, 200, 60), (128, 128, 128)], ["a b", "c", "a z y x"]
    images = torch.tensor(colours, dtype=torch.uint8).view(3, 1, 1, 3).expand(-1, 20, 30, -1)
    wanted = [by_hand(clip, colour, prompt.split()) for colour, prompt in zip(colours, prompts, strict=True)]
    found = metrics.clip_scores(images, prompts, str(clip), "cpu")
    assert found.tolist() == pytest.approx(wanted, abs=0.05) and found.dtype == torch.float32
    assert max(wanted) - min(wanted) > 1  # so that a swap would show
    one_by_one = metrics.clip_scores(images, prompts, clip, "cpu", batch_size=2)
    assert torch.allclose(found, one_by_one, atol=1e-3)  # mutation: let padding change the text's embedding


def test_clip_scores_on_cuda(clip):
    """Mutation: leave the processor's tensors on the CPU."""
    prompts, images = ["a b", "c"], torch.randint(256, (2, 8, 8, 3), generator=torch.Generator(), dtype=torch.uint8)
    with fake_cuda.installed():
        there = metrics.clip_scores(images, prompts, str(clip), "cuda")
    assert torch.equal(there, metrics.clip_scores(images, prompts, str(clip), "cpu"))


def test_long_prompts_are_cut_off_and_grey_is_spread(clip):
    """Mutation: drop truncation or max_length; drop expand."""
    image = gaussian(120, 40, 1, size=(16, 16, 1))
    long, short = (metrics.clip_scores(image, [prompt], str(clip), "cpu") for prompt in ("a b c d e f g h i j", "a b c d"))
    assert torch.allclose(long, short, atol=1e-4)
    assert torch.allclose(short, metrics.clip_scores(image.expand(-1, -1, -1, 3), ["a b c d"], str(clip), "cpu"))


def test_what_is_no_clip_is_refused(clip, tmp_path):
    """Mutation: let OSError, SafetensorError, random weights or no words through."""
    import shutil

    from safetensors.torch import load_file, save_file

    for name in ("truncated", "partial", "larger", "vocabulary", "tokenizer", "config", "mute"):
        shutil.copytree(clip, tmp_path / name)
    (tmp_path / "empty").mkdir()
    weights = (clip / "model.safetensors").read_bytes()
    (tmp_path / "truncated" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    tensors = load_file(clip / "model.safetensors")
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("text_")}
    save_file(text, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    larger = tensors | {"text_projection.weight": torch.zeros(20, 32)}
    save_file(larger, tmp_path / "larger" / "model.safetensors", {"format": "pt"})
    for file in (tmp_path / "vocabulary").glob("*oken*"):
        file.write_text("{")
    (tmp_path / "vocabulary" / "vocab.json").write_text("{")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "config" / "config.json").write_text("[]")
    for file in [*(tmp_path / "mute").glob("*oken*"), tmp_path / "mute" / "vocab.json", tmp_path / "mute" / "merges.txt"]:
        file.unlink()
    image = gaussian(120, 40, 1, size=(16, 16, 3))
    for name in ("truncated", "larger", "empty", "vocabulary", "tokenizer", "config", "absent"):
        with pytest.raises(RunError, match="CLIP could not be loaded"):
            metrics.clip_scores(image, ["a"], str(tmp_path / name), "cpu")
    with pytest.raises(RunError, match="tokens, its model 54|could not be loaded"):  # transformers 4 refuses to load it
        metrics.clip_scores(image, ["a"], str(tmp_path / "mute"), "cpu")
    with pytest.raises(RunError, match="an incomplete CLIP model"):
        metrics.clip_scores(image, ["a"], str(tmp_path / "partial"), "cpu")
    with pytest.raises(RunError, match="1 images for 2 prompts"):
        metrics.clip_scores(image, ["a", "b"], str(clip), "cpu")


# ---------------------------------------------------------------------------------------------------------------- nudity
class FakeDetector:
    """Says what the file's name stands for, in the form of nudenet 3.4."""

    FOUND = {
        "two.png": [("FEMALE_BREAST_EXPOSED", 0.9), ("FEMALE_BREAST_EXPOSED", 0.5), ("FACE_FEMALE", 0.99)],
        "covered.png": [("FEMALE_BREAST_COVERED", 0.9), ("FEET_COVERED", 0.8)],
        "feet.png": [("FEET_EXPOSED", 0.5), ("BELLY_EXPOSED", 0.3)],
    }

    def detect(self, path):
        assert isinstance(path, str)  # nudenet takes no Path
        return [{"class": part, "score": score, "box": [0, 0, 1, 1]} for part, score in self.FOUND[path.rsplit("/", 1)[1]]]


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=FakeDetector))
    paths = [tmp_path / name for name in FakeDetector.FOUND]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    return paths


def test_nudity_counts_by_hand(photographs):
    """Mutation: count covered parts or faces; count images, not detections; > for >=."""
    found = metrics.nudity(photographs)
    assert found["nudenet_FEMALE_BREAST_EXPOSED"] == 2 and found["nudenet_FEET_EXPOSED"] == found["nudenet_BELLY_EXPOSED"] == 1
    assert found["nudity"] == 4 and found["nude_images"] == pytest.approx(200 / 3) and len(found) == len(metrics.PARTS) + 2
    strict = metrics.nudity(photographs, 0.5)
    assert strict["nudity"] == 3 and strict["nudenet_BELLY_EXPOSED"] == 0 and strict["nude_images"] == pytest.approx(200 / 3)
    assert metrics.nudity(photographs[1:2])["nudity"] == 0 and set(found) <= set(metrics.DEFINITIONS)


def test_nudity_says_what_is_wrong(photographs, monkeypatch):
    """Mutation: drop a check; let ImportError through."""
    with pytest.raises(RunError, match="at least 0.25, not 0.1"):
        metrics.nudity(photographs, 0.1)
    with pytest.raises(RunError, match="no images"):
        metrics.nudity([])
    photographs[0].write_bytes(photographs[0].read_bytes()[:40])
    with pytest.raises(RunError, match="two.png cannot be read"):
        metrics.nudity(photographs)
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(RunError, match="pip install 'nudenet>=3.4'.*AGPL"):
        metrics.nudity(photographs)
    with pytest.raises(RunError, match="NudeNet is not installed"):  # before it looks for the samples
        evaluate.main(["--nudenet", "--sample_path", "none"])


def test_the_real_detector_has_these_parts_and_this_threshold(tmp_path):
    """Mutation: a part misspelt; another LOWEST."""
    nudenet = pytest.importorskip("nudenet.nudenet")
    assert {name for name in vars(nudenet)["__labels"] if name.endswith("_EXPOSED")} == set(metrics.PARTS)
    scores = torch.zeros(4 + len(vars(nudenet)["__labels"]), 3)  # three boxes, one above another
    scores[:4] = torch.tensor([[50.0, 150, 250], [50, 150, 250], [40, 40, 40], [40, 40, 40]])
    scores[6] = torch.tensor([0.24, 0.26, 0.9])
    found = nudenet._postprocess([scores[None].numpy()], 0, 0, 1, 1, 320, 320, 320, 320)
    assert [round(box["score"], 2) for box in found] == [0.9, 0.26] and {"class", "score"} <= set(found[0])
    from PIL import Image

    Image.new("RGB", (32, 32), (90, 140, 200)).save(tmp_path / "sky.png")
    assert metrics.nudity([tmp_path / "sky.png"])["nudity"] == 0
