"""A row as its file has it, a row that cannot be used, and the blocks that files are read in; all formats share these.

A file is never held whole: it is cut into blocks of about a megabyte, in order and cheaply, and each block can be
parsed on its own, in another process too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from tunesmith.errors import DataError

BOM = b"\xef\xbb\xbf"
INVALID_BYTES = re.compile("[\udc80-\udcff]")  # how errors="surrogateescape" marks bytes that are not UTF-8
NOT_UTF8 = "bytes that are not UTF-8"
UTF16_WITHOUT_A_MARK = re.compile(rb"[^\0]\0[^\0]\0|\0[^\0]\0[^\0]")
BLOCK_BYTES = 2**20
PLACES_SHOWN = 5  # of the rows that are bad for one reason
END_ROWS = "check that the file is what its name says, and end each row with a line end"
LARGEST_ROW = 2**27  # bytes of a line, characters of an element: a larger one is a file without line ends


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
        return f"{self.source}: {self.reason}"

    @property
    def reason(self) -> str:
        """What is wrong with it, without the place."""
        if self.found == "an empty text":
            return f"{self.field} is empty"
        return f"{self.field}: found {self.found}, expected {self.expected}"


@dataclass(slots=True)
class LeftOut(BadRow):
    """A row that the tool that wrote the file marks as not to be used; ``found`` is the tool's word for it."""

    def __str__(self) -> str:
        return f"{self.source}: left out: {self.found}"


@dataclass(slots=True)
class Block:
    """Some rows of a file in their order, not parsed yet; it can be pickled.

    `start` is the number of its first line, or of its first row where rows are counted; `payload` is what the format
    makes of it: whole lines as bytes, records, elements of an array, or an Arrow stream.
    """

    name: str
    start: int
    payload: Any


RowStream = Iterator[Row | BadRow]


def ready_rows(block: Block) -> RowStream:
    """The rows of a block whose payload they are: they were made when the file was cut."""
    yield from block.payload


def by_reason(bad: Iterable[BadRow]) -> list[tuple[int, str]]:
    """Each reason with its number of rows: ``a.jsonl:3: text is empty``, or ``text is empty (a.jsonl:3, 4, 5)``."""
    reasons: dict[str, list[str]] = {}
    for row in bad:
        reasons.setdefault(row.reason, []).append(row.source)
    return [
        (len(places), f"{places[0]}: {reason}" if len(places) == 1 else f"{reason} ({_places(places)})")
        for reason, places in reasons.items()
    ]


def _places(sources: Sequence[str]) -> str:
    """``a.jsonl:1, 2, 3, ...``: the file once, and its lines."""
    said, before = [], None
    for source in sources[:PLACES_SHOWN]:
        name, _, line = source.rpartition(":")
        said.append(line if name == before else source)
        before = name
    return ", ".join([*said, *(["..."] if len(sources) > PLACES_SHOWN else [])])


def refuse_utf16(data: bytes, name: str) -> None:
    """UTF-16 and UTF-32 begin with marks that no UTF-8 text has, or with every second byte zero.

    Args:
        data: how the file begins, at least 4 bytes unless it is shorter.
        name: the file, for the message.

    Raises:
        DataError: the data begins so.
    """
    wide = data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
    if wide or data[:2] in (b"\xff\xfe", b"\xfe\xff") or UTF16_WITHOUT_A_MARK.match(data):
        found = "UTF-32" if wide else "UTF-16"
        order = "be" if data[0] == 0 else "le"
        raise DataError(
            f"the file is {found}, not UTF-8",
            where=name,
            remedy=f"save it as UTF-8, or set data.encoding: {found.lower()}-{order}",
        )


def refuse_too_large(size: int, name: str, line: int, remedy: str = END_ROWS) -> None:
    """Stops before a row that never ends fills the memory.

    Raises:
        DataError: the size is beyond LARGEST_ROW.
    """
    if size > LARGEST_ROW:
        raise DataError(
            f"a row of more than {LARGEST_ROW // 2**20} MB",
            where=f"{name}:{line}",
            why="no end of the row was found within that size",
            remedy=remedy,
        )


def text_chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The bytes of a UTF-8 file without its mark, about a megabyte at a time.

    Raises:
        DataError: the file is UTF-16 or UTF-32.
    """
    chunk = file.read(BLOCK_BYTES)
    refuse_utf16(chunk, name)
    chunk = chunk.removeprefix(BOM)
    while chunk:
        yield chunk
        chunk = file.read(BLOCK_BYTES)


def line_blocks(chunks: Iterable[bytes], name: str) -> Iterator[Block]:
    """Whole lines, about a megabyte at a time; a longer line makes its block longer.

    Raises:
        DataError: a line is beyond LARGEST_ROW.
    """
    start, unended, size = 1, [], 0
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if not end:
            unended.append(chunk)
            size += len(chunk)
            refuse_too_large(size, name, start)
            continue
        lines = b"".join([*unended, chunk[:end]])
        unended, size = [chunk[end:]], len(chunk) - end
        yield Block(name, start, lines)
        start += lines.count(b"\n")
    if size:
        lines = b"".join(unended)
        unended.clear()
        yield Block(name, start, lines)


def blocks_of_rows(rows: Iterable[tuple[int, Any, int]], name: str) -> Iterator[Block]:
    """Rows as (line, row, size) in blocks of about a megabyte, whose payloads are lists of rows."""
    start, contents, size = 0, [], 0
    for line, row, length in rows:
        start = start or line
        contents.append(row)
        size += length
        if size >= BLOCK_BYTES:
            yield Block(name, start, contents)
            start, contents, size = 0, [], 0
    if contents:
        yield Block(name, start, contents)


def printed(text: str) -> str:
    """Text with undecodable bytes written out, as \\xNN."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
