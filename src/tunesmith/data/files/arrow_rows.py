"""Arrow tables, of parquet files and of `datasets`, -> rows, each with its number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.examples.labels import classes_in_words
from tunesmith.data.files.expansion import Expansion
from tunesmith.data.files.rows import (
    BLOCK_BYTES,
    LARGEST_ROW,
    NOT_UTF8,
    BadRow,
    Block,
    Row,
    RowStream,
    refuse_too_large,
)
from tunesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


MOST_ROWS = 4096  # of a block, however small they are
DECODED_BYTES = 2**26  # of the rows that are decoded at once
WIDTHS = {"INT64": 8, "DOUBLE": 8, "INT96": 12, "BOOLEAN": 1}  # bytes of a number; others have four


def parquet_blocks(file: BinaryIO, name: str) -> Iterator[Block]:
    """Row groups of a parquet file, in parts of about a megabyte.

    Raises:
        DataError: the file is not parquet, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        packed = file.seek(0, 2)
        expansion = Expansion(name, lambda: packed, "write it as .jsonl with the program that you trust")
        parquet = pq.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False)
        groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
        expansion.refuse_beyond(sum(map(_declared, groups)))
        size = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
        rows = min(max(BLOCK_BYTES // max(size, 1), 1), MOST_ROWS)
        at_once = min(max(DECODED_BYTES // max(_largest_values(file, groups, name), 1), 1), rows)
        batches = parquet.iter_batches(batch_size=at_once, use_threads=False)
        yield from batch_blocks(_joined(_counted(batches, expansion, name), rows), name)
    except (pa.ArrowException, OSError) as error:
        raise DataError("the parquet file cannot be read", where=name, why=str(error)) from error


def _declared(group: Any) -> int:
    """The bytes of a row group that its footer tells of: of its pages, and of each number in them."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(
        max(each.total_uncompressed_size, each.num_values * WIDTHS.get(each.physical_type, 4)) for each in columns
    )


def _largest_values(file: BinaryIO, groups: Sequence[Any], name: str) -> int:
    """The most bytes that one row can have by naming values of its columns' dictionaries.

    A dictionary holds each value once, and a row names one by its number. Its page says how large it is.

    Raises:
        DataError: a page is larger than the footer says.
    """
    most = 0
    for group in groups:
        size = 0
        for number in range(group.num_columns):
            column = group.column(number)
            if not column.has_dictionary_page or column.physical_type not in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
                continue
            file.seek(column.dictionary_page_offset)
            found = _page_bytes(file.read(32))
            if found > column.total_uncompressed_size:
                raise DataError(
                    "the parquet file cannot be read",
                    where=name,
                    why="a page in it is larger than its own footer says",
                    remedy="write it again with the program that made it",
                )
            size += column.total_uncompressed_size if found < 0 else found
        most = max(most, size)
    return most


def _page_bytes(header: bytes) -> int:
    """The unpacked bytes of a page, the second number of its header in Thrift's compact form; -1 if it is none."""
    at, found = 0, []
    for _ in range(2):
        if header[at : at + 1] != b"\x15":  # a 32-bit number in the next field
            return -1
        at, shift, value = at + 1, 0, 0
        while at < len(header) and shift < 35:
            value |= (header[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not header[at - 1] & 0x80:
                break
        found.append((value >> 1) ^ -(value & 1))
    return found[1]


def _counted(batches: Iterable[pa.RecordBatch], expansion: Expansion, name: str) -> Iterator[pa.RecordBatch]:
    """The batches, as far as they are not too large for the file, or for a row."""
    start = 1
    for batch in batches:
        expansion.add(batch.nbytes)
        if batch.nbytes > LARGEST_ROW:
            for index in range(batch.num_rows):
                refuse_too_large(batch.slice(index, 1).nbytes, name, start + index, "cut the row into several")
        start += batch.num_rows
        yield batch


def _joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about so many."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        if waiting and (count + batch.num_rows > rows or size + batch.nbytes > BLOCK_BYTES):
            yield waiting[0] if len(waiting) == 1 else pa.concat_batches(waiting)
            waiting, count, size = [], 0, 0
        waiting.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
    if waiting:
        yield waiting[0] if len(waiting) == 1 else pa.concat_batches(waiting)


def parquet_classes(file: BinaryIO) -> tuple[str, ...]:
    """What is said of the class labels of a parquet file; nothing of a damaged one, which is refused later."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return classes_in_words(label_names(pq.read_schema(file).metadata))
    except (pa.ArrowException, OSError):
        return ()


def batch_blocks(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[Block]:
    """Arrow batches, each written as an Arrow stream with its schema; rows are counted from 1 through all of them."""
    import pyarrow as pa

    start = 1
    for batch in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        yield Block(name, start, sink.getvalue().to_pybytes())
        start += batch.num_rows


def label_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column to class names, from the note that `datasets` leaves in a schema."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface") or "{}")["info"]["features"]
    except (ValueError, KeyError, TypeError, IndexError):  # there is none, or it is not datasets'
        return {}
    if not isinstance(features, dict):
        return {}
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def arrow_rows(block: Block) -> RowStream:
    """Rows of an Arrow stream, each with its number.

    Inside lists and structs a null says only that another row has the key, so it is taken away there; a null column
    value stays. Columns of JSON text are decoded; columns that `datasets` marked as class labels become the labels'
    names (no name for -1: null).
    """
    import pyarrow as pa

    stream = pa.ipc.open_stream(block.payload)
    labels = label_names(stream.schema.metadata)
    convert = {column.name: _converter(column.type, labels.get(column.name)) for column in stream.schema}
    rows = (fields for batch in stream for fields in _batch_rows(batch, convert))
    for number, fields in enumerate(rows, start=block.start):
        source = f"{block.name}:{number}"
        bad = isinstance(fields, str)
        yield BadRow(source, "row", fields, "values that can be decoded", "") if bad else Row(fields, source)


def _converter(kind: pa.DataType, labels: Sequence[str] | None = None) -> Callable[[Any], Any] | None:
    """How a value that is not null becomes a field's value; None: as it is."""
    import pyarrow as pa

    if labels is not None:
        return lambda value: labels[value] if 0 <= value < len(labels) else None
    if isinstance(kind, pa.JsonType):
        return json.loads
    if pa.types.is_struct(kind):
        inner = {part.name: _converter(part.type) for part in kind.fields}
        return lambda value: {key: _apply(inner[key], item) for key, item in value.items() if item is not None}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item_converter = _converter(kind.value_type)
        return lambda value: [_apply(item_converter, item) for item in value]
    return None


def _apply(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _batch_rows(batch: pa.RecordBatch, convert: Mapping[str, Callable[[Any], Any] | None]) -> Iterator[Any]:
    """A dict for each row, or a text that says what is wrong with it."""
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):  # not UTF-8 among them; a date beyond those that Python has
        rows = [_single_row(batch.slice(index, 1)) for index in range(batch.num_rows)]
    for row in rows:
        try:
            yield row if isinstance(row, str) else {key: _apply(convert[key], value) for key, value in row.items()}
        except (ValueError, RecursionError) as error:
            yield f"a column of JSON that is none ({error})"


def _single_row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, OverflowError) as error:
        return f"a value that cannot be read ({error})"
