"""Compare several models of each method with several retrained ones: U-LiRA and KLOM. Writes many.md and many.json into FOLDER.

    python evaluate_many.py runs/many

FOLDER holds runs of unlearn.py that forget the same images: two or more of --method retrain, and two or more of each other method, from
originals that were trained with different seeds and one --split_seed. scripts/many_digits.sh makes such a folder. U-LiRA asks whether the
answers to a forget image tell an unlearned model from a retrained one; KLOM, how far apart the two distributions of the answers are.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
import many
import metrics
import passes
import task
import trainer
from cli import RunError
from files import write_json, write_whole
from table import aligned, markdown_table

COLUMNS = {  # name: what it is
    "U-LiRA AUC": "chance that the ratio of likelihoods is larger for an unlearned model's answer than for a retrained one's, %. Ideal: 50",
    "TPR at 1 %": "share of forget images whose ratio under an unlearned model is above that of 99 % under a retrained one. Ideal: 1",
    "KLOM forget": "KL divergence of the unlearned models' margins from the retrained ones', mean over forget images, nats. Better: low",
    "KLOM 95 %": "the value that 95 % of the forget images do not exceed. Better: low",
    "KLOM unseen": "the mean over held-out images: what else changed. Better: low",
    "floor": "the mean KLOM that chance alone gives as many models of one kind, if margins are normal, independent and equally variable",
}


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    task.add_how_flags(parser)
    parser.add_shared("data_dir", "cache_dir", "device", "precision")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    accelerator = trainer.make_accelerator(args.device, args.precision)
    groups = task.unlearned_runs(args.folder)
    check(groups, args.folder)

    # The margins of every model on the forget set and on held-out images
    margins = {}
    with tqdm(total=sum(map(len, groups.values())), desc="models", disable=None) as bar:
        for name, runs in groups.items():
            found = []
            for folder, recorded in runs:
                found.append(margins_of(task.load_unlearned(folder, recorded, accelerator, args)))
                bar.update()
            margins[name] = [np.stack(part) for part in zip(*found, strict=True)]

    # Each method against Retrain
    retrained = margins.pop("retrain")
    rows = [compare(name, found, retrained) for name, found in margins.items()]
    count, samples = retrained[0].shape
    notes = remarks(min(len(found[0]) for found in margins.values()), count, samples)
    if accelerator.is_main_process:
        save(args.folder, rows, notes)


def check(groups, folder):
    """Raise RunError unless the runs {method: [(folder, args)]} can be compared."""
    if len(groups.get("retrain", ())) < 2:
        raise RunError(f"{folder} holds {len(groups.get('retrain', ()))} runs of retrain: two or more are needed")
    if len(groups) < 2:
        raise RunError(f"{folder} holds runs of retrain alone: there is no method to compare")
    lonely = [name for name, runs in groups.items() if len(runs) < 2]
    if lonely:
        raise RunError(f"{folder} holds one run of {', '.join(lonely)}: two or more are needed of each method")
    for name, runs in groups.items():
        if name != "retrain" and len({recorded["parent_sha"] for _, recorded in runs}) < len(runs):
            raise RunError(f"{folder} holds runs of {name} from one original: the originals must differ as the retrained models do")
    sets = {}
    for runs in groups.values():
        for path, recorded in runs:
            sets.setdefault(recorded["forget_sha"], path)
    if len(sets) > 1:
        first, second = list(sets.values())[:2]
        raise RunError(f"{first} and {second} forget different sets: train the originals with one --split_seed and forget the same images")


def margins_of(loaded):
    """(margins of the forget set, margins of the test images of classes that are not forgotten)."""
    unseen = ~torch.isin(loaded.test.labels.cpu(), torch.tensor(loaded.forgotten_classes, dtype=torch.int64))
    splits = loaded.forget, loaded.test.take(unseen.nonzero().squeeze(1))
    return tuple(metrics.margin(passes.predict_logits(loaded.model, split), split.labels.cpu()).numpy() for split in splits)


def compare(name, found, retrained):
    """A row of the table, {"method", "models", column: number}."""
    attack, of_forget, of_unseen = many.u_lira(found[0], retrained[0]), *(many.klom(*pair) for pair in zip(found, retrained, strict=True))
    row = {"method": name, "models": len(found[0]), "U-LiRA AUC": attack["AUC"]}
    row |= {"TPR at 1 %": attack["TPR"]} if "TPR" in attack else {}
    row |= {"KLOM forget": float(of_forget.mean()), "KLOM 95 %": float(np.quantile(of_forget, 0.95))}
    row["KLOM unseen"] = float(of_unseen.mean())
    return row | {"floor": many.klom_floor(len(found[0]), len(retrained[0]))}


def remarks(fewest, retrained, samples):
    """Sentences that say what this many models can show."""
    lines = [f"{retrained} retrained models, {samples:,} forget images."]
    if min(fewest, retrained) < 3:
        lines.append("With two models of a kind no variance is known to U-LiRA: it tells means apart, not spreads.")
    if min(fewest, retrained) < 16:
        lines.append("With so few models a single image's distribution is mostly the pooled one: the numbers are averages over images.")
    if samples < many.SMALLEST:
        lines.append(f"A false-positive rate of 1 % needs {many.SMALLEST} forget images: there is no TPR.")
    return lines


def save(folder, rows, notes):
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    cells = [["method", "models", *columns]]
    cells += [[row["method"], str(row["models"]), *(f"{row[name]:.2f}" if name in row else "" for name in columns)] for row in rows]
    meaning = [f"- {name}: {COLUMNS[name]}." for name in columns]
    text = "\n".join([*markdown_table(cells), "", " ".join(notes), "", *meaning]) + "\n"
    write_whole(folder / "many.md", lambda partial: partial.write_text(text, encoding="utf-8"))
    write_json(folder / "many.json", {"columns": columns, "notes": notes, "rows": rows})
    print("\n".join([*aligned(cells), "", *notes, "", *meaning, f"written: {folder.resolve()}/many.md, many.json"]))


if __name__ == "__main__":
    cli.run(main)
