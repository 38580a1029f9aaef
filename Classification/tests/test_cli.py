"""The scripts from the outside: wrong input, kills, several processes, written commands. Each test names a mutation that breaks it."""

import importlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer
from conftest import ROOT
from files import file_sha, read_tensors, write_tensors
from helpers import NUM_FORGET, TINY, ok, one_error, script, words

ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}


def unlearn_command(home, save_dir, *flags, method="salun"):
    start = ("unlearn --method", method, "--model_path", home / "original", "--mask_path", home / "mask")
    return words(*start, f"--num_forget {NUM_FORGET} --epochs 1 --precision fp32 --save_dir", save_dir, *flags)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ------------------------------------------------------------------------------------------------------------- wrong input
def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_size(path):
    args = json.loads(path.read_text())
    args["architecture"]["num_classes"] = 7
    path.write_text(json.dumps(args))


def no_time(path):
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, metadata | {"seconds": "nan"})


def nan_weights(path):
    tensors, _ = read_tensors(path)
    tensors["fc.weight"][0, 0] = float("nan")
    write_tensors(path, tensors)


def pickle_over(path):
    torch.save({"weight": torch.zeros(2)}, path)


FT = "--method ft --num_forget 60"
WRONG = {  # name: (flags of unlearn.py, part of the message)
    "unknown method": ("--method magic --num_forget 60", "invalid choice: 'magic'"),
    "unknown flag": ("--num_forgot 60", "unrecognized arguments"),
    "salun without a mask": ("--num_forget 60", "needs --mask_path"),
    "retrain with a mask": ("--method retrain --num_forget 60 --mask_path {home}/mask", "takes no --mask_path"),
    "a flag the method does not read": ("--method ga --alpha 1 --num_forget 60", "does not read --alpha"),
    "an optimizer of a single step": (
        "--method ssd --optimizer sgd --augment --num_forget 60",
        "--method ssd does not read --optimizer, --augment",
    ),
    "a forget batch that none reads": (f"{FT} --forget_batch_size 7", "does not read --forget_batch_size"),
    "nothing to forget": ("--method ft", "name what to forget"),
    "two forget sets": ("--method ft --forget_class 3 --forget_indices x.txt", "cannot be combined"),
    "resume and overwrite": (f"{FT} --resume --overwrite", "contradict"),
    "mask ratio of 0": ("--method salun_soft --num_forget 60 --mask_ratio 0", "must be in (0, 1]"),
    "negative learning rate": (f"{FT} --lr -1", "must be a positive number"),
    "a percentile of 100": ("--method ssd --num_forget 60 --ssd_alpha 100%", "must be a percentile between 0% and 100%"),
    "a threshold of 0": ("--method ssd --num_forget 60 --ssd_alpha 0", "must be a positive number"),
    "a threshold above the bound": ("--method ssd --num_forget 647 --ssd_alpha 2", "none can exceed N / n_f = 2"),
    "layers that do not exist": ("--method scissorhands --num_forget 60 --trim_layers layer9", "no layer's name has layer9 in it"),
    "a name that breaks a table": ("--method ft --num_forget 60 --setting a|b", "up to 40 letters"),
    "half a sample": ("--method ft --num_forget 1.5", "whole number of samples"),
    "class out of range": ("--method ft --forget_class 10", "there is no class 10"),
    "more than there is": ("--method ft --num_forget 5000", "more than the 1294 samples"),
    "missing index file": ("--method ft --forget_indices {tmp}/none.txt", "none.txt"),
    "missing model": (f"{FT} --model_path {{tmp}}/none", "does not exist"),
    "a folder that is no run": (f"{FT} --model_path {{home}}/data", "is not a run folder"),
    "a mask as a model": (f"{FT} --model_path {{home}}/mask", "is a run of kind mask"),
    "mask of another forget set": ("--num_forget 61 --mask_path {home}/mask", "another forget set"),
    "missing mask": ("--num_forget 60 --mask_path {tmp}/none", "does not exist"),
    "a model as a mask": ("--num_forget 60 --mask_path {home}/original/model.safetensors", "is not a mask"),
    "a loss that explodes": (f"{FT} --lr 1e30 --epochs 3", "lower --lr"),
    "no CUDA": (f"{FT} --device cuda", "no CUDA device"),
}
BROKEN = {  # name: (run to copy, its file to break, how, part of the message)
    "unfinished model": ("original", "done.json", Path.unlink, "did not finish"),
    "truncated weights": ("original", "model.safetensors", truncate, "an incomplete or damaged safetensors file"),
    "pickled weights": ("original", "model.safetensors", pickle_over, "is a pickle"),
    "weights with NaN": ("original", "model.safetensors", nan_weights, "NaN or infinite values in fc.weight"),
    "weights of another shape": ("original", "args.json", other_size, "belongs to another model"),
    "torn args.json": ("original", "args.json", truncate, "incomplete or damaged JSON"),
    "truncated mask": ("mask", "mask.safetensors", truncate, "an incomplete or damaged safetensors file"),
    "a mask that took no known time": ("mask", "mask.safetensors", no_time, "is a damaged mask"),
}


def refuse(home, tmp_path, capsys, flags, message):
    """Run unlearn.py and expect one sentence, a non-zero status and no result."""
    model = [] if "--model_path" in flags else ["--model_path", home / "original"]
    status = script("unlearn", "--precision fp32", *model, "--save_dir", tmp_path / "run", *flags)
    assert status != 0 and message in one_error(capsys)
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
    which = ["--mask_path", tmp_path / source] if source == "mask" else ["--method", "ft", "--model_path", tmp_path / source]
    refuse(home, tmp_path, capsys, [*which, "--num_forget", 60], message)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    """Mutation: look at the first two bytes alone. A header of 640 bytes begins like a pickle of protocol 2."""
    for length in range(400, 700):
        write_tensors(tmp_path / "x.safetensors", {"w": torch.ones(1)}, {"note": "x" * length})
        if (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02":
            break
    assert read_tensors(tmp_path / "x.safetensors")[0]["w"] == 1 and length < 699


def test_a_pickle_and_other_data_are_refused(home, tmp_path, capsys):
    """Mutation: look at the ending of the name only."""
    pickle_over(tmp_path / "model.pt")
    refuse(home, tmp_path, capsys, [*FT.split(), "--model_path", tmp_path / "model.pt"], "is a pickle")
    x, y = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    refuse(home, tmp_path, capsys, [*FT.split(), "--data_dir", tmp_path], "is not what")


@pytest.mark.parametrize(
    "argv, message",
    [
        (("train", "--arch", "resnet19"), "choose from cnn"),
        (("train", "--dataset", "mnist"), "invalid choice"),
        (("train", "--image_size", 16), "--image_size is for"),
        (("train", "--val_fraction", 1), "must be in [0, 1)"),
        (("train", "--dataset", "folder", "--data_dir", "/nonexistent"), "is not a folder"),
        (("generate_mask", "--num_forget", 60), "--model_path"),
        (("generate_mask", "--num_forget", 60, "--model_path", "a", "--mask_kind", "noise"), "invalid choice: 'noise'"),
        (("generate_mask", "--num_forget", 60, "--model_path", "a", "--mask_kind", "random"), "random needs --seed"),
        (("evaluate", "--model_path", "/nonexistent"), "does not exist"),
        (("evaluate", "--model_path", "a", "--num_forget", 60), "need --save_dir"),
        (("evaluate", "--model_path", "a", "b", "--num_forget", 60, "--save_dir", "c"), "one --model_path"),
        (("evaluate", "--model_path", "a", "--mia_redraws", 1), "must be at least 2"),
        (("evaluate", "--model_path", "a", "--retrain_path", "/nonexistent"), "does not exist"),
        (("evaluate_many", "/nonexistent"), "no finished runs of unlearn.py"),
        (("relearn", "/nonexistent"), "no finished runs of unlearn.py"),
        (("relearn", "/nonexistent", "--num_images", 0), "must be at least 1"),
        (("table", "/nonexistent"), "no measured runs"),
    ],
)
def test_wrong_input_of_the_other_scripts(argv, message, tmp_path, capsys):
    """Mutation: drop any one check."""
    saves = argv[0] in ("train", "generate_mask")
    assert script(*argv, *(("--save_dir", tmp_path / "run") if saves else ())) != 0
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
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
    assert script(*unlearn_command(home, folder, "--resume", "--precision", "bf16")) != 0
    assert "another precision than its own, fp32: pass --precision fp32" in capsys.readouterr().err
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
    shutil.copytree(home / "original", folder / "model")  # Mutation: let --overwrite remove it
    assert script(*unlearn_command(home, folder, "--overwrite")) != 0 and "model is a run of its own" in capsys.readouterr().err
    assert files(folder / "model") == files(home / "original")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("keep")
    assert script(*unlearn_command(home, tmp_path / "letters", "--overwrite")) != 0 and "is not a run folder" in capsys.readouterr().err
    assert (tmp_path / "letters" / "love.txt").read_text() == "keep"


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_files(home, tmp_path):
    """Mutation: write straight to the final name."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # model.safetensors has 380 kB

    done = subprocess.run(
        [sys.executable, str(ROOT / "unlearn.py"), *map(str, unlearn_command(home, tmp_path / "run")[1:])],
        env=ENVIRONMENT,
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "error: could not write" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["args.json", "log.csv"]


# ------------------------------------------------------------------------------------------------- kills and processes
def interrupted(name, argv, folder, after_step, fresh=False):
    """Start a script with a checkpoint after every epoch, and kill -9 it once its log has passed a step.

    It runs in a copy of this process, which has imported everything; with `fresh`, in a new one.
    """
    with (folder.parent / "output").open("w+") as output:
        pid, deadline = os.fork(), time.monotonic() + 120
        if pid == 0:
            run_until_killed(name, list(map(str, argv)), output, fresh)
        ended, log = 0, folder / "log.csv"
        while not ended and time.monotonic() < deadline:
            if log.is_file() and (folder / "checkpoint.safetensors").is_file() and log.read_text().count("\n") > after_step:
                break
            time.sleep(0.002)
            ended, _ = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        output.seek(0)
        assert not ended and time.monotonic() < deadline, output.read()


def run_until_killed(name, argv, output, fresh):
    """The child of interrupted(): never returns."""
    try:
        os.dup2(output.fileno(), 2)
        sys.stdout = sys.stderr = output
        if fresh:
            code = f"import cli, trainer, {name}; trainer.CHECKPOINT_SECONDS = -1; trainer.LOG_STEPS = 1; cli.run({name}.main)"
            os.execve(sys.executable, [sys.executable, "-c", code, *argv], ENVIRONMENT)
        trainer.CHECKPOINT_SECONDS, trainer.LOG_STEPS = -1, 1
        script(name, *argv)
    except BaseException:
        traceback.print_exc(file=output)
    finally:
        output.flush()
        os._exit(1)


@pytest.mark.slow
def test_training_resumes_to_the_same_bytes_after_a_kill(tmp_path):
    """Mutation: do not restore the optimizer, or the epoch."""
    flags = words(TINY, "--epochs 6 --optimizer adamw --lr 0.001 --data_dir", tmp_path / "data")
    ok("train", *flags, "--save_dir", tmp_path / "whole")
    interrupted("train", [*flags, "--save_dir", tmp_path / "cut"], tmp_path / "cut", after_step=60, fresh=True)
    state = json.loads(read_tensors(tmp_path / "cut" / "checkpoint.safetensors")[1]["state"])
    assert 0 < state["epoch"] < 6 and not (tmp_path / "cut" / "done.json").exists()
    ok("train", *flags, "--save_dir", tmp_path / "cut", "--resume")
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (
        json.loads((tmp_path / "cut" / "done.json").read_text())["images_seen"]
        == json.loads((tmp_path / "whole" / "done.json").read_text())["images_seen"]
    )
    steps = [int(line.split(",")[0]) for line in (tmp_path / "cut" / "log.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.parametrize("method, epochs, after_step", [("salun", 5, 50), ("salun_soft", 5, 50), ("be", 60, 10), ("scrub", 5, 25)])
def test_unlearning_resumes_to_the_same_bytes_after_a_kill(method, epochs, after_step, home, tmp_path):
    """Mutation: leaves not gathered after restore; theta_o from the checkpoint."""

    def command(folder, *more):
        flags = {"scrub": "--rewind --alpha 1"}.get(method, "")
        return unlearn_command(home, folder, "--epochs", epochs, *more, flags, method=method)

    ok(*command(tmp_path / "whole"))
    interrupted("unlearn", command(tmp_path / "cut")[1:], tmp_path / "cut", after_step)
    assert script(*command(tmp_path / "cut", "--lr", 0.5, "--resume")) != 0  # another flag than before is refused
    ok(*command(tmp_path / "cut", "--resume"))
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


NO_BATCHNORM = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        norms = nn.GroupNorm(8, 32), nn.GroupNorm(8, 64)
        pool = nn.AdaptiveAvgPool2d(2), nn.Flatten()
        super().__init__(first, norms[0], nn.GELU(), second, norms[1], nn.GELU(), *pool, nn.Linear(256, num_classes))
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    """A network without BatchNorm, whose statistics are of one process on CPUs: training, mask and a masked method, at equal global batch.

    Mutation: batch.mean without its weight, or no average_gradients."""
    (tmp_path / "net.py").write_text(NO_BATCHNORM)
    results = {}
    for count in (1, 2):
        base, first = tmp_path / str(count), tmp_path / "1"
        commands = [
            f"train --dataset digits --limit 75 --data_dir {tmp_path}/data{count} --epochs 1 --batch_size 25 --lr 0.01 "
            f"--schedule constant --save_dir {base}/original",
            f"generate_mask --model_path {base}/original --num_forget 11 --save_dir {base}/mask",
            f"unlearn --method salun --model_path {first}/original --num_forget 11 --mask_path {first}/mask --epochs 1 "
            f"--save_dir {base}/salun",
        ]
        commands = [f"{command} --arch {tmp_path}/net.py:Net --precision fp32 --device cpu" for command in commands]
        if count == 1:
            for command in commands:
                ok(*words(command))
        else:
            together(commands, tmp_path)
        results[count] = {name: read_tensors(base / name / "model.safetensors")[0] for name in ("original", "salun")} | {
            "mask": read_tensors(base / "mask" / "mask.safetensors")[0]
        }
        assert json.loads((base / "salun" / "args.json").read_text())["processes"] == count
    start = read_tensors(first / "original" / "model.safetensors")[0]
    for name in ("original", "salun"):
        for key, one in results[1][name].items():
            torch.testing.assert_close(results[2][name][key], one, rtol=1e-3, atol=2e-5)
    moved = max((results[1]["salun"][key] - start[key]).abs().max().item() for key in start)
    assert moved > 1e-3  # far more than the tolerance above
    differing = sum(int(np.unpackbits(one.numpy() ^ results[2]["mask"][key].numpy()).sum()) for key, one in results[1]["mask"].items())
    assert differing < 1e-3 * sum(one.numel() * 8 for one in results[1]["mask"].values())


def together(commands, folder):
    """Run several scripts one after another in two processes, started once: importing takes longer than the runs do."""
    program = folder / "commands.py"
    lines = ["import sys", f"sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}", "import accelerate, helpers"]
    for command in commands:
        lines.append(f"helpers.ok(*{command.split()!r})")
        lines.append("accelerate.PartialState().wait_for_everyone()")  # as the end of a process would
    program.write_text("\n".join(lines) + "\n")
    two = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]  # without GPUs: on the CPU, over gloo
    argv = [sys.executable, *two, str(program)]
    done = subprocess.run(argv, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------------------- the whole, and words
@pytest.mark.slow
def test_from_training_to_the_table(home, unlearn, tmp_path, capsys):
    """Mutation: gap to the original in place of retrain."""
    for method in ("retrain", "salun", "ga"):
        for seed in (1, 2):
            folder = unlearn(method, "--epochs", "1", "--seed", str(seed))
            shutil.move(folder, tmp_path / f"{method}_{seed}")
    runs = sorted(tmp_path.iterdir())
    ok("evaluate", "--model_path", *runs, "--precision", "fp32")
    ok("evaluate", "--model_path", home / "original", "--num_forget 60 --precision fp32 --save_dir", tmp_path / "original")
    assert script("evaluate", "--model_path", *runs, "--precision", "fp32") != 0  # numbers that are there are not replaced
    capsys.readouterr()
    ok("table", tmp_path)
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["columns"] == ["UA", "RA", "TA", "MIA", "ToW", "RTE"] and [row["method"] for row in table["rows"]] == [
        "original",
        "retrain",
        "ga",
        "salun",
    ]
    rows = {row["method"]: row for row in table["rows"]}
    measured = [json.loads((tmp_path / f"salun_{seed}" / "metrics.json").read_text()) for seed in (1, 2)]
    again = [json.loads((tmp_path / f"retrain_{seed}" / "metrics.json").read_text()) for seed in (1, 2)]
    gaps = []
    for name in ("UA", "RA", "TA", "MIA"):
        values, target = [one[name] for one in measured], np.mean([one[name] for one in again])
        assert rows["salun"][name] == pytest.approx(
            {"mean": np.mean(values), "sd": np.std(values, ddof=1), "gap": abs(np.mean(values) - target)}
        )
        gaps.append(abs(np.mean(values) - target))
    assert (
        rows["salun"]["average_gap"] == pytest.approx(np.mean(gaps)) and rows["retrain"]["average_gap"] == 0 and rows["salun"]["runs"] == 2
    )
    assert table["noise_floor"] == pytest.approx(np.mean([abs(again[0][name] - again[1][name]) for name in ("UA", "RA", "TA", "MIA")]))
    assert (tmp_path / "table.png").stat().st_size > 10_000 and "| salun | 2 |" in (tmp_path / "table.md").read_text()
    shutil.move(unlearn("ga", "--epochs", "2"), tmp_path / "ga_more")
    ok("evaluate", "--model_path", tmp_path / "ga_more", "--precision", "fp32")
    assert script("table", tmp_path) == 1  # settings are not averaged by accident
    ok("table", tmp_path, "--by_options --incomplete")


def test_weights_from_elsewhere_become_an_original(home, tmp_path):
    """Mutation: re-initialise after loading."""
    shutil.copy(home / "original" / "model.safetensors", tmp_path / "bare.safetensors")
    ok("train", TINY, "--data_dir", home / "data", "--model_path", tmp_path / "bare.safetensors", "--epochs 0 --save_dir", tmp_path / "run")
    assert file_sha(tmp_path / "run" / "model.safetensors") == file_sha(tmp_path / "bare.safetensors")


def test_args_record_what_a_rerun_needs(home):
    """Mutation: write args before the forget set is known."""
    args = json.loads((home / "mask" / "args.json").read_text())
    assert (
        args["num_forgotten"] == NUM_FORGET
        and len(args["forget_sha"]) == 64
        and args["parent_sha"] == file_sha(home / "original" / "model.safetensors")
    )
    assert {"torch", "python"} <= set(args["versions"]) and args["machine"] and args["argv"]
    metadata = read_tensors(home / "mask" / "mask.safetensors")[1]
    assert metadata["forget_sha"] == args["forget_sha"]


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
    environment = {**os.environ, "PATH": f"{recorder.parent}:{os.environ['PATH']}", "OUT": str(tmp_path / "out"), "SEEDS": "1 2"}
    environment |= {"SEARCH_SEEDS": "101", "TRIES": "2"}  # evidence.sh has hundreds of commands
    subprocess.run(["bash", str(ROOT / "scripts" / name)], env=environment, check=True, capture_output=True)
    commands = [shlex.split(line) for line in (tmp_path / "commands").read_text().splitlines()]
    assert commands
    for command in commands:
        if command[1] not in ("-", "-c", "scripts/further_flags.py"):
            parse_command(command)
    assert name in ("benchmark.sh", "gpu_check.sh") or any("--seed" in command for command in commands)


def dry_run(name, here, *flags, **variables):
    """The commands of a shell script, started from the folder `here`: [[script.py, word, ...], ...]."""
    environment = os.environ | variables | {"DRY_RUN": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "scripts" / name), *flags]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    return [shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("python ")]


@pytest.mark.slow
def test_further_flags_go_to_the_commands_that_take_them(tmp_path):
    """Mutation: in further_flags.py, add a group to commands that refuse it, or take a path as it stands."""
    here = tmp_path / "a folder"
    here.mkdir()
    sizes = {"SEEDS": "1", "LIMIT": "40", "EPOCHS": "1", "OUT": "my runs", "CLASS": "golden retriever"}
    (here / "net.py").write_text("")
    commands = dry_run("cifar10_class.sh", here, "--arch", "net.py:Net", "--data_dir", "my data", "--fisher_samples=5", **sizes)
    assert len(commands) == 15 and all(command[command.index("--save_dir") + 1].startswith(f"{here}/my runs/") for command in commands[:13])
    for script_name, *command in commands:
        assert ("--limit" in command) == (script_name == "train.py")
        assert (command[-2:] == ["--epochs", "1"]) == (script_name in ("train.py", "unlearn.py") and "iu" not in command)
        assert (command[-2:] == ["--fisher_samples", "5"]) == ("iu" in command)
        assert script_name == "table.py" or f"{here}/my data" in command[command.index("--resume") :]
        assert script_name != "train.py" or f"{here}/net.py:Net" in command
        assert "--forget_class" not in command or command[command.index("--forget_class") + 1] == "golden retriever"


@pytest.mark.slow
def test_paths_are_those_that_the_user_means(tmp_path):
    """Mutation: make OUT of `.` without cd in common.sh, or leave out expanduser() in further_flags.py."""
    first, *_, last = dry_run("own_data.sh", tmp_path, "--data_dir=~/my photos", OUT=".", HOME=f"{tmp_path}/home")
    assert first[-2:] == ["--data_dir", f"{tmp_path}/home/my photos"] and last == ["table.py", str(tmp_path)]


@pytest.mark.slow
def test_a_flag_that_no_command_takes_is_refused_before_anything_runs(tmp_path):
    """Breaks if further_flags.py leaves such a flag out without a word, or lets all runs write into one folder."""
    assert "no command of this script takes --limits 40" in dry_run("own_data.sh", tmp_path, "--limits", "40")
    assert "takes EPOCHS=many: argument --epochs" in dry_run("own_data.sh", tmp_path, EPOCHS="many")
    assert "--save_dir would be the same for all commands" in dry_run("own_data.sh", tmp_path, "--save_dir", "here")
    assert "40 is not a flag" in dry_run("own_data.sh", tmp_path, "40") and not list(tmp_path.iterdir())


def test_the_commands_of_a_script_are_as_they_stand_where_the_user_asks_for_nothing_else(tmp_path):
    """Breaks if common.sh adds a word of its own, or loses a relative path of the user's."""
    commands = dry_run("own_data.sh", tmp_path, DATA="my photos")
    assert len(commands) == 8 and commands[0][commands[0].index("--data_dir") + 1] == f"{tmp_path}/my photos"
    assert commands[-1] == ["table.py", "runs/own_data"] and commands[-2][-1] == "--resume"


def test_commands_of_the_readme_parse():
    """Mutation: misspell a flag in the README."""
    lines, inside = [], False
    for line in (ROOT / "README.md").read_text().replace("\\\n", " ").splitlines():
        inside = inside != line.startswith("```")
        if inside and line.split("#")[0].strip().startswith("python "):
            lines.append(shlex.split(line.split("#")[0]))
    assert len(lines) >= 4
    for command in lines:
        parse_command(command)


def test_tables_in_the_readme_are_those_that_were_measured():
    """Mutation: edit a number in the README by hand."""
    text = (ROOT / "README.md").read_text()
    names = re.findall(r"<!-- (results/\S+) -->", text)
    assert names
    for name in names:
        shown = text.split(f"<!-- {name} -->\n", 1)[1].split("<!-- end -->", 1)[0]
        assert shown == (ROOT / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 1])
def test_retrain_of_weights_from_elsewhere_asks_how_long(epochs, home, tmp_path, capsys):
    """Breaks if Retrain takes over the few epochs that train.py --model_path records, or args.json records the flags alone."""
    start = ("--data_dir", home / "data", "--model_path", home / "original", f"--epochs {epochs} --save_dir", tmp_path / "original")
    ok("train", TINY, *start)
    command = words(
        "unlearn --method retrain --model_path", tmp_path / "original", f"--num_forget {NUM_FORGET} --save_dir", tmp_path / "retrain"
    )
    for flags in ("", "--epochs 2", "--lr 0.01"):
        assert script(*command, flags) != 0 and not (tmp_path / "retrain").exists()
        assert f"was trained for {epochs} epochs here, starting from given weights" in capsys.readouterr().err
    ok(*command, "--epochs 2 --lr 0.01 --momentum 0.5")
    args = json.loads((tmp_path / "retrain" / "args.json").read_text())
    resolved = {"batch_size": 64, "optimizer": "sgd", "momentum": 0.5, "schedule": "linear", "augment": True}
    assert resolved.items() <= args["settings"].items() and args["batch_size"] is None


OWN = {  # a script and the runs it reads, in the places of which it must not write
    "train": ("train --dataset digits --model_path {run}/model.safetensors", "original"),
    "generate_mask": ("generate_mask --num_forget 60 --model_path {run}", "original"),
    "unlearn": ("unlearn --method ft --num_forget 60 --model_path {run}", "original"),
    "unlearn, mask": ("unlearn --num_forget 60 --model_path {home}/original --mask_path {run}", "mask"),
    "evaluate": ("evaluate --num_forget 60 --model_path {run}", "original"),
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
    command = [*line.format(home=home, run=run_folder).split(), "--save_dir"]
    for save_dir in (run_folder, f"../runs/{source}/../{source}", tmp_path / "link" / source, run_folder / "new"):
        for flags in ((), ("--overwrite",)):
            assert script(*command, save_dir, *flags) != 0
            assert "overlaps with --" in one_error(capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


def test_a_run_does_not_hold_what_it_reads(home, tmp_path, capsys):
    """Breaks if only a --save_dir inside the original is refused: --overwrite deletes samples/ of the run that holds it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text("{}")
    shutil.copytree(home / "original", tmp_path / "run" / "samples")
    command = ("generate_mask", "--num_forget", NUM_FORGET)
    assert script(*command, "--model_path", tmp_path / "run" / "samples", "--save_dir", tmp_path / "run", "--overwrite") != 0
    assert "overlaps with --model_path" in capsys.readouterr().err and (tmp_path / "run" / "samples" / "done.json").is_file()
