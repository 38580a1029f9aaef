"""Run folders, flags and files: the conventions that every script of the three subprojects follows.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts), so that each folder can
be copied away alone. A run folder holds

    args.json          written first: every flag resolved, argv, git commit, versions, the facts of the run
    log.csv            a row per log step
    model.safetensors  weights (SD: a diffusers folder)      mask.safetensors   a bit-packed mask
    metrics.json       written by evaluate.py                 done.json          written last; without it the run did not finish

Every file appears whole or not at all: it is written beside its place and renamed.
"""

import argparse
import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import safetensors
import safetensors.torch

ARTEFACTS = (
    "args.json",
    "log.csv",
    "model.safetensors",
    "mask.safetensors",
    "checkpoint.safetensors",
    "metrics.json",
    "done.json",
    "model",
    "samples",
    "fading.gif",
)
PATHS = ("model_path", "classifier", "pretrained", "clip_model")  # flags that name a file or folder, or something else
NOT_COMPARED = ("save_dir", "resume", "overwrite", "device", "processes", "computed_on")  # flags that may differ when a run is resumed


class RunError(Exception):
    """A mistake in a flag or a file. Its message is one sentence that says what is wrong and what to do about it."""


def cli(main, argv=None):
    """Call main(argv); turn a RunError or an OSError (missing file, full disk) into one sentence and exit status 1."""
    try:
        main(argv)
    except (RunError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command with --resume to go on")


# ---------------------------------------------------------------------------------------------------------------- flags
def number(kind, holds, rule):
    """An argparse type: a number of `kind` for which `holds` is true, or a message that it must be `rule`."""

    def parse(text):
        value = kind(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(f"must be {rule}, not {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


positive_int = number(int, lambda value: value >= 1, "at least 1")
non_negative_int = number(int, lambda value: value >= 0, "at least 0")
positive_float = number(float, lambda value: 0 < value < float("inf"), "a positive number")
non_negative_float = number(float, lambda value: 0 <= value < float("inf"), "a number of at least 0")
ratio = number(float, lambda value: 0 < value <= 1, "in (0, 1]")
share = number(float, lambda value: 0 <= value < 1, "in [0, 1)")


def amount(text):
    """'4500' is a count, '0.1' a fraction: the value of --num_forget."""
    value = float(text)
    if 0 < value < 1:
        return value
    if value >= 1 and value == int(value):
        return int(value)
    raise argparse.ArgumentTypeError(f"must be a whole number of samples or a fraction below 1, not {text}")


# fmt: off
FLAGS = {
    "save_dir": (["--save_dir"], dict(type=Path, metavar="RUN", help="run folder to write")),
    "model_path": (["--model_path"], dict(type=Path, metavar="RUN", help="run folder of the model to start from")),
    "mask_path": (["--mask_path"], dict(type=Path, metavar="RUN", help="run of generate_mask.py: train its salient weights only")),
    "data_dir": (["--data_dir", "--data"], dict(type=Path, metavar="DIR", help="folder of the data sets and their .npz caches")),
    "forget_class": (["--forget_class", "--class_to_replace", "--label_to_forget", "--class_to_forget"],
                     dict(nargs="+", metavar="CLASS", help="forget these classes (numbers or names)")),
    "num_forget": (["--num_forget", "--num_indexes_to_replace"],
                   dict(type=amount, metavar="N", help="forget N random samples (a fraction if below 1); with --forget_class, N of it")),
    "forget_indices": (["--forget_indices"], dict(type=Path, metavar="FILE", help="forget the samples in FILE (.npy, or one a line)")),
    "split_seed": (["--split_seed"], dict(type=int, metavar="SEED", help="seed of the validation split and of a random forget set")),
    "mask_ratio": (["--mask_ratio"], dict(type=ratio, help="fraction of all weights that may change, the most salient ones")),
    "alpha": (["--alpha"], dict(type=non_negative_float, help="weight of the retain term in forget + alpha * retain, both mean-reduced")),
    "lr": (["--lr", "--unlearn_lr"], dict(type=positive_float, help="learning rate")),
    "epochs": (["--epochs", "--unlearn_epochs"], dict(type=non_negative_int, help="passes over the data the method reads")),
    "steps": (["--steps"], dict(type=non_negative_int, help="steps of the optimizer")),
    "batch_size": (["--batch_size"], dict(type=positive_int, help="samples a step, over all processes")),
    "seed": (["--seed"], dict(type=int, help="seed of initialisation, order, augmentation and noise")),
    "device": (["--device"], dict(choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")),
    "precision": (["--precision"], dict(choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 autocast where it is native")),
    "limit": (["--limit"], dict(type=positive_int, metavar="N", help="use N training samples only, for a quick look")),
    "resume": (["--resume"], dict(action="store_true", help="go on where this run was cut off; a finished run is left alone")),
    "overwrite": (["--overwrite"], dict(action="store_true", help="replace the run in --save_dir")),
}
# fmt: on


def parser(description):
    """An argument parser whose help is the script's docstring and shows every default."""
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def add_flags(parser, *names, required=(), **defaults):
    """Add shared flags by name, in the order given: plain names first, then those with a default."""
    for name in (*names, *required, *defaults):
        spellings, options = FLAGS[name]
        parser.add_argument(
            *spellings, dest=name, required=name in required, **options | ({"default": defaults[name]} if name in defaults else {})
        )


def check_forget_flags(parser, args):
    """parser.error unless the flags name one forget set."""
    if args.forget_indices is not None and (args.forget_class or args.num_forget):
        parser.error("--forget_indices contradicts --forget_class and --num_forget: the file says all")
    if args.forget_indices is None and not args.forget_class and args.num_forget is None:
        parser.error("say what to forget: --forget_class, --num_forget or --forget_indices")


# ---------------------------------------------------------------------------------------------------------------- files
def write_whole(path, write):
    """Call write(temporary path), then rename onto `path`, so that `path` is whole or absent even after a kill or a full disk."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    try:
        write(beside)
        os.replace(beside, path)
    except (OSError, safetensors.SafetensorError) as error:
        if beside.exists():
            beside.unlink()
        raise RunError(f"could not write {path}: {error}") from error


def write_json(path, value):
    write_whole(path, lambda beside: beside.write_text(json.dumps(value, indent=2, default=str) + "\n"))


def read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not whole JSON ({error}); make the run again") from error


def write_tensors(path, tensors, metadata=None):
    """Write {name: tensor} as safetensors; `metadata` is {str: str}."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda beside: safetensors.torch.save_file(tensors, beside, metadata))


def read_tensors(path):
    """Return ({name: tensor}, metadata) of a safetensors file. Raises RunError for a missing, truncated or pickled file."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise RunError(
            f"{path} is a pickle, which can run code when loaded and is never read here; convert it with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise RunError(f"{path} is not a whole safetensors file ({error})") from error


def file_sha(path):
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_run(path):
    """Return (folder, args) of a run folder, or of a file inside one. Raises RunError if it is none or did not finish."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not Path(path).exists():
        raise RunError(f"{path} does not exist")
    if Path(path).is_file():
        read_tensors(path)
    if not (folder / "args.json").is_file():
        raise RunError(f"{folder} is no run folder: it holds no args.json")
    if not (folder / "done.json").is_file():
        raise RunError(f"the run in {folder} did not finish: run its command again with --resume")
    return folder, read_json(folder / "args.json")


def versions(*packages):
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine():
    """Processor and number of cores, for the record beside a number."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    )
    return f"{os.cpu_count()} x {names[0] if names else platform.processor() or platform.machine()}"


def git_commit():
    """Commit of the code that runs, with '+' when files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    if commit.returncode:
        return None
    dirty = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, text=True)
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


# ----------------------------------------------------------------------------------------------------------- run folder
def lies_in(path, folder):
    """Whether a resolved path is a folder or lies in it, however they are spelled."""
    return folder.exists() and any(part.exists() and part.samefile(folder) for part in (path, *path.parents))


def check_apart(args):
    """Refuse a --save_dir that is, holds or lies in a run that the same command reads: --overwrite would delete what it starts from."""
    for save_dir in args.save_dir if isinstance(args.save_dir, list) else [args.save_dir]:
        target = Path(save_dir).resolve()
        for name, value in vars(args).items():
            for source in value if isinstance(value, list) else [value]:
                if name == "save_dir" or not (isinstance(source, Path) or (name in PATHS and isinstance(source, str))):
                    continue
                read = Path(source).resolve()
                folder = read if read.is_dir() else read.parent
                if read.exists() and (lies_in(read, target) or ((folder / "args.json").is_file() and lies_in(target, folder))):
                    raise RunError(f"--save_dir {save_dir} is, holds or lies in what --{name} {source} reads: name another --save_dir")


class Run:
    """One run folder, written by the main process only.

    Life: Run(args) checks the folder and loses nothing; begin() writes args.json once the inputs are known to be good;
    log(), save(), checkpoint() as the run goes; finish() writes done.json. `finished` is true where --resume finds a done run.
    """

    def __init__(self, args, main_process=True):
        self.folder, self.args, self.main = Path(args.save_dir), args, main_process
        self.images_seen, self.seconds_before, self._columns, self.known = 0, 0.0, None, None
        self.start_clock()
        self.finished = args.resume and (self.folder / "done.json").is_file()
        if args.resume and args.overwrite:
            raise RunError("--resume and --overwrite contradict each other: pass one of them")
        check_apart(args)
        if not main_process:
            return
        if (self.folder / "args.json").is_file():
            if not (args.resume or args.overwrite):
                raise RunError(
                    f"{self.folder} already holds a run: pass --resume to go on with it, --overwrite to replace it, or another --save_dir"
                )
            if args.resume:
                self.known = read_json(self.folder / "args.json")
                self._check_same(vars(args))
        elif self.folder.exists() and (not self.folder.is_dir() or set(os.listdir(self.folder)) - {".args.json.partial"}):
            raise RunError(f"--save_dir {self.folder} exists and is no run folder: name a new or empty folder")

    def _check_same(self, record):
        """On --resume, refuse flags or facts other than those the run was started with."""
        record = json.loads(json.dumps(record, default=str))
        differing = sorted(name for name in record if name not in NOT_COMPARED and record[name] != self.known.get(name))
        if differing:
            raise RunError(
                f"cannot resume {self.folder}: it was started with other values of {', '.join(differing)}; "
                "repeat them, pass --overwrite, or name another --save_dir"
            )

    def start_clock(self):
        self._clock = time.monotonic()

    def seconds(self):
        """Seconds since start_clock(), with those before the checkpoint that was resumed."""
        return self.seconds_before + time.monotonic() - self._clock

    @contextlib.contextmanager
    def paused(self):
        """Time that is not counted: pictures drawn while a model trains."""
        start = time.monotonic()
        yield
        self._clock += time.monotonic() - start

    def begin(self, packages=("torch",), **facts):
        """Write args.json, or on --resume check that flags and facts are those of the run that was cut off."""
        if not self.main:
            return
        if self.known is not None:
            return self._check_same(facts)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ARTEFACTS:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        origin = {"git_commit": git_commit(), "machine": machine(), "versions": versions(*packages), "started": started}
        write_json(self.folder / "args.json", {**vars(self.args), **facts, "argv": sys.argv, **origin})

    def log(self, **row):
        """Append a row to log.csv; a column seen for the first time widens the file."""
        if not self.main:
            return
        path = self.folder / "log.csv"
        self._columns = self._columns or []
        if set(row) - set(self._columns):
            rows = list(csv.DictReader(path.read_text().splitlines())) if self._columns else []
            self._columns += [name for name in row if name not in self._columns]
            return self._rewrite_log([*rows, row])
        with path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite_log(self, rows):
        def write(beside):
            with beside.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)

        write_whole(self.folder / "log.csv", write)

    def save(self, name, tensors, metadata=None):
        if self.main:
            write_tensors(self.folder / name, tensors, metadata)

    def checkpoint(self, tensors, **state):
        """Keep what continues the run: tensors and JSON-able values."""
        self.save("checkpoint.safetensors", tensors, {"state": json.dumps(state)})

    def last_checkpoint(self):
        """Return (tensors, state) of the last checkpoint on --resume, else None; rows logged after it are dropped from log.csv."""
        path, log = self.folder / "checkpoint.safetensors", self.folder / "log.csv"
        if not self.args.resume:
            return None
        found = read_tensors(path) if path.is_file() else None
        state = json.loads(found[1]["state"]) if found else {"step": 0}
        if self.main and log.is_file():
            with log.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if None not in row.values() and int(row["step"]) <= state["step"]]
                self._columns = list(reader.fieldnames or [])
            self._rewrite_log(rows)
        return (found[0], state) if found else None

    def finish(self, **facts):
        """Write done.json, then drop the checkpoint and what a kill may have left half written."""
        if self.main:
            write_json(self.folder / "done.json", facts)
            for path in (self.folder / "checkpoint.safetensors", *self.folder.glob(".*.partial")):
                path.unlink(missing_ok=True)
