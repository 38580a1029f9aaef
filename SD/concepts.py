"""What is forgotten, what stands in for it and what is retained: flags, and tables of prompts with their images."""

import functools
import shlex
from pathlib import Path

import torch

import cli
import data
import imagesets
import models
import pipelines
from cli import RunError
from files import cache_folder
from latents import digest, encode_pictures, generated_moments, no_moments
from prompts import class_rows

CAPTION = "an image of a {}"  # the paper's, for Imagenette
TRAINED_ON = ("dataset", "data_dir", "image_size", "caption")  # what a run of train.py knows of its data
CONCEPT_FLAGS = ("dataset", "data_dir", "cache_dir", "caption", "forget_class", "forget_prompt", "target_prompt", "retain_prompts")
CONCEPT_FLAGS += ("forget_dir", "retain_dir", "num_images", "generation_steps", "generation_guidance_scale")
GENERATION = {"num_images": 100, "generation_steps": 50}  # defaults of what the original generates

NOT_HERE = {  # flags of the official release and of the methods' authors, in the scripts that lack them
    "epochs": "write --steps, passes times images to forget over --batch_size: 5 passes over some 950 images in batches of 8 are 600",
    "nsfw": 'write --forget_prompt "a photo of a nude person" --target_prompt "a photo of a person wearing clothes", with images of each '
    "from --forget_dir and --retain_dir, as scripts/nudity.sh does",
    "prompt": "write --forget_prompt, with --target_prompt for what is drawn in its place",
    "erase_concept": "write --forget_prompt, with --target_prompt for what is drawn in its place",
    "erase_from": "leave it out, the forgotten prompt itself is trained",
    "seperator": "leave it out, --forget_prompt takes several prompts",
    "iterations": "write --steps",
    "start_guidance": "write --sample_guidance_scale",
    "guidance_scale": "write --sample_guidance_scale of --method esd, or --generation_guidance_scale of generated images",
    "ddim_steps": "leave it out, but for --method esd, where it is --sample_steps",
    "image_size": "leave it out, images have the size of the model or of the samples",
    "config_path": "leave it out, --model_path tells the shapes (of a single file: train.py --model_config)",
    "diffusers_config_path": "leave it out, a run's model/ is a diffusers folder",
    "devices": "write --device cuda, one GPU holds both models; for several use accelerate launch",
    "second_device": "write --device cuda, one GPU holds both copies",
    "num_timesteps": "leave it out, the model's scheduler tells",
    "model_name": "write --model_path, the run folder of the model",
    "from_case": "leave it out, --resume draws what is missing",
    "folder_path": "write --sample_path, a run folder of generate_images.py",
    "folder": "write --sample_path, a run folder of generate_images.py, and --nudenet",
    "threshold": "write --nudenet_threshold",
    "topk": "leave it out, only the classifier's first guess counts",
    "concepts": "write --forget_prompt",
    "edit_concepts": "write --forget_prompt",
    "guided_concepts": "write --target_prompt",
    "guide_concepts": "write --target_prompt",
    "preserve_concepts": "write --retain_prompts",
    "concept_type": "leave it out, --train_method and --target_prompt say it",
    "caption_target": "write --forget_prompt, with --target_prompt for what is drawn in its place",
    "regularization": "write --alpha 0.2",
    "train_max_steps": "write --steps",
    "base_lr": "write --lr, the rate of the global batch",
    "prompts_path": "leave it out, a run of generate_images.py knows its prompts",
    "save_path": "write --save_dir, the run folder to write (evaluate.py writes metrics.json into the samples' own)",
}


# ---------------------------------------------------------------------------------------------------------------- flags
def add_model_flag(parser):
    where = "run of train.py, diffusers folder, hub id, or one .safetensors/.ckpt file"
    parser.add(cli.DATA, "--model_path", "--ckpt_path", required=True, metavar="MODEL", help=f"original model: {where}")
    pipelines.add_variant_flag(parser, cli.DATA)


def add_dataset_flags(parser, dataset=None):
    parser.add(cli.DATA, "--dataset", choices=imagesets.DATASETS, default=dataset, help="images with classes or captions")
    parser.add_shared("data_dir", "cache_dir")
    caption = f"prompt of a class, with {{}} for its name (default: {CAPTION!r})"
    parser.add(cli.DATA, "--caption", type=data.template, metavar="TEXT", help=caption)


def add_concept_flags(parser):
    """Flags that name what is forgotten, what stands in for it and what is retained: the same for the mask and for unlearning."""
    texts, path = {"nargs": "+", "metavar": "TEXT", "type": data.prompt}, {"type": Path, "metavar": "DIR"}
    add_dataset_flags(parser)
    parser.refuse(NOT_HERE)
    parser.add_shared("forget_class")
    parser.add(cli.FORGET, "--forget_prompt", **texts | {"type": data.full_prompt}, help="forget what these prompts describe")
    target = "prompt that stands in for what is forgotten: one for all, or one for each (default for classes: the next retained one)"
    parser.add(cli.FORGET, "--target_prompt", **texts, help=target)
    parser.add(cli.FORGET, "--retain_prompts", **texts, help="prompts to retain (default: the target prompts)")
    generated = "(default: --num_images images that the original generates for each prompt)"
    parser.add(cli.FORGET, "--forget_dir", **path, help=f"images of the one forgotten prompt {generated}")
    parser.add(cli.FORGET, "--retain_dir", **path, help=f"images of the one retained prompt {generated}")
    count, steps = (f"(default: {GENERATION[name]})" for name in ("num_images", "generation_steps"))
    number = {"type": models.image_count, "metavar": "N"}
    parser.add(cli.FORGET, "--num_images", **number, help=f"images that the original generates per prompt {count}")
    number = {"type": models.sampling_steps, "metavar": "N"}
    parser.add(cli.FORGET, "--generation_steps", **number, help=f"sampling steps of generated images {steps}")
    scale = {"type": cli.non_negative_float, "metavar": "S"}
    generation_scale = "guidance scale of generated images, 1: none (default: the family's, 7.5 for Stable Diffusion 1.x)"
    parser.add(cli.FORGET, "--generation_guidance_scale", **scale, help=generation_scale)


def concept_flags(args):
    """{flag: value} of the CONCEPT_FLAGS."""
    return {name: getattr(args, name) for name in CONCEPT_FLAGS}


def check_concept_flags(parser, args, generates=False):
    """parser.error unless the flags name one thing to forget. generates: whether the method draws images of its own from the original.

    Fills in the defaults of GENERATION's flags. The flags are refused where no image is generated.
    """
    if bool(args.forget_class) == bool(args.forget_prompt):
        parser.error("name what to forget: --forget_class of a data set, or --forget_prompt (one of the two)")
    if args.forget_class:
        for name in ("retain_prompts", "forget_dir", "retain_dir"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} goes with --forget_prompt: with --forget_class the data set says it")
    elif args.dataset is not None or args.caption is not None:
        parser.error("--dataset and --caption go with --forget_class: with --forget_prompt, give folders by --forget_dir and --retain_dir")
    if args.forget_prompt and not args.target_prompt:
        parser.error("--forget_prompt needs --target_prompt: what should be drawn in its place")
    if args.forget_prompt:
        count = len(args.forget_prompt)
        if len(args.target_prompt) not in (1, count):
            parser.error(f"--target_prompt takes one prompt, or one for each of the {count} forgotten ones, not {len(args.target_prompt)}")
        same = [text for text, target in zip(args.forget_prompt, spread(args.target_prompt, count), strict=True) if text == target]
        clash = same or [text for text in (*(args.retain_prompts or ()), *args.target_prompt) if text in args.forget_prompt]
        if clash:
            role = "its own target" if same else "retained" if clash[0] in (args.retain_prompts or ()) else "a target"
            parser.error(f"{clash[0]!r} is both forgotten and {role}: name another prompt")
        retained = args.retain_prompts or dict.fromkeys(args.target_prompt)
        for name, folder, texts in (("forget", args.forget_dir, args.forget_prompt), ("retain", args.retain_dir, retained)):
            if folder is not None and len(texts) > 1:  # nothing says which image shows what
                parser.error(f"--{name}_dir takes images of one prompt, not of {len(texts)}: without it each prompt gets images of its own")
    of_folders = args.forget_class or (args.forget_dir is not None and args.retain_dir is not None)
    for name, default in GENERATION.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif of_folders and not generates:
            parser.error(f"--{name} has no effect, since no image is generated here: leave it out")


def words_given(recorded):
    """{flag: its words} of an unlearning run's flags that stand beside the method's: runs that differ in one are no repetitions of each
    other. recorded: args.json."""
    given = {name: recorded.get(name) for name in ("target_prompt", "retain_prompts", *GENERATION, "generation_guidance_scale")}
    given = {name: value for name, value in given.items() if value is not None and value != GENERATION.get(name)}
    return {name: shlex.join(map(str, value if isinstance(value, list) else [value])) for name, value in given.items()}


def spread(values, count):
    """One value for all, or one for each."""
    return values * count if len(values) == 1 else values


# ------------------------------------------------------------------------------------------------------------- concepts
def of_classes(flags, family, recorded, shas, accelerator, needs):
    """The concept of --forget_class: a data set's classes, each with its caption. flags: {flag: value} of the CONCEPT_FLAGS.

    Returns (prompts, {"forget", "retain": Split}, target of each prompt, facts for args.json).
    """
    own = recorded if flags["dataset"] in (None, recorded.get("dataset")) else {}  # another data set's folder and captions say nothing here
    source = {name: flags.get(name) or own.get(name) for name in TRAINED_ON}
    source["data_dir"] = source["data_dir"] or "data"
    if source["dataset"] is None:
        raise RunError("the model does not say what it was trained on: name the classes' images by --dataset and --data_dir")
    if source["dataset"] == "captions":
        raise RunError("images with captions have no classes: use --forget_prompt, with --forget_dir and --retain_dir")
    caption = source["caption"] or CAPTION
    found = imagesets.load(source["dataset"], source["data_dir"], source["image_size"] or family.image_size)
    if source["dataset"] == recorded.get("dataset") and found.classes == recorded.get("classes"):  # the original's own: what it saw
        found = found.limited(recorded.get("limit"), recorded.get("seed"))
    labels = list(dict.fromkeys(data.class_numbers(flags["forget_class"], found.classes)))  # as named: target prompts have their order
    if len(labels) == len(found.classes):
        raise RunError("all classes would be forgotten: at least one must be retained")
    table = [row.prompt for row in class_rows(found.classes, caption)]
    target_prompts = flags["target_prompt"] or [table[data.next_retained(label, labels, len(table))] for label in labels]
    target_prompts = spread(target_prompts, len(labels))
    if len(target_prompts) != len(labels):
        count = f"each of the {len(labels)} forgotten classes, not {len(target_prompts)}"
        raise RunError(f"--target_prompt takes one prompt, or one for {count}")
    clash = next((text for text in target_prompts if text in [table[label] for label in labels]), None)
    if clash is not None:
        raise RunError(f"the target prompt {clash!r} is forgotten itself: name another one")
    table = [*table, *(text for text in dict.fromkeys(target_prompts) if text not in (*table, data.NULL)), data.NULL]
    targets = torch.arange(len(table))
    targets[labels] = torch.tensor([table.index(text) for text in target_prompts])
    target_prompts = [table[number] for number in targets[sorted(labels)]]
    labels, numbers = sorted(labels), torch.tensor(found.y_train)
    of_forgotten = torch.isin(numbers, torch.tensor(labels))
    if not 0 < of_forgotten.sum() < len(numbers):
        share = f"{of_forgotten.sum()} of the {len(numbers)} pictures that the original saw"
        raise RunError(f"{share} are of the classes to forget: some must be forgotten and some retained, train with a larger --limit")
    cache = cache_folder(source["data_dir"], source["dataset"] in imagesets.OWN, flags["cache_dir"])
    any_read = "forget" in needs or "retain" in needs
    moments = encode_pictures(family, found.train, shas["vae"], cache, accelerator) if any_read else None
    splits = {}
    for part, chosen in (("forget", of_forgotten), ("retain", ~of_forgotten)):
        images = moments[chosen] if part in needs else no_moments(family, int(chosen.sum()))
        splits[part] = data.Split(images, numbers[chosen], part)
    forget_sha = digest(found.train.sha(), of_forgotten.nonzero().squeeze(1).tolist(), [table[label] for label in labels])
    facts = {"forgotten": [found.classes[label] for label in labels], "forget_sha": forget_sha, "classes": found.classes}
    facts["concept"] = {**source, "data_dir": str(source["data_dir"]), "caption": caption, "targets": target_prompts}
    return table, splits, targets, facts


def of_prompts(flags, family, recorded, shas, accelerator, needs):
    """As of_classes(), of --forget_prompt: images from folders or generated by the model itself, each with a prompt."""
    forget_prompts, target_prompts = flags["forget_prompt"], spread(flags["target_prompt"], len(flags["forget_prompt"]))
    retain_prompts = flags["retain_prompts"] or list(dict.fromkeys(target_prompts))
    texts = dict.fromkeys([*forget_prompts, *target_prompts, *retain_prompts])
    table = [text for text in texts if text != data.NULL] + [data.NULL]
    data_dir = flags["data_dir"] or recorded.get("data_dir") or "data"
    cache = cache_folder(data_dir, recorded.get("dataset") in imagesets.OWN, flags["cache_dir"])
    splits, identity = {}, {}
    for part, prompts, folder in (("forget", forget_prompts, flags["forget_dir"]), ("retain", retain_prompts, flags["retain_dir"])):
        numbers = torch.tensor([table.index(text) for text in prompts])
        if folder is None:
            labels = numbers.repeat_interleave(flags["num_images"])
            make, identity[part] = generated_moments(family, prompts, flags, shas["model"], cache, accelerator)
        else:
            pictures = imagesets.load_images(folder, family.image_size)
            labels = numbers.expand(len(pictures))
            make = functools.partial(encode_pictures, family, pictures, shas["vae"], cache, accelerator)
            identity[part] = pictures.sha()
        splits[part] = data.Split(make() if part in needs else no_moments(family, len(labels)), labels, part)
    targets = torch.arange(len(table))
    targets[[table.index(text) for text in forget_prompts]] = torch.tensor([table.index(text) for text in target_prompts])
    facts = {"forgotten": list(dict.fromkeys(forget_prompts)), "forget_sha": digest(identity["forget"], forget_prompts), "classes": None}
    facts["concept"] = {"targets": target_prompts, "retained": retain_prompts, "data_dir": str(data_dir), "images": identity}
    return table, splits, targets, facts
