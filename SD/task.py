"""What the scripts start from: a pipeline, its prompts and embeddings, and what is forgotten."""

from dataclasses import dataclass

import torch

import concepts
import data
import models
import pipelines
import trainer
from cli import RunError
from families import Embeddings, Family
from latents import embed


@dataclass
class Task:
    """family: the opened pipeline, on the CPU but for the part that is trained; prompts: texts, the last one empty; embeddings: theirs;
    forget, retain: Splits of latents; forgotten: numbers of the prompts to forget; targets: int64 (P,), the number of the prompt that
    stands in for each (itself for what is retained); facts: for args.json."""

    family: Family
    prompts: list
    embeddings: Embeddings
    forget: data.Split
    retain: data.Split
    forgotten: list
    targets: torch.Tensor
    facts: dict


def load_task(model_path, flags, accelerator, needs=("forget", "retain"), variant=None, dtype="fp32", originals_only=True):
    """Open the original and everything that the concept flags name, latents and embeddings included.

    flags: {flag: value} of concepts.CONCEPT_FLAGS. needs: whose images are read; the others are neither encoded nor drawn, and their
    latents are zero. variant: of a folder's weight files; dtype: of the weights. Raises RunError for anything missing, unfinished or
    contradictory, and with originals_only for a model that has forgotten already.
    """
    family, recorded = pipelines.open_pipeline(model_path, variant=variant, dtype=dtype)
    if originals_only and recorded and (recorded["kind"] != "train" or recorded["method"] != "original"):
        raise RunError(f"{model_path} is not an original model (to forget more, start from the original and forget everything together)")
    trainer.prepare(family.model, accelerator)
    shas = {"vae": models.sha(family.pipeline.vae), "model": models.sha(family.model, *family.frozen)}
    concept = concepts.of_classes if flags["forget_class"] else concepts.of_prompts
    prompts, splits, targets, facts = concept(flags, family, recorded, shas, accelerator, needs)
    forget = splits["forget"]
    training = {name: recorded[name] for name in (*concepts.TRAINED_ON, "edge", "arch", "steps", "seed") if name in recorded}
    training |= {"limit": recorded["limit"]} if recorded.get("limit") else {}
    facts |= {"parent": str(model_path), "parent_sha": shas["model"], "num_forgotten": len(forget), "training": training}
    embeddings = embed(family, prompts, accelerator)
    forgotten, targets = sorted(set(forget.labels.tolist())), targets.to(accelerator.device)
    return Task(family, prompts, embeddings, **splits, forgotten=forgotten, targets=targets, facts=facts)
