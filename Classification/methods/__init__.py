"""The unlearning methods: one file and one line each.

A method is a function that edits the model in place. Its positional parameters are what it is handed: `model`, `forget`, `retain`
(Splits), `val` (held-out images), `trainer`, `training` (the original's flags), `fresh()` (a model with new random weights). A method
that does not name `retain` is handed no retain data. Its keyword-only parameters are its flags, with their defaults (None: as the
original was trained). A flag that no other method has is declared in the method's own file, in FLAGS. TRAINING there holds the training
settings of the method's authors, where they differ from the original's.

A loss is a mean over the global batch: batch.mean(per-sample losses), or cross_entropy of trainer.py (not of the `trainer`). A mean over
this process's samples would be wrong under several processes.
"""

from argparse import BooleanOptionalAction

from cli import non_negative_float, non_negative_int, positive_float

from .bad_teacher import bad_teacher
from .be import be
from .bs import bs
from .fisher import fisher
from .ft import ft
from .ga import ga
from .iu import iu
from .iu_exact import iu_exact
from .l1_sparse import l1_sparse
from .munba import munba
from .neggrad_plus import neggrad_plus
from .retrain import retrain
from .rl import rl
from .salun import salun
from .salun_soft import salun_soft
from .scissorhands import scissorhands
from .scrub import scrub
from .sfron import sfron
from .ssd import ssd

METHODS = (retrain, ft, rl, ga, iu, iu_exact, fisher, be, bs, l1_sparse, salun, salun_soft)
METHODS += (neggrad_plus, scrub, ssd, bad_teacher, sfron, scissorhands, munba)
METHODS = {method.__name__: method for method in METHODS}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"retrain"}  # starts from fresh weights
MIX = "one shuffled pass over forget and retain set, not one after the other (default of salun_soft: where the official release does so)"
FLAGS = {  # of several methods, or what a flag of all scripts means here
    "mix": dict(action=BooleanOptionalAction, help=MIX),
    "gamma": dict(type=non_negative_float, help="weight of the L1 norm at the start, or of the cross-entropy (scrub)"),
    "iu_scale": dict(type=positive_float, help="length of the step along the influence direction"),
    "fisher_samples": dict(type=non_negative_int, help="samples for the Fisher information (0: all)"),
    "alpha": dict(help="weight of the retain term, forget + alpha * retain; scrub: of the KL on the retain set alone"),
    "steps": dict(help="sfron: steps on retain batches"),
    "mask_ratio": dict(help="salun_soft: share of the weights that return to the original at first, falling to 0"),
}
PAPER_SPELLINGS = dict(  # of the paper's own repository, and of Unlearn-Sparse, from which it comes
    FT="ft", RL="rl", GA="ga", wfisher="iu", fisher_new="fisher", boundary_expanding="be", boundary_shrink="bs", FT_l1="l1_sparse"
)
PAPER_SPELLINGS |= dict(FT_prune="l1_sparse", RL_proximal="salun_soft")
PAPER_ALPHA = {"iu": "iu_scale", "l1_sparse": "gamma", "fisher": "noise_scale"}  # what its --alpha is here
