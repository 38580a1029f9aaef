"""Gather measured runs into a table: Markdown, JSON, a plot and pictures, printed and written into FOLDER.

    python table.py runs/quickstart

Takes every run below FOLDER that has a metrics.json. Cells are mean ± standard deviation over runs, (gap to the mean of Retrain)
behind UA and the remaining accuracy; the average gap is the mean of those two. Of the first seed, before_after_<method>.png shows
the same seeds before and after unlearning, and methods.png all methods side by side.
"""

import statistics
from pathlib import Path

import methods
import metrics
import pictures
import run

GAP_COLUMNS = ("UA", "remaining_accuracy")


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    parser.add_argument("--by_options", action="store_true", help="a row for every setting of a method's flags: to choose hyper-parameters")
    return parser.parse_args(argv)


def collect(folder):
    """Return [{"method", "options", "seed", "facts", "samples", metric: value, ...}] of all measured runs below a folder."""
    runs = []
    for path in sorted(folder.rglob("metrics.json")):
        recorded, measured = run.read_json(path.parent / "args.json"), run.read_json(path)
        model = recorded["model"]
        training = model["training"] if model["kind"] == "unlearn" else model
        options = {name: value for name, value in (model.get("options") or {}).items() if value is not None}
        options |= {name: model[name] for name in ("target_class",) if model.get(name) is not None}
        if model.get("mask_path"):
            options["mask_ratio"] = model["mask_info"]["mask_ratio"]
        runs.append(
            {
                "method": model["method"],
                "options": options,
                "seed": training["seed"],
                "facts": {
                    "dataset": training["dataset"],
                    "architecture": model["architecture"]["arch"],
                    "classes": model["classes"],
                    "forgotten": measured["forgotten"],
                    "sampler": f"{recorded['sampler']}, {recorded['steps']} steps, guidance {recorded['guidance']:g}",
                    "features": "Inception" if "FID" in measured else "the classifier",
                    "reference_images": measured["reference_images"],
                },
                "num_per_class": recorded["num_per_class"],
                "samples": Path(recorded["sample_path"][0] if recorded["kind"] == "evaluation" else path.parent) / "samples",
                "on": f"{model['machine']}, {'bf16' if model['autocast'] == 'bf16' else 'fp32'}, torch {model['versions']['torch']}",
                **{name: value for name, value in measured.items() if isinstance(value, float)},
            }
        )
    if not runs:
        raise run.RunError(f"no measured runs below {folder}: run evaluate.py first")
    for name in runs[0]["facts"]:
        values = {str(row["facts"][name]) for row in runs}
        if len(values) > 1:
            raise run.RunError(f"{folder} holds runs that cannot stand in one table: {name} is {' and '.join(sorted(values))}")
    return runs


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
        row = {"method": method, "options": options, "runs": len(group), "seeds": sorted(run["seed"] for run in group)}
        for name in (name for name in group[0] if isinstance(group[0][name], float)):
            values = [run[name] for run in group]
            row[name] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
            if retrain and name in retrain[0]:
                row[name]["gap"] = abs(row[name]["mean"] - statistics.fmean(run[name] for run in retrain))
        row["average_gap"] = statistics.fmean(row[name]["gap"] for name in GAP_COLUMNS) if retrain else None
        rows.append(row)
    order = ["original", *methods.METHODS]
    rows.sort(key=lambda row: (order.index(row["method"]), row["average_gap"] or 0))
    return rows


def columns_of(rows):
    return ("UA", "forget_entropy", "forget_probability", "remaining_accuracy", "FID" if "FID" in rows[0] else "feature_distance", "RTE")


def markdown(rows, runs, by_options):
    facts, columns = runs[0]["facts"], columns_of(rows)
    forgotten, names = facts["forgotten"], facts["classes"]
    headers = ["method", *(["options"] if by_options else []), "runs", *columns[:-1], "RTE, min", "average gap"]
    lines = [f"| {' | '.join(headers)} |", "|" + "---|" * len(headers)]
    for row in rows:
        gap = "" if row["average_gap"] is None else f"{row['average_gap']:.2f}"
        cells = [
            row["method"],
            *([row["options"]] if by_options else []),
            str(row["runs"]),
            *(cell(row, column) for column in columns),
            gap,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    retained = [label for label in range(len(names)) if label not in forgotten and f"accuracy_{label}" in rows[0]]
    lines += ["", "Collateral damage: share of each retained class's samples that the classifier takes for it, %.", ""]
    lines += [f"| method | {' | '.join(names[label] for label in retained)} |", "|" + "---|" * (len(retained) + 1)]
    for row in rows:
        shown = row["method"] + (f" {row['options']}" if by_options else "")
        lines.append(f"| {shown} | {' | '.join(format(row[f'accuracy_{label}']['mean'], '.1f') for label in retained)} |")
    seeds = sorted({row["seed"] for row in runs})
    counts = " or ".join(map(str, sorted({count for row in runs for count in row["num_per_class"]})))
    lines += [
        "",
        f"{facts['dataset']}, {facts['architecture']}; forgotten: {', '.join(names[label] for label in forgotten)}; {facts['sampler']}; "
        f"{counts} samples a class against {facts['reference_images']:,} training images, features of {facts['features']}; "
        f"seeds {', '.join(map(str, seeds))}.",
        f"Models made on {' and '.join(sorted({row['on'] for row in runs}))}. Mean ± standard deviation over seeds; in brackets the gap to "
        "the mean of retrain.",
        "",
        *(f"- **{name}**: {metrics.DEFINITIONS[name][0]}; better: {metrics.DEFINITIONS[name][1]}." for name in columns),
    ]
    return "\n".join(lines) + "\n"


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

    columns = [name for name in columns_of(rows) if name not in ("forget_entropy", "RTE")]
    figure, axes = pyplot.subplots(1, len(columns), figsize=(3.2 * len(columns), 0.34 * len(rows) + 1.4), sharey=True, layout="constrained")
    for axis, column in zip(axes, columns, strict=True):
        axis.errorbar(
            [row[column]["mean"] for row in rows],
            range(len(rows)),
            xerr=[row[column]["sd"] for row in rows],
            fmt="o",
            color="tab:blue",
            capsize=2,
            markersize=4,
        )
        for row in rows:
            if row["method"] == "retrain":
                axis.axvline(row[column]["mean"], color="tab:red", linewidth=1, label="retrain")
        axis.set_title(f"{column.replace('_', ' ')} (better: {metrics.DEFINITIONS[column][1]})", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes[0].invert_yaxis()
    run.write_whole(path, lambda beside: figure.savefig(beside, format="png", dpi=110))
    pyplot.close(figure)


def draw_pictures(runs, rows, folder):
    """before_after_<method>.png and methods.png, of the first seed; returns their names."""
    first = min(row["seed"] for row in runs)
    found = {row["method"]: row for row in sorted(runs, key=lambda row: str(row["options"]), reverse=True) if row["seed"] == first}
    facts, written = runs[0]["facts"], []
    ordered = {row["method"]: found[row["method"]]["samples"] for row in rows if row["method"] in found}
    missing = [str(path) for path in ordered.values() if not path.is_dir()]
    if missing:
        print(f"no pictures: the samples in {', '.join(missing)} are gone")
        return written
    for method, samples in ordered.items():
        if method != "original" and "original" in ordered:
            written.append(f"before_after_{method}.png")
            pictures.before_after(folder / written[-1], ordered["original"], samples, facts["classes"], facts["forgotten"], method)
    pictures.side_by_side(folder / "methods.png", ordered, facts["classes"], facts["forgotten"])
    return [*written, "methods.png"]


def main(argv=None):
    args = parse(argv)
    runs = collect(args.folder)
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
