"""What is damaged, hostile or cut short: one sentence and no traceback, no endless wait, nothing made up and nothing left behind."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch

import models
import train
from cli import RunError
from helpers import TINY, ok, script
from run_folder import read_tensors

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def refused(capsys, name, *flags, status=1):
    """The one sentence with which a script stops."""
    capsys.readouterr()
    assert script(name, *flags) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def pipeline():
    return models.build_pipeline("test", ["an image of a three"], 16, 1)


@pytest.fixture
def folder(pipeline, tmp_path):
    models.save_pipeline(pipeline, tmp_path / "model")
    return tmp_path / "model"


# ------------------------------------------------------------------------------------------------------------- pipelines
def edit(folder, part, change):
    """Let change(tensors, a name) edit the weights of a part. Returns that name."""
    path = folder / part / f"{WEIGHTS[part]}.safetensors"
    tensors = read_tensors(path)[0]
    name = sorted(tensors)[1]
    change(tensors, name)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return name


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("fault", ["lacks", "has the unknown"])
def test_a_pipeline_with_other_weights_is_refused(fault, part, folder):
    """Breaks if from_folder no longer asks what was missing (transformers fills a text encoder at random) or left over."""
    name = edit(folder, part, lambda tensors, name: tensors.pop(name) if fault == "lacks" else tensors.update({"a.weight": torch.ones(1)}))
    with pytest.raises(RunError, match=f"its {part} {fault} tensor {name if fault == 'lacks' else 'a.weight'};"):
        models.open_pipeline(folder)


def test_names_of_earlier_versions_are_accepted(pipeline, folder):
    """Breaks if position_ids counts as unknown, or if names that transformers and diffusers translate count as missing."""

    def older(tensors, name):
        for name in list(tensors):
            tensors[f"text_model.{name.removeprefix('text_model.')}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]

    def oldest(tensors, name):
        for name in list(tensors):
            for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                if ".attentions." in name and f".{new}." in name:
                    tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)

    edit(folder, "text_encoder", older)
    edit(folder, "vae", oldest)
    opened, _ = models.open_pipeline(folder)
    assert models.sha(opened.unet, opened.vae, opened.text_encoder) == models.sha(pipeline.unet, pipeline.vae, pipeline.text_encoder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_finite_are_neither_opened_nor_saved(part, pipeline, folder, tmp_path):
    """Breaks if check or save_pipeline leaves out one of the parts."""
    opened, _ = models.open_pipeline(folder)
    name = edit(folder, part, lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.inf))
    with pytest.raises(RunError, match=f"NaN or infinite values in .*{name.removeprefix('text_model.')}"):
        models.open_pipeline(folder)
    next(getattr(opened, part).parameters()).data.view(-1)[:1] = torch.nan
    with pytest.raises(RunError, match="NaN or infinite values"):
        models.save_pipeline(opened, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


CONFIGS = {  # what fits no other part: (file, entry, value, words of the message)
    "timesteps": ("scheduler/scheduler_config.json", "num_train_timesteps", 10, "noise schedule of 1000 steps"),
    "sample_size": ("unet/config.json", "sample_size", None, "sample_size"),
    "scaling_factor": ("vae/config.json", "scaling_factor", "x", "scaling_factor"),
    "length": ("tokenizer/tokenizer_config.json", "model_max_length", 10**9, "tokenizer that fits"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_fit_no_other_part_are_refused(name, folder):
    """Breaks if check drops a rule: without one the scripts end in a traceback later."""
    file, entry, value, message = CONFIGS[name]
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {entry: value}))
    with pytest.raises(RunError, match=message):
        models.open_pipeline(folder)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(pipeline, folder, monkeypatch):
    """Breaks if save_pipeline catches OSError only: safetensors has an error of its own."""

    def full(self, partial, **options):
        partial.mkdir()
        (partial / "half").write_text("half")
        raise safetensors.SafetensorError("No space left on device")

    before = models.sha(models.open_pipeline(folder)[0].unet)
    monkeypatch.setattr(type(pipeline), "save_pretrained", full)
    with pytest.raises(RunError, match="could not write"):
        models.save_pipeline(pipeline, folder)
    assert os.listdir(folder.parent) == ["model"] and models.sha(models.open_pipeline(folder)[0].unet) == before


# --------------------------------------------------------------------------------------------------------- from scratch
def from_scratch(data_dir, folder, *more):
    flags = f"{TINY} --vae_steps 12 --steps 12 --limit 64 --batch_size 8 --data_dir"
    return ("train", flags, data_dir, "--save_dir", folder, *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    ok(*from_scratch(home / "data", home / "run"))
    return home


@pytest.mark.parametrize(
    "moment", ["before the U-Net", "before the VAE is kept", "amid saving", "before a restart amid saving", "with --overwrite"]
)
def test_training_from_scratch_goes_on_after_a_kill(moment, undisturbed, tmp_path, monkeypatch):
    """Breaks without the checkpoint behind the autoencoder's training, or if save_pipeline removes model/ before the new one is
    there, or with --overwrite if clean puts the old model back."""
    replace, run = os.replace, tmp_path / "run"

    def kill(*args):
        raise KeyboardInterrupt

    def moved(source, target):
        if moment.endswith(("amid saving", "--overwrite")) and str(source) == str(run / ".model.partial"):
            raise KeyboardInterrupt
        if moment == "before the VAE is kept" and str(target) == str(run / "model" / "vae"):
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("trainer.CHECKPOINT_SECONDS", -1)
        patch.setattr(os, "replace", moved)
        if moment == "before the U-Net":
            patch.setattr(train, "train_unet", kill)
        assert script(*from_scratch(undisturbed / "data", run)) != 0
        if moment.startswith("before a restart"):
            assert script(*from_scratch(undisturbed / "data", run, "--resume")) != 0
    assert not (run / "done.json").exists()
    ok(*from_scratch(undisturbed / "data", run, "--overwrite" if moment.endswith("with --overwrite") else "--resume"))
    whole = undisturbed / "run"
    for part, name in WEIGHTS.items():
        file = f"model/{part}/{name}.safetensors"
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    done, expected = (json.loads((path / "done.json").read_text()) for path in (run, whole))
    assert done["images_seen"] == expected["images_seen"] and done["seconds"] > 0.3 * expected["seconds"]
    steps, seen = ([line.split(",")[0] for line in (path / "log.csv").read_text().splitlines()] for path in (run, whole))
    assert set(seen) <= set(steps)  # a row more at each checkpoint
    assert sorted(os.listdir(run)) == sorted(os.listdir(whole))


def test_an_autoencoder_that_is_gone_is_said(undisturbed, tmp_path, capsys, monkeypatch):
    """Breaks if the autoencoder is trained anew and handed the U-Net's checkpoint."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("trainer.CHECKPOINT_SECONDS", -1)
        patch.setattr(models, "check_finite", lambda model, source: None if isinstance(model, torch.nn.Module) else interrupt())
        assert script(*from_scratch(undisturbed / "data", run)) != 0
    shutil.rmtree(run / "model")
    assert "vae is missing" in refused(capsys, *from_scratch(undisturbed / "data", run, "--resume"))


def interrupt():
    raise KeyboardInterrupt
