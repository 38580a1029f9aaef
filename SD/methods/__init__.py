"""The unlearning methods: one file and one line each.

A method is a function that edits the model in place. Its positional parameters are what it is handed: `model`, `forget`, `retain`
(Splits of latents), `trainer`, `family` (which knows how to noise and predict), `embeddings` of all prompts, the last one the empty
prompt, `targets` (P,) (the prompt that stands in for each), `forgotten` and `retained` (numbers of prompts), `named` (those that
--retain_prompts names, and the empty one), `words` (each prompt's own tokens), `ends` (where its last own token is, of each text encoder),
`latent_shape` (C, h, w), `generated(numbers, name)` (a Split of images that the original draws of prompts). A method that does not name
`retain` is handed nothing that is retained. Its keyword-only parameters are its flags, with their defaults. A flag that no other method
has is declared in the method's own file, in FLAGS. TRAINING there holds the training settings of the method's authors, where they differ
from unlearn.py's.

A loss is a mean over the global batch: batch.mean(per-sample losses). A mean over this process's samples would be wrong under several
processes.
"""

from .ca import ca
from .esd import esd
from .fmn import fmn
from .ga import ga
from .ga_retain import ga_retain
from .rl import rl
from .salun import salun
from .salun_soft import salun_soft
from .uce import uce

METHODS = {method.__name__: method for method in (ga, ga_retain, rl, esd, fmn, salun, salun_soft, uce, ca)}
NEEDS_MASK = {"salun"}
TAKES_NO_MASK = {"uce"}  # a closed form: there is no gradient
NO_CHECKPOINTING = {"uce", "fmn"}  # fmn looks into the forward pass, which gradient checkpointing repeats
FLAGS = {  # what a flag of all scripts means here
    "mask_ratio": dict(help="salun_soft: share of the weights that return to the original at first, falling to 0")
}
