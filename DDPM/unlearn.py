"""Unlearn: turn a trained model into one that has forgotten one or several classes.

    python unlearn.py --method salun --model_path runs/c10/original --mask_path runs/c10/mask --forget_class 0 --save_dir runs/c10/salun

Architecture, data set and training settings come from the run at --model_path. --method retrain trains from scratch without the
forgotten classes: it is the reference for all other methods. The classes must be those that the mask was made for. With --save_every
the forgotten classes and two retained ones are drawn as the run proceeds, and fading.gif shows the pictures one after the other.
"""

import functools
import sys

import torch

import cli
import data
import imagesets
import masking
import models
import sampling
import task
import trainer
from cli import RunError
from methods import EXCLUSIVE, FLAGS, METHODS, NEEDS_MASK, TAKES_NO_MASK
from run_folder import RunFolder

SMALL_ALPHA = 0.05  # below this --alpha is refused: it is sooner the paper repository's, of a sum, which means thousands of times as much


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("data_dir", "cache_dir", required=["save_dir", "model_path", "forget_class"])
    parser.add(cli.DATA, "--weights", **task.WEIGHTS)
    target = "rl, salun, salun_soft: the class that stands in for the forgotten ones (default: the next retained one)"
    parser.add(cli.FORGET, "--target_class", metavar="CLASS", help=target)
    parser.add(cli.METHOD, "--method", "--unlearn", choices=METHODS, default="salun", help="unlearning method")
    parser.add_shared("mask_path")
    cli.add_method_flags(parser, METHODS, FLAGS)
    default = "(defaults of these settings: the method's authors', else adam, constant, no weight decay; retrain: the original's)"
    choices = {"optimizer": dict(choices=trainer.OPTIMIZERS, help=f"optimizer {default}"), "schedule": dict(choices=trainer.SCHEDULES)}
    choices["batch_size"] = dict(help="samples per step, over all processes (default: 128; retrain: the original's)")
    parser.add_shared(*trainer.SETTINGS, options=choices)
    parser.add(cli.RUN, "--save_every", type=cli.positive_int, metavar="N", help="draw the forgotten classes every N steps, for fading.gif")
    parser.add_shared("setting", "resume", "overwrite", "device", "precision", "compile", seed=1)
    args = parser.parse_args(argv)
    if args.method == "retrain" and any(str(word).startswith(("--unlearn_lr", "--unlearn_epochs")) for word in argv or sys.argv):
        parser.error("--method retrain trains as the original was trained: write --lr or --steps to train it otherwise")
    unread = [] if "targets" in cli.method_inputs(METHODS[args.method]) else ["target_class"]
    unread += ["forget_batch_size"] * (args.method == "retrain")  # esd and sa forget without images, and in batches nevertheless
    args.options = cli.method_options(parser, args, METHODS, unread)
    for one, other in EXCLUSIVE:
        if getattr(args, one) is not None and getattr(args, other) is not None:
            parser.error(f"--{one} and --{other} set the same weight: pass one of them")
    if "sum_alpha" in args.options and args.alpha and args.alpha < SMALL_ALPHA:
        release = f"if {args.alpha:g} is the paper repository's, a weight of sums over pixels, write --sum_alpha {args.alpha:g}"
        parser.error(f"--alpha {args.alpha:g} gives the retain set hardly any weight, because both terms are means here: {release}")
    if args.method in NEEDS_MASK and args.mask_path is None:
        without = " (without a mask it is --method rl)" if args.method == "salun" else ""
        parser.error(f"--method {args.method} needs --mask_path: make a mask with generate_mask.py{without}")
    if args.method in TAKES_NO_MASK and args.mask_path is not None:
        parser.error(f"--method {args.method} takes no --mask_path: it starts from fresh weights")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # The original model, the forget and the retain set, the mask
    loaded = task.load_task(args.model_path, args.forget_class, accelerator, args.data_dir, args.cache_dir, args.weights)
    model, trained, method = loaded.model, loaded.training, METHODS[args.method]
    if args.compile:
        model.compile()
    targets = data.targets(loaded.classes, args.target_class)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask, mask_info = masking.load(args.mask_path, before, loaded.facts) if args.mask_path else (None, {})
    if args.method == "retrain" and (trained.get("model_path") or not trained["steps"]) and None in (args.steps, args.lr):
        how = f"was trained for {trained['steps']} steps here" + (f", from {trained['model_path']}" if "model_path" in trained else "")
        raise RunError(f"{args.model_path} {how}: pass the --steps and --lr that Retrain is to be trained with, from random weights")
    settings = cli.training_settings(args, method, trained, trainer.SETTINGS) | {"flip": imagesets.DATASETS[trained["dataset"]].flip}
    own = {name: trained[name] if value is None else value for name, value in args.options.items() if name in ("steps", "lr")}
    run_folder.begin(kind="unlearn", **loaded.facts, mask_info=mask_info, settings=settings | own)  # whoever set them

    # Unlearn. A method is handed what its signature names, and nothing else
    same = {"accelerator": accelerator, "seed": args.seed}
    rows = {"labels": [*loaded.classes.forgotten[:4], *loaded.classes.retained[:2]], "columns": 8, "null": loaded.classes.null}
    frame = functools.partial(sampling.draw_step, model=model, folder=run_folder.folder, **rows, **same)
    if args.save_every:
        frame(0)
    pictures = {"save_every": args.save_every, "draw": frame if args.save_every else None}
    loop = trainer.Trainer(model, run_folder, mask=mask, **same, **pictures, **settings)
    inputs = {"model": model, "forget": loaded.forget, "retain": loaded.retain, "trainer": loop, "classes": loaded.classes}
    fresh = functools.partial(models.build_unet, **loaded.facts["architecture"], seed=args.seed)
    inputs |= {"targets": targets, "training": trained, "fresh": fresh}
    torch.manual_seed(data.derive_seed("method", args.seed))  # of what a method draws before its loop
    run_folder.start_clock()
    method(**cli.handed(method, inputs), **args.options)
    seconds = run_folder.seconds()

    # Save, after a check that no frozen weight moved
    changed = masking.check_change(before, dict(model.named_parameters()), mask)
    task.save_weights(loop)
    if args.save_every and accelerator.is_main_process:
        sampling.write_gif(run_folder.folder / "fading.gif", sorted((run_folder.folder / "samples").glob("step_*.png")))
    measured = {"seconds": seconds, "mask_seconds": mask_info.get("mask_seconds", 0.0), "images_seen": run_folder.images_seen}
    message = f"{args.method}, {100 * changed:.1f} % of the weights changed, {seconds:.1f} s"
    run_folder.finish(message, **measured, fraction_changed=changed)


if __name__ == "__main__":
    cli.run(main)
