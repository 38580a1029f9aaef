"""Run the scripts as the command line would, in this process, on a U-Net that trains in seconds."""

import gc
import os
import sys

from accelerate.state import AcceleratorState
from tqdm import tqdm

import cli
import models
import trainer

models.UNETS["tiny"] = dict(widths=(8, 16), layers=1, attention=4, dropout=0.0)
models.UNETS["tiny_dropout"] = models.UNETS["tiny"] | {"dropout": 0.3}
tqdm.monitor_interval = 0  # no thread of its own: a fork would find its lock taken
FORGOTTEN, FROZEN = 3, set()
TINY = "--dataset digits --arch tiny --steps 200 --batch_size 32 --lr 3e-3 --schedule linear --ema 0.9 --precision fp32"


def cpu(precision="fp32"):
    """An accelerator as a new process would make it: on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer.make_accelerator("cpu", precision)


def words(*argv):
    """A command line: strings are split at spaces, all else is one word."""
    return [part for word in argv for part in (word.split() if isinstance(word, str) else [str(word)])]


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
        if name not in FROZEN:  # accelerator.free_memory() collects garbage: it need not look at all that was imported each time
            FROZEN.add(name)
            gc.collect()
            gc.freeze()
    return 0


def ok(name, *argv):
    """Run a script that must succeed."""
    assert script(name, *argv) == 0, f"{name} {words(*argv)}"


class Payload:
    """A pickle that makes a folder when it is read as one."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)
