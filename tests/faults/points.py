"""The points of a command at which a kill could leave something half done, and a kill at one of them.

A point is each opening of a file to write, each write, fsync, rename, removal, and new or removed folder below the
command's own folder. ``watch`` counts them inside a fork that is about to become the command, so the program itself has
no hook. At the chosen point the process kills itself with SIGKILL: before the call, or in the middle of a write.
"""

from __future__ import annotations

import builtins
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATHS = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.link": 2, "os.symlink": 2}
_WRITES = os.O_WRONLY | os.O_RDWR


class Points:
    """Counts points and notes them in the file ``log``.

    Args:
        kill_at: the number of the point at which to die; the first is 1.
        act: what to do there in place of a kill.
    """

    def __init__(self, log: Path, kill_at: int | None = None, act: Callable[[], None] | None = None) -> None:
        self.log, self.kill_at, self.act, self.count = log, kill_at, act, 0
        self._folder = ""
        self._pid = 0
        self._inside = False

    def lines(self) -> list[str]:
        """What was done at each point, in order, such as ``rename a/.x.tunesmith-0123abcd -> a/x``."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def watch(self, folder: Path) -> None:
        """Begins to count. Call it once, in the process that is the command."""
        self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._folder, self._pid = f"{folder.resolve()}/", os.getpid()
        sys.addaudithook(self._hear)
        fsync, opened = os.fsync, io.open

        def watched_fsync(descriptor: int) -> None:
            if self._reached("fsync", f"/proc/self/fd/{descriptor}"):
                self._end()
            fsync(descriptor)

        def watched_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            made = opened(file, mode, *rest, **options)
            path = f"/proc/self/fd/{file}" if isinstance(file, int) else os.fspath(file)
            writes = not set(mode).isdisjoint("wax+")
            return _Writer(made, path, self) if writes and self._ours(path) else made

        os.fsync = watched_fsync
        builtins.open = io.open = watched_open
        self._watch_safetensors()

    def _watch_safetensors(self) -> None:
        """safetensors writes in Rust: half of a file is made by cutting it off."""
        import safetensors.torch

        library: Any = safetensors.torch
        write = library.serialize_file

        def watched_write(tensors: Any, filename: Any, *rest: Any, **options: Any) -> None:
            if not self._ours(os.fspath(filename)):
                return write(tensors, filename, *rest, **options)
            if self._reached("open", filename):
                self._end()
            half = self._reached("write", filename)
            write(tensors, filename, *rest, **options)
            if half and self.act is None:  # what goes on after a signal writes the whole file
                os.truncate(filename, os.path.getsize(filename) // 2)
                self._end()

        library.serialize_file = watched_write

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if not isinstance(path, int) and isinstance(flags, int) and flags & _WRITES and self._reached("open", path):
                self._end()
        elif event in _PATHS:
            paths = given[: _PATHS[event]]
            folder = given[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
            named = [path if folder in (-1, None) else f"/proc/self/fd/{folder}/{os.fsdecode(path)}" for path in paths]
            if not any(isinstance(path, int) for path in paths) and self._reached(event[3:], *named):
                self._end()

    def _ours(self, path: Any) -> bool:
        return os.getpid() == self._pid and self._full(path).startswith(self._folder)

    def _full(self, path: Any) -> str:
        text = os.path.abspath(os.fsdecode(path))
        if text.startswith("/proc/self/fd/"):
            number, _, rest = text.removeprefix("/proc/self/fd/").partition("/")
            try:
                text = os.path.join(os.readlink(f"/proc/self/fd/{number}"), rest).rstrip("/")
            except OSError:
                return ""
        return text

    def _reached(self, what: str, *paths: Any) -> bool:
        """Counts a point. Returns whether it is the one to die at."""
        if self._inside or not self._folder or not self._ours(paths[-1]):
            return False
        named = [self._full(path).removeprefix(self._folder) for path in paths]
        if named[-1].startswith("output.txt") or named[-1].startswith("points"):
            return False
        self.count += 1
        os.write(self._log, f"{what} {' -> '.join(named)}\n".encode())
        return self.count == self.kill_at

    def _end(self) -> None:
        if self.act is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            self._inside = True
            self.act()
            self._inside = False


class _Writer:
    """A file that is open for writing, and whose writes are points."""

    def __init__(self, file: Any, path: Any, points: Points) -> None:
        self._file, self._path, self._points = file, points._full(path), points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writer:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)

    def write(self, data: Any) -> Any:
        if self._points._reached("write", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._points._end()
            return self._file.write(data[len(data) // 2 :])
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)
