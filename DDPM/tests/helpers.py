"""Run the scripts as the command line would, in this process, on a U-Net that trains in seconds."""

import sys

from accelerate.state import AcceleratorState

import engine
import models
import run

models.UNETS["tiny"] = dict(widths=(8, 16), layers=1, attention=4, dropout=0.0)
models.UNETS["tiny_dropout"] = models.UNETS["tiny"] | {"dropout": 0.3}
FORGOTTEN = 3


def cpu(precision="fp32"):
    """An accelerator as a new process would make it: on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return engine.make_accelerator("cpu", precision)


def script(name, *argv):
    """Run a script as the command line would, in this process; returns its exit status."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a new process would start without one
    module = __import__(name)
    try:
        run.cli(module.main, [str(word) for word in argv])
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


def tiny(*argv):
    """Arguments of train.py for a digits model that trains in seconds."""
    flags = "--dataset digits --arch tiny --steps 200 --batch_size 32 --lr 3e-3 --schedule linear --ema 0.9 --precision fp32"
    return ("train", *flags.split(), *argv)
