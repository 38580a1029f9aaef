"""Data, forget sets and batches. Each names the mutation that would break it."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import data
import imagesets
from cli import RunError


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return imagesets.load_images("digits", tmp_path_factory.mktemp("digits"))


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


def test_digits_are_decoded_once_and_cached(tmp_path):
    """Mutation: do not write the cache; ask any file for a stamp."""
    first = imagesets.load_images("digits", tmp_path)
    assert (
        first.x_train.shape == (1437, 8, 8, 1)
        and first.x_test.shape == (360, 8, 8, 1)
        and first.x_train.dtype == torch.uint8
        and first.x_train.max() == 255
    )
    with np.load(tmp_path / "digits.npz") as cache:
        assert np.array_equal(cache["x_train"], first.x_train.numpy())
        arrays = dict(cache)
    arrays |= {"y_train": 9 - arrays["y_train"], "stamp": "of another program"}
    np.savez(tmp_path / "digits.npz", **arrays)
    assert torch.equal(imagesets.load_images("digits", tmp_path).y_train, 9 - first.y_train)  # a file that is there is used as it is


def test_validation_holds_out_a_tenth_of_each_class(digits):
    """Mutation: split without regard to class."""
    train, val = data.train_and_validation(digits.y_train, 1, 0.1)
    assert len(train) + len(val) == 1437 and not set(train.tolist()) & set(val.tolist())
    for label in range(10):
        assert int((digits.y_train[val] == label).sum()) == round(0.1 * int((digits.y_train == label).sum()))
    assert not torch.equal(val, data.train_and_validation(digits.y_train, 2, 0.1)[1])


def test_forget_sets(digits, tmp_path):
    """Mutation: draw from all images rather than the training split."""
    train, _ = data.train_and_validation(digits.y_train, 1, 0.1)
    rows = data.forget_indices(train, digits.y_train, digits.classes, num_forget=0.1, split_seed=1)
    assert len(rows) == round(0.1 * len(train)) and set(rows.tolist()) <= set(train.tolist())
    assert torch.equal(rows, data.forget_indices(train, digits.y_train, digits.classes, num_forget=0.1, split_seed=1))
    assert not torch.equal(rows, data.forget_indices(train, digits.y_train, digits.classes, num_forget=0.1, split_seed=2))
    whole = data.forget_indices(train, digits.y_train, digits.classes, forget_class=["3"])
    assert len(whole) == int((digits.y_train[train] == 3).sum()) and (digits.y_train[whole] == 3).all()
    some = data.forget_indices(train, digits.y_train, digits.classes, forget_class=["3", "5"], num_forget=0.5)
    assert digits.y_train[some].unique().tolist() == [3, 5]
    listed = train[[5, 1, 9]]
    (tmp_path / "list.txt").write_text("\n".join(map(str, listed.tolist())))
    np.save(tmp_path / "list.npy", listed.numpy())
    for name in ("list.txt", "list.npy"):
        assert torch.equal(data.forget_indices(train, digits.y_train, digits.classes, indices_file=tmp_path / name), listed.sort().values)
    assert data.forget_sha(listed) == data.forget_sha(listed.flip(0)) != data.forget_sha(listed[:2])


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(forget_class=["10"]), "no class 10"),
        (dict(forget_class=["-1"]), "no class -1"),
        (dict(forget_class=["cat"]), "no class cat"),
        (dict(num_forget=5000), "more than"),
        (dict(num_forget=1294), "at least one"),
        (dict(num_forget=1e-6), "at least one"),
        (dict(forget_class=list("0123456789")), "at least one"),
    ],
)
def test_impossible_forget_sets_are_refused(digits, flags, message):
    """Mutation: clamp in place of raising."""
    train, _ = data.train_and_validation(digits.y_train, 1, 0.1)
    assert len(train) == 1294
    with pytest.raises(RunError, match=message):
        data.forget_indices(train, digits.y_train, digits.classes, **flags)


@pytest.mark.parametrize(
    "text, message",
    [("1 2 x", "is not a list of indices"), ("", "at least one index"), ("4 4", "twice"), ("99999", "not among"), ("-1", "not among")],
)
def test_bad_index_files_are_refused(digits, tmp_path, text, message):
    """Mutation: skip indices that are out of range."""
    (tmp_path / "list.txt").write_text(text)
    train, _ = data.train_and_validation(digits.y_train, 1, 0)
    with pytest.raises(RunError, match=message):
        data.forget_indices(train, digits.y_train, digits.classes, indices_file=tmp_path / "list.txt")


def split_of(digits, val_fraction=0.1, part=0):
    """The training part (0) or the validation part (1) of the digits, as a Split."""
    return digits.train(data.train_and_validation(digits.y_train, 1, val_fraction)[part], "train")


def batches(split, world, rank, batch_size=50, source=imagesets.DATASETS["cifar10"]):
    return list(data.epoch_batches(split, batch_size, data.make_generator("test"), source, rank, world))


@pytest.mark.parametrize("world", [2, 3])
def test_batches_do_not_depend_on_the_number_of_processes(digits, world):
    """Mutation: seed `noise` with the rank."""
    split = split_of(digits, 0.9)
    for whole, *parts in zip(batches(split, 1, 0), *(batches(split, world, rank) for rank in range(world)), strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.draw(1000), torch.cat([part.draw(1000) for part in parts]))
        values = whole.images.mean((1, 2, 3))
        shares = torch.stack([part.mean(part.images.mean((1, 2, 3))) for part in parts])
        torch.testing.assert_close(shares.mean(), values.mean())


def test_a_batch_smaller_than_the_number_of_processes_counts_each_sample_once(digits):
    """Mutation: weight 1 for a borrowed sample."""
    split = digits.train(torch.tensor([4]), "train")
    shares = [batch.mean(torch.ones(len(batch.labels))) for rank in range(3) for batch in batches(split, 3, rank)]
    assert float(torch.stack(shares).mean()) == pytest.approx(1)


def test_an_epoch_visits_every_sample_once_in_even_batches(digits):
    """Mutation: drop the last batch."""
    split = split_of(digits)
    seen = batches(split, 1, 0)
    assert sorted(torch.cat([batch.positions for batch in seen]).tolist()) == list(range(len(split)))
    assert {len(batch.labels) for batch in seen} <= {49, 50} and len(seen) == 26


def test_augmentation_is_a_crop_and_a_flip():
    """Mutation: flip after cropping with the shift of the other side."""
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3, 1)
    source = imagesets.Source(None, 3, 1, True)
    plain = data.shift_and_flip(x, torch.tensor([[1], [1]]), torch.tensor([False]), source)
    assert torch.equal(plain, x)
    assert torch.equal(data.shift_and_flip(x, torch.tensor([[1], [1]]), torch.tensor([True]), source), x.flip(2))
    down = data.shift_and_flip(x, torch.tensor([[0], [2]]), None, source)[0, :, :, 0]
    assert down.tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_flags_replace_the_data_sets_own_augmentation():
    """Mutation: `training["crop"] or source.crop`."""

    def found(dataset, crop=None, no_flip=False):
        source = imagesets.augmentation({"dataset": dataset, "crop": crop, "no_flip": no_flip})
        return source.crop, source.flip

    assert [found("cifar10"), found("svhn"), found("digits")] == [(4, True), (0, False), (1, False)]
    assert [found("cifar10", 0), found("cifar10", 2, True), found("svhn", 4)] == [(0, True), (2, False), (4, False)]


def test_random_labels_are_never_the_true_one(digits):
    """Mutation: draw(num_classes) in other_labels."""
    from methods.salun import other_labels

    split = split_of(digits)
    counts = torch.zeros(10, 10)
    for batch in batches(split, 1, 0):
        labels = other_labels(batch, 10)
        assert (labels != batch.labels).all() and labels.min() >= 0 and labels.max() <= 9
        counts.index_put_((batch.labels, labels), torch.ones(len(labels)), accumulate=True)
    off_diagonal = counts[~torch.eye(10, dtype=torch.bool)]
    assert off_diagonal.min() > 0  # every wrong label is drawn


def make_folder(root, counts, size=(20, 14)):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((*size, 3), 10 * i, np.uint8)).save(root / name / f"{i}.png")


def test_a_folder_of_images_and_its_changes(tmp_path):
    """Mutation: a cache without the folder's stamp."""
    make_folder(tmp_path / "train", {"cat": 6, "dog": 4})
    make_folder(tmp_path / "val", {"cat": 2, "dog": 1})
    images = imagesets.load_images("folder", tmp_path, 16)
    assert images.x_train.shape == (10, 16, 16, 3) and len(images.x_test) == 3 and images.classes == ["cat", "dog"]
    assert data.class_numbers(["dog", "0"], images.classes) == [1, 0]
    (tmp_path / "train" / "dog" / "0.png").unlink()
    assert len(imagesets.load_images("folder", tmp_path, 16).x_train) == 9
    make_folder(tmp_path / "flat", {"a": 15, "b": 15})
    flat = imagesets.load_images("folder", tmp_path / "flat", 8)
    assert len(flat.x_train) == 28 and flat.y_test.tolist() == [0, 1]  # a tenth of each class


@pytest.mark.parametrize("inner", ["", "train/"])
def test_own_images_are_forgotten_by_their_paths(inner, tmp_path):
    """Breaks if a path's place in the folder is taken for its row among the images that are not held out, or paths split at spaces."""
    make_folder(tmp_path / "data" / inner, {"black cat": 15, "dog": 15})
    if inner:
        make_folder(tmp_path / "data" / "test", {"black cat": 1, "dog": 1})
    for _ in range(2):  # the second time from the cache
        images = imagesets.load_images("folder", tmp_path / "data", 8)
        held_out = {f"{inner}black cat/{i}.png" for i in range(15)} - set(images.files)
        assert len(held_out) == (not inner)
        names = [name for name in images.files if "cat" in name][-2:] + [f"./{inner}dog/14.png"] * (f"{inner}dog/14.png" in images.files)
        (tmp_path / "list.txt").write_text("\n".join(names))
        rows = data.read_indices(tmp_path / "list.txt", images.files)
        values = [10 * int(name.split("/")[-1][:-4]) for name in names]
        assert len(rows) > 1 and images.x_train[rows][:, 0, 0, 0].tolist() == values
    for name in [*held_out, "dog/99.png"]:
        (tmp_path / "list.txt").write_text(name)
        with pytest.raises(RunError, match=f"lists {name}, which is no training image"):
            data.read_indices(tmp_path / "list.txt", images.files)


def test_odd_folders_are_read_as_they_are_meant(tmp_path, capsys):
    """Breaks if only `train` and `test` are splits, a class called train is one, train and test are two classes, a test folder is left out
    unsaid, links are not followed, or hidden files count."""
    make_folder(tmp_path / "a" / "Training", {"cat": 3, "dog": 2})
    make_folder(tmp_path / "a" / "Validation", {"cat": 1, "dog": 1})
    found = imagesets.load_images("folder", tmp_path / "a", 8)
    assert found.classes == ["cat", "dog"] and len(found.x_train) == 5 and len(found.x_test) == 2
    make_folder(tmp_path / "b", {"plane": 4, "train": 4, "__MACOSX": 1, ".cache": 1})
    (tmp_path / "b" / "train" / "._0.png").write_bytes(b"no picture")
    (tmp_path / "b" / "train" / "notes.txt").write_text("no picture")
    data.say.cache_clear()
    found = imagesets.load_images("folder", tmp_path / "b", 8)
    assert found.classes == ["plane", "train"] and len(found.x_train) == 6 and found.y_test.tolist() == [0, 1]
    assert ": 1 not read" in (said := capsys.readouterr().err) and "notes.txt" in said
    (tmp_path / "c").mkdir()
    for name in ("plane", "train"):
        (tmp_path / "c" / name).symlink_to(tmp_path / "b" / name)
    assert len(imagesets.load_images("folder", tmp_path / "c", 8).x_train) == 6
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "plane" / "new.png")
    assert len(imagesets.load_images("folder", tmp_path / "c", 8).x_train) == 7
    for name, parts, read in (  # the images of classes that are read to train and to test on
        ("one class to test on", {"train/cat": 3, "train/dog": 2, "test/cat": 1}, (5, 1)),
        ("none to test on", {"train/cat": 3, "train/dog": 2, "test": 1}, (3, 2)),
        ("a test set of no classes before one", {"train/cat": 3, "train/dog": 2, "test": 1, "val/dog": 1}, (5, 1)),
    ):
        make_folder(tmp_path / name, parts)
        found = imagesets.load_images("folder", tmp_path / name, 8)
        assert (len(found.x_train), len(found.x_test)) == read and found.classes == ["cat", "dog"]
        assert ("not read beside train" in (said := capsys.readouterr().err)) == ("test" in parts) and ("val: test" in said) == (
            "val/dog" in parts
        )
    make_folder(tmp_path / "beside", {"train/cat": 2, "train/dog": 2, "horse": 2, "dev/cat": 1})
    imagesets.load_images("folder", tmp_path / "beside", 8)
    assert "beside: not read beside train: dev, horse" in capsys.readouterr().err
    make_folder(tmp_path / "parts", {"training_set/cat": 2, "test_set/cat": 2})
    with pytest.raises(RunError, match="holds test_set, training_set, which are no classes"):
        imagesets.load_images("folder", tmp_path / "parts", 8)
    for name, parts in (("one", {"train/cat": 2, "test/cat": 1}), ("more", {"train/cat": 2, "test/cat": 1, "test/dog": 1})):
        make_folder(tmp_path / f"too few {name}", parts)
        with pytest.raises(RunError, match="train must hold at least two class folders of images; it holds 1"):
            imagesets.load_images("folder", tmp_path / f"too few {name}", 8)
    make_folder(tmp_path / "d" / "valid", {"cat": 1, "dog": 1})
    with pytest.raises(RunError, match="no folder train beside it"):
        imagesets.load_images("folder", tmp_path / "d", 8)


def test_pictures_are_upright_in_8_bits_and_all_broken_ones_are_named(tmp_path):
    """Breaks if EXIF's orientation is ignored, 16 bits are cut to 255, 32 bits become black, or decoding stops at the first broken picture,
    or training set."""
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))  # white on top
    turned, exif = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(tmp_path / "deep.png")
    images, _ = imagesets.decode([(str(tmp_path / name), 0) for name in ("turned.png", "deep.png")], 16)
    assert np.array_equal(images[0], np.asarray(picture)) and np.array_equal(images[1][..., 0].ravel(), np.arange(256))
    for name, numbers in (("float.tif", np.float32([[0, 1]])), ("wide.tif", np.int32([[0, 70000]])), ("narrow.tif", np.int32([[0, 255]]))):
        Image.fromarray(numbers).save(tmp_path / name)
        with pytest.raises(RunError, match=f"{name} cannot be read.*it has 32 bits"):
            imagesets.decode([(str(tmp_path / name), 0)], 16)
    (tmp_path / "dark.pgm").write_bytes(b"P5 16 16 65535 " + b"\0\x64" * 256)
    assert imagesets.decode([(str(tmp_path / "dark.pgm"), 0)], 16)[0].max() == 0  # 100 of 65535
    Image.fromarray(np.int32([[0, 65535]])).resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "whole.tif")
    assert imagesets.decode([(str(tmp_path / "whole.tif"), 0)], 16)[0].max() == 255
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(RunError, match="cannot identify"):  # Mutation: let Pillow hand it to Ghostscript
        imagesets.decode([(str(tmp_path / "script.png"), 0)], 16)
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(RunError, match=r"one.png cannot be read.*; .*two.png cannot be read"):
        imagesets.decode([(str(tmp_path / name), 0) for name in ("one.png", "turned.png", "two.png")], 16)
    make_folder(tmp_path / "own", {f"{part}/{name}": 2 for part in ("train", "test") for name in ("cat", "dog")})
    for part in ("train", "test"):
        (tmp_path / "own" / part / "cat" / "torn.png").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"train/cat/torn.png cannot be read.*; .*test/cat/torn.png cannot be read"):
        imagesets.load_images("folder", tmp_path / "own", 8)


def test_threads_decode_each_picture_into_its_place(tmp_path):
    """Breaks if decode takes pictures in the order in which its threads are done with them: the first is the largest."""
    rows = []
    for number, edge in enumerate((900, 40, 300, 20, 25, 600, 30)):
        rows.append((str(tmp_path / f"{number}.png"), number))
        Image.fromarray(np.random.default_rng(number).integers(256, size=(edge, edge + 7, 3), dtype=np.uint8)).save(rows[-1][0])
    images, labels = imagesets.decode(rows, 16)
    assert labels.tolist() == list(range(7))
    for image, row in zip(images, rows, strict=True):
        assert np.array_equal(image, imagesets.decode([row], 16)[0][0])


def test_nothing_is_written_among_own_images(tmp_path, monkeypatch):
    """Breaks if the .npz of a folder lies in it, if two folders share one, or if --cache_dir hides a <dataset>.npz in data_dir."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        make_folder(tmp_path / name, {"cat": 3, "dog": 3})
    before = sorted(tmp_path.rglob("*"))
    first = imagesets.load_images("folder", tmp_path / "a", 8)
    imagesets.load_images("folder", tmp_path / "b", 8)
    kept = sorted((tmp_path / "cache" / "salun").glob("*/folder_8.npz"))
    assert len(kept) == 2 and sorted(set(tmp_path.rglob("*")) - set((tmp_path / "cache").rglob("*")) - {tmp_path / "cache"}) == before
    monkeypatch.setattr(imagesets, "decode", None)  # from here on all comes from a cache
    assert imagesets.load_images("folder", tmp_path / "a", 8).sha == first.sha
    with pytest.raises(TypeError):
        imagesets.load_images("folder", tmp_path / "a", 8, cache_dir=tmp_path / "other")
    imagesets.load_images("digits", tmp_path / "data", cache_dir=tmp_path / "other")
    assert (tmp_path / "other" / "digits.npz").is_file() and not list((tmp_path / "data").iterdir())
    (tmp_path / "data" / "digits.npz").write_bytes((tmp_path / "other" / "digits.npz").read_bytes()[:100])
    with pytest.raises(RunError, match="data/digits.npz is an incomplete or damaged"):
        imagesets.load_images("digits", tmp_path / "data", cache_dir=tmp_path / "other")
    with pytest.raises(RunError, match="is a file: name a folder"):
        imagesets.load_images("folder", tmp_path / "a", 8, cache_dir=kept[0])


def test_bad_folders_and_caches_are_refused(tmp_path):
    """Mutation: skip unreadable images; follow a link back; call a user's own file damaged because of its class names."""
    make_folder(tmp_path / "one", {"cat": 2})
    make_folder(tmp_path / "bad", {"cat": 2, "dog": 2})
    (tmp_path / "bad" / "dog" / "torn.jpg").write_bytes((tmp_path / "bad" / "dog" / "1.png").read_bytes()[:40])
    make_folder(tmp_path / "empty", {"cat": 2, "dog": 0})
    make_folder(tmp_path / "single", {"cat": 1, "dog": 1})
    make_folder(tmp_path / "loop", {"cat/inner": 2, "dog": 2})
    (tmp_path / "loop" / "cat" / "inner" / "link").symlink_to("..")
    for name, message in (
        ("one", "two class folders"),
        ("bad", "torn.jpg cannot be read"),
        ("empty", "no valid file for the classes dog"),
        ("absent", "is not a folder"),
        ("single", "no image to test on: each class in .*single has only one"),
        ("loop", "cat/inner/link is a link to a folder that holds it"),
    ):
        with pytest.raises((RunError, OSError), match=message):
            imagesets.load_images("folder", tmp_path / name, 8)
    imagesets.load_images("digits", tmp_path)
    whole = (tmp_path / "digits.npz").read_bytes()
    (tmp_path / "digits.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="incomplete or damaged .npz"):
        imagesets.load_images("digits", tmp_path)
    np.savez(
        tmp_path / "digits.npz",
        x_train=np.full((4, 8, 8, 1), np.nan),
        y_train=np.zeros(4, int),
        x_test=np.zeros((1, 8, 8, 1), np.uint8),
        y_test=np.zeros(1, int),
    )
    with pytest.raises(RunError, match="must be uint8"):
        imagesets.load_images("digits", tmp_path)
    x, y = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
    for labels, names, message in (
        (y, np.array(["a", "b"], object), "holds Python objects, .*dtype=str"),
        (y, np.array("a"), r"must be text of shape \(K,\), not <U1 \(\)"),
        (y, np.array([b"a", b"b"]), "must be text of shape"),
        (0 * y, np.array(["a"]), "holds one class"),
    ):
        np.savez(tmp_path / "digits.npz", x_train=x, y_train=labels, x_test=x, y_test=labels, classes=names)
        with pytest.raises(RunError, match=message):
            imagesets.load_images("digits", tmp_path)


def test_a_data_set_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch):
    """Mutation: let torchvision's own error through."""
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(RunError, match="CIFAR100 is neither in"):
        imagesets.load_images("cifar100", tmp_path)
    with pytest.raises(RunError, match="tiny-imagenet-200.zip"):
        imagesets.load_images("tiny_imagenet", tmp_path)


def test_torchvision_data_sets_come_out_in_one_shape(tmp_path, monkeypatch):
    """Mutation: forget SVHN's transpose."""
    import torchvision

    class Fake:
        def __init__(self, root, download, train=True, split="train"):
            count = 6 if train and split == "train" else 4
            self.data = {"SVHN": np.zeros((count, 3, 32, 32), np.uint8), "CIFAR10": np.zeros((count, 32, 32, 3), np.uint8)}.get(
                type(self).__name__, torch.zeros(count, 28, 28, dtype=torch.uint8)
            )
            self.targets = self.labels = list(range(count))

    for name, dataset, shape in (
        ("SVHN", "svhn", (32, 32, 3)),
        ("CIFAR10", "cifar10", (32, 32, 3)),
        ("FashionMNIST", "fashion_mnist", (28, 28, 1)),
    ):
        monkeypatch.setattr(torchvision.datasets, name, type(name, (Fake,), {}))
        images = imagesets.load_images(dataset, tmp_path)
        assert images.x_train.shape == (6, *shape) and images.x_test.shape == (4, *shape) and len(images.classes) == 10
        assert imagesets.load_images(dataset, tmp_path).y_test.tolist() == [0, 1, 2, 3]  # from the cache


def test_tiny_imagenet_from_its_archive(tmp_path):
    """Mutation: sort the annotations, take every file for a picture, or trust the annotations' classes."""
    root = tmp_path / "tiny-imagenet-200"
    for wnid, value in (("n02", 50), ("n01", 200)):
        (root / "train" / wnid / "images").mkdir(parents=True)
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(root / "train" / wnid / "images" / "0.png")
    (root / "val" / "images").mkdir(parents=True)
    for name, value in (("b.png", 50), ("a.png", 200)):
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(root / "val" / "images" / name)
    (root / "val" / "val_annotations.txt").write_text("b.png\tn02\t0\t0\t1\t1\na.png\tn01\t0\t0\t1\t1\n")
    images = imagesets.load_images("tiny_imagenet", tmp_path)
    assert images.classes == ["n01", "n02"] and images.y_train.tolist() == [0, 1] and images.y_test.tolist() == [1, 0]
    assert images.x_train[0].unique().tolist() == [200] and images.x_test[0].unique().tolist() == [50]
    (tmp_path / "tiny_imagenet.npz").unlink()
    (root / "train" / "n01" / "images" / ".DS_Store").write_bytes(b"no picture")
    assert len(imagesets.load_images("tiny_imagenet", tmp_path).x_train) == 2
    (tmp_path / "tiny_imagenet.npz").unlink()
    (root / "val" / "val_annotations.txt").write_text("b.png\tn03\t0\t0\t1\t1\n")
    with pytest.raises(RunError, match="val_annotations.txt gives b.png a class that .* no folder of"):
        imagesets.load_images("tiny_imagenet", tmp_path)


def test_class_names_win_over_numbers(capsys):
    """Breaks if a word of digits is read as a number before the names are looked at, or if the choice is not said."""
    folders = ["1", "10", "2"]  # in the order of their names, as folders are read
    assert data.class_numbers(["1", "10", "2", "0"], folders) == [0, 1, 2, 0]
    said = capsys.readouterr().err.splitlines()
    assert said == ["class 1: taken as the class named 1, not as number 1, which is named 10"]
    assert data.class_numbers(["02", "1"], ["zero", "two", "three"]) == [2, 1] and data.class_numbers(["3"], list("0123456789")) == [3]
    assert capsys.readouterr().err == ""


def test_one_spelling_of_a_class_has_one_answer():
    """Breaks if case, zeros before a number, signs or foreign digits are read otherwise than in the other two folders."""
    named = ["cat", "Dog", "dog", "owl"]
    assert data.class_numbers(["CAT", "Dog", "dog", "03", "0"], named) == [0, 1, 2, 3, 0]
    assert data.class_numbers(["001", "1"], ["a", "b", "01"]) == [2, 2]  # a number of zeros before it is that class's name
    assert data.class_numbers(["Caf\u00e9", "cafe\u0301"], ["tea", "cafe\u0301"]) == [1, 1]  # as macOS spells it
    with pytest.raises(RunError, match="2 classes are called crane: give the number of one, 0 or 2"):
        data.class_numbers(["crane"], ["crane", "dog", "crane"])
    refused = {"DOG": "could be Dog or dog", "4": "known are 0 to 3", "bird": "there is no class bird"}
    for word in ("-0", "-1", "--5", "+1", "\u00b2", "\u2460", "\u0663", "1.0", "", " 1", "9" * 5000):
        refused[word] = "there is no class"
    for word, message in refused.items():
        with pytest.raises(RunError, match=message):
            data.class_numbers([word], named)
