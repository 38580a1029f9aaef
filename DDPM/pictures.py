"""Pictures of what was forgotten: before and after of one method, and all methods side by side. Pure functions of sample folders."""

from PIL import Image, ImageDraw, ImageFont

import run
import sampling

RED, BLACK, GREY = (200, 20, 20), (0, 0, 0), (110, 110, 110)
GAP = 2  # px between pictures


def open_cell(folder, label, index, size):
    """A sample as an RGB picture, enlarged by whole pixels to about `size` px; a grey cross where there is none."""
    path = folder / sampling.file_name(label, index)
    if not path.is_file():
        cell = Image.new("RGB", (size, size), "white")
        ImageDraw.Draw(cell).line([(0, 0), (size, size)], fill=GREY)
        return cell
    with Image.open(path) as image:
        scale = max(1, round(size / image.width))
        return image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def cell_size(folder, size):
    """Edge of the cells that open_cell makes of a folder's samples."""
    with Image.open(next(folder.glob("*.png"))) as image:
        return image.width * max(1, round(size / image.width))


def write(path, canvas):
    run.write_whole(path, lambda beside: canvas.save(beside, format="PNG", optimize=True))


def before_after(path, original, unlearned, names, forgotten, method, columns=8, size=34):
    """A pair of strips for each class, `columns` seeds wide: the original's samples above, those of the same seeds after unlearning below.

    original, unlearned: folders of PNGs; names: classes by label; forgotten: labels, named and framed in red.
    """
    font, edge = ImageFont.load_default(12), cell_size(original, size)
    step, margin, head = edge + GAP, 92, 22
    labels, half = list(range(len(names))), -(-len(names) // 2)
    width, height = margin + columns * step + 14, 2 * step + 10
    canvas = Image.new("RGB", (2 * width, head + half * height), "white")
    pen = ImageDraw.Draw(canvas)
    text = f"each pair: above the original, below {method}, same seeds"
    pen.text((4, 4), f"{text}; in red: what was forgotten", fill=BLACK, font=font)
    for place, label in enumerate(labels):
        left, top = (place // half) * width, head + (place % half) * height
        colour = RED if label in forgotten else BLACK
        pen.text((left + 4, top + step - 8), names[label][:14], fill=colour, font=font)
        for row, folder in enumerate((original, unlearned)):
            for index in range(columns):
                canvas.paste(open_cell(folder, label, index, size), (left + margin + index * step, top + row * step))
        if label in forgotten:
            pen.rectangle([left + margin - 3, top + step - 3, left + margin + columns * step, top + 2 * step], outline=RED, width=2)
    write(path, canvas)


def side_by_side(path, folders, names, forgotten, columns=3, size=34):
    """A row for each method ({name: folder}), `columns` samples of every class, the forgotten ones framed in red."""
    font, edge = ImageFont.load_default(12), cell_size(next(iter(folders.values())), size)
    step, margin, head = edge + GAP, 84, 22
    block = columns * step + 8
    canvas = Image.new("RGB", (margin + len(names) * block, head + len(folders) * (step + 4) + 4), "white")
    pen = ImageDraw.Draw(canvas)
    for label, name in enumerate(names):
        left = margin + label * block
        pen.text((left, 4), name[: max(3, block // 8)], fill=RED if label in forgotten else BLACK, font=font)
        for row, (method, folder) in enumerate(folders.items()):
            top = head + row * (step + 4)
            pen.text((4, top + edge // 2 - 8), method, fill=BLACK, font=font)
            for index in range(columns):
                canvas.paste(open_cell(folder, label, index, size), (left + index * step, top))
        if label in forgotten:
            pen.rectangle([left - 4, head - 4, left + columns * step + 1, head + len(folders) * (step + 4)], outline=RED, width=2)
    write(path, canvas)
