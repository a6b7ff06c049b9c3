"""Locks on a file that end with their process, in whatever way it ends, and that name who holds them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from tunesmith.runs.plain_files import read_plain

_AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a link is not followed, and a pipe is not waited for
TRIES, BETWEEN_TRIES = 5, 0.05  # to take a lock, because checking it takes it briefly; seconds
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
"""What a file system answers that has no locks, such as some network and user-space ones."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process holds this file, which is made with its folders and names the holder.

    A forked worker closes its copy of the lock at once, so an orphan never keeps it. On a file system without locks, a
    file beside it stands for the lock. If its process has died on this host, it counts no more.

    Raises:
        BlockingIOError: another process holds it; ``holder`` says which.
        OSError: the file cannot be written.
    """
    lock = [_taken(path)]
    os.register_at_fork(after_in_child=lambda: os.close(lock.pop().descriptor) if lock else None)
    try:
        yield
    finally:
        if lock:  # else this is a forked child, which has closed its copy already
            lock.pop().end()


def is_locked(path: Path) -> bool:
    """Whether a process holds the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _AS_IT_IS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):  # nothing, a link, or a socket
            return False
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return stand_in(path).exists() and not _has_died(stand_in(path))
    finally:
        os.close(descriptor)
    return False


def is_shared(path: Path) -> bool:
    """Whether the file has another name, too (a hard link), so that its holder may work in another place."""
    try:
        return path.lstat().st_nlink > 1
    except (FileNotFoundError, NotADirectoryError):
        return False


def holder(path: Path) -> str:
    """Who holds the file, as ``123 on host``, or ``unknown``."""
    for file in (stand_in(path), path):
        with suppress(OSError):
            return read_plain(file).decode(errors="replace").strip() or "unknown"
    return "unknown"


def stand_in(path: Path) -> Path:
    """The file that stands for the lock where the file system has none."""
    return path.with_name(f"{path.name}.held")


@dataclass(frozen=True, slots=True)
class _Lock:
    descriptor: int
    stand_in: Path | None = None

    def end(self) -> None:
        if self.stand_in is not None:
            _remove_own(self.stand_in)
        os.close(self.descriptor)


def _me() -> bytes:
    return f"{os.getpid()} on {os.uname().nodename}\n".encode()


def _taken(path: Path) -> _Lock:
    for left in reversed(range(TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _Lock(os.open(path, os.O_RDWR | os.O_CREAT | _AS_IT_IS, 0o644))
            try:
                lock = _locked(lock, path)
                found = os.fstat(lock.descriptor)
                # Only who holds the lock of the file that has this name may remove the name. So it is compared first:
                # in the meantime another process may have removed it, and hold the file that it made here.
                if os.path.samestat(found, path.stat()):
                    if found.st_nlink == 1:
                        written = os.pwrite(lock.descriptor, _me(), 0)  # not emptied before: somebody may read it
                        os.ftruncate(lock.descriptor, written)
                        return lock
                    path.unlink()  # the file has a name in another place, too, where its content stays
            except BaseException:
                lock.end()
                raise
            lock.end()  # the file was removed, here or by its last holder
        except (BlockingIOError, FileNotFoundError):  # not found: the folder was removed meanwhile
            if not left:
                raise
            time.sleep(BETWEEN_TRIES)
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))


def _locked(lock: _Lock, path: Path) -> _Lock:
    try:
        fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        made = _made_alone(stand_in(path))
        for left in made.parent.glob(f"{escape(made.name)}.*"):  # while this one is there, they mean nothing
            if _has_died(left):
                left.unlink(missing_ok=True)
        return _Lock(lock.descriptor, made)
    return lock


def _made_alone(file: Path) -> Path:
    """Makes a file that was not there. One whose process has died is removed first.

    Two processes may find the same dead one, and the slower must not remove what the faster has made in its place. So
    only one process at a time may remove a file with this content: the one that has made, in the same way, a file that
    is named after it. Then it looks again.

    Raises:
        BlockingIOError: another process has made it.
    """
    with suppress(FileExistsError):
        return _new(file)
    dead = _of_dead(file)
    if dead is not None:
        turn = _made_alone(file.with_name(f"{file.name}.{hashlib.sha256(dead).hexdigest()[:8]}"))
        try:
            if _of_dead(file) == dead:
                file.unlink(missing_ok=True)
        finally:
            _remove_own(turn)
        with suppress(FileExistsError):
            return _new(file)
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(file))


def _new(file: Path) -> Path:
    """Makes a file with the name of this process. Raises FileExistsError if it is there."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, _me())
    except OSError:
        file.unlink(missing_ok=True)  # a full disk: without a name it would stay for ever
        raise
    finally:
        os.close(descriptor)
    return file


def _remove_own(file: Path) -> None:
    """Removes a file that this process made, if it is still that one: a user may have removed it."""
    with suppress(OSError):
        if read_plain(file) == _me():
            file.unlink()


def _has_died(file: Path) -> bool:
    """Whether the process that a stand-in names ran on this host and runs no more."""
    return _of_dead(file) is not None


def _of_dead(file: Path) -> bytes | None:
    """What is in a stand-in whose process ran on this host and runs no more; None for any other."""
    with suppress(OSError, ValueError):
        content = read_plain(file)
        process, _, host = content.decode(errors="replace").strip().partition(" on ")
        if host != os.uname().nodename:
            return None
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return content
    return None
