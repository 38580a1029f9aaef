"""The families of text-to-image models: one file and one line each. A pipeline's class decides which one it is."""

from .base import Embeddings, Family
from .flux import Flux
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL

FAMILIES = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
# By the name that train.py --family has for them
BUILT = {"sd": StableDiffusion, "sdxl": StableDiffusionXL, "sd3": StableDiffusion3, "flux": Flux}
KINDS = {kind: family for family in FAMILIES for kind in family.KINDS}
TRAIN_METHODS = tuple(dict.fromkeys(name for family in FAMILIES for name in family.TRAIN_METHODS))

__all__ = ["BUILT", "FAMILIES", "KINDS", "TRAIN_METHODS", "Embeddings", "Family"]
