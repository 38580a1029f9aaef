"""Run the scripts as the command line would, in this process, on a pipeline that trains in seconds."""

import gc
import sys

from accelerate.state import AcceleratorState

import cli
import models
import trainer

FROZEN = set()  # scripts whose imports are out of the garbage collector's sight
models.ARCHS["test"] = dict(widths=(16, 16), vae=(8, 8), text=32, layers=1, image_size=16, transformer=(2, 2, 8))
FORGOTTEN = "three"
TINY = "--from_scratch --dataset digits --arch test --vae_steps 60 --steps 150 --batch_size 32 --lr 3e-3 --schedule linear --ema 0.9"
TINY += " --precision fp32"


def cpu(precision="fp32"):
    """An accelerator as a new process would make it: on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer.make_accelerator("cpu", precision)


def words(*argv):
    """A command line. Strings of flags (--...) are split at spaces, an empty one is no word, all else is one word: a prompt stays whole."""
    return [part for word in argv for part in (word.split() if word == "" or str(word).startswith("--") else [str(word)])]


def script(name, *argv):
    """Run a script as the command line would, in this process; returns its exit status."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a new process would start without one
    module = __import__(name)
    try:
        cli.run(module.main, words(*argv))
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    finally:
        if name not in FROZEN:  # accelerate collects garbage in every run, which took 0.3 s among all that is imported
            FROZEN.add(name)
            gc.collect()
            gc.freeze()
    return 0


def ok(name, *argv):
    """Run a script that must succeed."""
    assert script(name, *argv) == 0, f"{name} {words(*argv)}"
