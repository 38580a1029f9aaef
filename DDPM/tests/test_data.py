"""Batches, classes and passes. Each test names the mutation that would break it."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import data
import imagesets
import models
import task
from cli import RunError
from files import read_json
from helpers import cpu, ok, script


def split(count=50):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 1).contiguous()
    return data.Split(images, torch.arange(count) % 10, torch.arange(count), "train")


def stream(**options):
    return data.Stream(split(), **{"batch_size": 16, "seed": 1, "timesteps": 1000} | options)


def test_two_first_runs_download_once(tmp_path, monkeypatch):
    """Mutation: no lock, or look for the file before it alone."""
    calls, load = [], imagesets.DATASETS["digits"].load

    def slow(*place):
        calls.append(place)
        time.sleep(0.3)
        return load(*place)

    monkeypatch.setitem(imagesets.DATASETS, "digits", dataclasses.replace(imagesets.DATASETS["digits"], load=slow))
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(lambda _: imagesets.load_images("digits", tmp_path), range(2))
    assert len(calls) == 1 and torch.equal(first.x_train, second.x_train)


def test_every_image_comes_equally_often():
    """Mutation: draw positions with replacement."""
    positions = torch.cat([stream().positions(step) for step in range(25)])  # 400 of them: eight passes over 50 images
    assert torch.equal(positions.bincount(), torch.full((50,), 8))
    big = stream(batch_size=120)  # a batch longer than a pass
    assert torch.cat([big.positions(0), big.positions(1)[:30]]).bincount().tolist() == [3] * 50


def test_a_step_follows_from_seed_and_number_alone():
    """Mutation: one generator for the whole stream."""
    jumped, walked = stream(), stream()
    for step in range(7):
        walked.batch(step)
    for name in ("images", "labels", "t", "noise", "uniform"):
        assert torch.equal(getattr(jumped.batch(7), name), getattr(walked.batch(7), name))
        assert not torch.equal(getattr(stream(seed=2).batch(7), name), getattr(walked.batch(7), name))
    assert not torch.equal(walked.batch(8).noise, walked.batch(7).noise)


@pytest.mark.parametrize("world", [2, 3, 20])
def test_processes_share_the_batch_of_one(world):
    """Mutation: draw noise for the slice alone."""
    whole = stream(flip=True).batch(3)
    parts = [stream(flip=True, rank=rank, world=world).batch(3) for rank in range(world)]
    real = [part for part in parts if part.weight > 0]
    for name in ("images", "labels", "t", "noise", "uniform"):
        assert torch.equal(torch.cat([getattr(part, name) for part in real]), getattr(whole, name))
    values = [part.mean(part.noise.mean((1, 2, 3))) for part in parts]
    torch.testing.assert_close(sum(values) / world, whole.mean(whole.noise.mean((1, 2, 3))))


@pytest.mark.parametrize(
    "names, message",
    [(np.array(["a", "b"], object), "holds Python objects, .*dtype=str"), (np.array("a"), r"must be text of shape \(K,\)")],
)
def test_class_names_of_ones_own_arrays_are_not_called_damage(names, message, tmp_path):
    """Mutation: tell a user to remove the file."""
    images = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=images, y_train=[0, 1], x_test=images, y_test=[0, 1], classes=names)
    with pytest.raises(RunError, match=message):
        imagesets.load_images("digits", tmp_path)


def test_a_folder_without_an_image_to_test_on_is_refused(tmp_path):
    """Mutation: leave it to check_arrays, which names a cache that no user has made."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "1.png")
    with pytest.raises(RunError, match="no image to test on: each class in .* has only one"):
        imagesets.load_images("folder", tmp_path, 8)


def test_images_of_noise_are_new_in_every_batch_and_the_same_for_any_number_of_processes():
    """Mutation: draw them once, or from a generator of the process."""
    blank = dataclasses.replace(split(), noise=True)
    first, second = (data.Stream(blank, batch_size=16, seed=1, timesteps=1000).batch(step).images for step in (0, 1))
    half = data.Stream(blank, batch_size=16, seed=1, timesteps=1000, rank=1, world=2).batch(0).images
    assert torch.equal(half, first[8:]) and not torch.equal(first, second)
    assert -1 <= first.min() < -0.9 and 0.9 < first.max() <= 1 and abs(first.mean()) < 0.1


def test_timesteps_are_antithetic():
    """Mutation: draw all timesteps independently."""
    t = stream().batch(0).t
    assert torch.equal(t[:8] + t[8:], torch.full((8,), 999))
    assert len(stream(batch_size=7).batch(0).t) == 7


def test_a_whole_pass_sees_each_image_once_at_spread_timesteps():
    """Mutation: torch.randint for the timesteps; a batch of nothing for a process that has no image."""
    assert not list(data.whole_pass(split().take(torch.arange(2)), 8, 1, 1000, rank=2, world=3))

    def together(**options):
        return [torch.cat(parts) for parts in zip(*data.whole_pass(split(), 8, 1, 1000, **options), strict=True)]

    images, labels, t, noise = together()
    assert torch.equal(images, data.to_float(split().images)) and torch.equal(labels, split().labels)
    assert torch.equal((t // 20).sort().values, torch.arange(50))  # one timestep in each fiftieth of the noise range
    two = [together(rank=rank, world=2) for rank in range(2)]
    assert torch.equal(torch.cat([two[0][3], two[1][3]]), noise) and torch.equal(torch.cat([two[0][2], two[1][2]]), t)
    assert not torch.equal(together(number=1)[3], noise)


def test_class_names_win_over_numbers(capsys):
    """Breaks if a word of digits is read as a number before the names are looked at, or if the choice is not said."""
    folders = ["1", "10", "2"]  # in the order of their names, as folders are read
    assert data.class_numbers(["1", "10", "2", "0"], folders) == [0, 1, 2, 0]
    said = capsys.readouterr().err.splitlines()
    assert said == ["class 1: taken as the class named 1, not as number 1, which is named 10"]
    assert data.class_numbers(["02", "1"], ["zero", "two", "three"]) == [2, 1] and data.class_numbers(["3"], list("0123456789")) == [3]
    assert capsys.readouterr().err == ""


def test_one_spelling_of_a_class_has_one_answer(capsys):
    """Breaks if case, zeros before a number, signs or foreign digits are read otherwise than in the other two folders."""
    named = ["cat", "Dog", "dog", "owl"]
    assert data.class_numbers(["CAT", "Dog", "dog", "03", "0"], named) == [0, 1, 2, 3, 0]
    assert data.class_numbers(["001", "1"], ["a", "b", "01"]) == [2, 2]  # a number of zeros before it is that class's name
    refused = {"DOG": "could be Dog or dog", "4": "known are 0 to 3", "bird": "there is no class bird"}
    for word in ("-0", "-1", "--5", "+1", "\u00b2", "\u2460", "\u0663", "1.0", "", " 1", "9" * 5000):
        refused[word] = "there is no class"
    for word, message in refused.items():
        with pytest.raises(RunError, match=message):
            data.class_numbers([word], named)


def test_classes_by_list_and_exclusion():
    """Mutation: treat x0 as the class 0."""
    digits, named = [str(digit) for digit in range(10)], ["cat", "dog", "xray"]
    assert data.select_classes(["x0"], digits) == list(range(1, 10))
    assert data.select_classes(["x0,3"], digits) == [1, 2, 4, 5, 6, 7, 8, 9]
    assert data.select_classes(["3", "0,1"], digits) == [3, 0, 1] and data.select_classes(["all"], digits) == list(range(10))
    assert data.select_classes(["xray"], named) == [2] and data.select_classes(["xcat"], named) == [1, 2]
    for word in ("10", "x10", "-1", "cow", "x01"):  # x01 is 0 and 1 in the paper's repository: never read it as 1
        with pytest.raises(RunError, match="there is no class"):
            data.select_classes([word], digits)


def test_targets_are_never_forgotten_classes():
    """Mutation: (c + 1) % K whatever is forgotten."""
    names = [str(digit) for digit in range(10)]
    assert data.targets(data.Classes(names, (9,)))[9] == 0
    assert data.targets(data.Classes(names, (3, 4, 9))).tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert data.targets(data.Classes(names, (3, 4)), "7").tolist() == [0, 1, 2, 7, 7, 5, 6, 7, 8, 9]
    with pytest.raises(RunError, match="is forgotten itself"):
        data.targets(data.Classes(names, (3, 4)), "4")
    with pytest.raises(RunError, match="all classes would be forgotten"):
        data.forget_classes(names, names)


def test_pixels_survive_the_way_there_and_back():
    """Mutation: truncate in to_uint8."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    assert torch.equal(data.to_uint8(data.to_float(x)), x)


def test_stl10_is_scaled_to_64_px(tmp_path, monkeypatch):
    """Mutation: forget the transpose."""
    import torchvision

    class Fake:
        classes = [str(label) for label in range(10)]

        def __init__(self, root, split, download):
            self.data = np.zeros((10, 3, 96, 96), np.uint8)
            self.data[:, 0] = 200
            self.labels = np.arange(10)

    monkeypatch.setattr(torchvision.datasets, "STL10", Fake)
    images = imagesets.load_images("stl10", tmp_path)
    assert images.x_train.shape == (10, 64, 64, 3) and images.x_train[0, 0, 0].tolist() == [200, 0, 0]


def test_data_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    """Mutation: let torchvision's own error through."""
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no network")

    for name, dataset in (("CIFAR10", "cifar10"), ("STL10", "stl10")):
        monkeypatch.setattr(torchvision.datasets, name, offline)
        with pytest.raises(RunError, match=f"{name} is neither in"):
            imagesets.load_images(dataset, tmp_path)


def test_arrays_that_no_unet_could_learn_are_refused(tmp_path):
    """Mutation: take a class without images, which could become a target; take the height for the size."""
    arrays = {"x_train": np.zeros((6, 8, 8, 1), np.uint8), "y_train": np.array([1, 2, 3] * 2)}
    np.savez(tmp_path / "digits.npz", **arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    with pytest.raises(RunError, match="has no training image of 0: name the others by --only_class"):
        task.load_images("digits", tmp_path, None, None, 1, cpu())
    assert len(task.load_images("digits", tmp_path, None, None, 1, cpu(), only_class=["1", "2", "3"]).y_train) == 6
    wide = np.zeros((6, 8, 16, 1), np.uint8)
    np.savez(tmp_path / "digits.npz", **arrays | {"x_train": wide}, x_test=wide, y_test=arrays["y_train"])
    with pytest.raises(RunError, match="have 16 x 8 px, and the U-Nets here draw square ones"):
        task.load_images("digits", tmp_path, None, None, 1, cpu())


def test_a_folder_of_ones_own_images(tmp_path, capsys):
    """Mutation: keep the images' own sizes."""
    for label, name in enumerate(("cats", "dogs")):
        for i in range(12):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20 + i, 30, 3), 100 * label, np.uint8)).save(tmp_path / "own" / name / f"{i}.png")
    flags = ("--dataset folder --arch tiny --steps 2 --batch_size 4 --precision fp32 --data_dir", tmp_path / "own")
    ok("train", *flags, "--image_size 16 --save_dir", tmp_path / "run")
    args = read_json(tmp_path / "run" / "args.json")
    assert args["classes"] == ["cats", "dogs"] and args["architecture"]["image_size"] == 16 and args["architecture"]["channels"] == 3
    ok("sample", "--model_path", tmp_path / "run", "--classes dogs --num_per_class 1 --steps 2 --save_dir", tmp_path / "s")
    assert Image.open(tmp_path / "s" / "samples" / "1_00000.png").size == (16, 16)
    capsys.readouterr()
    assert script("train", *flags, "--image_size 15 --save_dir", tmp_path / "odd") != 0
    assert "which 15 px do not allow" in capsys.readouterr().err


def test_attention_sits_where_the_paper_has_it():
    """Mutation: compare with the level's index."""

    def level(arch, size):
        model = models.build_unet(arch, 10, 3, size, seed=0)
        assert model.config.num_class_embeds == 11
        return [size >> i for i, name in enumerate(model.config.down_block_types) if name == "AttnDownBlock2D"]

    assert level("unet32", 8) == [4] and level("unet48", 28) == [7] and level("tiny", 8) == [4]


def test_limit_takes_the_same_images_again(home):
    """Mutation: the first images."""
    accelerator = cpu()
    once, again = (task.load_images("digits", home / "data", None, 100, 1, accelerator) for _ in range(2))
    assert len(once.y_train) == 100 and torch.equal(once.x_train, again.x_train)
