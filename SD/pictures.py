"""Pictures of what was forgotten: before and after of one method, and all methods side by side. Pure functions of sample folders."""

from PIL import Image, ImageDraw, ImageFont

import prompts
import run

RED, BLACK, GREY = (200, 20, 20), (0, 0, 0), (110, 110, 110)
GAP = 2  # px between pictures


def open_cell(path, edge):
    """A sample as an RGB picture of `edge` px; a grey cross where there is none."""
    if not path.is_file():
        cell = Image.new("RGB", (edge, edge), "white")
        ImageDraw.Draw(cell).line([(0, 0), (edge, edge)], fill=GREY)
        return cell
    with Image.open(path) as image:
        way = Image.Resampling.NEAREST if image.width < edge else Image.Resampling.LANCZOS
        return image.convert("RGB").resize((edge, edge), way)


def cell_size(folder):
    """Edge of the cells of a folder's samples: small ones enlarged by whole pixels to about 32 px, large ones scaled down to 96."""
    with Image.open(next(folder.glob("*.png"))) as image:
        return min(96, image.width * max(1, 32 // image.width))


def write(path, canvas):
    run.write_whole(path, lambda beside: canvas.save(beside, format="PNG", optimize=True))


def is_forgotten(row, forgotten):
    return (prompts.concept(row) or "").casefold() in forgotten or row.prompt.casefold() in forgotten


def before_after(path, original, unlearned, rows, forgotten, method, columns=8):
    """A pair of strips for each prompt, `columns` seeds wide: the original's samples above, those of the same seeds after unlearning below.

    original, unlearned: folders of PNGs; rows: prompts.Rows; forgotten: classes or prompts in small letters, framed in red.
    """
    font, edge = ImageFont.load_default(12), cell_size(original)
    step, margin, head = edge + GAP, 112, 22
    half = -(-len(rows) // 2)
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
    step, margin, head = edge + GAP, 84, 22
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
