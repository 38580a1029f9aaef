"""Measure how far a model has forgotten, and what else it lost. Writes metrics.json into each run folder.

    python evaluate.py --model_path runs/cifar10/salun runs/cifar10/retrain
    python evaluate.py --model_path runs/cifar10/original --num_forget 0.1 --save_dir runs/cifar10/original_10

The forget set is that of the unlearning run. For a run of train.py, the row `original` of the tables, it is given by the forget
flags, and the numbers go to a run folder of their own, --save_dir. table.py says what each number means.
"""

from pathlib import Path

import cli
import data
import metrics
import passes
import task
import trainer
from cli import RunError
from files import file_sha, read_json, write_json
from run_folder import RunFolder, is_measured, read_run
from table import describe


def parse(argv=None):
    parser = cli.Parser(__doc__)
    runs = dict(nargs="+", type=Path, required=True, metavar="RUN", help="runs of unlearn.py (of train.py: with --save_dir)")
    parser.add(cli.DATA, "--model_path", **runs)
    parser.add_shared("save_dir", "data_dir", "cache_dir")
    task.add_forget_flags(parser)
    held_out = "images that stand for data never seen; val to choose hyper-parameters"
    parser.add(cli.DATA, "--held_out", choices=("test", "val"), default="test", help=held_out)
    few = "measure on N retain images, drawn by --seed, to save time (default: all of them)"
    parser.add(cli.DATA, "--num_retain", type=cli.positive_int, metavar="N", help=few)
    parser.add(cli.RUN, "--eval_batch_size", **task.EVAL_BATCH_SIZE)
    retrain = "run of --method retrain with the same forget set: compare outputs with this run's, image by image"
    parser.add(cli.DATA, "--retrain_path", type=Path, metavar="RUN", help=retrain)
    redraws = "draw the members of the MIA this many times, for its standard deviation"
    parser.add(cli.RUN, "--mia_redraws", type=cli.number(int, lambda n: 2 <= n <= 1000, "at least 2 and at most 1000"), help=redraws)
    options = {"seed": dict(help="seed of the draws: retain images, the members of the attacks")}
    parser.add_shared("resume", "overwrite", "device", "precision", options=options, seed=1)
    args = parser.parse_args(argv)
    if args.save_dir is None and any(getattr(args, name) is not None for name in task.FORGET_FLAGS):
        parser.error("forget flags are for a run of train.py and need --save_dir; a run of unlearn.py knows its forget set")
    if args.save_dir is not None:
        task.check_forget_flags(parser, args)
        if len(args.model_path) > 1:
            parser.error("--save_dir takes the numbers of one model: give one --model_path")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    retrained = args.retrain_path and load_retrained(args, accelerator)
    if args.save_dir is not None:
        return measure_original(args, accelerator, retrained)
    cli.for_each(args.model_path, lambda path: measure_run(path, args, accelerator, retrained))


def load_retrained(args, accelerator):
    """What the run at --retrain_path says: {"sha": of its weights, "forget_sha", "outputs"}."""
    folder, recorded = read_run(args.retrain_path, "unlearn")
    if recorded["method"] != "retrain":
        raise RunError(f"--retrain_path {folder} is a run of {recorded['method']}, where one of retrain is needed")
    loaded = task.load_unlearned(folder, recorded, accelerator, args)
    return {"sha": loaded.facts["parent_sha"], "forget_sha": loaded.facts["forget_sha"], "outputs": outputs_of(loaded, args)}


def how_measured(args, accelerator, retrained):
    """What the numbers of metrics.json depend on besides the model."""
    how = {name: getattr(args, name) for name in ("held_out", "num_retain", "mia_redraws", "seed")}
    return how | {"precision": accelerator.mixed_precision.replace("no", "fp32"), "retrain_path": retrained["sha"] if retrained else None}


def measure_run(path, args, accelerator, retrained):
    """A run of unlearn.py."""
    folder, recorded = read_run(path, "unlearn")
    how = how_measured(args, accelerator, retrained)
    same = how if args.precision != "auto" else {name: value for name, value in how.items() if name != "precision"}
    if is_measured(folder, args, same):  # auto is not the same on all machines
        return
    loaded = task.load_unlearned(folder, recorded, accelerator, args)
    done = read_json(folder / "done.json")
    cost = {"RTE": (done["seconds"] + done["mask_seconds"]) / 60, "changed": 100 * done["fraction_changed"]}
    measured = measure(loaded, args, retrained) | cost | {name: done[name] for name in ("peak_memory_mb", "images_seen")}
    if accelerator.is_main_process:
        model = folder / "model.safetensors"
        if not model.is_file() or file_sha(model) != loaded.facts["parent_sha"]:
            raise RunError(f"the run in {folder} was replaced while it was measured: measure it again")
        print(f"{folder}: {write_metrics(folder, recorded, loaded, measured, how)}")


def measure_original(args, accelerator, retrained):
    """The row `original`: a model of train.py, measured on what would be forgotten."""
    run_folder = RunFolder(args, accelerator)
    loaded = task.load_task(args.model_path[0], task.forget_flags(args), accelerator, args.data_dir, args.cache_dir)
    run_folder.begin(kind="evaluation", method="original", **loaded.facts)
    measured = measure(loaded, args, retrained)
    if accelerator.is_main_process:
        recorded = read_json(run_folder.folder / "args.json")
        how = how_measured(args, accelerator, retrained)
        run_folder.finish(write_metrics(run_folder.folder, recorded, loaded, measured, how), seconds=0.0)


def outputs_of(loaded, args):
    """{"forget", "retain", "held_out": (logits, labels)} of a model."""
    outputs = {}
    held_out = loaded.test if args.held_out == "test" else loaded.val
    retain = loaded.retain if args.num_retain is None else loaded.retain.some(args.num_retain, "retain", args.seed)
    for name, split in {"forget": loaded.forget, "retain": retain, "held_out": held_out}.items():
        if not len(split):
            raise RunError(f"there are no {name} samples: --held_out val needs a model trained with --val_fraction above 0")
        outputs[name] = passes.predict_logits(loaded.model, split, args.eval_batch_size), split.labels.cpu()
    return outputs


def measure(loaded, args, retrained):
    """All metrics of a model but what its unlearning cost, {name: number}. retrained: what load_retrained() gives, or None."""
    if retrained and retrained["forget_sha"] != loaded.facts["forget_sha"]:
        raise RunError(f"{args.retrain_path} forgot another set than {loaded.facts['parent']}: name a Retrain of the same forget set")
    outputs = outputs_of(loaded, args)
    logits, labels = outputs["held_out"]
    of_forgotten = (labels[:, None] == labels.new_tensor(loaded.forgotten_classes)).any(1)
    if of_forgotten.all():
        raise RunError(f"all {len(labels)} held-out images are of forgotten classes: TA and MIA need some of other classes")
    result = {
        "UA": 100 - metrics.accuracy(*outputs["forget"]),
        "RA": metrics.accuracy(*outputs["retain"]),
        "TA": metrics.accuracy(logits[~of_forgotten], labels[~of_forgotten]),
    }
    if of_forgotten.any():
        result["UA_test"] = 100 - metrics.accuracy(logits[of_forgotten], labels[of_forgotten])
    never_seen = logits[~of_forgotten], labels[~of_forgotten]
    seed = data.derive_seed("attack", args.seed)
    attacked = outputs["forget"], outputs["retain"], never_seen, seed
    result |= (attacks := metrics.membership(*attacked))
    if args.mia_redraws:
        result |= metrics.membership_noise(attacks, *attacked, args.mia_redraws)
    alike = metrics.alike(outputs["forget"][1], labels, seed)
    if len(alike) > 1 and len(outputs["forget"][1]) > 1:
        result |= metrics.two_sample(outputs["forget"], (logits[alike], labels[alike]), seed)
    return result | (compare(outputs, retrained["outputs"], of_forgotten) if retrained else {})


def compare(outputs, theirs, of_forgotten):
    """How near a model's outputs are to Retrain's, {name: number}."""
    result = {}
    for name, ending in (("forget", ""), ("held_out", "_test")):
        result["agreement" + ending], result["KL" + ending] = metrics.agreement(outputs[name][0], theirs[name][0])
    if of_forgotten.any():
        logits, labels = outputs["held_out"]
        result["confusion"] = metrics.confusion(logits[of_forgotten], theirs["held_out"][0][of_forgotten], labels[of_forgotten])
    return result


def write_metrics(folder, recorded, loaded, measured, how):
    """Write metrics.json, all that table.py reads. recorded: the run's args.json; measured: {metric: number}; how: see how_measured.

    Return a line of figures.
    """
    labels = sorted(set(data.class_numbers(recorded["forget_class"] or [], recorded["classes"])))  # 5 3 is 3 5
    classes = f" of class {', '.join(recorded['classes'][label] for label in labels)}" if labels else ""
    facts = {
        "data set": loaded.training["dataset"],
        "architecture": recorded["architecture"]["arch"],
        "forgotten": f"{recorded['num_forgotten']:,} training samples{classes}",
        "held-out images": how["held_out"],
        "retain images": "all" if how["num_retain"] is None else f"{how['num_retain']:,} at most",
    }
    row = describe(recorded, loaded.training["seed"], facts)
    write_json(folder / "metrics.json", row | measured | {"how": how, "weights_sha": loaded.facts["parent_sha"]})
    return "  ".join(f"{name} {measured[name]:.2f}" for name in metrics.COLUMNS if name in measured)


if __name__ == "__main__":
    cli.run(main)
