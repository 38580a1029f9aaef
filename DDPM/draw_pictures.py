"""Draw what was forgotten: before_after_<method>.png and, of all methods side by side, methods.png.

    python draw_pictures.py runs/quickstart

Takes every measured run below FOLDER, of the first seed, and writes the pictures into FOLDER.
"""

import math
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import cli
import sampling
from files import write_whole
from imagesets import open_image
from table import collect, summarise

RED, BLACK, GREY = (200, 20, 20), (0, 0, 0), (110, 110, 110)
GAP = 2  # px between pictures


def strip(folder, label, columns, edge):
    """`columns` samples of a class in a row, `edge` px each, which is a multiple of their own; grey lines where there is none."""
    row = Image.new("RGB", (columns * (edge + GAP) - GAP, edge), "white")
    for index in range(columns):
        path, left = folder / sampling.file_name(label, index), index * (edge + GAP)
        if path.is_file():
            row.paste(open_image(path).convert("RGB").resize((edge, edge), Image.Resampling.NEAREST), (left, 0))
        else:
            ImageDraw.Draw(row).line([(left, 0), (left + edge, edge)], fill=GREY)
    return row


def cell_edge(folder, size):
    """Edge of a folder's samples, enlarged by whole pixels to about `size` px."""
    width = open_image(next(folder.glob("*.png"))).width
    return width * max(1, round(size / width))


def before_after(path, original, unlearned, names, forgotten, method, columns=8, size=34):
    """A pair of strips for each class, `columns` seeds wide: the original's samples above, those of the same seeds after unlearning below.

    original, unlearned: folders of PNGs; names: classes by label; forgotten: labels, named and framed in red.
    """
    font, edge, half = ImageFont.load_default(12), cell_edge(original, size), math.ceil(len(names) / 2)
    step, margin, head = edge + GAP, 92, 22
    width, height = margin + columns * step + 14, 2 * step + 10
    canvas = Image.new("RGB", (2 * width, head + half * height), "white")
    pen = ImageDraw.Draw(canvas)
    text = f"each pair: above the original, below {method}, same seeds; in red: what was forgotten"
    pen.text((4, 4), text, fill=BLACK, font=font)
    for label, name in enumerate(names):
        left, top = label // half * width, head + label % half * height
        pen.text((left + 4, top + step - 8), name[:14], fill=RED if label in forgotten else BLACK, font=font)
        for row, folder in enumerate((original, unlearned)):
            canvas.paste(strip(folder, label, columns, edge), (left + margin, top + row * step))
        if label in forgotten:
            pen.rectangle([left + margin - 3, top + step - 3, left + margin + columns * step, top + 2 * step], outline=RED, width=2)
    write_whole(path, lambda partial: canvas.save(partial, format="PNG", optimize=True))


def side_by_side(path, folders, names, forgotten, columns=3, size=34):
    """A row for each method ({name: folder}), `columns` samples of every class, the forgotten ones framed in red."""
    font, edge = ImageFont.load_default(12), cell_edge(next(iter(folders.values())), size)
    margin = max(84, 12 + math.ceil(max(map(font.getlength, folders))))  # for the longest name
    step, head = edge + GAP, 22
    block = columns * step + 8
    canvas = Image.new("RGB", (margin + len(names) * block, head + len(folders) * (step + 4) + 4), "white")
    pen = ImageDraw.Draw(canvas)
    for label, name in enumerate(names):
        left = margin + label * block
        pen.text((left, 4), name[: max(3, block // 8)], fill=RED if label in forgotten else BLACK, font=font)
        for row, (method, folder) in enumerate(folders.items()):
            top = head + row * (step + 4)
            pen.text((4, top + edge // 2 - 8), method, fill=BLACK, font=font)
            canvas.paste(strip(folder, label, columns, edge), (left, top))
        if label in forgotten:
            pen.rectangle([left - 4, head - 4, left + columns * step + 1, head + len(folders) * (step + 4)], outline=RED, width=2)
    write_whole(path, lambda partial: canvas.save(partial, format="PNG", optimize=True))


def samples_of(run):
    """The samples that a metrics.json is about: beside it, or where its sample_path says."""
    here = Path(run["path"]) / "samples"
    return here if here.is_dir() else Path(run["sample_path"]) / "samples"


def plain(method):
    """A row's name as part of a file's: salun (random mask) is salun_random_mask."""
    return "_".join(re.findall(r"\w+", method))


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    runs = collect(args.folder)
    rows, _ = summarise(runs, by_options=True)
    first = min(run["seed"] for run in runs)
    found = {run["method"]: run for run in sorted(runs, key=lambda run: str(run["options"]), reverse=True) if run["seed"] == first}
    folders = {row["method"]: samples_of(found[row["method"]]) for row in rows if row["method"] in found}
    missing = [str(path) for path in folders.values() if not path.is_dir()]
    if missing:
        raise cli.RunError(f"the samples in {', '.join(missing)} are gone: draw them again with sample.py")
    names, forgotten = runs[0]["classes"], runs[0]["forgotten"]
    for method, samples in folders.items():
        if method != "original" and "original" in folders:
            before_after(args.folder / f"before_after_{plain(method)}.png", folders["original"], samples, names, forgotten, method)
    side_by_side(args.folder / "methods.png", folders, names, forgotten)
    print(f"written: {args.folder.resolve()}/methods.png, {len(folders) - ('original' in folders)} before_after_<method>.png")


if __name__ == "__main__":
    cli.run(main)
