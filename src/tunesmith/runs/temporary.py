"""Temporary files and folders: the one owner of what must not outlast this process.

Whoever makes one does so inside ``temporary``, which removes it. A process that ends where nothing can be unwound, as
within an import, calls ``clear``.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_known: dict[str, tuple[int, Path, int | None]] = {}  # by a key of each use: process, place, open folder


@contextmanager
def temporary(path: Path, descriptor: int | None = None) -> Iterator[Path]:
    """Inside, a file or a folder may have this name. Afterwards none has. Enter it before the file is made.

    Or give an open ``descriptor`` of what was made. Then another one stays that has got this name meanwhile.
    """
    key = _note(path, descriptor)
    try:
        yield path
    finally:
        _remove_known(key)
        del _known[key]


@contextmanager
def temporary_folder(prefix: str, folder: Path | None = None) -> Iterator[Path]:
    """Inside, an empty folder that this user alone may enter, in a folder or where the system has temporary ones."""
    with temporary(_new_name(prefix, folder)) as made:
        made.mkdir(mode=0o700)
        yield made


def folder_of_process(prefix: str) -> Path:
    """An empty folder where the system has temporary ones. It goes when this process ends."""
    made = _new_name(prefix, None)
    atexit.unregister(clear)  # once is enough
    atexit.register(clear)
    _note(made)
    made.mkdir(mode=0o700)
    return made


def clear() -> None:
    """Removes all that this process still has, the newest first. A process that was forked has none of its parent's."""
    for key in reversed([*_known]):
        _remove_known(key)


def _note(path: Path, descriptor: int | None = None) -> str:
    key = secrets.token_hex(8)
    _known[key] = (os.getpid(), Path(os.path.abspath(path)), descriptor)  # the working folder may be another one later
    return key


def _remove_known(key: str) -> None:
    process, path, descriptor = _known[key]
    if process != os.getpid():  # this is a fork of the process that made it
        return
    with suppress(OSError):  # there is none
        if descriptor is None or os.path.samestat(os.fstat(descriptor), path.lstat()):
            _remove(path)


def _new_name(prefix: str, folder: Path | None) -> Path:
    return Path(tempfile.gettempdir() if folder is None else folder, f"{prefix}{secrets.token_hex(8)}")


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder. What cannot be removed stays: the error of the work itself counts."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
