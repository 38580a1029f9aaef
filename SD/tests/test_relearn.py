"""Relearning: a few images of what was forgotten, some steps, and how much of it comes back."""

import shutil

import pytest

import concepts
from files import read_json, write_json
from helpers import FORGOTTEN, TINY, ok, script
from test_methods import loss


@pytest.mark.slow
def test_a_few_images_bring_back_what_was_forgotten(unlearn, load, tmp_path):
    """Mutation: train on the retained images, or from the original's weights; take all forgotten images."""
    forgot, folder = unlearn("ga", "--steps 15 --lr 5e-4"), tmp_path / "relearned"
    ok("relearn", "--model_path", forgot, "--num_images 10 --steps 40 --lr 1e-3 --batch_size 16 --precision fp32 --save_dir", folder)
    before, after = load(forgot), load(folder)
    assert loss(after, after.forget) < 0.7 * loss(before, before.forget)
    recorded, parent = read_json(folder / "args.json"), read_json(forgot / "args.json")
    for name in ("method", "forgotten", "forget_sha", "parent_sha", "classes"):
        assert recorded[name] == parent[name]
    options = {"relearned_images": 10, "steps": 40, "lr": 1e-3, "unlearned_steps": 15, "unlearned_lr": 5e-4}
    assert recorded["options"].items() >= options.items()
    other, same = tmp_path / "other", tmp_path / "same"
    for seed, where in (("2", other), ("1", same)):
        ok("relearn", "--model_path", forgot, "--num_images 10 --steps 1 --precision fp32 --seed", seed, "--save_dir", where)
    weights = [(where / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() for where in (other, same)]
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_relearned_runs_stand_in_a_table_of_their_own_beside_retrain(home, unlearn, tmp_path, capsys):
    """Mutation: leave `relearned`, the mask or the settings of unlearning out of the facts; take the retrained model for the original that
    runs must share; report the time, the images and the change of relearning as those of unlearning."""
    retrain = ("--steps 3 --vae_steps 3 --retain_only --forget_class", FORGOTTEN, "--data_dir", home / "data")
    ok("train", TINY, *retrain, "--save_dir", tmp_path / "retrain")
    mask = ("--mask_kind random --seed 1 --model_path", home / "original", "--forget_class", FORGOTTEN)
    ok("generate_mask", *mask, "--save_dir", tmp_path / "mask")
    forgot = unlearn("ga", "--steps 3 --lr 5e-4", "--mask_path", tmp_path / "mask")
    for name, model in (("ga", forgot), ("retrain", tmp_path / "retrain")):
        ok("relearn", "--model_path", model, "--num_images 4 --steps 2 --precision fp32 --save_dir", tmp_path / "relearned" / name)
    models = [forgot, tmp_path / "relearned" / "ga", tmp_path / "relearned" / "retrain"]
    samples = [tmp_path / "runs" / name for name in ("plain/ga", "relearned/ga", "relearned/retrain")]
    ok("generate_images", "--model_path", *models, "--num_samples 2 --steps 2 --batch_size 30 --save_dir", *samples)
    ok("evaluate", "--features none --classifier", home / "classifier", "--sample_path", *samples)
    costs, found = {"RTE", "changed", "images_seen", "peak_memory_mb"}, [read_json(path / "metrics.json").keys() for path in samples]
    assert costs <= found[0] and not costs & found[1] and not costs & found[2]
    ok("table", tmp_path / "runs" / "relearned")
    said = (tmp_path / "runs" / "relearned" / "table.md").read_text()
    assert "| retrain | 1 |" in said and "| ga (random mask) | 1 |" in said and "relearned: 4 images of what was forgotten, 2 steps" in said
    other = unlearn("ga", "--steps 4 --lr 5e-4", "--mask_path", tmp_path / "mask")
    again, drawn = tmp_path / "relearned" / "again", tmp_path / "runs" / "relearned" / "again"
    ok("relearn", "--model_path", other, "--num_images 4 --steps 2 --precision fp32 --save_dir", again)
    ok("generate_images", "--model_path", again, "--num_samples 2 --steps 2 --batch_size 30 --save_dir", drawn)
    ok("evaluate", "--features none --classifier", home / "classifier", "--sample_path", drawn)
    assert script("table", tmp_path / "runs" / "relearned") != 0
    assert "runs of ga (random mask) differ in their flags" in capsys.readouterr().err
    shutil.rmtree(drawn)
    assert script("table", tmp_path / "runs") != 0
    assert "runs of ga (random mask) differ in their flags" in capsys.readouterr().err


def test_flags_of_what_is_forgotten_are_settings():
    """Mutation: leave the images that CA generates, or the words, out of the settings."""
    default = {"target_prompt": ["a dog"], "retain_prompts": None, "num_images": 100, "generation_steps": 50}
    assert concepts.words_given(default) == {"target_prompt": "'a dog'"} and concepts.words_given({"num_images": 3}) == {"num_images": "3"}


@pytest.mark.slow
def test_what_cannot_be_relearned_is_refused(home, unlearn, tmp_path, capsys):
    """Mutation: train on as many as there are; take an original; take the VAE of whatever lies where the original lay, or other images."""
    forgot, to, other = unlearn("ga", "--steps 1"), tmp_path / "no", tmp_path / "other"
    shutil.copytree(forgot, other)
    recorded = (other / "args.json").read_text()
    (other / "args.json").write_text(recorded.replace(read_json(forgot / "args.json")["parent_sha"], "another"))
    shutil.copytree(forgot, of_others := tmp_path / "of_others")
    write_json(of_others / "args.json", read_json(forgot / "args.json") | {"forget_sha": "another"})
    start = ("--save_dir", to, "--steps 1 --precision fp32 --model_path")
    for model, more, message in (
        (forgot, "--num_images 1000", "is more than the"),
        (home / "original", "", "has forgotten nothing"),
        (other, "", f"is not the original that {other} was made from: put that one there"),
        (of_others, "", f"no longer those that {of_others} forgot"),
        (forgot, "--weights_dtype bf16", "was made from: pass --weights_dtype fp32"),
        (home / "mask", "", "is a run of kind mask"),
        (tmp_path / "nothing", "", "does not exist"),
        (forgot, "--num_images 0", "must be at least 1"),
    ):
        assert script("relearn", *start, model, more) != 0
        assert message in capsys.readouterr().err and not to.exists()
    ok("relearn", *start, forgot, "--num_images 2")
    assert script("relearn", "--steps 1 --save_dir", tmp_path / "again", "--model_path", to) != 0
    assert "was relearned already" in capsys.readouterr().err
    shutil.rmtree(to)
