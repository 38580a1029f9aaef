"""The files of a run, in the folder that --save_dir names.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts). A run folder holds

    args.json          written first: every flag resolved, argv, git commit, versions, the facts of the run
    log.csv            a row per log step
    model.safetensors  weights (SD: a diffusers folder, model/)    mask.safetensors   a bit-packed mask
    metrics.json       written by evaluate.py                       done.json          written last; without it the run did not finish

Every file appears whole or not at all. While a run writes, it holds the lock of .lock, which ends with its process.
"""

import contextlib
import csv
import datetime
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

import cli
from cli import AlreadyDone, RunError
from files import check_finite, parse_json, read_json, read_tensors, remove_leftovers, write_json, write_tensors, write_whole

WEIGHTS = "model.safetensors last.safetensors mask.safetensors checkpoint.safetensors"
WRITTEN = f"done.json log.csv {WEIGHTS} metrics.json model samples fading.gif"
PATHS = ("model_path", "classifier", "pretrained", "clip_model")  # flags that name a file or folder, or something else
NOT_COMPARED = ["save_dir", "resume", "overwrite", "device", "processes", "computed_on", "parent"]  # may differ when a run is resumed
NOT_COMPARED += ["cache_dir", "data_on", "eval_batch_size", "settings", "precision"]  # autocast, what --precision came to, is compared
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "safetensors", "torch-fidelity")


def read_run(path, *kinds):
    """Return (folder, args) of a finished run of one of these kinds, named by its folder or a file inside it. Raises RunError."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not Path(path).exists():
        raise RunError(f"{path} does not exist")
    if Path(path).is_file():
        read_tensors(path)
    if not (folder / "args.json").is_file():
        raise RunError(f"{folder} is not a run folder: it holds no args.json")
    if not (folder / "done.json").is_file():
        raise RunError(f"the run in {folder} did not finish: run its command again with --resume")
    recorded = read_json(folder / "args.json")
    if recorded.get("kind") not in kinds:
        more = " (to forget more, start from the original and forget everything together)" if recorded.get("kind") == "unlearn" else ""
        raise RunError(f"{folder} is a run of kind {recorded.get('kind')}, where one of kind {' or '.join(kinds)} is needed{more}")
    return folder, recorded


def moved(path, recorded, folder, cwd=None):
    """A path that the args.json `recorded` of `folder` names: as it stands there, or where it is if both were moved together.

    cwd: the folder that the path starts from, where it comes from a run that was started in another one.
    """
    run, there = os.path.join(recorded.get("cwd", ""), recorded["save_dir"]), os.path.join(cwd or recorded.get("cwd", ""), path)
    found = next((Path(place) for place in (path, there) if Path(place).exists()), None)
    return found or folder / os.path.relpath(there, run)


def versions():
    """{"python": version, package: version}, of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine():
    """Number of cores and processor: they go with every number."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return f"{os.cpu_count()} x {names[0] if names else platform.processor() or platform.machine()}"


def git_commit():
    """Commit of the code that runs, with '+' when files differ from it; None outside a git checkout."""
    command = "git describe --always --abbrev=40 --exclude=* --dirty=+"
    if shutil.which("git") is None:
        return None
    return subprocess.run(command.split(), cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None


def peak_memory_mb(device):
    """Largest memory so far in MB: allocated on a GPU, else the resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def lies_in(path, folder):
    """Whether a resolved path is a folder or lies in it, however they are spelled."""
    return folder.exists() and any(part.exists() and part.samefile(folder) for part in (path, *path.parents))


def paths_read(args):
    """Yield (flag, path, folder of a run or of a file) of what a command reads."""
    for name, value in vars(args).items():
        for source in value if isinstance(value, list) else [value]:
            if name != "save_dir" and (isinstance(source, Path) or (name in PATHS and isinstance(source, str))) and Path(source).exists():
                yield name, Path(source), Path(source) if Path(source).is_dir() else Path(source).parent


def check_apart(args):
    """Refuse a --save_dir that is, holds or lies in a run that the same command reads: --overwrite would delete what it starts from."""
    for save_dir in args.save_dir if isinstance(args.save_dir, list) else [args.save_dir]:
        target = Path(save_dir).resolve()
        for name, source, folder in paths_read(args):
            if lies_in(source.resolve(), target) or ((folder / "args.json").is_file() and lies_in(target, folder.resolve())):
                raise RunError(f"--save_dir {save_dir} overlaps with --{name} {source}: name another --save_dir")


def sources(args):
    """{flag: [when each run that it names began]}: tells a run from one that replaced it, wherever both are moved."""
    found = {}
    for name, _, folder in paths_read(args):
        if (folder / "args.json").is_file() and (began := read_json(folder / "args.json").get("started")):
            found.setdefault(name, []).append(began)
    return found


def is_measured(folder, args, how):
    """Whether --resume leaves the metrics.json of a folder alone. Raises RunError where it was measured in another way than `how`."""
    if not (folder / "metrics.json").is_file() or args.overwrite:
        return False
    if not args.resume:
        raise RunError(f"{folder} has metrics.json already: pass --overwrite to measure again, --resume to skip it")
    measured = read_json(folder / "metrics.json")
    if "facts" not in measured or not isinstance(measured.get("how", {}), dict):
        raise RunError(f"{folder} has a metrics.json that does not tell how it was measured: pass --overwrite to measure again")
    then = measured.get("how", {})  # earlier versions do not tell
    if differing := [name for name, value in how.items() if name in then and then[name] != value]:
        raise RunError(f"{folder} was measured with other values of {', '.join(differing)}: pass --overwrite to measure again")
    print(f"{folder} is measured already")
    return True


class RunFolder:
    """One run folder, written by the main process only.

    RunFolder(args, accelerator) checks the folder and changes nothing. begin() writes args.json, once the inputs are known to be
    good. log(), save() and checkpoint() write as the run proceeds. finish() writes done.json.
    Raises AlreadyDone where --resume finds a finished run.
    """

    def __init__(self, args, accelerator):
        self.folder, self.args, self.accelerator, self.is_main = Path(args.save_dir), args, accelerator, accelerator.is_main_process
        self.images_seen, self.seconds_before, self._columns, self._known = 0, 0.0, [], None
        self.start_clock()
        if args.resume and args.overwrite:
            raise RunError("--resume and --overwrite contradict each other: pass one of them")
        check_apart(args)
        if self.is_main:
            self._check_folder()
        if args.resume and (self.folder / "done.json").is_file():
            if self.is_main:
                self._check_sources()
                self._tidy()  # a kill may have come between
            raise AlreadyDone(f"{self.folder} is finished already")

    @classmethod
    def or_none(cls, args, accelerator):
        """A RunFolder, or None after a line about a finished run: for scripts that write several."""
        try:
            return cls(args, accelerator)
        except AlreadyDone as done:
            print(done)

    def _check_folder(self):
        if (self.folder / "args.json").is_file():
            if not (self.args.resume or self.args.overwrite):
                raise RunError(f"{self.folder} already holds a run: pass --resume to continue it or --overwrite to replace it")
            recorded = read_json(self.folder / "args.json")
            if not recorded.keys() >= {"kind", "argv"}:
                raise RunError(f"--save_dir {self.folder} holds an args.json that is of no run: name another folder")
            if self.args.resume:
                self._known = recorded
                self._check_same(vars(self.args))
                self._check_precision()
        elif self.folder.exists() and (not self.folder.is_dir() or any(name[0] != "." for name in os.listdir(self.folder))):
            raise RunError(f"--save_dir {self.folder} exists and is not a run folder: name a new or empty folder")

    def _lock(self):
        """Hold the run folder until this process ends, or raise RunError with the host and the process that do."""
        path = self.folder / ".lock"
        file = cli.CLOSED_AT_END.enter_context(path.open("a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"{file.read() or 'another process'} writes into {self.folder}: wait, or name another --save_dir") from None
        except OSError as error:
            print(f"no lock on {self.folder}: {error}. Do not start a second run on it", file=sys.stderr)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):  # its holder has just removed it
            return self._lock()
        cli.CLOSED_AT_END.callback(path.unlink, missing_ok=True)  # while it is still held
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()

    def _check_same(self, recorded):
        """On --resume, refuse flags or facts other than those the run was started with. A path may be spelled in another way."""
        recorded, paths = json.loads(json.dumps(recorded, default=str)), {n for n, value in recorded.items() if isinstance(value, Path)}

        def differs(name):
            now, then = recorded[name], self._known.get(name)
            return now != then and not (name in paths and isinstance(then, str) and os.path.realpath(now) == os.path.realpath(then))

        differing = sorted(name for name in recorded if name not in NOT_COMPARED and differs(name))
        if differing:
            what = ", ".join(differing)
            raise RunError(f"cannot resume {self.folder}: it was started with other values of {what}. Pass those, or --overwrite")

    def _check_precision(self):
        """Refuse to continue in another precision than a run began in: auto is not the same on all machines. A finished one may stay."""
        then, finished = self._known.get("autocast"), (self.folder / "done.json").is_file()
        asked = getattr(self.args, "precision", "auto") != "auto"
        if then not in (None, self.accelerator.mixed_precision) and (asked or not finished):
            then = then.replace("no", "fp32")
            raise RunError(f"cannot resume {self.folder} in another precision than its own, {then}: pass --precision {then}")

    def _check_sources(self):
        """Refuse to take a finished run for one that would start from what lies in its sources now."""
        then, now = self._known.get("sources", {}), sources(self.args)  # earlier versions do not tell
        if replaced := [name for name in now if name in then and then[name] != now[name]]:
            what = " and ".join(f"--{name}" for name in replaced)
            raise RunError(f"the run at {what} has been replaced since {self.folder} was made: pass --overwrite to make it again")

    def start_clock(self):
        self._clock = time.monotonic()

    def seconds(self):
        """Seconds since start_clock(), with those before the checkpoint that was resumed."""
        self._wait()
        return self.seconds_before + time.monotonic() - self._clock

    def _wait(self):
        """Until a GPU has done what is queued."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def paused(self):
        """Time that is not counted: pictures drawn while a model trains."""
        self._wait()
        start = time.monotonic()
        yield
        self._wait()
        self._clock += time.monotonic() - start

    def begin(self, **facts):
        """Write args.json, or on --resume check that flags and facts are those of the run that stopped."""
        if not self.is_main:
            return
        here = self.accelerator
        facts |= {"processes": here.num_processes, "computed_on": str(here.device), "autocast": here.mixed_precision}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        self._check_folder()  # another run may have begun or ended here since
        if self.args.resume and (self.folder / "done.json").is_file():
            raise AlreadyDone(f"{self.folder} is finished already")
        remove_leftovers(self.folder)
        if self._known is not None:
            then = str(self._known.get("computed_on", here.device.type)).split(":")[0]
            if self._known.get("mask_path") and then != here.device.type:  # the optimizer's state has the order of the weights in memory
                raise RunError(f"cannot resume {self.folder} on {here.device.type}: with a mask, it goes on only on {then}, where it began")
            return self._check_same(facts)
        paths = [self.folder / name for name in WRITTEN.split()]
        for path in paths:
            if (path / "args.json").is_file() and read_json(path / "args.json").get("kind") in ("train", "unlearn"):
                raise RunError(f"{path} is a run of its own: move it out of {self.folder} before --overwrite replaces that")
        for path in paths:  # args.json is replaced last: a folder without it would be no run folder
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        origin = {"git_commit": git_commit(), "machine": machine(), "versions": versions(), "started": started}
        origin |= {"sources": sources(self.args), "cwd": os.getcwd()}
        write_json(self.folder / "args.json", {**vars(self.args), **facts, "argv": sys.argv, **origin})

    def log(self, **row):
        """Append a row to log.csv; a column seen for the first time widens the file."""
        if self.is_main and set(row) <= set(self._columns):
            with (self.folder / "log.csv").open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        elif self.is_main:
            self._write_log([*self._read_log(), row])

    def _read_log(self):
        path = self.folder / "log.csv"
        return list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []

    def _write_log(self, rows):
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if rows:
            writer.writeheader()
        writer.writerows(rows)
        write_whole(self.folder / "log.csv", lambda partial: partial.write_text(text.getvalue(), newline=""))

    def save(self, name, tensors, metadata=None):
        """Write {name: tensor} into the run folder. Raises RunError for values that are not finite: no run is finished with them."""
        if self.is_main:
            check_finite(tensors, f"{self.folder / name} was not written, start again with a lower --lr")
            write_tensors(self.folder / name, tensors, metadata)

    def checkpoint(self, groups, **state):
        """Keep what continues the run: {group: {name: tensor}} and JSON-able values."""
        state |= {"seconds": self.seconds(), "images_seen": self.images_seen}
        tensors = {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
        self.save("checkpoint.safetensors", tensors, {"state": json.dumps(state)})

    def last_checkpoint(self):
        """Return (groups, state) of the last checkpoint on --resume, else None. Rows logged after it are dropped from log.csv."""
        path = self.folder / "checkpoint.safetensors"
        if not self.args.resume:
            return None
        tensors, metadata = read_tensors(path) if path.is_file() else ({}, {"state": '{"step": 0}'})
        state, groups = parse_json(metadata["state"], path), {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = tensor
        here = self.accelerator
        if here.num_processes > 1 and len(here.gather(torch.tensor([state["step"]], device=here.device)).unique()) > 1:
            raise RunError(f"the processes see different checkpoints: {self.folder} must lie on a file system that they share")
        if self.is_main:
            try:
                rows = [row for row in self._read_log() if None not in row.values() and int(row["step"]) <= state["step"]]
            except (KeyError, ValueError, TypeError, csv.Error) as error:
                raise RunError(f"{self.folder}/log.csv is damaged ({error}): remove it to go on without") from error
            self._write_log(rows)
        return (groups, state) if groups else None

    def continue_from(self, state):
        """Count on from the seconds and images of a checkpoint's state."""
        self.seconds_before, self.images_seen = state["seconds"], state["images_seen"]
        self.start_clock()

    def finish(self, message, **facts):
        """Write done.json, remove the checkpoint and what a kill may have left half written, and print one line."""
        if self.is_main:
            facts |= {"peak_memory_mb": peak_memory_mb(self.accelerator.device)}
            write_json(self.folder / "done.json", facts)
            self._tidy()
            print(f"{self.folder}: {message}")

    def _tidy(self):
        """Remove from a finished run what only continues it."""
        remove_leftovers(self.folder)
        for name in ("checkpoint.safetensors", ".lock"):
            (self.folder / name).unlink(missing_ok=True)
