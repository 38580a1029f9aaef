"""Csv files of prompts."""

from collections import Counter
from pathlib import Path

import pytest

import prompts
from cli import RunError

SHIPPED = Path(prompts.__file__).parent / "prompt_lists"
HEADER = "case_number,prompt,evaluation_seed"
SIZES = ({"512": 512, "8": 8, "768.0": 768, "": None}, ("0", "-8", "500", "8.5", "nan", "wide"))
GUIDANCES = ({"7.5": 7.5, "0": 0.0, " 1e1 ": 10.0, "": None, " ": None}, ("-1", "nan", "inf", "-inf", "1e999", "1_0", "high", "7;5"))
SEEDS = (
    {"42": 42, "42.0": 42, "+42": 42, "0": 0, str(2**63 - 1): 2**63 - 1, f"{2**63 - 1}.0": 2**63 - 1, f"{2**53 + 1}.0": 2**53 + 1},
    (str(2**63), "1e9999", "-1", "42.5", f"{2**53 + 1}.5", "", "1_000", "\u0664\u0662", "nan", "0x10", "seed", "9" * 5000),
)
NUMBERS = {"seed": SEEDS, "guidance": GUIDANCES, "width": SIZES, "height": SIZES}


def read(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return prompts.read_csv(path)


ODD = {
    "byte order mark": (f"\ufeff{HEADER}\n0,a,1\n", ["a"]),
    "windows line ends": (f"{HEADER}\r\n0,a,1\r\n1,b,2\r\n", ["a", "b"]),
    "no line end": (f"{HEADER}\n0,a,1", ["a"]),
    "commas and quotes": (f'{HEADER}\n0,"a, ""b"", c",1\n1,d "e" f,2\n', ['a, "b", c', 'd "e" f']),
    "line breaks": (f'{HEADER}\n0,"a\nb\r\nc\rd\u2028e\x85f",1\n', ["a\nb\r\nc\rd\u2028e\x85f"]),
    "emoji": (f"{HEADER}\n0,\U0001f469\u200d\U0001f680 caf\u00e9,1\n", ["\U0001f469\u200d\U0001f680 caf\u00e9"]),
    "no prompt": (f"{HEADER}\n0,,1\n", [""]),
    "prompts twice": (f"{HEADER}\n0,a,1\n1,a,2\n", ["a", "a"]),
    "outer spaces": (f"{HEADER}\n 0 , a , 1 \n", [" a "]),
    "empty lines": (f"\n{HEADER}\n\n0,a,1\n   \n1,b,2\n,,\n\n", ["a", "b"]),
    "unnamed columns": (",case_number,prompt,evaluation_seed,\n7,0,a,1,8\n", ["a"]),
    "header spaces and case": (" Case_Number , PROMPT,Evaluation_Seed \n0,a,1\n", ["a"]),
    "other order": ("evaluation_seed,prompt,case_number\n1,a,0\n", ["a"]),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_read(tmp_path, name):
    """Breaks if bytes are decoded as utf-8 or latin-1, lines are split before csv sees them, or outer spaces of numbers stay."""
    text, expected = ODD[name]
    assert read(tmp_path, text) == [prompts.Row(str(i), prompt, i + 1) for i, prompt in enumerate(expected)]


def test_i2p_columns_are_known_and_the_others_kept(tmp_path):
    """Breaks if unknown columns are dropped or lose their order."""
    text = ",case_number,prompt,categories,hard,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model\n"
    (row,) = read(tmp_path, text + '0,12,"x, y","hate, harassment",0,3879383292,7.0,512,768,SDv1\n')
    extra = {"categories": "hate, harassment", "hard": "0", "sd_model": "SDv1"}
    assert row == prompts.Row("12", "x, y", 3879383292, 7.0, 512, 768, extra) and list(row.extra) == list(extra)


def test_coco_rows_are_named_by_their_image(tmp_path):
    """Breaks if image_id is no case_number, or counts where a list has both."""
    assert read(tmp_path, "image_id,prompt,evaluation_seed\n391895,,7\n")[0] == prompts.Row("391895", "", 7)
    assert read(tmp_path, "image_id,case_number,prompt,evaluation_seed\n391895,3,a,7\n")[0].case_number == "3"


def test_of_several_spellings_the_first_counts(tmp_path):
    """Breaks if the last spelling counts, or an extra column called seed is taken for the seed."""
    text = "case_number,prompt,sd_seed,evaluation_seed,guidance,evaluation_guidance,seed,sd_image_width,width\n0,a,1,2,3,4,5,64,72\n"
    extra = {"sd_seed": "1", "guidance": "3", "seed": "5", "sd_image_width": "64"}
    assert read(tmp_path, text) == [prompts.Row("0", "a", 2, 4.0, 72, None, extra)]


@pytest.mark.parametrize("name, spelling", [(name, spelling) for name in NUMBERS for spelling in prompts.COLUMNS[name]])
def test_numbers(tmp_path, name, spelling):
    """Breaks if a seed passes through float(), "1_000" or the digits of another script count, or the limits are not checked."""
    header = f"case_number,prompt,{spelling}" if name == "seed" else f"{HEADER},{spelling}"
    start = "0,a," if name == "seed" else "0,a,1,"
    good, bad = NUMBERS[name]
    for text, value in good.items():
        (row,) = read(tmp_path, f"{header}\n\n{start}{text}\n")
        assert row == prompts.Row("0", "a", **{"seed": 1, name: value}), text
    for text in bad:
        with pytest.raises(RunError, match=rf"list.csv, line 3: the {name} "):
            read(tmp_path, f"{header}\n\n{start}{text}\n")


FIT = ("0", "12", "007", "tench_3", "a-b.c", "\u732b", "x" * 100)
UNFIT = ("", " ", ".", "..", "a..b", "a/b", "../a", "/a", "a\\b", "a\0b", "a:b", "a b", ".a", "-a", '"a\nb"', "x" * 101, "\u732b" * 34)


def test_case_numbers_are_fit_for_file_names(tmp_path):
    """Breaks if they become ints, which lose zeros, re.match replaces re.fullmatch, '..' passes, or characters are counted, not bytes."""
    for case in FIT:
        assert read(tmp_path, f"{HEADER}\n{case},a,1\n") == [prompts.Row(case, "a", 1)]
    for case in UNFIT:
        with pytest.raises(RunError, match="line 2: .*(fit for a file name|NUL)"):  # csv refuses NUL itself in Python 3.10
            read(tmp_path, f"{HEADER}\n{case},a,1\n")


REFUSED = {
    "nothing": ("", "has no rows"),
    "byte order mark alone": ("\ufeff", "has no rows"),
    "lines without text": ("\n ,,\r\n", "has no rows"),
    "header alone": (f"{HEADER}\n\n", "has no rows"),
    "latin-1": (f"{HEADER}\n0,caf\u00e9,1\n".encode("latin-1"), "is not UTF-8 (byte 40)"),
    "utf-16": (f"{HEADER}\n0,a,1\n".encode("utf-16"), "is not UTF-8"),
    "no columns": ("a,b\n1,2\n", "line 1: the header lacks case_number or image_id, prompt, evaluation_seed or sd_seed: add them"),
    "two columns": ("case_number,text\n1,2\n", "lacks prompt, evaluation_seed or sd_seed:"),
    "semicolons": ("case_number;prompt;evaluation_seed\n0;a;1\n", "separated by commas, to case_number;prompt;evaluation_seed"),
    "no csv at all": ("word " * 10000, "to word"),
    "column twice": (f"{HEADER},Prompt\n0,a,1,b\n", "several columns named prompt"),
    "case_number twice": (f"{HEADER}\n5,a,1\n6,b,2\n 5,c,3\n", "line 4: the case_number '5' is that of line 2"),
    "cells missing": (f"{HEADER}\n0,a,1\n1,b\n", "line 3: 2 cells stand under a header of 3"),
    "cells left over": (f'{HEADER}\n0,"a\nb",1\n1,c, d,2\n', "line 4: 4 cells"),
    "open quote": (f'{HEADER}\n0,a,1\n1,"b,2\n2,c,3\n', "line 3: this is not valid csv"),
    "text after a quote": (f'{HEADER}\n0,"a" b,1\n', "line 2: this is not valid csv"),
    "endless field": (f"{HEADER}\n0,{'a' * 200_000},1\n", "field larger than field limit"),
    "open quote in the header": ('case_number,"prompt\n', "line 1: this is not valid csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files_are_refused_in_a_sentence(tmp_path, name):
    """Breaks if csv is not strict, its errors get through, or zip() cuts rows that are too long or too short."""
    text, words = REFUSED[name]
    with pytest.raises(RunError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "list.csv")) and words in message
    assert "\n" not in message and not message.endswith(".") and len(message) < 600 + len(str(tmp_path))


def test_a_file_that_is_not_there(tmp_path):
    """Breaks if exists(), which is true of a folder, takes the place of is_file()."""
    for path in (tmp_path / "none.csv", tmp_path, str(tmp_path / "none.csv")):
        with pytest.raises(RunError, match="does not exist"):
            prompts.read_csv(path)


def test_what_is_written_reads_back(tmp_path):
    """Breaks if "\\r" goes without quotes, a guidance is rounded, or columns are left out where no row sets them."""
    texts = ["", " a ", 'b, "c"', "d\ne", "f\r\ng", "h\ri", "\U0001f431", "\ufeff", "\u2028", '"', ","]
    rows = [prompts.Row(f"case_{i}", text, i * 2**59, extra={"class": text, "sd_seed": "x"}) for i, text in enumerate(texts)]
    rows.append(prompts.Row("last", "z", 1, 0.1 + 0.2, 512, None, {"class": "", "sd_seed": ""}))
    for some in (rows, rows[:-1]):
        prompts.write_csv(tmp_path / "out.csv", some)
        again = prompts.read_csv(tmp_path / "out.csv")
        assert again == some and list(again[0].extra) == ["class", "sd_seed"]


def test_rows_that_would_not_read_back_are_refused():
    """Breaks if Row does not check itself: --seed and --prompt reach it from the command line, where nothing else does."""
    bad = [("../0", "a", 1), ("0", "a", -1), ("0", "a", 2**63), ("0", "a", 1, float("nan")), ("0", "a", 1, 7.5, 0), ("0", "\udce9", 1)]
    for row in bad:
        with pytest.raises(RunError, match="must be"):
            prompts.Row(*row)


def test_files_of_different_images_never_share_a_name():
    """Breaks if a name is f"{case_number}{k}.png"."""
    rows = [prompts.Row(case, "", 0) for case in ("1", "1_0", "1_1", "11", "1.0")]
    names = [prompts.file_name(row, k) for row in rows for k in range(12)]
    assert len(set(names)) == len(names) and names[0] == "1_0.png" and names[13] == "1_0_1.png"


def test_a_row_for_each_class():
    """Breaks if template.format(name), which trips over other braces, fills in the names, or all rows have one seed."""
    first, second = prompts.class_rows(["tench", "gas {} pump"], "an image of a {} {x}", 10)
    assert first == prompts.Row("0", "an image of a tench {x}", 10, extra={"class": "tench"})
    assert second == prompts.Row("1", "an image of a gas {} pump {x}", 11, extra={"class": "gas {} pump"})
    with pytest.raises(RunError, match="has no {}"):
        prompts.class_rows(["tench"], "an image of a {class}")


def test_the_label_of_a_row():
    """Breaks if group goes before class, "" is a label, or a column of other lists is unknown."""
    labels = [{"class": "dog", "group": "pets"}, {"class": "", "group": "pets"}, {"group": ""}, {"other": "x"}]
    labels += [{"artist": "Monet"}, {"profession": "nurse"}]
    found = [prompts.concept(prompts.Row("0", "", 0, extra=extra)) for extra in labels]
    assert found == ["dog", "pets", None, None, "Monet", "nurse"]


LISTS = {"imagenette": (10, 1), "nude": (1, 1), "clothed": (1, 1), "objects": (12, 1), "styles": (7, 3), "nudity_check": (2, None)}


def test_the_shipped_lists():
    """Breaks if two rows share a seed, a row lacks its label or has another's, or a list is added and not named here."""
    assert {path.stem for path in SHIPPED.iterdir()} == set(LISTS)
    for name, (concepts, each) in LISTS.items():
        rows = prompts.read_csv(SHIPPED / f"{name}.csv")
        counts = Counter(map(prompts.concept, rows))
        assert None not in counts and len(counts) == concepts and (each is None or set(counts.values()) == {each}), name
        assert len({row.seed for row in rows}) == len({row.prompt for row in rows}) == len(rows) and all(row.prompt for row in rows), name
        assert [row.case_number for row in rows] == [str(i) for i in range(len(rows))], name
        assert name not in ("imagenette", "objects", "styles") or all(prompts.concept(row) in row.prompt for row in rows), name
    rows = prompts.read_csv(SHIPPED / "imagenette.csv")
    assert [row.prompt for row in rows] == [f"Image of {prompts.concept(row)}" for row in rows]
    assert [prompts.concept(row) for row in rows[:3]] == ["tench", "English springer", "cassette player"]
