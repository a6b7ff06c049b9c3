"""The answers that were made so far, in a hidden file beside the one that they go to.

Its first line says what was asked of which model; each later line is a number of answers. A line that is cut off, as a
kill or a full disk leaves it, is not taken.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import ExportError


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
    """Whether a call that wrote this file was killed before it could clear up."""
    try:
        *_, last = place_of(out).read_bytes().splitlines() or [b""]
        return json.loads(last).get("written") == out.name
    except (OSError, ValueError):
        return False


@contextmanager
def answers_so_far(out: Path, asked: Mapping[str, Any], *, anew: bool) -> Iterator[AnswersSoFar]:
    """Inside, the answers that go to ``out``, reserved for this process.

    Args:
        asked: everything that decides the answers.
        anew: forget the answers that are there.

    Raises:
        ExportError: another process works on them, they were asked for otherwise, or nothing can be written.
    """
    path = place_of(out)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ExportError(
            "nothing can be written beside the file",
            where=str(out),
            why=f"{path}: {error.strerror or error}.",
            remedy="Name another --out.",
        ) from error
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(
                "another process is making these answers", where=str(out), remedy="Wait for it, or name another --out."
            ) from None
        found = AnswersSoFar(file, path)
        lines = iter(()) if anew else _whole_lines(file)
        asked = json.loads(json.dumps(asked))
        first = next(lines, b"")
        if first and (before := json.loads(first)) != asked:
            raise _asked_otherwise(out, before, asked)
        end = len(first)
        for line in lines:
            record = json.loads(line)
            found.rows += len(record["answers"])
            found.cut += record["cut"]
            end += len(line)
        file.seek(end)
        file.truncate()
        if not first:
            file.write(f"{json.dumps(asked)}\n".encode())
            file.flush()
        yield found


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
