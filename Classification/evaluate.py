"""Measure how far a model has forgotten, and what else it lost. Writes metrics.json into each run folder.

    python evaluate.py --model_path runs/cifar10/salun runs/cifar10/retrain
    python evaluate.py --model_path runs/cifar10/original --num_forget 0.1 --save_dir runs/cifar10/original_10

The forget set is that of the unlearning run. For a run of train.py, the row `original` of the tables, it is given by the forget
flags, and the numbers go to a run folder of their own, --save_dir.
"""

import data
import engine
import job
import metrics
import run


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument(
        "--model_path", nargs="+", type=run.FLAGS["model_path"][1]["type"], required=True, metavar="RUN", help="run folders to measure"
    )
    run.add_flags(parser, "save_dir", "data_dir", "forget_class", "num_forget", "forget_indices", "split_seed")
    parser.add_argument(
        "--held_out", choices=("test", "val"), default="test", help="images that stand for data never seen; val to choose hyper-parameters"
    )
    run.add_flags(parser, "resume", "overwrite", "device", "precision", seed=1)
    args = parser.parse_args(argv)
    if args.save_dir is None and any(value is not None for value in job.forget_flags(args).values()):
        parser.error("forget flags are for a run of train.py and need --save_dir; a run of unlearn.py knows its forget set")
    if args.save_dir is not None:
        run.check_forget_flags(parser, args)
        if len(args.model_path) > 1:
            parser.error("--save_dir takes the numbers of one model: give one --model_path")
    return args


def main(argv=None):
    args = parse(argv)
    accelerator = engine.make_accelerator(args.device, args.precision)
    if args.save_dir is not None:
        return measure_original(args, accelerator)
    explain(metrics.DEFINITIONS)
    for path in args.model_path:
        folder, recorded = run.read_run(path)
        if recorded["kind"] != "unlearn":
            raise run.RunError(f"{folder} is no run of unlearn.py: for an original model give --save_dir and what would be forgotten")
        if (folder / "metrics.json").is_file() and not args.overwrite:
            if not args.resume:
                raise run.RunError(f"{folder} has metrics.json already: pass --overwrite to measure again, --resume to skip it")
            continue
        opened = job.open_job(folder, {name: recorded[name] for name in job.FORGET_FLAGS}, accelerator, args.data_dir, "unlearn")
        done = run.read_json(folder / "done.json")
        cost = {"RTE": (done["seconds"] + done["mask_seconds"]) / 60, "changed": 100 * done["fraction_changed"]}
        report(folder, measure(opened, args) | cost | {name: done[name] for name in ("peak_memory_mb", "images_seen")})


def measure_original(args, accelerator):
    """The row `original`: a model of train.py, measured against what would be forgotten."""
    record = run.Run(args)
    if record.finished:
        return print(f"{record.folder} is finished already")
    opened = job.open_job(args.model_path[0], job.forget_flags(args), accelerator, args.data_dir)
    record.begin(job.PACKAGES, kind="evaluation", method="original", **opened.facts)
    explain(name for name in metrics.DEFINITIONS if name not in ("RTE", "peak_memory_mb", "images_seen", "changed"))
    report(record.folder, measure(opened, args))
    record.finish(seconds=0.0)


def measure(opened, args):
    """All metrics of a model but what its unlearning cost, {name: number}."""
    outputs = {}
    held_out = opened.test if args.held_out == "test" else opened.val
    for name, split in {"forget": opened.forget, "retain": opened.retain, "held_out": held_out}.items():
        if not len(split):
            raise run.RunError(f"there are no {name} samples: --held_out val needs a model trained with --val_fraction above 0")
        outputs[name] = engine.predict(opened.model, split), split.labels()
    logits, labels = outputs["held_out"]
    of_forgotten = (labels[:, None] == labels.new_tensor(opened.forgotten_classes)).any(1)
    result = {
        "held_out": args.held_out,
        "UA": 100 - metrics.accuracy(*outputs["forget"]),
        "RA": metrics.accuracy(*outputs["retain"]),
        "TA": metrics.accuracy(logits[~of_forgotten], labels[~of_forgotten]),
    }
    if of_forgotten.any():
        result["UA_test"] = 100 - metrics.accuracy(logits[of_forgotten], labels[of_forgotten])
    never_seen = logits[~of_forgotten], labels[~of_forgotten]
    return result | metrics.membership(outputs["forget"], outputs["retain"], never_seen, data.mix("attack", args.seed))


def explain(names):
    print("\n".join(f"{name:21s}{metrics.DEFINITIONS[name][0]} [better: {metrics.DEFINITIONS[name][1]}]" for name in names))


def report(folder, result):
    run.write_json(folder / "metrics.json", result)
    print(f"{folder}: " + "  ".join(f"{name} {result[name]:.2f}" for name in metrics.DEFINITIONS if name in result))


if __name__ == "__main__":
    run.cli(main)
