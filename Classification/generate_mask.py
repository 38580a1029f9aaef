"""Find the weights that matter for the forget set: SalUn's saliency mask.

    python generate_mask.py --model_path runs/cifar10/original --num_forget 0.1 --save_dir runs/cifar10/mask

Saliency is |gradient of the mean cross-entropy over all of the forget set|, in eval mode, without augmentation, in fp32. The mask
keeps exactly floor(mask_ratio * n) of the n weights. What is forgotten is given by --forget_class, --num_forget (with
--forget_class: that many samples of the class) or --forget_indices. --data_dir and --split_seed default to the original's.

--mask_kind makes controls, at the same share of the weights: random ones, the least salient ones, those of the largest magnitude, or
(layerwise) random ones with as many of each tensor as the saliency mask has. A run under such a mask has a row of its own in the tables.
"""

import functools

import cli
import masking
import passes
import task
import trainer
from run_folder import RunFolder


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("data_dir", "cache_dir", required=["save_dir", "model_path"])
    task.add_forget_flags(parser)
    seed = {"seed": dict(help="seed of the random mask kinds")}
    parser.add_shared("resume", "overwrite", "device", "seed", options=seed, mask_ratio=0.5, batch_size=256, precision="fp32")
    parser.add(cli.METHOD, "--mask_kind", choices=masking.KINDS, default="saliency", help="which weights; all but saliency are controls")
    args = parser.parse_args(argv)
    task.check_forget_flags(parser, args)
    if args.mask_kind in masking.SEEDED and args.seed is None:
        parser.error(f"--mask_kind {args.mask_kind} needs --seed: its weights are drawn at random")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # Model, data and what is forgotten
    loaded = task.load_task(args.model_path, task.forget_flags(args), accelerator, args.data_dir, args.cache_dir)
    run_folder.begin(kind="mask", **loaded.facts)

    # Saliency, and the mask of its largest entries
    run_folder.start_clock()
    saliency = functools.partial(passes.mean_gradient, loaded.model, loaded.forget, accelerator, args.batch_size)
    mask = masking.make(args.mask_kind, args.mask_ratio, dict(loaded.model.named_parameters()), saliency, args.seed)
    seconds = run_folder.seconds()

    # Save
    masking.save(run_folder, mask, loaded.facts, mask_ratio=args.mask_ratio, seconds=seconds, kind=args.mask_kind)
    salient, total = masking.count(mask)
    message = f"{salient:,} of {total:,} weights in the {args.mask_kind} mask of {len(loaded.forget):,} forget samples, {seconds:.1f} s"
    run_folder.finish(message, seconds=seconds)


if __name__ == "__main__":
    cli.run(main)
