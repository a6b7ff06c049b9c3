"""Examples to token rows, by several processes, streamed into a file that is kept for the next run.

The rows and the bytes of the file are the same whatever the number of processes. A file is found again by a key that
holds everything that tokens depend on, and it takes its name only when it is whole. Its sha256 stands in a file
beside it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from filelock import FileLock, Timeout

from tunesmith.data.chat.notes import Notes
from tunesmith.data.chat.template import ChatTemplate, Encoded
from tunesmith.data.checks.pool import end_with
from tunesmith.data.encoded_rows import TOKEN_SCHEMA, EncodedRows, RefusedRow, TokenFile, record_batch
from tunesmith.data.examples.example import Example
from tunesmith.data.finding import Finding
from tunesmith.errors import DataError, TunesmithError
from tunesmith.runs.cache import only_process, writable
from tunesmith.runs.child_processes import worker_pool
from tunesmith.runs.disk import is_full, why_full
from tunesmith.runs.manifest import sha256_of
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.temporary import temporary
from tunesmith.runs.whole_files import put_in_place, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NumberedExamples = Sequence[tuple[int, Example]]

TOKEN_FORMAT = 4  # of the file and of the code that makes tokens: raise it with any change that alters either
POOL_FROM = 2_000  # examples; fewer are encoded before other processes have started
REFUSED_NAMED = 5  # so many rows are named in a refusal, beside the first
CACHE_LIMIT = 20 * 2**30  # bytes

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".ckpt")
_DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)  # what reading a damaged file can raise


def encode_rows(
    blocks: Iterable[NumberedExamples],
    *,
    template: ChatTemplate,
    folder: Path,
    key: str,
    cache: Path,
    workers: int,
    listener: Listener | None = None,
    total: int | None = None,
    stops: bool = True,
) -> tuple[EncodedRows, list[Finding]]:
    """The rows of all examples in order, and the findings about them; from the cache where they are in it.

    Args:
        blocks: the examples in order with their numbers, hundreds to thousands in a block. They are read only if the
            cache does not have the rows, a few blocks ahead.
        template: turns examples into rows; its own notes stay as they are.
        folder: the model folder that the template's tokenizer was loaded from.
        key: a hash of the examples: their content, numbers and sources.
        cache: the rows are kept in the folder ``tokens`` inside it.
        workers: processes; with 1, or with few examples, all rows are encoded in this one.
        total: number of examples where it is known, for the listener.
        stops: whether a row that cannot be encoded is an error; else it is in ``EncodedRows.refused``.

    Raises:
        DataError: a row cannot be encoded (the first such row in order), the cache cannot be written, or a process
            was ended from outside.
    """
    listener = listener or Silent()
    whole_key = token_key(key, template, folder)
    path = cache / "tokens" / f"{whole_key}.arrow"
    file = _cached(path, whole_key, listener)
    if file is None:
        with _cache_errors(cache):
            path = writable(cache, listener.warn) / "tokens" / path.name
        with ExitStack() as locked:
            with _cache_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                waiting = "Another process encodes the same rows; waiting for it."
                locked.enter_context(only_process(path.with_suffix(".lock"), waiting, say=listener.say))
            _remove_unfinished(path.parent)
            file = _cached(path, whole_key, Silent())  # another process may have made it
            if file is None:
                with (
                    listener.task("rows to tokens", total) as advance,
                    closing(_encoded_blocks(blocks, template, workers)) as parts,
                ):
                    _write(path, whole_key, parts, lambda done: advance(done, {}), stops=stops)
                file = TokenFile(path)
                trim(path.parent, CACHE_LIMIT, keep=path)
    if stops and file.refused:
        raise refusal(file.refused, others=file.rows > 0)
    with suppress(OSError):  # a cache may be for reading only
        os.utime(path)
    return EncodedRows(file), file.findings


def token_key(data: str, template: ChatTemplate, folder: Path) -> str:
    """A hash of all that tokens depend on: the examples, the template with its settings, the tokenizer, versions.

    The date counts only where the template prints it, so that a new day does not encode all rows again.
    """
    rules = template.rules
    dated = any("strftime_now" in text for text in rules.templates.values())
    ingredients = {
        "format": TOKEN_FORMAT,
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
    """The recipe's added tokens with their ids and whether they are special: the tokenizer's files lack them."""
    added = template.tokenizer.added_tokens_decoder.items()
    known = {token.content: (number, token.special) for number, token in added}
    return [(text, *known.get(text, (-1, False))) for text in template.rules.added_tokens]


def trim(folder: Path, limit: int, *, keep: Path) -> None:
    """Removes the files used longest ago until at most ``limit`` bytes are left, but never ``keep``."""
    stats = {path: path.stat() for path in folder.glob("*.arrow")}
    total = sum(stat.st_size for stat in stats.values())
    for path in sorted(stats, key=lambda path: stats[path].st_mtime_ns):
        if total > limit and path != keep:
            path.unlink(missing_ok=True)
            _sum_of(path).unlink(missing_ok=True)
            total -= stats[path].st_size


def _file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file but weights: model families name the files of their tokenizers freely."""
    paths = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
    hashes = {}
    for path in sorted(paths):
        if path.is_file() and path.suffix not in _WEIGHTS:
            hashes[path.relative_to(folder).as_posix()] = sha256_of(path)
    return hashes


def _cached(path: Path, key: str, listener: Listener) -> TokenFile | None:
    """The file with these rows; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        if not _sum_of(path).exists():
            listener.say(f"{path} has no sha256 beside it, as files of earlier versions: it cannot be verified")
        elif _sum_of(path).read_bytes() != _sum_line(path, sha256_of(path)):
            raise ValueError("their sha256 is another one than when they were written")
        file = TokenFile(path)
        if file.key != key:
            raise ValueError("it has another key")
    except _DAMAGED as error:
        listener.warn(f"{path}: the cached tokens are damaged ({error}); the rows are encoded again")
        return None
    return file


def _sum_of(path: Path) -> Path:
    """The file beside one with rows that holds its sha256."""
    return path.with_suffix(".sha256")


def _sum_line(path: Path, digest: str) -> bytes:
    """As ``sha256sum`` writes and checks it."""
    return f"{digest}  {path.name}\n".encode()


def refusal(refused: Sequence[RefusedRow], *, others: bool) -> DataError:
    """That rows cannot be encoded, in the words that were said of the first.

    Args:
        others: whether there are rows that can be encoded.
    """
    first, named = refused[0], ", ".join(row.source for row in refused[1 : 1 + REFUSED_NAMED])
    others_too = f"{len(refused) - 1:,} more row{'s' if len(refused) > 2 else ''} cannot be used either"
    more = f"{others_too}, such as {named}" if named else ""
    skip = ", or set data.on_error: skip to leave such rows out" if others else ""
    return DataError(
        first.what,
        where=first.source,
        why="\n".join(filter(None, [first.why, more])) or None,
        remedy=first.remedy.rstrip(".") + f"{skip}." if first.remedy or skip else None,
    )


def _write(
    path: Path, key: str, blocks: Iterable[_EncodedBlock], advance: Callable[[int], None], *, stops: bool
) -> None:
    """Writes a file beside ``path`` that takes its name when it is whole, with the findings in its last batch.

    Raises:
        DataError: a row was refused and ``stops`` is set, or the file cannot be written.
    """
    schema, notes = TOKEN_SCHEMA.with_metadata({"key": key}), Notes()
    refused: list[RefusedRow] = []
    rows, done = 0, 0
    with temporary(path.with_suffix(".partial")) as partial:
        with _cache_errors(path.parent):
            partial.unlink(missing_ok=True)  # what a killed process left, or a link that somebody put there
            sink = partial.open("xb")
        try:
            writer = pa.ipc.new_file(sink, schema)
            for block in blocks:
                with _cache_errors(path.parent):
                    if block.batch.num_rows:
                        writer.write_batch(block.batch)
                notes.merge(block.notes)
                refused += block.refused
                if stops and refused:
                    raise refusal(refused, others=rows + block.batch.num_rows > 0)
                rows += block.batch.num_rows
                done += block.examples
                advance(done)
            end = {
                "rows": str(rows),
                "findings": json.dumps([finding.to_json() for finding in notes.findings()]),
                "refused": json.dumps([asdict(row) for row in refused]),
            }
            with _cache_errors(path.parent):
                writer.write_batch(record_batch([]), custom_metadata=end)
                writer.close()
                sink.close()
        finally:
            with suppress(OSError):  # what failed to be written fails again
                sink.close()
        with _cache_errors(path.parent):
            path.unlink(missing_ok=True)  # a damaged one must not have the new one's sha256 beside it
            write_whole(_sum_of(path), _sum_line(path, sha256_of(partial)))
            put_in_place(partial, path)


def _remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left. A file whose lock is held is still being written."""
    for partial in folder.glob("*.partial"):
        with suppress(Timeout), FileLock(partial.with_suffix(".lock"), timeout=0):
            partial.unlink(missing_ok=True)


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            "the cache of encoded rows cannot be written",
            where=str(folder),
            why=why_full(folder, error) if is_full(error) else str(error),
            remedy="free some space there, or set TUNESMITH_CACHE to a folder with room that you may write to.",
        ) from error


@dataclass(frozen=True, slots=True)
class _EncodedBlock:
    """The rows of one block of examples, the notes about them, the examples refused, and how many there are in all."""

    batch: pa.RecordBatch
    notes: Notes
    refused: list[RefusedRow]
    examples: int


@dataclass(frozen=True, slots=True)
class _TemplateRecord:
    """What a worker process needs to restore a template. The tokenizer is far smaller than what loading one imports."""

    tokenizer: PreTrainedTokenizerBase
    rules: dict[str, Any]
    stop_ids: tuple[int, ...]

    def restore(self) -> ChatTemplate:
        return ChatTemplate.restore(self.tokenizer, self.rules, stop_ids=self.stop_ids)


def _encoded_blocks(
    blocks: Iterable[NumberedExamples], template: ChatTemplate, workers: int
) -> Generator[_EncodedBlock, None, None]:
    """The blocks encoded, in order. An error of reading blocks is raised after the rows before it are encoded."""
    failures: list[TunesmithError] = []
    reader = _until_failure(blocks, failures)
    head, count = [], 0
    for block in reader if workers > 1 else ():
        head.append(block)
        count += len(block)
        if count >= POOL_FROM:
            break
    record = _TemplateRecord(template.tokenizer, template.describe(), template.stop_ids)
    if count >= POOL_FROM:
        yield from _by_workers(chain(head, reader), record, workers)
    else:
        yield from map(functools.partial(_encode, record.restore()), chain(head, reader))
    if failures:
        raise failures[0]


def _until_failure(blocks: Iterable[NumberedExamples], failures: list[TunesmithError]) -> Iterator[NumberedExamples]:
    try:
        yield from blocks
    except TunesmithError as error:
        failures.append(error)


def _by_workers(blocks: Iterable[NumberedExamples], record: _TemplateRecord, workers: int) -> Iterator[_EncodedBlock]:
    """The blocks encoded by other processes, a few blocks ahead of what is taken."""
    executor = worker_pool(workers, initializer=_begin, arguments=[os.getpid(), record])
    from loky.process_executor import BrokenProcessPool

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


_worker_template: ContextVar[Callable[[], ChatTemplate]] = ContextVar("worker_template")  # set in worker processes only


def _begin(parent: int, record: _TemplateRecord) -> None:
    """Readies a worker process, which ends when its parent does."""
    end_with(parent)
    _worker_template.set(functools.cache(record.restore))


def _encode_in_worker(block: NumberedExamples) -> _EncodedBlock:
    return _encode(_worker_template.get()(), block)


def _encode(template: ChatTemplate, block: NumberedExamples) -> _EncodedBlock:
    rows: list[Encoded] = []
    refused = []
    for number, example in block:
        try:
            rows += template.encode(example, number)
        except DataError as error:
            said = error.what, error.why or "", error.remedy or ""
            refused.append(RefusedRow(number, example.source, *said, _as_text(example)))
    return _EncodedBlock(record_batch(rows), template.notes.take(), refused, len(block))


def _as_text(example: Example) -> str:
    """An example as one line of JSON, for people to read."""
    if example.text is not None:
        return json.dumps({"text": example.text}, ensure_ascii=False)
    turns = [message.to_template() for message in example.messages]
    return json.dumps({"messages": turns} | ({"tools": example.tools} if example.tools else {}), ensure_ascii=False)
