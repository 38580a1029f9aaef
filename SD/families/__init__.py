"""The families of text-to-image models: one file and one line each. A pipeline's class decides which one it is."""

from .base import Embeddings, Family
from .sd import StableDiffusion
from .sdxl import StableDiffusionXL

FAMILIES = (StableDiffusion, StableDiffusionXL)
BUILT = {"sd": StableDiffusion, "sdxl": StableDiffusionXL}  # by the name that train.py --family has for them
KINDS = {kind: family for family in FAMILIES for kind in family.KINDS}
TRAIN_METHODS = tuple(dict.fromkeys(name for family in FAMILIES for name in family.TRAIN_METHODS))

__all__ = ["BUILT", "FAMILIES", "KINDS", "TRAIN_METHODS", "Embeddings", "Family", "StableDiffusion", "StableDiffusionXL"]
