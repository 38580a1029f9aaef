"""Gather measured runs into a table: Markdown, JSON and a plot, written into FOLDER.

    python table.py runs/quickstart

Takes every run below FOLDER that has a metrics.json. A cell is the mean over runs, ± the standard deviation where there are several.
The gap to the mean of Retrain stands in brackets, and the average gap is the mean of these gaps. With two or more retrained models,
the average gap between pairs of them is the noise floor of a single model; about 1/sqrt(n) of it is that of a mean over n runs.
From three seeds on, a further table says which methods lie nearer to Retrain than --against, seed by seed, and how sure that is.
With --best each seed shows the setting that was best on the other seeds.

This file carries the same text in Classification, DDPM and SD (`make check` fails when one drifts).
"""

import itertools
import math
import statistics
from collections import Counter
from pathlib import Path

import cli
import metrics
from cli import RunError
from files import read_json, write_json, write_whole
from methods import METHODS
from metrics import COLUMNS, DEFINITIONS, GAP_COLUMNS

MORE = getattr(metrics, "MORE", ())  # columns of a second table, where a folder has any
derive = getattr(metrics, "derive", lambda run, retrain: {})  # numbers that follow from a run and the means of Retrain


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    parser.add_argument("--by_options", action="store_true", help="a row for every setting of a method's flags, to choose hyper-parameters")
    best = "write best.md, in which each method has for each seed the setting with the smallest gap per seed on the other seeds"
    parser.add_argument("--best", action="store_true", help=best)
    parser.add_argument("--over_classes", action="store_true", help="runs that forget different classes count as runs of one method")
    against = "row that the others are compared with, seed by seed (default: salun)"
    parser.add_argument("--against", metavar="METHOD", help=against)
    parser.add_argument(
        "--incomplete",
        action="store_true",
        help="accept rows with missing seeds and, with --by_options or --best, methods with fewer settings",
    )
    return parser.parse_args(argv)


MEASURED = ["features", "num_reference", "seed", "mia_redraws", "precision", "retrain_path"]  # of `how` in metrics.json
NEEDED = {"method": str, "options": dict, "seed": int, "facts": dict}  # of metrics.json
KNOWN = {"how": dict, "class_accuracy": dict} | dict.fromkeys(["measured_on", "parent_sha", "forget_sha", "weights_sha"], str)  # or null
BELONGS = {"parent_sha": "start from different originals", "forget_sha": "forget different sets"}  # what runs of one seed must share


def describe(recorded, seed, facts):
    """What metrics.json says of a model's run, but for the metrics. recorded: its args.json, {} for a model from elsewhere."""
    method = recorded.get("method", "original")
    row = {"method": method, "options": {}, "seed": seed, "facts": facts, "measured_on": None}
    row |= {name: recorded.get(name) for name in BELONGS}
    if recorded.get("kind") == "unlearn":  # runs that differ in one of these flags are no repetitions of each other
        flags = "target_class train_method batch_size forget_batch_size optimizer momentum weight_decay schedule augment ema grad_clip"
        row["options"] = recorded["options"] | {name: recorded[name] for name in flags.split() if recorded.get(name) is not None}
        mask = recorded["mask_info"] if recorded["mask_path"] else {}
        name = "ratio_of_mask" if "mask_ratio" in row["options"] else "mask_ratio"  # SalUn-soft has a flag of that name
        row["options"] |= {name: mask["mask_ratio"]} if mask else {}
        row["options"] |= {f"mask_{name}": value for name, value in mask.get("mask_flags", {}).items()}
        kind = mask.get("mask_kind", "saliency").replace("_", " ")
        parts = [part for part in (f"{kind} mask" if kind != "saliency" else None, recorded.get("setting")) if part]
        if parts:  # a control, or a second setting: a method of its own
            row["method"] += f" ({', '.join(parts)})"
    if method != "original":
        precision = recorded["autocast"].replace("no", "fp32")
        row["measured_on"] = f"{recorded['machine']}, {precision}, torch {recorded['versions']['torch']}"
    return row


def collect(folder, over_classes=False):
    """Return the contents of all metrics.json below a folder. Raises RunError where they cannot stand in one table."""
    runs = []
    for path in sorted(folder.rglob("metrics.json")):
        run = read_metrics(path)
        for name in ("target_class", "target_prompt", "retain_prompts") if over_classes else ():  # they go with what is forgotten
            run["options"].pop(name, None)
        # What runs share that are compared with each other: the seed of their original, and the forget set
        place = (run["seed"], str(run["facts"].get("forgotten"))) if over_classes else (run["seed"],)
        runs.append(run | {"path": str(path.parent), "place": place})
    if not runs:
        raise RunError(f"no measured runs below {folder}: run evaluate.py first")
    for name in fact_names(runs):
        values = facts_of(runs, name)
        if len(values) > 1 and not (over_classes and name == "forgotten"):
            raise RunError(f"{folder} holds runs that cannot stand in one table: {name} is {' and '.join(values)}")
    check_belonging(runs)
    check_copies(runs)
    return runs


def read_metrics(path):
    """The contents of a metrics.json, its figures as floats. Raises RunError where it holds something else."""
    run = read_json(path)
    if "facts" not in run:
        raise RunError(f"{path} was written by an earlier version: measure the run again with evaluate.py --overwrite")
    wrong = [name for name, kind in NEEDED.items() if not isinstance(run.get(name), kind)]
    wrong += [name for name, kind in KNOWN.items() if not isinstance(run.get(name), (kind, type(None)))]
    figures = {name: run[name] for name in DEFINITIONS if name in run}
    shares = {} if "class_accuracy" in wrong else run.get("class_accuracy") or {}
    shares = {f"class_accuracy of {name}": value for name, value in shares.items()}
    wrong += [name for name, value in (figures | shares).items() if type(value) not in (int, float) or not math.isfinite(value)]
    if wrong:
        raise RunError(f"{path} was edited or damaged, see {', '.join(wrong)}: measure the run again with evaluate.py --overwrite")
    return run | {name: float(value) for name, value in figures.items()}


def check_belonging(runs):
    """Raise RunError unless all runs of a seed start from one original, forget one set and were measured in one way.

    Runs that do not say so agree with all.
    """
    kinds = {}
    for run in runs:
        shared = {fault: run.get(name) for name, fault in BELONGS.items()}
        measured = {name: (run.get("how") or {}).get(name) for name in MEASURED}
        measured |= {name: run.get(name) for name in ("classifier_sha", "reference_sha")}
        shared |= {f"were measured with different values of {name}": value for name, value in measured.items()}
        for fault, value in shared.items():
            place = (run["seed"],) if fault == BELONGS["parent_sha"] else run["place"]
            if value is not None:
                kinds.setdefault((fault, place), {}).setdefault(str(value), []).append(run["path"])
    for (fault, (seed, *_)), found in kinds.items():
        if len(found) > 1:
            which = " against ".join(", ".join(paths) for paths in found.values())
            raise RunError(f"these runs of seed {seed} {fault} and cannot stand in one table: {which}")


def check_copies(runs):
    """Raise RunError where one model stands for two: there is no noise between them. Runs of earlier versions do not tell their weights."""
    known = {}
    for run in (run for run in runs if run["method"] != "original"):
        weights = run.get("weights_sha")
        retrained = run["method"] == "retrain" and weights  # whatever its original
        place = () if retrained else (*run["place"], options_of(run))
        figures = weights or tuple(run.get(name) for name in DEFINITIONS if name != "RTE")
        if (other := known.setdefault((run["method"], *place, figures), run["path"])) != run["path"]:
            advice = "train each with a --seed of its own" if retrained else "remove one of them"
            raise RunError(f"{other} and {run['path']} are one {'retrained ' * bool(retrained)}model, not two: {advice}")


def check_complete(rows, runs):
    """Raise RunError unless all rows have the same seeds, as often, and with a row per setting all methods as many: equal tries.

    Retrain may have more runs of a seed: they make the noise floor.
    """
    lacking = [f"{name} lacks {missing}" for name, missing in missing_places(rows, runs)]
    unlearned = [row for row in rows if row["method"] not in ("original", "retrain")]
    for place in dict.fromkeys(run["place"] for run in runs):
        counts = {row["name"]: count for row in unlearned if (count := places_of(row, runs)[place])}
        fewer = {name: count for name, count in counts.items() if count < max(counts.values())}
        lacking += [f"{name} has {count} runs of {said(place)}, not {max(counts.values())}" for name, count in fewer.items()]
    counts = Counter(row["method"] for row in unlearned)
    if len(set(counts.values())) > 1:
        lacking += [f"{method} has {count} settings" for method, count in counts.items()]
    if lacking:
        raise RunError(f"{'; '.join(lacking)}: complete the runs, or pass --incomplete")


def runs_of(row, runs):
    return [run for run in runs if run["method"] == row["method"] and options_of(run) == row["options"]]


def places_of(row, runs):
    """How many runs a row has of each place."""
    return Counter(run["place"] for run in runs_of(row, runs))


def is_repeated(row, runs):
    """Whether one model counts as several runs of one task: seeds may share an original, and methods without chance one result."""
    known = [(run["weights_sha"], run["facts"].get("forgotten")) for run in runs_of(row, runs) if run.get("weights_sha")]
    return len(set(known)) < len(known)


def said(place):
    """A place in words."""
    return f"seed {place[0]}" + "".join(f" ({forgotten})" for forgotten in place[1:])


def missing_places(rows, runs):
    """[(name of a row, which places of other rows it lacks)]. One original may serve all seeds, several may not stand for more."""
    shared = len({run["parent_sha"] for run in runs if run.get("parent_sha")}) < 2
    asked = [row for row in rows if row["method"] != "original" or not shared]
    wanted = {run["place"] for run in runs if run["method"] != "original"}
    lacking = [(row["name"], sorted(wanted - places_of(row, runs).keys())) for row in asked]
    return [(name, ", ".join(map(said, places))) for name, places in lacking if places]


def fact_names(runs):
    return dict.fromkeys(name for run in runs for name in run["facts"])


def facts_of(runs, name):
    """The different values of a fact; a run that does not state it agrees with all."""
    return sorted({str(run["facts"][name]) for run in runs if run["facts"].get(name)})


def summarise(runs, by_options):
    """Return (rows of table.json, noise floor or None): mean, sd (0 for one run) and gap to Retrain of each metric."""
    settings = {}
    for run in runs:
        settings.setdefault((run["method"], options_of(run)), []).append(run)
    labels = [method for method, _ in settings]
    several = sorted({method for method in labels if labels.count(method) > 1})
    if several and not by_options:
        raise RunError(
            f"runs of {', '.join(several)} differ in their flags: pass --by_options for a row each, or name a folder that holds one setting"
        )
    if labels.count("retrain") > 1:
        raise RunError("runs of retrain differ in their flags: there can be one reference. Name a folder that holds one of them")
    retrain = next((group for (method, _), group in settings.items() if method == "retrain"), None)
    if retrain:
        numbers = [name for name in retrain[0] if isinstance(retrain[0][name], float) and all(name in run for run in retrain)]
        means = {name: statistics.fmean(run[name] for run in retrain) for name in numbers}
        for run in runs:
            run |= derive(run, means)
    compared = [name for name in GAP_COLUMNS if retrain and all(name in run for run in retrain)]
    retrains, rows = retrains_of(runs), []
    for (method, options), group in settings.items():
        row = {"name": f"{method} {options}" if labels.count(method) > 1 else method, "method": method, "options": options}
        row |= {"runs": len(group), "seeds": sorted(run["seed"] for run in group)}
        shared = [name for name in group[0] if all(name in run for run in group)]  # a mean over some runs would pass for one over all
        for name in (name for name in shared if name in DEFINITIONS or isinstance(group[0][name], float)):
            values = [run[name] for run in group]
            row[name] = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
            if retrain and all(name in run for run in retrain):
                row[name]["gap"] = abs(row[name]["mean"] - statistics.fmean(run[name] for run in retrain))
        gaps = [row[name]["gap"] for name in GAP_COLUMNS if "gap" in row.get(name, {})]
        row["average_gap"] = statistics.fmean(gaps) if gaps and len(gaps) == len(compared) else None
        own = [own_gap(run, retrains, compared) for run in group]
        row["gap_per_seed"] = None if None in own else statistics.fmean(own)
        if all(run.get("class_accuracy") for run in group):
            shares = [run["class_accuracy"] for run in group]
            names = [name for name in shares[0] if all(name in share for share in shares)]
            row["class_accuracy"] = {name: statistics.fmean(share[name] for share in shares) for name in names}
        rows.append(row)
    order = list(dict.fromkeys(["original", "retrain", *METHODS, *labels]))
    plain = {label: label.split(" (")[0] for label in labels}  # a run under a control mask follows its method
    gap = "gap_per_seed" if by_options else "average_gap"  # in a mean over seeds, too much and too little forgotten would cancel out
    rows.sort(key=lambda row: (order.index(plain[row["method"]]), row["method"] not in METHODS, row[gap] or 0))
    return rows, noise_floor(retrain)


def retrains_of(runs):
    """{place: its runs of Retrain}."""
    found = {}
    for run in runs:
        if run["method"] == "retrain":
            found.setdefault(run["place"], []).append(run)
    return found


def own_gap(run, retrains, columns):
    """Mean distance over `columns` of a run's numbers to those of the Retrain of its place. None where one is missing."""
    there = retrains.get(run["place"], [])
    if not (there and columns and all(name in one for name in columns for one in (run, *there))):
        return None
    return statistics.fmean(abs(run[name] - statistics.fmean(retrain[name] for retrain in there)) for name in columns)


def options_of(run):
    return " ".join(f"--{name} {value}" for name, value in run["options"].items() if value is not None)


def best_settings(runs):
    """For each method and seed, the runs of the setting with the smallest gap per seed on all other seeds: no run chooses itself.

    Raises RunError without Retrain, or with one seed.
    """
    chosen = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        rows, _ = summarise([run for run in runs if run["seed"] != seed], by_options=True)
        if not any(row["method"] == "retrain" for row in rows):
            raise RunError("--best needs runs of retrain, and two or more seeds: the other seeds' gaps tell which setting is the best")
        if lacking := [row["name"] for row in rows if row["gap_per_seed"] is None]:
            raise RunError(f"--best needs all metrics of retrain: {lacking[0]} lacks one")
        best = {row["method"]: row["options"] for row in sorted(rows, key=lambda row: -row["gap_per_seed"])}
        of_seed = [run for run in runs if run["seed"] == seed]
        chosen += [run | {"options": {}} for run in of_seed if run["method"] == "original" or options_of(run) == best.get(run["method"])]
    return chosen


def noise_floor(retrain):
    """Average gap between pairs of retrained models, of one class where there are several; None without such a pair."""
    columns = [name for name in GAP_COLUMNS if all(name in run for run in retrain or ())]
    pairs = [pair for pair in itertools.combinations(retrain or (), 2) if pair[0]["place"][1:] == pair[1]["place"][1:]]
    return statistics.fmean(abs(a[name] - b[name]) for a, b in pairs for name in columns) if pairs and columns else None


def interval(differences):
    """(mean, low, high, p) of numbers, one for each seed, three or more of them.

    Student's 95 % interval of their mean, and his test, two-sided, of a mean of 0.
    """
    from scipy import stats  # here, since every script imports this file

    mean, error = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    t = stats.t(len(differences) - 1)
    half = float(t.ppf(0.975)) * error
    return mean, mean - half, mean + half, 2 * float(t.sf(abs(mean) / error)) if error else float(mean == 0)


def holm(values):
    """p-values corrected for their number: the chance that any below 0.05 is a false alarm is at most 5 % (Holm 1979)."""
    ordered = sorted(values)
    corrected = itertools.accumulate(((len(values) - i) * p for i, p in enumerate(ordered)), max)
    place = dict(zip(ordered, corrected, strict=True))
    return [min(1.0, place[p]) for p in values]


def compare(rows, runs, against, columns):
    """{method: (gap to the Retrain of the same seed, what it differs by from that of `against`, low, high, p)}, see interval.

    The gap is the mean over `columns`. Several runs of a seed are averaged first, and so are several classes: they share an original.
    Empty without `against`, without Retrain, or with fewer than three seeds.
    """
    found, retrains = {}, retrains_of(runs)
    for run in runs:
        if (gap := own_gap(run, retrains, columns)) is not None:
            found.setdefault(run["method"], {}).setdefault(run["place"], []).append(gap)
    gaps = {method: {place: statistics.fmean(several) for place, several in places.items()} for method, places in found.items()}
    tests = {}
    for method in (row["method"] for row in rows if row["method"] in gaps and row["method"] not in ("retrain", against)):
        of_seed = {}
        for place in sorted(gaps[method].keys() & gaps.get(against, {}).keys()):
            of_seed.setdefault(place[0], []).append(gaps[method][place] - gaps[against][place])
        if len(of_seed) > 2:
            tests[method] = (statistics.fmean(gaps[method].values()), *interval([*map(statistics.fmean, of_seed.values())]))
    return tests


def paired_cells(rows, runs, against):
    """The comparison of average gaps as rows of texts, headers first; nothing where there is none."""
    tests = compare(rows, runs, against, GAP_COLUMNS)
    cells = [["method", "gap per seed", f"minus {against}", "95 % confidence interval", "p, Holm", "nearer to retrain"]]
    for (method, (gap, mean, low, high, _)), p in zip(tests.items(), holm([p for *_, p in tests.values()]), strict=True):
        nearer = method if high < 0 else against if low > 0 else "undecided"
        nearer += " (uncorrected)" if low * high > 0 and p >= 0.05 else ""
        cells.append([method, f"{gap:.2f}", f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.3f}", nearer])
    return cells if tests else []


def metric_cells(rows, runs, against):
    """The comparison for each metric that should be close to Retrain's, as rows of texts, headers first; nothing where there is none."""
    columns = [name for name in (*COLUMNS, *MORE) if name in GAP_COLUMNS or DEFINITIONS[name][1].startswith("close to Retrain")]
    found = {name: tests for name in columns if (tests := compare(rows, runs, against, [name]))}
    cells = [["method", *found]]
    for method in dict.fromkeys(method for tests in found.values() for method in tests):
        tests = [tests.get(method) for tests in found.values()]
        cells.append([method, *(f"{t[1]:+.1f} ({t[2]:+.1f} to {t[3]:+.1f}){' *' * (t[2] * t[3] > 0)}" if t else "" for t in tests)])
    return cells if found else []


def measured_columns(rows, columns=COLUMNS):
    return [name for name in columns if any(name in row for row in rows)]


def more_cells(rows):
    """The second table as rows of texts, headers first; nothing where none of its columns was measured."""
    names = measured_columns(rows, MORE)
    return [["method", *names], *([row["name"], *(cell(row, name) for name in names)] for row in rows)] if names else []


def table_cells(rows):
    """The table as rows of texts, headers first."""
    shown = [name for name in measured_columns(rows) if name != "RTE"]
    several = any(row["method"] not in ("original", "retrain") and row["name"] != row["method"] for row in rows)
    gaps = ["average_gap", *["gap_per_seed"] * several] if any(row["average_gap"] is not None for row in rows) else []
    time = any("RTE" in row for row in rows)
    cells = [["method", "runs", *shown, *(name.replace("_", " ") for name in gaps), *["RTE, min"] * time]]
    for row in rows:
        last = ["" if row[name] is None else f"{row[name]:.2f}" for name in gaps] + [cell(row, "RTE")] * time
        cells.append([row["name"], str(row["runs"]), *(cell(row, name) for name in shown), *last])
    return cells


def cell(row, column):
    if column not in row:
        return ""
    value = row[column]
    text = f"{value['mean']:.2f}" + (f"±{value['sd']:.2f}" if row["runs"] > 1 else "")
    return text + (f" ({value['gap']:.2f})" if "gap" in value and column in GAP_COLUMNS else "")


def class_cells(rows):
    """Accuracy on each class as rows of texts, headers first; nothing where it was not measured."""
    measured = [row for row in rows if "class_accuracy" in row]
    names = list(dict.fromkeys(name for row in measured for name in row["class_accuracy"]))
    shares = [[f"{row['class_accuracy'][name]:.1f}" if name in row["class_accuracy"] else "" for name in names] for row in measured]
    return [["method", *names], *([row["name"], *cells] for row, cells in zip(measured, shares, strict=True))] if measured else []


def caption(rows, floor, runs, best=False):
    """Sentences that say what was measured, and how to read the cells."""
    facts = "; ".join(f"{name}: {' or '.join(values)}" for name in fact_names(runs) if (values := facts_of(runs, name)))
    lines = [f"{facts}; seeds: {', '.join(map(str, sorted({run['seed'] for run in runs})))}."]
    machines = sorted({run["measured_on"] for run in runs if run.get("measured_on")})
    reading = ["Mean ± standard deviation over runs."] if any(row["runs"] > 1 for row in rows) else ["One run per row."]
    if any(row["average_gap"] is not None for row in rows):
        reading.append("In brackets: gap to the mean of retrain.")
    lines.append(" ".join([f"Unlearned on {' and '.join(machines)}."] * bool(machines) + reading))
    if floor is not None:
        count = next(row["runs"] for row in rows if row["method"] == "retrain")
        lines.append(
            f"Noise floor: two retrained models have an average gap of {floor:.2f}, and means over {count} runs one of about "
            f"{floor / math.sqrt(count):.2f}. That is the usual size of the noise, not the largest."
        )
    if repeated := [row["name"] for row in rows if is_repeated(row, runs)]:
        lines.append(f"Runs of {', '.join(repeated)} are in part one model, so their ± is not that between models.")
    if best:
        lines.append("Each method has, for each seed, the setting that was best on all other seeds.")
    return lines + [f"{name} was not measured for {missing}." for name, missing in missing_places(rows, runs)]


def definitions(rows):
    names = measured_columns(rows, (*COLUMNS, *MORE))
    return [f"- {name}: {DEFINITIONS[name][0]}. Better: {DEFINITIONS[name][1]}." for name in names]


PAIRED = "Gap per seed: mean distance of a run's numbers to those of Retrain of the same seed. A method is nearer where the interval of "
PAIRED += "the differences excludes 0. About one interval in 20 misses the true value by chance. So p is corrected for their number "
PAIRED += "(Holm), and a verdict with p of 0.05 or more is marked as uncorrected."
EACH = "The same for each metric alone, with the 95 % interval: above 0 is further from Retrain than {}. * marks the intervals that "
EACH += "exclude 0. They are not corrected for their number."
CLASSES = "Share of each class's samples that the classifier recognises as that class, %. A drop in a retained class is collateral damage."


def markdown_table(cells):
    """Lines of a Markdown table of rows of texts, headers first."""
    head, *rows = (f"| {' | '.join(row)} |" for row in cells)
    return [head, "|" + "---|" * len(cells[0]), *rows]


def markdown(rows, captions, further):
    """table.md. further: [(heading or "", cells)] of the tables that follow the first one."""
    lines = [*markdown_table(table_cells(rows)), "", *captions]
    for heading, cells in further:
        lines += ["", *[heading, ""] * bool(heading), *markdown_table(cells)]
    return "\n".join([*lines, "", *definitions(rows)]) + "\n"


def aligned(cells):
    """Rows of texts in columns of equal width, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def plot(rows, floor, path):
    """Dots with standard deviations for each metric, Retrain as a line, and bars of the average gap."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = [name for name in measured_columns(rows) if name != "RTE"]
    size = (2.6 * (len(columns) + 1), 0.34 * len(rows) + 1.4)
    figure, axes = pyplot.subplots(1, len(columns) + 1, figsize=size, sharey=True, layout="constrained")
    for axis, column in zip(axes, columns, strict=False):
        measured = [(place, row[column]["mean"], row[column]["sd"]) for place, row in enumerate(rows) if column in row]
        places, means, errors = zip(*measured, strict=True)
        axis.errorbar(means, places, xerr=errors, fmt="o", color="tab:blue", capsize=2, markersize=4)
        axis.set_title(f"{column.replace('_', ' ')}\n(better: {DEFINITIONS[column][1]})", fontsize=9)
        for row in rows:
            if row["method"] == "retrain" and column in row:
                axis.axvline(row[column]["mean"], color="tab:red", linewidth=1)
    colors = ["tab:orange" if row["method"] == "salun" else "tab:blue" for row in rows]
    axes[-1].barh(range(len(rows)), [row["average_gap"] or 0 for row in rows], color=colors)
    axes[-1].set_title("average gap to retrain\n(better: low)", fontsize=9)
    if floor is not None:
        count = next(row["runs"] for row in rows if row["method"] == "retrain")
        axes[-1].axvline(floor / math.sqrt(count), color="tab:gray", linestyle="--", linewidth=1, label=f"noise floor of {count}-run means")
        axes[-1].legend(fontsize=8)
    axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes[0].invert_yaxis()
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
    write_whole(path, lambda partial: figure.savefig(partial, format="png", dpi=110))
    pyplot.close(figure)


def main(argv=None):
    args = parse(argv)
    if lacking := [name for name in (*COLUMNS, *MORE) if name not in DEFINITIONS]:
        raise RunError(f"metrics.py shows {', '.join(lacking)} and does not say in DEFINITIONS what that is: add a line")
    runs = collect(args.folder, args.over_classes)
    rows, floor = summarise(runs, args.by_options or args.best)
    if not args.incomplete:
        check_complete(rows, runs)
    if args.best:
        runs = best_settings(runs)
        rows, floor = summarise(runs, by_options=False)
    methods = [row["method"] for row in rows if row["method"] not in ("original", "retrain")]
    if args.against not in (None, *methods):
        raise RunError(f"--against {args.against} is no method of the table: it has {', '.join(methods)}")
    against = args.against or "salun"
    paired = [] if args.by_options else paired_cells(rows, runs, against)
    if args.against and not paired:
        raise RunError("--against needs a row per method, Retrain, and three or more seeds")
    each = metric_cells(rows, runs, against) if paired else []
    further = [(CLASSES, class_cells(rows)), ("", more_cells(rows)), (PAIRED, paired), (EACH.format(against), each)]
    further = [(heading, cells) for heading, cells in further if cells]
    name = "best" if args.best else "table"
    captions = caption(rows, floor, runs, args.best)
    text = markdown(rows, captions, further)
    write_whole(args.folder / f"{name}.md", lambda partial: partial.write_text(text, encoding="utf-8"))
    write_json(args.folder / f"{name}.json", {"columns": measured_columns(rows), "noise_floor": floor, "rows": rows})
    plot(rows, floor, args.folder / f"{name}.png")
    print("\n".join([*aligned(table_cells(rows)), "", *captions]))
    for heading, cells in further:
        print("\n".join(["", *[heading] * bool(heading), *aligned(cells)]))
    print("\n".join(["", *definitions(rows), f"written: {args.folder.resolve()}/{name}.md, {name}.json, {name}.png"]))


if __name__ == "__main__":
    cli.run(main)
