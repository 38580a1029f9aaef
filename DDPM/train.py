"""Train a class-conditional DDPM with classifier-free guidance: the original model, from which the other scripts forget.

    python train.py --dataset cifar10 --save_dir runs/cifar10/original
    python train.py --dataset cifar10 --retain_only --forget_class 3 --save_dir runs/cifar10/retrain

Writes a run folder whose model.safetensors holds the averaged weights (EMA). The defaults are the paper's for CIFAR-10. With
--retain_only the forgotten classes are left out: Retrain, the standard the others are held to. Several processes: accelerate launch
--num_processes N train.py ...
"""

import functools

import data
import datasets
import engine
import job
import models
import run
import sampling


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, "model_path", "forget_class", required=["save_dir"], data_dir="data")
    parser.add_argument("--dataset", choices=datasets.DATASETS, default="cifar10", help="data set")
    parser.add_argument("--arch", choices=models.UNETS, default="unet128", help="U-Net (models.py says what each is)")
    parser.add_argument("--image_size", type=run.positive_int, metavar="PX", help="size of the images of --dataset folder (default: 64)")
    parser.add_argument("--retain_only", action="store_true", help="leave the classes of --forget_class out: Retrain")
    run.add_flags(parser, steps=800_000, lr=2e-4, batch_size=128)
    parser.add_argument("--schedule", choices=engine.SCHEDULES, default="constant", help="learning rate over the run")
    parser.add_argument("--optimizer", choices=engine.OPTIMIZERS, default="adam", help="optimizer")
    parser.add_argument("--weight_decay", type=run.non_negative_float, default=0.0, help="weight decay")
    parser.add_argument("--class_dropout", type=run.share, default=0.1, help="share of the labels replaced by the null class, for guidance")
    parser.add_argument("--ema", type=run.share, default=0.9999, help="decay of the averaged weights, which are saved (0: the last ones)")
    parser.add_argument("--grad_clip", type=run.non_negative_float, default=1.0, help="largest norm of the gradient (0: any)")
    parser.add_argument("--save_every", type=run.positive_int, metavar="N", help="draw a grid of samples every N steps")
    run.add_flags(parser, "limit", "resume", "overwrite", "device", "precision", seed=1)
    args = parser.parse_args(argv)
    if args.image_size and args.dataset != "folder":
        parser.error("--image_size is for --dataset folder: the other data sets have a size of their own")
    if args.retain_only != bool(args.forget_class):
        parser.error("--retain_only and --forget_class belong together: name the classes to leave out")
    return args


def draw_grid(step, *, model, folder, classes, shape, accelerator, seed):
    """A picture of six samples of each class (ten at most), as samples/step_<step>.png."""
    keys = [(label, index) for label in range(min(10, len(classes.names))) for index in range(6)]
    images = sampling.draw(model, keys, shape, accelerator, null=classes.null, seed=seed, steps=25)
    if accelerator.is_main_process:
        (folder / "samples").mkdir(exist_ok=True)
        sampling.write_png(folder / "samples" / f"step_{step:06d}.png", sampling.grid(images, columns=6))


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Data and model
    images = job.open_images(args.dataset, args.data_dir, args.image_size, args.limit, args.seed, accelerator)
    classes = data.forget_classes(args.forget_class or [], images.classes)
    forget, retain = data.split(images, classes)
    shape = {"arch": args.arch, **job.shape_of(images)}
    model = models.build_unet(**shape, seed=args.seed)
    if args.model_path is not None:
        models.load_weights(model, args.model_path / "model.safetensors" if args.model_path.is_dir() else args.model_path)
    model = engine.place(model, accelerator)
    facts = {"architecture": shape, "classes": classes.names, "forgotten": list(classes.forgotten), **job.where(accelerator)}
    if args.retain_only:
        facts |= {"forget_sha": data.forget_sha(forget.rows), "num_forgotten": len(forget)}
    record.begin(job.PACKAGES, kind="train", method="retrain" if args.retain_only else "original", **facts)

    # Train
    scheduler = models.noise_scheduler()
    draw = functools.partial(
        draw_grid,
        model=model,
        folder=record.folder,
        classes=classes,
        shape=(shape["channels"], shape["image_size"], shape["image_size"]),
        accelerator=accelerator,
        seed=args.seed,
    )
    record.start_clock()
    engine.fit(
        model,
        {"train": retain},
        lambda train: {"train": engine.denoising(model, scheduler, train, engine.dropped(train, classes.null, args.class_dropout))},
        steps=args.steps,
        lr=args.lr,
        batch_size=args.batch_size,
        seed=args.seed,
        accelerator=accelerator,
        run=record,
        optimizer=args.optimizer,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        grad_clip=args.grad_clip,
        flip=datasets.DATASETS[args.dataset].flip,
        ema=args.ema,
        save_every=args.save_every,
        draw=draw if args.save_every else None,
    )

    # Save
    seconds = record.seconds()
    record.save("model.safetensors", model.state_dict())
    record.finish(seconds=seconds, images_seen=record.images_seen, **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: {args.steps:,} steps on {len(retain):,} images of {len(classes.retained)} classes, {seconds:.0f} s")


if __name__ == "__main__":
    run.cli(main)
