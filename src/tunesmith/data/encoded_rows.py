"""Examples to token rows, by several processes, streamed into a memory-mapped Arrow file that is kept for the next run.

The rows and the bytes of the file are the same whatever the number of processes. A file is found again by a key that
holds everything tokens depend on, and it takes its name only when it is whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from tunesmith.data.chat.notes import Notes
from tunesmith.data.chat.template import ChatTemplate, Encoded
from tunesmith.data.checks.pool import end_with
from tunesmith.data.examples.example import Example
from tunesmith.data.finding import Finding
from tunesmith.errors import DataError, TunesmithError
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.whole_files import put_in_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Block = Sequence[tuple[int, Example]]

FORMAT = 1  # of the file and of the code that makes tokens: raise it with any change that alters either
POOL_FROM = 2_000  # examples; fewer are encoded before other processes have started
CACHE_LIMIT = 20 * 2**30  # bytes
WAIT_BEFORE_SAYING_S = 3.0

_SCHEMA = pa.schema(
    [
        ("ids", pa.large_list(pa.int32())),
        ("supervised", pa.large_list(pa.bool_())),
        ("learned", pa.int32()),
        ("source", pa.string()),
        ("example", pa.int64()),
    ]
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".ckpt")
_DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)  # what reading a damaged file can raise


class EncodedRows(Sequence[Encoded]):
    """Rows of tokens that stay in a file. A slice or a selection is a view of it; sent elsewhere, rows go by path.

    ``ids`` of a row are read-only, as they are the file's own memory. Rows of more than ``longest`` tokens are cut at
    their right end. A row that begins at the token ``starts`` of its row in the file is a later block of it: its first
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
        """The same rows, those of ``which`` bool [rows] as consecutive blocks of at most ``longest`` tokens.

        A block begins with the last token of the one before, so each label of the row is a label of one block.
        """
        assert self._starts is None and self._longest is None, "rows are split once"
        blocks = np.where(which, blocks_of(self.lengths, longest), 1)
        rows = np.repeat(np.arange(len(self)), blocks)
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
    """Into how many blocks rows of these lengths are split: consecutive ones have one token in common."""
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
            if reader.schema != _SCHEMA:
                raise ValueError("it has other columns")
            self.key = reader.schema.metadata[b"key"].decode()
            *batches, end = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            facts = reader.get_batch_with_custom_metadata(len(batches)).custom_metadata
        if facts is None or end.num_rows:
            raise ValueError("its end is missing")
        self.findings = [_finding(stored) for stored in json.loads(facts[b"findings"])]
        self._parts = [_Part(batch) for batch in batches]
        self._first = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        self.rows: int = self._first[-1]
        if self.rows != int(facts[b"rows"]):
            raise ValueError(f"it has {self.rows} rows of {int(facts[b'rows'])}")

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


def _finding(stored: Mapping[str, Any]) -> Finding:
    return Finding(**{name: stored[name] for name in ("id", "severity", "rows", "message", "remedy")})


class _Part:
    """One record batch as arrays over the file's memory."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        batch.validate()
        ids, supervised, learned, self.sources, examples = batch.columns
        self.starts = _offsets(ids)
        if not np.array_equal(self.starts, _offsets(supervised)):
            raise ValueError("labels and tokens do not go together")
        self.ids = ids.values.to_numpy()
        self.bits = np.frombuffer(supervised.values.buffers()[1], dtype=np.uint8)
        self.learned, self.examples = learned.to_numpy(), examples.to_numpy()

    def row(self, at: int, skipped: int, longest: int | None) -> Encoded:
        start, end = int(self.starts[at]) + skipped, int(self.starts[at + 1])
        end = end if longest is None else min(end, start + longest)
        byte, bit = divmod(start, 8)
        bits = np.unpackbits(self.bits[byte : (end + 7) // 8], bitorder="little")
        supervised = bits[bit : bit + end - start].view(np.bool_)
        if skipped:
            supervised[0] = False
        return Encoded(self.ids[start:end], supervised, self.sources[at].as_py(), int(self.examples[at]))


def _offsets(column: pa.LargeListArray) -> np.ndarray:
    return column.offsets.to_numpy()


def encoded(
    blocks: Iterable[Block],
    *,
    template: ChatTemplate,
    folder: Path,
    key: str,
    cache: Path,
    workers: int,
    listener: Listener | None = None,
    total: int | None = None,
) -> tuple[EncodedRows, list[Finding]]:
    """The rows of all examples in order, and what was noticed about them; from the cache where they are in it.

    Args:
        blocks: (example number, example) in order, a few hundred to thousands in a block; read only where the cache
            has no rows, and a few blocks ahead.
        template: how examples become rows; its own notes stay as they are.
        folder: the model folder that the template's tokenizer was loaded from.
        key: a hash of the examples: their content, numbers and sources.
        cache: the rows are kept in ``tokens`` in this folder.
        workers: processes; with 1, or few examples, all is done in this one.
        total: number of examples where it is known, for the listener.

    Raises:
        DataError: a row cannot be encoded: the first such row in order. The cache cannot be written, or a process was
            ended from outside.
    """
    listener = listener or Silent()
    whole_key = token_key(key, template, folder)
    path = cache / "tokens" / f"{whole_key}.arrow"
    file = _cached(path, whole_key, listener)
    if file is None:
        with _cache_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(path, listener):
            _remove_unfinished(path.parent)
            file = _cached(path, whole_key, Silent())  # another process may have made it
            if file is None:
                with (
                    listener.task("rows to tokens", total) as advance,
                    closing(_encoded_parts(blocks, template, workers)) as parts,
                ):
                    _write(path, whole_key, parts, lambda done: advance(done, {}))
                file = TokenFile(path)
                trim(path.parent, CACHE_LIMIT, keep=path)
    with suppress(OSError):  # a cache may be for reading only
        os.utime(path)
    return EncodedRows(file), file.findings


def token_key(data: str, template: ChatTemplate, folder: Path) -> str:
    """Names everything that tokens depend on: the examples, the template with its settings, the tokenizer, versions.

    The date counts only where the template prints it, so that a new day does not encode all rows again.
    """
    rules = template.rules
    dated = any("strftime_now" in text for text in rules.templates.values())
    ingredients = {
        "format": FORMAT,
        "versions": [version(name) for name in ("tunesmith", "tokenizers", "transformers", "jinja2")],
        "data": data,
        "tokenizer": _file_hashes(folder),
        "stop_ids": template.stop_ids,
        "templates": dict(rules.templates),
        "kwargs": dict(rules.kwargs),
        "date": rules.date if dated else None,
        "control_tokens": rules.control_tokens,
        "train_on": rules.train_on,
        "added_tokens": _added_tokens(template),
    }
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:40]


def _added_tokens(template: ChatTemplate) -> list[tuple[str, int, bool]]:
    """Of the recipe, with their ids and whether they are special: the tokenizer's files do not have them."""
    known = {
        token.content: (number, token.special) for number, token in template.tokenizer.added_tokens_decoder.items()
    }
    return [(text, *known.get(text, (-1, False))) for text in template.rules.added_tokens]


def trim(folder: Path, limit: int, *, keep: Path) -> None:
    """Removes the files that were not used for longest until ``limit`` bytes are left; never ``keep``."""
    facts = {path: path.stat() for path in folder.glob("*.arrow")}
    total = sum(fact.st_size for fact in facts.values())
    for path in sorted(facts, key=lambda path: facts[path].st_mtime_ns):
        if total > limit and path != keep:
            path.unlink(missing_ok=True)
            total -= facts[path].st_size


def _file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that a tokenizer may be made of: all but weights, as model families name theirs freely."""
    paths = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
    hashes = {}
    for path in sorted(paths):
        if path.is_file() and path.suffix not in _WEIGHTS:
            with path.open("rb") as file:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


# ---- the file


def _cached(path: Path, key: str, listener: Listener) -> TokenFile | None:
    if not path.exists():
        return None
    try:
        file = TokenFile(path)
        if file.key != key:
            raise ValueError("it has another key")
    except _DAMAGED as error:
        listener.warn(f"{path}: the kept tokens are damaged ({error}); the rows are encoded again")
        return None
    return file


def _write(path: Path, key: str, parts: Iterable[_Made], advance: Callable[[int], None]) -> None:
    """Writes a file beside ``path`` that takes its name when it is whole, with the findings in its last batch."""
    partial, schema = path.with_suffix(".partial"), _SCHEMA.with_metadata({"key": key})
    notes, rows, done = Notes(), 0, 0
    with _cache_errors(path.parent):
        sink = partial.open("wb")
    try:
        with sink:
            writer = pa.ipc.new_file(sink, schema)
            for part in parts:
                with _cache_errors(path.parent):
                    if part.batch.num_rows:
                        writer.write_batch(part.batch)
                notes.merge(part.notes)
                rows += part.batch.num_rows
                done += part.examples
                advance(done)
            findings = json.dumps([finding.to_json() for finding in notes.findings()])
            with _cache_errors(path.parent):
                writer.write_batch(_batch([]), custom_metadata={"rows": str(rows), "findings": findings})
                writer.close()
        with _cache_errors(path.parent):
            put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left; a file whose lock is held is still being written."""
    for partial in folder.glob("*.partial"):
        with suppress(Timeout), FileLock(partial.with_suffix(".lock"), timeout=0):
            partial.unlink(missing_ok=True)


@contextmanager
def _only_process(path: Path, listener: Listener) -> Iterator[None]:
    lock = FileLock(path.with_suffix(".lock"))
    with _cache_errors(path.parent):
        try:
            lock.acquire(timeout=WAIT_BEFORE_SAYING_S)
        except Timeout:
            listener.say("Another process encodes the same rows; waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            "the cache of encoded rows cannot be written",
            where=str(folder),
            why=str(error),
            remedy="free some space there, or set TUNESMITH_CACHE to a folder with room that you may write to.",
        ) from error


# ---- encoding


@dataclass(frozen=True, slots=True)
class _Made:
    """What became of a block."""

    batch: pa.RecordBatch
    notes: Notes
    examples: int


def _encoded_parts(blocks: Iterable[Block], template: ChatTemplate, workers: int) -> Generator[_Made, None, None]:
    """The blocks encoded, in order. What stops the reading of blocks is raised behind the rows before it."""
    failures: list[TunesmithError] = []
    reader = _until_failure(blocks, failures)
    head, count = [], 0
    for block in reader if workers > 1 else ():
        head.append(block)
        count += len(block)
        if count >= POOL_FROM:
            break
    every = chain(head, reader)
    recipe = (template.tokenizer, template.describe(), template.stop_ids)
    if count >= POOL_FROM:
        yield from _by_workers(every, recipe, workers)
    else:
        yield from map(functools.partial(_encode, _restored(*recipe)), every)
    if failures:
        raise failures[0]


def _until_failure(blocks: Iterable[Block], failures: list[TunesmithError]) -> Iterator[Block]:
    try:
        yield from blocks
    except TunesmithError as error:
        failures.append(error)


def _by_workers(blocks: Iterable[Block], recipe: tuple[Any, ...], workers: int) -> Iterator[_Made]:
    """The same by processes that get a copy of the tokenizer: it is far smaller than what loading one imports."""
    from loky import ProcessPoolExecutor
    from loky.process_executor import BrokenProcessPool

    executor = ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(), *recipe))
    waiting: deque[Any] = deque()
    try:
        for block in blocks:
            waiting.append(executor.submit(_encode_in_worker, block))
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that turns rows into tokens was ended",
            why="Most often the system ends a process because memory runs out.",
            remedy="free memory, or use fewer processes.",
        ) from error
    finally:
        executor.shutdown(kill_workers=True)


_template_of_worker: Callable[[], ChatTemplate]  # set in worker processes only


def _begin(parent: int, *recipe: Any) -> None:
    """Readies a worker process, which ends with its parent however that ends."""
    global _template_of_worker
    end_with(parent)
    _template_of_worker = functools.cache(functools.partial(_restored, *recipe))


def _restored(tokenizer: PreTrainedTokenizerBase, rules: Mapping[str, Any], stop_ids: Sequence[int]) -> ChatTemplate:
    return ChatTemplate.restore(tokenizer, rules, stop_ids=stop_ids)


def _encode_in_worker(block: Block) -> _Made:
    return _encode(_template_of_worker(), block)


def _encode(template: ChatTemplate, block: Block) -> _Made:
    rows = [row for number, example in block for row in template.encode(example, number)]
    return _Made(_batch(rows), template.notes.take(), len(block))


def _batch(rows: Sequence[Encoded]) -> pa.RecordBatch:
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
    return pa.record_batch(columns, schema=_SCHEMA)
