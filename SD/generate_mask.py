"""Find the weights of the U-Net that matter for what is to be forgotten: SalUn's saliency mask.

    python generate_mask.py --model_path runs/sd/original --dataset imagenette --data_dir data --forget_class church --save_dir runs/mask

Saliency is |gradient of the mean squared error of the guided prediction over all images to forget|, each under its own prompt, in eval
mode: (1 + w) eps(x_t | c) - w eps(x_t | null) against the noise, w = --mask_guidance, as in the official release; 0 is the plain training
loss. In each of --epochs passes every image is seen once, at a timestep and with noise that follow from --seed; the timesteps of a pass
are spread evenly. The mask keeps exactly floor(mask_ratio * n) of the n weights. What is forgotten is said as for unlearn.py.
"""

import engine
import job
import masking
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, required=["save_dir"])
    job.add_model_flag(parser)
    job.add_concept_flags(parser)
    parser.add_argument("--mask_guidance", type=run.non_negative_float, default=7.5, metavar="W", help="guidance of the loss, 0: none")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    run.add_flags(parser, "resume", "overwrite", "device", mask_ratio=0.5, epochs=1, batch_size=8, seed=1)
    job.add_precision(parser, "fp32")
    args = parser.parse_args(argv)
    job.check_concept_flags(parser, args)
    if args.epochs < 1:
        parser.error("--epochs must be at least 1: without a pass there is no gradient")
    if args.precision == "fp16":
        parser.error("--precision fp16 would lose small gradients here: take bf16 or fp32")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Model, images and what is forgotten
    opened = job.open_job(args, accelerator, ("forget",))
    record.begin(job.PACKAGES, kind="mask", **opened.facts)
    unet = opened.pipeline.unet
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()

    # Saliency, and the mask of its largest entries
    record.start_clock()
    saliency = engine.mean_gradient(
        unet,
        opened.scheduler,
        opened.forget,
        opened.embeddings,
        opened.null,
        accelerator,
        guidance=args.mask_guidance,
        passes=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
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
