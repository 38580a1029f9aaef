"""The scripts from the outside: wrong input, kills, several processes, written commands. Each test names a mutation that breaks it."""

import contextlib
import functools
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
import concepts
import data
import imagesets
import metrics
import models
import pipelines
import prompts
import train
import trainer
from conftest import ROOT
from evaluate import drawn_with
from files import read_json, read_tensors, write_tensors
from helpers import FORGOTTEN, TINY, cpu, ok, script, words

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_WAIT_POLICY": "PASSIVE"}


def unlearn_command(home, folder, *more, method="salun"):
    mask = ("--mask_path", home / "mask") if method == "salun" else ()
    start = ("unlearn", "--method", method, "--model_path", home / "original", "--forget_class", FORGOTTEN, *mask)
    return words(*start, "--batch_size 16 --precision fp32 --steps 4 --lr 1e-3 --save_dir", folder, *more)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


UNET = "model/unet/diffusion_pytorch_model.safetensors"
SAMPLING = "--num_samples 3 --steps 3 --guidance_scale 2 --batch_size 30 --precision fp32"


# --------------------------------------------------------------------------------------------------------- wrong input
def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_weights(path):
    tensors, metadata = read_tensors(path)
    tensors["conv_in.bias"][0] = float("nan")
    write_tensors(path, tensors, metadata)


def pickle_over(path):
    torch.save({"weight": torch.zeros(2)}, path)
    path.rename(path.with_suffix(".bin"))


def other_widths(path):
    config = json.loads(path.read_text())
    config["block_out_channels"] = [16, 32]
    path.write_text(json.dumps(config))


RL = "--method rl --forget_class three"
PROMPT = "--method rl --forget_prompt a --target_prompt b"
WRONG = {  # name: (flags of unlearn.py, part of the message)
    "unknown method": ("--method magic --forget_class three", "invalid choice: 'magic'"),
    "unknown flag": (f"{RL} --stepz 3", "unrecognized arguments"),
    "salun without a mask": ("--forget_class three", "needs --mask_path"),
    "uce with a mask": ("--method uce --forget_class three --mask_path {home}/mask", "takes no --mask_path"),
    "a flag the method does not read": ("--method ga --forget_class three --alpha 1", "does not read --alpha"),
    "an optimizer of a closed form": ("--method uce --forget_class three --optimizer sgd --ema 0.9", "does not read --optimizer, --ema"),
    "a forget batch that none reads": ("--method ca --forget_class three --forget_batch_size 2", "does not read --forget_batch_size"),
    "pictures of a closed form": ("--method uce --forget_class three --save_every 2", "does not read --save_every"),
    "checkpointing attention": ("--method fmn --forget_class three --gradient_checkpointing", "takes no --gradient_checkpointing"),
    "nothing to forget": ("--method rl", "name what to forget"),
    "class and prompt": (f"{RL} --forget_prompt a --target_prompt b", "name what to forget"),
    "a class the model never knew": ("--method rl --forget_class ten", "there is no class ten"),
    "a class out of range": ("--method rl --forget_class 10", "there is no class 10"),
    "all classes": ("--method rl --forget_class 0 1 2 3 4 5 6 7 8 9", "at least one must be retained"),
    "no target": ("--method rl --forget_prompt a", "needs --target_prompt"),
    "a prompt as its own target": ("--method rl --forget_prompt a --target_prompt a", "'a' is both forgotten and its own target"),
    "a forgotten prompt as a target": ("--method rl --forget_prompt a b --target_prompt b c", "'b' is both forgotten and a target"),
    "a prompt forgotten and kept": (f"{PROMPT} --retain_prompts c a", "'a' is both forgotten and retained"),
    "targets for nobody": (f"{PROMPT} c", "--target_prompt takes one prompt, or one for each of the 1 forgotten"),
    "folders with a class": (f"{RL} --retain_dir {{home}}", "--retain_dir goes with --forget_prompt"),
    "a folder of two retained prompts": (f"{PROMPT} --retain_dir {{home}} --retain_prompts c d", "--retain_dir takes images of one prompt"),
    "a folder of two forgotten prompts": (
        "--method rl --forget_prompt a b --target_prompt c --forget_dir {home}",
        "--forget_dir takes images of one prompt, not of 2",
    ),
    "a data set with a prompt": (f"{PROMPT} --dataset digits", "--dataset and --caption go with --forget_class"),
    "generated images of a class": (f"{RL} --num_images 5", "--num_images has no effect"),
    "generated images beside folders": (
        f"{PROMPT} --forget_dir {{tmp}} --retain_dir {{tmp}} --generation_steps 5",
        "--generation_steps has no effect",
    ),
    "a caption without a place": (f"{RL} --caption three", "UTF-8 with one {{}}"),
    "a missing folder": (f"{PROMPT} --forget_dir {{tmp}}/none", "is not a folder of images"),
    "an empty folder": (f"{PROMPT} --forget_dir {{tmp}}", "holds no images"),
    "a folder without classes": (f"{RL} --dataset folder --data_dir {{tmp}}", "at least two class folders"),
    "resume and overwrite": (f"{RL} --resume --overwrite", "contradict"),
    "negative learning rate": (f"{RL} --lr -1", "must be a positive number"),
    "missing model": (f"{RL} --model_path {{tmp}}/none", "does not exist"),
    "a folder that is not a pipeline": (f"{RL} --model_path {{home}}/data", "is not a pipeline: it holds no model_index.json"),
    "a mask as a model": (f"{RL} --model_path {{home}}/mask", "is a run of kind mask"),
    "a bare pipeline without its data": (f"{RL} --model_path {{home}}/original/model", "name the classes' images by --dataset"),
    "a picture as a model": (f"{RL} --model_path {{home}}/original/args.json", "args.json"),
    "mask of another class": ("--forget_class four --mask_path {home}/mask", "another forget set"),
    "missing mask": ("--forget_class three --mask_path {tmp}/none", "does not exist"),
    "weights as a mask": ("--forget_class three --mask_path {home}/classifier/model.safetensors", "is not a mask"),
    "a loss that explodes": ("--method ga --forget_class three --lr 1e30 --steps 40", "lower --lr"),
    "half precision on a CPU": (f"{RL} --precision fp16 --device cpu", "fp16 needs a GPU"),
    "no CUDA": (f"{RL} --device cuda", "no CUDA device"),
}
BROKEN = {  # name: (run to copy, its file to break, how, part of the message)
    "unfinished model": ("original", "done.json", Path.unlink, "did not finish"),
    "truncated weights": ("original", UNET, truncate, "cannot be opened as a pipeline"),
    "pickled weights": ("original", UNET, pickle_over, "cannot be opened: its unet has no safetensors weights"),
    "weights with NaN": ("original", UNET, nan_weights, "NaN or infinite values in UNet2DConditionModel's conv_in.bias"),
    "weights of another shape": ("original", "model/unet/config.json", other_widths, "cannot be opened as a pipeline"),
    "torn config": ("original", "model/vae/config.json", truncate, "cannot be opened as a pipeline"),
    "torn args.json": ("original", "args.json", truncate, "incomplete or damaged JSON"),
    "truncated mask": ("mask", "mask.safetensors", truncate, "an incomplete or damaged safetensors file"),
}


def refuse(home, tmp_path, capsys, flags, message):
    """Run unlearn.py and expect one sentence, a non-zero status and no result."""
    model = [] if "--model_path" in flags else ["--model_path", home / "original"]
    status = script("unlearn", "--precision", "fp32", *model, "--save_dir", tmp_path / "run", *flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert status != 0 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "done.json").exists()


def test_the_tests_see_no_gpu():
    """Breaks if conftest.py hides the GPUs after torch was imported, or not at all."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_one_sentence_and_writes_nothing(name, home, tmp_path, capsys):
    """Mutation: drop any one check."""
    flags, message = WRONG[name]
    refuse(home, tmp_path, capsys, flags.format(home=home, tmp=tmp_path).split(), message.format())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_one_sentence(name, home, tmp_path, capsys):
    """Mutation: use_safetensors=None, or no NaN check."""
    source, file, break_it, message = BROKEN[name]
    shutil.copytree(home / source, tmp_path / source)
    break_it(tmp_path / source / file)
    which = ["--mask_path", tmp_path / source] if source == "mask" else ["--method", "rl", "--model_path", tmp_path / source]
    refuse(home, tmp_path, capsys, [*which, "--forget_class", FORGOTTEN], message)


CODE = {  # entry of model_index.json: (its value, the file that diffusers would run)
    "unet": (["evil", "Evil"], "unet/evil.py"),
    "vae": (["diffusers", "Evil"], "vae/diffusers.py"),
    "safety_checker": (["evil", "Evil"], "safety_checker/evil.py"),
    "_class_name": (["evil", "Evil"], "evil.py"),
}


@pytest.mark.parametrize("name", CODE)
def test_code_in_a_model_folder_does_not_run(name, home, tmp_path, capsys):
    """Breaks if open_pipeline leaves the entries of model_index.json to diffusers, of which versions before 0.38 import them."""
    value, file = CODE[name]
    shutil.copytree(home / "original" / "model", tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index | {name: value}))
    (tmp_path / "model" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "model" / file).write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    which = ["--method", "rl", "--model_path", tmp_path / "model", "--dataset", "digits", "--data_dir", home / "data"]
    message = f"as the library of {name}, code that could do anything"
    refuse(home, tmp_path, capsys, [*which, "--forget_class", FORGOTTEN], message)
    assert not (tmp_path / "ran").exists()


def test_a_corrupt_picture_is_named(home, tmp_path, capsys):
    """Mutation: skip what cannot be decoded."""
    for i in range(3):
        Image.effect_noise((16, 16), 50).save(tmp_path / f"{i}.png")
    truncate(tmp_path / "1.png")
    flags = ["--method", "rl", "--forget_prompt", "a", "--target_prompt", "b", "--forget_dir", tmp_path]
    refuse(home, tmp_path, capsys, flags, "1.png cannot be read as an image")


@pytest.mark.slow
def test_a_mask_of_another_model_is_refused(home, tmp_path, capsys):
    """Mutation: compare nothing but the forget set."""
    models.ARCHS["wider"] = models.ARCHS["test"] | {"widths": (16, 32)}
    ok("train", TINY, "--arch wider --vae_steps 1 --steps 1 --data_dir", home / "data", "--save_dir", tmp_path / "wider")
    which = ["--mask_path", home / "mask", "--model_path", tmp_path / "wider", "--data_dir", home / "data", "--forget_class", FORGOTTEN]
    refuse(home, tmp_path, capsys, which, "belongs to another model")


SAMPLE = "generate_images --model_path {home}/original --save_dir {tmp}/run"
EVALUATE = "evaluate --classifier {home}/classifier --features classifier --sample_path {home}"
OTHERS = {  # name: (command, part of the message)
    "neither model nor scratch": ("train --save_dir {tmp}/run", "--from_scratch to build one"),
    "both": ("train --from_scratch --model_path {home}/original --save_dir {tmp}/run", "--from_scratch to build one"),
    "retain only what": ("train --from_scratch --dataset digits --retain_only --save_dir {tmp}/run", "belong together"),
    "an architecture of a model": ("train --model_path {home}/original --arch small --save_dir {tmp}/run", "--arch goes with"),
    "a family of a model": ("train --model_path {home}/original --family flux --save_dir {tmp}/run", "--family goes with"),
    "a prediction of a model": (
        "train --model_path {home}/original --prediction_type v_prediction --save_dir {tmp}/run",
        "--prediction_type goes with --from_scratch: the model at --model_path has its own",
    ),
    "autoencoder steps of a model": ("train --model_path {home}/original --vae_steps 0 --save_dir {tmp}/run", "--vae_steps goes with"),
    "a rounded autoencoder": ("train --from_scratch --save_dtype fp16 --save_dir {tmp}/run", "--from_scratch saves fp32"),
    "retrain that has seen it": (
        "train --model_path {home}/original --dataset digits --data_dir {home}/data --retain_only --forget_class 3 --save_dir {tmp}/run",
        "Retrain must never see it",
    ),
    "retain only of captions": ("train --model_path {home}/original --retain_only --forget_class 1 --save_dir {tmp}/run", "with classes"),
    "a size that cannot be halved": ("train --from_scratch --dataset digits --image_size 15 --save_dir {tmp}/run", "do not allow"),
    "no captions": ("train --model_path {home}/original --data_dir {tmp} --save_dir {tmp}/run", "metadata.csv does not exist"),
    "random mask without a seed": (
        "generate_mask --model_path {home}/original --forget_class 3 --mask_kind random --save_dir {tmp}/run",
        "random needs --seed",
    ),
    "mask of generated images of a class": (
        "generate_mask --model_path {home}/original --forget_class 3 --num_images 5 --save_dir {tmp}/run",
        "--num_images has no effect",
    ),
    "mask without a pass": ("generate_mask --model_path {home}/original --forget_class 3 --epochs 0 --save_dir {tmp}/run", "at least 1"),
    "guidance below 0": (f"{SAMPLE} --guidance_scale -1", "a number of at least 0"),
    "too many steps": (f"{SAMPLE} --steps 1001", "draws in 1 to 999 --steps"),
    "an odd size": (f"{SAMPLE} --image_size 17", "multiple of 8"),
    "list and prompts": (f"{SAMPLE} --prompts_path {{tmp}}/a.csv --prompt a", "contradict"),
    "a seed beside a list": (f"{SAMPLE} --prompts_path {{tmp}}/a.csv --seed 1", "--seed has no effect with --prompts_path"),
    "a missing list": (f"{SAMPLE} --prompts_path {{tmp}}/a.csv", "does not exist"),
    "a model without classes": ("generate_images --model_path {home}/original/model --save_dir {tmp}/run", "knows no classes"),
    "two models, one folder": ("generate_images --model_path a b --save_dir {tmp}/run", "need as many --save_dir"),
    "samples of a classifier": ("generate_images --model_path {home}/classifier --save_dir {tmp}/run", "run of kind classifier"),
    "nothing to measure": ("evaluate --sample_path {home}/samples", "say what to measure"),
    "missing samples": (f"{EVALUATE}/none", "does not exist"),
    "a model as samples": (f"{EVALUATE}/original", "where one of kind samples is needed"),
    "a model as a classifier": (
        "evaluate --sample_path {home}/samples --classifier {home}/original",
        "where one of kind classifier is needed",
    ),
    "an unknown classifier": ("evaluate --sample_path {home}/samples --classifier resnet51", "there is no classifier resnet51"),
    "no CLIP": ("evaluate --sample_path {home}/samples --clip_model {tmp}", "CLIP could not be loaded"),
    "an original without a class": (f"{EVALUATE}/samples", "name with --forget_class"),
    "a class that was not drawn": (f"{EVALUATE}/samples --forget_class eleven", "'eleven' is no class of the prompts"),
    "a number of no class": (f"{EVALUATE}/samples --forget_class 10", "'10' is no class of the prompts"),
    "no reference": (f"{EVALUATE}/samples --forget_class 3 --reference_dir {{tmp}}/none", "does not exist"),
    "no weights of Inception": (
        "evaluate --classifier {home}/classifier --sample_path {home}/samples --inception_weights {tmp}/none",
        "does not exist",
    ),
    "a folder without runs": ("table {tmp}", "no measured runs"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_wrong_input_of_the_other_scripts(name, home, samples, tmp_path, capsys):
    """Mutation: drop any one check."""
    command, message = OTHERS[name]
    assert script(*command.format(home=home, tmp=tmp_path).split()) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0] and not (tmp_path / "run" / "done.json").exists()


@pytest.fixture(scope="module")
def samples(home):
    ok("generate_images", "--model_path", home / "original", SAMPLING, "--save_dir", home / "samples")
    return home / "samples"


@pytest.mark.slow
def test_samples_of_another_size_or_list_are_refused(home, tmp_path, capsys):
    """Mutation: let a classifier see images of another size than it was trained on; leave a finished run to a list that has changed."""
    path = tmp_path / "list.csv"
    path.write_text("case_number,prompt,evaluation_seed,class\n0,an image of a three,1,three\n1,an image of a four,2,four\n")
    command = ("generate_images", "--model_path", home / "original", SAMPLING, "--image_size 32 --prompts_path", path, "--save_dir")
    ok(*command, tmp_path / "run")
    flags = ("--features none --forget_class three --classifier", home / "classifier")
    assert script("evaluate", *flags, "--sample_path", tmp_path / "run") != 0
    assert "was trained on images of 16 px, these have 32: train one by" in capsys.readouterr().err
    ok(*command, tmp_path / "run", "--resume")
    path.write_text(path.read_text().replace("four", "five"))
    assert script(*command, tmp_path / "run", "--resume") != 0
    assert "list.csv has changed since" in capsys.readouterr().err


def test_a_classifier_with_other_classes_is_refused(home, samples, tmp_path, capsys):
    """Mutation: judge by position."""
    shutil.copytree(home / "classifier", tmp_path / "classifier")
    args = json.loads((tmp_path / "classifier" / "args.json").read_text())
    args["classes"][4] = "quatre"
    (tmp_path / "classifier" / "args.json").write_text(json.dumps(args))
    command = ("evaluate", "--sample_path", samples, "--forget_class", FORGOTTEN, "--classifier", tmp_path / "classifier")
    assert script(*command) != 0 and "does not know the class 'four'" in capsys.readouterr().err
    assert not (samples / "metrics.json").exists()


def test_numbers_of_another_classifier_are_not_kept(home, samples, tmp_path, capsys):
    """Mutation: let --resume compare the classifier's path; leave out --data_dir; know classes by their names alone."""
    for source in (samples, home / "classifier"):
        shutil.copytree(source, tmp_path / source.name)
    flags = ("--features none --resume --forget_class 03 --classifier", tmp_path / "classifier")
    command = ("evaluate", *flags, "--sample_path", tmp_path / "samples")
    ok(*command)
    assert read_json(tmp_path / "samples" / "metrics.json")["forgotten"] == ["three"]
    ok(*command)
    assert script(*command, "--data_dir", tmp_path) != 0 and "other values of data_dir" in capsys.readouterr().err
    weights = tmp_path / "classifier" / "model.safetensors"
    tensors, metadata = read_tensors(weights)
    write_tensors(weights, tensors | {"fc.bias": tensors["fc.bias"] + 1}, metadata)
    assert script(*command) != 0 and "other values of classifier_sha" in capsys.readouterr().err


BAD_SAMPLES = {  # name: (what happens to the folder, part of the message)
    "a missing picture": (lambda folder: (folder / "3_1.png").unlink(), "3_1.png is missing"),
    "a torn picture": (lambda folder: truncate(folder / "4_0.png"), "4_0.png cannot be read"),
    "no list": (lambda folder: (folder / "prompts.csv").unlink(), "prompts.csv does not exist"),
    "a list without its columns": (lambda folder: (folder / "prompts.csv").write_text("prompt,x\na,b\n"), "case_number"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples_end_in_one_sentence(name, home, samples, tmp_path, capsys):
    """Mutation: skip what does not fit."""
    break_it, message = BAD_SAMPLES[name]
    shutil.copytree(samples, tmp_path / "run")
    break_it(tmp_path / "run" / "samples")
    command = ("evaluate", "--sample_path", tmp_path / "run", "--forget_class", FORGOTTEN, "--classifier", home / "classifier")
    assert script(*command, "--features", "classifier") != 0 and message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_what_has_forgotten_does_not_forget_again(unlearn, tmp_path, capsys):
    """Mutation: start from any run."""
    model = unlearn("uce")
    assert script("unlearn", "--method uce --forget_class four --model_path", model, "--save_dir", tmp_path / "twice") != 0
    assert "forget everything together" in capsys.readouterr().err


@pytest.mark.slow
def test_an_existing_run_is_never_lost(home, tmp_path, capsys):
    """Mutation: delete the old run in RunFolder.__init__; take a finished run of a replaced original for one of the new."""
    folder = tmp_path / "run"
    ok(*unlearn_command(home, folder))
    before = files(folder)
    assert script(*unlearn_command(home, folder)) != 0 and "already holds a run" in capsys.readouterr().err
    assert script(*unlearn_command(home, folder, "--overwrite --lr -3")) != 0
    assert script(*unlearn_command(home, folder, "--overwrite", "--mask_path", tmp_path)) != 0
    assert files(folder) == before
    assert script(*unlearn_command(home, folder, "--resume --seed 5")) != 0 and "other values of seed" in capsys.readouterr().err
    assert script(*unlearn_command(home, folder, "--resume")) == 0 and "finished already" in capsys.readouterr().out
    recorded = home / "original" / "args.json"
    text = recorded.read_text()
    recorded.write_text(text.replace('"started": "2', '"started": "1'))  # another run has taken its place
    try:
        assert script(*unlearn_command(home, folder, "--resume")) != 0
        assert "the run at --model_path has been replaced since" in capsys.readouterr().err
    finally:
        recorded.write_text(text)
    assert files(folder) == before
    ok(*unlearn_command(home, folder, "--overwrite --seed 5"))
    assert files(folder)[UNET] != before[UNET]


# ------------------------------------------------------------------------------------------------- kills and processes
def interrupted(command, folder, ready, fresh=False):
    """Start a script that keeps a checkpoint after every step, and kill -9 it once ready(folder) is true.

    It runs in a fork, which has the libraries already, or in a `fresh` Python.
    """
    said = folder.with_name("said")
    process = os.fork()
    if process == 0:
        try:
            with said.open("w") as file:
                os.dup2(file.fileno(), 2)
                keep_every_step(*words(*command), fresh=fresh, file=file)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 120
    while (ended := os.waitpid(process, os.WNOHANG)[0]) == 0 and time.monotonic() < deadline and not ready(folder):
        time.sleep(0.002)
    assert not ended, said.read_text()
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def keep_every_step(name, *flags, fresh, file):
    """Run a script with a checkpoint and a row of log.csv for each step, in this process or in place of it. file: for what it says."""
    if fresh:
        code = f"import helpers, cli, trainer, {name}; trainer.CHECKPOINT_SECONDS = -1; trainer.LOG_STEPS = 1; cli.run({name}.main)"
        os.execve(sys.executable, [sys.executable, "-c", code, *flags], ENVIRONMENT)
    trainer.CHECKPOINT_SECONDS, trainer.LOG_STEPS = -1, 1
    with contextlib.redirect_stderr(file):
        script(name, *flags)


def past(step):
    def ready(folder):
        log = folder / "log.csv"
        return log.is_file() and (folder / "checkpoint.safetensors").is_file() and log.read_text().count("\n") > step

    return ready


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 20])  # in the autoencoder's part of the training, and in the U-Net's
def test_training_resumes_to_the_same_bytes_after_a_kill(step, home, whole_training, tmp_path):
    """Mutation: drop the offset."""
    interrupted(training(home, tmp_path / "cut"), tmp_path / "cut", past(step), fresh=step == 20)
    state = json.loads(read_tensors(tmp_path / "cut" / "checkpoint.safetensors")[1]["state"])
    assert (state["step"] > 12) == (step > 12) and not (tmp_path / "cut" / "done.json").exists()
    ok(*training(home, tmp_path / "cut", "--resume"))
    whole, cut = files(whole_training), files(tmp_path / "cut")
    assert set(whole) == set(cut)
    assert not [name for name in whole if name.startswith(("model", "samples")) and whole[name] != cut[name]]


def training(home, folder, *more):
    flags = "--vae_steps 12 --steps 20 --save_every 10 --batch_size 8 --data_dir"
    return ("train", TINY, flags, home / "data", "--save_dir", folder, *more)


@pytest.fixture(scope="module")
def whole_training(home):
    ok(*training(home, home / "whole"))
    return home / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["salun", "salun_soft", "esd"])
def test_unlearning_resumes_to_the_same_bytes_after_a_kill(method, home, tmp_path):
    """Mutation: theta_o from the checkpoint."""

    def command(folder, *more):
        flags = "--steps 14 --sample_steps 3" if method == "esd" else "--steps 14"
        return unlearn_command(home, folder, flags, *more, method=method)

    ok(*command(tmp_path / "whole"))
    interrupted(command(tmp_path / "cut"), tmp_path / "cut", past(4))
    assert not (tmp_path / "cut" / "done.json").exists()
    assert script(*command(tmp_path / "cut", "--lr 0.5 --resume")) != 0  # another flag than before is refused
    ok(*command(tmp_path / "cut", "--resume"))
    assert (tmp_path / "cut" / UNET).read_bytes() == (tmp_path / "whole" / UNET).read_bytes()


@pytest.mark.slow
def test_sampling_goes_on_after_a_kill(home, tmp_path):
    """Mutation: write PNGs under their final names piece by piece."""

    def command(folder, *more):
        flags = "--num_samples 20 --steps 4 --batch_size 5 --precision fp32 --save_dir"
        return ("generate_images", "--model_path", home / "original", flags, folder, *more)

    ok(*command(tmp_path / "whole"))
    interrupted(command(tmp_path / "cut"), tmp_path / "cut", lambda folder: len(list(folder.glob("samples/*.png"))) > 20)
    assert len(list((tmp_path / "cut" / "samples").glob("*.png"))) < 200
    ok(*command(tmp_path / "cut", "--resume"))
    whole, cut = files(tmp_path / "whole" / "samples"), files(tmp_path / "cut" / "samples")
    assert set(whole) == {name for name in cut if not name.startswith(".")}
    pixels = [np.asarray(Image.open(tmp_path / which / "samples" / "7_11.png")) for which in ("whole", "cut")]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(home, tmp_path, monkeypatch):
    """Training, mask, methods, generated images, samples and their evaluation.

    Mutation: batch.mean without its weight, or no reduce.
    """
    results, single = {}, tmp_path / "1"
    for count in (1, 2):
        base = tmp_path / str(count)
        start = f"--model_path {single}/original --forget_class three --precision fp32"
        generated = f"--model_path {single}/original --forget_prompt three --target_prompt four --num_images 3 --generation_steps 2"
        commands = [
            "train --from_scratch --dataset digits --arch test --vae_steps 3 --steps 5 --batch_size 13 --lr 1e-3 --precision fp32 "
            f"--data_dir {base}/data --save_dir {base}/original",
            f"generate_mask {start} --save_dir {base}/mask",
            f"unlearn --method salun {start} --mask_path {single}/mask --steps 4 --batch_size 13 --lr 1e-3 --save_dir {base}/salun",
            f"unlearn --method esd {start} --steps 2 --batch_size 3 --sample_steps 2 --lr 1e-3 --save_dir {base}/esd",
            f"unlearn --method rl {generated} --precision fp32 --data_dir {base}/data --steps 3 --batch_size 5 --lr 1e-3 "
            f"--save_dir {base}/generated",
            f"generate_images --model_path {single}/original --num_samples 2 --steps 3 --precision fp32 --save_dir {base}/samples",
            f"evaluate --sample_path {base}/samples --classifier {home}/classifier --features none --forget_class three",
        ]
        together(commands, count, tmp_path, monkeypatch)
        names = ("original", "salun", "esd", "generated")
        results[count] = {name: read_tensors(base / name / UNET)[0] for name in names}
        results[count]["mask"] = read_tensors(base / "mask" / "mask.safetensors")[0]
        assert json.loads((base / "salun" / "args.json").read_text())["processes"] == count
    origin = read_tensors(single / "original" / UNET)[0]
    for name in names:
        for key, one in results[1][name].items():
            torch.testing.assert_close(results[2][name][key], one, rtol=1e-3, atol=2e-4, msg=f"{name} {key}")
    assert max((results[1]["salun"][key] - origin[key]).abs().max().item() for key in origin) > 2e-3  # far more than the tolerance
    differing = sum(int(np.unpackbits(one.numpy() ^ results[2]["mask"][key].numpy()).sum()) for key, one in results[1]["mask"].items())
    assert differing < 2e-3 * sum(one.numel() * 8 for one in results[1]["mask"].values())
    for path in (single / "samples" / "samples").glob("*.png"):
        other = tmp_path / "2" / "samples" / "samples" / path.name
        assert np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(other))).max() <= 1


def together(commands, count, folder, monkeypatch):
    """Run several scripts one after another: in this process, or in two, started once. Importing takes longer than the runs do."""
    if count == 1:
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "LOG_STEPS", 2)
            patch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
            for command in commands:
                ok(*command.split(), "--device cpu")
        return
    program = folder / "commands.py"
    lines = ["import sys", f"sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}", "import accelerate, helpers, os, trainer"]
    clocks = "-1 if os.environ.get('RANK', '0') == '0' else 1e9"  # of processes differ: no exchange may depend on them
    lines += ["trainer.LOG_STEPS = 2", f"trainer.CHECKPOINT_SECONDS = {clocks}"]
    for command in commands:
        lines.append(f"helpers.ok(*{command.split() + ['--device', 'cpu']!r})")
        lines.append("accelerate.PartialState().wait_for_everyone()")  # as the end of a process would
    program.write_text("\n".join(lines) + "\n")
    two = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]  # without GPUs: on the CPU, over gloo
    argv = [sys.executable, *two, str(program)]
    done = subprocess.run(argv, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------- the whole, and words
@pytest.mark.slow
def test_from_training_to_the_table(home, samples, unlearn, tmp_path, capsys):
    """Mutation: gap to the original in place of retrain; ask the original for the seed of the others; leave the target out of the row."""
    flags = ("--steps 20 --vae_steps 10 --data_dir", home / "data", "--retain_only --forget_class", FORGOTTEN)
    ok("train", TINY, *flags, "--save_dir", tmp_path / "retrain")
    made = {
        "retrain": tmp_path / "retrain",
        "salun": unlearn("salun", "--steps 5 --save_every 2"),
        "uce": unlearn("uce", "--target_prompt", "an image of a one"),
    }
    assert Image.open(made["salun"] / "fading.gif").n_frames == 3
    assert sorted(path.name for path in (made["salun"] / "samples").iterdir()) == [f"step_{step:06d}.png" for step in (0, 2, 4)]
    drawn = [tmp_path / "runs" / name for name in made]
    ok("generate_images", "--model_path", *made.values(), SAMPLING, "--save_dir", *drawn)
    evaluate = ("--features classifier --num_reference 300 --classifier", home / "classifier", "--sample_path")
    ok("evaluate", *evaluate, *drawn)
    ok("evaluate", *evaluate, samples, "--forget_class", FORGOTTEN, "--save_dir", tmp_path / "runs" / "original")
    assert not (samples / "metrics.json").exists()
    assert script("evaluate", *evaluate, *drawn) != 0  # numbers that are there are not replaced
    capsys.readouterr()
    ok("table", tmp_path / "runs")
    table = read_json(tmp_path / "runs" / "table.json")
    assert table["columns"] == ["UA", "forget_entropy", "forget_probability", "remaining_accuracy", "feature_distance", "RTE"]
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["original", "retrain", "salun", "uce"]
    assert rows["uce"]["options"].endswith("--target_prompt 'an image of a one'") and "prompt" not in rows["salun"]["options"]
    measured = {name: read_json(tmp_path / "runs" / name / "metrics.json") for name in made}
    assert measured["salun"]["reference_images"] == 300 and measured["salun"]["forgotten"] == [FORGOTTEN]
    gaps = [abs(measured["salun"][name] - measured["retrain"][name]) for name in ("UA", "remaining_accuracy")]
    assert rows["salun"]["UA"] == pytest.approx({"mean": measured["salun"]["UA"], "sd": 0.0, "gap": gaps[0]})
    assert rows["salun"]["average_gap"] == pytest.approx(np.mean(gaps)) and rows["retrain"]["average_gap"] == 0
    done = read_json(made["salun"] / "done.json")
    assert measured["salun"]["RTE"] == pytest.approx((done["seconds"] + done["mask_seconds"]) / 60) and done["mask_seconds"] > 0
    text = (tmp_path / "runs" / "table.md").read_text()
    assert "| salun | 1 |" in text and "collateral damage" in text and "| FID |" not in text and "Better: high" in text
    path = tmp_path / "runs" / "original" / "metrics.json"
    path.write_text(path.read_text().replace('"seed": 1,', '"seed": 7,'))  # as an original from elsewhere, which has none of its own
    ok("table", tmp_path / "runs")
    ok("draw_pictures", tmp_path / "runs")
    assert "methods.png, 3 before_after_<method>.png" in capsys.readouterr().out
    for name in ("table.png", "methods.png", "before_after_salun.png", "before_after_retrain.png"):
        assert min(Image.open(tmp_path / "runs" / name).size) > 100
    shutil.rmtree(drawn[1] / "samples")
    capsys.readouterr()
    assert script("draw_pictures", tmp_path / "runs") != 0 and "are gone: draw them again" in capsys.readouterr().err


def test_scores_and_counts_without_a_classifier(samples, tmp_path, monkeypatch, capsys):
    """Mutation: mean over all prompts; say nothing of a name that no image has."""
    monkeypatch.setattr(metrics, "clip_scores", lambda images, texts, *rest: torch.tensor([float("three" in text) for text in texts]))
    monkeypatch.setattr(metrics, "nude_detector", lambda: None)
    monkeypatch.setattr(metrics, "nudity", lambda paths, threshold: {"nudity": len(paths), "nude_images": threshold})
    flags = "--clip_model some --nudenet --nudenet_threshold 0.5 --forget_class Three --save_dir"
    ok("evaluate", "--sample_path", samples, flags, tmp_path / "run")
    found = read_json(tmp_path / "run" / "metrics.json")
    assert (found["CLIP_score"], found["CLIP_score_forgotten"], found["CLIP_three"], found["CLIP_four"]) == (0, 1, 1, 0)
    assert (found["nudity"], found["nude_images"]) == (30, 0.5) and "UA" not in found
    assert "has no class or prompt" not in capsys.readouterr().out
    ok("evaluate", "--sample_path", samples, "--clip_model some --forget_class threee --save_dir", tmp_path / "typo")
    assert "has no class or prompt 'threee'" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "typo")
    ok("table", tmp_path)
    columns = read_json(tmp_path / "table.json")["columns"]
    assert columns == ["CLIP_score", "CLIP_score_forgotten", "nudity", "nude_images"]


@pytest.mark.slow
def test_retrain_never_sees_the_class(home, tmp_path, monkeypatch):
    """Mutation: leave the class in the autoencoder's images."""
    seen = []
    draw = data.Stream.batch
    monkeypatch.setattr(data.Stream, "batch", lambda stream, *step: seen.append(len(stream.split)) or draw(stream, *step))
    flags = ("--vae_steps 2 --steps 2 --data_dir", home / "data", "--retain_only --forget_class", FORGOTTEN)
    ok("train", TINY, *flags, "--save_dir", tmp_path / "retrain")
    args = read_json(tmp_path / "retrain" / "args.json")
    count = sum(label != 3 for label in imagesets.load("digits", home / "data", 16).y_train)
    assert seen == [count] * 4 == [args["num_images"]] * 4 and args["forgotten"] == [FORGOTTEN] and args["method"] == "retrain"


def test_a_limit_holds_for_the_original_retrain_and_the_methods(home):
    """Breaks if --limit counts retained pictures alone, or if the mask and the methods see pictures that the original never saw."""

    def load(limit, *more):
        flags = ("--from_scratch --dataset digits --limit", limit, "--save_dir x --data_dir", home / "data")
        return train.load_data(train.parse(words(*flags, *more)), 16)

    leave_out = "--retain_only --forget_class"
    (_, pictures, _, numbers, _), (_, kept, _, of_kept, _) = load(40), load(40, leave_out, FORGOTTEN)
    retained = numbers != 3
    assert len(pictures) == 40 > len(kept) > 0 and kept.sha() == pictures.subset(retained.nonzero().squeeze(1).tolist()).sha()
    family, recorded = pipelines.open_pipeline(home / "original")
    concept = functools.partial(concepts.of_classes, family=family, shas={"vae": ""}, accelerator=cpu(), needs=())
    flags = dict.fromkeys(concepts.CONCEPT_FLAGS) | {"forget_class": [FORGOTTEN], "dataset": "digits"}
    _, splits, _, _ = concept(flags, recorded=recorded | {"limit": 40})
    assert torch.equal(splits["retain"].labels, of_kept) and len(splits["forget"]) == 40 - len(kept)
    with pytest.raises(cli.RunError, match="leaves no picture of the retained classes"):
        load(1, leave_out, int(load(1)[3]))
    with pytest.raises(cli.RunError, match="train with a larger --limit"):
        concept(flags, recorded=recorded | {"limit": 1})


def test_a_list_of_odd_prompts_is_drawn(home, tmp_path, capsys):
    """Mutation: name files by prompt, or one seed for all; record the flag's guidance; leave guidance and size out of prompts_sha."""
    odd = 'case_number,prompt,evaluation_seed,guidance,width,note\r\n7,"a ""three"",\r\nthree",5,,,"x, y"\r\n8,,5,,,\r\n'
    odd += "9,\U0001f600 six,6,1,,z\r\n"
    odd += "10,an image of a six,6,,24,\r\n11,an image of a six,6,,,\r\n"
    (tmp_path / "odd.csv").write_bytes(("\ufeff" + odd).encode())
    drawing = "--steps 3 --guidance_scale 3 --precision fp32 --save_dir"
    start = ("--model_path", home / "original")
    ok("generate_images", *start, "--prompts_path", tmp_path / "odd.csv", "--num_samples 2", drawing, tmp_path / "run")
    drawn = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "run" / "samples").glob("*.png")}
    assert set(drawn) == {f"{case}_{k}.png" for case in range(7, 12) for k in (0, 1)}
    assert drawn["10_0.png"].shape == (16, 24, 3) and not np.array_equal(drawn["11_0.png"], drawn["11_1.png"])
    again = prompts.read_csv(tmp_path / "run" / "samples" / "prompts.csv")
    assert again == prompts.read_csv(tmp_path / "odd.csv") and again[0].extra == {"note": "x, y"} and again[1].prompt == ""
    ok("generate_images", *start, "--prompt", "an image of a six", "--seed 6", drawing, tmp_path / "alone")
    pixels = np.asarray(Image.open(tmp_path / "alone" / "samples" / "0_0.png"))
    assert np.abs(pixels.astype(int) - drawn["11_0.png"]).max() <= 1  # the row's own seed, whatever stands around it
    recorded = [read_json(tmp_path / name / "args.json") for name in ("run", "alone")]
    assert [drawn_with(one) for one in recorded] == [("ddim", "per prompt"), ("ddim", "s = 3")]
    (tmp_path / "run" / "done.json").unlink()
    (tmp_path / "odd.csv").write_bytes(("\ufeff" + odd.replace(",24,", ",32,")).encode())
    start += ("--prompts_path", tmp_path / "odd.csv", "--num_samples 2", drawing, tmp_path / "run")
    assert script("generate_images", *start, "--resume") != 0 and "other values of prompts_sha" in capsys.readouterr().err


def test_columns_of_a_list_are_obeyed_or_ignored(tmp_path):
    """Mutation: let --ignore_columns keep guidance or size, or drop the seed or the class."""
    from generate_images import parse, rows_of

    (tmp_path / "list.csv").write_text("case_number,prompt,evaluation_seed,evaluation_guidance,width,height,class\n0,a,5,9,128,256,b\n")
    flags = ["--model_path", "m", "--save_dir", "s", "--prompts_path", str(tmp_path / "list.csv")]
    assert rows_of(parse(flags), {}) == [prompts.Row("0", "a", 5, 9.0, 128, 256, {"class": "b"})]
    assert rows_of(parse([*flags, "--ignore_columns"]), {}) == [prompts.Row("0", "a", 5, extra={"class": "b"})]


def test_every_image_has_a_seed_of_its_own():
    """Mutation: the second images of all rows share one."""
    from generate_images import seed_of

    rows = [prompts.Row(str(seed), "a six", seed) for seed in (5, 6)]
    assert len({seed_of(row, k) for row in rows for k in range(3)}) == 6 and [seed_of(row, 0) for row in rows] == [5, 6]


@pytest.mark.slow
def test_models_come_as_folders_and_as_single_files(home, unlearn, tmp_path, capsys):
    """Mutation: export the original's weights; let what has forgotten pass for an original where a command names the model in its run, or
    trains it on."""
    folder = unlearn("rl", "--steps 2 --single_file")
    for part in ("model.safetensors", "model"):
        with pytest.raises(cli.RunError, match="is a part of the run .*, which has forgotten: name that"):
            pipelines.open_pipeline(folder / part)
    assert script("train", "--model_path", folder, "--dataset digits --steps 1 --save_dir", tmp_path / "no") != 0
    assert "has forgotten three already: start from the original" in capsys.readouterr().err
    shutil.copyfile(folder / "model.safetensors", tmp_path / "one.safetensors")
    flags = ("--model_path", tmp_path / "one.safetensors", "--model_config", home / "original" / "model")
    ok("train", *flags, "--steps 0 --save_dir", tmp_path / "imported")
    shutil.copytree(folder / "model", tmp_path / "bare")
    ok("train", "--model_path", tmp_path / "bare", "--steps 0 --save_dir", tmp_path / "copied")
    opened = [pipelines.open_pipeline(path)[0] for path in (folder, tmp_path / "imported", tmp_path / "copied")]
    assert len({models.sha(one.model, *one.frozen) for one in opened}) == 1
    assert models.sha(opened[0].model) != models.sha(pipelines.open_pipeline(home / "original")[0].model)


@pytest.mark.slow
def test_fine_tuning_on_captions(home, tmp_path):
    """Mutation: train the text encoder, or read captions in another order; draw at the size that the config says; look for another data
    set's classes, or keep their latents, in the folder of the captions."""
    for i in range(4):
        Image.new("RGB", (16, 16), (220, 40, 40 + i)).save(tmp_path / f"{i}.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.png,red\n" for i in range(4)))
    flags = "--steps 100 --batch_size 8 --lr 3e-3 --precision fp32 --save_dir"
    ok("train", "--model_path", home / "original", "--data_dir", tmp_path, flags, tmp_path / "run")
    before, after = (pipelines.open_pipeline(path)[0] for path in (home / "original", tmp_path / "run"))
    assert models.sha(*before.frozen) == models.sha(*after.frozen)
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[2]) for row in rows[1:]]
    assert rows[0].split(",")[2] == "train" and losses[-1] < 0.9 * losses[0]
    flags = ("--data_dir", tmp_path, "--image_size 32 --steps 1 --precision fp32 --save_dir", tmp_path / "larger")
    ok("train", "--model_path", home / "original", *flags)
    ok("train", "--model_path", tmp_path / "larger", "--steps 0 --save_dir", tmp_path / "copied")
    for name in ("larger", "copied"):
        family, _ = pipelines.open_pipeline(tmp_path / name)
        assert family.image_size == 32 and family.latent_shape(family.image_size)[1] == 16
    ok("unlearn", "--method uce --forget_prompt red --target_prompt blue --model_path", tmp_path / "copied", "--save_dir", tmp_path / "uce")
    ok("generate_images", "--model_path", tmp_path / "uce", "--prompt blue --steps 2 --save_dir", tmp_path / "drawn")
    assert Image.open(next((tmp_path / "drawn" / "samples").glob("*.png"))).size == (32, 32)
    ok("unlearn", "--method uce --dataset digits --forget_class three --model_path", tmp_path / "run", "--save_dir", tmp_path / "class")
    assert read_json(tmp_path / "class" / "args.json")["concept"]["data_dir"] == "data"


@pytest.mark.slow
def test_nothing_is_written_among_own_images(home, tmp_path):
    """Breaks if latents are kept in a folder of class folders: the second command would take cache/ for a class."""
    for number, name in enumerate(("zebra", "golden retriever")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (16, 16), (90 * number, 40, 40 * i)).save(tmp_path / "photos" / name / f"{i}.png")
    before = files(tmp_path / "photos")
    flags = ("--model_path", home / "original", "--dataset folder --data_dir", tmp_path / "photos", "--forget_class")
    ok("generate_mask", *flags, "golden retriever", "--save_dir", tmp_path / "mask")
    ok("unlearn", *flags, "golden retriever", "--method rl --steps 1 --cache_dir", tmp_path / "kept", "--save_dir", tmp_path / "rl")
    assert files(tmp_path / "photos") == before and len(list((tmp_path / "kept").glob("*/cache/*.safetensors"))) == 1


def parse_command(argv):
    """Parse 'python NAME.py FLAGS...' with the script's own parser, which exits on a mistake."""
    importlib.import_module(argv[1].removesuffix(".py")).parse(argv[2:])


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.name != "common.sh"))
def test_commands_of_the_shell_scripts_parse(name, tmp_path, monkeypatch):
    """Mutation: misspell a flag in any script; look for NudeNet after everything is drawn."""
    monkeypatch.chdir(ROOT)
    recorder = tmp_path / "bin" / "python"
    recorder.parent.mkdir()
    recorder.write_text(f'#!/bin/bash\nprintf "%q " python "$@" >> {tmp_path}/commands\nprintf "\\n" >> {tmp_path}/commands\n')
    recorder.chmod(0o755)
    changes = {
        "PATH": f"{recorder.parent}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "SEEDS": "1 2",
        "CLASS": "dog" if name == "object.sh" else "gas pump",
    }
    changes |= {"METHODS": "ga rl esd fmn salun salun_soft uce ca"}
    changes |= {"CLASSES": "church garbage_truck"} if name == "imagenette_table.sh" else {}
    subprocess.run(["bash", str(ROOT / "scripts" / name)], env=os.environ | changes, check=True, capture_output=True)
    commands = [shlex.split(line) for line in (tmp_path / "commands").read_text().splitlines()]
    assert commands
    for argv in commands:
        if argv[1] not in ("-", "-c", "scripts/further_flags.py"):
            parse_command(argv)
    if name == "nudity.sh":
        recorder.write_text("exit 1\n")  # as `python -c "import nudenet"` ends without it
        done = subprocess.run(["bash", str(ROOT / "scripts" / name)], env=os.environ | changes, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: NudeNet is not installed") and done.stderr.count("\n") == 1
    if name in ("quickstart.sh", "digits_table.sh", "imagenette_class.sh"):
        assert {argv[argv.index("--forget_class") + 1] for argv in commands if "--forget_class" in argv} == {"gas pump"}


def dry_run(name, here, *flags, **variables):
    """The commands of a shell script, started from the folder `here`: [[script.py, word, ...], ...]."""
    environment = os.environ | variables | {"DRY_RUN": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "scripts" / name), *flags]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    return [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("python ")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["esd", "imagenette_class", "object"])
def test_scripts_shrink_and_save_memory(name, tmp_path):
    """Breaks if a script hands --gradient_checkpointing or a number to a command that refuses it, or keeps it from one that takes it."""
    sizes = dict(
        STEPS="2", SAMPLING_STEPS="3", NUM_SAMPLES="1", NUM_IMAGES="4", METHODS="fmn salun uce ca", MEMORY="--gradient_checkpointing"
    )
    (tmp_path / "my model").mkdir()
    flags = [] if name == "esd" else ["--features", "none"]
    commands = dry_run(f"{name}.sh", tmp_path, *flags, MODEL="my model", **sizes)
    for argv in commands:
        assert argv[0] in ("table.py", "draw_pictures.py") or importlib.import_module(argv[0].removesuffix(".py")).parse(argv[1:])
        method = argv[2] if argv[0] == "unlearn.py" else ""
        assert ("--gradient_checkpointing" in argv) == (argv[0] in ("generate_mask.py", "unlearn.py") and method not in ("fmn", "uce"))
        steps = {"unlearn.py": "2", "generate_images.py": "3"}.get(argv[0] if method != "uce" else "")
        assert steps is None or argv[-argv[::-1].index("--steps")] == steps
        assert "--model_path" not in argv or argv[argv.index("--model_path") + 1].startswith((f"{tmp_path}/my model", "runs/"))


def test_commands_of_the_readme_parse(monkeypatch):
    """Mutation: misspell a flag in the README."""
    monkeypatch.chdir(ROOT)
    lines, inside = [], False
    for line in (ROOT / "README.md").read_text().replace("\\\n", " ").splitlines():
        inside = inside != line.startswith("```")
        if inside and line.split("#")[0].strip().startswith("python "):
            lines.append(line.split("#")[0])
    assert len(lines) >= 5
    for line in lines:
        expanded = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
        parse_command(expanded.split("\n")[:-1])


def test_tables_in_the_readme_are_those_that_were_measured():
    """Mutation: edit a number in the README by hand."""
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"<!-- (results/\S+) -->", text)
    assert names
    for name in names:
        shown = text.split(f"<!-- {name} -->\n", 1)[1].split("<!-- end -->", 1)[0]
        assert shown == (ROOT / name).read_text()


OVERWRITTEN = {  # a script and the runs it reads, in the places of which it must not write
    "train": ("train --dataset digits --model_path {run}", "original"),
    "train, its pipeline": ("train --dataset digits --model_path {run}/model", "original"),
    "generate_mask": ("generate_mask --forget_class 3 --model_path {run}", "original"),
    "unlearn": ("unlearn --method rl --forget_class 3 --model_path {run}", "original"),
    "unlearn, mask": ("unlearn --forget_class 3 --model_path {home}/original --mask_path {run}", "mask"),
    "generate_images": ("generate_images --model_path {run}", "original"),
    "generate_images, two models": ("generate_images --model_path {run} {home}/original --save_dir {tmp}/new", "original"),
    "evaluate": ("evaluate --forget_class 3 --classifier {run} --sample_path {tmp}/none", "classifier"),
    "evaluate, samples": ("evaluate --forget_class 3 --classifier {home}/classifier --sample_path {run}", "original"),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_a_run_is_not_written_over_what_it_reads(name, home, tmp_path, capsys, monkeypatch):
    """Breaks if check_apart compares the paths as they are spelled, or only --model_path, or only equal folders."""
    command, source = OVERWRITTEN[name]
    shutil.copytree(home / source, tmp_path / "runs" / source)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    run_folder = tmp_path / "runs" / source
    command = command.format(home=home, tmp=tmp_path, run=run_folder).split()
    command += ["--save_dir"] * ("--save_dir" not in command)
    inside = () if run_folder / "model" in map(Path, command) else (run_folder / "new",)
    for save_dir in (run_folder, f"../runs/{source}/../{source}", tmp_path / "link" / source, *inside):
        for flags in ((), ("--overwrite",)):
            assert script(*command, save_dir, *flags) != 0
            errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
            assert len(errors) == 1 and "overlaps with --" in errors[0]
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


def test_a_run_does_not_hold_what_it_reads(home, tmp_path, capsys):
    """Breaks if only a --save_dir inside the original is refused: --overwrite deletes samples/ of the run that holds it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    shutil.copytree(home / "original", tmp_path / "run" / "samples")
    command = ("generate_mask", "--forget_class", FORGOTTEN)
    assert script(*command, "--model_path", tmp_path / "run" / "samples", "--save_dir", tmp_path / "run", "--overwrite") != 0
    assert "overlaps with --model_path" in capsys.readouterr().err and (tmp_path / "run" / "samples" / "done.json").is_file()
