"""Find the weights that matter for the forgotten classes: SalUn's saliency mask.

    python generate_mask.py --model_path runs/cifar10/original --forget_class 0 --save_dir runs/cifar10/mask

Saliency is |gradient of the mean noise-prediction loss over all training images of the classes|, each under its own label, in eval
mode, without augmentation, in fp32. In each of --epochs passes every image is seen once, at a timestep and with noise that follow from
--seed; the timesteps of a pass are spread evenly. The mask keeps exactly floor(mask_ratio * n) of the n weights.
"""

import engine
import job
import masking
import models
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, "data_dir", required=["save_dir", "model_path", "forget_class"])
    run.add_flags(parser, "resume", "overwrite", "device", mask_ratio=0.5, epochs=1, batch_size=128, precision="fp32", seed=1)
    args = parser.parse_args(argv)
    if args.epochs < 1:
        parser.error("--epochs must be at least 1: without a pass there is no gradient")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Model, data and what is forgotten
    opened = job.open_job(args.model_path, args.forget_class, accelerator, args.data_dir)
    record.begin(job.PACKAGES, kind="mask", **opened.facts)

    # Saliency, and the mask of its largest entries
    record.start_clock()
    saliency = engine.mean_gradient(
        opened.model, models.noise_scheduler(), opened.forget, accelerator, passes=args.epochs, batch_size=args.batch_size, seed=args.seed
    )
    mask = masking.select(saliency, args.mask_ratio)
    seconds = record.seconds()

    # Save
    masking.save(record, mask, mask_ratio=args.mask_ratio, forget_sha=opened.facts["forget_sha"], seconds=seconds)
    record.finish(seconds=seconds, **engine.memory(accelerator))
    if accelerator.is_main_process:
        kept, total = sum(int(part.sum()) for part in mask.values()), sum(part.numel() for part in mask.values())
        print(f"{record.folder}: {kept:,} of {total:,} weights are salient for {len(opened.forget):,} images, {seconds:.1f} s")


if __name__ == "__main__":
    run.cli(main)
