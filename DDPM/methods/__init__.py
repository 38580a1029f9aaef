"""The unlearning methods: one file and one line each.

A method is a function that edits the model in place. Its positional parameters are what it is handed: `model`, `forget`, `retain`
(Splits), `trainer`, `classes`, `targets` (the class c' that stands in for each label), `training` (the original's flags), `fresh()` (a
model with new random weights). A method that does not name `retain` is handed no retain data. Its keyword-only parameters are its
flags, with their defaults (None: as the original was trained). A flag that no other method has is declared in the method's own file,
in FLAGS. TRAINING there holds the training settings of the method's authors, where they differ from unlearn.py's.

A loss is a mean over the global batch: batch.mean(per-sample losses). A mean over this process's samples would be wrong under several
processes.
"""

from cli import non_negative_float, share

from .erasediff import erasediff
from .esd import esd
from .ga import ga
from .ga_retain import ga_retain
from .retrain import retrain
from .rl import rl
from .sa import sa
from .salun import salun
from .salun_soft import salun_soft
from .scissorhands import scissorhands
from .sfron import sfron

ALL = (retrain, ga, ga_retain, rl, esd, sa, salun, salun_soft, erasediff, sfron, scissorhands)
METHODS = {method.__name__: method for method in ALL}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"retrain"}  # starts from fresh weights
EXCLUSIVE = (("alpha", "sum_alpha"), ("forget_weight", "erase_rate"))  # flags that say the same thing in two ways
FLAGS = {  # of several methods, or what a flag of all scripts means here
    "alpha": dict(
        help="weight of the retain term, forget + alpha * retain; both are sums over pixels in ga_retain, sa and sfron, else means"
    ),
    "mask_ratio": dict(help="salun_soft: share of the weights that return to the original at first, falling to 0"),
    "forget_weight": dict(type=non_negative_float, help="fixed weight of the forget term"),
    "sum_alpha": dict(type=non_negative_float, help="--alpha of a retain term that is a sum over pixels: the paper repository's"),
    "target_dropout": dict(
        type=share,
        help="share of the labels dropped in the prediction for a forgotten class, and in its target; "
        "with 0 the target is predicted without the U-Net's dropout too",
    ),
}
