"""Gather measured runs into a table: Markdown, JSON, a plot and pictures, printed and written into FOLDER.

    python table.py runs/quickstart
    python table.py runs/imagenette --over_classes

Takes every run below FOLDER that has a metrics.json. Cells are mean ± standard deviation over runs, (gap to the mean of Retrain)
behind UA and the remaining accuracy where Retrain is among them; the average gap is the mean of those two. Of the first run,
before_after_<method>.png shows the same seeds before and after unlearning, and methods.png all methods side by side.
"""

import statistics
from pathlib import Path

import methods
import metrics
import pictures
import prompts
import run

GAP_COLUMNS = ("UA", "remaining_accuracy")
COLUMNS = (
    *("UA", "forget_entropy", "forget_probability", "remaining_accuracy", "FID", "feature_distance", "CLIP_score", "CLIP_score_forgotten"),
    *("nudity", "nude_images", "RTE"),
)


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    parser.add_argument("--by_options", action="store_true", help="a row for every setting of a method's flags: to choose hyper-parameters")
    parser.add_argument("--over_classes", action="store_true", help="runs that forget different classes count as runs of one method")
    return parser.parse_args(argv)


def collect(folder, over_classes):
    """Return [{"method", "options", "seed", "facts", "samples", metric: value, ...}] of all measured runs below a folder."""
    runs = []
    for path in sorted(folder.rglob("metrics.json")):
        recorded, measured = run.read_json(path.parent / "args.json"), run.read_json(path)
        drawn = recorded["sampled"] if recorded["kind"] == "evaluation" else recorded
        samples = Path(recorded["sample_path"][0]) if recorded["kind"] == "evaluation" else path.parent
        model, sampled = drawn["model"], measured["sampled"]
        options = {name: value for name, value in (model.get("options") or {}).items() if value is not None}
        if model.get("mask_path"):
            options["mask_ratio"] = model["mask_info"]["mask_ratio"]
        training = model.get("training") or model
        facts = {
            "model": ", ".join(str(training[name]) for name in ("dataset", "arch") if training.get(name)) or str(model.get("parent", "")),
            "sampler": f"{sampled['sampler']}, {sampled['steps']} steps, guidance {sampled['guidance']:g}",
            "samples a prompt": sampled["num_samples"],
            "classifier": Path(measured["classifier"]).name if "classifier" in measured else None,
            "features": "Inception" if "FID" in measured else "the classifier" if "feature_distance" in measured else None,
        }
        if not over_classes:
            facts["forgotten"] = measured.get("forgotten", model.get("forgotten"))
        runs.append(
            {
                "method": model.get("method", "original"),
                "options": options,
                "seed": model.get("seed", recorded.get("seed", 0)),
                "num_samples": sampled["num_samples"],
                "facts": facts,
                "forgotten": measured.get("forgotten", model.get("forgotten")) or [],
                "samples": samples / "samples",
                "on": f"{model['machine']}, {model['autocast'].replace('no', 'fp32')}, torch {model['versions']['torch']}" if model else "",
                "reference_images": measured.get("reference_images"),
                **{name: value for name, value in measured.items() if isinstance(value, float)},
            }
        )
    if not runs:
        raise run.RunError(f"no measured runs below {folder}: run evaluate.py first")
    refuse_mixture(runs, folder)
    return runs


def refuse_mixture(runs, folder):
    """Raise RunError for runs that cannot stand in one table. The original may come from elsewhere, and forgets nothing by itself."""
    for name in runs[0]["facts"]:
        told = [row for row in runs if row["facts"][name] not in (None, "", []) and (name != "model" or row["method"] != "original")]
        values = {str(row["facts"][name]) for row in told}
        if len(values) > 1:
            raise run.RunError(f"{folder} holds runs that cannot stand in one table: {name} is {' and '.join(sorted(values))}")


def summarise(runs, by_options):
    """Return the rows of table.json: mean, sd (0 for one run) and gap to Retrain of each metric."""
    settings = {}
    for row in runs:
        settings.setdefault((row["method"], " ".join(f"--{name} {value}" for name, value in row["options"].items())), []).append(row)
    labels = [method for method, _ in settings]
    twice = sorted({method for method in labels if labels.count(method) > 1})
    if twice and not by_options:
        raise run.RunError(
            f"runs of {', '.join(twice)} differ in their flags: pass --by_options for a row each, or name a folder that holds one setting"
        )
    retrain = next((group for (method, _), group in settings.items() if method == "retrain"), None)
    rows = []
    for (method, options), group in settings.items():
        row = {"method": method, "options": options, "runs": len(group), "seeds": sorted(one["seed"] for one in group)}
        for name in (name for name in group[0] if isinstance(group[0][name], float) and all(name in one for one in group)):
            values = [one[name] for one in group]
            row[name] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
            if retrain and all(name in one for one in retrain):
                row[name]["gap"] = abs(row[name]["mean"] - statistics.fmean(one[name] for one in retrain))
        gaps = [row[name]["gap"] for name in GAP_COLUMNS if "gap" in row.get(name, {})]
        row["average_gap"] = statistics.fmean(gaps) if gaps else None
        rows.append(row)
    order = ["original", "retrain", *methods.METHODS]
    rows.sort(key=lambda row: (order.index(row["method"]), row["average_gap"] or 0))
    return rows


def columns_of(rows):
    return [name for name in COLUMNS if any(name in row for row in rows)]


def markdown(rows, runs, by_options):
    facts, columns = runs[0]["facts"], columns_of(rows)
    with_gap = any(row["average_gap"] is not None for row in rows)
    shown = ["RTE, min" if name == "RTE" else name for name in columns]
    headers = ["method", *(["options"] if by_options else []), "runs", *shown, *(["average gap"] if with_gap else [])]
    lines = [f"| {' | '.join(headers)} |", "|" + "---|" * len(headers)]
    for row in rows:
        gap = [] if not with_gap else [f"{row['average_gap']:.2f}"]
        cells = [row["method"], *([row["options"]] if by_options else []), str(row["runs"]), *(cell(row, name) for name in columns), *gap]
        lines.append(f"| {' | '.join(cells)} |")
    lines += collateral(rows, by_options)
    forgotten = sorted({name for row in runs for name in row["forgotten"]})
    seeds, machines = sorted({row["seed"] for row in runs}), sorted({row["on"] for row in runs} - {""})
    said = [facts["model"], f"forgotten: {', '.join(forgotten)}", facts["sampler"], f"{facts['samples a prompt']} samples a prompt"]
    said += [f"{name} {facts[key]}" for name, key in (("classifier:", "classifier"), ("features of", "features")) if facts[key]]
    counts = sorted({row["reference_images"] for row in runs} - {None})
    said += [f"{' or '.join(f'{count:,}' for count in counts)} reference images"] * bool(counts)
    lines += [
        "",
        f"{'; '.join(part for part in said if part)}; seeds {', '.join(map(str, seeds))}.",
        f"Models made on {' and '.join(machines)}. Mean ± standard deviation over runs"
        + ("; in brackets the gap to the mean of retrain." if with_gap else "."),
        "",
        *(f"- **{name}**: {metrics.DEFINITIONS[name][0]}; better: {metrics.DEFINITIONS[name][1]}." for name in columns),
    ]
    return "\n".join(lines) + "\n"


def collateral(rows, by_options):
    """The table of single classes: what else a method damaged."""
    classes = [name for name in rows[0] if name.startswith("accuracy_")]
    if not classes:
        return []
    lines = ["", "Share of each class's samples that the classifier takes for it, %: collateral damage beside what was forgotten.", ""]
    lines += [f"| method | {' | '.join(name.removeprefix('accuracy_') for name in classes)} |", "|" + "---|" * (len(classes) + 1)]
    for row in rows:
        shown = row["method"] + (f" {row['options']}" if by_options else "")
        lines.append(f"| {shown} | {' | '.join(format(row[name]['mean'], '.1f') if name in row else '' for name in classes)} |")
    return lines


def cell(row, column):
    if column not in row:
        return ""
    value = row[column]
    text = f"{value['mean']:.2f}" + (f"±{value['sd']:.2f}" if row["runs"] > 1 else "")
    return text + (f" ({value['gap']:.2f})" if "gap" in value and column in GAP_COLUMNS else "")


def plot(rows, path):
    """Dots with standard deviations for each metric, Retrain as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = [name for name in columns_of(rows) if name not in ("forget_entropy", "RTE")] or columns_of(rows)
    size = (3.2 * len(columns), 0.34 * len(rows) + 1.4)
    figure, axes = pyplot.subplots(1, len(columns), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        have = [(place, row[column]) for place, row in enumerate(rows) if column in row]
        style = {"fmt": "o", "color": "tab:blue", "capsize": 2, "markersize": 4}
        axis.errorbar([value["mean"] for _, value in have], [place for place, _ in have], xerr=[value["sd"] for _, value in have], **style)
        for row in rows:
            if row["method"] == "retrain" and column in row:
                axis.axvline(row[column]["mean"], color="tab:red", linewidth=1)
        axis.set_title(f"{column.replace('_', ' ')} (better: {metrics.DEFINITIONS[column][1]})", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes[0, 0].invert_yaxis()
    run.write_whole(path, lambda beside: figure.savefig(beside, format="png", dpi=110))
    pyplot.close(figure)


def draw_pictures(runs, rows, folder):
    """before_after_<method>.png and methods.png, of the first seed and the first thing forgotten; returns their names."""
    first = min((row["seed"], str(row["forgotten"])) for row in runs)
    chosen = sorted(runs, key=lambda row: str(row["options"]), reverse=True)
    found = {row["method"]: row for row in chosen if (row["seed"], str(row["forgotten"])) == first}
    ordered = {row["method"]: found[row["method"]]["samples"] for row in rows if row["method"] in found}
    missing = [str(path) for path in ordered.values() if not (path / "prompts.csv").is_file()]
    if missing:
        print(f"no pictures: the samples in {', '.join(missing)} are gone")
        return []
    forgotten = {name.casefold() for row in found.values() for name in row["forgotten"]}
    of_prompts = prompts.read_csv(next(iter(ordered.values())) / "prompts.csv")
    of_prompts = sorted(of_prompts, key=lambda row: not pictures.is_forgotten(row, forgotten))[:12]
    of_prompts = [row for row in prompts.read_csv(next(iter(ordered.values())) / "prompts.csv") if row in of_prompts]
    columns, written = min(8, int(runs[0]["num_samples"])), []
    for method, samples in ordered.items():
        if method != "original" and "original" in ordered:
            written.append(f"before_after_{method}.png")
            pictures.before_after(folder / written[-1], ordered["original"], samples, of_prompts, forgotten, method, columns)
    pictures.side_by_side(folder / "methods.png", ordered, of_prompts, forgotten, min(3, columns))
    return [*written, "methods.png"]


def main(argv=None):
    args = parse(argv)
    runs = collect(args.folder, args.over_classes)
    rows = summarise(runs, args.by_options)
    text = markdown(rows, runs, args.by_options)
    run.write_whole(args.folder / "table.md", lambda beside: beside.write_text(text))
    run.write_json(args.folder / "table.json", {"columns": list(columns_of(rows)), "rows": rows})
    plot(rows, args.folder / "table.png")
    written = draw_pictures(runs, rows, args.folder)
    print(text)
    print(f"written: {args.folder.resolve()}/{', '.join(['table.md', 'table.json', 'table.png', *written])}")


if __name__ == "__main__":
    run.cli(main)
