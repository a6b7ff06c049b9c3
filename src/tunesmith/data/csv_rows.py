"""Comma- and tab-separated files -> rows, each with the line it begins on."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.data.message import describe, printable
from tunesmith.data.rows import BOM, INVALID_BYTES, NOT_UTF8, BadRow, Row, Rows, printed, refuse_utf16
from tunesmith.data.shape import listed
from tunesmith.errors import DataError

LARGEST_FIELD = 2**31 - 1  # what csv.field_size_limit takes on every system


class _Lines:
    """The lines of a text, for csv.reader: it can be set back, and knows how many lines have been taken."""

    def __init__(self, text: str) -> None:
        self.lines = list(io.StringIO(text, newline=""))
        self.taken = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.taken >= len(self.lines):
            raise StopIteration
        self.taken += 1
        return self.lines[self.taken - 1]


def delimited_rows(data: bytes, name: str, delimiter: str) -> Rows:
    """Rows of a csv or tsv file with a header line. A record over several lines has the number of its first.

    After a record whose quotes do not match, reading goes on at the line after its first, so that a stray quote costs
    one row and not those up to the next quote. Every value is a text.

    Raises:
        DataError: no header, or the same column twice.
    """
    refuse_utf16(data, name)
    lines = _Lines(data.removeprefix(BOM).decode(errors="surrogateescape"))
    header: list[str] | None = None
    with _large_fields():
        records = list(_records(lines, delimiter))
    for start, end, record in records:
        source, raw = f"{name}:{start + 1}", "".join(lines.lines[start:end]).rstrip("\r\n")
        if header is None:
            header = _header(record, source, delimiter)
        elif isinstance(record, str):
            yield BadRow(source, "row", record, "quotes in pairs around a field", printed(raw))
        elif INVALID_BYTES.search(raw):
            yield BadRow(source, "row", NOT_UTF8, "UTF-8", printed(raw))
        elif len(record) != len(header):
            yield BadRow(source, "row", _count(len(record)), f"{_count(len(header))} ({listed(header)})", raw)
        else:
            yield Row(dict(zip(header, record, strict=True)), source)


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[int, int, list[str] | str]]:
    """(first line, line after the last, the record, or what is wrong with it), lines counted from 0."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.taken
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.taken = start + 1
            yield start, start + 1, f"a quote without its pair ({error})"
            continue
        if record:
            yield start, lines.taken, record


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
