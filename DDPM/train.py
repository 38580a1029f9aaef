"""Train a class-conditional DDPM with classifier-free guidance: the original model, from which the other scripts forget.

    python train.py --dataset cifar10 --save_dir runs/cifar10/original
    python train.py --dataset cifar10 --retain_only --forget_class 3 --save_dir runs/cifar10/retrain

Writes a run folder whose model.safetensors holds the averaged weights (EMA), and last.safetensors the last ones.
Steps, learning rate and batch size default to the official release's for CIFAR-10. With --retain_only the forgotten classes are left out:
this is Retrain, the reference for all methods. Several processes: accelerate launch --num_processes N train.py ...
"""

import functools

import cli
import data
import imagesets
import models
import sampling
import task
import trainer
from run_folder import RunFolder
from trainer import Trainer, denoising_loss, drop_labels

INSTEAD = {  # of a command of the paper's repository, by its --mode
    "train": "python train.py --dataset cifar10 --save_dir runs/c10/original",
    "retrain": "python unlearn.py --method retrain --model_path runs/c10/original --forget_class 0 --save_dir runs/c10/retrain",
    "generate_mask": "python generate_mask.py --model_path runs/c10/original --weights last --forget_class 0 --save_dir runs/c10/mask",
    "saliency_unlearn": "python unlearn.py --method salun --model_path runs/c10/original --weights last --mask_path runs/c10/mask "
    "--forget_class 0 --sum_alpha 1e-3 --save_dir runs/c10/salun",
    "forget": "python unlearn.py --method sa --model_path runs/c10/original --weights last --forget_class 0 --save_dir runs/c10/sa",
    "train_esd": "python unlearn.py --method esd --model_path runs/c10/original --weights last --forget_class 0 --save_dir runs/c10/esd",
}
SETTINGS = ("batch_size", "optimizer", "weight_decay", "schedule", "grad_clip", "ema")


def parse(argv=None):
    parser = cli.Parser(__doc__)
    start = "weights to start from: a run folder, a .safetensors file with the names of diffusers' UNet2DModel, or a diffusers folder "
    own = {"model_path": dict(metavar="PATH", help=start + "(a pipeline, or its unet); classes + 1 embeddings, the last one null")}
    parser.add_shared("model_path", "cache_dir", "forget_class", required=["save_dir"], options=own, data_dir="data")
    parser.add(cli.DATA, "--dataset", choices=imagesets.DATASETS, default="cifar10", help="data set")
    parser.add(cli.DATA, "--arch", choices=models.UNETS, default="unet128", help="U-Net (models.py says what each is)")
    parser.add(cli.DATA, "--with_test", **task.WITH_TEST)
    parser.add(cli.DATA, "--only_class", **task.ONLY_CLASS)
    parser.add(cli.DATA, "--image_size", type=cli.positive_int, metavar="PX", help="size of the images of --dataset folder (default: 64)")
    parser.add(cli.FORGET, "--retain_only", action="store_true", help="leave out the classes of --forget_class: Retrain")
    choices = {"optimizer": dict(choices=trainer.OPTIMIZERS), "schedule": dict(choices=trainer.SCHEDULES)}
    parser.add_shared(options=choices, steps=800_000, lr=2e-4, batch_size=128, schedule="constant", optimizer="adam", weight_decay=0.0)
    class_dropout = "share of the labels replaced by the null class, for guidance"
    parser.add(cli.METHOD, "--class_dropout", type=cli.share, default=0.1, help=class_dropout)
    loss = "loss of an image: mean or sum over its values; with sum, --grad_clip acts as in the official release"
    parser.add(cli.METHOD, "--loss", choices=("mean", "sum"), default="mean", help=loss)
    parser.add_shared(ema=0.9999, grad_clip=1.0)
    parser.add(cli.RUN, "--save_every", type=cli.positive_int, metavar="N", help="draw a grid of samples every N steps")
    parser.add_shared("limit", "resume", "overwrite", "device", "precision", "compile", seed=1)
    task.refuse_release(parser, argv, INSTEAD)
    args = parser.parse_args(argv)
    if args.retain_only != bool(args.forget_class):
        parser.error("--retain_only and --forget_class belong together: name the classes to leave out")
    if args.retain_only and args.model_path is not None:
        parser.error(
            "--retain_only trains from random weights, because Retrain must never see the forgotten classes: leave out --model_path"
        )
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # Data and model
    source = (args.dataset, args.data_dir, args.image_size, args.limit, args.seed)
    images = task.load_images(*source, accelerator, args.cache_dir, args.with_test, args.only_class)
    classes = data.forget_classes(args.forget_class or [], images.classes)
    forget, train = data.split(images, classes)
    train.name = "train"
    shape = {"arch": args.arch, **task.shape_of(images)}
    model = models.build_unet(**shape, seed=args.seed)
    if args.model_path is not None:
        models.load_start(model, args.model_path)
    model = trainer.prepare(model, accelerator)
    if args.compile:
        model.compile()
    facts = {"architecture": shape, "classes": classes.names, "forgotten": list(classes.forgotten), "data_sha": images.sha}
    if args.retain_only:
        facts |= {"forget_sha": data.forget_sha(forget.indices), "num_forgotten": len(forget)}
    run_folder.begin(kind="train", method="retrain" if args.retain_only else "original", **facts)

    # Train
    same = {"accelerator": accelerator, "seed": args.seed}
    rows = {"labels": range(min(10, len(classes.names))), "columns": 6, "null": classes.null}
    draw = functools.partial(sampling.draw_step, model=model, folder=run_folder.folder, **rows, **same)
    flip, frames = imagesets.DATASETS[args.dataset].flip, {"save_every": args.save_every, "draw": draw if args.save_every else None}
    settings = {name: getattr(args, name) for name in SETTINGS}
    loop = Trainer(model, run_folder, seed=args.seed, accelerator=accelerator, flip=flip, **frames, **settings)
    scale = train.images[0].numel() if args.loss == "sum" else 1
    run_folder.start_clock()
    for batch in loop.steps(args.steps, args.lr, train):
        loop.step(train=scale * denoising_loss(model, batch, drop_labels(batch, classes.null, args.class_dropout)))

    # Save
    seconds = run_folder.seconds()
    task.save_weights(loop)
    message = f"{args.steps:,} steps on {len(train):,} images of {len(classes.retained)} classes, {seconds:.0f} s"
    run_folder.finish(message, seconds=seconds, images_seen=run_folder.images_seen)


if __name__ == "__main__":
    cli.run(main)
