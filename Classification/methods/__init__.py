"""The unlearning methods: one file and one line each.

A method is a function that edits the model in place. Its positional parameters are what it is handed: `model`, `forget`, `retain`
(Splits), `trainer`, `training` (the original's flags), `fresh()` (a model with new random weights). A method that does not name
`retain` is handed no retain data. Its keyword-only parameters are its flags, with their defaults (None: as the original was trained).
A flag that no other method has is declared in the method's own file, in FLAGS. TRAINING there holds the training settings of the
method's authors, where they differ from the original's.

A loss is a mean over the global batch: batch.mean(per-sample losses), or trainer.cross_entropy. A mean over this process's samples
would be wrong under several processes.
"""

from cli import non_negative_float, non_negative_int

from .be import be
from .bs import bs
from .ft import ft
from .ga import ga
from .iu import iu
from .l1_sparse import l1_sparse
from .neggrad_plus import neggrad_plus
from .retrain import retrain
from .rl import rl
from .salun import salun
from .salun_soft import salun_soft
from .scrub import scrub
from .ssd import ssd

METHODS = {method.__name__: method for method in (retrain, ft, rl, ga, iu, be, bs, l1_sparse, salun, salun_soft, neggrad_plus, scrub, ssd)}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"retrain"}  # starts from fresh weights
FLAGS = {  # of several methods
    "mix": dict(action="store_true", help="one shuffled pass over forget and retain set, not one after the other"),
    "gamma": dict(type=non_negative_float, help="weight of the L1 norm at the start, or of the cross-entropy (scrub)"),
    "fisher_samples": dict(type=non_negative_int, help="samples for the Fisher information (0: all)"),
}
PAPER_SPELLINGS = dict(  # of the paper's own repository
    FT="ft", RL="rl", GA="ga", wfisher="iu", boundary_expanding="be", boundary_shrink="bs", FT_l1="l1_sparse", RL_proximal="salun_soft"
)
PAPER_SPELLINGS["FT_prune"] = "l1_sparse"
