"""Unlearn: turn a trained model into one that has forgotten one or several classes.

    python unlearn.py --method salun --model_path runs/c10/original --mask_path runs/c10/mask --forget_class 0 --save_dir runs/c10/salun

Architecture, data set and training settings come from the run at --model_path; --method retrain trains anew without the forgotten
classes, the standard the others are held to. The classes must be those that the mask was made for. With --save_every the forgotten
classes are drawn as the run goes, beside two that are kept, and fading.gif shows them one after the other.
"""

import copy
import functools

import data
import datasets
import engine
import job
import masking
import methods
import models
import run
import sampling

REPLAY = {"steps": 50, "guidance": 2.0}  # how methods without training images draw their own


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.epilog = "methods, the training images they read, and the defaults of the flags they take (None: as the original was trained):\n"
    parser.epilog += "\n".join(
        f"  {name:12s}{' and '.join(methods.reads(name)) or 'own samples':18s} "
        + " ".join(f"--{flag} {value}" for flag, value in methods.flags(name).items())
        for name in methods.METHODS
    )
    run.add_flags(parser, "data_dir", "mask_path", required=["save_dir", "model_path", "forget_class"])
    parser.add_argument("--method", "--unlearn", choices=methods.METHODS, default="salun", help="unlearning method")
    run.add_flags(parser, "lr", "steps", "alpha", "mask_ratio")
    parser.add_argument(
        "--target_class",
        metavar="CLASS",
        help="rl, salun, salun_soft: what stands in for the forgotten classes (default: the next retained one)",
    )
    parser.add_argument("--negative_guidance", type=run.non_negative_float, help="esd: strength of the guidance away from the class")
    parser.add_argument("--replay", type=run.positive_int, metavar="N", help="esd, sa: own samples drawn of each class")
    parser.add_argument("--ewc", type=run.non_negative_float, help="sa: weight of the elastic term")
    parser.add_argument("--fisher_timesteps", type=run.positive_int, metavar="N", help="sa: timesteps in the gradient of an image")
    parser.add_argument("--erase_rate", type=run.positive_float, help="erasediff: least rate at which the forget loss falls")
    parser.add_argument("--save_every", type=run.positive_int, metavar="N", help="draw the forgotten classes every N steps, for fading.gif")
    run.add_flags(parser, "resume", "overwrite", "device", "precision", batch_size=128, seed=1)
    args = parser.parse_args(argv)
    args.options = check(parser, args)
    return args


def check(parser, args):
    """Refuse contradictions before anything loads; return {flag: value} of the method."""
    known = methods.flags(args.method)
    of_some_method = {flag for name in methods.METHODS for flag in methods.flags(name)}
    ignored = sorted(flag for flag in of_some_method - set(known) if getattr(args, flag) is not None)
    if args.target_class is not None and "targets" not in methods.handed(args.method):
        ignored.append("target_class")
    if ignored:
        parser.error(f"--method {args.method} does not read --{', --'.join(ignored)}")
    if args.method in methods.NEEDS_MASK and args.mask_path is None:
        parser.error(
            f"--method {args.method} needs --mask_path: make a mask with generate_mask.py (the same loss without a mask is --method rl)"
        )
    if args.method in methods.TAKES_NO_MASK and args.mask_path is not None:
        parser.error(f"--method {args.method} takes no --mask_path: it starts from fresh weights")
    return {flag: default if getattr(args, flag) is None else getattr(args, flag) for flag, default in known.items()}


def draw_frame(step, *, opened, folder, accelerator, seed):
    """samples/step_<step>.png: eight samples of each forgotten class, and below them of two retained ones."""
    labels = [*opened.classes.forgotten[:4], *opened.classes.retained[:2]]
    keys = [(label, index) for label in labels for index in range(8)]
    size, _, channels = opened.forget.x.shape[1:]
    images = sampling.draw(opened.model, keys, (channels, size, size), accelerator, null=opened.classes.null, seed=seed, steps=25)
    if accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        sampling.write_png(folder / "samples" / f"step_{step:06d}.png", sampling.grid(images, columns=8))


def what_methods_take(opened, args, accelerator, record, mask, targets, draw):
    """{name: value} of everything that a method may name in its signature."""
    model, scheduler, trained, null = opened.model, models.noise_scheduler(), opened.training, opened.classes.null

    def denoise(batch, labels=None):
        labels = engine.dropped(batch, null, trained["class_dropout"]) if labels is None else labels
        return engine.denoising(model, scheduler, batch, labels)

    def own_samples(labels, count):
        seed = data.mix("replay", args.seed)
        return sampling.draw_split(model, labels, count, opened.forget.x, accelerator, null=null, seed=seed, **REPLAY)

    return {
        "model": model,
        "original": lambda: copy.deepcopy(model).eval().requires_grad_(False),
        "forget": opened.forget,
        "retain": opened.retain,
        "fit": functools.partial(
            engine.fit,
            model,
            batch_size=trained["batch_size"] if args.method == "retrain" else args.batch_size,
            seed=args.seed,
            accelerator=accelerator,
            run=record,
            mask=mask,
            flip=datasets.DATASETS[trained["dataset"]].flip,
            save_every=args.save_every,
            draw=draw,
        ),
        "scheduler": scheduler,
        "denoise": denoise,
        "own_samples": own_samples,
        "classes": opened.classes,
        "targets": targets,
        "seed": args.seed,
        "training": trained,
        "fresh": lambda: models.build_unet(**opened.architecture, seed=args.seed),
        "fisher": functools.partial(engine.fisher_diagonal, model, scheduler, accelerator=accelerator, seed=args.seed),
    }


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # The original model, the forget and the retain set, the mask
    opened = job.open_job(args.model_path, args.forget_class, accelerator, args.data_dir)
    targets = data.targets(opened.classes, args.target_class)
    model, before = opened.model, {name: parameter.detach().clone() for name, parameter in opened.model.named_parameters()}
    mask, mask_facts = masking.load(args.mask_path, before, opened.facts["forget_sha"]) if args.mask_path else (None, {})
    if args.method == "retrain" and not opened.training["steps"] and (args.steps is None or args.lr is None):
        raise run.RunError(
            f"the original at {args.model_path} was trained for 0 steps here, as weights from elsewhere are, so that Retrain would stay "
            "untrained: pass the --steps and --lr to train it with"
        )
    record.begin(job.PACKAGES, kind="unlearn", **opened.facts, mask_info=mask_facts)

    # Unlearn. A method is handed what its signature names, and nothing else
    frame = functools.partial(draw_frame, opened=opened, folder=record.folder, accelerator=accelerator, seed=args.seed)
    if args.save_every:
        frame(0)
    given = what_methods_take(opened, args, accelerator, record, mask, targets, draw=frame if args.save_every else None)
    record.start_clock()
    methods.call(args.method, given, args.options)
    seconds = record.seconds()

    # Save, after a check that no frozen weight moved
    changed = masking.check_change(before, dict(model.named_parameters()), mask)
    record.save("model.safetensors", model.state_dict())
    if args.save_every and accelerator.is_main_process:
        sampling.write_gif(record.folder / "fading.gif", sorted((record.folder / "samples").glob("step_*.png")))
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
