"""Find the weights that matter for the forgotten classes: SalUn's saliency mask.

    python generate_mask.py --model_path runs/cifar10/original --forget_class 0 --save_dir runs/cifar10/mask

Saliency is |gradient of the mean noise-prediction loss over all training images of the classes|, each under its own label, in eval
mode, without augmentation, in fp32. As in the official release the prediction is guided, (1 + w) eps(x | c) - w eps(x | no class) with
w = --cond_scale 2. With --cond_scale 0 it is the training loss, as in the paper's equation. In each of --epochs passes every image is
seen once, at a timestep and with noise that follow from --seed; the timesteps of a pass are spread evenly. The mask keeps exactly
floor(mask_ratio * n) of the n weights.

--mask_kind makes controls, at the same share of the weights: random ones, the least salient ones, those of the largest magnitude, or
(layerwise) random ones with as many of each tensor as the saliency mask has. A run under such a mask has a row of its own in the tables.
"""

import functools

import torch

import cli
import masking
import passes
import task
import trainer
from run_folder import RunFolder


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("data_dir", "cache_dir", required=["save_dir", "model_path", "forget_class"])
    parser.add(cli.DATA, "--weights", **task.WEIGHTS)
    cond_scale = "weight w of the guidance of the prediction, 0: none"
    parser.add(cli.METHOD, "--cond_scale", type=cli.non_negative_float, default=2.0, metavar="W", help=cond_scale)
    clip = "clip each batch's gradient to norm 1, as the official release does, so that batches weigh the same in place of images"
    parser.add(cli.METHOD, "--clip_batches", action="store_true", help=clip)
    options = {"epochs": dict(type=cli.positive_int, help="passes over the images, each with noise of its own")}
    options["seed"] = dict(help="seed of the noise (default: 1), and of the random mask kinds")
    parser.add_shared("resume", "overwrite", "device", "seed", options=options, mask_ratio=0.5, epochs=1, batch_size=128, precision="fp32")
    parser.add(cli.METHOD, "--mask_kind", choices=masking.KINDS, default="saliency", help="which weights; all but saliency are controls")
    args = parser.parse_args(argv)
    if args.mask_kind in masking.SEEDED and args.seed is None:
        parser.error(f"--mask_kind {args.mask_kind} needs --seed: its weights are drawn at random")
    args.seed = 1 if args.seed is None else args.seed
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # Model, data and what is forgotten
    loaded = task.load_task(args.model_path, args.forget_class, accelerator, args.data_dir, args.cache_dir, args.weights)
    run_folder.begin(kind="mask", **loaded.facts)

    # Saliency, and the mask of its largest entries
    run_folder.start_clock()
    options = {"passes": args.epochs, "batch_size": args.batch_size, "seed": args.seed, "cond_scale": args.cond_scale}
    gradient = functools.partial(passes.batch_gradients, transform=torch.clone) if args.clip_batches else passes.mean_gradient
    saliency = functools.partial(gradient, loaded.model, loaded.forget, accelerator, **options)
    mask = masking.make(args.mask_kind, args.mask_ratio, dict(loaded.model.named_parameters()), saliency, args.seed)
    seconds = run_folder.seconds()

    # Save
    names = ["epochs", "cond_scale", "clip_batches", "weights", *["batch_size"] * args.clip_batches]
    flags = {name: getattr(args, name) for name in names}
    masking.save(run_folder, mask, loaded.facts, mask_ratio=args.mask_ratio, seconds=seconds, kind=args.mask_kind, **flags)
    salient, total = masking.count(mask)
    message = f"{salient:,} of {total:,} weights in the {args.mask_kind} mask of {len(loaded.forget):,} images, {seconds:.1f} s"
    run_folder.finish(message, seconds=seconds)


if __name__ == "__main__":
    cli.run(main)
