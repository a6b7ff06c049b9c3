"""JSON lines and JSON arrays -> rows, each with the line it begins on; and strict JSON for whoever reads a text as it.

In rows NaN and Infinity are null: pandas and json.dump write a missing number so, although JSON has no such value.

An array is cut into its elements by a window that moves over the file. It grows only for an element larger than it.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, NoReturn

from tunesmith.data.examples.message import RowError, describe, printable
from tunesmith.data.files.rows import (
    BLOCK_BYTES,
    BadRow,
    Block,
    Row,
    RowStream,
    blocks_of_rows,
    line_blocks,
    printed,
    refuse_too_large,
    text_chunks,
)
from tunesmith.errors import DataError

SPACES = " \t\n\r"
JSON_SPACE = re.compile(f"[{SPACES}]+")
STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
NUMBERS = re.compile(rf"{STRING}|-?[0-9][0-9.eE+-]*", re.DOTALL)
CONSTANTS = re.compile(rf'{STRING}|"|-?Infinity|NaN', re.DOTALL)
BRACKETS = re.compile(rf"{STRING}|[\[\]{{}}]", re.DOTALL)
MOST_LEVELS = 100  # where nesting has no end, the message names the position of the next level
MOST_DIGITS = 4000  # of a whole number; Python's own limit is a little above
LONGEST_TOKEN = 64  # characters; a fault nearer than this to the end of a window may be the window's own
ENDS = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)  # to find where a value ends


class _NotStrict(RowError):
    """Python's json accepts it and RFC 8259 does not; `token` is the number that is at fault."""

    def __init__(self, field: str, found: str, expected: str, token: str | None = None) -> None:
        super().__init__(field, found, expected)
        self.token = token


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotStrict(printable(twice), "this key twice in one object", "each key once")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise _NotStrict("row", name, "a JSON value (NaN and Infinity are none)", name)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _NotStrict("row", f"the number {digits[:40]}, beyond the largest,", "a finite number", digits)
    return value


def _short_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _NotStrict("row", f"a number of {len(digits)} digits", "a shorter number", digits)
    return int(digits)


def _missing(_: str) -> None:
    """What NaN and Infinity are in a row."""


STRICT = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite_float, parse_int=_short_int
)
OF_ROWS = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_missing, parse_float=_finite_float, parse_int=_short_int
)


def parse_json(text: str) -> Any:
    """The value of a JSON text by RFC 8259, with nothing around it but white space: no NaN, no key given twice.

    Raises:
        ValueError: the text is anything else, a number beyond float64 or nesting too deep for Python included.
    """
    return _decoded(text, STRICT)


def parse_rows(text: str) -> Any:
    """The same for a text of rows, in which NaN and Infinity are null."""
    return _decoded(text, OF_ROWS)


def _decoded(text: str, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def not_numbers(text: str) -> list[str]:
    """Those of NaN, Infinity and -Infinity that stand in a JSON text, which may be cut off, as values."""
    if "NaN" not in text and "Infinity" not in text:
        return []
    found: dict[str, None] = {}
    for match in CONSTANTS.finditer(text):
        if match[0] == '"':  # of a string that is cut off
            break
        if match[0][0] != '"':
            found[match[0]] = None
    return [*found]


class Position(NamedTuple):
    """Where a text begins: its line from 1, and how much of that line is before it."""

    line: int
    characters: int = 0
    bytes: int = 0

    def after(self, text: str) -> Position:
        """The position behind a text that begins here."""
        line, characters, before = self
        newline = text.rfind("\n")
        if newline >= 0:
            line, characters, before = line + text.count("\n"), 0, 0
            text = text[newline + 1 :]
        size = len(text) if text.isascii() else len(text.encode(errors="surrogateescape"))
        return Position(line, characters + len(text), before + size)

    def at(self, text: str, index: int) -> str:
        """Where text[index] is, of a text that begins here; with its line where that is another one."""
        there = self.after(text[:index])
        return str(there) if there.line == self.line else f"line {there.line}, {there}"

    def __str__(self) -> str:
        return f"column {self.characters + 1} (byte {self.bytes + 1})"


def row_of(text: str, name: str, start: Position) -> Row | BadRow:
    """The object that is the whole of a text as a row, or what is wrong with it."""
    field, expected = "row", "one JSON object on the line"
    try:
        if not text.isascii():
            text.encode()
        value = OF_ROWS.decode(text)
        if isinstance(value, dict):
            return Row(value, f"{name}:{start.line}")
        found, expected = describe(value), "an object with named fields"
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 are marked by surrogates
        byte = ord(text[error.start]) - 0xDC00
        found, expected = f"the byte 0x{byte:02x} at {start.at(text, error.start)}", "UTF-8"
    except json.JSONDecodeError as error:
        found = f"not JSON: {error.msg} at {start.at(text, error.pos)}"
    except RecursionError:
        found, expected = f"nesting without end at {start.at(text, _too_deep(text))}", "fewer levels of nesting"
    except _NotStrict as flaw:
        field, found, expected = flaw.field, flaw.found, flaw.expected
        if flaw.token is not None:
            found += f" at {start.at(text, _index_of(flaw.token, text))}"
    return BadRow(f"{name}:{start.line}", field, found, expected, printed(text.rstrip("\r")))


def _index_of(number: str, text: str) -> int:
    return next(match.start() for match in NUMBERS.finditer(text) if match[0] == number)


def _too_deep(text: str) -> int:
    """The index at which the level after MOST_LEVELS begins."""
    depth = 0
    for match in BRACKETS.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > MOST_LEVELS:
            return match.start()
    return len(text)


def jsonl_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a file with one JSON object a line.

    Raises:
        DataError: the file is a JSON array, or UTF-16, or a line does not end.
    """
    return line_blocks(_refuse_array(text_chunks(file, name), name), name)


def _refuse_array(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    for number, chunk in enumerate(chunks):
        if number == 0 and chunk[:4096].lstrip()[:1] == b"[":
            raise DataError(
                "a JSON array where one JSON object a line is expected",
                where=f"{name}:1",
                remedy="write one object a line, or, if the file is one array of objects, name the file .json",
            )
        yield chunk


def jsonl_rows(block: Block) -> RowStream:
    """One JSON object a line; blank lines are passed over."""
    for number, line in enumerate(block.payload.split(b"\n"), start=block.start):
        if line and not line.isspace():
            yield row_of(line.decode(errors="surrogateescape"), block.name, Position(number))


def array_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The elements of a JSON array as (position, text); bytes that are not UTF-8 are marked.

    Raises:
        DataError: the file is not one array, its syntax is broken, or an element does not end.
    """
    found = elements(Window(file, name))
    return blocks_of_rows(((each[0].line, each, len(each[1])) for each in found), name)


def array_rows(block: Block) -> RowStream:
    """The elements of an array; each row has the line that its object begins on."""
    for position, text in block.payload:
        yield row_of(text, block.name, position)


class Window:
    """A stretch of a file's text that begins at `here`; what has been read is dropped at its left."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.text, self.index, self.here = "", 0, Position(1)
        self.ended = False
        self._chunks = text_chunks(file, name)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def grow(self) -> None:
        """Reads on until what is ahead has at least doubled, so that a large element costs no more than its size."""
        pieces = [self.text[self.index :]]
        wanted = 2 * len(pieces[0]) + 1
        while sum(map(len, pieces)) < wanted and not self.ended:
            chunk = next(self._chunks, b"")
            self.ended = not chunk
            pieces.append(self._decoder.decode(chunk, final=self.ended))
        self.text, self.index = "".join(pieces), 0
        if len(pieces[0]) > BLOCK_BYTES:
            refuse_too_large(len(self.text), self.name, self.here.line)

    def take(self, end: int) -> str:
        """The text up to `end`; the position moves behind it."""
        taken = self.text[self.index : end]
        self.here, self.index = self.here.after(taken), end
        return taken

    def next_mark(self) -> str:
        """The next character that is no space, which is not taken; empty at the end of the file."""
        while True:
            mark = self.text[self.index : self.index + 1]
            if mark and mark not in SPACES:
                return mark
            match = JSON_SPACE.match(self.text, self.index)
            if match is not None:
                self.take(match.end())
            elif self.ended:
                return ""
            else:
                self.grow()

    def element(self) -> tuple[Position, str]:
        """The value that begins here and where it begins.

        Raises:
            DataError: its syntax is broken.
        """
        while True:
            try:
                _, end = ENDS.raw_decode(self.text, self.index)
                if self.ended or end + LONGEST_TOKEN <= len(self.text):
                    return self.here, self.take(end)
            except json.JSONDecodeError as error:
                cut = error.pos + LONGEST_TOKEN > len(self.text) or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    self.take(error.pos)
                    raise self.fault(error.msg) from None
            except RecursionError:
                begin = self.here.line
                self.take(self.index + _too_deep(self.text[self.index :]))
                raise DataError(
                    "nesting without end",
                    where=f"{self.name}:{begin}",
                    why=f"more than {MOST_LEVELS} levels at line {self.here.line}, {self.here}",
                    remedy="correct or remove this row",
                ) from None
            self.grow()

    def ahead(self, characters: int) -> str:
        """What comes next on this line, in words."""
        while len(self.text) < self.index + characters and not self.ended:
            self.grow()
        if self.index == len(self.text):
            return "the end of the file"
        return describe(printed(self.text[self.index : self.index + characters].split("\n")[0]))

    def fault(self, message: str) -> DataError:
        """The error that the file's syntax is broken here."""
        return DataError(
            f"not JSON: {message}",
            where=f"{self.name}:{self.here.line}",
            why=f"{self.here}: found {self.ahead(30)}",
            remedy="correct the file; a .json file is one array of objects",
        )


def elements(window: Window, *, whole: bool = True) -> Iterator[tuple[Position, str]]:
    """Every element of the array that begins here; ``whole``: the file holds nothing else."""
    mark = window.next_mark()
    if mark != "[":
        raise _not_an_array(window, mark)
    window.take(window.index + 1)
    mark = window.next_mark()
    while mark != "]":
        yield window.element()
        mark = window.next_mark()
        if mark == ",":
            window.take(window.index + 1)
            if window.next_mark() == "]":
                raise window.fault("a comma before the ] that ends the array")
        elif mark != "]":
            raise window.fault("no comma and no ] after an element of the array")
    window.take(window.index + 1)
    if whole and window.next_mark():
        raise window.fault("more after the end of the array")


def _not_an_array(window: Window, mark: str) -> DataError:
    remedy = "remove what stands before the array: JSON has no comments"
    if mark == "{":
        remedy = "write the rows as an array, or, with one object a line, name the file .jsonl"
    return DataError(
        "a .json file must hold one array of rows",
        where=f"{window.name}:{window.here.line}",
        why=f"{window.here}: found {window.ahead(60)}, expected [",
        remedy=remedy,
    )
