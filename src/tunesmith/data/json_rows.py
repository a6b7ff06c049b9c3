"""JSON lines and JSON arrays -> rows, each with the line it begins on."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tunesmith.data.message import describe, printable
from tunesmith.data.rows import BOM, INVALID_BYTES, BadRow, Row, Rows, bad_bytes, printed, refuse_utf16, shown
from tunesmith.errors import DataError

JSON_SPACE = re.compile(r"[ \t\n\r]*")


class _JsonReader:
    """A JSON decoder that notes what Python lets pass: NaN, infinite numbers, a key given twice, bytes out of UTF-8."""

    def __init__(self) -> None:
        self.flaws: list[tuple[str, str, str]] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def row(self, value: object, source: str, text: str, *, start: int = 0, end: int | None = None) -> Row | BadRow:
        """The value decoded from text[start:end] as a row, unless it is no object or had a flaw."""
        if self.flaws:
            field, found, expected = self.flaws[0]
            self.flaws.clear()
            return BadRow(source, field, found, expected, printed(text[start:end]))
        if not isinstance(value, dict):
            return BadRow(source, "row", describe(value), "an object with named fields", printed(text[start:end]))
        return Row(value, source)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self.flaws.append((printable(twice), "this key twice in one object", "each key once"))
        return fields

    def _constant(self, name: str) -> None:
        self.flaws.append(("row", name, "a JSON value (NaN and Infinity are none)"))

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            self.flaws.append(("row", f"the number {digits[:40]}, beyond the largest", "a finite number"))
        return value

    def _int(self, digits: str) -> int:
        if len(digits) > 4000:  # Python's own limit is a little above
            self.flaws.append(("row", f"a number of {len(digits)} digits", "a shorter number"))
            return 0
        return int(digits)


def jsonl_rows(data: bytes, name: str) -> Rows:
    """One JSON object a line; blank lines are passed over.

    Raises:
        DataError: the file is a JSON array, or UTF-16.
    """
    refuse_utf16(data, name)
    data = data.removeprefix(BOM)
    if data[:4096].lstrip()[:1] == b"[":
        raise DataError(
            "a JSON array where one JSON object a line is expected",
            where=f"{name}:1",
            remedy="write one object a line, or, if the file is one array of objects, name the file .json",
        )
    reader = _JsonReader()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield _jsonl_row(reader, line, f"{name}:{number}")


def _jsonl_row(reader: _JsonReader, line: bytes, source: str) -> Row | BadRow:
    try:
        text = line.decode()
        value = reader.decoder.decode(text)
    except UnicodeDecodeError as error:
        return BadRow(source, "row", bad_bytes(line, error.start), "UTF-8", shown(line))
    except json.JSONDecodeError as error:
        reader.flaws.clear()
        found = f"no JSON: {error.msg} at column {error.colno}"
        return BadRow(source, "row", found, "one JSON object on the line", shown(line))
    except RecursionError:
        reader.flaws.clear()
        return BadRow(source, "row", "nesting without end", "fewer levels of nesting", shown(line))
    return reader.row(value, source, text)


def json_rows(data: bytes, name: str) -> Rows:
    """A JSON array of objects; each row has the line that its object begins on.

    Raises:
        DataError: the file is not one array, or its syntax is broken.
    """
    refuse_utf16(data, name)
    text = data.removeprefix(BOM).decode(errors="surrogateescape")
    position = _after_space(text, 0)
    if text[position : position + 1] != "[":
        raise _not_an_array(text, position, name)
    reader = _JsonReader()
    line, counted, closed = 1, 0, False
    position = _after_space(text, position + 1)
    if text[position : position + 1] == "]":
        position, closed = position + 1, True
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        value, end = _element(reader, text, position, f"{name}:{line}")
        flaw = INVALID_BYTES.search(text, position, end)
        if flaw:
            reader.flaws.insert(0, ("row", f"the byte 0x{ord(flaw[0]) - 0xDC00:02x}", "UTF-8"))
        yield reader.row(value, f"{name}:{line}", text, start=position, end=end)
        position, closed = _after_element(text, end, name)
    rest = _after_space(text, position)
    if rest < len(text):
        raise _syntax("more after the end of the array", text, rest, name)


def _element(reader: _JsonReader, text: str, position: int, source: str) -> tuple[Any, int]:
    try:
        return reader.decoder.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise _syntax(error.msg, text, error.pos, source.rpartition(":")[0]) from None
    except RecursionError:
        raise DataError("nesting without end", where=source, remedy="correct or remove this row") from None


def _after_element(text: str, end: int, name: str) -> tuple[int, bool]:
    """Where the next element begins, or (end of the array, True)."""
    position = _after_space(text, end)
    mark = text[position : position + 1]
    if mark == "]":
        return position + 1, True
    if mark != ",":
        raise _syntax("no comma and no ] after an element of the array", text, position, name)
    return _after_space(text, position + 1), False


def _after_space(text: str, position: int) -> int:
    match = JSON_SPACE.match(text, position)
    return match.end() if match else position


def _syntax(message: str, text: str, position: int, name: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    found = describe(text[position : position + 30].split("\n")[0]) if position < len(text) else "the end of the file"
    return DataError(
        f"no JSON: {message}",
        where=f"{name}:{line}",
        why=f"column {column}: found {found}",
        remedy="correct the file; a .json file is one array of objects",
    )


def _not_an_array(text: str, position: int, name: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    found = text[position : position + 60].split("\n")[0]
    remedy = "remove what stands before the array: JSON has no comments"
    if found.startswith("{"):
        remedy = "write the rows as an array, or, with one object a line, name the file .jsonl"
    return DataError(
        "a .json file must hold one array of rows",
        where=f"{name}:{line}",
        why=f"found {describe(found) if found else 'the end of the file'}, expected [",
        remedy=remedy,
    )
