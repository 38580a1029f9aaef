"""Opening Stable Diffusion pipelines: runs, folders of diffusers, models of the hub, and single files."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

from cli import RunError
from files import check_finite, read_json
from models import TIMESTEPS, quiet
from run_folder import read_run

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}  # those with weights
INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")  # of U-Nets that need more than a prompt
# A weight file, a shard or an index of shards, each perhaps with a variant in its name, as diffusers and transformers write them
NAME = r"(diffusion_pytorch_)?model(\.(?P<a>\w+))?(-\d{5}-of-\d{5})?(\.(?P<b>\w+))?\.safetensors(\.index(\.(?P<c>\w+))?\.json)?"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FUSE = "fuse its LoRA by load_lora_weights(), fuse_lora() and unload_lora_weights() of diffusers and save the pipeline"
KEPT = "a whole model of Stable Diffusion 1.x or 2.x"


@dataclass
class Original:
    """The diffusers folder that a pipeline was opened from, and the variant of its weights."""

    folder: Path
    variant: str | None


def add_variant_flag(parser, group):
    parser.add(group, "--variant", metavar="NAME", help="variant of a diffusers folder's or hub id's weight files, fp16 for one")


def open_pipeline(source, config=None, variant=None):
    """Return (pipeline, recorded) of a run folder of train.py or unlearn.py, a diffusers folder, a hub id, or one .safetensors/.ckpt file.

    recorded: args.json of the run, {} for other sources. Weights are float32, on the CPU; the safety checker is left out. config: a
    diffusers folder that tells a single file's shapes, where the hub cannot be asked. variant: of the weight files, where a folder has
    several. pipeline.original is the Original, None for a single file. No pickle is ever executed. Raises RunError.
    """
    import single_file

    path, recorded = Path(source), {}
    if path.is_file():
        if variant is not None:
            raise RunError(f"{source} is one file, which has no variants: leave out --variant")
        pipeline = single_file.load(path, config)
        pipeline.original = None
        return check(pipeline, path), recorded
    if (path / "args.json").is_file():
        path, recorded = read_run(path, "train", "unlearn")
        path, variant = path / "model", None  # a run's files have none
    if path.exists() and not (path / "model_index.json").is_file():
        lora = any(path.glob("*lora*.safetensors")) or (path / "adapter_config.json").is_file()
        more = f". LoRA weights alone are no model: {FUSE}" if lora else ""
        raise RunError(f"{path} is no pipeline: it holds no model_index.json, which a diffusers folder has{more}")
    if not path.exists():
        if path.is_absolute() or len(path.parts) != 2 or path.parts[0] in (".", "..", "runs"):
            raise RunError(f"{source} does not exist, and is no name of a model on the hub (owner/name) either")
        path = fetch(str(source), variant)
    pipeline = from_folder(path, variant, source)
    pipeline.original = Original(path, variant)
    return check(pipeline, source), recorded


def fetch(name, variant):
    """The folder in the hub's cache with all parts of a model of the hub, which are fetched where they are missing."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    try:
        with quiet():
            check_index(Path(hf_hub_download(name, "model_index.json")).parent, name)  # before gigabytes are fetched
            options = {"variant": variant, "use_safetensors": True}
            try:
                return Path(DiffusionPipeline.download(name, **options))
            except OSError:  # of old models the safety checker alone may be a pickle
                return Path(DiffusionPipeline.download(name, **options, safety_checker=None))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{name} could not be fetched from the hub as safetensors weights ({reason}): name a local folder") from error


def check_index(folder, source):
    """{name: [library, class]} of the parts that model_index.json lists.

    RunError for code of the folder's own (diffusers before 0.38 runs it, later ones should not) and for a pipeline of another kind.
    """
    index = read_json(folder / "model_index.json")
    parts = {name: value or [None, None] for name, value in index.items() if isinstance(value, list)}  # [library, class]
    for name, (library, *_) in parts.items():
        known = library in (None, "diffusers", "transformers") or (name, library) == ("safety_checker", "stable_diffusion")
        if not known or not name.isidentifier() or name.startswith("_") or (folder / name / f"{library}.py").exists():
            why = f"{folder} names {library} as the library of {name}, code that could do anything and is refused"
            raise RunError(f"{why}: take a model whose parts are of diffusers and transformers")
    if (kind := index.get("_class_name")) not in PIPELINES:
        raise RunError(f"{source} is a {str(kind)[:60]}, and no text-to-image model of Stable Diffusion 1.x or 2.x: take one")
    for name, kind in PARTS.items():
        if (found := parts.get(name, ["nothing"])[-1]) != kind:
            raise RunError(f"{source} has {str(found)[:60]} as its {name}, not {kind}: take {KEPT}")
    return parts


def variant_of(name):
    """The variant in the name of a weight file, "" for none; None where the name is no weight file's."""
    found = re.fullmatch(NAME, name)
    return found and (found["a"] or found["b"] or found["c"] or "")


def weight_files(folder, variant):
    """[path] of a part's weight files of a variant, or where it has none of those, of its files without one."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for wanted in (variant or "", ""):
        if found := [folder / name for name in names if variant_of(name) == wanted]:
            return found
    return []


def check_weights(folder, variant, source):
    """RunError unless each part has weight files of safetensors, and one of them that variant."""
    for name in PARTS:
        if (folder / name / "adapter_config.json").exists():
            raise RunError(f"{source} has an adapter beside its {name}: {FUSE}")
        found = weight_files(folder / name, variant)
        others = sorted(os.listdir(folder / name)) if (folder / name).is_dir() else []
        if not found:
            there = sorted({spelled for other in others if (spelled := variant_of(other))})
            pickled = next((other for other in others if other.endswith(PICKLES)), None)
            lacks = f"{source} cannot be opened as a Stable Diffusion pipeline: its {name} has no"
            if there:
                raise RunError(f"{lacks} weights but those of the variant {' or '.join(there)}: add --variant {there[0]}")
            if pickled:
                save = f"if you trust it, StableDiffusionPipeline.from_pretrained({str(source)!r}).save_pretrained('new') converts it"
                raise RunError(f"{lacks} safetensors weights but {pickled}, a pickle, which could run code and is not read: {save}")
            raise RunError(f"{lacks} safetensors weights: make or fetch it again")
        pointer = next(
            (path for path in found if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git")), None
        )
        if pointer:
            raise RunError(f"{pointer} is a pointer of git-lfs and holds no weights: run git lfs pull in {folder}")
    if variant and not any(variant_of(path.name) for name in PARTS for path in weight_files(folder / name, variant)):
        raise RunError(f"{source} has no weights of the variant {variant}: leave out --variant")


def check_unet(config, source):
    """RunError for the config of a U-Net that needs other inputs than noisy latents, a timestep and one prompt."""
    more = next((name for name in INPUTS if config.get(name) is not None), None)
    if more:
        raise RunError(f"{source} has a U-Net with {more} {str(config[more])[:60]}, which needs more inputs than a prompt: take {KEPT}")


def from_folder(folder, variant, source):
    """diffusers' from_pretrained, its errors turned into one sentence. source: what they call the folder."""
    import diffusers
    import transformers

    check_index(folder, source)
    check_weights(folder, variant, source)
    if (folder / "unet" / "config.json").is_file():
        check_unet(read_json(folder / "unet" / "config.json"), source)
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with quiet():
        try:
            # Each part by itself: only then is it told what a file lacks, which transformers would fill at random. The position_ids of old
            # files are no weights.
            for name, kind in PARTS.items():
                cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
                spelled = variant_of(weight_files(folder / name, variant)[0].name) or None
                how = {"use_safetensors": True, "variant": spelled, "output_loading_info": True}
                options[name], told = cls.from_pretrained(folder, subfolder=name, **how)
                check_told(told, name, source)
            return diffusers.StableDiffusionPipeline.from_pretrained(folder, **options).to(torch.float32)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"{source} cannot be opened as a Stable Diffusion pipeline with safetensors weights ({reason})") from error


def check_told(told, name, source):
    """RunError for weights that a part lacks or has too, as from_pretrained tells."""
    faults = {"lacks": "missing_keys", "has the unknown": "unexpected_keys", "has another shape of": "mismatched_keys"}
    odd = [(fault, tensor) for fault, keys in faults.items() for tensor in sorted(map(str, told.get(keys, ())))]
    odd = [(fault, tensor) for fault, tensor in odd if not tensor.endswith("position_ids")]
    if any(".base_layer." in tensor or "lora_" in tensor for _, tensor in odd):
        raise RunError(f"{source} was saved with a LoRA in its {name} that is not fused: {FUSE}")
    for fault, tensor in odd:
        raise RunError(f"{source} is no whole pipeline: its {name} {fault} tensor {tensor}; make or fetch it again")


def check(pipeline, source):
    """Refuse configs that do not fit each other, and weights that are not finite."""
    check_unet(pipeline.unet.config, source)
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise RunError(f"{source} is no text-to-image model of Stable Diffusion 1.x or 2.x (inpainting has other U-Nets)")
    if pipeline.scheduler.config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise RunError(f"{source} predicts {pipeline.scheduler.config.prediction_type}: epsilon and v_prediction are known")
    size, scale, text = pipeline.unet.config.sample_size, pipeline.vae.config.scaling_factor, pipeline.text_encoder.config
    rules = {
        f"noise schedule of {TIMESTEPS} steps": pipeline.scheduler.config.get("num_train_timesteps") == TIMESTEPS,
        "whole number as the U-Net's sample_size": isinstance(size, int) and size > 0,
        "positive number as the autoencoder's scaling_factor": isinstance(scale, (int, float)) and 0 < scale < float("inf"),
        "tokenizer that fits its text encoder": (  # without its files transformers makes an empty one, for texts of any length
            len(pipeline.tokenizer) <= text.vocab_size and pipeline.tokenizer.model_max_length <= text.max_position_embeddings
        ),
    }
    for rule, kept in rules.items():
        if not kept:
            raise RunError(f"{source} has no {rule}: take {KEPT}")
    check_parts(pipeline, source)
    for name in PARTS:
        getattr(pipeline, name).eval().requires_grad_(False)
    pipeline.unet.requires_grad_(True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_parts(model, source):
    """files.check_finite() of a pipeline, or of one part of it. source: what the message calls it."""
    for part in [model] if isinstance(model, torch.nn.Module) else [getattr(model, name) for name in PARTS]:
        check_finite({f"{type(part).__name__}'s {name}": tensor for name, tensor in part.state_dict().items()}, source)
