"""Find the weights that matter for the forget set: SalUn's saliency mask.

    python generate_mask.py --model_path runs/cifar10/original --num_forget 0.1 --save_dir runs/cifar10/mask

Saliency is |gradient of the mean cross-entropy over all of the forget set|, in eval mode, without augmentation, in fp32. The mask
keeps exactly floor(mask_ratio * n) of the n weights. What is forgotten is given by --forget_class, --num_forget (with
--forget_class: that many samples of the class) or --forget_indices. --data_dir and --split_seed default to the original's.
"""

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
    parser.add_shared("resume", "overwrite", "device", mask_ratio=0.5, batch_size=256, precision="fp32")
    args = parser.parse_args(argv)
    task.check_forget_flags(parser, args)
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
    saliency = passes.mean_gradient(loaded.model, loaded.forget, accelerator, args.batch_size)
    mask = masking.select(saliency, args.mask_ratio)
    seconds = run_folder.seconds()

    # Save
    masking.save(run_folder, mask, loaded.facts, mask_ratio=args.mask_ratio, seconds=seconds)
    salient, total = masking.count(mask)
    message = f"{salient:,} of {total:,} weights are salient for {len(loaded.forget):,} forget samples, {seconds:.1f} s"
    run_folder.finish(message, seconds=seconds)


if __name__ == "__main__":
    cli.run(main)
