"""JSON lines and JSON arrays -> rows, each with the line it begins on.

An array is cut into its elements by a window that moves over the file and grows only for an element larger than it.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from tunesmith.data.examples.message import describe, printable
from tunesmith.data.files.rows import (
    BLOCK_BYTES,
    BadRow,
    Block,
    Row,
    Rows,
    bad_bytes,
    line_blocks,
    printed,
    refuse_too_large,
    shown,
    text_chunks,
)
from tunesmith.errors import DataError

SPACES = " \t\n\r"
JSON_SPACE = re.compile(f"[{SPACES}]+")
STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
NUMBERS = re.compile(rf"{STRING}|-?Infinity|NaN|-?[0-9][0-9.eE+-]*", re.DOTALL)
BRACKETS = re.compile(rf"{STRING}|[\[\]{{}}]", re.DOTALL)
DEEP = 100  # levels; where nesting has no end, the message names the place of the next one
LONGEST_TOKEN = 64  # characters; a fault nearer than this to the end of a window may be the window's own
ENDS = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)  # to find where a value ends


class Place(NamedTuple):
    """Where a text begins: its line from 1, and how much of that line is before it."""

    line: int
    characters: int = 0
    bytes: int = 0

    def after(self, text: str) -> Place:
        """The place behind a text that begins here."""
        line, characters, before = self
        newline = text.rfind("\n")
        if newline >= 0:
            line, characters, before = line + text.count("\n"), 0, 0
            text = text[newline + 1 :]
        size = len(text) if text.isascii() else len(text.encode(errors="surrogateescape"))
        return Place(line, characters + len(text), before + size)

    def __str__(self) -> str:
        return f"column {self.characters + 1} (byte {self.bytes + 1})"


class _Flaw(NamedTuple):
    """What Python lets pass and JSON does not; `token` is the number it stands in."""

    field: str
    found: str
    expected: str
    token: str | None = None


class _StrictJson:
    """A JSON decoder that notes what Python lets pass: NaN, infinite numbers, a key given twice."""

    def __init__(self) -> None:
        self.flaws: list[_Flaw] = []
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def row(self, text: str, name: str, place: Place) -> Row | BadRow:
        """The object that is the whole of a text as a row, or what is wrong with it."""
        self.flaws.clear()
        source = f"{name}:{place.line}"
        try:
            value = self.decoder.decode(text)
        except json.JSONDecodeError as error:
            found = f"no JSON: {error.msg} at {_at(text, error.pos, place)}"
            return BadRow(source, "row", found, "one JSON object on the line", printed(text.rstrip("\r")))
        except RecursionError:
            found = f"nesting without end at {_at(text, _deep(text), place)}"
            return BadRow(source, "row", found, "fewer levels of nesting", printed(text.rstrip("\r")))
        if self.flaws:
            field, found, expected, token = self.flaws[0]
            if token is not None:
                found = f"{found} at {_at(text, _index_of(token, text), place)}"
            return BadRow(source, field, found, expected, printed(text))
        if not isinstance(value, dict):
            return BadRow(source, "row", describe(value), "an object with named fields", printed(text))
        return Row(value, source)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            names = [name for name, _ in pairs]
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))
            self.flaws.append(_Flaw(printable(twice), "this key twice in one object", "each key once"))
        return fields

    def _constant(self, name: str) -> None:
        self.flaws.append(_Flaw("row", name, "a JSON value (NaN and Infinity are none)", name))

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            found = f"the number {digits[:40]}, beyond the largest,"
            self.flaws.append(_Flaw("row", found, "a finite number", digits))
        return value

    def _int(self, digits: str) -> int:
        if len(digits) > 4000:  # Python's own limit is a little above
            self.flaws.append(_Flaw("row", f"a number of {len(digits)} digits", "a shorter number", digits))
            return 0
        return int(digits)


def _at(text: str, index: int, place: Place) -> str:
    """Where text[index] is, in words; the line too where it is not that on which the text begins."""
    there = place.after(text[:index])
    return str(there) if there.line == place.line else f"line {there.line}, {there}"


def _index_of(number: str, text: str) -> int:
    return next(match.start() for match in NUMBERS.finditer(text) if match[0] == number)


def _deep(text: str) -> int:
    """Where the level after DEEP begins."""
    depth = 0
    for match in BRACKETS.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > DEEP:
            return match.start()
    return len(text)


def jsonl_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a file with one JSON object a line.

    Raises:
        DataError: the file is a JSON array, or UTF-16, or a line does not end.
    """
    return line_blocks(_no_array(text_chunks(file, name), name), name)


def _no_array(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    for number, chunk in enumerate(chunks):
        if number == 0 and chunk[:4096].lstrip()[:1] == b"[":
            raise DataError(
                "a JSON array where one JSON object a line is expected",
                where=f"{name}:1",
                remedy="write one object a line, or, if the file is one array of objects, name the file .json",
            )
        yield chunk


def jsonl_rows(block: Block) -> Rows:
    """One JSON object a line; blank lines are passed over."""
    reader = _StrictJson()
    for number, line in enumerate(block.payload.split(b"\n"), start=block.start):
        if not line or line.isspace():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield BadRow(f"{block.name}:{number}", "row", bad_bytes(line, error.start), "UTF-8", shown(line))
            continue
        yield reader.row(text, block.name, Place(number))


def array_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The elements of a JSON array as (place, text), a few thousand at a time; bytes that are not UTF-8 are marked.

    Raises:
        DataError: the file is not one array, its syntax is broken, or an element does not end.
    """
    elements: list[tuple[Place, str]] = []
    size = 0
    for place, text in _elements(_Window(file, name)):
        elements.append((place, text))
        size += len(text)
        if size >= BLOCK_BYTES:
            yield Block(name, elements[0][0].line, elements)
            elements, size = [], 0
    if elements:
        yield Block(name, elements[0][0].line, elements)


def array_rows(block: Block) -> Rows:
    """The elements of an array; each row has the line that its object begins on."""
    reader = _StrictJson()
    for place, text in block.payload:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                byte = f"the byte 0x{ord(text[error.start]) - 0xDC00:02x} at {_at(text, error.start, place)}"
                yield BadRow(f"{block.name}:{place.line}", "row", byte, "UTF-8", printed(text))
                continue
        yield reader.row(text, block.name, place)


class _Window:
    """A stretch of a file's text that begins at `place`; what has been read is dropped at its left."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.text, self.position, self.place = "", 0, Place(1)
        self.ended = False
        self._chunks = text_chunks(file, name)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def grow(self) -> None:
        """Reads on until what is ahead has at least doubled, so that a large element costs no more than its size."""
        pieces = [self.text[self.position :]]
        wanted = 2 * len(pieces[0]) + 1
        while sum(map(len, pieces)) < wanted and not self.ended:
            chunk = next(self._chunks, b"")
            self.ended = not chunk
            pieces.append(self._decoder.decode(chunk, final=self.ended))
        self.text, self.position = "".join(pieces), 0
        if len(pieces[0]) > BLOCK_BYTES:
            refuse_too_large(len(self.text), self.name, self.place.line)

    def take(self, end: int) -> str:
        """The text up to `end`; the place moves behind it."""
        taken = self.text[self.position : end]
        self.place, self.position = self.place.after(taken), end
        return taken

    def next_mark(self) -> str:
        """The next character that is no space, which is not taken; empty at the end of the file."""
        while True:
            mark = self.text[self.position : self.position + 1]
            if mark and mark not in SPACES:
                return mark
            match = JSON_SPACE.match(self.text, self.position)
            if match is not None:
                self.take(match.end())
            elif self.ended:
                return ""
            else:
                self.grow()

    def element(self) -> tuple[Place, str]:
        """The value that begins here and where it begins.

        Raises:
            DataError: its syntax is broken.
        """
        while True:
            try:
                _, end = ENDS.raw_decode(self.text, self.position)
                if self.ended or end + LONGEST_TOKEN <= len(self.text):
                    return self.place, self.take(end)
            except json.JSONDecodeError as error:
                cut = error.pos + LONGEST_TOKEN > len(self.text) or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    self.take(error.pos)
                    raise self.fault(error.msg) from None
            except RecursionError:
                raise self._too_deep() from None
            self.grow()

    def ahead(self, characters: int) -> str:
        """What comes next on this line, in words."""
        while len(self.text) < self.position + characters and not self.ended:
            self.grow()
        if self.position == len(self.text):
            return "the end of the file"
        return describe(printed(self.text[self.position : self.position + characters].split("\n")[0]))

    def fault(self, message: str) -> DataError:
        """The file's syntax is broken here."""
        return DataError(
            f"no JSON: {message}",
            where=f"{self.name}:{self.place.line}",
            why=f"{self.place}: found {self.ahead(30)}",
            remedy="correct the file; a .json file is one array of objects",
        )

    def _too_deep(self) -> DataError:
        row = self.place
        self.take(self.position + _deep(self.text[self.position :]))
        return DataError(
            "nesting without end",
            where=f"{self.name}:{row.line}",
            why=f"more than {DEEP} levels at line {self.place.line}, {self.place}",
            remedy="correct or remove this row",
        )


def _elements(window: _Window) -> Iterator[tuple[Place, str]]:
    """Every element of the array that the whole file is."""
    mark = window.next_mark()
    if mark != "[":
        raise _not_an_array(window, mark)
    window.take(window.position + 1)
    mark = window.next_mark()
    while mark != "]":
        yield window.element()
        mark = window.next_mark()
        if mark == ",":
            window.take(window.position + 1)
            window.next_mark()
        elif mark != "]":
            raise window.fault("no comma and no ] after an element of the array")
    window.take(window.position + 1)
    if window.next_mark():
        raise window.fault("more after the end of the array")


def _not_an_array(window: _Window, mark: str) -> DataError:
    remedy = "remove what stands before the array: JSON has no comments"
    if mark == "{":
        remedy = "write the rows as an array, or, with one object a line, name the file .jsonl"
    return DataError(
        "a .json file must hold one array of rows",
        where=f"{window.name}:{window.place.line}",
        why=f"{window.place}: found {window.ahead(60)}, expected [",
        remedy=remedy,
    )
