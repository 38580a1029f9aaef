"""Run the scripts as the command line would, in this process."""

import sys

from accelerate.state import AcceleratorState

import engine
import run

NUM_FORGET = 60  # random samples that the tests forget


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


def tiny(*argv, name="train"):
    """Arguments for a digits model that trains in about a second."""
    return (
        name,
        "--dataset",
        "digits",
        "--arch",
        "cnn",
        "--epochs",
        4,
        "--lr",
        0.1,
        "--batch_size",
        64,
        "--schedule",
        "linear",
        "--precision",
        "fp32",
        *argv,
    )
