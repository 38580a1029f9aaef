"""The families of text-to-image models: one file and one line each. A pipeline's class decides which one it is."""

from .base import Embeddings, Family
from .flux import Flux
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL

FAMILIES = {"sd": StableDiffusion, "sdxl": StableDiffusionXL, "sd3": StableDiffusion3, "flux": Flux}  # by the name of train.py --family
KINDS = {kind: family for family in FAMILIES.values() for kind in family.KINDS}
TRAIN_METHODS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.TRAIN_METHODS))

__all__ = ["FAMILIES", "KINDS", "TRAIN_METHODS", "Embeddings", "Family"]
