"""Races, moved and changed data, silent damage. Classification's tests cover the files that all folders share."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sampling
import trainer
from helpers import FORGOTTEN, TINY, ok, script, words


def one_error(capsys):
    """The only line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def test_a_slow_process_draws_what_it_was_given(tmp_path, monkeypatch):
    """Mutation: list the missing images after another process may have begun to draw."""
    keys = [(label, index) for label in range(2) for index in range(4)]

    def draw(model, some, accelerator, **options):
        return torch.full((len(some), 8, 8, 1), 7, dtype=torch.uint8)

    def the_other_draws():
        for key in keys[1::2]:
            (tmp_path / sampling.file_name(*key)).write_text("drawn by the other process")

    monkeypatch.setattr(sampling, "draw", draw)
    here = SimpleNamespace(process_index=0, num_processes=2, wait_for_everyone=the_other_draws)
    sampling.draw_files(None, keys, tmp_path, here, batch_size=3, steps=1)
    assert len(list(tmp_path.glob("*.png"))) == len(keys)


@pytest.mark.slow
def test_data_is_known_by_its_content_and_a_mask_by_its_original(home, tmp_path, capsys):
    """Mutation: leave data_sha out of the run; compare a mask's shapes only."""
    with np.load(home / "data" / "digits.npz") as whole:
        arrays = {name: whole[name] for name in ("x_train", "y_train", "x_test", "y_test", "classes")}
    arrays["x_train"] = 255 - arrays["x_train"]
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "digits.npz", **arrays)
    start = ("--forget_class", FORGOTTEN, "--steps 1 --batch_size 8 --precision fp32 --save_dir", tmp_path / "run")
    flags = ("--method rl --model_path", home / "original", "--data_dir", tmp_path / "data")
    assert script("unlearn", *flags, *start) == 1 and "other images or labels" in one_error(capsys)
    ok("train", TINY, "--steps 2 --seed 5 --data_dir", home / "data", "--save_dir", tmp_path / "other")
    flags = ("--model_path", tmp_path / "other", "--mask_path", home / "mask")
    assert script("unlearn", *flags, *start) == 1 and "was made from another model" in one_error(capsys)


@pytest.mark.slow
def test_a_tree_may_move(home, tmp_path):
    """Mutation: read data_dir as it was recorded."""
    shutil.copytree(home / "data", tmp_path / "old" / "data")
    ok("train", TINY, "--steps 2 --data_dir", tmp_path / "old" / "data", "--save_dir", tmp_path / "old" / "original")
    (tmp_path / "old").rename(tmp_path / "new")
    ok("generate_mask", "--forget_class", FORGOTTEN, "--model_path", tmp_path / "new" / "original", "--save_dir", tmp_path / "mask")
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("name", ["train", "train_classifier"])
def test_weights_that_are_not_finite_are_never_written(name, home, tmp_path, monkeypatch, capsys):
    """Mutation: check the loss only."""
    update = trainer.Trainer._update

    def ruin(self, terms):
        update(self, terms)
        if self.number + 1 == self.total:
            next(iter(self.salient.tensors.values())).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(trainer.Trainer, "_update", ruin)
    flags = "--dataset digits --arch tiny --steps 2 --ema 0" if name == "train" else "--dataset digits --arch cnn --epochs 1 --limit 32"
    assert script(name, *words(flags, "--batch_size 16 --precision fp32 --data_dir", home / "data", "--save_dir", tmp_path / "run")) == 1
    assert "model.safetensors was not written" in one_error(capsys) and not (tmp_path / "run" / "done.json").exists()
