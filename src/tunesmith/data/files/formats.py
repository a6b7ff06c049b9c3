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

from tunesmith.data.files.arrow_rows import arrow_rows, parquet_blocks
from tunesmith.data.files.csv_rows import delimited_blocks, delimited_rows
from tunesmith.data.files.documents import (
    HTML,
    MARKUP,
    TEXT,
    document_blocks,
    document_rows,
    html_rows,
    page_blocks,
    paragraph_blocks,
    paragraph_rows,
    text_blocks,
    text_rows,
)
from tunesmith.data.files.json_rows import array_blocks, array_rows, jsonl_blocks, jsonl_rows
from tunesmith.data.files.rows import Block, RowStream
from tunesmith.data.files.sheets import SHEETS, find_sheet, sheet_blocks
from tunesmith.data.files.tables import Table


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


def table_format(table: Table) -> Format:
    """A table of text that is written so."""
    return Format(partial(delimited_blocks, table=table), delimited_rows, same_columns=True)


def _only_sheet(file: BinaryIO, name: str, suffix: str) -> Iterator[Block]:
    return sheet_blocks(file, name, suffix, find_sheet(file, suffix, name, None))


LINE, PARAGRAPH, DOCUMENT = "line", "paragraph", "document"
TEXT_FORMATS: Mapping[str, Format] = {
    LINE: Format(text_blocks, text_rows, same_columns=True),
    PARAGRAPH: Format(paragraph_blocks, paragraph_rows, same_columns=True),
    DOCUMENT: Format(document_blocks, document_rows, same_columns=True),
}
PAGES: Mapping[str, Format] = {
    PARAGRAPH: Format(page_blocks, paragraph_rows, same_columns=True),
    DOCUMENT: Format(page_blocks, document_rows, same_columns=True),
}
PAGES_OF_HTML: Mapping[str, Format] = {
    name: Format(document_blocks, partial(html_rows, rows=kind.rows), same_columns=True)
    for name, kind in TEXT_FORMATS.items()
}


def document_format(suffix: str, sample_by: str) -> Format:
    """How a file of text is cut into documents; `auto`: a .txt file by lines, another one is a document."""
    if sample_by == "auto":
        sample_by = LINE if suffix == TEXT else DOCUMENT
    return (PAGES_OF_HTML if suffix in HTML else TEXT_FORMATS)[sample_by]


JSONL = Format(jsonl_blocks, jsonl_rows)
FORMATS: Mapping[str, Format] = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": Format(array_blocks, array_rows),
    ".csv": table_format(Table(",")),
    ".tsv": table_format(Table("\t")),
    ".parquet": Format(parquet_blocks, arrow_rows, seeks=True, same_columns=True),
    **{suffix: document_format(suffix, "auto") for suffix in (TEXT, *MARKUP, *HTML)},
    **{
        suffix: Format(partial(_only_sheet, suffix=suffix), delimited_rows, seeks=True, same_columns=True)
        for suffix in SHEETS
    },
}
