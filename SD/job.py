"""What the scripts start from: a pipeline, what is to be forgotten of it, and the cache of latents."""

import argparse
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import data
import datasets
import engine
import models
import run
import sampling

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "safetensors")
CAPTION = "an image of a {}"  # the paper's, for Imagenette
TRAINED_ON = ("dataset", "data_dir", "image_size", "caption")  # what a run of train.py knows of its data


@dataclass
class Job:
    """pipeline: on the CPU but for its U-Net; scheduler: its noise schedule; prompts: texts, the last one empty; embeddings: (P, L, D) of
    them; forget, retain: Splits of latents; forgotten: numbers of the prompts to forget; targets: int64 (P,), the number of the prompt
    that stands in for each (itself for what is kept); facts: for args.json."""

    pipeline: object
    scheduler: object
    prompts: list
    embeddings: torch.Tensor
    forget: data.Split
    retain: data.Split
    forgotten: list
    targets: torch.Tensor
    facts: dict

    @property
    def null(self):
        return len(self.prompts) - 1


# ---------------------------------------------------------------------------------------------------------------- flags
def add_precision(parser, default="auto"):
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default=default, help="auto: bf16 where it is native; fp16: GPUs only"
    )


def add_model_flag(parser):
    where = "run of train.py, diffusers folder, hub id, or one .safetensors/.ckpt file"
    parser.add_argument("--model_path", required=True, metavar="MODEL", help=f"original model: {where}")


def add_concept_flags(parser):
    """Flags that say what is forgotten, what stands in for it and what is kept: the same for the mask and for unlearning."""
    path = {"type": Path, "metavar": "DIR"}
    add_dataset_flags(parser)
    run.add_flags(parser, "forget_class")
    parser.add_argument("--forget_prompt", nargs="+", metavar="TEXT", help="forget what these prompts ask for")
    parser.add_argument(
        "--target_prompt",
        nargs="+",
        metavar="TEXT",
        help="what stands in: one, or one for each forgotten one (classes: default the next retained)",
    )
    parser.add_argument("--retain_prompts", nargs="+", metavar="TEXT", help="prompts to keep (default: the target prompts)")
    parser.add_argument("--forget_dir", **path, help="images of it (default: --num_images own images of each forgotten prompt)")
    parser.add_argument("--retain_dir", **path, help="images of what is kept (default: --num_images own images of each retained prompt)")
    parser.add_argument("--num_images", type=run.positive_int, default=100, metavar="N", help="own images drawn of a prompt")
    parser.add_argument("--own_steps", type=run.positive_int, default=50, metavar="N", help="sampling steps of own images")
    parser.add_argument("--own_guidance", type=run.non_negative_float, default=7.5, metavar="S", help="guidance scale of own images")


def add_dataset_flags(parser, dataset=None):
    parser.add_argument("--dataset", choices=datasets.DATASETS, default=dataset, help="images with classes or captions")
    run.add_flags(parser, "data_dir")
    parser.add_argument("--caption", metavar="TEXT", help=f"prompt of a class, with {{}} for its name (default: {CAPTION!r})")


def check_concept_flags(parser, args):
    """parser.error unless the flags say one thing to forget."""
    if bool(args.forget_class) == bool(args.forget_prompt):
        parser.error("say what to forget: --forget_class of a data set, or --forget_prompt (one of the two)")
    if args.forget_class:
        for name in ("retain_prompts", "forget_dir", "retain_dir"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} goes with --forget_prompt: with --forget_class the data set says it")
    elif args.dataset is not None or args.caption is not None:
        parser.error("--dataset and --caption go with --forget_class: with --forget_prompt, give folders by --forget_dir and --retain_dir")
    if args.forget_prompt and not args.target_prompt:
        parser.error("--forget_prompt needs --target_prompt: what should be drawn in its place")
    if args.forget_prompt:
        targets = spread(parser, args.target_prompt, len(args.forget_prompt))
        same = [text for text, target in zip(args.forget_prompt, targets, strict=True) if text == target]
        clash = same or [text for text in args.retain_prompts or () if text in args.forget_prompt]
        if clash:
            parser.error(f"{clash[0]!r} is both forgotten and {'its own target' if same else 'retained'}: name another prompt")
    if args.caption is not None and "{}" not in args.caption:
        parser.error("--caption must hold {}, where the name of the class goes")


def spread(parser, values, count):
    """One value for all, or one for each."""
    if len(values) not in (1, count):
        parser.error(f"--target_prompt takes one prompt, or one for each of the {count} forgotten ones, not {len(values)}")
    return values * count if len(values) == 1 else values


# ---------------------------------------------------------------------------------------------------------------- the cache
def digest(*parts):
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(data_dir, what, accelerator, make):
    """The tensor that make() returns, kept in <data_dir>/cache under the digest of `what` ({name: value}: all that it depends on).

    make() runs in every process; the main one writes. A file whose own record of `what` differs is refused.
    """
    path = Path(data_dir) / "cache" / f"{digest(what)[:20]}.safetensors"
    found = path.is_file()
    accelerator.wait_for_everyone()
    if not found:
        tensor = make()
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            run.write_tensors(path, {"values": tensor}, {"what": json.dumps(what, sort_keys=True)})
        accelerator.wait_for_everyone()
        return tensor
    tensors, metadata = run.read_tensors(path)
    if metadata.get("what") != json.dumps(what, sort_keys=True) or not torch.isfinite(tensors["values"]).all():
        raise run.RunError(f"{path} is not the cache it should be (another model, images or prompts, or NaN): remove it, it is made again")
    return tensors["values"]


def encode(pipeline, pictures, vae_sha, data_dir, accelerator, batch_size=8):
    """Moments (N, 2C, h, w), on the CPU, of all pictures, encoded once and cached; the processes share the work."""

    def make():
        edge = pictures.size // pipeline.vae_scale_factor
        found = torch.zeros(len(pictures), 2 * pipeline.vae.config.latent_channels, edge, edge)
        batches = list(torch.arange(len(pictures)).split(batch_size))
        with on_device(accelerator, pipeline.vae):
            for number, rows in enumerate(tqdm(batches, "encode", disable=None if accelerator.is_main_process else True)):
                if number % accelerator.num_processes == accelerator.process_index:
                    found[rows] = models.encode_images(pipeline, pictures.read(rows.tolist()))
        return accelerator.reduce(found.to(accelerator.device), "sum").cpu() if accelerator.num_processes > 1 else found

    what = {"latents": pictures.sha(), "vae": vae_sha, "scaling_factor": pipeline.vae.config.scaling_factor}
    return cached(data_dir, what, accelerator, make)


class on_device:
    """Hold modules on the accelerator's device for a while: text encoder and VAE are not needed while the U-Net trains."""

    def __init__(self, accelerator, *modules):
        self.device, self.modules = accelerator.device, modules

    def __enter__(self):
        for module in self.modules:
            module.to(self.device)

    def __exit__(self, *error):
        for module in self.modules:
            module.to("cpu")


def embed(pipeline, prompts, accelerator):
    """Embeddings (P, L, D) on the accelerator's device, encoded once."""
    with on_device(accelerator, pipeline.text_encoder):
        return models.encode_prompts(pipeline, prompts).to(accelerator.device)


# -------------------------------------------------------------------------------------------------------------- the job
def open_job(args, accelerator, needs=("forget", "retain")):
    """Open the original and everything that the concept flags name, latents and embeddings included.

    needs: whose images are read; the others are neither encoded nor drawn, and their latents are zero.
    Raises RunError for anything missing, unfinished or contradictory, and for a model that has forgotten already.
    """
    pipeline, recorded = models.open_pipeline(args.model_path)
    if recorded and (recorded["kind"] != "train" or recorded["method"] != "original"):
        raise run.RunError(
            f"{args.model_path} is no original model (to forget more, start from the original and forget everything together)"
        )
    engine.place(pipeline.unet, accelerator)
    shas = {"vae": models.sha(pipeline.vae), "model": models.sha(pipeline.unet, pipeline.vae, pipeline.text_encoder)}
    concept = of_classes if args.forget_class else of_prompts
    facts = concept(args, pipeline, recorded, shas, accelerator, needs)
    prompts, forget, retain, targets = (facts.pop(name) for name in ("table", "forget", "retain", "target_numbers"))
    return Job(
        pipeline=pipeline,
        scheduler=models.noise_scheduler(pipeline.scheduler),
        prompts=prompts,
        embeddings=embed(pipeline, prompts, accelerator),
        forget=forget,
        retain=retain,
        forgotten=sorted(set(forget.y[forget.rows].tolist())),
        targets=targets.to(accelerator.device),
        facts=facts
        | {"parent": str(args.model_path), "parent_sha": shas["model"], "num_forgotten": len(forget)}
        | {"training": training_of(recorded), **where(accelerator)},
    )


def training_of(recorded):
    """What a run remembers of its original's training; {} for models from elsewhere."""
    return {name: recorded[name] for name in (*TRAINED_ON, "arch", "steps", "seed") if name in recorded}


def of_classes(args, pipeline, recorded, shas, accelerator, needs):
    """The concept of --forget_class: a data set's classes, each with its caption."""
    source = {name: getattr(args, name, None) or recorded.get(name) for name in TRAINED_ON}
    source["data_dir"] = source["data_dir"] or "data"
    if source["dataset"] is None:
        raise run.RunError(f"{args.model_path} does not say what it was trained on: name the classes' images by --dataset and --data_dir")
    if source["dataset"] == "captions":
        raise run.RunError("images with captions have no classes: use --forget_prompt, with --forget_dir and --retain_dir")
    caption = source["caption"] or CAPTION
    found = datasets.load(source["dataset"], source["data_dir"], source["image_size"] or models.image_size(pipeline))
    labels = sorted(set(data.class_numbers(args.forget_class, found.classes)))
    if len(labels) == len(found.classes):
        raise run.RunError("all classes would be forgotten: at least one must be retained")
    table = [caption.format(name) for name in found.classes]
    count = len(table)
    wanted = args.target_prompt or [table[data.next_retained(label, labels, count)] for label in labels]
    wanted = wanted * len(labels) if len(wanted) == 1 else wanted
    if len(wanted) != len(labels):
        raise run.RunError(f"--target_prompt takes one prompt, or one for each of the {len(labels)} forgotten classes, not {len(wanted)}")
    clash = next((text for text in wanted if text in [table[label] for label in labels]), None)
    if clash is not None:
        raise run.RunError(f"the target prompt {clash!r} is to be forgotten itself: name another one")
    table = [*table, *(text for text in dict.fromkeys(wanted) if text not in table), models.NULL]
    targets = torch.arange(len(table))
    targets[labels] = torch.tensor([table.index(text) for text in wanted])
    y = torch.tensor(found.y_train)
    rows, of_forgotten = torch.arange(len(y)), torch.isin(y, torch.tensor(labels))
    moments = encode(pipeline, found.train, shas["vae"], source["data_dir"], accelerator) if needs else no_moments(pipeline, len(y))
    return {
        "table": table,
        "forget": data.Split(moments, y, rows[of_forgotten]),
        "retain": data.Split(moments, y, rows[~of_forgotten]),
        "target_numbers": targets,
        "forgotten": [found.classes[label] for label in labels],
        "forget_sha": digest(found.train.sha(), rows[of_forgotten].tolist(), [table[label] for label in labels]),
        "classes": found.classes,
        "concept": {**source, "data_dir": str(source["data_dir"]), "caption": caption, "targets": wanted},
    }


def of_prompts(args, pipeline, recorded, shas, accelerator, needs):
    """The concept of --forget_prompt: images from folders or made by the model itself, each with a prompt."""
    wanted = args.target_prompt * len(args.forget_prompt) if len(args.target_prompt) == 1 else args.target_prompt
    kept = args.retain_prompts or list(dict.fromkeys(wanted))
    table = [text for text in dict.fromkeys([*args.forget_prompt, *wanted, *kept]) if text != models.NULL] + [models.NULL]
    data_dir = args.data_dir or recorded.get("data_dir") or "data"
    parts, identity = {}, {}
    for part, texts, folder in (("forget", args.forget_prompt, args.forget_dir), ("retain", kept, args.retain_dir)):
        numbers = [table.index(text) for text in texts]
        if folder is None:
            y = torch.tensor(numbers).repeat_interleave(args.num_images)
            make, identity[part] = own_moments(args, pipeline, texts, shas["model"], data_dir, accelerator)
        else:
            pictures = datasets.load_images(folder, models.image_size(pipeline))
            y = torch.tensor(numbers).repeat(-(-len(pictures) // len(numbers)))[: len(pictures)]  # several prompts take turns
            make, identity[part] = functools.partial(encode, pipeline, pictures, shas["vae"], data_dir, accelerator), pictures.sha()
        moments = make() if part in needs else no_moments(pipeline, len(y))
        parts[part] = data.Split(moments, y, torch.arange(len(y)))
    targets = torch.arange(len(table))
    targets[[table.index(text) for text in args.forget_prompt]] = torch.tensor([table.index(text) for text in wanted])
    return {
        "table": table,
        **parts,
        "target_numbers": targets,
        "forgotten": list(dict.fromkeys(args.forget_prompt)),
        "forget_sha": digest(identity["forget"], args.forget_prompt),
        "classes": None,
        "concept": {"targets": wanted, "retained": kept, "data_dir": str(data_dir), "images": identity},
    }


def no_moments(pipeline, count):
    """Moments of zero in place of `count` images that nobody reads: they take no memory."""
    config = pipeline.unet.config
    return torch.zeros(1, 2 * config.in_channels, config.sample_size, config.sample_size).expand(count, -1, -1, -1)


def own_moments(args, pipeline, prompts, model_sha, data_dir, accelerator):
    """(function that returns the moments, identity) of images that the original draws of prompts, cached."""
    edge = models.image_size(pipeline)
    options = {"steps": args.own_steps, "guidance": args.own_guidance, "size": [edge, edge], "sampler": "ddim"}
    what = {"own images": prompts, "count": args.num_images, **options, "model": model_sha}

    def draw():
        asked = embed(pipeline, [*prompts, models.NULL], accelerator)
        with on_device(accelerator, pipeline.vae, pipeline.text_encoder):  # diffusers draws where the pipeline's parts are
            return sampling.own_images(pipeline, prompts, asked[:-1], asked[-1], args.num_images, accelerator, **options)

    return functools.partial(cached, data_dir, what, accelerator, draw), digest(what)


def where(accelerator):
    return {"processes": accelerator.num_processes, "computed_on": str(accelerator.device), "autocast": accelerator.mixed_precision}


def namespace(args, **changes):
    """A copy of the flags with some of them changed: one run of several."""
    return argparse.Namespace(**vars(args) | changes)
