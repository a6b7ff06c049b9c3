"""Rows of tokens in an Arrow file that is mapped into memory, and views of them.

The schema of the file is here, and so is what reads it. ``token_cache.py`` makes the files and keeps them.
"""

from __future__ import annotations

import json
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from tunesmith.data.chat.template import Encoded
from tunesmith.data.files.rows import BadRow
from tunesmith.data.finding import Finding

TOKEN_SCHEMA = pa.schema(
    [
        ("ids", pa.large_list(pa.int32())),
        ("supervised", pa.large_list(pa.bool_())),
        ("learned", pa.int32()),
        ("source", pa.string()),
        ("example", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """An example that the chat template or the supervision rule refuses: its number, and what was said of it."""

    example: int
    source: str
    what: str
    why: str
    remedy: str
    raw: str

    def bad_row(self) -> BadRow:
        """The row as one that cannot be used, for rejected.jsonl."""
        found = f"{self.what} ({self.why})" if self.why else self.what
        return BadRow(self.source, "conversation", found, self.remedy, self.raw)


class EncodedRows(Sequence[Encoded]):
    """Rows of tokens that stay in a file. A slice or a selection is a view. Another process gets the path of the file.

    ``ids`` of a row are read-only, as they are the file's own memory. Rows of more than ``longest`` tokens are cut at
    their right end. A row that begins at token ``starts`` of its row in the file is a later block of it. Its first
    token, which is the last of the block before, has nothing in the block that could predict it and is no label.
    """

    def __init__(
        self,
        file: TokenFile,
        indices: np.ndarray | None = None,
        longest: int | None = None,
        starts: np.ndarray | None = None,
    ) -> None:
        self._file, self._indices, self._longest, self._starts = file, indices, longest, starts

    @property
    def path(self) -> Path:
        """The file that holds the rows."""
        return self._file.path

    @property
    def refused(self) -> list[RefusedRow]:
        """The examples of the whole file that have no rows, because they were refused."""
        return self._file.refused

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [rows]."""
        lengths = self._chosen(self._file.lengths)
        if self._starts is not None:
            lengths = (lengths - self._starts).astype(np.int32)
        return lengths if self._longest is None else np.minimum(lengths, self._longest)

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Labels of each row, int32 [rows]."""
        counts = self._chosen(self._file.supervised_counts)
        if self._longest is None:
            return counts
        counts = counts.copy()
        for number in np.flatnonzero(self._chosen(self._file.lengths) > self.lengths).tolist():
            counts[number] = np.count_nonzero(self[number].supervised)
        return counts

    @cached_property
    def examples(self) -> np.ndarray:
        """The number of the example that each row comes from, int64 [rows]."""
        return self._chosen(self._file.examples)

    def select(self, indices: np.ndarray | Sequence[int], *, longest: int | None = None) -> EncodedRows:
        """The rows at ``indices`` of these, in that order, cut to ``longest`` tokens; nothing is copied.

        Raises:
            IndexError: there is no such row.
        """
        every = np.arange(self._file.rows) if self._indices is None else self._indices
        wanted = np.asarray(indices)
        wanted = wanted if wanted.size else wanted.astype(np.int64)
        limits = [limit for limit in (self._longest, longest) if limit is not None]
        starts = None if self._starts is None else self._starts[wanted]
        return EncodedRows(self._file, every[wanted], min(limits, default=None), starts)

    def split(self, which: np.ndarray, longest: int) -> EncodedRows:
        """The same rows, of which those in ``which`` bool [rows] become blocks of at most ``longest`` tokens.

        A block begins with the last token of the one before, so each label of the row is a label of one block.
        """
        assert self._starts is None and self._longest is None, "rows are split once"
        blocks = np.where(which, blocks_of(self.lengths, longest), 1)  # of each row, int [rows]
        rows = np.repeat(np.arange(len(self)), blocks)  # the row of each block, int [blocks]
        # The number of each block in its row: 0, 1, 2, ...
        number = np.arange(len(rows)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        whole = self.select(rows, longest=longest)
        return EncodedRows(self._file, whole._indices, longest, number * (longest - 1))

    def __len__(self) -> int:
        return self._file.rows if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> EncodedRows: ...
    def __getitem__(self, index: int | slice) -> Encoded | EncodedRows:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        return self._row(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Encoded]:
        return map(self._row, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodedRows, (self._file, self._indices, self._longest, self._starts)

    def _row(self, number: int) -> Encoded:
        at = number if self._indices is None else int(self._indices[number])
        start = 0 if self._starts is None else int(self._starts[number])
        return self._file.row(at, start, self._longest)

    def _chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self._indices is None else values[self._indices]


def blocks_of(lengths: np.ndarray, longest: int) -> np.ndarray:
    """Into how many blocks rows of these lengths are split, int [rows]. Consecutive blocks have one token in common."""
    return np.maximum(-(-(lengths.astype(np.int64) - 1) // (longest - 1)), 1)


class TokenFile:
    """A finished file of token rows, mapped into memory.

    Raises:
        pa.ArrowException, OSError, ValueError, KeyError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pa.memory_map(str(path)) as mapped:
            reader = pa.ipc.open_file(mapped)
            if reader.schema != TOKEN_SCHEMA:
                raise ValueError("it has other columns")
            self.key = reader.schema.metadata[b"key"].decode()
            *batches, end = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            metadata = reader.get_batch_with_custom_metadata(len(batches)).custom_metadata
        if metadata is None or end.num_rows:
            raise ValueError("its end is missing")
        named = ("id", "severity", "rows", "message", "remedy")
        self.findings = [Finding(**{name: each[name] for name in named}) for each in json.loads(metadata[b"findings"])]
        self.refused = [RefusedRow(**each) for each in json.loads(metadata[b"refused"])]
        self._parts = [_Part(batch) for batch in batches]
        self._first = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        self.rows: int = self._first[-1]
        if self.rows != int(metadata[b"rows"]):
            raise ValueError(f"it has {self.rows} rows of {int(metadata[b'rows'])}")

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [rows]."""
        return self._joined(np.int32, lambda part: np.diff(part.starts))

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Labels of each row, int32 [rows]."""
        return self._joined(np.int32, lambda part: part.learned)

    @cached_property
    def examples(self) -> np.ndarray:
        """The number of the example that each row comes from, int64 [rows]."""
        return self._joined(np.int64, lambda part: part.examples)

    def row(self, at: int, start: int = 0, longest: int | None = None) -> Encoded:
        """The row at ``at``, counted from 0: of its tokens from ``start`` on at most ``longest``."""
        number = bisect_right(self._first, at) - 1
        return self._parts[number].row(at - self._first[number], start, longest)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenFile, (self.path,)

    def _joined(self, dtype: type[np.generic], column: Callable[[_Part], np.ndarray]) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *map(column, self._parts)], dtype=dtype, casting="same_kind")


class _Part:
    """One record batch as arrays over the file's memory. Row k has the tokens from starts[k] to starts[k + 1]."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        batch.validate()
        ids, supervised, learned, self.sources, examples = batch.columns
        self.starts = ids.offsets.to_numpy()
        if not np.array_equal(self.starts, supervised.offsets.to_numpy()):
            raise ValueError("labels and tokens do not go together")
        self.ids = ids.values.to_numpy()
        self.bits = np.frombuffer(supervised.values.buffers()[1], dtype=np.uint8)
        self.learned, self.examples = learned.to_numpy(), examples.to_numpy()

    def row(self, at: int, skipped: int, longest: int | None) -> Encoded:
        start, end = int(self.starts[at]) + skipped, int(self.starts[at + 1])
        end = end if longest is None else min(end, start + longest)
        # Arrow keeps 8 labels in a byte, the first in its lowest bit.
        byte, bit = divmod(start, 8)
        bits = np.unpackbits(self.bits[byte : (end + 7) // 8], bitorder="little")
        supervised = bits[bit : bit + end - start].view(np.bool_)
        if skipped:
            supervised[0] = False
        return Encoded(self.ids[start:end], supervised, self.sources[at].as_py(), int(self.examples[at]))


def record_batch(rows: Sequence[Encoded]) -> pa.RecordBatch:
    """Rows as they go into the file."""
    starts = pa.array(np.cumsum([0, *(len(row.ids) for row in rows)], dtype=np.int64))
    ids = np.concatenate([np.empty(0, np.int32), *(row.ids for row in rows)])
    supervised = np.concatenate([np.empty(0, np.bool_), *(row.supervised for row in rows)])
    columns = [
        pa.LargeListArray.from_arrays(starts, pa.array(ids)),
        pa.LargeListArray.from_arrays(starts, pa.array(supervised)),
        pa.array([int(np.count_nonzero(row.supervised)) for row in rows], pa.int32()),
        pa.array([row.source for row in rows], pa.string()),
        pa.array([row.example for row in rows], pa.int64()),
    ]
    return pa.record_batch(columns, schema=TOKEN_SCHEMA)
