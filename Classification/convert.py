"""Make safetensors of pickled weights (.pt, .pth, .pth.tar), or a run folder of a mask of the paper's official release.

    python convert.py resnet18.pth model.safetensors
    python convert.py mask/with_0.5.pt runs/mask --model_path runs/original --forget_indices forget.txt

Tensors, numbers and text are read, and no code is run: a whole pickled module is refused. Of a checkpoint the weights are taken. A prefix
that all names share is removed, the official release's normalisation becomes pixel_mean and pixel_std, and half precision becomes
float32. `train.py --model_path model.safetensors --epochs 0` then makes a run of the weights.

A mask of the official release is a table of zeros and ones. It does not say for which model and which samples it was made:
--model_path and the forget flags do, and convert.py relies on them. The seconds that it took are unknown, so RTE counts none.
"""

import argparse
import math
import pickle
import re
from pathlib import Path

import torch

import cli
import masking
import task
import trainer
import weights
from cli import AlreadyDone, RunError
from data import say
from files import check_finite, check_shapes, write_tensors
from run_folder import RunFolder

WEIGHTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add(cli.DATA, "file", type=Path, metavar="FILE", help="pickled file to read")
    parser.add(cli.RUN, "save_dir", type=Path, metavar="OUT", help="file to write, or for a mask the run folder")
    keys = f"name of the weights in a checkpoint (default: the first of {', '.join(WEIGHTS)})"
    parser.add(cli.DATA, "--key", metavar="NAME", help=keys)
    original = {"model_path": dict(help="for a mask: the run of train.py that it was made from")}
    parser.add_shared("model_path", "data_dir", "cache_dir", options=original)
    task.add_forget_flags(parser)
    parser.add_shared("resume", "overwrite", options={"resume": dict(help="leave alone what is there already")})
    args = parser.parse_args(argv)
    if args.model_path is not None:
        task.check_forget_flags(parser, args)
    elif any(getattr(args, name) is not None for name in task.FORGET_FLAGS):
        parser.error("forget flags are for a mask, which needs --model_path too")
    return args


def main(argv=None):
    args = parse(argv)
    if args.model_path is not None:
        return convert_mask(args)
    if args.resume and args.save_dir.is_file():
        raise AlreadyDone(f"{args.save_dir} is there already")
    tensors = read_pickle(args.file, args.key)
    if is_mask(tensors):
        raise RunError(f"{args.file} is a mask: say with --model_path and the forget flags what it was made from and for")
    if args.save_dir.exists() and args.save_dir.samefile(args.file):
        raise RunError(f"{args.save_dir} is the file to read: name another file to write")
    if args.save_dir.is_dir() or (args.save_dir.exists() and not args.overwrite):
        raise RunError(f"{args.save_dir} exists: name another file{'' if args.save_dir.is_dir() else ', or pass --overwrite'}")
    normalisation = weights.take_normalisation(tensors)
    start = len(weights.prefix(tensors))
    tensors = {name[start:]: tensor for name, tensor in tensors.items()} | normalisation
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    check_finite(tensors, args.file)
    write_tensors(args.save_dir, {name: tensor.clone() for name, tensor in tensors.items()})  # safetensors refuses shared memory
    said = "with its normalisation" if normalisation else "without a normalisation: train.py takes it from --normalise"
    print(f"{args.save_dir}: {len(tensors)} tensors, {said}")


def convert_mask(args):
    """Write the run folder of a mask, as generate_mask.py does."""
    run_folder = RunFolder(args, trainer.make_accelerator("cpu", "fp32"))
    tensors = read_pickle(args.file, args.key)
    if not is_mask(tensors):
        raise RunError(f"{args.file} holds weights and no mask of zeros and ones: convert them without --model_path")
    loaded = task.load_task(args.model_path, task.forget_flags(args), run_folder.accelerator, args.data_dir, args.cache_dir)
    parameters = dict(loaded.model.named_parameters())
    tensors = weights.renamed(tensors, parameters, args.file)
    check_shapes(f"the mask {args.file}", tensors, parameters)
    mask = {name: tensors[name].bool() for name in parameters}
    kept, total = masking.count(mask)
    if not kept:
        raise RunError(f"the mask {args.file} keeps no weight: nothing could be trained under it")
    ratio = ratio_of(kept, total)
    run_folder.begin(kind="mask", mask_ratio=ratio, **loaded.facts)
    masking.save(run_folder, mask, loaded.facts, mask_ratio=ratio, seconds=0.0)
    run_folder.finish(f"{kept:,} of {total:,} weights, a share of {ratio}", seconds=0.0)


def ratio_of(kept, total):
    """The shortest decimal r with floor(r * total) = kept: the ratio that the mask was made with."""
    rounded_up = (-(-kept * 10**digits // total) / 10**digits for digits in range(1, 17))
    above = math.nextafter(kept / total, 1)  # 0.7 * 93610 is below 65527 in floating point
    return next(ratio for ratio in (*rounded_up, above) if math.floor(ratio * total) == kept)


def is_mask(tensors):
    return all(((tensor == 0) | (tensor == 1)).all() for tensor in tensors.values())


def read_pickle(path, key=None):
    """Return the weights or the mask in a pickled file, {name: tensor}. Raises RunError for anything else, and for a whole module."""
    if not path.is_file():
        raise RunError(f"{path} does not exist, or is no file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # many checkpoints keep their flags: a table without code
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        stranger = re.search(r"GLOBAL ([\w.]+)", str(error))
        if stranger:
            what = f"{path} holds a pickled {stranger[1]}, whose loading could run code, and not only tensors"
            raise RunError(f"{what}: where it was made, write torch.save(model.state_dict(), 'weights.pth') and convert that") from error
        raise RunError(f"{path} is an incomplete or damaged file of torch.save ({' '.join(str(error).split())[:200]})") from error
    return find(content, key, path)


def holding(content):
    names = ", ".join(map(str, [*content][:20])) if isinstance(content, dict) else ""
    return f": it holds {names}, one of which --key may name" if names else f": it holds a {type(content).__name__}"


def find(content, key, path):
    """The table of tensors in what a file holds: that of `key`, or of the first name in WEIGHTS, or the whole."""
    for _ in range(4):  # levels, in case a table holds itself
        names = WEIGHTS if key is None else (key,)
        name = next((name for name in names if isinstance(content, dict) and isinstance(content.get(name), dict)), None)
        if name is None:
            break
        content, key = content[name], None
    if key is not None:
        raise RunError(f"{path} has no table {key}{holding(content)}")
    tensors = {name: value for name, value in content.items() if torch.is_tensor(value)} if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise RunError(f"{path} has no table of named tensors where one was looked for{holding(content)}")
    if left_out := [name for name in content if name not in tensors]:
        say(f"left out, as no tensors: {', '.join(left_out[:20])}")
    return tensors


if __name__ == "__main__":
    cli.run(main)
