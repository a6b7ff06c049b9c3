"""The cache folder, and the lock by which one process makes an entry of it while others wait."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from tunesmith.recipe.paths import local
from tunesmith.runs.temporary import folder_of_process

Say = Callable[[str], None]

WAIT_BEFORE_SAYING_S = 3.0


def to_stderr(text: str) -> None:
    """One line of progress for a person; standard output stays free for results."""
    print(text, file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """``TUNESMITH_CACHE``, or the platform's cache folder for ``tunesmith``. It need not exist yet."""
    chosen = os.environ.get("TUNESMITH_CACHE")
    return Path(local(chosen)).resolve() if chosen else Path(platformdirs.user_cache_dir("tunesmith", False))


def writable(cache: Path, say: Say = to_stderr) -> Path:
    """The cache folder, or one that goes with this process where the cache takes no files."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    instead = folder_of_process("tunesmith-")
    say(f"the cache {cache} cannot be written; what it would keep is in {instead} until this ends")
    return instead


@contextmanager
def only_process(lock_file: Path, waiting: str, *, say: Say) -> Iterator[None]:
    """Inside, no other process holds this lock. ``say`` gets the text ``waiting`` if that takes more than a moment."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=WAIT_BEFORE_SAYING_S)
    except Timeout:
        say(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
