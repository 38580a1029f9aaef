"""Gather measured runs into the paper's table: Markdown, JSON and a plot, printed and written into FOLDER.

    python table.py runs/quickstart

Takes every run folder below FOLDER that has a metrics.json. Cells are mean ± standard deviation over runs, (gap to the mean of
Retrain) behind; the average gap is the mean of the gaps of UA, RA, TA and MIA. With two or more retrained models the same
average between pairs of them is the noise floor of single models, and 1/sqrt(n) of it about that of means over n runs: a
smaller average gap says nothing.
"""

import itertools
import math
import statistics
from pathlib import Path

import methods
import metrics
import run

GAP_COLUMNS = ("UA", "RA", "TA", "MIA")
COLUMNS = (*GAP_COLUMNS, "RTE")


def parse(argv=None):
    parser = run.parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    parser.add_argument(
        "--by_options", action="store_true", help="a row for every setting of a method's flags, best first: to choose hyper-parameters"
    )
    return parser.parse_args(argv)


def collect(folder):
    """Return [{"method", "options", "seed", "facts", metric: value, ...}] of all measured runs below a folder."""
    runs = []
    for path in sorted(folder.rglob("metrics.json")):
        recorded, measured = run.read_json(path.parent / "args.json"), run.read_json(path)
        options = {name: value for name, value in (recorded.get("options") or {}).items() if value is not None}
        if recorded.get("mask_path"):
            options["mask_ratio"] = recorded["mask_info"]["mask_ratio"]
        precision = "bf16" if recorded["autocast"] == "bf16" else "fp32"
        runs.append(
            {
                "method": recorded["method"],
                "options": options,
                "seed": recorded["training"]["seed"],
                "facts": {
                    "dataset": recorded["training"]["dataset"],
                    "architecture": recorded["architecture"]["arch"],
                    "forget_class": recorded["forget_class"],
                    "num_forgotten": recorded["num_forgotten"],
                    "held_out": measured.pop("held_out"),
                },
                "on": f"{recorded['machine']}, {precision}, torch {recorded['versions']['torch']}"
                if recorded["kind"] == "unlearn"
                else None,
                **measured,
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
        for name in metrics.DEFINITIONS:
            values = [run[name] for run in group if name in run]
            if values:
                row[name] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
                if retrain and name in retrain[0]:
                    row[name]["gap"] = abs(row[name]["mean"] - statistics.fmean(run[name] for run in retrain))
        row["average_gap"] = statistics.fmean(row[name]["gap"] for name in GAP_COLUMNS) if retrain else None
        rows.append(row)
    order = ["original", *methods.METHODS]
    rows.sort(key=lambda row: (order.index(row["method"]), row["average_gap"] or 0))
    return rows, noise_floor(retrain)


def noise_floor(retrain):
    """Average gap between pairs of retrained models; None for fewer than two."""
    if retrain is None or len(retrain) < 2:
        return None
    return statistics.fmean(statistics.fmean(abs(a[name] - b[name]) for name in GAP_COLUMNS) for a, b in itertools.combinations(retrain, 2))


def markdown(rows, floor, runs):
    lines = ["| method | runs | UA | RA | TA | MIA | average gap | RTE, min |", "|---|---|---|---|---|---|---|---|"]
    settings_differ = len({row["method"] for row in rows}) < len(rows)
    for row in rows:
        name = f"{row['method']} {row['options']}" if settings_differ else row["method"]
        gap = "" if row["average_gap"] is None else f"{row['average_gap']:.2f}"
        cells = [name, str(row["runs"]), *(cell(row, column) for column in GAP_COLUMNS), gap, cell(row, "RTE")]
        lines.append(f"| {' | '.join(cells)} |")
    facts, seeds = runs[0]["facts"], sorted({row["seed"] for row in runs})
    classes = f" (class {', '.join(facts['forget_class'])})" if facts["forget_class"] else ""
    machines = " and ".join(sorted({row["on"] for row in runs if row["on"]}))
    lines += [
        "",
        f"{facts['dataset']}, {facts['architecture']}, {facts['num_forgotten']} training samples forgotten{classes}; "
        f"held-out images: {facts['held_out']}; seeds {', '.join(map(str, seeds))}.",
        f"Measured on {machines}. Mean ± standard deviation over seeds; in brackets the gap to the mean of retrain.",
    ]
    if floor is not None:
        count = next(row["runs"] for row in rows if row["method"] == "retrain")
        lines.append(
            f"Noise floor: two retrained models have an average gap of {floor:.2f}, means over {count} runs one of about "
            f"{floor / math.sqrt(count):.2f}. A smaller average gap says nothing."
        )
    lines += ["", *(f"- **{name}**: {metrics.DEFINITIONS[name][0]}; better: {metrics.DEFINITIONS[name][1]}." for name in COLUMNS)]
    return "\n".join(lines) + "\n"


def cell(row, column):
    if column not in row:
        return ""
    value = row[column]
    text = f"{value['mean']:.2f}" + (f"±{value['sd']:.2f}" if row["runs"] > 1 else "")
    return text + (f" ({value['gap']:.2f})" if "gap" in value and column in GAP_COLUMNS else "")


def plot(rows, floor, path):
    """Dots with standard deviations for each metric, Retrain as the line to come near, and bars of the average gap."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [row["method"] for row in rows]
    figure, axes = pyplot.subplots(1, len(GAP_COLUMNS) + 1, figsize=(13, 0.34 * len(rows) + 1.4), sharey=True, layout="constrained")
    for axis, column in zip(axes, GAP_COLUMNS, strict=False):
        values = [row[column] for row in rows]
        axis.errorbar(
            [value["mean"] for value in values],
            range(len(rows)),
            xerr=[value["sd"] for value in values],
            fmt="o",
            color="tab:blue",
            capsize=2,
            markersize=4,
        )
        axis.set_title(f"{column}, %")
        for row in rows:
            if row["method"] == "retrain":
                axis.axvline(row[column]["mean"], color="tab:red", linewidth=1, label="retrain")
    axes[-1].set_title("average gap to retrain")
    axes[-1].barh(
        range(len(rows)),
        [row["average_gap"] or 0 for row in rows],
        color=["tab:orange" if name == "salun" else "tab:blue" for name in names],
    )
    if floor is not None:
        count = next(row["runs"] for row in rows if row["method"] == "retrain")
        axes[-1].axvline(floor / math.sqrt(count), color="tab:gray", linestyle="--", linewidth=1, label=f"noise floor of {count}-run means")
        axes[-1].legend(fontsize=8)
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].invert_yaxis()
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
    run.write_whole(path, lambda beside: figure.savefig(beside, format="png", dpi=110))
    pyplot.close(figure)


def main(argv=None):
    args = parse(argv)
    runs = collect(args.folder)
    rows, floor = summarise(runs, args.by_options)
    text = markdown(rows, floor, runs)
    run.write_whole(args.folder / "table.md", lambda beside: beside.write_text(text))
    run.write_json(args.folder / "table.json", {"columns": list(COLUMNS), "noise_floor": floor, "rows": rows})
    plot(rows, floor, args.folder / "table.png")
    print(text)
    print(f"written: {args.folder.resolve()}/table.md, table.json, table.png")


if __name__ == "__main__":
    run.cli(main)
