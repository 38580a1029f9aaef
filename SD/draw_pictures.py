"""Draw what was forgotten: before_after_<method>.png and, of all methods side by side, methods.png.

    python draw_pictures.py runs/quickstart

Takes every measured run below FOLDER, of the first seed and the first thing forgotten, and writes the pictures into FOLDER.
"""

import math
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import cli
import prompts
from files import write_whole
from imagesets import open_image
from table import collect, summarise

RED, BLACK, GREY = (200, 20, 20), (0, 0, 0), (110, 110, 110)
GAP = 2  # px between pictures


def open_cell(path, edge):
    """A sample as an RGB picture of `edge` px; a grey cross where there is none."""
    if not path.is_file():
        cell = Image.new("RGB", (edge, edge), "white")
        ImageDraw.Draw(cell).line([(0, 0), (edge, edge)], fill=GREY)
        return cell
    image = open_image(path)
    return image.resize((edge, edge), Image.Resampling.NEAREST if image.width < edge else Image.Resampling.LANCZOS)


def cell_size(folder):
    """Edge of the cells of a folder's samples: small ones enlarged by whole pixels to about 32 px, large ones scaled down to 96."""
    width = open_image(next(folder.glob("*.png"))).width
    return min(96, width * max(1, 32 // width))


def write(path, canvas):
    write_whole(path, lambda partial: canvas.save(partial, format="PNG", optimize=True))


def is_forgotten(row, forgotten):
    return (prompts.concept(row) or "").casefold() in forgotten or row.prompt.casefold() in forgotten


def before_after(path, original, unlearned, rows, forgotten, method, columns=8):
    """A pair of strips for each prompt, `columns` seeds wide: the original's samples above, those of the same seeds after unlearning below.

    original, unlearned: folders of PNGs; rows: prompts.Rows; forgotten: classes or prompts in small letters, framed in red.
    """
    font, edge = ImageFont.load_default(12), cell_size(original)
    step, margin, head = edge + GAP, 112, 22
    half = math.ceil(len(rows) / 2)
    width, height = margin + columns * step + 14, 2 * step + 10
    canvas = Image.new("RGB", (2 * width if len(rows) > 1 else max(width, 460), head + half * height), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((4, 4), f"each pair: above the original, below {method}, same seeds; in red: what was forgotten", fill=BLACK, font=font)
    for place, row in enumerate(rows):
        left, top = (place // half) * width, head + (place % half) * height
        red = is_forgotten(row, forgotten)
        pen.text((left + 4, top + step - 8), (prompts.concept(row) or row.prompt)[:16], fill=RED if red else BLACK, font=font)
        for line, folder in enumerate((original, unlearned)):
            for k in range(columns):
                canvas.paste(open_cell(folder / prompts.file_name(row, k), edge), (left + margin + k * step, top + line * step))
        if red:
            pen.rectangle([left + margin - 3, top - 1, left + margin + columns * step, top + 2 * step], outline=RED, width=2)
    write(path, canvas)


def side_by_side(path, folders, rows, forgotten, columns=3):
    """A line for each method ({name: folder}), `columns` samples of every prompt, the forgotten ones framed in red."""
    font, edge = ImageFont.load_default(12), cell_size(next(iter(folders.values())))
    margin = max(84, 12 + math.ceil(max(map(font.getlength, folders))))  # for the longest name
    step, head = edge + GAP, 22
    block = columns * step + 8
    canvas = Image.new("RGB", (margin + len(rows) * block, head + len(folders) * (step + 4) + 4), "white")
    pen = ImageDraw.Draw(canvas)
    for place, row in enumerate(rows):
        left, red = margin + place * block, is_forgotten(row, forgotten)
        pen.text((left, 4), (prompts.concept(row) or row.prompt)[: max(3, block // 8)], fill=RED if red else BLACK, font=font)
        for line, (method, folder) in enumerate(folders.items()):
            top = head + line * (step + 4)
            pen.text((4, top + edge // 2 - 8), method, fill=BLACK, font=font)
            for k in range(columns):
                canvas.paste(open_cell(folder / prompts.file_name(row, k), edge), (left + k * step, top))
        if red:
            pen.rectangle([left - 4, head - 4, left + columns * step + 1, head + len(folders) * (step + 4)], outline=RED, width=2)
    write(path, canvas)


def plain(method):
    """A row's name as part of a file's: salun (random mask) is salun_random_mask."""
    return "_".join(re.findall(r"\w+", method))


def place(run):
    """What the runs of a picture share: the seed of their original, and what is forgotten."""
    return run["seed"], str(run["forgotten"])


def parse(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that holds the run folders")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    runs = collect(args.folder, over_classes=True)
    rows, _ = summarise(runs, by_options=True)
    unlearned = [run for run in runs if run["method"] != "original"] or runs
    first = min(unlearned, key=place)
    chosen = sorted(runs, key=lambda run: (place(run) == place(first), str(run["options"])), reverse=True)
    found = {}
    for run in chosen:  # an original from elsewhere has no seed of its own: it stands for all
        if run["method"] == "original" or place(run) == place(first):
            found.setdefault(run["method"], run)
    folders = {row["method"]: Path(found[row["method"]]["sample_path"]) / "samples" for row in rows if row["method"] in found}
    missing = [str(path) for path in folders.values() if not (path / "prompts.csv").is_file()]
    if missing:
        raise cli.RunError(f"the samples in {', '.join(missing)} are gone: draw them again with generate_images.py")
    forgotten = {name.casefold() for run in found.values() for name in run["forgotten"]}
    listed = prompts.read_csv(next(iter(folders.values())) / "prompts.csv")
    shown = sorted(listed, key=lambda row: not is_forgotten(row, forgotten))[:12]
    shown = [row for row in listed if row in shown]
    columns = min(8, int(runs[0]["num_samples"]))
    others = {method: samples for method, samples in folders.items() if method != "original" and "original" in folders}
    for method, samples in others.items():
        before_after(args.folder / f"before_after_{plain(method)}.png", folders["original"], samples, shown, forgotten, method, columns)
    side_by_side(args.folder / "methods.png", folders, shown, forgotten, min(3, columns))
    print(f"written: {args.folder.resolve()}/methods.png, {len(others)} before_after_<method>.png")


if __name__ == "__main__":
    cli.run(main)
