"""Find the weights of the U-Net or transformer that matter for what is forgotten: SalUn's saliency mask.

    python generate_mask.py --model_path runs/sd/original --dataset imagenette --data_dir data --forget_class church --save_dir runs/mask

Saliency is |gradient of the mean squared error of the guided prediction over all images to forget|, each under its own prompt, in eval
mode: s eps(x_t | c) - (s - 1) eps(x_t | null) against the noise, s = --guidance_scale, as for generate_images.py. 1 is the plain training
loss, 8.5 is what the official release has: it writes (1 + 7.5) eps(x_t | c) - 7.5 eps(x_t | null), and --mask_guidance 7.5 says the same
here. In each of --epochs passes every image is seen once, at a timestep and with noise that follow from --seed; the timesteps of a pass are
spread evenly. The mask keeps exactly floor(mask_ratio * n) of the n weights. What is forgotten is named as for unlearn.py.

--mask_kind makes controls, at the same share of the weights: random ones, the least salient ones, those of the largest magnitude, or
(layerwise) random ones with as many of each tensor as the saliency mask has. A run under such a mask has a row of its own in the tables.
"""

import argparse
import functools

import cli
import concepts
import masking
import passes
import pipelines
import task
import trainer
from run_folder import RunFolder

guidance_scale = cli.number(float, lambda value: 1 <= value < cli.FLOAT, "a number of at least 1 and below 1e35")


def from_weight(text):
    """An argparse type: the guidance scale s = w + 1 of a weight w."""
    return cli.non_negative_float(text) + 1


from_weight.__name__ = "float"  # for argparse's message


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared(required=["save_dir"])
    concepts.add_model_flag(parser)
    concepts.add_concept_flags(parser)
    either = parser.groups[cli.METHOD].add_mutually_exclusive_group()
    scale = "guidance scale of the loss, 1: none"
    either.add_argument("--guidance_scale", type=guidance_scale, default=8.5, metavar="S", help=scale)
    weight = {"type": from_weight, "dest": "guidance_scale", "default": argparse.SUPPRESS, "metavar": "W"}
    either.add_argument("--mask_guidance", "--c_guidance", "--cond_scale", **weight, help="the same, counted from 0: W = S - 1")
    parser.add(cli.RUN, "--gradient_checkpointing", action="store_true", help="less memory, more time")
    pipelines.add_weights_flag(parser)
    where = "sum the saliency in the host's memory, or in a file in DIR, and not on the device"
    parser.add(cli.RUN, "--offload_saliency", nargs="?", const="host", metavar="DIR", help=where)
    options = {"epochs": dict(type=cli.positive_int, help="passes over the images, each with noise of its own")}
    options["seed"] = dict(help="seed of the noise (default: 1), and of the random mask kinds")
    defaults = {"mask_ratio": 0.5, "epochs": 1, "batch_size": 8, "precision": "fp32"}
    spellings = {"epochs": ["--unlearn_epochs"]}
    parser.add_shared("resume", "overwrite", "device", "seed", options=options, spellings=spellings, **defaults)
    parser.add(cli.METHOD, "--mask_kind", choices=masking.KINDS, default="saliency", help="which weights; all but saliency are controls")
    args = parser.parse_args(argv)
    concepts.check_concept_flags(parser, args)
    if args.mask_kind in masking.SEEDED and args.seed is None:
        parser.error(f"--mask_kind {args.mask_kind} needs --seed: its weights are drawn at random")
    args.seed = 1 if args.seed is None else args.seed
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision, args.weights_dtype)
    run_folder = RunFolder(args, accelerator)

    # Model, images and what is forgotten
    options = {"needs": ("forget",), "variant": args.variant, "dtype": args.weights_dtype}
    loaded = task.load_task(args.model_path, concepts.concept_flags(args), accelerator, **options)
    run_folder.begin(kind="mask", **loaded.facts)
    model = loaded.family.model
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()

    # Saliency, and the mask of its largest entries
    run_folder.start_clock()
    options = {"guidance_scale": args.guidance_scale, "passes": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
    options["offload"] = args.offload_saliency
    saliency = functools.partial(passes.mean_gradient, loaded.family, loaded.forget, loaded.embeddings, accelerator, **options)
    mask = masking.make(args.mask_kind, args.mask_ratio, dict(model.named_parameters()), saliency, args.seed)
    seconds = run_folder.seconds()

    # Save
    flags = {name: getattr(args, name) for name in ("epochs", "guidance_scale")}
    masking.save(run_folder, mask, loaded.facts, mask_ratio=args.mask_ratio, seconds=seconds, kind=args.mask_kind, **flags)
    salient, total = masking.count(mask)
    message = f"{salient:,} of {total:,} weights in the {args.mask_kind} mask of {len(loaded.forget):,} images, {seconds:.1f} s"
    run_folder.finish(message, seconds=seconds)


if __name__ == "__main__":
    cli.run(main)
