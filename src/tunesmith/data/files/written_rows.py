"""Writes rows to a file in the format of its ending. What is written here, the readers of this package read."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.errors import ExportError

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Iterable[Mapping[str, Any]]
MakeRows = Callable[[], Rows]  # a pass over the rows, which can be repeated
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx")
PARQUET_ROWS = 1000
QUOTED_ENDS = "\r\n"  # until Python 3.13, csv quotes of the two what stands in its own end of a record
# Limits of a sheet: rows with the header, and characters of a cell.
MOST_ROWS, MOST_CHARACTERS = 1_048_576, 32_767
# Characters that XML cannot hold, which a sheet writes as _x0007_, and texts that look so.
NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")


def check_ending(suffix: str, where: str) -> None:
    """Refuses a format that is not written, or whose library is missing.

    Raises:
        ExportError: with what can be written.
    """
    if suffix not in ENDINGS:
        raise ExportError(
            f"{suffix} files are not written" if suffix else "the file's name has no ending",
            where=where,
            why=f"The format is that of the ending: {', '.join(ENDINGS)}.",
            remedy="Name a file with one of these endings, such as answers.csv.",
        )
    if suffix == ".xlsx":
        try:
            import openpyxl  # noqa: F401
        except ModuleNotFoundError as error:
            raise ExportError(
                f"{error.name} writes .xlsx files, and it is not installed",
                where=where,
                remedy="pip install 'tunesmith[xlsx]', or name a .csv file.",
            ) from error


def write_rows(file: BinaryIO, rows: MakeRows, columns: Sequence[str], suffix: str, where: str) -> None:
    """Writes all rows. Tables have all ``columns``; a row of JSON has those that it has.

    Args:
        file: open for writing.
        rows: gives the rows, three times for parquet.
        columns: names of all columns, in their order.
        suffix: one of ENDINGS.
        where: the file, for errors.

    Raises:
        ExportError: a sheet cannot hold the rows.
    """
    if suffix in (".csv", ".tsv"):
        _write_table(file, rows(), columns, "," if suffix == ".csv" else "\t")
    elif suffix == ".parquet":
        _write_parquet(file, rows, columns)
    elif suffix == ".xlsx":
        _write_sheet(file, rows(), columns, where)
    else:
        _write_json(file, rows(), array=suffix == ".json")


def _write_json(file: BinaryIO, rows: Rows, *, array: bool) -> None:
    separator = b",\n" if array else b"\n"
    file.write(b"[\n" if array else b"")
    for number, row in enumerate(rows):
        file.write(separator if number else b"")
        file.write(_json(dict(row)).encode(errors="backslashreplace"))
    file.write(b"\n]\n" if array else b"\n")


class _Records:
    """Ends each record with a line feed, which this package writes; the writer's own end says what it quotes."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.text = text

    def write(self, record: str) -> None:
        self.text.write(record.removesuffix(QUOTED_ENDS) + "\n")


def _write_table(file: BinaryIO, rows: Rows, columns: Sequence[str], delimiter: str) -> None:
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    writer = csv.writer(_Records(text), delimiter=delimiter, lineterminator=QUOTED_ENDS)
    writer.writerow(columns)
    writer.writerows([_text(row.get(name)) for name in columns] for row in rows)
    text.flush()
    text.detach()


def _write_sheet(file: BinaryIO, rows: Rows, columns: Sequence[str], where: str) -> None:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    book = openpyxl.Workbook(write_only=True)
    sheet: Any = book.create_sheet("answers")

    def cells(texts: Iterable[str]) -> list[Any]:
        made = []
        for text in texts:
            escaped = NOT_IN_XML.sub(lambda found: f"_x{ord(found[0]):04X}_", text)
            if len(escaped) > MOST_CHARACTERS:
                raise _too_large(f"a cell has {len(escaped):,} characters", f"{MOST_CHARACTERS:,}", where)
            cell = WriteOnlyCell(sheet, escaped)
            cell.data_type = "s"  # a text that begins with = is no formula
            made.append(cell)
        return made

    sheet.append(cells(columns))
    for number, row in enumerate(rows, start=2):
        if number > MOST_ROWS:
            raise _too_large("there are too many rows for a sheet", f"{MOST_ROWS:,} with the header", where)
        sheet.append(cells(_text(row.get(name)) for name in columns))
    book.save(file)


def _too_large(what: str, limit: str, where: str) -> ExportError:
    return ExportError(
        what,
        where=where,
        why=f"A sheet holds at most {limit}.",
        remedy="Give the same command with an --out that ends with .csv: the answers so far are kept.",
    )


def _write_parquet(file: BinaryIO, rows: MakeRows, columns: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    for batch in _batches(rows()):
        found = pa.schema([(name, _type([row.get(name) for row in batch])) for name in columns])
        schema = _unified(schema, found)
    for batch in _batches(rows()):  # a type may fit the types of all batches, and not each of their values
        schema = pa.schema([field if _fits(batch, field) else pa.field(field.name, pa.string()) for field in schema])
    with pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(rows()):
            arrays = [_array([row.get(field.name) for row in batch], field.type) for field in schema]
            writer.write_table(pa.table(arrays, schema=schema))


def _batches(rows: Rows) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, PARQUET_ROWS)):
        yield batch


def _type(values: list[Any]) -> pa.DataType:
    """The type of some values: text where they have several."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError):
        return pa.string()


def _unified(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """One schema for both: numbers of two types become floating point, and other columns of two types become text."""
    import pyarrow as pa

    if not schema.names:
        return other
    fields = []
    for one, two in zip(schema, other, strict=True):
        try:
            fields.append(pa.unify_schemas([pa.schema([one]), pa.schema([two])], promote_options="permissive")[0])
        except pa.ArrowException:
            fields.append(pa.field(one.name, pa.string()))
    return pa.schema(fields)


def _fits(batch: list[Mapping[str, Any]], field: pa.Field) -> bool:
    """Whether the column holds the batch's values, such as an integer above 2**53 among floating point numbers."""
    import pyarrow as pa

    try:
        _array([row.get(field.name) for row in batch], field.type)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError):
        return False
    return True


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_string(kind):
        values = [
            None if value is None else _text(value).encode(errors="backslashreplace").decode() for value in values
        ]
    return pa.array(values, kind)


def _text(value: object) -> str:
    """A value in a table: text as it is, null as nothing, lists and objects as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return _json(value) if isinstance(value, (bool, int, float, Mapping, list, tuple)) else _other(value)


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, default=_other, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _other(value: object) -> str:
    """A date, a decimal number, bytes: as a text."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
