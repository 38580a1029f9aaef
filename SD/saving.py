"""Saving text-to-image pipelines as folders of diffusers.

What a run did not change is kept byte for byte: a saved folder holds the original's own files, and the trained part saved anew. So it opens
wherever the original did. A single file has no such files: they are made from it, in a layout that transformers 4 and 5 both read.
"""

import json
import os
import shutil

import torch

from cli import RunError
from files import check_finite, read_json, write_json, write_tensors
from models import DTYPES, quiet
from pipelines import PICKLES, check_index, check_parts, variant_of, weight_files

TEXTS = (".json", ".txt", ".model")  # configs and tokenizers


def add_save_flags(parser, group):
    parser.add(group, "--single_file", action="store_true", help="write model.safetensors for web UIs too")
    dtype = "of the saved model and of the single file; parts that did not change keep their own files"
    parser.add(group, "--save_dtype", choices=DTYPES, help=f"precision {dtype} (default: --weights_dtype)")


def clean(folder, put_back=True):
    """Remove what a killed save() left beside a folder; put_back: but first put back what it had moved aside."""
    partial, aside = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "aside"))
    if put_back and aside.exists() and not folder.exists():
        os.replace(aside, folder)
    for path in (partial, aside):
        shutil.rmtree(path, ignore_errors=True)
    return partial, aside


def save(model, folder, dtype=None):
    """Write a diffusers folder of a Family, or of one model of diffusers, whole or not at all.

    dtype: of the trained part's weights, or of all that is not copied from the original; None is the model's own. Raises RunError for
    values that are not finite.
    """
    check_parts(model, "what was trained is not saved, start again with a lower --lr")
    partial, aside = clean(folder)
    try:
        with quiet():
            if isinstance(model, torch.nn.Module):
                write_model(model, partial, dtype)
            else:
                write_pipeline(model, partial, dtype)
        if folder.exists():  # it holds the autoencoder, which a resumed run needs
            os.replace(folder, aside)
        os.replace(partial, folder)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise RunError(f"could not write {folder}: {error}") from error
    finally:
        clean(folder)


def write_pipeline(family, folder, dtype):
    """All files of a pipeline: those of its original and what is trained, or where it has no original, made from it."""
    trained, *frozen = family.PARTS
    if family.original is not None:
        copy_original(family.original, folder)
    else:
        for name in (name for name in frozen if getattr(family.pipeline, name) is not None):
            write_model(getattr(family.pipeline, name), folder / name, dtype)
        for name, part in family.pipeline.components.items():
            if name.startswith("tokenizer"):
                write_tokenizer(part, folder / name)
        family.pipeline.scheduler.save_pretrained(folder / "scheduler")
        family.pipeline.save_config(folder)
        readable_by_4(folder / "model_index.json")
    write_model(family.model, folder / trained, dtype, config=family.original is None)


def copy_original(original, folder):
    """Copy configs, tokenizer and weights of an original's parts, but for the trained part's weights. No pickle and no code is copied.

    A variant's files lose it in their names, as the trained part is saved without. A part that is missing or has pickled weights alone is
    left out of model_index.json: no program would open a folder that names it.
    """
    index = read_json(original.folder / "model_index.json")
    folder.mkdir()
    shutil.copyfile(original.folder / "model_index.json", folder / "model_index.json")
    family, parts = check_index(original.folder, original.folder)
    for name, (library, *_) in parts.items():
        source = original.folder / name
        paths = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else []
        weights = weight_files(source, original.variant)
        if library and not weights and (not paths or any(path.name.endswith(PICKLES) for path in paths)):
            write_json(folder / "model_index.json", index := index | {name: [None, None]})
            continue
        for path in paths:
            if name != next(iter(family.PARTS)) and path in weights or path.name.endswith(TEXTS) and variant_of(path.name) is None:
                (folder / name).mkdir(exist_ok=True)
                copy_file(path, folder / name, original.variant)


def copy_file(path, folder, variant):
    """Copy a file; in a weight file's name, and in an index of such names, a variant is left out."""
    if not variant or variant_of(path.name) != variant:
        shutil.copyfile(path, folder / path.name)
        return
    target = folder / path.name.replace(f".{variant}", "", 1)
    if path.name.endswith(".json"):
        index = json.loads(path.read_bytes())
        index["weight_map"] = {name: file.replace(f".{variant}", "", 1) for name, file in index["weight_map"].items()}
        target.write_text(json.dumps(index, indent=2))
    else:
        shutil.copyfile(path, target)


def write_model(model, folder, dtype, config=True):
    """The config, if asked for, and the weights of a model. A text encoder's weights have their names of transformers 4, which 5 knows."""
    tensors = model.state_dict()
    if type(model).__name__ == "CLIPTextModel":
        tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    seen = set()  # of weights that two names share, the first is written, as transformers does
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.data_ptr() not in seen and not seen.add(tensor.data_ptr())}
    name = "model.safetensors" if type(model).__module__.startswith("transformers") else "diffusion_pytorch_model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        model.config.save_pretrained(folder) if hasattr(model.config, "save_pretrained") else model.save_config(folder)
    write_tensors(folder / name, cast(tensors, dtype), {"format": "pt"})


def cast(tensors, dtype):
    """{name: tensor} with floating-point tensors in a type of DTYPES, None for their own. Raises RunError for values too large for it."""
    if dtype is None:
        return tensors
    found = {name: tensor.to(DTYPES[dtype]) if tensor.dtype.is_floating_point else tensor for name, tensor in tensors.items()}
    check_finite(found, f"the weights do not fit into --save_dtype {dtype}, take fp32 or bf16")
    return found


def write_tokenizer(tokenizer, folder):
    """A tokenizer as tokenizer.json, which transformers 5 alone writes, and CLIP's as vocab.json and merges.txt too, which 4 reads."""
    tokenizer.save_pretrained(folder)
    readable_by_4(folder / "tokenizer_config.json")
    if type(tokenizer).__name__.startswith("CLIP") and (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def readable_by_4(path):
    """Let transformers 4 read what 5 wrote of a T5 tokenizer: there, the one of tokenizer.json is T5TokenizerFast. 5 knows both."""
    text = path.read_text(encoding="utf-8")
    if '"T5Tokenizer"' in text:
        values = {name: value for name, value in json.loads(text).items() if (name, value) != ("extra_special_tokens", [])}
        path.write_text(json.dumps(values, indent=2).replace('"T5Tokenizer"', '"T5TokenizerFast"') + "\n")
