"""Unlearn: turn a trained model into one that has forgotten a part of its training data.

    python unlearn.py --method salun --model_path runs/c10/original --mask_path runs/c10/mask --num_forget 0.1 --save_dir runs/c10/salun

Architecture, data set and training settings come from the run at --model_path. --method retrain trains from scratch without the
forget set: it is the reference for all other methods. What is forgotten is given by --forget_class, --num_forget (with
--forget_class: that many samples of the class) or --forget_indices, and must be what the mask was made for. --data_dir and
--split_seed default to the original's.
"""

import argparse
import functools
import sys

import torch

import cli
import data
import imagesets
import masking
import task
import trainer
from cli import RunError
from methods import FLAGS, METHODS, NEEDS_MASK, PAPER_ALPHA, PAPER_SPELLINGS, TAKES_NO_MASK
from run_folder import RunFolder

SETTINGS = dict(batch_size=None, forget_batch_size=None, optimizer=None, momentum=None, weight_decay=None, schedule="constant")


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("data_dir", "cache_dir", required=["save_dir", "model_path"])
    task.add_forget_flags(parser)
    method = dict(type=lambda name: PAPER_SPELLINGS.get(name, name), choices=METHODS, default="salun", help="unlearning method")
    parser.add(cli.METHOD, "--method", "--unlearn", **method)
    parser.add_shared("mask_path")
    cli.add_method_flags(parser, METHODS, FLAGS)
    optimizer = "optimizer (default of these settings: the method's authors', else the original's)"
    choices = {"optimizer": dict(choices=trainer.OPTIMIZERS, help=optimizer)}
    schedule = "(default: constant; sfron: cosine; retrain: the original's)"
    choices["schedule"] = dict(choices=trainer.SCHEDULES, help=f"learning-rate schedule {schedule}")
    parser.add_shared(*SETTINGS, options=choices)
    augment = "keep the original's random crops and flips while unlearning (default: as the method's authors do, else yes)"
    parser.add(cli.METHOD, "--augment", action=argparse.BooleanOptionalAction, help=augment)
    parser.add_shared("setting", "resume", "overwrite", "device", "precision", "compile", seed=1)
    args = parser.parse_args(argv)
    if args.method == "retrain" and any(str(word).startswith(("--unlearn_lr", "--unlearn_epochs")) for word in argv or sys.argv):
        parser.error("--method retrain trains as the original was trained: write --lr or --epochs to train it otherwise")
    task.check_forget_flags(parser, args)
    if args.alpha is not None and (ours := PAPER_ALPHA.get(args.method)):
        if getattr(args, ours) is not None:
            parser.error(f"for --method {args.method}, --alpha is the paper repository's spelling of --{ours}: give one of them")
        setattr(args, ours, args.alpha)
        args.alpha = None
    unread = [] if "forget" in cli.method_inputs(METHODS[args.method]) else ["forget_batch_size"]
    if "lr" not in cli.method_flags(METHODS[args.method]):  # one step of its own, in place of an optimizer's
        unread = [name for name in (*SETTINGS, "augment") if name != "batch_size"]
    args.options = cli.method_options(parser, args, METHODS, unread)
    if args.method in NEEDS_MASK and args.mask_path is None:
        without = " (without a mask it is --method rl)" if args.method == "salun" else ""
        parser.error(f"--method {args.method} needs --mask_path: make a mask with generate_mask.py{without}")
    if args.method in TAKES_NO_MASK and args.mask_path is not None:
        parser.error(f"--method {args.method} takes no --mask_path: it starts from fresh weights")
    if args.method == "rl" and args.mask_path is not None:
        data.say("RL under a mask is SalUn: tables call this run rl, write --method salun to have it called salun")
    return args


def fresh_model(model, build, seed):
    """A model with new random weights, and the normalisation of `model`, which is part of the data."""
    fresh = build(seed=seed)
    fresh.pixel_mean.copy_(model.pixel_mean)
    fresh.pixel_std.copy_(model.pixel_std)
    return fresh


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # The original model, the forget and the retain set, the mask
    loaded = task.load_task(args.model_path, task.forget_flags(args), accelerator, args.data_dir, args.cache_dir)
    model, trained = loaded.model, loaded.training
    if args.compile:
        model.compile()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask, mask_info = masking.load(args.mask_path, before, loaded.facts) if args.mask_path else (None, {})
    if args.method == "retrain" and None in (args.epochs, args.lr) and (trained.get("model_path") or not trained["epochs"]):
        given = ", starting from given weights" if trained.get("model_path") else ""  # their own training is not known
        what = f"{args.model_path} was trained for {trained['epochs']} epochs here{given}"
        raise RunError(f"{what}: pass the --epochs and --lr that Retrain is to be trained with")
    method = METHODS[args.method]
    settings = cli.training_settings(args, method, trained, SETTINGS | {"augment": True})
    run_folder.begin(kind="unlearn", **loaded.facts, mask_info=mask_info, settings=settings)

    # Unlearn. A method is handed what its signature names, and nothing else
    settings["augment"] = imagesets.augmentation(trained) if settings["augment"] else None
    loop = trainer.Trainer(model, run_folder, accelerator, seed=args.seed, mask=mask, **settings)
    fresh = functools.partial(fresh_model, model, loaded.build, args.seed)
    inputs = {"model": model, "forget": loaded.forget, "retain": loaded.retain, "val": loaded.val, "trainer": loop}
    inputs |= {"training": trained, "fresh": fresh}
    torch.manual_seed(data.derive_seed("method", args.seed))  # of what a method draws before its loop
    run_folder.start_clock()
    with trainer.batches_large_enough("raise --batch_size or --forget_batch_size, or forget more than one image"):
        method(**cli.handed(method, inputs), **args.options)
    seconds = run_folder.seconds()

    # Save, after a check that no frozen weight moved
    changed = masking.check_change(before, dict(model.named_parameters()), mask)
    run_folder.save("model.safetensors", model.state_dict())
    measured = {"seconds": seconds, "mask_seconds": mask_info.get("mask_seconds", 0.0), "images_seen": run_folder.images_seen}
    message = f"{args.method}, {100 * changed:.1f} % of the weights changed, {seconds:.1f} s"
    run_folder.finish(message, **measured, fraction_changed=changed)


if __name__ == "__main__":
    cli.run(main)
