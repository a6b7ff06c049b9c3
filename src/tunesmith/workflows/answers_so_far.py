"""The answers that were made so far, in a hidden file beside the one that they go to.

Its first line says what was asked of which model; each later line is a number of answers. A line that is cut off, as a
kill or a full disk leaves it, is not taken. Another file of this name is the user's own: a link, a pipe, or a file with
another first line. It is refused and stays as it is.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import ExportError
from tunesmith.runs.plain_files import open_plain


@dataclass(slots=True)
class AnswersSoFar:
    """The open file. ``rows`` are answered; ``cut`` of the answers reached their limit."""

    file: BinaryIO
    path: Path
    rows: int = 0
    cut: int = 0

    def add(self, answers: Sequence[Sequence[str]], cut: int) -> None:
        """Adds the answers of some rows, which then are on the disk."""
        line = json.dumps({"answers": [list(each) for each in answers], "cut": cut}, ensure_ascii=True)
        self.file.write(f"{line}\n".encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows += len(answers)
        self.cut += cut

    def answers(self) -> Iterator[list[str]]:
        """The answers of each row, in order; a pass over the file."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield from json.loads(line)["answers"]

    def finish(self, out: Path) -> None:
        """Notes that all answers are about to be written to this file."""
        self.file.write(f"{json.dumps({'answers': [], 'cut': 0, 'written': out.name})}\n".encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def remove(self) -> None:
        """Removes the file, once its answers are where they belong."""
        self.path.unlink(missing_ok=True)


def place_of(out: Path) -> Path:
    """Where the answers so far are kept. It does not depend on the ending, so that another format can be asked for."""
    return out.with_name(f".{out.stem}.answers")


def was_written(out: Path) -> bool:
    """Whether the answers beside this file say that it was about to be written from them.

    The file may have been changed since, so the rule of ``runs.outputs`` decides whether it may be replaced.
    """
    try:
        with open_plain(place_of(out)) as file:
            first, *rest = file.read().splitlines() or [b""]
        return _is_ours(first) and bool(rest) and json.loads(rest[-1]).get("written") == out.name
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def check_place(out: Path) -> None:
    """Raises ExportError where something else has the name of the answers so far. Call it before any work."""
    with suppress(FileNotFoundError), _opened(out, 0) as file:
        _begun(out, file)


@contextmanager
def answers_so_far(out: Path, asked: Mapping[str, Any], *, anew: bool, sequences: int = 1) -> Iterator[AnswersSoFar]:
    """Inside, the answers that go to ``out``, reserved for this process.

    Args:
        asked: everything that decides the answers, with the ``versions`` of packages, Tunesmith's among them, and the
            number of ``rows``.
        anew: forget the answers that are there.
        sequences: answers to each row.

    Raises:
        ExportError: another process works on them, they were asked for otherwise or are damaged, something else has
            their name, or nothing can be written.
    """
    with _reserved(out) as file:
        found = AnswersSoFar(file, place_of(out))
        asked = json.loads(json.dumps(asked))
        begins = f"{json.dumps(asked)}\n".encode()
        first, before = _begun(out, file)
        if not first:
            file.seek(0)
            if not begins.startswith(file.read()):  # else it is empty, or was cut off by a kill
                raise _of_others(out, "It does not begin as the answers of `generate` do.")
        if anew:
            first = b""
        elif first and before != asked:
            raise _asked_otherwise(out, before, asked)
        end = len(first)
        for number, line in enumerate(_whole_lines(file) if first else (), start=2):
            rows, cut = _read_line(out, line, number, sequences)
            found.rows += rows
            found.cut += cut
            end += len(line)
            if found.rows > asked.get("rows", found.rows):
                raise _damaged(out, f"Line {number} has answers to more rows than there are.")
        file.seek(end)
        file.truncate()
        if not first:
            file.write(begins)
            file.flush()
        yield found


@contextmanager
def _reserved(out: Path) -> Iterator[BinaryIO]:
    """The file, made if need be, which no other process has meanwhile."""
    while True:
        with _opened(out, os.O_CREAT) as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(
                    "another process is making these answers",
                    where=str(out),
                    remedy="Wait for it, or name another --out.",
                ) from None
            with suppress(FileNotFoundError):  # removed by a process that was done just before
                if os.path.samestat(os.fstat(file.fileno()), place_of(out).lstat()):
                    yield file
                    return


@contextmanager
def _opened(out: Path, flags: int) -> Iterator[BinaryIO]:
    """The file that is there, open to read and write. A link is not followed, and a pipe not waited for.

    Raises:
        FileNotFoundError: there is none, and it is not to be made.
        ExportError: it cannot be opened, or is no file of this name alone.
    """
    path = place_of(out)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o644)
    except FileNotFoundError:
        if not flags:
            raise
        raise _shut(out, f"{path.parent} is not there") from None
    except OSError as error:
        if path.is_symlink():
            raise _of_others(out, "It is a link.") from None
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _of_others(out, "It is no plain file.") from None
        raise _shut(out, error.strerror or str(error)) from error
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        plain = stat.S_ISREG(state.st_mode)
        raise _of_others(out, "It has another name, too (a hard link)." if plain else "It is no plain file.")
    with os.fdopen(descriptor, "r+b") as file:
        yield file


def _begun(out: Path, file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """The first line, and what it says; nothing where no line is whole. Raises ExportError for one of somebody else."""
    first = next(_whole_lines(file), b"")
    if not first:
        return b"", {}
    if not _is_ours(first):
        raise _of_others(out, "It does not begin as the answers of `generate` do.")
    return first, json.loads(first)


def _is_ours(first: bytes) -> bool:
    """Whether this is a first line of Tunesmith: it names the version that made the answers."""
    try:
        return "tunesmith" in json.loads(first)["versions"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _read_line(out: Path, line: bytes, number: int, sequences: int) -> tuple[int, int]:
    """The rows that a line answers, and how many of the answers reached their limit."""
    try:
        record = json.loads(line)
        answers, cut = record["answers"], record["cut"]
        texts = [text for each in answers for text in each]
        whole = all(isinstance(text, str) for text in texts) and all(len(each) == sequences for each in answers)
        if whole and isinstance(answers, list) and isinstance(cut, int):
            return len(answers), cut
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise _damaged(out, f"Line {number} is not as Tunesmith wrote it.")


def _damaged(out: Path, why: str) -> ExportError:
    return ExportError(
        "the answers so far are damaged",
        where=str(place_of(out)),
        why=why,
        remedy="Name another --out, or add --overwrite to begin anew.",
    )


def _of_others(out: Path, why: str) -> ExportError:
    return ExportError(
        "the place of the answers so far holds something that Tunesmith did not write",
        where=str(place_of(out)),
        why=f"{why} The answers are kept there until all rows are answered.",
        remedy="Name another --out, or move that file to another place.",
    )


def _shut(out: Path, why: str) -> ExportError:
    return ExportError(
        "nothing can be written beside the file",
        where=str(out),
        why=f"{place_of(out)}: {why}.",
        remedy="Name another --out.",
    )


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return itertools.takewhile(lambda line: line.endswith(b"\n"), file)


def _asked_otherwise(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> ExportError:
    apart = [name for name in now if before.get(name) != now[name]]
    shown = [f"{name}: {before.get(name)!r} before, {now[name]!r} now" for name in apart if len(str(now[name])) < 80]
    hidden = [name for name in apart if len(str(now[name])) >= 80]
    return ExportError(
        "the answers so far were asked for in another way",
        where=str(out),
        why="\n".join([*shown, *(f"{name} changed" for name in hidden)]),
        remedy="Give the same command again to go on, name another --out, or add --overwrite to begin anew.",
    )
