"""Train the classifier that judges samples: does an image show the class that was asked for?

    python train_classifier.py --dataset cifar10 --save_dir runs/cifar10/classifier
    python train_classifier.py --dataset digits --arch cnn --lr 1e-3 --epochs 20 --save_dir runs/digits/classifier

The defaults are the paper's: an ImageNet ResNet-34 on images scaled to 224 px, Adam 1e-5, its new last layer at ten times that.
ImageNet weights are torchvision's, downloaded on first use; --pretrained FILE.safetensors takes them from a file. It sees all
training images, of every class, and is tested on the data set's test images.
"""

from pathlib import Path

import torch

import data
import datasets
import engine
import job
import metrics
import models
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    run.add_flags(parser, required=["save_dir"], data_dir="data")
    parser.add_argument("--dataset", choices=datasets.DATASETS, default="cifar10", help="data set")
    parser.add_argument("--arch", choices=models.CLASSIFIERS, default="resnet34", help="classifier; cnn is for digits and fashion_mnist")
    parser.add_argument("--image_size", type=run.positive_int, metavar="PX", help="size of the images of --dataset folder (default: 64)")
    parser.add_argument(
        "--pretrained", metavar="WEIGHTS", help="imagenet, none, or a .safetensors file (default: imagenet for resnet34, none for cnn)"
    )
    parser.add_argument("--head_lr_factor", type=run.positive_float, default=10.0, help="learning rate of the last layer over --lr")
    run.add_flags(parser, "limit", "resume", "overwrite", "device", "precision", epochs=10, lr=1e-5, batch_size=128, seed=1)
    args = parser.parse_args(argv)
    if args.image_size and args.dataset != "folder":
        parser.error("--image_size is for --dataset folder: the other data sets have a size of their own")
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
            raise run.RunError(f"ImageNet weights could not be downloaded ({error}): pass --pretrained FILE.safetensors or none") from error
    else:
        tensors, _ = run.read_tensors(Path(source))
    counters = {name: tensor for name, tensor in model.body.state_dict().items() if name.endswith("num_batches_tracked")}
    body = counters | {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}  # old files lack the counters
    wanted = {name: tensor.shape for name, tensor in model.body.state_dict().items()}
    if {name: tensor.shape for name, tensor in body.items()} != wanted:
        raise run.RunError(f"{source} does not hold the weights of torchvision's resnet34")
    model.body.load_state_dict(body)


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    record = run.Run(args, accelerator.is_main_process)
    if record.finished:
        return print(f"{record.folder} is finished already")

    # Data and model
    images = job.open_images(args.dataset, args.data_dir, args.image_size, args.limit, args.seed, accelerator)
    shape = {"arch": args.arch, "num_classes": len(images.classes), "channels": images.x_train.shape[3]}
    model = models.build_classifier(**shape, seed=args.seed)
    model.set_normalisation(images.x_train)
    if args.pretrained != "none":
        with accelerator.main_process_first():
            load_pretrained(model, args.pretrained)
    model = engine.place(model, accelerator)
    facts = {"image_size": images.x_train.shape[1], "dataset": args.dataset}
    record.begin(job.PACKAGES, kind="classifier", architecture=shape, classes=images.classes, trained_on=facts, **job.where(accelerator))

    # Train
    train = data.Split(images.x_train, images.y_train, torch.arange(len(images.y_train)))
    record.start_clock()
    engine.fit(
        model,
        {"train": train},
        lambda train: {"train": train.mean(torch.nn.functional.cross_entropy(model(train.x), train.y, reduction="none"))},
        steps=-(-args.epochs * len(train) // args.batch_size),
        lr=args.lr,
        batch_size=args.batch_size,
        seed=args.seed,
        accelerator=accelerator,
        run=record,
        grad_clip=0.0,
        schedule="linear",
        flip=datasets.DATASETS[args.dataset].flip,
        lr_factors={"fc.weight": args.head_lr_factor, "fc.bias": args.head_lr_factor},
    )

    # Save
    seconds = record.seconds()
    record.save("model.safetensors", model.state_dict())
    with engine.without_autocast(model):  # as evaluate.py has it
        accuracy = metrics.accuracy(metrics.judge(model, images.x_test), images.y_test.cpu())
    record.finish(seconds=seconds, test_accuracy=accuracy, images_seen=record.images_seen, **engine.memory(accelerator))
    if accelerator.is_main_process:
        print(f"{record.folder}: test accuracy {accuracy:.2f} %, {seconds:.0f} s")


if __name__ == "__main__":
    run.cli(main)
