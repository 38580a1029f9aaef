"""Run the scripts as the command line would, in this process, on a pipeline that trains in seconds."""

import sys

from accelerate.state import AcceleratorState

import engine
import models
import run

models.UNETS["test"] = dict(widths=(16, 16), vae=(8, 8), text=32, layers=1, image_size=16)
FORGOTTEN = "three"


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
    """Arguments of train.py for a pipeline of digits that trains in seconds."""
    flags = "--from_scratch --dataset digits --arch test --vae_steps 60 --steps 150 --batch_size 32 --lr 3e-3 --schedule linear --ema 0.9"
    return ("train", *flags.split(), "--precision", "fp32", *argv)
