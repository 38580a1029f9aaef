"""The official release's protocol by flags, and relearning. Each test names the mutation that would break it."""

import json

import pytest
import torch

import data
import imagesets
import models
import sampling
import task
from files import file_sha, read_json, read_tensors
from helpers import FORGOTTEN, TINY, cpu, ok, script

ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()


def test_the_release_samples_with_noise_without_clipping_and_stretches(load, monkeypatch):
    """Its loop by hand, 8 steps at eta 1. Mutation: clip x_0; leave out c1; stretch all images together."""
    model, keys = load().model, [(label, 0) for label in range(6)]
    draws = [data.make_generator("image", 1, *key) for key in keys]
    noise = lambda: torch.stack([torch.randn(1, 8, 8, generator=each) for each in draws])  # noqa: E731
    x, c = noise(), torch.arange(6)
    with torch.no_grad():
        for t in range(875, -1, -125):
            a, before = ABAR[t], ABAR[t - 125] if t else torch.tensor(1.0)
            conditional, null = (model(x, torch.full_like(c, t), class_labels=label).sample for label in (c, torch.full_like(c, 10)))
            e = 3 * conditional - 2 * null
            x_0 = (x - e * (1 - a).sqrt()) / a.sqrt()
            c1 = ((1 - a / before) * (1 - before) / (1 - a)).sqrt()
            x = before.sqrt() * x_0 + c1 * noise() + (1 - before - c1**2).clamp_min(0).sqrt() * e
    options = dict(null=10, seed=1, steps=8, cond_scale=2.0, eta=1.0, clip=False)
    plain, clipped = (sampling.draw(model, keys, cpu(), **options | {"clip": clip}) for clip in (False, True))
    assert (plain.int() - data.to_uint8(x).int()).abs().max() <= 1 and (clipped.int() - plain.int()).abs().max() > 5
    monkeypatch.setattr(sampling, "guided", lambda model, x, *rest: 0.99 * x)  # pale images
    plain, stretched = (sampling.draw(model, keys, cpu(), stretch=stretch, **options).flatten(1).float() for stretch in (False, True))
    low, high = plain.amin(1, keepdim=True), plain.amax(1, keepdim=True)
    assert (high - low).max() < 250 and (high - low).min() < 0.9 * (high - low).max()
    assert (stretched - 255 * (plain - low) / (high - low)).abs().max() <= 255 / (high - low).min()


@pytest.mark.slow
def test_the_last_weights_are_kept_and_can_be_started_from(home, unlearn, tmp_path):
    """Mutation: save the averaged weights twice, or the last ones; take the mask's sha from model.safetensors."""
    for name, flags in (("averaged", ""), ("raw", "--ema 0")):
        ok("train", TINY, flags, "--steps 20 --data_dir", home / "data", "--save_dir", tmp_path / name)
    average, last = (read_tensors(tmp_path / "averaged" / f"{name}.safetensors")[0] for name in ("model", "last"))
    raw = read_tensors(tmp_path / "raw" / "model.safetensors")[0]
    assert not (tmp_path / "raw" / "last.safetensors").exists()
    assert all(torch.equal(last[name], raw[name]) for name in raw) and any(not torch.equal(average[name], raw[name]) for name in raw)
    start = ("--model_path", home / "original", "--forget_class", FORGOTTEN, "--weights last --save_dir")
    ok("generate_mask", *start, tmp_path / "mask")
    still = unlearn("salun", "--weights last --steps 0 --mask_path", tmp_path / "mask")
    assert file_sha(still / "model.safetensors") == file_sha(home / "original" / "last.safetensors")
    averaged = unlearn("rl", "--steps 3 --ema 0.5")
    assert file_sha(averaged / "last.safetensors") == file_sha(unlearn("rl", "--steps 3") / "model.safetensors")
    command = "--classes 3 --num_per_class 1 --steps 2 --weights last --save_dir"
    ok("sample", "--model_path", averaged, command, tmp_path / "s")
    assert read_json(tmp_path / "s" / "args.json")["parent_sha"] == file_sha(averaged / "last.safetensors")


def test_a_run_that_kept_no_last_weights_says_so(home, tmp_path, capsys):
    """Mutation: take the averaged weights in silence."""
    for name in ("args.json", "done.json", "model.safetensors"):
        (tmp_path / name).write_bytes((home / "original" / name).read_bytes())
    assert script("sample", "--model_path", tmp_path, "--weights last --save_dir", tmp_path.parent / "s") != 0
    assert "kept only its averaged weights" in capsys.readouterr().err


@pytest.mark.slow
def test_training_and_test_images_together(home, tmp_path):
    """Mutation: forget the flag in load_task; train the judge on what it is tested on."""
    ok("train", TINY, "--with_test --steps 2 --data_dir", home / "data", "--save_dir", tmp_path / "all")
    loaded = task.load_task(tmp_path / "all", [str(FORGOTTEN)], cpu())
    images = imagesets.load_images("digits", home / "data")
    assert len(loaded.forget) + len(loaded.retain) == len(images.y_train) + len(images.y_test) == 1797
    assert len(loaded.forget) == int((images.y_train == FORGOTTEN).sum() + (images.y_test == FORGOTTEN).sum())
    flags = "--dataset digits --arch cnn --epochs 1 --lr 1e-3 --with_test --data_dir"
    ok("train_classifier", flags, home / "data", "--save_dir", tmp_path / "judge")
    assert json.loads((tmp_path / "judge" / "done.json").read_text())["images_seen"] == -(-(1797 - 179) // 128) * 128


@pytest.mark.slow
def test_some_classes_alone(home, tmp_path, capsys):
    """Mutation: forget the flag in load_task; keep the labels of the whole data set; take the test images of all classes."""
    where = ("--data_dir", home / "data", "--save_dir")
    ok("train", TINY, "--only_class 8 3 5 --steps 2", *where, tmp_path / "few")
    loaded = task.load_task(tmp_path / "few", ["5"], cpu())
    images = imagesets.load_images("digits", home / "data")
    assert loaded.classes.names == ["3", "5", "8"] and loaded.classes.forgotten == (1,)
    assert len(loaded.forget) == int((images.y_train == 5).sum()) and set(loaded.retain.labels.tolist()) == {0, 2}
    assert torch.equal(loaded.forget.images, images.x_train[images.y_train == 5])
    ok("train_classifier", "--dataset digits --arch wide_resnet6 --epochs 4 --lr 1e-3 --only_class 3 5 8", *where, tmp_path / "judge")
    assert read_json(tmp_path / "judge" / "done.json")["test_accuracy"] > 80
    ok("sample", "--classes all --num_per_class 5 --steps 2 --model_path", tmp_path / "few", "--save_dir", tmp_path / "samples")
    judge = ("--sample_path", tmp_path / "samples", "--classifier", tmp_path / "judge")
    ok("evaluate", *judge, "--forget_class 5 --features classifier")
    assert read_json(tmp_path / "samples" / "metrics.json")["facts"]["data set"] == "digits, 3 classes"
    assert script("train", TINY, "--only_class 3 3", *where, tmp_path / "one") == 1
    assert "--only_class 3 3 is one class: name two or more" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sum_is_clipped_where_a_mean_is_not(home, tmp_path):
    """Mutation: ignore --loss in train.py, or in Retrain of such an original."""
    weights = {}
    for loss in ("mean", "sum"):
        folder = tmp_path / loss
        ok("train", TINY, "--steps 3 --grad_clip 0.5 --loss", loss, "--data_dir", home / "data", "--save_dir", folder)
        ok("unlearn", "--method retrain --forget_class 3 --precision fp32 --model_path", folder, "--save_dir", tmp_path / f"re_{loss}")
        weights[loss] = read_tensors(folder / "model.safetensors")[0]["conv_in.weight"]
        rows = [(path / "log.csv").read_text().splitlines() for path in (folder, tmp_path / f"re_{loss}")]
        means = [float(row[1].split(",")[row[0].split(",").index("train")]) for row in rows]
        assert all(10 < mean < 150 if loss == "sum" else mean < 3 for mean in means)
    assert not torch.equal(weights["mean"], weights["sum"])


def test_the_judge_is_the_releases(tmp_path):
    """Its defaults, Xavier in the last layer and images in [-1, 1]. Mutation: a falling rate; ImageNet's statistics."""
    import train_classifier

    args = train_classifier.parse(["--save_dir", str(tmp_path)])
    found = (args.lr, args.head_lr_factor, args.weight_decay, args.schedule, args.epochs, args.batch_size)
    assert found == (1e-5, 10.0, 5e-4, "constant", 10, 128)
    model = models.build_classifier("resnet34", 10, 3, seed=0)
    model.set_normalisation(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    bound = (6 / (512 + 10)) ** 0.5
    assert bound * 0.98 < model.fc.weight.abs().max() <= bound
    assert not model.pixel_mean.any() and (model.pixel_std == 1).all()


@pytest.mark.slow
def test_relearning_brings_the_class_back_on_a_few_of_its_images(unlearn, tmp_path, home, load, capsys, monkeypatch):
    """Mutation: retained images; the whole forget set; another method's name, or that of the method under a saliency mask; leave
    --weights out of load_model; relearn twice.
    """
    from test_methods import loss

    ok(
        "generate_mask",
        "--mask_kind random --seed 1 --model_path",
        home / "original",
        "--forget_class",
        FORGOTTEN,
        "--save_dir",
        tmp_path / "m",
    )
    unlearned, seen, stream = unlearn("ga", "--steps 10 --lr 1e-3 --ema 0.5 --mask_path", tmp_path / "m"), [], data.Stream
    command = ("relearn", "--precision fp32 --batch_size 16 --lr 1e-3 --steps 30 --model_path", unlearned)
    with monkeypatch.context() as patch:
        patch.setattr(data, "Stream", lambda split, **options: seen.append(split) or stream(split, **options))
        ok(*command, "--num_images 10 --save_dir", tmp_path / "again")
    assert len(seen) == 1 and seen[0].labels.tolist() == [FORGOTTEN] * 10
    forgotten, relearned = load(unlearned), load(tmp_path / "again")
    assert loss(relearned, relearned.forget) < 0.5 * loss(forgotten, forgotten.forget)
    recorded = read_json(tmp_path / "again" / "args.json")
    assert (recorded["method"], recorded["forgotten"], recorded["options"]["relearned_images"]) == ("ga", [FORGOTTEN], 10)
    assert recorded["parent_sha"] == read_json(unlearned / "args.json")["parent_sha"]
    assert script(*command, "--num_images 156 --save_dir", tmp_path / "no") != 0
    assert "more than the 155 images of the forgotten classes" in capsys.readouterr().err and not (tmp_path / "no").exists()
    ok(*command, "--steps 0 --weights last --save_dir", tmp_path / "last")
    assert file_sha(tmp_path / "last" / "model.safetensors") == file_sha(unlearned / "last.safetensors")
    assert read_json(tmp_path / "last" / "args.json")["options"]["relearned_weights"] == "last"
    assert script(*command[:-1], tmp_path / "again", "--save_dir", tmp_path / "no") != 0
    assert "was relearned already" in capsys.readouterr().err and not (tmp_path / "no").exists()
    ok("sample", "--num_per_class 3 --steps 3 --model_path", tmp_path / "again", "--save_dir", tmp_path / "s")
    ok("evaluate", "--features classifier --num_reference 50 --classifier", home / "classifier", "--sample_path", tmp_path / "s")
    measured = read_json(tmp_path / "s" / "metrics.json")
    assert measured["method"] == "ga (random mask)"
    assert measured["facts"]["relearned"] == "10 forgotten images, 30 steps, lr 0.001" and "RTE" not in measured
