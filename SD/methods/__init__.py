"""The unlearning methods. One file each, one line each below.

A method is a function that edits the U-Net in place. Its signature declares everything about it: the positional parameters
are what it is handed (`forget`, `retain`: a method that does not name `retain` never sees what is to be kept), the keyword-only ones
are its flags with their defaults.
"""

import inspect

from .ca import ca
from .esd import esd
from .fmn import fmn
from .ga import ga
from .rl import rl
from .salun import salun
from .salun_soft import salun_soft
from .uce import uce

METHODS = {"ga": ga, "rl": rl, "esd": esd, "fmn": fmn, "salun": salun, "salun_soft": salun_soft, "uce": uce, "ca": ca}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"uce"}  # a closed form: there is no gradient
NO_CHECKPOINTING = {"uce", "fmn"}  # fmn looks into the forward pass, which gradient checkpointing repeats


def handed(name):
    """Names of what a method is handed: its positional parameters."""
    return tuple(
        parameter.name for parameter in inspect.signature(METHODS[name]).parameters.values() if parameter.kind is not parameter.KEYWORD_ONLY
    )


def reads(name):
    """Which images a method is handed: a subset of ("forget", "retain")."""
    return tuple(part for part in ("forget", "retain") if part in handed(name))


def flags(name):
    """{flag: default} of a method."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def call(name, given, options):
    """Run a method, handing it only what its signature names out of `given`."""
    METHODS[name](**{key: given[key] for key in handed(name)}, **options)
