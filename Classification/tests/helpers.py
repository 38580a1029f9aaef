"""Run the scripts as the command line would, in this process."""

import gc
import sys
from unittest.mock import Mock

import tqdm
from accelerate.state import AcceleratorState

import cli
import trainer

tqdm.tqdm.monitor_interval = 0  # no thread of its own: test_cli.py forks
FROZEN = set()  # scripts whose imports the garbage collector leaves alone
NUM_FORGET = 60  # random samples that the tests forget
TINY = "--dataset digits --arch cnn --epochs 4 --lr 0.1 --batch_size 64 --schedule linear --precision fp32"  # trains in about a second


def cpu(precision="fp32"):
    """An accelerator as a new process would make it: on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return trainer.make_accelerator("cpu", precision)


def null_run_folder():
    return Mock(images_seen=0, **{"last_checkpoint.return_value": None, "seconds.return_value": 0.0})


def trainer_of(model, mask=None, **settings):
    """A Trainer whose run folder writes nothing."""
    return trainer.Trainer(model, null_run_folder(), cpu(), seed=1, mask=mask, **{"batch_size": 4} | settings)


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
        if name not in FROZEN:  # every prepare() collects garbage, which would walk through all that was ever imported
            FROZEN.add(name)
            gc.collect()
            gc.freeze()
    return 0


def ok(name, *argv):
    """Run a script that must succeed."""
    assert script(name, *argv) == 0, f"{name} {words(*argv)}"


def one_error(capsys):
    """The only line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]
