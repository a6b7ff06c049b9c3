"""JSON lines and JSON arrays: every row has its line, and what is wrong with one is said."""

from __future__ import annotations

import json

import pytest

from tunesmith.data.json_rows import json_rows, jsonl_rows
from tunesmith.data.rows import BadRow, Row
from tunesmith.errors import DataError


def only_bad(rows: list[Row | BadRow]) -> BadRow:
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert len(bad) == 1
    return bad[0]


def test_lines_are_counted_from_1_blank_ones_too():
    rows = list(jsonl_rows(b'\n{"a": 1}\r\n  \n{"a": 2}', "f.jsonl"))
    assert rows == [Row({"a": 1}, "f.jsonl:2"), Row({"a": 2}, "f.jsonl:4")]


def test_a_byte_order_mark_and_a_line_separator_in_a_text_do_no_harm():
    line = '{"a": "x\u2028y\u0085z"}'
    assert list(jsonl_rows(b"\xef\xbb\xbf" + line.encode(), "f")) == [Row({"a": "x\u2028y\u0085z"}, "f:1")]
    assert list(json_rows(b"\xef\xbb\xbf[" + line.encode() + b"]", "f")) == [Row({"a": "x\u2028y\u0085z"}, "f:1")]


@pytest.mark.parametrize(
    ("line", "field", "found"),
    [
        (b'{"a": 1', "row", "no JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": 1} {"a": 2}', "row", "no JSON: Extra data at column 10"),
        (b'"text"', "row", "the text 'text'"),
        (b'{"a": [NaN]}', "row", "NaN"),
        (b'{"a": -Infinity}', "row", "-Infinity"),
        (b'{"a": 1e999}', "row", "the number 1e999, beyond the largest"),
        (b'{"a": 1, "b": 2, "a": 3}', "a", "this key twice in one object"),
        (b'{"x": [{"b": 1, "b": 1}]}', "b", "this key twice in one object"),
        (b'{"a": "\xff"}', "row", "the byte 0xff at byte 8 of the line"),
        (b'{"a": ' + b"9" * 5000 + b"}", "row", "a number of 5000 digits"),
        (b"[" * 200_000, "row", "nesting without end"),
    ],
)
def test_a_bad_line_is_set_aside_and_reading_goes_on(line: bytes, field: str, found: str):
    rows = list(jsonl_rows(b'{"a": 0}\n' + line + b'\n{"a": 9}', "f"))
    bad = only_bad(rows)
    assert (bad.source, bad.field, bad.found) == ("f:2", field, found)
    assert [row.source for row in rows] == ["f:1", "f:2", "f:3"]
    assert bad.raw == line.decode(errors="backslashreplace")


def test_an_array_in_a_jsonl_file_is_one_error():
    with pytest.raises(DataError, match=r"name the file \.json"):
        list(jsonl_rows(b'[\n{"a": 1},\n{"a": 2}\n]', "f.jsonl"))


def test_each_element_of_an_array_has_the_line_it_begins_on():
    rows = [{"a": 1}, {"a": [1, {"b": 2}]}, {"a": "x\ny"}]
    assert list(json_rows(json.dumps(rows, indent=2).encode(), "f")) == [
        Row(rows[0], "f:2"),
        Row(rows[1], "f:5"),
        Row(rows[2], "f:13"),
    ]
    assert [row.source for row in json_rows(b' [ {"a":1} , {"a":2}\n,{"a":3} ] \n', "f")] == ["f:1", "f:1", "f:2"]
    assert list(json_rows(b"[]", "f")) == []


@pytest.mark.parametrize(
    ("element", "field", "found"),
    [
        (b'["a"]', "row", "a list of 1"),
        (b'{"a": NaN}', "row", "NaN"),
        (b'{"a": 1, "a": 1}', "a", "this key twice in one object"),
        (b'{"a": "\xc0\x80"}', "row", "the byte 0xc0"),
    ],
)
def test_a_bad_element_is_set_aside_and_reading_goes_on(element: bytes, field: str, found: str):
    rows = list(json_rows(b'[{"a": 0},\n' + element + b',\n{"a": 9}]', "f"))
    bad = only_bad(rows)
    assert (bad.source, bad.field, bad.found) == ("f:2", field, found)
    assert [row.source for row in rows] == ["f:1", "f:2", "f:3"]
    assert bad.raw == element.decode(errors="backslashreplace")


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b'[{"a": 1},\n{"a": }]', "f:2"),
        (b'[{"a": 1}\n{"a": 2}]', "f:2"),
        (b'[{"a": 1},\n]', "f:2"),
        (b'[{"a": 1}', "f:1"),
        (b'[{"a": 1}]\n]', "f:2"),
        (b"[", "f:1"),
        (b"", "f:1"),
        (b"\n\n# a comment\n[]", "f:3"),
        (b'{"data": []}', "f:1"),
        (b"[\n" + b"[" * 200_000, "f:2"),
        (b"\xff\xfe[\x00]\x00", "f"),
    ],
)
def test_a_broken_array_is_one_error_with_its_line(data: bytes, where: str):
    with pytest.raises(DataError) as caught:
        list(json_rows(data, "f"))
    assert caught.value.where == where


def test_json_lines_in_a_json_file_and_comments_before_the_array_have_their_remedies():
    with pytest.raises(DataError, match=r"name the file \.jsonl"):
        list(json_rows(b'{"a": 1}\n{"a": 2}', "f"))
    with pytest.raises(DataError, match="JSON has no comments"):
        list(json_rows(b"# rows\n[]", "f"))
