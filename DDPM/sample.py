"""Draw images from one or several models, as PNGs named <class>_<index>.png.

    python sample.py --model_path runs/c10/salun --classes 0 x0 --num_per_class 500 5000 --save_dir runs/c10/samples/salun
    python sample.py --model_path runs/c10/{original,salun} --save_dir runs/c10/samples/{original,salun}

--classes takes numbers and names ("3", "0,3", "cat"), "all", and "x0" for all but 0; --num_per_class is one number for all of them, or one
for each. Every image has a seed of its own: with --resume a broken run draws what is missing, and any batch size gives the same
images. Guidance w is (1 + w) eps(x | c) - w eps(x | no class): 0 is plain conditional sampling, 2 the paper's.
"""

import argparse

import data
import engine
import job
import run
import sampling


def parse(argv=None):
    parser = run.parser(__doc__)
    path = run.FLAGS["model_path"][1]["type"]
    parser.add_argument("--model_path", nargs="+", type=path, required=True, metavar="RUN", help="models to draw from")
    parser.add_argument("--save_dir", nargs="+", type=path, required=True, metavar="RUN", help="run folder to write, one for each model")
    parser.add_argument("--classes", "--classes_to_generate", nargs="+", default=["all"], metavar="CLASS", help="classes to draw")
    parser.add_argument(
        "--num_per_class",
        "--n_samples_per_class",
        nargs="+",
        type=run.positive_int,
        default=[500],
        metavar="N",
        help="images of each class",
    )
    parser.add_argument("--sampler", choices=("ddim", "ddpm"), default="ddim", help="ddpm adds noise at every step")
    parser.add_argument("--steps", type=run.positive_int, default=1000, help="sampling steps, of 1000 in training")
    parser.add_argument(
        "--guidance", "--cond_scale", type=run.non_negative_float, default=2.0, help="strength of classifier-free guidance, 0: none"
    )
    parser.add_argument("--eta", type=run.non_negative_float, default=0.0, help="ddim: noise at every step, 1: as much as ddpm")
    run.add_flags(parser, "resume", "overwrite", "device", batch_size=128, precision="fp32", seed=1)
    args = parser.parse_args(argv)
    if len(args.save_dir) != len(args.model_path):
        parser.error(f"{len(args.model_path)} models need as many --save_dir, not {len(args.save_dir)}")
    if len(args.num_per_class) not in (1, len(args.classes)):
        parser.error(f"--num_per_class takes one number, or one for each of the {len(args.classes)} items of --classes")
    if args.eta and args.sampler == "ddpm":
        parser.error("--eta is for --sampler ddim")
    return args


def wanted(args, classes):
    """[(label, index)] of all images asked for; the first number holds for a class that is named twice."""
    numbers = args.num_per_class if len(args.num_per_class) > 1 else args.num_per_class * len(args.classes)
    counts = {}
    for word, number in zip(args.classes, numbers, strict=True):
        for label in data.select_classes([word], classes):
            counts.setdefault(label, number)
    return [(label, index) for label, number in counts.items() for index in range(number)]


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    run.check_apart(args)  # all together: no run may replace the model of another
    pairs = zip(args.model_path, args.save_dir, strict=True)
    each = [argparse.Namespace(**vars(args) | {"model_path": model_path, "save_dir": save_dir}) for model_path, save_dir in pairs]
    records = [run.Run(one, accelerator.is_main_process) for one in each]
    for one, record in zip(each, records, strict=True):
        draw_from(one, record, accelerator)


def draw_from(args, record, accelerator):
    """All images of one model, into one run folder."""
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Model
    model, folder, recorded = job.open_model(args.model_path, accelerator)
    classes, architecture = data.Classes(recorded["classes"]), recorded["architecture"]
    keys = wanted(args, classes.names)
    record.begin(
        job.PACKAGES,
        kind="samples",
        parent=str(folder),
        parent_sha=run.file_sha(folder / "model.safetensors"),
        model=recorded,
        model_done=run.read_json(folder / "done.json"),
        **job.where(accelerator),
    )
    if accelerator.is_main_process:
        (record.folder / "samples").mkdir(exist_ok=True)
    accelerator.wait_for_everyone()

    # Draw
    record.start_clock()
    sampling.draw_files(
        model,
        keys,
        (architecture["channels"], architecture["image_size"], architecture["image_size"]),
        record.folder / "samples",
        accelerator,
        null=classes.null,
        seed=args.seed,
        batch_size=args.batch_size,
        steps=args.steps,
        sampler=args.sampler,
        guidance=args.guidance,
        eta=args.eta,
    )
    accelerator.wait_for_everyone()
    record.finish(seconds=record.seconds(), images=len(keys), **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: {len(keys):,} images, {record.seconds():.0f} s")


if __name__ == "__main__":
    run.cli(main)
