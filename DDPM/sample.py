"""Draw images from one or several models, as PNGs named <class>_<index>.png.

    python sample.py --model_path runs/c10/salun --classes 0 x0 --num_per_class 500 5000 --save_dir runs/c10/samples/salun
    python sample.py --model_path runs/c10/{original,salun} --save_dir runs/c10/samples/{original,salun}

--classes takes numbers and names ("3", "0,3", "cat"), "all", and "x0" for all but 0; --num_per_class is one number for all of them, or one
for each. Every image has a seed of its own: with --resume an interrupted run draws what is missing, and any batch size gives the same
images. Guidance is (1 + w) eps(x | c) - w eps(x | no class), w = --cond_scale: 0 is plain conditional sampling. The guidance
scale s of Stable Diffusion is w + 1. The official release samples the last weights with 1000 steps and w = 2, and then stretches each image
to its own darkest and brightest value: --weights last --eta 1 --no_clip --stretch.
"""

import argparse
from pathlib import Path

import cli
import data
import sampling
import task
import trainer
from cli import RunError
from files import file_sha, read_json
from run_folder import RunFolder, check_apart

INSTEAD = {  # of a command of the paper's repository, by its --mode
    "sample_fid": "python sample.py --model_path runs/c10/salun --classes x0 --num_per_class 5000 --weights last --eta 1 --no_clip "
    "--stretch --save_dir runs/c10/samples/salun",
    "sample_classes": "python sample.py --model_path runs/c10/salun --classes 0 --num_per_class 500 --weights last --eta 1 --no_clip "
    "--stretch --save_dir runs/c10/samples/salun",
    "visualization": "python sample.py --model_path runs/c10/salun --num_per_class 10 --save_dir runs/c10/samples/salun",
}


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add(cli.DATA, "--model_path", nargs="+", type=Path, required=True, metavar="RUN", help="models to draw from")
    parser.add(cli.RUN, "--save_dir", nargs="+", type=Path, required=True, metavar="RUN", help="run folder to write, one for each model")
    parser.add(cli.DATA, "--classes", "--classes_to_generate", nargs="+", default=["all"], metavar="CLASS", help="classes to draw")
    parser.add(cli.DATA, "--weights", **task.WEIGHTS)
    number = dict(nargs="+", type=cli.positive_int, default=[500], metavar="N")
    parser.add(cli.DATA, "--num_per_class", "--n_samples_per_class", **number, help="images of each class")
    parser.add(cli.METHOD, "--sampler", choices=("ddim", "ddpm"), default="ddim", help="ddpm adds noise at every step")
    parser.add_shared(options={"steps": dict(type=cli.positive_int, help="sampling steps, of 1000 in training")}, steps=1000)
    cond_scale = "weight w of classifier-free guidance, 0: none"
    parser.add(cli.METHOD, "--cond_scale", "--guidance", type=cli.non_negative_float, default=2.0, metavar="W", help=cond_scale)
    eta = cli.number(float, lambda value: 0 <= value <= 1, "at least 0 and at most 1")
    parser.add(cli.METHOD, "--eta", type=eta, default=0.0, help="ddim: noise at every step, 1: as much as ddpm")
    parser.add(cli.METHOD, "--no_clip", action="store_true", help="do not clip x0 to the range of pixels at every step")
    parser.add(cli.METHOD, "--stretch", action="store_true", help="stretch every image to its own darkest and brightest value")
    batch = {"batch_size": dict(help="images that a process draws at once")}
    parser.add_shared("resume", "overwrite", "device", "compile", options=batch, batch_size=128, precision="fp32", seed=1)
    task.refuse_release(parser, argv, INSTEAD)
    args = parser.parse_args(argv)
    if len(args.save_dir) != len(args.model_path):
        parser.error(f"{len(args.model_path)} models need as many --save_dir, not {len(args.save_dir)}")
    if len(args.num_per_class) not in (1, len(args.classes)):
        parser.error(f"--num_per_class takes one number, or one for each of the {len(args.classes)} items of --classes")
    if args.eta and args.sampler == "ddpm":
        parser.error("--eta is for --sampler ddim")
    return args


def keys_of(args, classes):
    """[(label, index)] of all images to draw. The first number holds for a class that is named twice."""
    numbers = args.num_per_class if len(args.num_per_class) > 1 else args.num_per_class * len(args.classes)
    counts = {}
    for word, number in zip(args.classes, numbers, strict=True):
        for label in data.select_classes([word], classes):
            counts.setdefault(label, number)
    return [(label, index) for label, number in counts.items() for index in range(number)]


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    check_apart(args)  # all together: no run may replace the model of another
    pairs = zip(args.model_path, args.save_dir, strict=True)
    each = [argparse.Namespace(**vars(args) | {"model_path": model_path, "save_dir": save_dir}) for model_path, save_dir in pairs]
    folders = [RunFolder.or_none(one, accelerator) for one in each]  # all are checked before any is drawn
    todo = [(one, run_folder) for one, run_folder in zip(each, folders, strict=True) if run_folder is not None]
    cli.for_each(todo, lambda pair: draw_from(*pair, accelerator))


def draw_from(args, run_folder, accelerator):
    """All images of one model, into one run folder."""
    # Model
    model, file, recorded = task.load_model(args.model_path, accelerator, args.weights)
    if args.compile:
        model.compile()
    classes = data.Classes(recorded["classes"])
    keys = keys_of(args, classes.names)
    facts = {"parent": str(file.parent), "parent_sha": file_sha(file)}
    run_folder.begin(kind="samples", **facts, model=recorded, model_done=read_json(file.parent / "done.json"))
    samples = run_folder.folder / "samples"
    if accelerator.is_main_process:
        samples.mkdir(exist_ok=True)
    accelerator.wait_for_everyone()

    # Draw
    run_folder.start_clock()
    options = {name: getattr(args, name) for name in ("seed", "batch_size", "steps", "sampler", "cond_scale", "eta", "stretch")}
    options["clip"] = not args.no_clip
    sampling.draw_files(model, keys, samples, accelerator, null=classes.null, **options)
    accelerator.wait_for_everyone()
    for key in keys if accelerator.is_main_process else ():  # another process may have stopped
        if not (samples / sampling.file_name(*key)).is_file():
            raise RunError(f"{samples / sampling.file_name(*key)} was not drawn: run the same command with --resume")
    run_folder.finish(f"{len(keys):,} images, {run_folder.seconds():.0f} s", seconds=run_folder.seconds(), images=len(keys))


if __name__ == "__main__":
    cli.run(main)
