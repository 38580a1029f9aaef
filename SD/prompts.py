"""Lists of prompts as csv files: what generate_images.py draws and evaluate.py groups by.

    case_number,prompt,evaluation_seed,evaluation_guidance,width,height,class
    0,"a photo of a dog, sitting",11,7.5,512,512,dog

The first three columns are required. Other spellings of a column, I2P's among them, are listed in COLUMNS; where a file has several, the
first listed counts and the others are extra. Any other column is kept, as text. A column without a name is ignored: it is pandas' index
(where it numbers the prompts, as in I2P's own file, name it case_number). Names of columns are read in lower case. Files are
UTF-8, with or without a byte order mark.
"""

import csv
import io
import math
import re
import textwrap
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import run

COLUMNS = {
    "case_number": ("case_number",),
    "prompt": ("prompt",),
    "seed": ("evaluation_seed", "sd_seed"),
    "guidance": ("evaluation_guidance", "guidance", "sd_guidance_scale"),
    "width": ("width", "sd_image_width"),
    "height": ("height", "sd_image_height"),
}
REQUIRED = ("case_number", "prompt", "seed")
# Narrower than float() and Decimal(), which take "nan", "1_000" and the digits of any script.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One prompt. case_number: safe as part of a file name; prompt: empty for none; None: the script's default; extra: {column: text}."""

    case_number: str
    prompt: str
    seed: int
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    extra: dict = field(default_factory=dict)


def read_csv(path):
    """list[Row] of a csv file. Raises RunError, with file, row (1 is below the header) and line, for anything amiss."""
    path = Path(path)
    if not path.is_file():
        raise run.RunError(f"{path} does not exist: name a csv file of prompts")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise run.RunError(f"{path} is not UTF-8 (byte {error.start}): save it again as UTF-8") from error
    return parse(text, path)


def write_csv(path, rows):
    """Write rows in the same format, the six columns of COLUMNS first. Raises RunError for rows that would not read back as they are."""
    path, rows = Path(path), list(rows)
    extra = list(rows[0].extra) if rows else []
    odd = next((row for row in rows if set(row.extra) != set(extra)), None)
    if odd is not None:
        raise run.RunError(
            f"could not write {path}: case_number {odd.case_number!r} has other extra columns than the first; give all the same"
        )
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    # All six, even where empty: else an extra sd_seed or sd_guidance_scale would be taken for the missing one.
    writer.writerow([*(spellings[0] for spellings in COLUMNS.values()), *extra])
    writer.writerows([*(getattr(row, name) for name in COLUMNS), *(row.extra[name] for name in extra)] for row in rows)
    text = buffer.getvalue()
    for row, again in zip(rows, parse(text, f"{path}, as it would be written"), strict=True):
        if row != again:
            raise run.RunError(f"could not write {path}: {row} would be read back as {again}; make them the same")
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise run.RunError(f"could not write {path}: {error.object[error.start]!r} is half a character; remove it") from error
    run.write_whole(path, lambda beside: beside.write_bytes(content))


def parse(text, path):
    """list[Row] of the text of a csv file; `path` is named in errors."""
    numbered = records(text, path)
    _, header = next(numbered, (0, None))
    if header is None:
        raise run.RunError(f"{path} is empty: it needs a header and at least one row")
    places = columns(header, path)
    rows, seen = [], {}
    for number, (line, cells) in enumerate(numbered, 1):
        where = f"{path}, row {number} (line {line})"
        if len(cells) != len(header):
            raise run.RunError(
                f"{where} has {len(cells)} cells under a header of {len(header)}: put prompts with commas or line breaks in double quotes"
            )
        row = read_row({name: cells[place] for name, place in places.items()}, where)
        if row.case_number in seen:
            raise run.RunError(
                f"{where} has the case_number {row.case_number!r} of row {seen[row.case_number]}, "
                "and its images would overwrite those: give each row its own"
            )
        seen[row.case_number] = number
        rows.append(row)
    if not rows:
        raise run.RunError(f"{path} has a header and no rows: add at least one prompt")
    return rows


def records(text, path):
    """Yield (line a record starts in, its cells), skipping those without content, such as Excel's ',,,' at the end."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # newline="": line breaks within a prompt stay what they are
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise run.RunError(f"{path}, line {line}, is not whole csv ({error}): check the double quotes from there on") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def columns(header, path):
    """{field of Row, or name of an extra column: place} from the cells of the header."""
    names = [name.strip().lower() for name in header]
    found = [name for name in names if name]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise run.RunError(f"{path} has several columns named {', '.join(twice)}: rename or remove all but one of each")
    taken = {name: next((spelling for spelling in COLUMNS[name] if spelling in found), None) for name in COLUMNS}
    missing = [" or ".join(COLUMNS[name]) for name in REQUIRED if taken[name] is None]
    if missing:
        known = textwrap.shorten(", ".join(found), 300)  # any text file may have got here, with a first line of any length
        raise run.RunError(f"{path} lacks the columns {', '.join(missing)}: add them, separated by commas, to {known}")
    places = {name: names.index(spelling) for name, spelling in taken.items() if spelling}
    # A tuple as the key, since an extra column may be called "seed" without being the seed.
    return places | {("extra", name): place for place, name in enumerate(names) if name and name not in taken.values()}


def read_row(cells, where):
    """A Row of {field or ("extra", name): text}; `where` begins the errors."""
    case = cells["case_number"].strip()
    if not re.fullmatch(r"\w[\w.-]*", case) or ".." in case or len(case.encode()) > 100:
        raise run.RunError(
            f"{where}: case_number {case[:100]!r} is unfit for a file name; use up to 100 letters, digits, '_', '-' and single '.'"
        )
    seed = whole(cells["seed"])
    if seed is None:
        raise run.RunError(f"{where}: the seed {cells['seed']!r} is no whole number; use one from 0 to 2**63 - 1")
    guidance = cells.get("guidance", "").strip()
    if guidance and not (NUMBER.fullmatch(guidance) and 0 <= float(guidance) < math.inf):
        raise run.RunError(f"{where}: the guidance {guidance!r} must be a number of at least 0; leave it empty for the script's default")
    sizes = {name: cells.get(name, "").strip() for name in ("width", "height")}
    for name, size in sizes.items():
        if size and (not whole(size) or whole(size) % 8):
            raise run.RunError(f"{where}: the {name} {size!r} must be a positive multiple of 8; leave it empty for the script's default")
    return Row(
        case,
        cells["prompt"],
        seed,
        float(guidance) if guidance else None,
        *(whole(size) if size else None for size in sizes.values()),
        {key[1]: text for key, text in cells.items() if isinstance(key, tuple)},
    )


def whole(text):
    """The whole number in 0 .. 2**63 - 1 that a text says, else None; "42.0", which pandas makes of 42, is one."""
    if not NUMBER.fullmatch(text.strip()):
        return None
    value = Decimal(text.strip())  # exact, where a float would round a large seed
    return int(value) if 0 <= value < 2**63 and value == value.to_integral_value() else None


def file_name(row, k):
    """Name of the k-th image of a row. No two rows share one: what stands before the last '_' is the case_number."""
    return f"{row.case_number}_{k}.png"


def class_rows(names, template, seed=0):
    """list[Row], one for each class name, which stands for {} in the template; seeds count up from `seed`."""
    if "{}" not in template:
        raise run.RunError(f"the template {template!r} has no {{}} for the name of the class: write it where the name goes")
    return [Row(str(i), template.replace("{}", name), seed + i, extra={"class": name}) for i, name in enumerate(names)]


def concept(row):
    """The label that evaluation groups a row by: its column class, else group, else None."""
    return row.extra.get("class") or row.extra.get("group") or None
