"""Comma- and tab-separated files -> rows, each with the line it begins on."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from tunesmith.data.examples.row_shapes import listed
from tunesmith.data.files.quoting import parsed
from tunesmith.data.files.rows import (
    INVALID_BYTES,
    LARGEST_ROW,
    NOT_UTF8,
    BadRow,
    Block,
    LeftOut,
    Row,
    RowStream,
    blocks_of_rows,
    printed,
    refuse_too_large,
    refuse_utf16,
)
from tunesmith.data.files.tables import HEADER_AGAIN, Table, is_header, is_rule, unframed, without_repeats
from tunesmith.errors import DataError

LARGEST_FIELD = 2**31 - 1  # what csv.field_size_limit takes on every system
# A record over several lines that has not ended after so many lines or characters began with a stray quote.
MOST_LINES = 100_000
MOST_CHARACTERS = 2**24

Record = list[str] | str  # its fields, or what is wrong with it


class _Lines:
    """The lines of a file, for csv.reader. Those of the present record are kept, so that they can be given back."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.first = 1  # number of the present record's first line
        self.taken: list[str] = []  # lines of the present record
        self.characters = 0  # in them
        self._text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        first = self._text.readline(LARGEST_ROW + 1)
        refuse_utf16(first[:4].encode(errors="surrogateescape"), name)
        self._ahead = deque([first.removeprefix("\ufeff")])  # lines that were read and are not taken

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.taken and (self.characters >= MOST_CHARACTERS or len(self.taken) >= MOST_LINES):
            raise StopIteration
        line = self._ahead.popleft() if self._ahead else self._text.readline(LARGEST_ROW + 1)
        if not line:
            raise StopIteration
        if len(line) > LARGEST_ROW:
            refuse_too_large(len(line), self.name, self.first + len(self.taken))
        self.taken.append(line)
        self.characters += len(line)
        return line

    def end_record(self) -> None:
        """The next line is the first of another record."""
        self.first += len(self.taken)
        self.taken, self.characters = [], 0

    def keep_first(self) -> None:
        """Gives back all lines of the record but its first."""
        self._ahead.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]

    def detach(self) -> None:
        """Leaves the file open."""
        self._text.detach()


def delimited_blocks(file: BinaryIO, name: str, table: Table) -> Iterator[Block]:
    """Records of a csv or tsv file, as (line, fields by column or bad row).

    A record whose fields are all empty is blank, as a blank line is. One that is as short as the table allows gets
    empty fields at its end.

    A record that is equal to a header of known names is left out, as where files were joined.

    A record over several lines has the number of its first. After a record whose quotes do not match, reading goes on
    at the line after its first, so a stray quote costs one row and not those up to the next quote. A quoted field that
    has not ended after MOST_LINES lines, or after the line that reaches MOST_CHARACTERS, began with a stray quote.

    Raises:
        DataError: no header, a column that is used twice, the file is UTF-16, or a line does not end.
    """
    lines = _Lines(file, name)
    try:
        for _ in range(table.skipped):
            next(lines)
        records = _records(lines, table)
        first = next(records, None)
        if first is not None:
            again = None
            if table.names is None:
                header = _header(first, f"{name}:{lines.first}", table)
                again = first if is_header(header[table.columns], table.named) else None
                for _ in range(table.headers - 1):
                    next(records, None)
            else:
                header, records = [*table.names], chain([first], records)
            yield from blocks_of_rows(
                (
                    (lines.first, _row(lines, each, header, table, again=each == again), lines.characters)
                    for each in records
                    if isinstance(each, str) or len(header) == 1 or any(map(str.strip, each))
                ),
                name,
            )
    finally:
        lines.detach()


def delimited_rows(block: Block) -> RowStream:
    """Rows of a block of records; every value is a text."""
    for row in block.payload:
        yield row if isinstance(row, BadRow) else Row(row[1], f"{block.name}:{row[0]}")


def _row(
    lines: _Lines, record: Record, header: list[str], table: Table, *, again: bool
) -> tuple[int, dict[str, str]] | BadRow:
    """The present record as (line, fields by column), or what is wrong with it; ``again``: it is the header."""
    if again:
        return LeftOut(
            f"{lines.name}:{lines.first}", "row", HEADER_AGAIN, "a row", printed("".join(lines.taken).rstrip("\r\n"))
        )
    if not isinstance(record, str) and table.shortest is not None and len(record) >= table.shortest:
        record = [*record, *[""] * (len(header) - len(record))]
    if isinstance(record, str):
        found, expected = record, "quotes in pairs around a field"
    elif any(not text.isascii() and INVALID_BYTES.search(text) for text in record):
        found, expected = NOT_UTF8, "UTF-8"
    elif len(record) != len(header):
        found, expected = _count(len(record)), f"{_count(len(header))} ({listed(header)})"
    else:
        return lines.first, dict(zip(header[table.columns], record[table.columns], strict=True))
    raw = "".join(lines.taken).rstrip("\r\n")
    return BadRow(f"{lines.name}:{lines.first}", "row", found, expected, printed(raw))


def _records(lines: _Lines, table: Table) -> Iterator[Record]:
    """Each record that is not blank; its lines are those that `lines` has taken."""
    reader = parsed(lines, table.delimiter, table.quotes)
    while True:
        lines.end_record()
        # The limit on the length of a field belongs to the process, so it is lifted for one record at a time.
        before = csv.field_size_limit(LARGEST_FIELD)
        try:
            record: Record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.keep_first()
            record = f"a quote without its pair ({error})"
        finally:
            csv.field_size_limit(before)
        if table.framed and not isinstance(record, str):
            record = [] if is_rule(record) else unframed(record)
        if record:
            yield record


def _header(record: Record, where: str, table: Table) -> list[str]:
    if isinstance(record, str) or INVALID_BYTES.search("".join(record)):
        why = record if isinstance(record, str) else NOT_UTF8
        raise DataError("the header line cannot be read", where=where, why=why, remedy="name each column once")
    plain = [name.strip() for name in record]
    if not table.spaced and len({*plain}) == len({*record}):
        record = plain
    names = [*record]
    names[table.columns], _ = without_repeats(record[table.columns], where)
    return names


def _count(fields: int) -> str:
    return f"{fields} field{'' if fields == 1 else 's'}"
