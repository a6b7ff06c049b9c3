"""The formats of files that can be read, by the ending of the name.

A format cuts a file into blocks, in order and cheaply, and parses one block apart from the others. What is wrong with
one row makes a `BadRow` and reading goes on; what leaves the rest of a file without meaning (an array that is not
closed) is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from tunesmith.data.arrow_rows import arrow_rows, parquet_blocks
from tunesmith.data.csv_rows import delimited_blocks, delimited_rows
from tunesmith.data.json_rows import array_blocks, array_rows, jsonl_blocks, jsonl_rows
from tunesmith.data.rows import BadRow, Block, Row, Rows, bad_bytes, line_blocks, shown, text_chunks


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of file is read.

    `blocks(file, name)` cuts a buffered file; `rows(block)` parses a block, wherever it is. `seeks`: blocks needs a
    file in which it can go back and forth; `same_columns`: every row has the columns of the first.
    """

    blocks: Callable[[BinaryIO, str], Iterator[Block]]
    rows: Callable[[Block], Rows]
    seeks: bool = False
    same_columns: bool = False


def text_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """The lines of a text file.

    Raises:
        DataError: the file is UTF-16, or a line does not end.
    """
    return line_blocks(text_chunks(file, name), name)


def text_rows(block: Block) -> Rows:
    """One document a line that is not blank, as {text}."""
    for number, line in enumerate(block.payload.split(b"\n"), start=block.start):
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError as error:
            yield BadRow(f"{block.name}:{number}", "row", bad_bytes(line, error.start), "UTF-8", shown(line))
            continue
        if text.strip():
            yield Row({"text": text}, f"{block.name}:{number}")


JSONL = Format(jsonl_blocks, jsonl_rows)
FORMATS: Mapping[str, Format] = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": Format(array_blocks, array_rows),
    ".csv": Format(partial(delimited_blocks, delimiter=","), delimited_rows, same_columns=True),
    ".tsv": Format(partial(delimited_blocks, delimiter="\t"), delimited_rows, same_columns=True),
    ".parquet": Format(parquet_blocks, arrow_rows, seeks=True, same_columns=True),
    ".txt": Format(text_blocks, text_rows, same_columns=True),
}
