"""The formats of files that can be read, by the ending of the name.

What is wrong with one row makes a `BadRow` and reading goes on; what leaves the rest of a file without meaning (an
array that is not closed) is a `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tunesmith.data.arrow_rows import parquet_rows
from tunesmith.data.csv_rows import delimited_rows
from tunesmith.data.json_rows import json_rows, jsonl_rows
from tunesmith.data.rows import BOM, BadRow, Row, Rows, bad_bytes, refuse_utf16, shown


def text_rows(data: bytes, name: str) -> Rows:
    """One document a line that is not blank, as {text}.

    Raises:
        DataError: the file is UTF-16.
    """
    refuse_utf16(data, name)
    for number, line in enumerate(data.removeprefix(BOM).split(b"\n"), start=1):
        try:
            text = line.decode().rstrip("\r")
        except UnicodeDecodeError as error:
            yield BadRow(f"{name}:{number}", "row", bad_bytes(line, error.start), "UTF-8", shown(line))
            continue
        if text.strip():
            yield Row({"text": text}, f"{name}:{number}")


FORMATS: Mapping[str, Callable[[bytes, str], Rows]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": lambda data, name: delimited_rows(data, name, ","),
    ".tsv": lambda data, name: delimited_rows(data, name, "\t"),
    ".parquet": parquet_rows,
    ".txt": text_rows,
}
