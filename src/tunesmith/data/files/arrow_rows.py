"""Arrow tables, of parquet files and of `datasets`, -> rows, each with its number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.examples.labels import class_name, class_names, classes_in_words
from tunesmith.data.files.expansion import Expansion
from tunesmith.data.files.parquet_sizes import decoded_batches, joined_batches
from tunesmith.data.files.rows import BLOCK_BYTES, NOT_UTF8, BadRow, Block, Row, RowStream
from tunesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


MOST_ROWS = 4096  # of a block, however small they are


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
        size = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
        rows = min(max(BLOCK_BYTES // max(size, 1), 1), MOST_ROWS)
        batches = decoded_batches(parquet, file, expansion, rows, name)
        yield from batch_blocks(joined_batches(batches, rows), name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError("the parquet file cannot be read", where=name, why=str(error)) from error


def parquet_classes(file: BinaryIO) -> tuple[str, ...]:
    """What is said of the class labels of a parquet file; nothing of a damaged one, which is refused later."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return classes_in_words(label_names(pq.read_schema(file).metadata))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
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
    return class_names(features) if isinstance(features, dict) else {}


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
        return partial(class_name, names=labels)
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
