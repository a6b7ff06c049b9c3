"""The formats of files that can be read, by the ending of the name.

A format cuts a file into blocks, in order and cheaply, and parses one block apart from the others. What is wrong with
one row makes a `BadRow` and reading goes on; what leaves the rest of a file without meaning (an array that is not
closed) is a `DataError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from tunesmith.data.files.arrow_rows import arrow_rows, parquet_blocks
from tunesmith.data.files.csv_rows import delimited_blocks, delimited_rows
from tunesmith.data.files.json_rows import array_blocks, array_rows, jsonl_blocks, jsonl_rows
from tunesmith.data.files.rows import BadRow, Block, Row, RowStream, line_blocks, refuse_too_large, text_chunks
from tunesmith.data.files.sheets import SHEETS, find_sheet, sheet_blocks
from tunesmith.data.files.tables import Table

BLANK_LINE = re.compile(rb"\n[^\S\n]*\n")


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of file is read.

    `blocks(file, name)` cuts a buffered file; `rows(block)` parses a block, wherever it is. `seeks`: blocks needs a
    file in which it can go back and forth; `same_columns`: every row has the columns of the first.
    """

    blocks: Callable[[BinaryIO, str], Iterator[Block]]
    rows: Callable[[Block], RowStream]
    seeks: bool = False
    same_columns: bool = False


def text_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a text file.

    Raises:
        DataError: the file is UTF-16, or a line does not end.
    """
    return line_blocks(text_chunks(file, name), name)


def text_rows(block: Block) -> RowStream:
    """One document a line that is not blank, as {text}."""
    for number, line in enumerate(block.payload.split(b"\n"), start=block.start):
        yield from _document(line, f"{block.name}:{number}")


def paragraph_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a text file, cut at blank ones.

    Raises:
        DataError: the file is UTF-16, or a paragraph does not end.
    """
    start, size, rest = 1, 0, []  # rest: lines of a paragraph that has not ended
    for block in text_blocks(file, name):
        before = b"\n" if size else b""  # the lines before have ended
        cut = max((match.end() for match in BLANK_LINE.finditer(before + block.payload)), default=0) - len(before)
        if cut > 0:
            lines = b"".join([*rest, block.payload[:cut]])
            yield Block(name, start, lines)
            start += lines.count(b"\n")
            rest, size = [], 0
        rest.append(block.payload[max(cut, 0) :])
        size += len(rest[-1])
        refuse_too_large(size, name, start, "leave a blank line between paragraphs")
    if size:
        yield Block(name, start, b"".join(rest))


def paragraph_rows(block: Block) -> RowStream:
    """One document a run of lines that are not blank, as {text}; it is named by its first line."""
    lines: list[bytes] = []
    for number, line in enumerate([*block.payload.split(b"\n"), b""], start=block.start):
        if line.strip():
            lines.append(line)
        elif lines:
            yield from _document(b"\n".join(lines), f"{block.name}:{number - len(lines)}")
            lines = []


def document_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The whole file.

    Raises:
        DataError: the file is UTF-16, or too large for one document.
    """
    chunks, size = [], 0
    for chunk in text_chunks(file, name):
        chunks.append(chunk)
        size += len(chunk)
        refuse_too_large(size, name, 1, "cut the file into several, or set data.sample_by: paragraph")
    yield Block(name, 1, b"".join(chunks))


def document_rows(block: Block) -> RowStream:
    """One document, as {text}, without blank lines around it; none of a blank file."""
    yield from _document(block.payload, f"{block.name}:1")


def _document(data: bytes, source: str) -> RowStream:
    """One row, or none where nothing but white space is in it. Line ends of Windows become plain ones."""
    try:
        text = data.decode().replace("\r\n", "\n").lstrip("\n").rstrip("\r\n")
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        line, number = data[begin:].partition(b"\n")[0], data.count(b"\n", 0, begin) + 1
        found = f"the byte 0x{data[error.start]:02x} at byte {error.start - begin + 1} of the line"
        within = "" if number == 1 else f", line {number} of the document"
        yield BadRow(source, "row", found + within, "UTF-8", line.rstrip(b"\r").decode(errors="backslashreplace"))
        return
    if text.strip():
        yield Row({"text": text}, source)


def table_format(table: Table) -> Format:
    """A table of text that is written so."""
    return Format(partial(delimited_blocks, table=table), delimited_rows, same_columns=True)


def _only_sheet(file: BinaryIO, name: str, suffix: str) -> Iterator[Block]:
    return sheet_blocks(file, name, suffix, find_sheet(file, suffix, name, None))


TEXT_FORMATS: Mapping[str, Format] = {
    "line": Format(text_blocks, text_rows, same_columns=True),
    "paragraph": Format(paragraph_blocks, paragraph_rows, same_columns=True),
    "document": Format(document_blocks, document_rows, same_columns=True),
}
JSONL = Format(jsonl_blocks, jsonl_rows)
FORMATS: Mapping[str, Format] = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": Format(array_blocks, array_rows),
    ".csv": table_format(Table(",")),
    ".tsv": table_format(Table("\t")),
    ".parquet": Format(parquet_blocks, arrow_rows, seeks=True, same_columns=True),
    ".txt": TEXT_FORMATS["line"],
    **{
        suffix: Format(partial(_only_sheet, suffix=suffix), delimited_rows, seeks=True, same_columns=True)
        for suffix in SHEETS
    },
}
