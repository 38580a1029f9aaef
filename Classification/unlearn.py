"""Unlearn: turn a trained model into one that has forgotten a part of its training data.

    python unlearn.py --method salun --model_path runs/c10/original --mask_path runs/c10/mask --num_forget 0.1 --save_dir runs/c10/salun

Architecture, data set and training settings come from the run at --model_path; --method retrain trains anew without the forget
set, the standard the others are held to. What is forgotten is given by --forget_class, --num_forget (with --forget_class: that
many of the class) or --forget_indices, and must be what the mask was made for. --data_dir and --split_seed default to the
original's.
"""

import functools

import datasets
import engine
import job
import masking
import methods
import models
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.epilog = "methods, what they read, and the defaults of the flags they take (None: as the original was trained):\n" + "\n".join(
        f"  {name:13s}{' and '.join(methods.reads(name)):18s} "
        + " ".join(f"--{flag} {value}" for flag, value in methods.flags(name).items())
        for name in methods.METHODS
    )
    run.add_flags(
        parser, "data_dir", "mask_path", "forget_class", "num_forget", "forget_indices", "split_seed", required=["save_dir", "model_path"]
    )
    parser.add_argument(
        "--method",
        "--unlearn",
        type=lambda name: methods.PAPER_SPELLINGS.get(name, name),
        choices=methods.METHODS,
        default="salun",
        help="unlearning method",
    )
    run.add_flags(parser, "lr", "epochs", "alpha", "mask_ratio", "batch_size")
    parser.add_argument(
        "--mix",
        action="store_true",
        default=None,
        help="rl, salun, salun_soft: one shuffled pass over forget and retain set, not one after the other",
    )
    parser.add_argument(
        "--gamma", type=run.non_negative_float, help="l1_sparse: weight of the L1 norm at the start; scrub: weight of the cross-entropy"
    )
    parser.add_argument("--beta", type=run.share, help="neggrad_plus: weight of the retain loss, 1 - beta of the forget loss")
    parser.add_argument("--fgsm_bound", type=run.positive_float, help="bs: FGSM step in pixel space [0, 1]")
    parser.add_argument("--ascent_epochs", type=run.non_negative_int, help="scrub: epochs that also push the forget set away")
    parser.add_argument("--iu_scale", type=run.positive_float, help="iu: length of the step along the influence direction")
    parser.add_argument(
        "--ssd_alpha", type=run.positive_float, help="ssd: dampen where the forget set's Fisher exceeds ssd_alpha times the whole set's"
    )
    parser.add_argument("--ssd_lambda", type=run.positive_float, help="ssd: strength of the dampening")
    parser.add_argument("--fisher_samples", type=run.non_negative_int, help="iu, ssd: samples for the Fisher information (0: all)")
    run.add_flags(parser, "resume", "overwrite", "device", "precision", seed=1)
    args = parser.parse_args(argv)
    args.options = check(parser, args)
    return args


def check(parser, args):
    """Refuse contradictions before anything loads; return {flag: value} of the method."""
    known = methods.flags(args.method)
    of_some_method = {flag for name in methods.METHODS for flag in methods.flags(name)}
    ignored = sorted(flag for flag in of_some_method - set(known) if getattr(args, flag) is not None)
    if ignored:
        parser.error(f"--method {args.method} does not read --{', --'.join(ignored)}")
    if args.method in methods.NEEDS_MASK and args.mask_path is None:
        parser.error(
            f"--method {args.method} needs --mask_path: make a mask with generate_mask.py (random labels without a mask are --method rl)"
        )
    if args.method in methods.TAKES_NO_MASK and args.mask_path is not None:
        parser.error(f"--method {args.method} takes no --mask_path: it starts from fresh weights")
    run.check_forget_flags(parser, args)
    return {flag: default if getattr(args, flag) is None else getattr(args, flag) for flag, default in known.items()}


def counted(record, function):
    """`function` of a split, its samples added to the images seen."""

    def call(split):
        record.images_seen += len(split)
        return function(split)

    return call


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # The original model, the forget and the retain set, the mask
    opened = job.open_job(args.model_path, job.forget_flags(args), accelerator, args.data_dir)
    before = {name: parameter.detach().clone() for name, parameter in opened.model.named_parameters()}
    mask, mask_facts = masking.load(args.mask_path, before, opened.facts["forget_sha"]) if args.mask_path else (None, {})
    if args.method == "retrain" and not opened.training["epochs"] and (args.epochs is None or args.lr is None):
        raise run.RunError(
            f"the original at {args.model_path} was trained for 0 epochs here, as weights from elsewhere are, so that Retrain would stay "
            "untrained: pass the --epochs and --lr to train it with"
        )
    record.begin(job.PACKAGES, kind="unlearn", **opened.facts, mask_info=mask_facts)

    # Unlearn. A method is handed what its signature names, and nothing else
    trained = opened.training
    batch_size = args.batch_size or trained["batch_size"]
    fit = functools.partial(
        engine.fit,
        opened.model,
        batch_size=batch_size,
        seed=args.seed,
        accelerator=accelerator,
        run=record,
        mask=mask,
        optimizer=trained["optimizer"],
        momentum=trained["momentum"],
        weight_decay=trained["weight_decay"],
        augment=datasets.DATASETS[trained["dataset"]],
    )
    given = {
        "model": opened.model,
        "forget": opened.forget,
        "retain": opened.retain,
        "fit": fit,
        "mask": mask,
        "seed": args.seed,
        "training": trained,
        "fresh": lambda: models.build(**opened.architecture, seed=args.seed),
        "gradient": counted(record, functools.partial(engine.mean_gradient, opened.model, accelerator=accelerator, batch_size=batch_size)),
        "samples": counted(record, functools.partial(engine.sample_gradients, opened.model)),
        "fisher": counted(record, functools.partial(engine.fisher_diagonal, opened.model)),
    }
    record.start_clock()
    methods.call(args.method, given, args.options)
    seconds = record.seconds()

    # Save, after a check that no frozen weight moved
    changed = masking.check_change(before, dict(opened.model.named_parameters()), mask)
    record.save("model.safetensors", opened.model.state_dict())
    record.finish(
        seconds=seconds,
        mask_seconds=mask_facts.get("mask_seconds", 0.0),
        images_seen=record.images_seen,
        fraction_changed=changed,
        **engine.memory(accelerator),
    )
    if accelerator.is_main_process:
        print(f"{record.folder}: {args.method}, {100 * changed:.1f} % of the weights changed, {seconds:.1f} s")


if __name__ == "__main__":
    run.cli(main)
