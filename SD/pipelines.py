"""Opening text-to-image pipelines: runs, folders of diffusers, models of the hub, and single files."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

import cli
import models
from cli import RunError
from families import FAMILIES, KINDS
from files import check_finite, read_json
from models import quiet
from run_folder import read_run

# A weight file, a shard or an index of shards, each perhaps with a variant in its name, as diffusers and transformers write them
NAME = r"(diffusion_pytorch_)?model(\.(?P<a>\w+))?(-\d{5}-of-\d{5})?(\.(?P<b>\w+))?\.safetensors(\.index(\.(?P<c>\w+))?\.json)?"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FUSE = "fuse its LoRA by load_lora_weights(), fuse_lora() and unload_lora_weights() of diffusers and save the pipeline"
KNOWN = " or ".join(family.WHOLE for family in FAMILIES.values())


@dataclass
class Original:
    """The diffusers folder that a pipeline was opened from, and the variant of its weights."""

    folder: Path
    variant: str | None

    def weights(self, part, parameters):
        """The part's weights in the files, {name: tensor} of the parameters {name: tensor} and in their precision: read at each look, so
        that they take no memory. None where the files have other names."""
        files = [path for path in weight_files(self.folder / part, self.variant) if path.suffix == ".safetensors"]
        stored = Stored([safetensors.safe_open(path, framework="pt") for path in files], parameters)
        return stored if stored.keys() >= parameters.keys() else None


class Stored(Mapping):
    """Tensors in open .safetensors files. They stay readable when the files are removed."""

    def __init__(self, files, parameters):
        self.files, self.parameters = {name: file for file in files for name in file.keys()}, parameters

    def __getitem__(self, name):
        return self.files[name].get_tensor(name).to(self.parameters[name].dtype)

    def __iter__(self):
        return iter(self.files)

    def __len__(self):
        return len(self.files)


def add_variant_flag(parser, group):
    parser.add(group, "--variant", metavar="NAME", help="variant of a diffusers folder's or hub id's weight files, fp16 for one")


def add_weights_flag(parser):
    weights = "precision of the weights in memory; trained weights also have a float32 copy, and the autoencoder is float32"
    parser.add(cli.RUN, "--weights_dtype", choices=models.DTYPES, default="fp32", help=weights)


def open_pipeline(source, config=None, variant=None, dtype="fp32"):
    """Return (Family, recorded) of a run folder of train.py or unlearn.py, a diffusers folder, a hub id, or one .safetensors/.ckpt file.

    recorded: args.json of the run, {} for other sources. Weights are of `dtype`, a name in models.DTYPES, the autoencoder's float32, all on
    the CPU; the safety checker is left out. config: a diffusers folder that tells a single file's shapes, where the hub cannot be asked.
    variant: of the weight files, where a folder has several. The Family's .original is the Original, None for a single file. No pickle is
    ever executed. Raises RunError.
    """
    import single_file

    path, recorded = Path(source), {}
    part_of_run = path.name in ("model", "model.safetensors") and (path.parent / "args.json").is_file()
    run = read_json(path.parent / "args.json") if part_of_run else {}
    if run.get("kind") == "unlearn" or run.get("retain_only"):  # it would pass for an original
        raise RunError(f"{source} is a part of the run {path.parent}, which has forgotten: name that")
    if path.is_file():
        if variant is not None:
            raise RunError(f"{source} is one file, which has no variants: leave out --variant")
        return ready(single_file.load(path, config), path, dtype=dtype), recorded
    if (path / "args.json").is_file():
        path, recorded = read_run(path, "train", "unlearn")
        path, variant = path / "model", None  # a run's files have none
    if path.exists() and not (path / "model_index.json").is_file():
        lora = any(path.glob("*lora*.safetensors")) or (path / "adapter_config.json").is_file()
        more = f". LoRA weights alone are no model: {FUSE}" if lora else ""
        raise RunError(f"{path} is not a pipeline: it holds no model_index.json, which a diffusers folder has{more}")
    if not path.exists():
        if path.is_absolute() or len(path.parts) != 2 or path.parts[0] in (".", "..", "runs"):
            raise RunError(f"{source} does not exist, and is no name of a model on the hub (owner/name) either")
        path = fetch(str(source), variant)
    family = ready(from_folder(path, variant, source, dtype), source, Original(path, variant), dtype)
    known = (recorded.get("training") or {}) if recorded.get("kind") == "unlearn" else recorded
    family.edge = known.get("edge")
    return family, recorded


def fetch(name, variant):
    """The folder in the hub's cache with all parts of a model of the hub, which are fetched where they are missing."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    try:
        with quiet():
            check_index(Path(hf_hub_download(name, "model_index.json")).parent, name)  # before gigabytes are fetched
            options = {"variant": variant, "use_safetensors": True}
            try:
                return Path(DiffusionPipeline.download(name, **options))
            except OSError:  # of old models the safety checker alone may be a pickle
                return Path(DiffusionPipeline.download(name, **options, safety_checker=None))
    except GatedRepoError as error:
        raise RunError(f"{name} is gated: accept its terms on its page of the hub, log in by `hf auth login`, and try again") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{name} could not be fetched from the hub as safetensors weights ({reason}): name a local folder") from error


def check_index(folder, source):
    """(family, {name: [library, class]}) of a model_index.json and the parts that it lists.

    RunError for code of the folder's own (diffusers before 0.38 runs it, later ones should not) and for a pipeline of another kind.
    """
    index = read_json(folder / "model_index.json")
    parts = {name: value or [None, None] for name, value in index.items() if isinstance(value, list)}  # [library, class]
    for name, (library, *_) in parts.items():
        known = library in (None, "diffusers", "transformers") or (name, library) == ("safety_checker", "stable_diffusion")
        if not known or not name.isidentifier() or name.startswith("_") or (folder / name / f"{library}.py").exists():
            why = f"{folder} names {library} as the library of {name}, code that could do anything and is refused"
            raise RunError(f"{why}: take a model whose parts are of diffusers and transformers")
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RunError(f"{source} is a {str(kind)[:60]}, which is not known here: take {KNOWN}")
    family = KINDS[kind]
    for name, kind in family.PARTS.items():
        found = parts.get(name, ["nothing"])[-1]
        if found != kind and not (found is None and name in family.OPTIONAL):
            raise RunError(f"{source} has {str(found)[:60]} as its {name}, not {kind}: take {family.WHOLE}")
    return family, parts


def variant_of(name):
    """The variant in the name of a weight file, "" for none; None where the name is not a weight file's."""
    found = re.fullmatch(NAME, name)
    return found and (found["a"] or found["b"] or found["c"] or "")


def weight_files(folder, variant):
    """[path] of a part's weight files of a variant, or where it has none of those, of its files without one."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for wanted in (variant or "", ""):
        if found := [folder / name for name in names if variant_of(name) == wanted]:
            return found
    return []


def check_weights(names, folder, variant, source):
    """RunError unless each part of these names has weight files of safetensors, and one of them that variant."""
    for name in names:
        if (folder / name / "adapter_config.json").exists():
            raise RunError(f"{source} has an adapter beside its {name}: {FUSE}")
        found = weight_files(folder / name, variant)
        others = sorted(os.listdir(folder / name)) if (folder / name).is_dir() else []
        if not found:
            there = sorted({spelled for other in others if (spelled := variant_of(other))})
            pickled = next((other for other in others if other.endswith(PICKLES)), None)
            lacks = f"{source} cannot be opened: its {name} has no"
            if there:
                raise RunError(f"{lacks} weights but those of the variant {' or '.join(there)}: add --variant {there[0]}")
            if pickled:
                save = f"if you trust it, DiffusionPipeline.from_pretrained({str(source)!r}).save_pretrained('new') converts it"
                raise RunError(f"{lacks} safetensors weights but {pickled}, a pickle, which could run code and is not read: {save}")
            raise RunError(f"{lacks} safetensors weights: make or fetch it again")
        pointer = next(
            (path for path in found if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git")), None
        )
        if pointer:
            raise RunError(f"{pointer} is a pointer of git-lfs and holds no weights: run git lfs pull in {folder}")
    if variant and not any(variant_of(path.name) for name in names for path in weight_files(folder / name, variant)):
        raise RunError(f"{source} has no weights of the variant {variant}: leave out --variant")


def check_tokenizers(names, folder, source):
    """RunError unless each tokenizer of these names has its config and its vocabulary: transformers would make one that knows no word."""
    for name in names:
        there = os.listdir(folder / name) if (folder / name).is_dir() else ()
        if "tokenizer_config.json" not in there or not {"tokenizer.json", "vocab.json", "spiece.model"}.intersection(there):
            raise RunError(f"{source} cannot be opened: its {name} lacks its vocabulary or its config; make or fetch it again")


def from_folder(folder, variant, source, dtype="fp32"):
    """diffusers' from_pretrained, its errors turned into one sentence. source: what they call the folder."""
    import diffusers
    import transformers

    family, index = check_index(folder, source)
    parts = {name: kind for name, kind in family.PARTS.items() if index[name][-1] is not None}
    check_weights(parts, folder, variant, source)
    check_tokenizers([name for name in index if name.startswith("tokenizer") and "text_encoder" + name[9:] in parts], folder, source)
    trained = next(iter(family.PARTS))
    if (folder / trained / "config.json").is_file():
        family.check_config(read_json(folder / trained / "config.json"), source)
    lacks = [name for name, entry in index.items() if entry[-1] is None and name.startswith(("text_encoder", "tokenizer"))]
    options = family.WITHOUT | dict.fromkeys(lacks)
    with quiet():
        try:
            # Each part by itself: only then is it told what a file lacks, which transformers would fill at random. The position_ids of old
            # files are no weights.
            for name, kind in parts.items():
                cls = getattr(diffusers, kind, None) or getattr(transformers, kind)
                spelled = variant_of(weight_files(folder / name, variant)[0].name) or None
                how = {"use_safetensors": True, "variant": spelled, "output_loading_info": True}
                if dtype != "fp32" and kind != "AutoencoderKL":  # never in float32: the memory might not hold it
                    how["torch_dtype"] = models.DTYPES[dtype]
                options[name], told = cls.from_pretrained(folder, subfolder=name, **how)
                check_told(told, name, source)
            return getattr(diffusers, family.KINDS[0]).from_pretrained(folder, **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"{source} cannot be opened as a pipeline with safetensors weights ({reason})") from error


def check_told(told, name, source):
    """RunError for weights that a part lacks or has too, as from_pretrained tells."""
    faults = {"lacks": "missing_keys", "has the unknown": "unexpected_keys", "has another shape of": "mismatched_keys"}
    odd = [(fault, tensor) for fault, keys in faults.items() for tensor in sorted(map(str, told.get(keys, ())))]
    odd = [(fault, tensor) for fault, tensor in odd if not tensor.endswith("position_ids")]
    if any(".base_layer." in tensor or "lora_" in tensor for _, tensor in odd):
        raise RunError(f"{source} was saved with a LoRA in its {name} that is not fused: {FUSE}")
    for fault, tensor in odd:
        raise RunError(f"{source} is an incomplete pipeline: its {name} {fault} tensor {tensor}; make or fetch it again")


def ready(pipeline, source, original=None, dtype="fp32"):
    """The Family of an opened pipeline whose configs fit each other and whose weights are finite, in dtype. RunError for others."""
    family = KINDS[type(pipeline).__name__](pipeline)
    family.original = original
    family.check(source)
    with quiet():  # diffusers warns of .to(), which leaves no module in float32
        for part in (family.model, *family.frozen):
            cast(part, torch.float32 if part is pipeline.vae else models.DTYPES[dtype]).eval().requires_grad_(False)
    check_parts(family, source)
    family.model.requires_grad_(True)
    pipeline.set_progress_bar_config(disable=True)
    return family


def cast(part, dtype):
    """A part in dtype; in float16, what its class keeps in float32 stays there (T5's wo)."""
    kept = set(getattr(part, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    if not kept:
        return part.to(dtype)
    for name, tensor in (*part.named_parameters(), *part.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    return part


def check_parts(model, source):
    """files.check_finite() of a family's parts, or of one part. source: what the message calls it."""
    for part in [model] if isinstance(model, torch.nn.Module) else [model.model, *model.frozen]:
        check_finite({f"{type(part).__name__}'s {name}": tensor for name, tensor in part.state_dict().items()}, source)
