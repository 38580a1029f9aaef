"""Draw the average gap to Retrain against the learning rate, a line for each method, mask or other setting: rates.png in FOLDER.

    python draw_rates.py runs/evidence/search --methods rl salun "salun (random mask)"

FOLDER holds the measured runs of a search. Their gap per seed is drawn, as table.py --by_options has it in its rows. The dashed line is
the untouched original, where it is not too far above. A method that is best at the end of its line wants a wider search.
"""

import itertools
import re
from pathlib import Path

import cli
from cli import RunError
from files import write_whole
from table import collect, summarise


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="rows of the table to draw (default: all that have a rate)")
    return parser.parse_args(argv)


def lines_of(rows, methods=None):
    """{(method, its other flags that vary): [(rate, gap per seed), ...] by rate} of table.py's rows."""
    found = {}
    for row in rows:
        rate = re.search(r"--lr (\S+) ?", row["options"])
        if rate and row["gap_per_seed"] is not None:
            flags = re.split(r" (?=--)", (row["options"][: rate.start()] + row["options"][rate.end() :]).strip())
            found.setdefault(row["method"], {}).setdefault(tuple(flags), []).append((float(rate[1]), row["gap_per_seed"]))
    if missing := [name for name in methods or [] if name not in found]:
        raise RunError(f"no run with a learning rate beside a retrain: {', '.join(missing)}; there are {', '.join(found) or 'none'}")
    lines = {}
    for name in methods or found:
        shared = set.intersection(*map(set, found[name]))
        for flags, points in found[name].items():
            lines[name, " ".join(flag for flag in flags if flag not in shared)] = sorted(points)
    return lines


def main(argv=None):
    args = parse(argv)
    rows, _ = summarise(collect(args.folder), by_options=True)
    lines = lines_of(rows, args.methods)
    if not lines:
        raise RunError(f"{args.folder} has no method with a learning rate beside a retrain to draw")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in lines))
    colors = dict(zip(names, itertools.cycle(pyplot.get_cmap("tab10" if len(names) <= 10 else "tab20").colors), strict=False))
    drawn = []
    for (name, flags), points in lines.items():
        style = ("o-", "s:", "^--", "v-.")[drawn.count(name) % 4]
        axis.plot(*zip(*points, strict=True), style, color=colors[name], markersize=5, linewidth=1.2, label=f"{name} {flags}".strip())
        drawn.append(name)
    for row in rows:
        if row["method"] == "original" and row["gap_per_seed"] is not None:
            axis.axhline(row["gap_per_seed"], color="tab:gray", linestyle="--", linewidth=1, label=f"original: {row['gap_per_seed']:.1f}")
    highest = max(gap for points in lines.values() for _, gap in points)
    top = None if axis.get_ylim()[1] < 3 * highest else 1.05 * highest  # an original far above would press the lines flat
    axis.set(xscale="log", xlabel="learning rate", ylabel="average gap to the retrain of the same seed", ylim=(0, top))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    path = args.folder / "rates.png"
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=110))
    print(f"written: {path.resolve()}")


if __name__ == "__main__":
    cli.run(main)
