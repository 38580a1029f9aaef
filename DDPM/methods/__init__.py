"""The unlearning methods: one file and one line each.

A method is a function that edits the model in place. Its positional parameters are what it is handed: `model`, `forget`, `retain`
(Splits), `trainer`, `classes`, `targets` (the class c' that stands in for each label), `training` (the original's flags), `fresh()` (a
model with new random weights). A method that does not name `retain` is handed no retain data. Its keyword-only parameters are its
flags, with their defaults (None: as the original was trained). A flag that no other method has is declared in the method's own file,
in FLAGS. TRAINING there holds the training settings of the method's authors, where they differ from unlearn.py's.

A loss is a mean over the global batch: batch.mean(per-sample losses). A mean over this process's samples would be wrong under several
processes.
"""

from cli import positive_int

from .erasediff import erasediff
from .esd import esd
from .ga import ga
from .retrain import retrain
from .rl import rl
from .sa import sa
from .salun import salun
from .salun_soft import salun_soft

METHODS = {method.__name__: method for method in (retrain, ga, rl, esd, sa, salun, salun_soft, erasediff)}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"retrain"}  # starts from fresh weights
FLAGS = {"replay": dict(type=positive_int, metavar="N", help="samples that the original draws of each class")}  # of several methods
