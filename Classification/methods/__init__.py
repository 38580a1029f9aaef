"""The unlearning methods. One file each, one line each below.

A method is a function that edits the model in place. Its signature declares everything about it: the positional parameters
are what it is handed (`forget`, `retain`: a method that does not name `retain` never sees retain data), the keyword-only ones
are its flags with their defaults (None: the value the original model was trained with).
"""

import inspect

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

METHODS = {
    "retrain": retrain,
    "ft": ft,
    "rl": rl,
    "ga": ga,
    "iu": iu,
    "be": be,
    "bs": bs,
    "l1_sparse": l1_sparse,
    "salun": salun,
    "salun_soft": salun_soft,
    "neggrad_plus": neggrad_plus,
    "scrub": scrub,
    "ssd": ssd,
}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"retrain"}  # starts from fresh weights
PAPER_SPELLINGS = {
    "FT": "ft",
    "RL": "rl",
    "GA": "ga",
    "wfisher": "iu",
    "boundary_expanding": "be",
    "boundary_shrink": "bs",
    "FT_l1": "l1_sparse",
    "RL_proximal": "salun_soft",
}  # of the paper's own repository


def reads(name):
    """Which parts of the data a method is handed: a subset of ("forget", "retain")."""
    return tuple(part for part in ("forget", "retain") if part in inspect.signature(METHODS[name]).parameters)


def flags(name):
    """{flag: default} of a method."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def call(name, given, options):
    """Run a method, handing it only what its signature names out of `given`."""
    method = METHODS[name]
    wanted = [parameter.name for parameter in inspect.signature(method).parameters.values() if parameter.kind is not parameter.KEYWORD_ONLY]
    method(**{key: given[key] for key in wanted}, **options)
