"""Races, kills, damaged files and silent damage. Each test names a mutation that breaks it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cli
import evaluate
import files
import run_folder
import trainer
from conftest import ROOT
from files import read_json, read_tensors, write_json, write_tensors
from helpers import NUM_FORGET, TINY, ok, one_error, script, words
from run_folder import RunFolder

FT = f"--method ft --epochs 1 --precision fp32 --num_forget {NUM_FORGET}"


# ------------------------------------------------------------------------------------------------------ lost or mixed work
def test_a_second_run_on_a_folder_is_refused(home, tmp_path, capsys):
    """Mutation: look for another run in __init__ only, or lock after deleting."""
    ok("unlearn", FT, "--model_path", home / "original", "--save_dir", tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert not any(path.name.startswith(".") for path in before)  # the lock ends with its run
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere")
        lock.flush()
        assert script("unlearn", FT, "--overwrite --model_path", home / "original", "--save_dir", tmp_path / "run") == 1
        assert "process 7 on elsewhere writes into" in one_error(capsys)
        assert before.items() <= {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}.items()
    ok("unlearn", FT, "--overwrite --model_path", home / "original", "--save_dir", tmp_path / "run")


@pytest.mark.slow
def test_of_runs_started_together_one_wins_and_its_files_belong_together(home, tmp_path):
    """Mutation: no lock."""
    command = words("unlearn.py", FT, "--model_path", home / "original", "--save_dir")
    for seed in (1, 2):
        ok(*words("unlearn", FT, "--seed", seed, "--model_path", home / "original", "--save_dir", tmp_path / f"alone{seed}"))
    together = [*command, str(tmp_path / "run"), "--seed"]
    runs = [subprocess.Popen([sys.executable, *together, str(seed)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for seed in (1, 2)]
    errors = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    assert [error.count("error: ") for error in errors] == [run.returncode for run in runs]
    seed = read_json(tmp_path / "run" / "args.json")["seed"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", f"alone{seed}")]
    assert weights[0] == weights[1] and runs[seed - 1].returncode == 0


def test_two_processes_write_one_file_at_once(tmp_path):
    """Mutation: the same partial name for every process."""
    together, failed = threading.Barrier(2), []

    def write(partial):
        partial.write_text("whole")
        together.wait(10)

    def call():
        try:
            files.write_whole(tmp_path / "cache", write)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed and [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_file_is_read_by_whom_the_umask_lets(tmp_path):
    """Mutation: leave the mode to safetensors, which keeps files to their owner."""
    before = os.umask(0o022)
    try:
        files.write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
        os.umask(0o077)
        files.write_tensors(tmp_path / "b.safetensors", {"b": torch.zeros(1)})
    finally:
        os.umask(before)
    assert [(tmp_path / f"{name}.safetensors").stat().st_mode & 0o777 for name in "ab"] == [0o644, 0o600]


@pytest.mark.parametrize(
    "value",
    [{"seed": 1.5}, {"seed": True}, {"lr": -1.0}, {"classes": [1]}, {"forgotten": [[1]]}, {"caption": 3}, {"forget_class": 3}]
    + [{"options": None}, {"seconds": None}],
    ids=str,
)
def test_a_value_of_another_type_is_refused(value):
    """Mutation: let a count be a fraction, a list hold anything, or any value be null."""
    with pytest.raises(cli.RunError, match="it was edited or damaged"):
        files.checked(value, "args.json")


def test_a_partial_file_may_go_while_another_process_looks_at_it(tmp_path, monkeypatch):
    """Mutation: let the missing file end the run."""
    (tmp_path / ".cache.0.partial").write_text("half")
    stat = Path.stat

    def finished_meanwhile(path, **options):
        path.unlink(missing_ok=True) if path.name == ".cache.0.partial" else None
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", finished_meanwhile)
    files.write_whole(tmp_path / "cache", lambda partial: partial.write_text("whole"))
    assert (tmp_path / "cache").read_text() == "whole"


def test_a_finished_or_failed_item_does_not_end_the_others(capsys):
    """Mutation: let AlreadyDone through: the script would end there, with status 0. Catch RunError alone: a GPU may be full."""
    seen = []

    def measure(item):
        seen.append(item)
        if item == 1:
            raise cli.AlreadyDone("run is finished already")
        if item == 2:
            raise MemoryError

    with pytest.raises(cli.RunError, match="out of memory"):
        cli.for_each([1, 2, 3], measure, last=lambda: seen.append("last"))
    assert seen == [1, 2, 3, "last"] and "finished already" in capsys.readouterr().out


def test_an_unforeseen_error_is_named_on_a_full_disk_too(monkeypatch):
    """Mutation: let the error of the log's file through: it would hide the first one."""

    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.delenv("SALUN_DEBUG", raising=False)
    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert cli.sentence(ZeroDivisionError("by zero")).startswith("unexpected ZeroDivisionError: by zero")


def test_a_tree_that_was_moved_is_found_where_one_path_was_absolute(tmp_path, monkeypatch):
    """Mutation: take the relative path from where the command runs now."""
    (tmp_path / "new" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recorded = {"cwd": str(tmp_path / "old"), "save_dir": "runs/a"}
    found = run_folder.moved(str(tmp_path / "old" / "data"), recorded, tmp_path / "new" / "runs" / "a")
    assert found.resolve() == (tmp_path / "new" / "data").resolve()


def test_half_a_cache_of_a_killed_process_goes_after_a_day(tmp_path):
    """Mutation: leave it; remove that of a process that may still write."""
    for name, age in (("old", 25), ("new", 1)):
        (tmp_path / f".cache.{name}.partial").write_text("half")
        os.utime(tmp_path / f".cache.{name}.partial", (time.time() - age * 3600,) * 2)
    files.write_whole(tmp_path / "cache", lambda partial: partial.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache.new.partial", "cache"]


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_crash_while_the_old_run_is_deleted_leaves_a_run_folder(flag, home, tmp_path, monkeypatch):
    """Mutation: delete args.json first."""
    command = words("unlearn", FT, "--model_path", home / "original", "--save_dir", tmp_path / "run")
    ok(*command)
    first, unlink = (tmp_path / "run" / "model.safetensors").read_bytes(), Path.unlink

    def die_at_the_weights(path, missing_ok=False):
        if path.name == "model.safetensors":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", die_at_the_weights)
        assert script(*command, "--overwrite") != 0
    assert not (tmp_path / "run" / "done.json").exists() and (tmp_path / "run" / "model.safetensors").exists()
    ok(*command, flag)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == first


def test_leftovers_of_kills_are_removed(home, tmp_path):
    """Mutation: remove nothing at the start; return early where --resume finds a finished run."""
    command = words("unlearn", FT, "--model_path", home / "original", "--save_dir", tmp_path / "run")
    ok(*command)
    for name in (".tmpAbCdEf", ".model.safetensors.0123.partial", "checkpoint.safetensors"):
        (tmp_path / "run" / name).write_text("half")
    ok(*command, "--resume")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"args.json", "done.json", "log.csv", "model.safetensors"}


def test_overwrite_keeps_what_no_run_wrote(home, tmp_path, capsys):
    """Mutation: take any args.json for a run's."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "mine").write_text("kept")
    write_json(tmp_path / "run" / "args.json", {"learning_rate": 1})
    assert script("unlearn", FT, "--overwrite --model_path", home / "original", "--save_dir", tmp_path / "run") == 1
    assert "is of no run" in one_error(capsys) and (tmp_path / "run" / "model" / "mine").read_text() == "kept"


def test_a_tree_may_move_and_paths_may_be_spelled_otherwise(home, tmp_path, monkeypatch):
    """Mutation: read data_dir as it was recorded; compare paths as texts."""
    shutil.copytree(home / "data", tmp_path / "old" / "data")
    ok("train", TINY, "--epochs 1 --data_dir", tmp_path / "old" / "data", "--save_dir", tmp_path / "old" / "original")
    (tmp_path / "old").rename(tmp_path / "new")
    ok("unlearn", FT, "--model_path", tmp_path / "new" / "original", "--save_dir", tmp_path / "new" / "run")
    assert not (tmp_path / "old").exists()
    monkeypatch.chdir(tmp_path)
    ok("unlearn", FT, "--resume --model_path new/../new/original --save_dir new/run")


def test_commands_of_several_folders_find_the_data(tmp_path, monkeypatch):
    """Mutation: look for --data_dir from where the last command was started."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    ok("train", TINY, "--epochs 1 --data_dir data --save_dir original")
    monkeypatch.chdir(tmp_path / "b")
    ok("unlearn", FT, "--model_path ../a/original --save_dir run")
    ok("evaluate", "--model_path run")
    assert not (tmp_path / "b" / "data").exists()


def test_other_data_and_the_mask_of_another_original_are_refused(home, tmp_path, capsys):
    """Mutation: identify data by the number of images; masks by shapes."""
    with np.load(home / "data" / "digits.npz") as whole:
        arrays = dict(whole)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "digits.npz", **{name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test", "classes")})
    same = words("unlearn", FT, "--model_path", home / "original", "--data_dir", tmp_path / "data", "--save_dir", tmp_path / "run")
    ok(*same)
    arrays["x_train"] = 255 - arrays["x_train"]
    np.savez(tmp_path / "data" / "digits.npz", **{name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test", "classes")})
    assert script(*same, "--overwrite") == 1 and "other images or labels" in one_error(capsys)
    ok("train", TINY, "--epochs 1 --seed 5 --data_dir", home / "data", "--save_dir", tmp_path / "other")
    flags = ("--model_path", tmp_path / "other", "--mask_path", home / "mask", "--save_dir", tmp_path / "masked")
    assert script("unlearn", f"--num_forget {NUM_FORGET}", *flags) == 1 and "was made from another model" in one_error(capsys)


# ---------------------------------------------------------------------------------------------------------- silent damage
@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.safetensors"])
def test_weights_that_are_not_finite_are_never_written(name, home, tmp_path, monkeypatch, capsys):
    """Mutation: check the loss only."""
    step = trainer.Trainer.step

    def ruin(self, **terms):
        step(self, **terms)
        if self.steps_done == (self.total if name == "model.safetensors" else 1):
            next(self.model.parameters()).data.view(-1)[0] = float("nan")
            monkeypatch.setattr(trainer.Trainer, "step", lambda self, **terms: None)

    monkeypatch.setattr(trainer.Trainer, "step", ruin)
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0 if name == "checkpoint.safetensors" else 1000)
    assert script("train", TINY, "--epochs 2 --limit 64 --data_dir", home / "data", "--save_dir", tmp_path / "run") == 1
    assert f"{name} was not written" in one_error(capsys)
    assert not {"model.safetensors", "checkpoint.safetensors", "done.json"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_a_run_that_is_replaced_while_it_is_measured_gets_no_old_numbers(home, tmp_path, monkeypatch, capsys):
    """Mutation: write metrics.json whatever lies in the folder by then."""
    ok("unlearn", FT, "--model_path", home / "original", "--save_dir", tmp_path / "run")
    measure, model = evaluate.measure, tmp_path / "run" / "model.safetensors"
    for replace in (lambda: shutil.copy(home / "original" / model.name, model), model.unlink):
        monkeypatch.setattr(evaluate, "measure", lambda *args, replace=replace: (measure(*args), replace())[0])
        assert script("evaluate", "--precision fp32 --model_path", tmp_path / "run") == 1
        assert "was replaced while it was measured" in one_error(capsys) and not (tmp_path / "run" / "metrics.json").exists()


def test_a_ruined_model_does_not_keep_the_others_from_being_measured(home, tmp_path, capsys):
    """Mutation: stop at the first error; let NaN into the SVC."""
    for name in ("ruined", "good"):
        ok("unlearn", FT, "--model_path", home / "original", "--save_dir", tmp_path / name)
    tensors, _ = read_tensors(tmp_path / "ruined" / "model.safetensors")
    ruined = {name: (tensor * 1e38).clamp(-3e38, 3e38) if name.endswith("weight") else tensor for name, tensor in tensors.items()}
    write_tensors(tmp_path / "ruined" / "model.safetensors", ruined)
    assert script("evaluate", "--precision fp32 --model_path", tmp_path / "ruined", tmp_path / "good") == 1
    assert "NaN or infinite outputs" in one_error(capsys)
    assert (tmp_path / "good" / "metrics.json").is_file() and not (tmp_path / "ruined" / "metrics.json").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--val_fraction 0.9999", "leaves no image to train on"),
        ("--seed -1", "at least 0 and below 2^63"),
        ("--seed 99999999999999999999", "at least 0 and below 2^63"),
        ("--split_seed 9223372036854775808", "at least 0 and below 2^63"),
        ("--batch_size 1000000000000", "at most 10^9"),
        ("--epochs 100000000000000000000", "at most 10^9"),
        ("--lr 1e38", "below 1e35"),
    ],
)
def test_flags_that_mean_nothing(flags, message, home, tmp_path, capsys):
    """Mutation: drop the bound."""
    assert script("train", TINY, flags, "--data_dir", home / "data", "--save_dir", tmp_path / "run") != 0
    assert message in one_error(capsys) and not (tmp_path / "run" / "done.json").exists()


# ------------------------------------------------------------------------------------------------------------ one sentence
def edited(**changes):
    def edit(values):
        return {name: value for name, value in (values | changes).items() if value is not ...}

    return edit


HOSTILE = {  # what becomes of args.json or done.json: (file, edit of its table, part of the message)
    "a list": ("args.json", lambda values: [values], "holds no table"),
    "null": ("args.json", lambda values: None, "holds no table"),
    "no architecture": ("args.json", edited(architecture=...), "lacks architecture"),
    "an architecture of text": ("args.json", edited(architecture="cnn"), "'cnn' for architecture"),
    "classes of a number": ("args.json", edited(classes=7), "'7' for classes"),
    "a negative size": ("args.json", edited(image_size=-3), "'-3' for image_size"),
    "an infinite rate": ("args.json", edited(lr=float("inf")), "'inf' for lr"),
    "a seed of text": ("args.json", edited(split_seed="x"), "'x' for split_seed"),
    "no kind": ("args.json", edited(kind=...), "kind None"),
    "no seconds": ("done.json", edited(seconds=...), "lacks seconds"),
    "seconds of text": ("done.json", edited(seconds="long"), "'long' for seconds"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_edited_records_end_in_one_sentence(name, home, tmp_path, capsys):
    """Mutation: take args.json as it is."""
    file, edit, message = HOSTILE[name]
    source = home / "original"
    if file == "done.json":
        ok("unlearn", FT, "--model_path", source, "--save_dir", tmp_path / "first")
        source = tmp_path / "first"
    shutil.copytree(source, tmp_path / "model")
    write_json(tmp_path / "model" / file, edit(json.loads((tmp_path / "model" / file).read_text())))
    if file == "args.json":
        assert script("unlearn", FT, "--model_path", tmp_path / "model", "--save_dir", tmp_path / "run") == 1
    else:
        assert script("evaluate", "--model_path", tmp_path / "model") == 1
    assert message in one_error(capsys)


def test_what_nobody_foresaw_is_one_sentence_and_a_log(tmp_path, monkeypatch, capsys):
    """Mutation: let it through; exit with it on every process; say nothing of it on another one."""

    def main(argv):
        raise KeyError("surprise")

    monkeypatch.delenv("SALUN_DEBUG")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    (log,) = tmp_path.iterdir()
    assert str(stop.value.code).startswith("error: unexpected KeyError: 'surprise'") and str(log) in stop.value.code
    assert "in main" in log.read_text()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 1 and "process 1: error: unexpected KeyError" in capsys.readouterr().err
    monkeypatch.setenv("SALUN_DEBUG", "1")
    with pytest.raises(KeyError):
        cli.run(main)


def test_what_a_gpu_has_queued_is_not_taken_for_a_pause(monkeypatch):
    """Mutation: begin or end a pause without waiting."""
    now, queued = [0.0], [0.0]

    def wait():
        now[0], queued[0] = now[0] + queued[0], 0.0

    monkeypatch.setattr("run_folder.time.monotonic", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    folder = RunFolder.__new__(RunFolder)
    folder.accelerator, folder.seconds_before = SimpleNamespace(device=torch.device("cuda")), 0.0
    folder.start_clock()
    queued[0] = 1.0  # of training
    with folder.paused():
        queued[0] = 4.0  # of drawing
    queued[0] = 2.0
    assert folder.seconds() == 3.0


def test_a_masked_run_goes_on_only_on_its_kind_of_device(home, tmp_path, capsys):
    """The optimizer's state has the order of the weights in memory. Mutation: compare the flags only."""
    flags = (
        "--method salun --epochs 1 --mask_path",
        home / "mask",
        "--model_path",
        home / "original",
        f"--num_forget {NUM_FORGET} --save_dir",
    )
    ok("unlearn", *flags, tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    path = tmp_path / "run" / "args.json"
    write_json(path, read_json(path) | {"computed_on": "cuda:0"})
    assert script("unlearn", *flags, tmp_path / "run", "--resume") == 1 and "it goes on only on cuda" in one_error(capsys)


def test_a_run_goes_on_only_in_its_precision(home, tmp_path, capsys):
    """auto is bf16 or fp32, by machine. Mutation: compare the flag --precision alone, or only refuse where it was passed."""
    start = ("unlearn", "--method ga --epochs 1 --resume --model_path", home / "original")
    flags = (*start, f"--num_forget {NUM_FORGET} --save_dir", tmp_path)
    ok(*flags, "--precision fp32")
    path = tmp_path / "args.json"
    write_json(path, read_json(path) | {"precision": "auto", "autocast": "an earlier machine's"})
    assert script(*flags) == 0 and "finished already" in capsys.readouterr().out  # nothing is left to compute
    (tmp_path / "done.json").unlink()
    assert script(*flags) == 1 and "pass --precision an earlier machine's" in one_error(capsys)
    write_json(path, read_json(path) | {"autocast": "no"})
    ok(*flags, "--precision fp32")  # the other machine says what auto was


def test_a_batch_norm_that_several_gpus_would_replace_is_refused():
    """timm's holds the activation. Mutation: convert whatever is a BatchNorm."""

    class WithActivation(torch.nn.BatchNorm2d):
        pass

    several = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    with pytest.raises(cli.RunError, match="the network has WithActivation"):
        trainer.prepare(torch.nn.Sequential(WithActivation(3)), several)


def test_too_little_memory_says_what_to_lower():
    """Mutation: report it as unexpected, or know the class alone: a GPU that others fill raises AcceleratorError."""
    for kind in (torch.OutOfMemoryError, type("AcceleratorError", (RuntimeError,), {})):
        assert "lower --batch_size" in cli.sentence(kind("CUDA error: out of memory"))


TOLD = {"USE_FSDP": "true", "USE_DEEPSPEED": "true", "GRADIENT_ACCUMULATION_STEPS": "4", "DYNAMO_BACKEND": "INDUCTOR"}


@pytest.mark.parametrize("name, value", TOLD.items())
def test_what_accelerate_was_told_and_is_not_done_is_refused(name, value, home, tmp_path, monkeypatch, capsys):
    """Mutation: ignore accelerate's configuration."""
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert script("unlearn", FT, "--model_path", home / "original", "--save_dir", tmp_path / "run") == 1
    assert f"{name} of accelerate's configuration" in one_error(capsys)


def test_float32_is_not_rounded_whatever_was_set_before(monkeypatch):
    """Mutation: leave convolutions, or products of matrices, as they are."""
    torch.backends.cudnn.allow_tf32, before = True, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 does
    monkeypatch.setattr(trainer, "Accelerator", lambda **options: None)
    trainer.make_accelerator("cpu", "fp32")
    assert torch.get_float32_matmul_precision() == "highest" == before
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_another_precision_in_accelerates_configuration_is_refused(monkeypatch):
    """Mutation: let --precision decide and say nothing."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(cli.RunError, match="told fp16 and the script bf16: pass --precision fp16"):
        trainer.make_accelerator("cpu", "bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer.make_accelerator("cpu", "bf16")
