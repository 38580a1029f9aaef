"""The unlearning methods. One file each, one line each below.

A method is a function that edits the model in place. Its signature declares everything about it: the positional parameters
are what it is handed (`forget`, `retain`: a method that does not name `retain` never sees retain data), the keyword-only ones
are its flags with their defaults (None: the value the original model was trained with).
"""

import inspect

from .erasediff import erasediff
from .esd import esd
from .ga import ga
from .retrain import retrain
from .rl import rl
from .sa import sa
from .salun import salun
from .salun_soft import salun_soft

METHODS = {"retrain": retrain, "ga": ga, "rl": rl, "esd": esd, "sa": sa, "salun": salun, "salun_soft": salun_soft, "erasediff": erasediff}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"retrain"}  # starts from fresh weights


def handed(name):
    """Names of what a method is handed: its positional parameters."""
    return tuple(
        parameter.name for parameter in inspect.signature(METHODS[name]).parameters.values() if parameter.kind is not parameter.KEYWORD_ONLY
    )


def reads(name):
    """Which training images a method is handed: a subset of ("forget", "retain")."""
    return tuple(part for part in ("forget", "retain") if part in handed(name))


def flags(name):
    """{flag: default} of a method."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def call(name, given, options):
    """Run a method, handing it only what its signature names out of `given`."""
    METHODS[name](**{key: given[key] for key in handed(name)}, **options)
