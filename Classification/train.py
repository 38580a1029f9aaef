"""Train a classifier: the original model, from which the other scripts forget.

    python train.py --dataset cifar10 --arch resnet18 --save_dir runs/cifar10/original

Writes a run folder. With --model_path it starts from the weights of another run or of a bare .safetensors file, and
`--epochs 0` then takes those weights as they are. Several processes: accelerate launch --num_processes N train.py ...
"""

import data
import datasets
import engine
import job
import metrics
import models
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, "model_path", required=["save_dir"], data_dir="data")
    parser.add_argument("--dataset", choices=datasets.DATASETS, default="cifar10", help="data set")
    parser.add_argument("--arch", choices=models.MODELS, default="resnet18", help="model architecture")
    parser.add_argument("--image_size", type=run.positive_int, metavar="PX", help="size of the images of --dataset folder (default: 64)")
    parser.add_argument("--val_fraction", type=run.share, default=0.1, help="share of each class held out for validation")
    parser.add_argument("--optimizer", choices=engine.OPTIMIZERS, default="sgd", help="optimizer, also of the unlearning that follows")
    parser.add_argument("--momentum", type=run.non_negative_float, default=0.9, help="momentum of sgd")
    parser.add_argument(
        "--weight_decay", type=run.non_negative_float, default=5e-4, help="weight decay, also of the unlearning that follows"
    )
    parser.add_argument(
        "--schedule", choices=engine.SCHEDULES, default="step", help="learning rate over the run; step: x0.1 at 91/182 and 136/182 of it"
    )
    run.add_flags(parser, "limit", "resume", "overwrite", "device", "precision", lr=0.1, epochs=182, batch_size=256, split_seed=1, seed=1)
    args = parser.parse_args(argv)
    if args.image_size and args.dataset != "folder":
        parser.error("--image_size is for --dataset folder: the other data sets have a size of their own")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Data and model
    with accelerator.main_process_first():  # which writes the cache that the others read
        images = datasets.load_images(args.dataset, args.data_dir, args.image_size, accelerator.device)
    train, val = data.train_and_validation(images, args.split_seed, args.val_fraction, args.limit)
    shape = {
        "arch": args.arch,
        "num_classes": len(images.classes),
        "channels": images.x_train.shape[3],
        "image_size": images.x_train.shape[1],
    }
    model = models.build(**shape, seed=args.seed)
    models.set_normalisation(model, images.x_train)
    if args.model_path is not None:
        models.load_weights(model, args.model_path / "model.safetensors" if args.model_path.is_dir() else args.model_path)
    model = engine.place(model, accelerator)

    # Train
    record.begin(
        job.PACKAGES,
        kind="train",
        method="original",
        architecture=shape,
        classes=images.classes,
        processes=accelerator.num_processes,
        computed_on=str(accelerator.device),
        autocast=accelerator.mixed_precision,
    )
    engine.fit(
        model,
        lambda epoch: [{"train": train}],
        lambda train: {"train": engine.cross_entropy(model, train)},
        epochs=args.epochs,
        lr=args.lr,
        batch_size=args.batch_size,
        seed=args.seed,
        accelerator=accelerator,
        run=record,
        optimizer=args.optimizer,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        augment=datasets.DATASETS[args.dataset],
    )

    # Save
    seconds = record.seconds()
    record.save("model.safetensors", model.state_dict())
    accuracy = metrics.accuracy(engine.predict(model, val if len(val) else train), (val if len(val) else train).labels())
    record.finish(seconds=seconds, accuracy=accuracy, images_seen=record.images_seen, **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: {'validation' if len(val) else 'training'} accuracy {accuracy:.2f} %, {seconds:.0f} s")


if __name__ == "__main__":
    run.cli(main)
