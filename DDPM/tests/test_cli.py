"""The scripts from the outside: wrong input, kills, several processes, written commands. Each test names a mutation that breaks it."""

import dataclasses
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
from diffusers import UNet2DModel
from PIL import Image

import data
import draw_pictures
import evaluate
import methods
import metrics
import models
import sampling
import trainer
from cli import RunError
from conftest import ROOT
from files import file_sha, read_json, read_tensors, write_json, write_tensors
from helpers import FORGOTTEN, TINY, Payload, cpu, ok, script, words

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_WAIT_POLICY": "PASSIVE"}


def unlearn_command(home, folder, *more, method="salun"):
    mask = ("--mask_path", home / "mask") if method in methods.NEEDS_MASK else ()
    start = ("unlearn --method", method, "--model_path", home / "original", "--forget_class", FORGOTTEN, *mask)
    return words(*start, "--batch_size 16 --precision fp32 --steps 4 --save_dir", folder, *more)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------------------------------------- wrong input
def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_args(**changes):
    def change(path):
        args = json.loads(path.read_text())
        args["architecture"] |= changes
        path.write_text(json.dumps(args))

    return change


def nan_weights(path):
    tensors, _ = read_tensors(path)
    tensors["conv_in.bias"][0] = float("nan")
    write_tensors(path, tensors)


def pickle_over(path):
    torch.save({"weight": torch.zeros(2)}, path)


RL = "--method rl --forget_class 3"
WRONG = {  # name: (flags of unlearn.py, part of the message)
    "unknown method": ("--method magic --forget_class 3", "invalid choice: 'magic'"),
    "unknown flag": (f"{RL} --stepz 3", "unrecognized arguments"),
    "salun without a mask": ("--forget_class 3", "needs --mask_path"),
    "retrain with a mask": ("--method retrain --forget_class 3 --mask_path {home}/mask", "takes no --mask_path"),
    "a flag the method does not read": ("--method ga --forget_class 3 --alpha 1", "does not read --alpha"),
    "a forget batch that none reads": ("--method retrain --forget_class 3 --forget_batch_size 7", "does not read --forget_batch_size"),
    "a target for a method without one": ("--method esd --forget_class 3 --target_class 1", "does not read --target_class"),
    "nothing to forget": ("--method rl", "--forget_class"),
    "a class the model never knew": ("--method rl --forget_class 10", "there is no class 10"),
    "all classes": ("--method rl --forget_class 0 1 2 3 4 5 6 7 8 9", "at least one must be retained"),
    "a target that is forgotten": (f"{RL} 4 --target_class 4", "is forgotten itself"),
    "a target that does not exist": (f"{RL} --target_class cat", "there is no class cat"),
    "resume and overwrite": (f"{RL} --resume --overwrite", "contradict"),
    "negative learning rate": (f"{RL} --lr -1", "must be a positive number"),
    "missing model": (f"{RL} --model_path {{tmp}}/none", "does not exist"),
    "a folder that is no run": (f"{RL} --model_path {{home}}/data", "is not a run folder"),
    "a mask as a model": (f"{RL} --model_path {{home}}/mask", "is a run of kind mask"),
    "a classifier as a model": (f"{RL} --model_path {{home}}/classifier", "is a run of kind classifier"),
    "mask of another class": ("--forget_class 4 --mask_path {home}/mask", "another forget set"),
    "missing mask": ("--forget_class 3 --mask_path {tmp}/none", "does not exist"),
    "a model as a mask": ("--forget_class 3 --mask_path {home}/original/model.safetensors", "is not a mask"),
    "the release's alpha": (f"{RL} --alpha 1e-3", "write --sum_alpha 0.001"),
    "alpha in two ways": (f"{RL} --alpha 1 --sum_alpha 1e-3", "--alpha and --sum_alpha set the same weight"),
    "a fixed and an adaptive weight": (
        "--method erasediff --forget_class 3 --forget_weight 1 --erase_rate 1",
        "--forget_weight and --erase_rate set the same weight",
    ),
    "dropout of a method without a target": ("--method sa --forget_class 3 --target_dropout 0.1", "does not read --target_dropout"),
    "a mask of the averaged weights": ("--forget_class 3 --mask_path {home}/mask --weights last", "from another model"),
    "weights that no run has": (f"{RL} --weights best", "invalid choice: 'best'"),
    "a loss that explodes": ("--method ga --forget_class 3 --lr 1e30 --steps 40", "lower --lr"),
    "no CUDA": (f"{RL} --device cuda", "no CUDA device"),
}
BROKEN = {  # name: (run to copy, its file to break, how, part of the message)
    "unfinished model": ("original", "done.json", Path.unlink, "did not finish"),
    "truncated weights": ("original", "model.safetensors", truncate, "an incomplete or damaged safetensors file"),
    "pickled weights": ("original", "model.safetensors", pickle_over, "is a pickle"),
    "weights with NaN": ("original", "model.safetensors", nan_weights, "NaN or infinite values in conv_in.bias"),
    "another image size": ("original", "args.json", change_args(image_size=16), "another image size"),
    "another class count": ("original", "args.json", change_args(num_classes=7), "other classes"),
    "weights of another U-Net": ("original", "args.json", change_args(arch="unet32"), "belongs to another model"),
    "torn args.json": ("original", "args.json", truncate, "incomplete or damaged JSON"),
    "truncated mask": ("mask", "mask.safetensors", truncate, "an incomplete or damaged safetensors file"),
}


def refuse(home, tmp_path, capsys, flags, message):
    """Run unlearn.py and expect one sentence, a non-zero status and no result."""
    model = [] if "--model_path" in flags else ["--model_path", home / "original"]
    status = script("unlearn", "--precision fp32", *model, "--save_dir", tmp_path / "run", *flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert status != 0 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run" / "model.safetensors").exists() and not (tmp_path / "run" / "done.json").exists()


def test_the_tests_see_no_gpu():
    """Breaks if conftest.py hides the GPUs after torch was imported, or not at all."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_one_sentence_and_writes_nothing(name, home, tmp_path, capsys):
    """Mutation: drop any one check."""
    flags, message = WRONG[name]
    refuse(home, tmp_path, capsys, flags.format(home=home, tmp=tmp_path).split(), message)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_one_sentence(name, home, tmp_path, capsys):
    """Mutation: strict=False, or torch.load."""
    source, file, break_it, message = BROKEN[name]
    shutil.copytree(home / source, tmp_path / source)
    break_it(tmp_path / source / file)
    which = ["--mask_path", tmp_path / source] if source == "mask" else ["--method", "rl", "--model_path", tmp_path / source]
    refuse(home, tmp_path, capsys, [*which, "--forget_class", FORGOTTEN], message)


OTHERS = {  # name: (command, part of the message)
    "unknown U-Net": ("train --dataset digits --arch unet7 --save_dir {tmp}/run", "invalid choice"),
    "unknown data": ("train --dataset mnist --save_dir {tmp}/run", "invalid choice"),
    "retain only what": ("train --dataset digits --retain_only --save_dir {tmp}/run", "belong together"),
    "forget without retrain": ("train --dataset digits --forget_class 3 --save_dir {tmp}/run", "belong together"),
    "retrain that has seen it": (
        "train --dataset digits --retain_only --forget_class 3 --model_path {home}/original --save_dir {tmp}/run",
        "trains from random weights",
    ),
    "the last weights by their file": (
        "unlearn --method rl --forget_class 3 --model_path {home}/original/last.safetensors --save_dir {tmp}/run",
        "is not model.safetensors, which --weights ema takes",
    ),
    "samples of the last weights by their file": (
        "sample --model_path {home}/original/last.safetensors --save_dir {tmp}/run",
        "is not model.safetensors, which --weights ema takes",
    ),
    "steps from half the noise": ("sample --model_path {home}/original --steps 501 --save_dir {tmp}/run", "would begin at timestep 500"),
    "size of a fixed data set": ("train --dataset digits --image_size 16 --save_dir {tmp}/run", "--image_size is for"),
    "a U-Net too deep": ("train --dataset digits --arch unet128_deep --data_dir {home}/data --save_dir {tmp}/run", "do not allow"),
    "no data": ("train --dataset folder --data_dir {tmp}/none --save_dir {tmp}/run", "is not a folder"),
    "random mask without a seed": (
        "generate_mask --model_path {home}/original --forget_class 3 --mask_kind random --save_dir {tmp}/run",
        "random needs --seed",
    ),
    "mask without a pass": ("generate_mask --model_path {home}/original --forget_class 3 --epochs 0 --save_dir {tmp}/run", "at least 1"),
    "guidance below 0": ("sample --model_path {home}/original --cond_scale -1 --save_dir {tmp}/run", "a number of at least 0"),
    "too many steps": ("sample --model_path {home}/original --steps 1001 --save_dir {tmp}/run", "more than the 1000 steps"),
    "samples of no class": ("sample --model_path {home}/original --classes x12 --save_dir {tmp}/run", "there is no class 12"),
    "numbers without classes": (
        "sample --model_path {home}/original --num_per_class 1 2 --save_dir {tmp}/run",
        "one number, or one for each",
    ),
    "two models, one folder": ("sample --model_path {home}/original {home}/original --save_dir {tmp}/run", "need as many --save_dir"),
    "samples of a classifier": ("sample --model_path {home}/classifier --save_dir {tmp}/run", "run of kind classifier"),
    "the release's training": ("train --config cifar10_train.yml --mode train", "write python train.py --dataset cifar10"),
    "the release's unlearning": (
        "train --config=x.yml --label_to_forget 0 --mode=saliency_unlearn --alpha 1e-3 --method rl",
        "write python unlearn.py --method salun",
    ),
    "the release's sampling": (
        "sample --config x.yml --mode sample_classes --n_samples_per_class 500",
        "write python sample.py --model_path",
    ),
    "more noise than ddpm's": ("sample --model_path {home}/original --eta 1.01 --save_dir {tmp}/run", "at most 1"),
    "relearning what was never forgotten": ("relearn --model_path {home}/original --save_dir {tmp}/run", "has forgotten nothing"),
    "eta for ddpm": ("sample --model_path {home}/original --sampler ddpm --eta 1 --save_dir {tmp}/run", "--eta is for"),
    "weights for the small net": (
        "train_classifier --dataset digits --arch cnn --pretrained imagenet --save_dir {tmp}/run",
        "no weights for cnn",
    ),
    "missing weights": (
        "train_classifier --dataset digits --pretrained {tmp}/none --data_dir {home}/data --save_dir {tmp}/run",
        "does not exist",
    ),
    "other weights": (
        "train_classifier --dataset digits --pretrained {home}/original/model.safetensors --data_dir {home}/data --save_dir {tmp}/run",
        "belongs to another model: it lacks",
    ),
    "missing samples": ("evaluate --sample_path {tmp}/none --classifier {home}/classifier", "does not exist"),
    "a model as samples": ("evaluate --sample_path {home}/original --classifier {home}/classifier", "where one of kind samples is needed"),
    "a model as a classifier": (
        "evaluate --sample_path {home}/original --classifier {home}/original",
        "where one of kind classifier is needed",
    ),
    "no Inception file": (
        "evaluate --sample_path {home}/original --classifier {home}/classifier --inception_weights {tmp}/none",
        "does not exist",
    ),
    "Inception and classifier": (
        "evaluate --sample_path {home}/original --classifier {home}/classifier --inception_weights {home} --features classifier",
        "contradicts",
    ),
    "a folder without runs": ("table {tmp}", "no measured runs"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_wrong_input_of_the_other_scripts(name, home, tmp_path, capsys):
    """Mutation: drop any one check."""
    command, message = OTHERS[name]
    assert script(*command.format(home=home, tmp=tmp_path).split()) != 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0] and not (tmp_path / "run" / "done.json").exists()


@pytest.fixture(scope="module")
def samples(home):
    ok("sample", "--model_path", home / "original", "--num_per_class 3 --steps 5 --batch_size 30 --save_dir", home / "samples")
    return home / "samples"


def without(folder, pattern):
    """Samples of which none matching `pattern` was ever drawn."""
    for path in folder.glob(pattern):
        path.unlink()
    write_json(folder.parent / "done.json", {"images": len(list(folder.glob("*.png")))})


BAD_SAMPLES = {  # name: (what happens to the folder, flags, part of the message)
    "empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], ["--forget_class", 3], "holds no samples"),
    "mixed sizes": (
        lambda folder: Image.new("L", (9, 8)).save(folder / "3_00007.png"),
        ["--forget_class", 3],
        "where the model draws (8, 8, 1)",
    ),
    "a colour picture": (lambda folder: Image.new("RGB", (8, 8)).save(folder / "3_00007.png"), ["--forget_class", 3], "(8, 8, 3)"),
    "a torn picture": (lambda folder: truncate(folder / "4_00000.png"), ["--forget_class", 3], "4_00000.png cannot be read"),
    "none of the class": (lambda folder: without(folder, "3_*"), ["--forget_class", 3], "none of the forgotten"),
    "the class alone": (lambda folder: without(folder, "[!3]_*"), ["--forget_class", 3], "only the forgotten"),
    "a picture missing": (lambda folder: (folder / "4_00000.png").unlink(), ["--forget_class", 3], "29 samples where sample.py drew 30"),
    "a picture too many": (
        lambda folder: shutil.copy(folder / "4_00000.png", folder / "4_00009.png"),
        ["--forget_class", 3],
        "31 samples where",
    ),
    "an original without a class": (lambda folder: None, [], "say with --forget_class"),
    "a class out of range": (lambda folder: None, ["--forget_class", 99], "there is no class 99"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_samples_end_in_one_sentence(name, home, samples, tmp_path, capsys):
    """Mutation: skip what does not fit."""
    break_it, flags, message = BAD_SAMPLES[name]
    shutil.copytree(samples, tmp_path / "run")
    break_it(tmp_path / "run" / "samples")
    command = ("evaluate", "--sample_path", tmp_path / "run", "--features classifier --classifier", home / "classifier", *flags)
    assert script(*command) != 0 and message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_class_the_model_did_not_forget_is_refused(home, unlearn, tmp_path, capsys):
    """Mutation: trust --forget_class."""
    model = unlearn("rl", "--steps 1")
    ok("sample", "--model_path", model, "--num_per_class 3 --steps 2 --save_dir", tmp_path / "s")
    command = ("evaluate", "--sample_path", tmp_path / "s", "--features classifier --classifier", home / "classifier")
    assert script(*command, "--forget_class 4") != 0 and "forgot class [3], not --forget_class 4" in capsys.readouterr().err
    assert script("unlearn", "--method rl --forget_class 4 --model_path", model, "--save_dir", tmp_path / "twice") != 0
    assert "forget everything together" in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_of_another_size_or_class_are_refused(home, samples, tmp_path, capsys):
    """Mutation: let a classifier see images of another size than it was trained on; leave numbers of another class to --resume."""
    for source in (samples, home / "classifier"):
        shutil.copytree(source, tmp_path / source.name)
    args = tmp_path / "classifier" / "args.json"
    write_json(args, read_json(args) | {"trained_on": {"image_size": 16}})
    command = ("evaluate", "--sample_path", tmp_path / samples.name, "--features classifier --classifier")
    assert script(*command, tmp_path / "classifier", "--forget_class 3") != 0
    assert "was trained on images of 16 px, the model draws 8" in capsys.readouterr().err
    ok(*command, home / "classifier", "--forget_class 3")
    ok(*command, home / "classifier", "--forget_class 3 --resume")
    assert script(*command, home / "classifier", "--forget_class 5 --resume") != 0
    assert "was measured with other values of forgotten" in capsys.readouterr().err


def test_an_existing_run_is_never_lost(home, tmp_path, capsys):
    """Mutation: delete the old run in RunFolder.__init__; take a finished run of a replaced original for one of the new."""
    folder = tmp_path / "run"
    ok(*unlearn_command(home, folder))
    before = files(folder)
    assert script(*unlearn_command(home, folder)) != 0 and "already holds a run" in capsys.readouterr().err
    assert script(*unlearn_command(home, folder, "--overwrite", "--lr", "-3")) != 0
    assert script(*unlearn_command(home, folder, "--overwrite", "--mask_path", tmp_path)) != 0
    assert files(folder) == before
    assert script(*unlearn_command(home, folder, "--resume", "--seed", 5)) != 0 and "other values of seed" in capsys.readouterr().err
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
    ok(*unlearn_command(home, folder, "--overwrite", "--seed", 5))
    assert files(folder)["model.safetensors"] != before["model.safetensors"]


# ------------------------------------------------------------------------------------------------- kills and processes
def interrupted(argv, folder, ready, fresh=False):
    """Start a script that keeps a checkpoint after every step, and kill -9 it once ready(folder) is true.

    fresh: in a new process, as a user would. Else in a fork of this one, which has imported everything already.
    """
    (name, *flags), said = map(str, argv), folder.with_suffix(".stderr")
    if fresh:
        code = f"import helpers, trainer, cli, {name}; trainer.CHECKPOINT_SECONDS = -1; trainer.LOG_STEPS = 1; cli.run({name}.main)"
        to_file = [(os.POSIX_SPAWN_OPEN, 2, said, os.O_WRONLY | os.O_CREAT, 0o600)]
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code, *flags], ENVIRONMENT, file_actions=to_file)
    elif not (pid := os.fork()):
        try:
            sys.stdout = sys.stderr = said.open("w", buffering=1)
            trainer.CHECKPOINT_SECONDS, trainer.LOG_STEPS = -1, 1
            script(name, *flags)
        finally:
            os._exit(0)
    deadline, ended, status = time.monotonic() + 120, 0, 0
    while not ended and time.monotonic() < deadline and not ready(folder):
        time.sleep(0.002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, said.read_text()


def past(step):
    def ready(folder):
        log = folder / "log.csv"
        return log.is_file() and (folder / "checkpoint.safetensors").is_file() and log.read_text().count("\n") > step

    return ready


@pytest.mark.slow
def test_training_resumes_to_the_same_bytes_after_a_kill(home, tmp_path):
    """Mutation: do not restore the optimizer, the EMA, or the step."""

    def command(folder, *more):
        return words("train", TINY, "--steps 30 --optimizer adamw --save_every 10 --data_dir", home / "data", "--save_dir", folder, *more)

    ok(*command(tmp_path / "whole"))
    interrupted(command(tmp_path / "cut"), tmp_path / "cut", past(12), fresh=True)
    state = json.loads(read_tensors(tmp_path / "cut" / "checkpoint.safetensors")[1]["state"])
    assert 0 < state["step"] < 30 and not (tmp_path / "cut" / "done.json").exists()
    ok(*command(tmp_path / "cut", "--resume"))
    whole, cut = files(tmp_path / "whole"), files(tmp_path / "cut")
    assert set(whole) == set(cut) and {"samples/step_000010.png", "samples/step_000030.png"} < set(cut)
    assert all(whole[name] == cut[name] for name in whole if name.startswith(("model", "samples")))
    assert json.loads(cut["done.json"])["images_seen"] == json.loads(whole["done.json"])["images_seen"] == 30 * 32


@pytest.mark.slow
@pytest.mark.parametrize("method", ["salun", "salun_soft", "sa", "sfron"])
def test_unlearning_resumes_to_the_same_bytes_after_a_kill(method, home, tmp_path):
    """Mutation: theta_o from the checkpoint; average the weights after every update, of which sfron makes two in a step."""
    extra = {"sa": "--replay 2 --replay_steps 9 --fisher_timesteps 4 --ewc 1e-4", "sfron": "--ema 0.9 --batch_size 100"}

    def command(folder, *more):
        return unlearn_command(home, folder, "--steps 20", extra.get(method, ""), *more, method=method)

    ok(*command(tmp_path / "whole"))
    interrupted(command(tmp_path / "cut"), tmp_path / "cut", past(5))
    assert script(*command(tmp_path / "cut", "--lr", 0.5, "--resume")) != 0  # another flag than before is refused
    ok(*command(tmp_path / "cut", "--resume"))
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_sampling_goes_on_after_a_kill(home, tmp_path):
    """Mutation: write PNGs under their final names piece by piece."""

    def command(folder, *more):
        flags = "--num_per_class 20 --steps 10 --batch_size 5 --sampler ddpm --save_dir"
        return words("sample --model_path", home / "original", flags, folder, *more)

    ok(*command(tmp_path / "whole"))
    interrupted(command(tmp_path / "cut"), tmp_path / "cut", lambda folder: len(list(folder.glob("samples/*.png"))) > 20)
    assert len(list((tmp_path / "cut" / "samples").glob("*.png"))) < 200
    ok(*command(tmp_path / "cut", "--resume"))
    whole, cut = files(tmp_path / "whole" / "samples"), files(tmp_path / "cut" / "samples")
    assert set(whole) == {name for name in cut if not name.startswith(".")}
    pixels = [np.asarray(Image.open(tmp_path / which / "samples" / "7_00011.png")) for which in ("whole", "cut")]
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() <= 1


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(home, tmp_path, monkeypatch):
    """Training, mask, methods with one and with several gradients per step, generated samples and Fisher, samples and their evaluation.

    Mutation: batch.mean without its weight, or no average_gradients.
    """
    monkeypatch.setattr(trainer, "LOG_STEPS", 2)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1)
    results, single = {}, tmp_path / "1"
    for count in (1, 2):
        base = tmp_path / str(count)
        start = f"--model_path {single}/original --forget_class 3 --precision fp32"
        commands = [
            "train --dataset digits --arch tiny --steps 6 --batch_size 13 --lr 1e-3 --precision fp32 "
            f"--data_dir {home}/data --save_dir {base}/original",
            f"generate_mask {start} --save_dir {base}/mask",
            f"unlearn --method salun {start} --mask_path {single}/mask --steps 4 --batch_size 13 --lr 1e-3 --save_dir {base}/salun",
            f"unlearn --method erasediff {start} --steps 3 --batch_size 8 --lr 1e-3 --erase_rate 0.5 --save_dir {base}/erasediff",
            f"unlearn --method sfron {start} --steps 2 --batch_size 100 --lr 1e-3 --save_dir {base}/sfron",
            f"unlearn --method sa {start} --steps 2 --batch_size 8 --replay 2 --replay_steps 9 --fisher_timesteps 3 --save_dir {base}/sa",
            f"sample --model_path {single}/original --num_per_class 3 --steps 4 --batch_size 7 --precision fp32 --save_dir {base}/samples",
            f"evaluate --sample_path {base}/samples --classifier {home}/classifier --features classifier --forget_class 3",
        ]
        for command in commands if count == 1 else ():
            ok(*command.split(), "--device cpu")
        if count == 2:
            together(commands, tmp_path)
        names = ("original", "salun", "erasediff", "sfron", "sa")
        results[count] = {name: read_tensors(base / name / "model.safetensors")[0] for name in names}
        results[count]["mask"] = read_tensors(base / "mask" / "mask.safetensors")[0]
        assert json.loads((base / "salun" / "args.json").read_text())["processes"] == count
    origin = read_tensors(single / "original" / "model.safetensors")[0]
    for name in names:
        for key, one in results[1][name].items():
            torch.testing.assert_close(results[2][name][key], one, rtol=1e-3, atol=5e-5)
    assert max((results[1]["salun"][key] - origin[key]).abs().max().item() for key in origin) > 1e-3  # far more than the tolerance
    differing = sum(int(np.unpackbits(one.numpy() ^ results[2]["mask"][key].numpy()).sum()) for key, one in results[1]["mask"].items())
    assert differing < 2e-3 * sum(one.numel() * 8 for one in results[1]["mask"].values())
    for path in (single / "samples" / "samples").iterdir():
        other = tmp_path / "2" / "samples" / "samples" / path.name
        assert np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(other))).max() <= 1
    numbers = [json.loads((tmp_path / str(count) / "samples" / "metrics.json").read_text()) for count in (1, 2)]
    assert numbers[0]["feature_distance"] == pytest.approx(numbers[1]["feature_distance"], rel=0.02)


def together(commands, folder):
    """Run several scripts one after another in two processes, started once: importing takes longer than the runs do."""
    program = folder / "commands.py"
    lines = ["import sys", f"sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}", "import accelerate, helpers, os, trainer"]
    clocks = "-1 if os.environ.get('RANK', '0') == '0' else 1e9"  # of processes differ: no exchange may depend on them
    lines += ["trainer.LOG_STEPS = 2", f"trainer.CHECKPOINT_SECONDS = {clocks}"]
    for command in commands:
        lines.append(f"helpers.ok(*{command.split() + ['--device', 'cpu']!r})")
        lines.append("accelerate.PartialState().wait_for_everyone()")  # as the end of a process would
    program.write_text("\n".join(lines) + "\n")
    two = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]  # without GPUs: on the CPU, over gloo
    done = subprocess.run([sys.executable, *two, str(program)], env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------- the whole, and words
@pytest.mark.slow
def test_from_training_to_the_table(home, samples, unlearn, tmp_path, capsys):
    """Mutation: gap to the original in place of retrain; refuse a table whose original has more samples of the forgotten class; record
    the flags as settings; do not tell samples of the last weights from others.
    """
    runs = {
        "retrain": unlearn("retrain", "--steps 20"),
        "salun": unlearn("salun", "--steps 5 --save_every 2"),
        "ga": unlearn("ga", "--steps 2"),
    }
    settings = {name: json.loads((folder / "args.json").read_text())["settings"] for name, folder in runs.items()}
    as_trained = {
        "steps": 20,
        "lr": 3e-3,
        "schedule": "linear",
        "ema": 0.9,
        "optimizer": "adam",
        "batch_size": 32,
        "forget_batch_size": None,
    }
    assert as_trained.items() <= settings["retrain"].items() and settings["ga"]["ema"] == 0 and settings["ga"]["lr"] == 1e-6
    assert Image.open(runs["salun"] / "fading.gif").n_frames == 3
    assert sorted(path.name for path in (runs["salun"] / "samples").iterdir()) == [f"step_{step:06d}.png" for step in (0, 2, 4)]
    drawn = [tmp_path / "runs" / name for name in runs]
    classes = ("--classes", FORGOTTEN, f"x{FORGOTTEN} --num_per_class 2 3")  # fewer of the forgotten than of the original's shared samples
    ok("sample", "--model_path", *runs.values(), *classes, "--weights last --steps 5 --batch_size 30 --save_dir", *drawn)
    measure = ("evaluate", "--features classifier --num_reference 300 --classifier", home / "classifier", "--sample_path")
    ok(*measure, *drawn)
    ok(*measure, samples, "--forget_class", FORGOTTEN, "--save_dir", tmp_path / "runs" / "original")
    assert not (samples / "metrics.json").exists()
    assert script(*measure, *drawn) != 0  # numbers that are there are not replaced
    assert "metrics.json already" in capsys.readouterr().err
    ok("table", tmp_path / "runs")
    assert "Better: high." in capsys.readouterr().out
    ok("draw_pictures", tmp_path / "runs")
    table = json.loads((tmp_path / "runs" / "table.json").read_text())
    assert table["columns"] == ["UA", "forget_entropy", "forget_probability", "remaining_accuracy", "feature_distance", "RTE"]
    rows = {row["method"]: row for row in table["rows"]}
    assert list(rows) == ["original", "retrain", "ga", "salun"]
    measured = {name: json.loads((tmp_path / "runs" / name / "metrics.json").read_text()) for name in runs}
    assert measured["salun"]["reference_images"] == 300 and measured["salun"]["options"]["weights"] == "last"
    gaps = [abs(measured["salun"][name] - measured["retrain"][name]) for name in ("UA", "remaining_accuracy")]
    assert rows["salun"]["UA"] == pytest.approx({"mean": measured["salun"]["UA"], "sd": 0.0, "gap": gaps[0]})
    assert rows["salun"]["average_gap"] == pytest.approx(np.mean(gaps)) and rows["retrain"]["average_gap"] == 0
    done = json.loads((runs["salun"] / "done.json").read_text())
    assert measured["salun"]["RTE"] == pytest.approx((done["seconds"] + done["mask_seconds"]) / 60) and done["mask_seconds"] > 0
    text = (tmp_path / "runs" / "table.md").read_text()
    assert "| salun | 1 |" in text and "collateral damage" in text and "FID" not in text.replace("not a FID", "").replace("as in FID", "")
    for name in ("table.png", "methods.png", "before_after_salun.png", "before_after_retrain.png"):
        assert min(Image.open(tmp_path / "runs" / name).size) > 100


def test_before_and_after_shows_what_is_in_the_files(samples, tmp_path):
    """Mutation: swap the strips; shift the labels."""
    after = tmp_path / "after"
    shutil.copytree(samples / "samples", after)
    for path in after.glob("3_*.png"):
        Image.new("L", (8, 8), 255).save(path)
    names = [str(digit) for digit in range(10)]
    draw_pictures.before_after(tmp_path / "p.png", samples / "samples", after, names, [3], "salun", columns=3, size=32)
    found = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
    strip, margin, head = 34, 92, 22
    top = head + 3 * (2 * strip + 10)
    above, below = found[top : top + 32, margin : margin + 32], found[top + strip : top + strip + 32, margin : margin + 32]
    first = np.asarray(Image.open(samples / "samples" / "3_00000.png")).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(above[:31], first[:31]) and (below == 255).all()  # the frame begins on the last row
    frame = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)[top + strip : top + 2 * strip, margin - 3 : margin - 1]
    assert (frame[..., 0] - frame[..., 1] > 100).all()


def test_pictures_are_those_beside_the_numbers(tmp_path):
    """Mutation: follow sample_path wherever it leads: another run may have been drawn there since."""
    here, there = (tmp_path / name / "samples" for name in ("here", "there"))
    for folder in (here, there):
        folder.mkdir(parents=True)
    run = {"path": str(here.parent), "sample_path": str(there.parent)}
    assert draw_pictures.samples_of(run) == here
    here.rmdir()
    assert draw_pictures.samples_of(run) == there


@pytest.mark.slow
def test_commands_of_several_folders_find_the_data(home, tmp_path, monkeypatch):
    """Mutation: look for --data_dir from where the last command was started."""
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    monkeypatch.chdir(first)
    ok("train", TINY, "--steps 2 --data_dir data --save_dir original")
    monkeypatch.chdir(second)
    ok("unlearn", "--method ga --steps 1 --forget_class 3 --model_path ../a/original --save_dir ga")
    ok("sample", "--model_path ../a/original ga --num_per_class 3 --steps 2 --save_dir original s")
    ok("evaluate", "--sample_path original s --forget_class 3 --features classifier --classifier", home / "classifier")
    ok("relearn", "--model_path ga --num_images 2 --steps 1 --save_dir relearned")
    assert not (second / "data").exists()


def test_other_images_at_the_same_positions_are_another_reference(home, samples, tmp_path):
    """Mutation: cache the features of the reference images under their positions alone."""
    flags = words("--features classifier --forget_class 3 --classifier", home / "classifier", "--sample_path", samples)
    accelerator, args = cpu(), evaluate.parse([str(word) for word in flags])
    [(folder, recorded, images)] = evaluate.load_samples(args.sample_path, None, accelerator)
    classifier, its = evaluate.load_classifier(args.classifier, accelerator)
    known = {"classifier": classifier, "classifier_args": its, "extractor": metrics.register_features(classifier), "args": args}
    found = []
    for x, cache in ((images.x_train, "a"), (255 - images.x_train, "a"), (255 - images.x_train, "b")):
        these = dataclasses.replace(images, x_train=x)
        found.append(evaluate.measure_samples(folder, recorded, these, accelerator=accelerator, cache=tmp_path / cache, **known))
    distances = [measured["feature_distance"] for measured in found]
    assert distances[0] != distances[1] == distances[2]


def change_json(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


OTHER_DIFFUSERS = {  # name: (file to change, changes, part of the message)
    "heads": ("unet/config.json", {"attention_head_dim": 8}, "attention_head_dim is 8, where this --arch has None"),
    "embedding of t": ("unet/config.json", {"freq_shift": 1, "flip_sin_to_cos": False}, "and 1 more differ"),
    "betas": ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is squaredcos_cap_v2"),
    "prediction": ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction_type is v_prediction"),
    "timesteps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 4000}, "num_train_timesteps is 4000"),
}


def test_a_diffusers_folder_there_and_back(home, tmp_path, monkeypatch):
    """By the lines of the README, which draw what sample.py draws. Mutation: compare the shapes only; take a missing attention_head_dim
    for None; ask for all names; another scheduler in the README."""
    lines, drawing = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    cpu()
    exec(lines.replace("runs/c10/salun", str(home / "original")))
    there, scope = UNet2DModel.from_pretrained("pipe/unet").eval(), {}
    noise = torch.stack([torch.randn(1, 8, 8, generator=data.make_generator("image", 1, label, 0)) for label in (1, 2, 3)])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape: noise)
        exec(drawing, scope)
    found = (127.5 * (scope["x"].permute(0, 2, 3, 1) + 1)).round().clamp(0, 255)
    keys = [(label, 0) for label in (1, 2, 3)]
    drawn = sampling.draw(there, keys, cpu(), null=10, seed=1, steps=50, cond_scale=2.0)
    assert (found - drawn).abs().max() <= 1
    config, scheduler = (json.loads(Path("pipe", path).read_text()) for path in ("unet/config.json", "scheduler/scheduler_config.json"))
    older = {name: value for name, value in config.items() if name not in ("add_attention", "resnet_time_scale_shift")}
    write_json(Path("pipe/unet/config.json"), older | {"dropout": 0.5, "sample_size": 32, "time_embedding_dim": 32})
    write_json(Path("pipe/scheduler/scheduler_config.json"), {name: scheduler[name] for name in models.NOISE})
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([3, 200, 600, 999])
    for path in ("pipe", "pipe/unet", "pipe/unet/diffusion_pytorch_model.safetensors"):
        own = models.build_unet("tiny", 10, 1, 8, seed=1).eval()
        models.load_start(own, Path(path))
        with torch.no_grad():
            assert torch.equal(own(x, t, class_labels=t % 10).sample, there(x, t, class_labels=t % 10).sample)
    ok("train", TINY, "--data_dir", home / "data", "--model_path pipe --steps 0 --save_dir run")
    assert file_sha(tmp_path / "run" / "model.safetensors") == file_sha(home / "original" / "model.safetensors")
    for path, changes, message in OTHER_DIFFUSERS.values():
        shutil.copytree("pipe", "other", dirs_exist_ok=True)
        change_json(Path("other", path), **changes)
        for start in ("other", "other/unet", "other/unet/diffusion_pytorch_model.safetensors"):
            with pytest.raises(RunError, match=message):
                models.load_start(own, Path(start))
    write_json(Path("pipe/unet/config.json"), {name: value for name, value in config.items() if name != "attention_head_dim"})
    with pytest.raises(RunError, match="attention_head_dim is 8"):
        models.load_start(own, Path("pipe"))
    for embeddings in (None, 10):
        UNet2DModel.from_config(config | {"num_class_embeds": embeddings}).save_pretrained(f"classes{embeddings}")
        with pytest.raises(RunError, match=f"has {embeddings or 0} class embeddings: .* classes \\+ 1 embeddings, the last one null: 11"):
            models.load_start(own, Path(f"classes{embeddings}"))


def test_weights_from_elsewhere_become_an_original(home, tmp_path):
    """Mutation: re-initialise after loading."""
    shutil.copy(home / "original" / "model.safetensors", tmp_path / "bare.safetensors")
    start = ("--data_dir", home / "data", "--model_path", tmp_path / "bare.safetensors")
    ok("train", TINY, *start, "--steps 0 --save_dir", tmp_path / "run")
    assert file_sha(tmp_path / "run" / "model.safetensors") == file_sha(tmp_path / "bare.safetensors")


@pytest.mark.slow
def test_resnet34_takes_weights_from_a_file(home, tmp_path):
    """Mutation: load the last layer too, or ask for BatchNorm's counters."""
    from torchvision.models import resnet34

    weights = {name: tensor for name, tensor in resnet34(num_classes=1000).state_dict().items() if "num_batches" not in name}
    write_tensors(tmp_path / "weights.safetensors", weights)
    flags = f"--dataset digits --limit 8 --epochs 0 --data_dir {home}/small --save_dir {tmp_path}/run"
    (home / "small").mkdir(exist_ok=True)
    with np.load(home / "data" / "digits.npz") as arrays:
        np.savez(
            home / "small" / "digits.npz",
            **{
                name: arrays[name] if name == "classes" else arrays[name][: 60 if "train" in name else 12]
                for name in arrays
                if name != "stamp"
            },
        )
    ok("train_classifier", flags, "--pretrained", tmp_path / "weights.safetensors")
    found = read_tensors(tmp_path / "run" / "model.safetensors")[0]
    assert torch.equal(found["body.layer4.2.conv2.weight"], weights["layer4.2.conv2.weight"]) and found["fc.weight"].shape == (10, 512)


def test_a_pickle_in_place_of_the_cached_resnet34_does_not_run(home, tmp_path, monkeypatch, capsys):
    """Breaks if torchvision reads the file in torch's cache, without weights_only."""
    cached = tmp_path / "home" / "hub" / "checkpoints" / "resnet34-b627a593.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, cached)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    assert script("train_classifier", "--dataset digits --data_dir", home / "data", "--save_dir", tmp_path / "run") != 0
    assert "resnet34-b627a593.pth is damaged or holds more than tensors" in capsys.readouterr().err and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_what_the_readme_says_that_you_can_bring(tmp_path):
    """Breaks if a class's name is split, taken for a number or lost on its way, or if arrays of one's own are not taken as they are."""
    names = ["10", "2", "golden retriever", "日本 🐕"]
    for number, name in enumerate(names):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (12, 9), (60 * number, 0, 40 * i)).save(tmp_path / "my photos" / name / f"{i}.png")
    tiny = "--arch tiny --steps 1 --batch_size 4 --precision fp32"
    before = files(tmp_path / "my photos")
    ok("train", tiny, "--dataset folder --image_size 8 --data_dir", tmp_path / "my photos", "--save_dir", tmp_path / "own")
    start = ("--method ga --steps 1 --batch_size 4 --model_path", tmp_path / "own")
    for word, label in (("10", 0), ("GOLDEN retriever", 2), ("日本 🐕", 3)):
        ok("unlearn", *start, "--forget_class", Path(word), "--save_dir", tmp_path / str(label))
        found = json.loads((tmp_path / str(label) / "args.json").read_text())
        assert found["forgotten"] == [label] and found["classes"] == names and found["num_forgotten"] == 3
    assert files(tmp_path / "my photos") == before
    arrays = {f"x_{part}": np.zeros((6, 8, 8, 1), np.uint8) for part in ("train", "test")} | {"classes": ["a b", "c"]}
    np.savez(tmp_path / "cifar10.npz", y_train=[0, 1] * 3, y_test=[0, 1] * 3, stamp="of another program", **arrays)
    ok("train", tiny, "--dataset cifar10 --data_dir", tmp_path, "--save_dir", tmp_path / "arrays")
    found = json.loads((tmp_path / "arrays" / "args.json").read_text())
    assert found["classes"] == ["a b", "c"] and found["architecture"]["channels"] == 1 and found["architecture"]["image_size"] == 8


def parse_command(command):
    """Parse 'python NAME.py FLAGS...' with the script's own parser, which exits on a mistake."""
    importlib.import_module(command[1].removesuffix(".py")).parse(command[2:])


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.name != "common.sh"))
def test_commands_of_the_shell_scripts_parse(name, tmp_path):
    """Mutation: misspell a flag in any script."""
    recorder = tmp_path / "bin" / "python"
    recorder.parent.mkdir()
    recorder.write_text(f'#!/bin/bash\nprintf "%q " python "$@" >> {tmp_path}/commands\nprintf "\\n" >> {tmp_path}/commands\n')
    recorder.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{recorder.parent}:{os.environ['PATH']}",
        "OUT": str(tmp_path / "out"),
        "SEEDS": "1 2",
        "CLASS": "5",
        "SEARCH_CLASS": "5",
    }
    subprocess.run(["bash", str(ROOT / "scripts" / name)], env=environment, check=True, capture_output=True)
    commands = [shlex.split(line) for line in (tmp_path / "commands").read_text().splitlines()]
    assert commands
    for command in commands:
        if command[1] not in ("-", "-c", "scripts/further_flags.py"):
            parse_command(command)
    assert name == "gpu_check.sh" or any("--seed" in command for command in commands)
    asked = {command[command.index("--forget_class") + 1] for command in commands if "--forget_class" in command}
    assert asked == ({"3"} if name == "tune_digits.sh" else {"5"}) or name in ("benchmark.sh", "gpu_check.sh")


def test_commands_of_the_readme_parse():
    """Mutation: misspell a flag in the README."""
    lines, inside = [], False
    for line in (ROOT / "README.md").read_text().replace("\\\n", " ").splitlines():
        inside = inside != line.startswith("```")
        if inside and line.split("#")[0].strip().startswith("python "):
            lines.append(line.split("#")[0])
    assert len(lines) >= 5
    for line in lines:
        expanded = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
        parse_command(expanded.splitlines())


def test_tables_in_the_readme_are_those_that_were_measured():
    """Mutation: edit a number in the README by hand."""
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"<!-- (results/\S+) -->", text)
    assert names
    for name in names:
        shown = text.split(f"<!-- {name} -->\n", 1)[1].split("<!-- end -->", 1)[0]
        assert shown == (ROOT / name).read_text()


@pytest.mark.slow
def test_retrain_of_weights_from_elsewhere_asks_how_long(home, tmp_path, capsys):
    """Breaks if Retrain takes over the few steps that train.py --model_path records: its net would be untrained."""
    start = ("--data_dir", home / "data", "--model_path", home / "original" / "model.safetensors")
    for steps in (0, 3):
        ok("train", TINY, *start, "--steps", steps, "--save_dir", tmp_path / str(steps))
        command = (
            "unlearn",
            "--method retrain --forget_class 3 --model_path",
            tmp_path / str(steps),
            "--save_dir",
            tmp_path / f"re{steps}",
        )
        for flags in ("", "--steps 2", "--lr 0.01"):
            assert script(*command, flags) != 0 and not (tmp_path / f"re{steps}").exists()
            assert f"was trained for {steps} steps here, from {start[-1]}: pass" in capsys.readouterr().err
    ok(*command, "--steps 2 --lr 0.01")


OWN = {  # a script and the runs it reads, in the places of which it must not write
    "train": ("train --dataset digits --model_path {run}/model.safetensors", "original"),
    "generate_mask": ("generate_mask --forget_class 3 --model_path {run}", "original"),
    "unlearn": ("unlearn --method rl --forget_class 3 --model_path {run}", "original"),
    "unlearn, mask": ("unlearn --forget_class 3 --model_path {home}/original --mask_path {run}", "mask"),
    "sample": ("sample --model_path {run}", "original"),
    "sample, two models": ("sample --model_path {run} {home}/original --save_dir {tmp}/new", "original"),
    "train_classifier": ("train_classifier --dataset digits --pretrained {run}/model.safetensors", "original"),
    "evaluate": ("evaluate --forget_class 3 --classifier {run} --sample_path {tmp}/none", "classifier"),
    "evaluate, samples": ("evaluate --forget_class 3 --classifier {home}/classifier --sample_path {run}", "original"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_run_is_not_written_over_what_it_reads(name, home, tmp_path, capsys, monkeypatch):
    """Breaks if check_apart compares the paths as they are spelled, or only --model_path, or only equal folders."""
    line, source = OWN[name]
    shutil.copytree(home / source, tmp_path / "runs" / source)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    run_folder = tmp_path / "runs" / source
    command = line.format(home=home, tmp=tmp_path, run=run_folder).split()
    command += ["--save_dir"] * ("--save_dir" not in command)
    for save_dir in (run_folder, f"../runs/{source}/../{source}", tmp_path / "link" / source, run_folder / "new"):
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
