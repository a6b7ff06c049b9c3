"""Comma- and tab-separated files -> rows, each with the line it begins on."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from tunesmith.data.examples.message import describe, printable
from tunesmith.data.examples.row_shapes import listed
from tunesmith.data.files.rows import (
    BLOCK_BYTES,
    INVALID_BYTES,
    LARGEST_ROW,
    NOT_UTF8,
    BadRow,
    Block,
    Row,
    Rows,
    printed,
    refuse_too_large,
    refuse_utf16,
)
from tunesmith.errors import DataError

LARGEST_FIELD = 2**31 - 1  # what csv.field_size_limit takes on every system
# A record over several lines that has not ended after so many lines or characters began with a stray quote.
MOST_LINES = 100_000
MOST_CHARACTERS = 2**24


class _Lines:
    """The lines of a file, for csv.reader: those of the present record are kept, so that it can be set back."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.before = 0  # lines before the present record
        self.taken: list[str] = []  # lines of the present record
        self.characters = 0  # in them
        self._text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        first = self._text.readline(LARGEST_ROW + 1)
        refuse_utf16(first[:4].encode(errors="surrogateescape"), name)
        self._ahead = deque([first.removeprefix("\ufeff")])  # lines that were read and are not taken

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        taken = self.taken
        if taken and (self.characters >= MOST_CHARACTERS or len(taken) >= MOST_LINES):
            raise StopIteration
        line = self._ahead.popleft() if self._ahead else self._text.readline(LARGEST_ROW + 1)
        if not line:
            raise StopIteration
        if len(line) > LARGEST_ROW:
            refuse_too_large(len(line), self.name, self.before + len(taken) + 1)
        taken.append(line)
        self.characters += len(line)
        return line

    def end_record(self) -> None:
        """The next line is the first of another record."""
        self.before += len(self.taken)
        self.taken, self.characters = [], 0

    def keep_first(self) -> None:
        """Gives back all lines of the record but its first."""
        self._ahead.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    def detach(self) -> None:
        """Leaves the file open."""
        self._text.detach()


def delimited_blocks(file: BinaryIO, name: str, delimiter: str) -> Iterator[Block]:
    """Records of a csv or tsv file with a header line, as (header, [(line, record) or bad row]).

    A record over several lines has the number of its first. After a record whose quotes do not match, reading goes on
    at the line after its first, so that a stray quote costs one row and not those up to the next quote; a quoted field
    that has not ended after MOST_LINES lines, or after the line that reaches MOST_CHARACTERS, began with one.

    Raises:
        DataError: no header, the same column twice, the file is UTF-16, or a line does not end.
    """
    lines = _Lines(file, name)
    try:
        records = _records(lines, delimiter)
        with _large_fields():
            first = next(records, None)
        if first is None:
            return
        header = _header(first, f"{name}:{lines.before + 1}", delimiter)
        while block := _block(lines, records, header):
            yield block
    finally:
        lines.detach()


def delimited_rows(block: Block) -> Rows:
    """Rows of a block of records; every value is a text."""
    header, records = block.payload
    for record in records:
        if isinstance(record, BadRow):
            yield record
        else:
            line, fields = record
            yield Row(dict(zip(header, fields, strict=True)), f"{block.name}:{line}")


def _block(lines: _Lines, records: Iterator[list[str] | str], header: list[str]) -> Block | None:
    """The next records, about a megabyte; none at the end."""
    taken: list[tuple[int, list[str]] | BadRow] = []
    start, size = 0, 0
    with _large_fields():
        for record in records:
            line = lines.before + 1
            start = start or line
            taken.append(_bad(lines, record, header) or (line, record))  # type: ignore[arg-type]  (a list, if not bad)
            size += lines.characters
            if size >= BLOCK_BYTES:
                break
    return Block(lines.name, start, (header, taken)) if taken else None


def _bad(lines: _Lines, record: list[str] | str, header: list[str]) -> BadRow | None:
    """What is wrong with the present record, if anything is."""
    if isinstance(record, str):
        found, expected = record, "quotes in pairs around a field"
    elif any(not text.isascii() and INVALID_BYTES.search(text) for text in record):
        found, expected = NOT_UTF8, "UTF-8"
    elif len(record) != len(header):
        found, expected = _count(len(record)), f"{_count(len(header))} ({listed(header)})"
    else:
        return None
    raw = "".join(lines.taken).rstrip("\r\n")
    return BadRow(f"{lines.name}:{lines.before + 1}", "row", found, expected, printed(raw))


def _records(lines: _Lines, delimiter: str) -> Iterator[list[str] | str]:
    """Each record that is not blank, or what is wrong with it; its lines are those that `lines` has taken."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.end_record()
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.keep_first()
            yield f"a quote without its pair ({error})"
            continue
        if record:
            yield record


def _header(record: list[str] | str, source: str, delimiter: str) -> list[str]:
    if isinstance(record, str) or INVALID_BYTES.search("".join(record)):
        why = record if isinstance(record, str) else NOT_UTF8
        raise DataError("the header line cannot be read", where=source, why=why, remedy="name each column once")
    twice = [name for name in record if record.count(name) > 1]
    if twice:
        raise DataError(
            f"the header names the column {printable(twice[0])!r} twice", where=source, remedy="name each column once"
        )
    if len(record) == 1 and delimiter == "," and re.search("[;\t]", record[0]):
        raise DataError(
            "the header is one column, with other separators than commas in it",
            where=source,
            why=f"found {describe(record[0])}",
            remedy="save the file with commas, or with tabs and the name .tsv",
        )
    return record


def _count(fields: int) -> str:
    return f"{fields} field{'' if fields == 1 else 's'}"


@contextmanager
def _large_fields() -> Iterator[None]:
    """csv's limit of 131,072 characters a field is one of the process: lifted while a file is read."""
    before = csv.field_size_limit(LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
