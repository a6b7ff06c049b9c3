"""Comma- and tab-separated files: every record has the line it begins on."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.files.csv_rows import delimited_blocks, delimited_rows
from tunesmith.data.files.rows import BadRow, Row
from tunesmith.data.files.tables import Table
from tunesmith.errors import DataError


def read(text: str | bytes, delimiter: str = ",") -> list[Row | BadRow]:
    file = io.BytesIO(text.encode() if isinstance(text, str) else text)
    return [row for block in delimited_blocks(file, "f.csv", Table(delimiter)) for row in delimited_rows(block)]


def test_records_over_several_lines_have_the_number_of_their_first_line():
    assert read('a,b\r\n1,"x\r\ny\nz"\r\n\r\n2,"w, ""q"""\r\n') == [
        Row({"a": "1", "b": "x\r\ny\nz"}, "f.csv:2"),
        Row({"a": "2", "b": 'w, "q"'}, "f.csv:6"),
    ]


def test_tabs_separate_a_tsv():
    assert read("a\tb\n1,2\t3", "\t") == [Row({"a": "1,2", "b": "3"}, "f.csv:2")]


def test_a_byte_order_mark_is_no_part_of_the_first_column():
    assert read(b"\xef\xbb\xbfa,b\n1,2\n") == [Row({"a": "1", "b": "2"}, "f.csv:2")]


def test_a_line_separator_inside_a_field_is_no_line():
    assert read("a,b\nx\u2028y,\x0c\n3,4") == [
        Row({"a": "x\u2028y", "b": "\x0c"}, "f.csv:2"),
        Row({"a": "3", "b": "4"}, "f.csv:3"),
    ]


@pytest.mark.parametrize(("record", "found"), [("1", "1 field"), ("1,2,3", "3 fields")])
def test_a_ragged_record_is_a_bad_row_with_its_line(record: str, found: str):
    rows = read(f'a,b\n"x\ny",2\n{record}\n5,6\n')
    assert rows[1] == BadRow("f.csv:4", "row", found, "2 fields (a, b)", record)
    assert rows[2] == Row({"a": "5", "b": "6"}, "f.csv:5")


@pytest.mark.parametrize("broken", ['"x,2', '"x"y,2', '"'])
def test_a_quote_without_its_pair_costs_one_row_and_not_the_rest(broken: str):
    rows = read(f"a,b\n1,2\n{broken}\n3,4\n5,6\n")
    assert [row.source for row in rows] == ["f.csv:2", "f.csv:3", "f.csv:4", "f.csv:5"]
    assert isinstance(rows[1], BadRow) and rows[1].raw == broken
    assert [row.fields["a"] for row in rows if isinstance(row, Row)] == ["1", "3", "5"]


def test_bytes_that_are_not_utf_8_make_a_bad_row():
    rows = read(b"a,b\n1,\xe9\n3,4\n")
    assert rows[0] == BadRow("f.csv:2", "row", "bytes that are not UTF-8", "UTF-8", r"1,\xe9")
    assert rows[1] == Row({"a": "3", "b": "4"}, "f.csv:3")


def test_a_field_may_be_larger_than_csvs_own_limit_which_stays_as_it_was():
    before = csv.field_size_limit(1000)
    try:
        rows = read("a,b\n1," + "x" * 200_000)
        assert isinstance(rows[0], Row) and len(rows[0].fields["b"]) == 200_000
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("text,b,text\n1,2,3", "the header names the column 'text' twice"),
        ('"a,b\n1,2', "the header line cannot be read"),
        (b"a\xe9,b\n1,2", "the header line cannot be read"),
        (b"\xff\xfea\x00", "the file is UTF-16, not UTF-8"),
    ],
)
def test_a_header_that_cannot_be_used_is_one_error(text: str | bytes, what: str):
    with pytest.raises(DataError) as caught:
        read(text)
    assert caught.value.what == what


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=5))
def test_what_the_csv_module_writes_comes_back_with_the_line_it_began_on(records: list[tuple[str, str]]):
    written = io.StringIO(newline="")
    writer = csv.writer(written, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    starts = []
    for record in records:
        starts.append(len(list(io.StringIO(written.getvalue(), newline=""))) + 1)
        writer.writerow(record)
    expected = [
        Row({"a": a, "b": b}, f"f.csv:{line}")
        for (a, b), line in zip(records, starts, strict=True)
        if a.strip() or b.strip()
    ]
    assert read(written.getvalue()) == expected
