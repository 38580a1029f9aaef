"""Files that are whole or absent, and that are checked when they are read.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts). Nothing here runs code that a file
holds: JSON and safetensors only. What was edited or damaged ends in a RunError that names the file.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from cli import RunError

# What JSON files of a run may hold under a name, in args.json and in the tables of it that are descended into
TEXT = "kind mask_kind setting method dataset data_dir machine autocast arch sampler caption"
COUNTS = "seed split_seed epochs steps batch_size num_classes channels num_samples num_forgotten step epoch image_size limit"
NUMBERS = "lr val_fraction weight_decay momentum ema grad_clip class_dropout guidance guidance_scale mask_seconds fraction_changed "
NUMBERS += "peak_memory_mb images_seen seconds"
TABLES = "architecture training model model_done options versions mask_info concept"
NAMES, LISTS = "classes", "forgotten num_per_class forget_class"  # lists of texts, and of texts or numbers
NEVER_NULL = "autocast num_forgotten options mask_info versions architecture seconds mask_seconds fraction_changed images_seen"


def write_whole(path, write):
    """Call write(temporary path), then rename onto `path`, so that `path` is whole or absent even after a kill or a full disk."""
    path = Path(path)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # its process has just finished it
            if time.time() - old.stat().st_mtime > 24 * 3600:  # of a process that was killed
                old.unlink()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # no two processes write the same one
    try:
        partial.touch()
        mode = partial.stat().st_mode  # the umask's: safetensors would let nobody else read
        write(partial)
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"could not write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def one_at_a_time(folder):
    """Entered by one process after the other, of all on this machine that name the folder. On a folder without locks, by all at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError:  # read-only
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_folder(data_dir, own, given=None):
    """The folder of what is decoded or encoded once from the images in data_dir: `given` (--cache_dir), else data_dir.

    A user's `own` images have a folder of their own, below `given` or the user's cache folder: nothing is written among them. Raises
    RunError for a file.
    """
    if given and Path(given).is_file():
        raise RunError(f"--cache_dir {given} is a file: name a folder")
    if not own:
        return Path(given or data_dir).expanduser()
    home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "salun")
    return Path(given or home).expanduser() / hashlib.sha256(os.path.realpath(data_dir).encode(errors="surrogateescape")).hexdigest()[:16]


def writable(folder):
    """Whether files can be written in a folder, which is made where that can be."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def remove_leftovers(folder):
    """Remove what a kill left half written in a folder: by write_whole() or by safetensors."""
    for path in (*folder.glob(".*.partial"), *filter(Path.is_file, folder.glob(".tmp*"))):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path, value):
    write_whole(path, lambda partial: partial.write_text(json.dumps(value, indent=2, default=str) + "\n"))


class Record(dict):
    """A table read from a JSON file. A name that it lacks is a RunError."""

    def __init__(self, values, path):
        super().__init__(values)
        self.path = path

    def __missing__(self, name):
        raise RunError(f"{self.path} lacks {name}: it was edited, or written by another version. Make the run again")


def fits(name, value):
    """Whether a value is of the type that its name asks for. Numbers are finite and not negative."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    kinds = {TEXT: isinstance(value, str), TABLES: isinstance(value, dict)}
    kinds |= {LISTS: isinstance(value, list) and all(isinstance(part, (str, int)) for part in value)}
    kinds |= {NAMES: isinstance(value, list) and all(isinstance(part, str) for part in value)}
    kinds |= {NUMBERS: number and 0 <= value < math.inf, COUNTS: number and isinstance(value, int) and value >= 0}
    if value is None:
        return name not in NEVER_NULL.split()
    return all(holds for names, holds in kinds.items() if name in names.split())


def checked(values, path):
    """A Record of JSON values, the tables in it too. Raises RunError unless it is a table whose values fit their names."""
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no table: make the run again")
    for name, value in values.items():
        if not fits(name, value):
            raise RunError(f"{path} has {str(value)[:40]!r} for {name}: it was edited or damaged. Make the run again")
    nested = {name: checked(value, path) for name, value in values.items() if name in TABLES.split() and isinstance(value, dict)}
    return Record(values | nested, path)


def parse_json(text, path):
    try:
        return checked(json.loads(text), path)
    except (ValueError, TypeError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RunError(f"{path} is incomplete or damaged JSON ({error}): make the run again") from error


def read_json(path):
    """A Record of the table in a JSON file."""
    return parse_json(Path(path).read_bytes(), path)


def check_finite(tensors, what):
    """Raise RunError if a tensor of {name: tensor} holds NaN or infinite values. what: the file they are for or from."""
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point and not torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all():
            raise RunError(f"{what}: NaN or infinite values in {name}")


def write_tensors(path, tensors, metadata=None):
    """Write {name: tensor} as safetensors; `metadata` is {str: str}."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda partial: safetensors.torch.save_file(tensors, partial, metadata))


def read_tensors(path):
    """Return ({name: tensor}, metadata) of a safetensors file. Raises RunError for a missing, truncated or pickled file."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist" if not path.exists() else f"{path} is no file of weights")
    with path.open("rb") as file:
        start = file.read(9)  # of safetensors: 8 bytes, the length of the header, which may look like a pickle's, and a brace
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[8:] != b"{":
        raise RunError(f"{path} is a pickle, which can run code when loaded and is never read here; convert it with {conversion(path)}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, Record(file.metadata() or {}, path)
    except safetensors.SafetensorError as error:
        raise RunError(f"{path} is an incomplete or damaged safetensors file ({error})") from error


def conversion(path):
    """The command that makes safetensors of a pickle: the folder's convert.py where it has one."""
    if Path(__file__).with_name("convert.py").is_file():
        return f"python convert.py {path} model.safetensors"
    return "safetensors.torch.save_file(torch.load(path, map_location='cpu', weights_only=True), 'model.safetensors')"


def check_shapes(what, found, expected):
    """Raise RunError unless found, of a file named by `what`, has the names and shapes of expected, of the model. It lists the differences.

    Both are {name: tensor or shape}.
    """
    found, expected = ({name: tuple(getattr(value, "shape", value)) for name, value in part.items()} for part in (found, expected))

    def some(parts):
        return f"{', '.join(parts[:3])}{f' and {len(parts) - 3} more' if len(parts) > 3 else ''}"

    differences = {
        "it lacks": [name for name in expected if name not in found],
        "the model has no": [name for name in found if name not in expected],
        "of other shapes:": [
            f"{name} is {found[name]} there and {shape} in the model" for name, shape in expected.items() if found.get(name, shape) != shape
        ],
    }
    if told := [f"{what} {some(parts)}" for what, parts in differences.items() if parts]:
        raise RunError(f"{what} belongs to another model: {'; '.join(told)}")


def file_sha(path):
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
