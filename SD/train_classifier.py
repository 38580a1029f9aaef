"""Train a classifier that measures samples: does an image show the class that it was drawn for?

    python train_classifier.py --dataset digits --image_size 16 --save_dir runs/digits/classifier

For classes that no ImageNet classifier knows; evaluate.py takes those by name. It sees all training images, of every class, and is
tested on the data set's test images.
"""

import math

import torch

import classifiers
import cli
import data
import imagesets
import metrics
import models
import passes
import trainer
from run_folder import RunFolder
from trainer import Trainer


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared(required=["save_dir"], data_dir="data")
    datasets = [name for name in imagesets.DATASETS if name != "captions"]
    parser.add(cli.DATA, "--dataset", choices=datasets, default="digits", help="data set")
    parser.add(cli.DATA, "--arch", choices=classifiers.CLASSIFIERS, default="cnn", help="classifier")
    parser.add(cli.DATA, "--image_size", type=models.image_edge, default=16, metavar="PX", help="edge of the images")
    parser.add_shared("resume", "overwrite", "device", epochs=15, lr=1e-3, batch_size=64, precision="auto", seed=1)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # Data and model
    found = imagesets.load(args.dataset, args.data_dir, args.image_size)
    train, x_test = data.Split(found.train[:], torch.tensor(found.y_train), "train"), found.test[:]
    shape = {"arch": args.arch, "num_classes": len(found.classes), "channels": 3}
    model = classifiers.build_classifier(**shape, seed=args.seed)
    model.set_normalisation(train.images)
    model = trainer.prepare(model, accelerator)
    run_folder.begin(kind="classifier", architecture=shape, classes=found.classes)

    # Train
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
    loop = Trainer(model, run_folder, accelerator, seed=args.seed, batch_size=args.batch_size, grad_clip=0.0, schedule="linear")
    run_folder.start_clock()
    for batch in loop.steps(math.ceil(args.epochs * len(train) / args.batch_size), args.lr, train):
        loop.step(train=batch.mean(cross_entropy(model(batch.images), batch.labels)))

    # Save
    seconds = run_folder.seconds()
    run_folder.save("model.safetensors", model.state_dict())
    accuracy = None
    if len(x_test):
        classifier = classifiers.NamedClassifier(model, found.classes, sha="", name=str(run_folder.folder))
        with passes.without_autocast(model):  # as evaluate.py has it
            accuracy = metrics.accuracy(classifiers.logits(classifier, x_test, 250), torch.tensor(found.y_test))
    message = f"test accuracy {'unknown' if accuracy is None else format(accuracy, '.2f')} %, {seconds:.0f} s"
    run_folder.finish(message, seconds=seconds, test_accuracy=accuracy, images_seen=run_folder.images_seen)


if __name__ == "__main__":
    cli.run(main)
