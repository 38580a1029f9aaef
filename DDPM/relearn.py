"""Relearning: how fast does a forgotten class come back when the model sees a few of its images again?

    python relearn.py --model_path runs/c10/salun --num_images 10 --steps 50 --save_dir runs/c10/relearned/salun

Trains an unlearned model on --num_images images of the forgotten classes, drawn by --seed, as it was trained before: noise-prediction
loss, classes dropped for guidance. The run keeps its method's name: draw from it with sample.py, measure with evaluate.py, and compare it
in a table of its own with Retrain, relearned in the same way. A UA clearly below Retrain's, beyond the spread over seeds, suggests that
the class was hidden and not forgotten.
"""

import torch

import cli
import data
import imagesets
import masking
import task
import trainer
from cli import RunError
from files import file_sha
from run_folder import RunFolder, moved
from table import describe
from trainer import denoising_loss, drop_labels


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("data_dir", "cache_dir", required=["save_dir", "model_path"])
    parser.add(cli.DATA, "--weights", **task.WEIGHTS)
    number = "images of the forgotten classes to train on"
    parser.add(cli.FORGET, "--num_images", type=cli.positive_int, default=10, metavar="K", help=number)
    parser.add_shared("resume", "overwrite", "device", "precision", steps=50, lr=1e-4, batch_size=128, seed=1)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # The model, and some of what it has forgotten
    model, file, recorded = task.load_model(args.model_path, accelerator, args.weights)
    origin = recorded["training"] if recorded["kind"] == "unlearn" else recorded
    if not recorded["forgotten"]:
        raise RunError(f"{file.parent} has forgotten nothing: name a run of unlearn.py, or of train.py --retain_only")
    if "relearned_images" in recorded.get("options", {}):
        raise RunError(f"{file.parent} was relearned already: name the run of unlearn.py that it came from")
    data_dir = args.data_dir or moved(origin["data_dir"], recorded, file.parent, origin.get("cwd"))
    images = task.data_of(origin, data_dir, accelerator, args.cache_dir)
    classes = data.Classes(recorded["classes"], tuple(recorded["forgotten"]))
    forget, _ = data.split(images, classes)
    if args.num_images > len(forget):
        raise RunError(f"--num_images {args.num_images} is more than the {len(forget)} images of the forgotten classes: pass fewer")
    order = torch.randperm(len(forget), generator=data.make_generator("relearned images", args.seed))
    few = forget.take(order[: args.num_images].sort().values)
    few.name = "relearn"
    facts = {name: recorded[name] for name in ("architecture", "method", "classes", "forgotten")}
    facts |= {name: recorded.get(name) for name in ("parent_sha", "forget_sha", "num_forgotten")}  # of the original
    facts |= {"training": {name: origin.get(name) for name in (*task.TRAINING, *task.NEWER)}, "mask_path": None, "mask_info": {}}
    facts |= {name: recorded[name] for name in ("mask_path", "mask_info") if name in recorded}  # a row of its own
    facts["options"] = {"relearned_images": args.num_images, "steps": args.steps, "lr": args.lr}
    if recorded["kind"] == "unlearn":  # what was relearned after other settings is no repetition
        facts["options"] |= {f"unlearned_{name}": value for name, value in describe(recorded, 0, {})["options"].items()}
    if args.weights == "last":  # no repetition of a run that started from averaged weights
        facts["options"]["relearned_weights"] = "last"
    run_folder.begin(kind="unlearn", relearned_sha=file_sha(file), **facts)

    # Train
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = {"batch_size": args.batch_size, "flip": imagesets.DATASETS[origin["dataset"]].flip}
    loop = trainer.Trainer(model, run_folder, accelerator, seed=args.seed, **settings)
    run_folder.start_clock()
    for batch in loop.steps(args.steps, args.lr, few):
        loop.step(train=denoising_loss(model, batch, drop_labels(batch, classes.null, origin["class_dropout"])))

    # Save
    seconds, changed = run_folder.seconds(), masking.check_change(before, dict(model.named_parameters()), None)
    task.save_weights(loop)
    message = f"{recorded['method']}, {args.steps:,} steps on {len(few)} images of the forgotten classes, {seconds:.1f} s"
    run_folder.finish(message, seconds=seconds, images_seen=run_folder.images_seen, fraction_changed=changed)


if __name__ == "__main__":
    cli.run(main)
