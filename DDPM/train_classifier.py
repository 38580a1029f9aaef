"""Train the classifier that measures samples: does an image show the class that it was drawn for?

    python train_classifier.py --dataset cifar10 --save_dir runs/cifar10/classifier
    python train_classifier.py --dataset digits --arch cnn --lr 1e-3 --epochs 20 --save_dir runs/digits/classifier

The defaults are the official release's: an ImageNet ResNet-34 on images scaled to 224 px, Adam 1e-5 at a constant rate, the new last
layer at ten times that, weight decay 5e-4. ImageNet weights are torchvision's, downloaded on first use; --pretrained FILE.safetensors
takes them from a file. It sees all training images, of every class, and is tested on the data set's test images. With --with_test, as the
release has it for STL-10, it sees both but for 1,000 images (a tenth of small sets), drawn by --seed, on which it is tested.
"""

import math
from pathlib import Path

import torch

import cli
import data
import imagesets
import metrics
import models
import passes
import task
import trainer
from cli import RunError
from files import check_shapes, read_tensors
from run_folder import RunFolder
from trainer import Trainer


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("cache_dir", required=["save_dir"], data_dir="data")
    parser.add(cli.DATA, "--dataset", choices=imagesets.DATASETS, default="cifar10", help="data set")
    arch = "classifier; on a CPU wide_resnet6 is for cifar10, cnn for smaller images"
    parser.add(cli.DATA, "--arch", choices=models.CLASSIFIERS, default="resnet34", help=arch)
    parser.add(cli.DATA, "--image_size", type=cli.positive_int, metavar="PX", help="size of the images of --dataset folder (default: 64)")
    parser.add(cli.DATA, "--with_test", **task.WITH_TEST)
    parser.add(cli.DATA, "--only_class", **task.ONLY_CLASS)
    pretrained = "imagenet, none, or a .safetensors file (default: imagenet for resnet34, none for the others)"
    parser.add(cli.DATA, "--pretrained", metavar="WEIGHTS", help=pretrained)
    parser.add(cli.METHOD, "--head_lr_factor", type=cli.positive_float, default=10.0, help="learning rate of the last layer over --lr")
    parser.add_shared("limit", "resume", "overwrite", "device", "precision", epochs=10, lr=1e-5, batch_size=128, weight_decay=5e-4, seed=1)
    parser.add_shared(options={"schedule": dict(choices=trainer.SCHEDULES)}, schedule="constant")
    args = parser.parse_args(argv)
    args.pretrained = args.pretrained or ("imagenet" if args.arch == "resnet34" else "none")
    if args.arch != "resnet34" and args.pretrained != "none":
        parser.error(f"--pretrained is for --arch resnet34: there are no weights for {args.arch}")
    return args


def load_pretrained(model, source):
    """Load ImageNet weights into the body of a ResNet-34, from torchvision or from a file with torchvision's names."""
    if source == "imagenet":
        from torchvision.models import ResNet34_Weights

        try:
            tensors = models.hub_weights(ResNet34_Weights.IMAGENET1K_V1.url)
        except (OSError, RuntimeError) as error:
            raise RunError(f"ImageNet weights could not be downloaded ({error}): pass --pretrained FILE.safetensors or none") from error
    else:
        tensors, _ = read_tensors(Path(source))
    counters = {name: tensor for name, tensor in model.body.state_dict().items() if name.endswith("num_batches_tracked")}
    body = counters | {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}  # old files lack the counters
    check_shapes(source, body, model.body.state_dict())
    model.body.load_state_dict(body)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # Data and model
    source = (args.dataset, args.data_dir, args.image_size, args.limit, args.seed)
    images = task.load_images(*source, accelerator, args.cache_dir, args.with_test, args.only_class)
    count = len(images.y_train)
    order = torch.randperm(count, generator=data.make_generator("hold out", args.seed))
    held_out = order[: max(1, min(1000, count // 10))] if args.with_test else order[:0]
    train = images.train(order[len(held_out) :].sort().values, "train")
    x_test, y_test = (images.x_train[held_out], images.y_train[held_out]) if args.with_test else (images.x_test, images.y_test)
    shape = {"arch": args.arch, "num_classes": len(images.classes), "channels": images.x_train.shape[3]}
    model = models.build_classifier(**shape, seed=args.seed)
    model.set_normalisation(images.x_train)
    if args.pretrained != "none":
        with accelerator.main_process_first():
            load_pretrained(model, args.pretrained)
    model = trainer.prepare(model, accelerator)
    trained_on = {"image_size": images.x_train.shape[1], "dataset": args.dataset}
    run_folder.begin(kind="classifier", architecture=shape, classes=images.classes, trained_on=trained_on)

    # Train
    settings = {name: getattr(args, name) for name in ("batch_size", "weight_decay", "schedule")}
    settings |= {"grad_clip": 0.0, "flip": imagesets.DATASETS[args.dataset].flip}
    loop = Trainer(model, run_folder, accelerator, seed=args.seed, **settings)
    steps = math.ceil(args.epochs * len(train) / args.batch_size)
    run_folder.start_clock()
    for batch in loop.steps(steps, args.lr, train, lr_factors={"fc.weight": args.head_lr_factor, "fc.bias": args.head_lr_factor}):
        loop.step(train=batch.mean(torch.nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="none")))

    # Save
    seconds = run_folder.seconds()
    run_folder.save("model.safetensors", model.state_dict())
    with passes.without_autocast(model):  # as evaluate.py has it
        accuracy = metrics.accuracy(metrics.classify(model, x_test), y_test.cpu())
    message = f"test accuracy {accuracy:.2f} %, {seconds:.0f} s"
    run_folder.finish(message, seconds=seconds, test_accuracy=accuracy, images_seen=run_folder.images_seen)


if __name__ == "__main__":
    cli.run(main)
