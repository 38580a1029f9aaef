"""Find the weights that matter for the forget set: SalUn's saliency mask.

    python generate_mask.py --model_path runs/cifar10/original --num_forget 0.1 --save_dir runs/cifar10/mask

Saliency is |gradient of the mean cross-entropy over all of the forget set|, in eval mode, without augmentation, in fp32. The mask
keeps exactly floor(mask_ratio * n) of the n weights. What is forgotten is given by --forget_class, --num_forget (with
--forget_class: that many of the class) or --forget_indices. --data_dir and --split_seed default to the original's.
"""

import engine
import job
import masking
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, "data_dir", "forget_class", "num_forget", "forget_indices", "split_seed", required=["save_dir", "model_path"])
    run.add_flags(parser, "resume", "overwrite", "device", mask_ratio=0.5, batch_size=256, precision="fp32")
    args = parser.parse_args(argv)
    run.check_forget_flags(parser, args)
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Model, data and what is forgotten
    opened = job.open_job(args.model_path, job.forget_flags(args), accelerator, args.data_dir)
    record.begin(job.PACKAGES, kind="mask", **opened.facts)

    # Saliency, and the mask of its largest entries
    record.start_clock()
    saliency = engine.mean_gradient(opened.model, opened.forget, accelerator, args.batch_size)
    mask = masking.select(saliency, args.mask_ratio)
    seconds = record.seconds()

    # Save
    masking.save(record, mask, mask_ratio=args.mask_ratio, forget_sha=opened.facts["forget_sha"], seconds=seconds)
    record.finish(seconds=seconds, **engine.memory(accelerator))
    if accelerator.is_main_process:
        kept, total = sum(int(part.sum()) for part in mask.values()), sum(part.numel() for part in mask.values())
        print(f"{record.folder}: {kept:,} of {total:,} weights are salient for {len(opened.forget):,} forget samples, {seconds:.1f} s")


if __name__ == "__main__":
    run.cli(main)
