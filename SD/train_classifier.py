"""Train a classifier that judges samples: does an image show the class that was asked for?

    python train_classifier.py --dataset digits --image_size 16 --save_dir runs/digits/classifier

For classes that no ImageNet classifier knows; evaluate.py takes those by name. It sees all training images, of every class, and is
tested on the data set's test images.
"""

import torch

import data
import datasets
import engine
import job
import judges
import metrics
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, required=["save_dir"], data_dir="data")
    parser.add_argument("--dataset", choices=[name for name in datasets.DATASETS if name != "captions"], default="digits", help="data set")
    parser.add_argument("--arch", choices=judges.CLASSIFIERS, default="cnn", help="classifier")
    parser.add_argument("--image_size", type=run.positive_int, default=16, metavar="PX", help="edge of the images")
    run.add_flags(parser, "resume", "overwrite", "device", epochs=15, lr=1e-3, batch_size=64, seed=1)
    job.add_precision(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Data and model
    found = datasets.load(args.dataset, args.data_dir, args.image_size)
    x_train, x_test = found.train[:], found.test[:]
    train = data.Split(x_train, torch.tensor(found.y_train), torch.arange(len(x_train)))
    shape = {"arch": args.arch, "num_classes": len(found.classes), "channels": 3}
    model = judges.build_classifier(**shape, seed=args.seed)
    model.set_normalisation(x_train)
    model = engine.place(model, accelerator)
    record.begin(job.PACKAGES, kind="classifier", architecture=shape, classes=found.classes, **job.where(accelerator))

    # Train
    record.start_clock()
    entropy = torch.nn.CrossEntropyLoss(reduction="none")
    engine.fit(
        model,
        {"train": train},
        lambda train: {"train": train.mean(entropy(model(train.x), train.y))},
        steps=-(-args.epochs * len(train) // args.batch_size),
        lr=args.lr,
        batch_size=args.batch_size,
        seed=args.seed,
        accelerator=accelerator,
        run=record,
        grad_clip=0.0,
        schedule="linear",
    )

    # Save
    seconds = record.seconds()
    record.save("model.safetensors", model.state_dict())
    accuracy = None
    if len(x_test):
        judge = judges.Judge(model, found.classes, sha="", name=str(record.folder))
        with engine.without_autocast(model):  # as evaluate.py has it
            accuracy = metrics.accuracy(judges.logits(judge, x_test, 250), torch.tensor(found.y_test))
    record.finish(seconds=seconds, test_accuracy=accuracy, images_seen=record.images_seen, **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: test accuracy {'unknown' if accuracy is None else format(accuracy, '.2f')} %, {seconds:.0f} s")


if __name__ == "__main__":
    run.cli(main)
