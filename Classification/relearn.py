"""How fast does a model learn again what it was to forget? Writes relearn.md and relearn.json into FOLDER.

    python relearn.py runs/quickstart

Takes every finished run of unlearn.py below FOLDER. Each model is trained on the same --num_images images of its forget set, in one step
on all of them and in epochs of single images, by plain SGD, with BatchNorm fixed. Then it is tested on the other forget images. A model
that had only hidden what it knew recovers it at once, beyond what Retrain learns. With three or more seeds, a further table says how
much more, seed by seed, and how sure that is. No run folder is changed.
"""

import copy
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import cli
import data
import metrics
import passes
import task
import trainer
from cli import RunError
from files import write_json, write_whole
from table import BELONGS, aligned, interval, markdown_table

REST = 2000  # retain images that a model is asked for at most: a standard error of about 1 %
STAGES = {"before": "as unlearned", "step": "after one step on the k images"}  # and, of each --epochs, stage_of() it
SETS = {
    "other": "accuracy on the other forget images, %. Better: close to Retrain",
    "class": "accuracy on held-out images of the forgotten classes, %. Better: close to Retrain",
    "rest": f"accuracy on the retain set, of which {REST:,} images are drawn if it has more, %. Better: close to Retrain",
}
PAIRED = (
    "Minus Retrain of the same original, with the 95 % confidence interval over originals. Above 0: more comes back, or was never gone."
)


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    task.add_how_flags(parser)
    num_images = "forget images that are learned again, drawn by --seed"
    parser.add(cli.FORGET, "--num_images", type=cli.positive_int, default=10, metavar="N", help=num_images)
    epochs = "numbers of epochs, one image per step, after which to measure"
    parser.add(cli.FORGET, "--epochs", type=cli.positive_int, nargs="+", default=[1], metavar="N", help=epochs)
    parser.add_shared("data_dir", "cache_dir", "device", "precision", lr=0.01, seed=1)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    groups = task.unlearned_runs(args.folder)
    for runs in groups.values():
        for folder, recorded in runs:
            if args.num_images >= (count := recorded["num_forgotten"]):
                raise RunError(f"--num_images {args.num_images} leaves none of the {count} forget images of {folder} to test on")
    measured = {}
    with tqdm(total=sum(map(len, groups.values())), desc="models", disable=None) as bar:
        for name, runs in groups.items():
            for folder, recorded in runs:
                loaded = task.load_unlearned(folder, recorded, accelerator, args)
                place = recorded["training"]["seed"], *(recorded[key] for key in BELONGS)
                found = relearn(loaded, args.num_images, args.epochs, args.lr, args.seed)
                measured.setdefault(name, {}).setdefault(place, []).append(found)
                bar.update()
    if accelerator.is_main_process:
        save(args.folder, measured, args)


def stage_of(epochs):
    return "epoch" if epochs == 1 else f"{epochs} epochs"


def relearn(loaded, k, epochs, lr, seed):
    """{(stage, set): accuracy in percent} of one model, as it is, after a step on `k` images, and after each number of `epochs` on them.

    The stage "gained" is the change from first to last: how much comes back, apart from what was never gone.
    """
    order = torch.randperm(len(loaded.forget), generator=data.make_generator("relearn", seed))
    again, other = (loaded.forget.take(rows.sort().values) for rows in (order[:k], order[k:]))
    sets = {"other": other, "rest": loaded.retain.some(REST, "relearn rest", seed)}
    kind = torch.isin(loaded.test.labels.cpu(), torch.tensor(loaded.forgotten_classes, dtype=torch.int64)).nonzero().squeeze(1)
    if len(kind):  # a class may have no test image
        sets["class"] = loaded.test.take(kind)
    measured = {}

    def ask(stage, model):
        for name, split in sets.items():
            try:
                measured[stage, name] = metrics.accuracy(passes.predict_logits(model, split), split.labels.cpu())
            except RunError as error:
                if stage == "before":
                    raise
                raise RunError(f"relearning diverged at --lr {lr:g}: pass a lower one") from error

    ask("before", loaded.model)
    once = copy.deepcopy(loaded.model)
    train(once, again, lr, k)
    ask("step", once)
    for epoch in range(1, max(epochs) + 1):
        train(loaded.model, again, lr, 1)
        if epoch in epochs:
            ask(stage_of(epoch), loaded.model)
    return measured | {("gained", name): measured[stage_of(max(epochs)), name] - measured["before", name] for name in sets}


def train(model, split, lr, batch_size):
    """One pass over a split in order, in steps of plain SGD, in evaluation mode."""
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for images, labels in passes.plain_batches(split, batch_size):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def compare(measured, keys):
    """{method: {(stage, set): (mean, low, high)}}: accuracy minus that of the Retrain of the same original, where three or more are known.

    Several runs from one original are averaged first, as table.py does.
    """
    retrains = measured.get("retrain", {})
    compared = {}
    for name, found in measured.items():
        shared = found.keys() & retrains.keys()
        for key in keys:
            pairs = [[[one[key] for one in runs[place] if key in one] for runs in (found, retrains)] for place in shared]
            differences = [statistics.fmean(ours) - statistics.fmean(theirs) for ours, theirs in pairs if ours and theirs]
            if name != "retrain" and len(differences) > 2:
                compared.setdefault(name, {})[key] = interval(differences)[:3]
    return compared


def save(folder, measured, args):
    """Write relearn.md and relearn.json of {method: {what runs share with their Retrain: [result of relearn()]}}, Retrain first."""
    flat = {name: [one for runs in places.values() for one in runs] for name, places in measured.items()}
    keys = list(dict.fromkeys(key for results in flat.values() for one in results for key in one))
    stages = STAGES | {stage_of(n): f"after {n} epoch{'s' * (n > 1)} of single images" for n in sorted(args.epochs)}
    stages["gained"] = f"{stage_of(max(args.epochs))} minus before"
    keys.sort(key=lambda key: (list(SETS).index(key[1]), list(stages).index(key[0])))
    columns = {key: f"{key[1]} {key[0]}" for key in keys}
    compared = compare(measured, keys)
    rows = []
    for name, results in flat.items():
        values = {columns[key]: [one[key] for one in results if key in one] for key in keys}
        row = {"method": name, "runs": len(results)} | {column: statistics.fmean(found) for column, found in values.items() if found}
        rows.append(row | {"minus_retrain": {columns[key]: found for key, found in compared.get(name, {}).items()}})
    rows.sort(key=lambda row: row["method"] != "retrain")
    cells = [["method", "runs", *columns.values()]]
    cells += [[row["method"], str(row["runs"]), *(f"{row[name]:.2f}" if name in row else "" for name in columns.values())] for row in rows]
    back = [columns[key] for key in keys if key[1] != "rest"]
    paired = [["method", *back]]
    for row in rows:
        found = [row["minus_retrain"].get(name) for name in back]
        paired += [[row["method"], *("{:+.2f} ({:+.2f} to {:+.2f})".format(*one) if one else "" for one in found)]] * any(found)
    how = f"Relearned on {args.num_images} forget images at lr {args.lr}, seed {args.seed}; means over runs."
    how = [how] if "retrain" in measured else [how, "There is no run of retrain to compare with."]
    meaning = [f"- {name}: {SETS[name]}." for name in SETS if any(part == name for _, part in keys)]
    meaning += [f"- {stage}: {what}." for stage, what in stages.items()]
    more = ["", PAIRED, "", *markdown_table(paired)] * (len(paired) > 1)
    text = "\n".join([*markdown_table(cells), "", " ".join(how), *more, "", *meaning]) + "\n"
    write_whole(folder / "relearn.md", lambda partial: partial.write_text(text, encoding="utf-8"))
    shown = {"columns": list(columns.values()), "rows": rows, "num_images": args.num_images, "lr": args.lr, "seed": args.seed}
    write_json(folder / "relearn.json", shown)
    print("\n".join([*aligned(cells), "", *how]))
    if more:
        print("\n".join(["", PAIRED, *aligned(paired)]))
    print("\n".join(["", *meaning, f"written: {folder.resolve()}/relearn.md, relearn.json"]))


if __name__ == "__main__":
    cli.run(main)
