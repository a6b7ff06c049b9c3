"""Quotes of tables: backslashes and single quotes are read where they are sure, and are text where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import BadRow, LeftOut, Row
from tunesmith.recipe.data import SourceSettings

Found = tuple[str, list[tuple[str, ...]]]


def read(path: Path, text: str, **settings: object) -> Found:
    """What is said of the quotes, and the values of each row."""
    path.write_text(text, newline="")
    part = parts_of(SourceSettings.model_validate({"path": str(path), **settings}), "train")[0][0]
    rows = [tuple(row.fields.values()) for row in part.rows() if isinstance(row, Row)]
    return "; ".join(said for said in part.choices if "quote" in said), rows


BACKSLASH, SINGLE = 'a quote within a field is written \\"', "fields are quoted by '"
# name: content, what is said, and the rows.
TABLES: dict[str, tuple[str, str, list[tuple[str, ...]]]] = {
    "backslashes": (
        'text,label\n"He said \\"hi\\", then left",a\nb,c\n',
        BACKSLASH,
        [('He said "hi", then left', "a"), ("b", "c")],
    ),
    "a field that ends with a quote": (
        'text,label\n"say \\"hi\\"",a\n"d, e",f\n',
        BACKSLASH,
        [('say "hi"', "a"), ("d, e", "f")],
    ),
    "backslashes of paths stay": (
        'text,label\n"say \\"C:\\new\\", \\\\server",a\n"d\\t",e\n',
        BACKSLASH,
        [('say "C:\\new", \\server', "a"), ("d\\t", "e")],
    ),
    "an escaped line end": ('text,label\n"a \\"b\\"\\\nc",d\n', BACKSLASH, [('a "b"\nc', "d")]),
    "semicolons": ('text;label\n"He said \\"hi\\"; then";a\n', BACKSLASH, [('He said "hi"; then', "a")]),
    "single quotes around all texts": (
        "'text','label'\n'a','b'\n'it''s, so','d'\n",
        SINGLE,
        [("a", "b"), ("it's, so", "d")],
    ),
    "single quotes without a separator within": ("id,text\n1,'a'\n2,'it''s'\n", SINGLE, [("1", "a"), ("2", "it's")]),
    "single quotes where needed": ("text,label\n'a, b',c\nd,e\n", SINGLE, [("a, b", "c"), ("d", "e")]),
    "single quotes with backslashes": ("text,label\n'it\\'s, so',c\nd,e\n", SINGLE, [("it's, so", "c"), ("d", "e")]),
    "single quotes over lines": ("text,label\n'a\nb',c\n'd','e'\n", SINGLE, [("a\nb", "c"), ("d", "e")]),
    "apostrophes": (
        "text,label\nit's so,a\n'tis,b\nthe '80s,c\n",
        "",
        [("it's so", "a"), ("'tis", "b"), ("the '80s", "c")],
    ),
    "single quotes around a column": (
        "text,label\n'a',x\n'b',y\n'c',x\n",
        SINGLE,
        [("a", "x"), ("b", "y"), ("c", "x")],
    ),
    "one text in single quotes": ("text,label\n'so',a\nit's,b\n", "", [("'so'", "a"), ("it's", "b")]),
    "double quotes around single ones": ('text,label\n"\'a\', b",c\n"d","e"\n', "", [("'a', b", "c"), ("d", "e")]),
    "backslashes in usual quotes": ('text,label\n"a ""\\"" b",c\nd\\",e\n', "", [('a "\\" b', "c"), ('d\\"', "e")]),
}


@pytest.mark.parametrize("name", TABLES)
def test_quotes_are_read_as_the_table_writes_them(tmp_path: Path, name: str) -> None:
    text, said, rows = TABLES[name]
    found, values = read(tmp_path / "t.csv", text)
    assert (found.partition(";")[0], values) == (said, rows)


def test_tabs_without_quotes_keep_quotes_and_apostrophes(tmp_path: Path) -> None:
    said, rows = read(tmp_path / "t.tsv", "text\tlabel\n\"Tea\" is 'good'\ta\nit's 5\" wide\tb\n")
    assert rows == [("\"Tea\" is 'good'", "a"), ("it's 5\" wide", "b")]
    assert said == "quotes are part of the text, as in a file that quotes nothing"


def test_a_separator_that_is_a_quote_is_taken(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", "text'label\na'b\n", delimiter="'")[1] == [("a", "b")]


def test_a_stray_quote_among_backslashes_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f'"say \\"hi\\", {number}",a\n' for number in range(20))
    path.write_text(f"text,label\n{rows}" + "short\n")
    part = parts_of(SourceSettings(path=str(path)), "train")[0][0]
    found = [*part.rows()]
    assert [type(row) for row in found] == [Row] * 20 + [BadRow]
    assert isinstance(found[3], Row) and found[3].fields == {"text": 'say "hi", 3', "label": "a"}
    assert found[3].source == f"{path}:5"


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
def test_a_header_of_known_names_that_stands_again_is_left_out_and_another_is_a_row(
    tmp_path: Path, ending: str
) -> None:
    path, lines = tmp_path / f"t{ending}", ["question,answer", "a,b", "question,answer", "question,c"]
    if ending == ".xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        for line in lines:
            book.active.append(line.split(","))
        book.save(path)
    else:
        path.write_text("\n".join(lines))
    reader = open_source(SourceSettings(path=str(path), columns={"prompt": "question", "completion": "answer"}))
    rows = [*reader.examples()]
    assert [row.found for row in rows if isinstance(row, LeftOut)] == ["repeated header"]
    assert [row.source.rpartition(":")[2] for row in rows] == ["2", "3", "4"]


def test_a_repeat_of_names_that_are_not_known_is_a_row_unless_the_columns_are_named(tmp_path: Path) -> None:
    text = "this,that\na,b\nthis,that\n"
    assert read(tmp_path / "t.csv", text)[1] == [("a", "b"), ("this", "that")]
    columns = {"prompt": "this", "completion": "that"}
    assert read(tmp_path / "t.csv", text, columns=columns)[1] == [("a", "b")]
