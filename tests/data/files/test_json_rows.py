"""JSON lines and JSON arrays: every row has its line, and what is wrong with one is said."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.files import rows as rows_module
from tunesmith.data.files.json_rows import array_blocks, array_rows, jsonl_blocks, jsonl_rows, not_numbers
from tunesmith.data.files.rows import BadRow, Row
from tunesmith.errors import DataError


def json_lines(data: bytes, name: str) -> list[Row | BadRow]:
    return [row for block in jsonl_blocks(io.BytesIO(data), name) for row in jsonl_rows(block)]


def json_array(data: bytes, name: str) -> list[Row | BadRow]:
    return [row for block in array_blocks(io.BytesIO(data), name) for row in array_rows(block)]


def only_bad(rows: list[Row | BadRow]) -> BadRow:
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert len(bad) == 1
    return bad[0]


def test_lines_are_counted_from_1_blank_ones_too():
    rows = json_lines(b'\n{"a": 1}\r\n  \n{"a": 2}', "f.jsonl")
    assert rows == [Row({"a": 1}, "f.jsonl:2"), Row({"a": 2}, "f.jsonl:4")]


def test_a_byte_order_mark_and_a_line_separator_in_a_text_do_no_harm():
    line = '{"a": "x\u2028y\u0085z"}'
    assert json_lines(b"\xef\xbb\xbf" + line.encode(), "f") == [Row({"a": "x\u2028y\u0085z"}, "f:1")]
    assert json_array(b"\xef\xbb\xbf[" + line.encode() + b"]", "f") == [Row({"a": "x\u2028y\u0085z"}, "f:1")]


@pytest.mark.parametrize(
    ("line", "field", "found"),
    [
        (b'{"a": 1', "row", "not JSON: Expecting ',' delimiter at column 8 (byte 8)"),
        (b'{"a": 1} {"a": 2}', "row", "not JSON: Extra data at column 10 (byte 10)"),
        (b'"text"', "row", "the text 'text'"),
        (b'{"a": [1e999]}', "row", "the number 1e999, beyond the largest, at column 8 (byte 8)"),
        (
            b'{"a": "\xc3\xa9 \\" 1e999", "b": 1e999}',
            "row",
            "the number 1e999, beyond the largest, at column 26 (byte 27)",
        ),
        (b'{"\xc3\xa9": 1 x}', "row", "not JSON: Expecting ',' delimiter at column 9 (byte 10)"),
        (b'{"a": 1e999}', "row", "the number 1e999, beyond the largest, at column 7 (byte 7)"),
        (b'{"a": 1, "b": 2, "a": 3}', "a", "this key twice in one object"),
        (b'{"x": [{"b": 1, "b": 1}]}', "b", "this key twice in one object"),
        (b'{"a": "\xff"}', "row", "the byte 0xff at column 8 (byte 8)"),
        (b'{"a": ' + b"9" * 5000 + b"}", "row", "a number of 5000 digits at column 7 (byte 7)"),
        (b"[" * 200_000, "row", "nesting without end at column 101 (byte 101)"),
    ],
)
def test_a_bad_line_is_set_aside_and_reading_goes_on(line: bytes, field: str, found: str):
    rows = json_lines(b'{"a": 0}\n' + line + b'\n{"a": 9}', "f")
    bad = only_bad(rows)
    assert (bad.source, bad.field, bad.found) == ("f:2", field, found)
    assert [row.source for row in rows] == ["f:1", "f:2", "f:3"]
    assert bad.raw == line.decode(errors="backslashreplace")


def test_nan_and_infinity_are_missing_values_in_rows():
    line = b'{"a": NaN, "b": [Infinity, {"c": -Infinity}], "d": "NaN"}'
    fields = {"a": None, "b": [None, {"c": None}], "d": "NaN"}
    assert json_lines(line, "f") == [Row(fields, "f:1")]
    assert json_array(b"[" + line + b"]", "f") == [Row(fields, "f:1")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": NaN, "b": -Infinity, "c": NaN}', ["NaN", "-Infinity"]),
        ('{"a": "NaN \\" Infinity", "NaN": 1}', []),
        ('{"a": 1, "b": "the text NaN is cut', []),
    ],
)
def test_values_that_are_no_numbers_are_told_from_texts(text: str, found: list[str]):
    assert not_numbers(text) == found


def test_an_array_in_a_jsonl_file_is_one_error():
    with pytest.raises(DataError, match=r"name the file \.json"):
        json_lines(b'[\n{"a": 1},\n{"a": 2}\n]', "f.jsonl")


def test_each_element_of_an_array_has_the_line_it_begins_on():
    rows = [{"a": 1}, {"a": [1, {"b": 2}]}, {"a": "x\ny"}]
    assert json_array(json.dumps(rows, indent=2).encode(), "f") == [
        Row(rows[0], "f:2"),
        Row(rows[1], "f:5"),
        Row(rows[2], "f:13"),
    ]
    assert [row.source for row in json_array(b' [ {"a":1} , {"a":2}\n,{"a":3} ] \n', "f")] == ["f:1", "f:1", "f:2"]
    assert json_array(b"[]", "f") == []


@pytest.mark.parametrize(
    ("element", "field", "found"),
    [
        (b'["a"]', "row", "a list of 1"),
        (b'{"a": 1e999}', "row", "the number 1e999, beyond the largest, at column 7 (byte 7)"),
        (
            b'{"a":\n [1,\n  "\xc3\xa9", 1e999]}',
            "row",
            "the number 1e999, beyond the largest, at line 4, column 8 (byte 9)",
        ),
        (b'{"a": 1, "a": 1}', "a", "this key twice in one object"),
        (b'{"a": "\xc0\x80"}', "row", "the byte 0xc0 at column 8 (byte 8)"),
    ],
)
def test_a_bad_element_is_set_aside_and_reading_goes_on(element: bytes, field: str, found: str):
    rows = json_array(b'[{"a": 0},\n' + element + b',\n{"a": 9}]', "f")
    bad = only_bad(rows)
    assert (bad.source, bad.field, bad.found) == ("f:2", field, found)
    lines = element.count(b"\n")
    assert [row.source for row in rows] == ["f:1", "f:2", f"f:{3 + lines}"]
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
        json_array(data, "f")
    assert caught.value.where == where


def test_json_lines_in_a_json_file_and_comments_before_the_array_have_their_remedies():
    with pytest.raises(DataError, match=r"name the file \.jsonl"):
        json_array(b'{"a": 1}\n{"a": 2}', "f")
    with pytest.raises(DataError, match="JSON has no comments"):
        json_array(b"# rows\n[]", "f")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=5)


def outcome(read: Any, data: bytes) -> Any:
    try:
        return read(data, "f")
    except DataError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(OBJECTS, st.sampled_from([None, 0, 3]), st.booleans(), st.integers(1, 40))
def test_an_array_is_the_same_however_it_is_cut(objects: list[dict], indent: int | None, ascii: bool, size: int):
    data = json.dumps(objects, indent=indent, ensure_ascii=ascii).encode()
    whole = json_array(data, "f")
    assert [row.fields for row in whole if isinstance(row, Row)] == objects
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", size)
        assert json_array(data, "f") == whole


@settings(max_examples=300, deadline=None)
@given(OBJECTS, st.sampled_from([None, 1]), st.integers(1, 40), st.data())
def test_a_fault_is_the_same_however_the_file_is_cut(objects: list[dict], indent: int | None, size: int, draw: Any):
    data = bytearray(json.dumps(objects, indent=indent, ensure_ascii=False).encode())
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=2)):
        data[place] = draw.draw(st.sampled_from(b'"\\,:[]{}0-\n\xff\x00u'))
    whole = [outcome(read, bytes(data)) for read in (json_array, json_lines)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", size)
        assert [outcome(read, bytes(data)) for read in (json_array, json_lines)] == whole


def test_a_number_or_an_escape_on_the_edge_of_a_window_is_whole(monkeypatch: pytest.MonkeyPatch):
    numbers = [{"a": [-1.5e-300, 1e300, 2**200]}, {"b": "\U0001f600\u00e9" * 9}]
    for size in range(1, 200):
        monkeypatch.setattr(rows_module, "BLOCK_BYTES", size)
        assert [row.fields for row in json_array(json.dumps(numbers).encode(), "f") if isinstance(row, Row)] == numbers
        assert outcome(json_array, b"[1234567.5e+10, 12]") == [
            BadRow("f:1", "row", "a very large number", "an object with named fields", "1234567.5e+10"),
            BadRow("f:1", "row", "the number 12", "an object with named fields", "12"),
        ]
