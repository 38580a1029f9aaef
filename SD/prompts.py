"""Lists of prompts as csv files: what generate_images.py draws and evaluate.py groups by.

    case_number,prompt,evaluation_seed,evaluation_guidance,width,height,class
    0,"a photo of a dog, sitting",11,7.5,512,512,dog

The first three columns are required. COLUMNS lists other spellings, those of I2P and COCO among them. Where a file has several, the
first listed counts and the others are extra. Extra columns are kept as text. Names of columns are read in lower case. A column without a
name is ignored: it is pandas' index. In I2P's own file it numbers the prompts, so name it case_number there.
"""

import csv
import io
import math
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from cli import RunError
from data import is_utf8
from files import write_whole

COLUMNS = {
    "case_number": ("case_number", "image_id"),
    "prompt": ("prompt",),
    "seed": ("evaluation_seed", "sd_seed"),
    "guidance": ("evaluation_guidance", "guidance", "sd_guidance_scale"),
    "width": ("width", "sd_image_width"),
    "height": ("height", "sd_image_height"),
}
GROUPS = ("class", "group", "artist", "profession")
EDGES = (None, *range(8, 8193, 8))  # px of an image's width or height


@dataclass(frozen=True)
class Row:
    """One prompt, empty for the null prompt. None stands for the script's default. extra: {column: text}."""

    case_number: str
    prompt: str
    seed: int
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        case = self.case_number
        named = re.fullmatch(r"\w[\w.-]*", case) and ".." not in case and len(case.encode()) <= 100
        rules = {
            "case_number": (named, "fit for a file name: up to 100 letters, digits, '_', '-' and single '.'"),
            "prompt": (is_utf8(self.prompt), "text in UTF-8"),
            "seed": (0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            "guidance": (self.guidance is None or 0 <= self.guidance < math.inf, "at least 0 and finite, or empty"),
            "width": (self.width in EDGES, "a multiple of 8 up to 8192, or empty"),
            "height": (self.height in EDGES, "a multiple of 8 up to 8192, or empty"),
        }
        for name, (fits, rule) in rules.items():
            if not fits:
                raise RunError(f"the {name} {str(getattr(self, name))[:100]!r} must be {rule}")


def read_csv(path):
    """list[Row] of a csv file in UTF-8, with or without a byte order mark."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"{path} does not exist: name a csv file of prompts")
    names, spelled, rows, seen, line = None, None, [], {}, 1
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):  # Excel ends files with ',,,'
                if names is None:
                    names = [name.strip().lower() for name in cells]
                    spelled = find_columns(names)
                else:
                    rows.append(read_row(names, cells, spelled))
                    first = seen.setdefault(rows[-1].case_number, line)
                    if first != line:  # the images of one would overwrite those of the other
                        raise RunError(f"the case_number {rows[-1].case_number!r} is that of line {first}: give each row its own")
            line = reader.line_num + 1  # where the next record starts
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8 (byte {error.start}): save it again as UTF-8") from error
    except csv.Error as error:
        raise RunError(f"{path}, line {line}: this is not valid csv ({error}); check the double quotes from there on") from error
    except RunError as error:
        raise RunError(f"{path}, line {line}: {error}") from error
    if not rows:
        raise RunError(f"{path} has no rows: write a header and at least one prompt")
    return rows


def find_columns(names):
    """{field of Row: the spelling that this header has}."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise RunError(f"there are several columns named {', '.join(twice)}: rename or remove all but one of each")
    spelled = {name: next((one for one in spellings if one in names), None) for name, spellings in COLUMNS.items()}
    missing = [" or ".join(COLUMNS[name]) for name in ("case_number", "prompt", "seed") if spelled[name] is None]
    if missing:
        known = textwrap.shorten(", ".join(filter(None, names)), 300)  # any text file may have got here, with a first line of any length
        raise RunError(f"the header lacks {', '.join(missing)}: add them, separated by commas, to {known}")
    return spelled


def read_row(names, cells, spelled):
    """A Row of the cells under a header."""
    if len(cells) != len(names):
        raise RunError(f"{len(cells)} cells stand under a header of {len(names)}: put prompts with commas in double quotes")
    cells, numbers = dict(zip(names, cells, strict=True)), {}
    for name, convert in {"seed": int, "guidance": float, "width": int, "height": int}.items():
        text = cells.get(spelled[name], "").strip()
        try:
            if "_" in text or not text.isascii():  # int() and float() take "1_000" and the digits of any script
                raise ValueError
            if text or name == "seed":
                numbers[name] = convert(text.removesuffix(".0") if convert is int else text)  # pandas may write 42 as 42.0
        except ValueError as error:
            kind = "a whole number" if name == "seed" else "a whole number, or empty" if convert is int else "a number, or empty"
            raise RunError(f"the {name} {text[:100]!r} must be {kind}") from error
    extra = {name: text for name, text in cells.items() if name and name not in spelled.values()}
    return Row(cells[spelled["case_number"]].strip(), cells[spelled["prompt"]], **numbers, extra=extra)


def write_csv(path, rows):
    """Write rows for read_csv, with all of COLUMNS: else an extra sd_seed or sd_guidance_scale would be taken for a missing one."""
    extra = list(dict.fromkeys(name for row in rows for name in row.extra))
    text = io.StringIO(newline="")
    csv.writer(text).writerow([*(spellings[0] for spellings in COLUMNS.values()), *extra])
    csv.writer(text).writerows([*(getattr(row, name) for name in COLUMNS), *map(row.extra.get, extra)] for row in rows)
    write_whole(path, lambda partial: partial.write_bytes(text.getvalue().encode()))


def file_name(row, k):
    """Name of the k-th image of a row. No two rows share one: what stands before the last '_' is the case_number."""
    return f"{row.case_number}_{k}.png"


def class_rows(names, template, seed=0):
    """list[Row], one for each class name, which stands for {} in the template. Seeds count up from `seed`."""
    if "{}" not in template:
        raise RunError(f"the template {template!r} has no {{}} for the name of the class: write it where the name goes")
    return [Row(str(i), template.replace("{}", name), seed + i, extra={"class": name}) for i, name in enumerate(names)]


def concept(row):
    """The label that evaluation groups a row by: the first of GROUPS that it has, else None."""
    return next(filter(None, map(row.extra.get, GROUPS)), None)
