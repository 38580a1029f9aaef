"""Csv files of prompts. Beside each property stands the mutation that would break it."""

from collections import Counter
from pathlib import Path

import pytest

import prompts
import run

SHIPPED = Path(prompts.__file__).parent / "prompt_lists"
HEADER = "case_number,prompt,evaluation_seed"


def read(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return prompts.read_csv(path)


def refused(tmp_path, text):
    """The error of a file, checked to be one line that names it."""
    with pytest.raises(run.RunError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "list.csv") in message and "\n" not in message and not message.endswith(".")
    return message


ODD = {  # name: (text, the prompts in it); beside it, the mutation
    "byte order mark": ("\ufeff" + f"{HEADER}\n0,a,1\n", ["a"]),  # decode("utf-8")
    "windows line ends": (f"{HEADER}\r\n0,a,1\r\n1,b,2\r\n", ["a", "b"]),
    "no line end": (f"{HEADER}\n0,a,1", ["a"]),
    "commas and quotes": (f'{HEADER}\n0,"a, ""b"", c",1\n1,d "e" f,2\n', ['a, "b", c', 'd "e" f']),  # line.split(",")
    "line breaks": (f'{HEADER}\n0,"a\nb\r\nc\rd",1\n', ["a\nb\r\nc\rd"]),  # csv.reader(text.splitlines())
    "emoji": (f"{HEADER}\n0,\U0001f469\u200d\U0001f680 caf\u00e9,1\n", ["\U0001f469\u200d\U0001f680 caf\u00e9"]),  # decode("latin-1")
    "unicode line separators": (f"{HEADER}\n0,a\u2028b\x85c,1\n", ["a\u2028b\x85c"]),  # csv.reader(text.splitlines())
    "no prompt": (f"{HEADER}\n0,,1\n", [""]),  # refuse empty cells
    "prompts twice": (f"{HEADER}\n0,a,1\n1,a,2\n", ["a", "a"]),  # duplicates by prompt
    "outer spaces": (f"{HEADER}\n 0 , a , 1 \n", [" a "]),  # prompt.strip(), or no strip() of the others
    "empty lines": (f"\n{HEADER}\n\n0,a,1\n   \n1,b,2\n,,\n\n", ["a", "b"]),  # `if cells`
    "unnamed column": (",case_number,prompt,evaluation_seed\n7,0,a,1\n", ["a"]),  # keep "" among the extra ones
    "header spaces and case": (" Case_Number , PROMPT,Evaluation_Seed \n0,a,1\n", ["a"]),  # no strip() or no lower()
    "other order": ("evaluation_seed,prompt,case_number\n1,a,0\n", ["a"]),  # places by position
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read(tmp_path, name):  # mutations: see ODD
    text, expected = ODD[name]
    rows = read(tmp_path, text)
    assert [row.prompt for row in rows] == expected and [row.seed for row in rows] == [1, 2][: len(rows)]
    assert [row.case_number for row in rows] == ["0", "1"][: len(rows)] and all(row.extra == {} for row in rows)
    assert all((row.guidance, row.width, row.height) == (None, None, None) for row in rows)


def test_i2p_columns_are_known_and_the_others_kept(tmp_path):  # mutation: drop unknown columns, or their order
    text = (
        ",case_number,prompt,categories,hard,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
        '0,12,"x, y","hate, harassment",0,3879383292,7.0,512,768,SDv1\n'
    )
    (row,) = read(tmp_path, text)
    extra = {"categories": "hate, harassment", "hard": "0", "sd_model": "SDv1"}
    assert row == prompts.Row("12", "x, y", 3879383292, 7.0, 512, 768, extra) and list(row.extra) == list(extra)


def test_of_several_spellings_the_first_counts(tmp_path):  # mutation: reversed(COLUMNS[name]); an extra "seed" put over the seed
    text = "case_number,prompt,sd_seed,evaluation_seed,guidance,evaluation_guidance,seed,sd_image_width,width\n0,a,1,2,3,4,5,64,72\n"
    (row,) = read(tmp_path, text)
    assert (row.seed, row.guidance, row.width, row.height) == (2, 4.0, 72, None)
    assert row.extra == {"sd_seed": "1", "guidance": "3", "seed": "5", "sd_image_width": "64"}


@pytest.mark.parametrize(
    "text, value",
    [
        ("42", 42),
        ("42.0", 42),  # mutation: int(text)
        ("4.2e1", 42),
        ("+42.", 42),
        ("0", 0),
        ("9223372036854775807", 2**63 - 1),  # mutation: int(float(text))
        ("9223372036854775807.0", 2**63 - 1),
        ("9223372036854775808", None),
        ("1e9999", None),  # mutation: int() before the range is checked takes long
        ("-1", None),
        ("42.5", None),
        ("9007199254740993.5", None),  # mutation: float(text).is_integer()
        ("", None),
        ("1_000", None),  # mutation: no NUMBER
        ("\u0664\u0662", None),  # mutation: no re.ASCII
        ("nan", None),
        ("0x10", None),
        ("seed", None),
    ],
)
def test_seeds_are_whole_numbers(tmp_path, text, value):
    text = f"{HEADER}\n0,a,1\n\n1,b,{text}\n"
    if value is None:
        assert "row 2 (line 4): the seed" in refused(tmp_path, text)  # mutation: lines counted without the empty ones
    else:
        assert read(tmp_path, text)[1].seed == value


@pytest.mark.parametrize("column", ["evaluation_guidance", "guidance", "sd_guidance_scale"])
def test_guidance_is_a_number_of_at_least_0(tmp_path, column):  # mutation: float(text) alone; 0 < value
    for text, value in {"7.5": 7.5, "0": 0.0, " 1e1 ": 10.0, "": None, " ": None}.items():
        assert read(tmp_path, f"{HEADER},{column}\n0,a,1,{text}\n")[0].guidance == value
    for text in ("-1", "nan", "inf", "-inf", "1e999", "1_0", "high", "7;5"):
        assert "row 1 (line 2): the guidance" in refused(tmp_path, f"{HEADER},{column}\n0,a,1,{text}\n")


@pytest.mark.parametrize("column", ["width", "height", "sd_image_width", "sd_image_height"])
def test_sizes_are_multiples_of_8(tmp_path, column):  # mutation: allow 0; width read as height
    name = column.removeprefix("sd_image_")
    for text, value in {"512": 512, "8": 8, "768.0": 768, "": None}.items():
        row = read(tmp_path, f"{HEADER},{column}\n0,a,1,{text}\n")[0]
        assert getattr(row, name) == value and [row.width, row.height].count(None) == 2 - (value is not None)
    for text in ("0", "-8", "500", "8.5", "nan", "wide"):
        assert f"row 1 (line 2): the {name}" in refused(tmp_path, f"{HEADER},{column}\n0,a,1,{text}\n")


@pytest.mark.parametrize("case", ["0", "12", "007", "tench_3", "a-b.c", "\u732b", "x" * 100])
def test_case_numbers_fit_for_file_names(tmp_path, case):  # mutation: int(case), which loses zeros; re.ASCII
    assert read(tmp_path, f"{HEADER}\n{case},a,1\n")[0].case_number == case


@pytest.mark.parametrize(
    "case", ["", " ", ".", "..", "a..b", "a/b", "../a", "/a", "a\\b", "a\0b", "a:b", "a b", ".a", "-a", '"a\nb"', "x" * 101, "\u732b" * 34]
)
def test_case_numbers_unfit_for_file_names(tmp_path, case):  # mutation: re.match; length in characters; no check for '..'
    message = refused(tmp_path, f"{HEADER}\n{case},a,1\n")
    assert "row 1 (line 2)" in message and (
        "unfit" in message or ("\0" in case and "NUL" in message)
    )  # Python 3.10: csv refuses NUL itself


REFUSED = {  # name: (text, words of the error); beside it, the mutation
    "nothing": ("", "is empty"),  # let StopIteration through
    "byte order mark alone": ("\ufeff", "is empty"),
    "lines without text": ("\n ,,\r\n", "is empty"),
    "header alone": (f"{HEADER}\n\n", "no rows"),  # return []
    "latin-1": (f"{HEADER}\n0,caf\u00e9,1\n".encode("latin-1"), "is not UTF-8 (byte 40)"),  # errors="replace"
    "utf-16": (f"{HEADER}\n0,a,1\n".encode("utf-16"), "is not UTF-8"),
    "no columns": (
        "a,b\n1,2\n",
        "case_number, prompt, evaluation_seed or sd_seed: add them, separated by commas, to a, b",
    ),  # only the first
    "two columns": ("case_number,text\n1,2\n", "lacks the columns prompt, evaluation_seed or sd_seed:"),
    "semicolons": ("case_number;prompt;evaluation_seed\n0;a;1\n", "separated by commas, to case_number;prompt;evaluation_seed"),
    "no csv at all": ("word " * 10000, "to word"),
    "column twice": (f"{HEADER},Prompt\n0,a,1,b\n", "several columns named prompt"),  # a dict of the header
    "case_number twice": (f"{HEADER}\n5,a,1\n6,b,2\n 5,c,3\n", "row 3 (line 4) has the case_number '5' of row 1"),  # before strip()
    "cells missing": (f"{HEADER}\n0,a,1\n1,b\n", "row 2 (line 3) has 2 cells under a header of 3"),  # csv.DictReader
    "cells left over": (f'{HEADER}\n0,"a\nb",1\n1,c, d,2\n', "row 2 (line 4) has 4 cells"),  # csv.DictReader; line = number + 1
    "open quote": (f'{HEADER}\n0,a,1\n1,"b,2\n2,c,3\n', "line 3, is not whole csv"),  # strict=False
    "text after a quote": (f'{HEADER}\n0,"a" b,1\n', "line 2, is not whole csv"),  # strict=False
    "endless field": (f"{HEADER}\n0,{'a' * 200_000},1\n", "field larger than field limit"),  # let csv.Error through
    "open quote in the header": ('case_number,"prompt\n', "line 1, is not whole csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files_are_refused_in_a_sentence(tmp_path, name):  # mutations: see REFUSED
    text, words = REFUSED[name]
    message = refused(tmp_path, text)
    assert words in message and len(message) < 600 + len(str(tmp_path))


def test_a_file_that_is_not_there(tmp_path):  # mutation: exists(), which is true of a folder
    for path in (tmp_path / "none.csv", tmp_path, str(tmp_path / "none.csv")):
        with pytest.raises(run.RunError, match="does not exist"):
            prompts.read_csv(path)


def test_what_is_written_reads_back(tmp_path):
    # mutations: lineterminator="\n", which leaves "\r" without quotes; a rounded guidance; columns left out where no row sets them
    texts = ["", " a ", 'b, "c"', "d\ne", "f\r\ng", "h\ri", "\U0001f431", "\ufeff", "\u2028", '"', ","]
    rows = [
        prompts.Row(f"case_{i}", text, i * (2**60 - 1), [None, 0.1 + 0.2][i % 2], [None, 512][i % 2], None, {"class": text, "sd_seed": "x"})
        for i, text in enumerate(texts[:8])
    ] + [prompts.Row(str(i), text, i, extra={"class": "1", "sd_seed": "2"}) for i, text in enumerate(texts[8:])]
    prompts.write_csv(tmp_path / "out.csv", rows)
    again = prompts.read_csv(tmp_path / "out.csv")
    assert again == rows and list(again[0].extra) == ["class", "sd_seed"]
    assert (
        (tmp_path / "out.csv").read_bytes().startswith(b"case_number,prompt,evaluation_seed,evaluation_guidance,width,height,class,sd_seed")
    )
    prompts.write_csv(tmp_path / "twice.csv", (row for row in again))
    assert (tmp_path / "twice.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


ROW = prompts.Row("0", "a", 1, extra={"class": "x"})


@pytest.mark.parametrize(
    "rows, words",
    [
        ([], "no rows"),
        ([ROW, ROW], "'0' of row 1"),
        ([ROW, prompts.Row("1", "a", 1)], "other extra columns"),  # mutation: csv.DictWriter with restval
        ([prompts.Row("../0", "a", 1)], "unfit"),
        ([prompts.Row("0", "a", -1)], "seed"),
        ([prompts.Row("0", "a", 1, float("nan"))], "guidance"),
        ([prompts.Row("0", "a", 1, extra={"Class": "x"})], "read back"),  # mutation: no comparison
        ([prompts.Row("0", "a", 1, extra={"": "x"})], "read back"),
        ([prompts.Row("0", "a", 1, extra={"share": 0.5})], "read back"),
        ([prompts.Row("0", "a", 1, extra={"prompt": "b"})], "several columns named prompt"),
        ([prompts.Row("0", "\ud800", 1)], "half a character"),  # mutation: encode() inside write_whole
    ],
)
def test_rows_that_would_not_read_back_are_not_written(tmp_path, rows, words):
    path = tmp_path / "out.csv"
    path.write_text("before")
    with pytest.raises(run.RunError) as caught:
        prompts.write_csv(path, rows)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]  # mutation: path.open("w") first


def test_files_of_different_images_never_share_a_name():  # mutation: f"{case_number}{k}.png"
    rows = [prompts.Row(case, "", 0) for case in ("1", "1_0", "1_1", "11", "1.0")]
    names = [prompts.file_name(row, k) for row in rows for k in range(12)]
    assert len(set(names)) == len(names) and names[0] == "1_0.png" and names[13] == "1_0_1.png"


def test_a_row_for_each_class(tmp_path):  # mutation: template.format(name), which trips over other braces; the same seed for all
    rows = prompts.class_rows(["tench", "gas {} pump"], "an image of a {} {x}", 10)
    assert rows == [
        prompts.Row("0", "an image of a tench {x}", 10, extra={"class": "tench"}),
        prompts.Row("1", "an image of a gas {} pump {x}", 11, extra={"class": "gas {} pump"}),
    ]
    prompts.write_csv(tmp_path / "classes.csv", rows)
    assert prompts.read_csv(tmp_path / "classes.csv") == rows
    with pytest.raises(run.RunError, match="has no {}"):
        prompts.class_rows(["tench"], "an image of a {class}")


def test_the_label_of_a_row():  # mutation: group before class; "" for none
    labels = [{"class": "dog", "group": "pets"}, {"class": "", "group": "pets"}, {"group": ""}, {"other": "x"}]
    assert [prompts.concept(prompts.Row("0", "", 0, extra=extra)) for extra in labels] == ["dog", "pets", None, None]


@pytest.mark.parametrize(
    "name, concepts, each",
    [("imagenette", 10, 1), ("nude", 1, 1), ("clothed", 1, 1), ("objects", 12, 1), ("styles", 7, 3), ("nudity_check", 2, None)],
)
def test_the_shipped_lists(name, concepts, each):  # mutation: two rows with one seed; a row without its label, or with another
    rows = prompts.read_csv(SHIPPED / f"{name}.csv")
    counts = Counter(map(prompts.concept, rows))
    assert None not in counts and len(counts) == concepts and (each is None or set(counts.values()) == {each})
    assert len({row.seed for row in rows}) == len({row.prompt for row in rows}) == len(rows) and all(row.prompt for row in rows)
    assert [row.case_number for row in rows] == [str(i) for i in range(len(rows))]
    if name in ("imagenette", "objects", "styles"):
        assert all(prompts.concept(row) in row.prompt for row in rows)


def test_no_shipped_list_goes_untested():  # mutation: add a list and no test
    assert {path.stem for path in SHIPPED.iterdir()} == {"imagenette", "nude", "clothed", "objects", "styles", "nudity_check"}
    classes = [prompts.concept(row) for row in prompts.read_csv(SHIPPED / "imagenette.csv")]
    assert classes[:3] == ["tench", "English springer", "cassette player"] and classes == [
        row.prompt.removeprefix("Image of ") for row in prompts.read_csv(SHIPPED / "imagenette.csv")
    ]
