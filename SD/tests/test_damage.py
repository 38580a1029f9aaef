"""What is damaged, hostile or cut short: one sentence and no traceback, no endless wait, nothing made up and nothing left behind."""

import argparse
import copy
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import classifiers
import data
import evaluate
import generate_images
import imagesets
import latents
import models
import pipelines
import prompts
import sampling
import saving
import train
from cli import RunError
from families import StableDiffusion
from files import read_tensors, write_json, write_tensors
from helpers import TINY, cpu, ok, script

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def refused(capsys, name, *flags, status=1):
    """The one sentence with which a script stops."""
    capsys.readouterr()
    assert script(name, *flags) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def family():
    return StableDiffusion.build("test", ["an image of a three"], 16, 1)


@pytest.fixture
def folder(family, tmp_path):
    saving.save(family, tmp_path / "model")
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
    told = name.removeprefix("text_model.") if fault == "lacks" else "a.weight"  # transformers 5 knows no prefix
    with pytest.raises(RunError, match=f"its {part} {fault} tensor (text_model.)?{told};"):
        pipelines.open_pipeline(folder)


def test_names_of_earlier_versions_are_accepted(family, folder):
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
    opened, _ = pipelines.open_pipeline(folder)
    assert models.sha(opened.model, *opened.frozen) == models.sha(family.model, *family.frozen)


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_finite_are_neither_opened_nor_saved(part, folder, tmp_path):
    """Breaks if check_parts or save leaves out one of the parts."""
    opened, _ = pipelines.open_pipeline(folder)
    name = edit(folder, part, lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.inf))
    with pytest.raises(RunError, match=f"NaN or infinite values in .*{name.removeprefix('text_model.')}"):
        pipelines.open_pipeline(folder)
    next(getattr(opened.pipeline, part).parameters()).data.view(-1)[:1] = torch.nan
    with pytest.raises(RunError, match="NaN or infinite values"):
        saving.save(opened, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


CONFIGS = {  # what fits no other part: (file, entry, value, words of the message)
    "timesteps": ("scheduler/scheduler_config.json", "num_train_timesteps", 10, "noise schedule of 1000 steps"),
    "sample_size": ("unet/config.json", "sample_size", None, "sample_size"),
    "scaling_factor": ("vae/config.json", "scaling_factor", "x", "scaling_factor"),
    "length": ("tokenizer/tokenizer_config.json", "model_max_length", 10**9, "tokenizer that fits"),
    "latents": ("vae/config.json", "latents_mean", [0.1, 0.1, 0.1, 0.1], "autoencoder without shifted latents"),
    "sigmas": ("model_index.json", "scheduler", ["diffusers", "EDMEulerScheduler"], "noise schedule of betas"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_fit_no_other_part_are_refused(name, folder):
    """Breaks if check drops a rule: without one the scripts end in a traceback later."""
    file, entry, value, message = CONFIGS[name]
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {entry: value}))
    with pytest.raises(RunError, match=message):
        pipelines.open_pipeline(folder)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(family, folder, monkeypatch):
    """Breaks if write_whole catches OSError only: safetensors has an error of its own."""

    def full(tensors, partial, metadata):
        partial.write_text("half")
        raise safetensors.SafetensorError("No space left on device")

    before = models.sha(pipelines.open_pipeline(folder)[0].model)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunError, match="could not write"):
        saving.save(family, folder)
    assert os.listdir(folder.parent) == ["model"] and models.sha(pipelines.open_pipeline(folder)[0].model) == before


# --------------------------------------------------------------------------------------------------------- from scratch
def from_scratch(data_dir, folder, *more):
    flags = f"{TINY} --vae_steps 12 --steps 12 --limit 64 --batch_size 8 --data_dir"
    return ("train", flags, data_dir, "--save_dir", folder, *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    ok(*from_scratch(home / "data", home / "run"))
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["before the U-Net", "before the VAE is kept", "amid saving", "before a restart amid saving", "with --overwrite"]
)
def test_training_from_scratch_goes_on_after_a_kill(moment, undisturbed, tmp_path, monkeypatch):
    """Breaks without the checkpoint behind the autoencoder's training, or if save removes model/ before the new one is
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
            patch.setattr(train, "train_model", kill)
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


@pytest.mark.slow
def test_an_autoencoder_that_is_gone_is_said(undisturbed, tmp_path, capsys, monkeypatch):
    """Breaks if the autoencoder is trained anew and handed the U-Net's checkpoint."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("trainer.CHECKPOINT_SECONDS", -1)
        patch.setattr(saving, "check_parts", lambda model, source: None if isinstance(model, torch.nn.Module) else interrupt())
        assert script(*from_scratch(undisturbed / "data", run)) != 0
    shutil.rmtree(run / "model")
    assert "vae is missing" in refused(capsys, *from_scratch(undisturbed / "data", run, "--resume"))


def interrupt():
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------------------- flags and texts
FORGET = "--method rl --model_path none --save_dir none"
BAD_FLAGS = {  # name: (command, part of the message)
    **{
        f"caption {text}": (["unlearn", f"{FORGET} --forget_class a --caption", text], "UTF-8 with one {}")
        for text in ("a {} and {}", "{} {", "{} {name}", "{:>99999999999}{}", "{}}", "{0} {}", "{!r}{}", "three")
    },
    "caption of train.py": (["train", "--from_scratch --save_dir none --caption", "{} {"], "UTF-8 with one {}"),
    "nothing to forget": (["unlearn", FORGET, "--target_prompt b --forget_prompt", " "], "not empty"),
    "generation steps": (["unlearn", f"{FORGET} --forget_class a --generation_steps 1000"], "from 1 to 999"),
    "steps of esd": (["unlearn", "--method esd --model_path none --save_dir none --forget_class a --sample_steps 2000"], "from 1 to 999"),
    "number of images": (["unlearn", f"{FORGET} --forget_class a --num_images 1000000000000"], "from 1 to 1,000,000"),
    "number of samples": (["generate_images", "--model_path none --save_dir none --num_samples 1000000000"], "from 1 to 1,000,000"),
    "size of samples": (["generate_images", "--model_path none --save_dir none --image_size 8000000"], "from 4 to 8,192"),
    "size of a classifier": (["train_classifier", "--save_dir none --image_size 1"], "from 4 to 8,192"),
    **{
        f"{sampler} {steps}": (
            ["generate_images", f"--model_path none --save_dir none --sampler {sampler} --steps {steps}"],
            "--steps, not in",
        )
        for sampler, steps in (("pndm", 1), ("pndm", 3), ("pndm", 1000), ("ddim", 1000), ("dpm", 1000), ("own", 1001))
    },
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_the_parser_refuses_what_cannot_be(name, capsys):
    """Breaks if a flag takes any text or any number again: a traceback, an endless list or all the memory comes of it later."""
    command, message = BAD_FLAGS[name]
    assert message in refused(capsys, *command, status=2)


def test_text_that_is_not_utf8_is_refused(family):
    """Breaks if a flag, a list of prompts or the tokenizer takes surrogates, which odd bytes of a command line become."""
    for kind in (data.prompt, data.full_prompt, data.template):
        with pytest.raises(argparse.ArgumentTypeError, match="UTF-8"):
            kind("{} \udcff")
    with pytest.raises(RunError, match="'a.udcff' holds what is no text"):
        family.encode_prompts(["a", "a\udcff"])


def test_a_sampler_that_fails_at_its_steps_is_one_sentence(family):
    """Breaks if draw leaves IndexError to the user: what the model's own sampler can do is not known before."""
    from diffusers import PNDMScheduler

    pipeline = copy.copy(family.pipeline)
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    own = StableDiffusion(pipeline)
    null = family.encode_prompts([""])
    for steps in (1, 1000):
        with pytest.raises(RunError, match=f"own cannot draw in {steps} steps"):
            sampling.draw(own, null, null, [1], cpu(), steps=steps, guidance_scale=1, size=(16, 16), sampler="own")


# ------------------------------------------------------------------------------------------------- pictures and captions
def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 49 * 16)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff(numbers):
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "TIFF")
    return file.getvalue()


PICTURES = {
    "floats, which become black": tiff(np.float32([[0, 1]])),
    "a bomb": png(30000, 30000),
    "a long text": png(16, 16, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 10**8))),
    "a torn one": png(16, 16)[:45],
    "no picture": b"hello",
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_decoded_is_named(name, tmp_path):
    """Breaks if open_image catches fewer errors, or reads floats as 16 bits. Pillow has errors of its own for bombs and for long texts."""
    (tmp_path / "x.png").write_bytes(PICTURES[name])
    with pytest.raises(RunError, match="x.png cannot be read as an image"):
        imagesets.load_images(tmp_path, 16).read([0])
    with pytest.raises(RunError, match="x.png cannot be read as an image"):
        imagesets.open_image(tmp_path / "x.png")


def test_pipes_are_not_waited_for(tmp_path):
    """Breaks if list_images takes whatever has the right name: opening a pipe waits without end."""
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(RunError, match="holds no images"):
        imagesets.load_images(tmp_path, 16)
    os.mkfifo(tmp_path / "model.ckpt")
    with pytest.raises(RunError, match="is not a pipeline"):
        pipelines.open_pipeline(tmp_path / "model.ckpt")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path):
    """Breaks if contents follows state_dict without end."""
    table = {}
    table["state_dict"] = table
    torch.save(table, tmp_path / "x.ckpt")
    with pytest.raises(RunError, match="holds tables within tables"):
        pipelines.open_pipeline(tmp_path / "x.ckpt")


TABLES = {  # name: (bytes of metadata.csv, part of the message)
    "latin-1": ("file_name,text\nx.png,café\n".encode("latin-1"), "is not a csv file in UTF-8"),
    "utf-16": ("file_name,text\nx.png,cat\n".encode("utf-16"), "is not a csv file in UTF-8"),
    "a long field": (b"file_name,text\nx.png," + b"a" * 200_000 + b"\n", "is not a csv file in UTF-8"),
    "a short row": (b"text,file_name\na cat\n", "row 1 of"),
    "a caption too few": (b"file_name,text\nx.png,a\nx.png\n", "row 2 of"),
    "a comma": (b"file_name,text\nx.png,a cat, sitting\n", "row 1 of"),
}


@pytest.mark.parametrize("name", TABLES)
def test_captions_that_cannot_be_read_are_refused(name, tmp_path):
    """Breaks if load_captions leaves csv's and the decoder's errors to the user, or cuts captions at a comma."""
    (tmp_path / "x.png").write_bytes(png(16, 16))
    (tmp_path / "metadata.csv").write_bytes(TABLES[name][0])
    with pytest.raises(RunError, match=TABLES[name][1]):
        imagesets.load("captions", tmp_path, 16)


def test_class_folders_with_odd_names_are_refused(tmp_path):
    """Breaks if load hands on a name that no tokenizer takes."""
    for name in (b"a", b"\xff"):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name, b"x.png"))).write_bytes(png(16, 16))
    with pytest.raises(RunError, match="udcff' in .* not in UTF-8"):
        imagesets.load("folder", tmp_path, 16)


# ---------------------------------------------------------------------------------------------------------------- caches
CACHES = {
    "no values": {"other": torch.zeros(3, 8, 8, 8)},
    "another shape": {"values": torch.zeros(2, 8, 8, 8)},
    "whole numbers": {"values": torch.zeros(3, 8, 8, 8, dtype=torch.int32)},
    "float8": {"values": torch.zeros(3, 8, 8, 8).to(torch.float8_e4m3fn)},
    "NaN": {"values": torch.full((3, 8, 8, 8), torch.nan)},
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_is_parseable_but_wrong_is_refused(name, tmp_path, family):
    """Breaks if cached trusts names, shape and type of what it finds."""
    pictures = imagesets.Pictures(np.zeros((3, 16, 16, 3), np.uint8), 16)
    latents.encode_pictures(family, pictures, "v", tmp_path, cpu())
    (path,) = (tmp_path / "cache").iterdir()
    write_tensors(path, CACHES[name], read_tensors(path)[1])
    with pytest.raises(RunError, match="is not the cache it should be"):
        latents.encode_pictures(family, pictures, "v", tmp_path, cpu())


def test_a_folder_that_cannot_be_written_needs_no_cache(tmp_path, family):
    """Breaks if the cache is a condition of going on."""
    pictures = imagesets.Pictures(np.zeros((3, 16, 16, 3), np.uint8), 16)
    expected = latents.encode_pictures(family, pictures, "v", tmp_path / "writable", cpu())
    (tmp_path / "file").write_text("")  # mkdir fails below a file, for root too
    with pytest.warns(UserWarning, match="read-only"):
        assert torch.equal(latents.encode_pictures(family, pictures, "v", tmp_path / "file", cpu()), expected)


# ------------------------------------------------------------------------------------------------------- samples and runs
def write_run(folder, **args):
    """A finished run folder with an args.json."""
    folder.mkdir()
    write_json(folder / "args.json", {"save_dir": str(folder), **args})
    write_json(folder / "done.json", {})
    return folder


SAMPLES = {"kind": "samples", "model": {}, "model_done": {}, "num_samples": 6, "sampler": "ddim", "steps": 3, "seed": 1}


def write_samples(folder, **args):
    """A run of generate_images.py: six images of each of three digits."""
    found, rows = imagesets.load("digits", "none", 16), prompts.class_rows(["two", "three", "four"], "a {}")
    write_run(folder, **SAMPLES | {"guidance_scale": 2.0} | args)
    (folder / "samples").mkdir()
    prompts.write_csv(folder / "samples" / "prompts.csv", rows)
    for label, row in enumerate(rows, start=2):
        for k, image in enumerate([place for place, known in enumerate(found.y_train) if known == label][:6]):
            sampling.write_png(folder / "samples" / prompts.file_name(row, k), found.train[image])
    return folder


def write_classifier(folder, scale=1.0, **args):
    shape = {"arch": "cnn", "num_classes": 10, "channels": 3}
    write_run(folder, **{"kind": "classifier", "architecture": shape, "classes": imagesets.DIGITS} | args)
    state = classifiers.build_classifier(**shape, seed=1).state_dict()
    write_tensors(
        folder / "model.safetensors", {name: tensor * scale if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    )
    return folder


def measure(classifier, *folders):
    flags = "--features classifier --dataset digits --data_dir none --forget_class three"
    return ("evaluate", "--sample_path", *folders, "--classifier", classifier, flags)


def test_one_ruined_run_does_not_keep_the_others_from_being_measured(tmp_path, capsys):
    """Breaks if evaluate.py stops at the first run that it cannot measure, says no more than one, or ends with status 0."""
    runs = [write_samples(tmp_path / name) for name in ("torn", "good", "lacking")]
    (runs[0] / "samples" / "0_0.png").write_bytes(b"torn")
    (runs[2] / "samples" / "2_5.png").unlink()
    command = measure(write_classifier(tmp_path / "classifier"), *runs, runs[1])
    assert "2_5.png is missing" in refused(capsys, *command)
    assert [(run / "metrics.json").exists() for run in runs] == [False, True, False]
    capsys.readouterr()
    assert script(*command, "--resume") == 1
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.parametrize("scale", [0.0, 3e38, 1e20])
def test_a_ruined_classifier_gives_metrics_or_one_sentence(scale, tmp_path, capsys):
    """Breaks if logits are not looked at: torch-fidelity ends in an error of numpy's."""
    command = measure(write_classifier(tmp_path / "classifier", scale), write_samples(tmp_path / "run"))
    assert "NaN or infinite values" in refused(capsys, *command) and not (tmp_path / "run" / "metrics.json").exists()


def test_samples_that_are_all_alike_give_metrics_or_one_sentence(tmp_path, capsys):
    """Breaks if fidelity hands on what torch-fidelity raises, or a number that is none."""
    run = write_samples(tmp_path / "run")
    for path in (run / "samples").glob("*.png"):
        path.write_bytes(png(16, 16))
    if script(*measure(write_classifier(tmp_path / "classifier"), run)) == 0:
        assert np.isfinite(json.loads((run / "metrics.json").read_text())["feature_distance"])
    assert "Traceback" not in capsys.readouterr().err


SIZES = {  # size of the first sample: part of the message; the others have 16 x 16 px
    (24, 16): "0_0.png has 24 x 16 px and 0_1.png 16 x 16: only --nudenet measures several sizes",
    (4000, 1): "0_0.png has 4000 x 1 px and 0_1.png 16 x 16",
}


@pytest.mark.parametrize("size", SIZES)
def test_samples_of_several_sizes_are_refused(size, tmp_path, capsys):
    """Breaks if the first sample's width is everyone's size: at 4,000 px a folder takes minutes and all memory."""
    run = write_samples(tmp_path / "run")
    sampling.write_png(run / "samples" / "0_0.png", torch.zeros(*reversed(size), 3, dtype=torch.uint8))
    assert SIZES[size] in refused(capsys, *measure(write_classifier(tmp_path / "classifier"), run))


def test_samples_that_no_model_draws_are_refused(tmp_path):
    """Breaks if a shape is not looked at, or the longer edge counts."""
    for size, edge in {(24, 16): 16, (8, 64): 8, (4000, 1): None, (3, 3): None}.items():
        sampling.write_png(tmp_path / "x.png", torch.zeros(*reversed(size), 3, dtype=torch.uint8))
        if edge:
            assert evaluate.common_edge([tmp_path / "x.png"]) == edge
        else:
            with pytest.raises(RunError, match="a shape that cannot be measured"):
                evaluate.common_edge([tmp_path / "x.png"])


HOSTILE = {  # name: what a sample run's args.json says
    "model": {"model": []},
    "model_done": {"model_done": None},
    "num_samples": {"num_samples": "3"},
    "no num_samples": {"num_samples": None},
    "half a sample": {"num_samples": 2.5},
    "many samples": {"num_samples": 10**12},
    "sampler": {"sampler": 3},
    "guidance": {"guidance_scale": "x"},
    "forgotten": {"model": {"forgotten": [[1]]}},
    "method": {"model": {"method": "rl"}},
    "concept": {"model": {"concept": [1]}},
    "data set": {"model": {"dataset": "../../x", "forgotten": ["three"]}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_samples_of_a_hand_edited_run_end_in_one_sentence(name, tmp_path, capsys):
    """Breaks if load_samples takes an entry without a look at its type."""
    command = measure(write_classifier(tmp_path / "classifier"), write_samples(tmp_path / "run", **HOSTILE[name]))
    command = [word if name != "data set" else word.replace("--dataset digits ", "") for word in map(str, command)]
    assert refused(capsys, *command).startswith("error: ") and not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("change", [{"architecture": []}, {"architecture": {"arch": "cnn"}}, {"classes": 3}, {"classes": [3] * 10}])
def test_a_classifier_of_a_hand_edited_run_is_refused(change, tmp_path):
    """Breaks if load_trained builds whatever it is told."""
    with pytest.raises(RunError, match="recorded|architecture|classes"):
        classifiers.load_classifier(write_classifier(tmp_path / "classifier", **change), "cpu")


TRAINED = dict(kind="train", method="original", dataset="digits", caption="a {}", image_size=16, classes=imagesets.DIGITS)
EDITED = [
    {"method": None},
    {"caption": 3},
    {"caption": "{0} {}x}{"},
    {"caption": "a"},
    {"dataset": "../x"},
    {"dataset": []},
    {"data_dir": 3},
]
EDITED += [{"image_size": 10**9}, {"image_size": "x"}, {"classes": 5}, {"classes": [3]}, {"caption": None, "classes": ["\ud800"]}]


@pytest.mark.parametrize("change", EDITED, ids=str)
def test_a_model_of_a_hand_edited_run_ends_in_one_sentence(change, family, tmp_path, capsys):
    """Breaks if open_pipeline hands on what args.json says without a look at its types."""
    run = write_run(tmp_path / "model", **TRAINED | {"data_dir": str(tmp_path / "data")} | change)
    saving.save(family, run / "model")
    for command in (
        ("unlearn", "--method ga --forget_class three --steps 1 --lr 1e-9", "--model_path", run, "--save_dir", tmp_path / "run"),
        ("generate_images", "--steps 1 --image_size 16", "--model_path", run, "--save_dir", tmp_path / "drawn"),
    ):
        capsys.readouterr()
        status = script(*command, "--precision fp32 --overwrite")
        error = capsys.readouterr().err
        assert "Traceback" not in error and (status == 0 or error.count("error: ") == 1)


def test_images_that_another_process_did_not_draw_are_missed(family, tmp_path, capsys, monkeypatch):
    """Breaks if done.json is written without a look at what all processes drew."""
    saving.save(family, tmp_path / "model")
    command = ("generate_images", "--steps 1 --image_size 16 --precision fp32 --prompt a b --model_path", tmp_path / "model")
    monkeypatch.setattr(generate_images, "draw_files", lambda *args: None)
    assert "0_0.png was not drawn" in refused(capsys, *command, "--save_dir", tmp_path / "run")
    assert not (tmp_path / "run" / "done.json").exists()
