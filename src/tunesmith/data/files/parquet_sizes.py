"""Rows of a parquet file in batches that fit into memory, however small the file is that they come from.

A value that repeats is in a file once, in a dictionary, and rows name it by its number: some hundred bytes can stand
for gigabytes. The sizes of dictionaries are read before rows are decoded, and a file that becomes too large is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.files.expansion import Expansion
from tunesmith.data.files.rows import BLOCK_BYTES, LARGEST_ROW, refuse_too_large
from tunesmith.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DECODED_BYTES = 2**24  # of the rows that are decoded at once
WIDTHS = {"INT64": 8, "DOUBLE": 8, "INT96": 12, "BOOLEAN": 1}  # bytes of a number; others have four
TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


def decoded_batches(
    parquet: pq.ParquetFile, file: BinaryIO, expansion: Expansion, rows: int, name: str
) -> Iterator[pa.RecordBatch]:
    """All rows, at most ``rows`` in a batch, and fewer where they are large.

    Raises:
        DataError: the file becomes too large, or a row is, or the sizes in it contradict each other.
    """
    import pyarrow.parquet as pq

    groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    expansion.refuse_beyond(sum(map(_declared, groups)))
    for group in groups:
        refuse_too_large(_declared(group) // max(group.num_rows, 1), name, 1, "cut its rows into several")
    at_once = min(max(DECODED_BYTES // max(_largest_values(file, groups, name), 1), 1), rows)
    lists = _large_lists(parquet, file, groups)
    if lists:
        file.seek(0)
        coded = pq.ParquetFile(file, read_dictionary=lists, buffer_size=BLOCK_BYTES, pre_buffer=False)
        batches = coded.iter_batches(batch_size=at_once, use_threads=False)
        batches = _written_out(batches, parquet.schema_arrow, expansion, name)
    else:
        batches = parquet.iter_batches(batch_size=at_once, use_threads=False)
    return _counted(batches, expansion, name)


def _large_lists(parquet: pq.ParquetFile, file: BinaryIO, groups: Sequence[Any]) -> list[str]:
    """The columns of texts in lists whose dictionary could make one row larger than a row may be."""
    found = set()
    for number in range(len(parquet.schema)):
        column = parquet.schema.column(number)
        if not column.max_repetition_level or column.physical_type != "BYTE_ARRAY":
            continue
        for group in groups:
            chunk = group.column(number)
            if chunk.has_dictionary_page:
                file.seek(chunk.dictionary_page_offset)
                if _page_bytes(file.read(32)) * chunk.num_values > LARGEST_ROW:
                    found.add(column.path)
                    break
    return sorted(found)


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
            if not column.has_dictionary_page or column.physical_type not in TEXTS:
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


def _written_out(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, expansion: Expansion, name: str
) -> Iterator[pa.RecordBatch]:
    """Batches in which values are numbers of a dictionary, with the values in their place, some rows at a time."""
    start = 1
    for batch in batches:
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            size = sum(_size(column) for column in part.columns)
            if size > DECODED_BYTES and part.num_rows > 1:
                half = part.num_rows // 2
                waiting += [part.slice(half), part.slice(0, half)]
                continue
            expansion.refuse_with(size)
            refuse_too_large(size, name, start, "cut the row into several")
            start += part.num_rows
            yield part.cast(schema)


def _size(array: Any) -> int:
    """The bytes of a column with the values of its dictionaries written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        if not (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
            return array.nbytes
        lengths: Any = pc.call_function("binary_length", [array.dictionary])
        return pc.call_function("sum", [lengths.take(array.indices)]).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_size, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _size(array.flatten())
    return array.nbytes


def joined_batches(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
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
