"""Folders of the cache for rows that go with the call or the process that was handed them, however it ends.

Each has a lock beside it, which ends with its process. So the next process that makes one knows what a killed process
left, and removes it.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tunesmith.runs.cache import cache_dir, writable
from tunesmith.runs.locks import is_locked, locked
from tunesmith.runs.temporary import temporary

PARENT = "given"


@contextmanager
def passing_folder() -> Iterator[Path]:
    """Inside, an empty folder that its owner alone may read. It goes with its content.

    Raises:
        OSError: neither the cache nor the system's temporary folder takes files.
    """
    parent = writable(cache_dir()) / PARENT
    parent.mkdir(mode=0o700, exist_ok=True)
    _remove_left(parent)
    folder = parent / secrets.token_hex(8)
    lock = _lock_of(folder)
    with temporary(lock), locked(lock), temporary(folder):
        folder.mkdir(mode=0o700)
        yield folder


@contextmanager
def passing_until_exit() -> Iterator[Path]:
    """The same, but the folder goes when this process ends, or at once if what is done inside fails."""
    with ExitStack() as stack:
        yield stack.enter_context(passing_folder())
        atexit.register(stack.pop_all().close)


def passing_folder_of(path: str) -> Path | None:
    """The folder that goes and that a file lies in; None for any other file."""
    folder = Path(path).parent
    return folder if folder.parent.name == PARENT and _lock_of(folder).is_file() else None


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_left(parent: Path) -> None:
    """Removes what killed processes left."""
    for lock in parent.glob("*.lock"):
        with suppress(OSError):  # another process is faster, or the folder is not this user's
            if not is_locked(lock):
                with locked(lock):
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                    lock.unlink(missing_ok=True)
