"""Train a classifier: the original model, from which the other scripts forget.

    python train.py --dataset cifar10 --arch resnet18 --save_dir runs/cifar10/original

Writes a run folder. With --model_path it starts from the weights of another run or of a single .safetensors file, and
`--epochs 0` then takes those weights as they are. convert.py makes such a file of a .pth. --arch may also be torchvision:NAME,
timm:NAME or FILE.py:CLASS: a class of your own, called with num_classes, that takes images (B, C, H, W) and returns scores
(B, num_classes). Several processes: accelerate launch --num_processes N train.py ...
"""

import cli
import data
import imagesets
import metrics
import models
import networks
import passes
import task
import trainer
import weights
from run_folder import RunFolder
from trainer import Trainer, cross_entropy


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_shared("model_path", "cache_dir", required=["save_dir"], data_dir="data")
    parser.add(cli.DATA, "--dataset", type=task.dataset, choices=imagesets.DATASETS, default="cifar10", help="data set")
    names = f"model architecture: {', '.join(models.MODELS)}, torchvision:NAME, timm:NAME or FILE.py:CLASS"
    parser.add(cli.DATA, "--arch", type=models.architecture, default="resnet18", help=names)
    parser.add(cli.DATA, "--normalise", type=task.normalisation, metavar="HOW", help=task.NORMALISE)
    parser.add(cli.DATA, "--image_size", type=cli.positive_int, metavar="PX", help="size of the images of --dataset folder (default: 64)")
    parser.add(cli.DATA, "--data_on", **task.DATA_ON)
    parser.add(cli.DATA, "--split_seed", type=cli.seed, default=1, metavar="SEED", help="seed of the validation split")
    parser.add(cli.DATA, "--val_fraction", type=cli.share, default=0.1, help="share of each class held out for validation")
    step = "learning rate over the run; step: x0.1 at 91/182 and 136/182 of it"
    choices = {"optimizer": dict(choices=trainer.OPTIMIZERS), "schedule": dict(choices=trainer.SCHEDULES, help=step)}
    parser.add_shared(options=choices, optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="step")
    parser.add_shared("limit", "resume", "overwrite", "device", "precision", "compile", lr=0.1, epochs=182, batch_size=256, seed=1)
    crop = "pad images by PX and crop them at random; 0: never (default: what the data set has in the paper's repository, 8 for folder)"
    parser.add(cli.METHOD, "--crop", type=task.crop, metavar="PX", help=crop)
    parser.add(cli.METHOD, "--no_flip", action="store_true", help="never mirror images (digits and svhn are never mirrored anyway)")
    parser.add(cli.RUN, "--eval_batch_size", **task.EVAL_BATCH_SIZE)
    parser.refuse(task.NOT_HERE)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    run_folder = RunFolder(args, accelerator)

    # Data and model
    with accelerator.main_process_first():  # which writes the cache that the others read
        where = (accelerator.device, args.cache_dir, args.data_on)
        images = task.load_images(args.dataset, args.data_dir, args.image_size, *where)
    train_indices, val_indices = data.train_and_validation(images.y_train, args.split_seed, args.val_fraction, args.limit)
    train, val = images.train(train_indices, "train"), images.train(val_indices, "val")
    shape = {"num_classes": len(images.classes), "channels": images.x_train.shape[3], "image_size": images.x_train.shape[1]}
    shape |= networks.source_sha(args.arch)
    model = models.build(args.arch, **shape, seed=args.seed)
    models.set_normalisation(model, images.x_train, args.normalise or "data")
    if args.model_path is not None:
        path = args.model_path / "model.safetensors" if args.model_path.is_dir() else args.model_path
        weights.load(model, path, args.normalise)
    model = trainer.prepare(model, accelerator)
    if args.compile:
        model.compile()

    # Train
    shape["arch"] = networks.without_folder(args.arch)
    run_folder.begin(kind="train", method="original", architecture=shape, classes=images.classes, data_sha=images.sha)
    settings = {name: getattr(args, name) for name in ("batch_size", "optimizer", "momentum", "weight_decay", "schedule")}
    loop = Trainer(model, run_folder, accelerator, seed=args.seed, augment=imagesets.augmentation(vars(args)), **settings)
    with trainer.batches_large_enough("change --batch_size"):
        for _ in loop.epochs(args.epochs, args.lr, train):
            for batch in loop.batches(train):
                loop.step(train=cross_entropy(model, batch))

    # Save
    seconds = run_folder.seconds()
    run_folder.save("model.safetensors", model.state_dict())
    shown = val if len(val) else train
    accuracy = metrics.accuracy(passes.predict_logits(model, shown, args.eval_batch_size), shown.labels.cpu())
    message = f"{'validation' if len(val) else 'training'} accuracy {accuracy:.2f} %, {seconds:.0f} s"
    run_folder.finish(message, seconds=seconds, accuracy=accuracy, images_seen=run_folder.images_seen)


if __name__ == "__main__":
    cli.run(main)
