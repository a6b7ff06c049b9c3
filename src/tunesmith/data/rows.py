"""A row as its file has it, and a row that cannot be used; what the readers of all formats share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import DataError

BOM = b"\xef\xbb\xbf"
INVALID_BYTES = re.compile("[\udc80-\udcff]")  # how errors="surrogateescape" marks bytes that are not UTF-8
NOT_UTF8 = "bytes that are not UTF-8"


@dataclass(slots=True)
class Row:
    """One row as the file has it: column name to value; `source` is ``file:line``, or ``file:N`` for the N-th row."""

    fields: dict[str, Any]
    source: str


@dataclass(slots=True)
class BadRow:
    """A row that cannot be used: where, what was found, what was expected, and the row itself as text."""

    source: str
    field: str
    found: str
    expected: str
    raw: str

    def __str__(self) -> str:
        return f"{self.source}: {self.field}: found {self.found}, expected {self.expected}"


Rows = Iterator[Row | BadRow]


def refuse_utf16(data: bytes, name: str) -> None:
    """UTF-16 and UTF-32 begin with marks that no UTF-8 text has.

    Raises:
        DataError: the data begins with one.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the file is UTF-16, not UTF-8", where=name, remedy="save it as UTF-8")


def bad_bytes(line: bytes, position: int) -> str:
    """The byte that does not decode, in words."""
    return f"the byte 0x{line[position]:02x} at byte {position + 1} of the line"


def shown(line: bytes) -> str:
    """A line as text, with bytes that do not decode written out, as \\xNN."""
    return line.rstrip(b"\r").decode(errors="backslashreplace")


def printed(text: str) -> str:
    """Text with undecodable bytes written out, as \\xNN."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
