"""Draw method.png, the schematic of SalUn on the front page, and write results.md, the small table there, from the folders' results.

    python Images/front_page.py

results.md has four rows per task, out of the committed results/*/table.json: original, Retrain, SalUn and the baseline with the
smallest average gap to Retrain.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = {  # task: (folder of results, columns to show)
    "Classification: CIFAR-10, 10 % of the images": ("Classification/results/evidence/random10", ("UA", "RA", "TA", "MIA")),
    "Classification: digits, 10 % of the images": ("Classification/results/digits", ("UA", "RA", "TA", "MIA")),
    "DDPM: CIFAR-10, airplanes": ("DDPM/results/cifar10", ("UA", "remaining_accuracy")),
    "DDPM: digits, the 3": ("DDPM/results/digits", ("UA", "remaining_accuracy")),
    "SD at toy size: digits, three": ("SD/results/digits", ("UA", "remaining_accuracy")),
}


def results():
    """The table of the front page, Markdown."""
    lines = ["| task | method | runs | figures, % | average gap to Retrain |", "|---|---|---|---|---|"]
    for task, (folder, columns) in RESULTS.items():
        rows = {row["method"]: row for row in json.loads((ROOT / folder / "table.json").read_text())["rows"]}
        baselines = [row for name, row in rows.items() if name not in ("original", "retrain") and not name.startswith("salun")]
        best = min(baselines, key=lambda row: row["average_gap"])["method"]
        for method in ("original", "retrain", "salun", best):
            row = rows[method]
            figures = ", ".join(f"{name.replace('_', ' ')} {cell(row, name)}" for name in columns)
            shown = task if method == "original" else ""
            name = f"{method} (baseline with the smallest gap)" if method == best else method
            lines.append(f"| {shown} | {name} | {row['runs']} | {figures} | {row['average_gap']:.2f} |")
    return "\n".join(lines) + "\n"


def cell(row, name):
    return f"{row[name]['mean']:.1f}" + (f"±{row[name]['sd']:.1f}" if row["runs"] > 1 else "")


def schematic(path):
    """Gradient of the forget loss -> mask of its largest half -> relabel, moving only the salient weights."""
    draw = np.random.default_rng(3)
    saliency = np.abs(draw.normal(size=(12, 12)))
    mask = saliency >= np.median(saliency)
    change = np.where(mask, draw.normal(size=(12, 12)), 0)
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.9))
    panels = (
        (saliency, "viridis", "1. Saliency\n|gradient|, forget set", "every weight of the model"),
        (mask, "gray", "2. Mask\nthe largest half", "white: salient, may change\nblack: frozen, bit by bit"),
        (change, "RdBu", "3. Unlearn\nonly salient weights change", "forget set: another label\nretain set: its own label"),
    )
    for axis, (values, colors, title, below) in zip(axes, panels, strict=True):
        axis.imshow(values, cmap=colors, interpolation="nearest")
        axis.set_title(title, fontsize=12)
        axis.set_xlabel(below, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[:2]:
        axis.annotate("", (1.18, 0.5), (1.02, 0.5), "axes fraction", annotation_clip=False, arrowprops={"arrowstyle": "-|>", "lw": 2.5})
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    schematic(ROOT / "Images" / "method.png")
    (ROOT / "Images" / "results.md").write_text(results(), encoding="utf-8")
    print("written: Images/method.png, Images/results.md")
