"""The room on a disk, and what a full or closed one means for a user: one message with the bytes needed and free."""

from __future__ import annotations

import errno
import os
import re
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tunesmith.errors import RunError, TunesmithError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHUT = (errno.EACCES, errno.EPERM, errno.EROFS)
GONE = (
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EBUSY,
)  # fmt: skip
"""A disk or a network file system that does not answer any more."""
WRITE_ERRORS = (OSError, SafetensorError)
_OF_RUST = re.compile(r"\(os error (\d+)\)")


def number_of(error: BaseException) -> int:
    """The system's number of an error, or 0. safetensors has it in its text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _OF_RUST.search(str(error)) if isinstance(error, SafetensorError) else None
    return int(found[1]) if found else 0


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns the plain Exception of a library in Rust (tokenizers) into the OSError that its text names."""
    try:
        yield
    except Exception as error:
        found = _OF_RUST.search(str(error)) if type(error) is Exception else None
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def is_full(error: BaseException) -> bool:
    """Whether an error means that a file could not grow: no space, a quota, or the largest size of a file."""
    return number_of(error) in FULL


def free_at(path: Path) -> int | None:
    """The bytes that are free for this user on the file system of a path; None if it does not tell."""
    try:
        there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        found = os.statvfs(there)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def largest_file() -> int | None:
    """The most bytes that a file of this process may have; None if there is no limit (``ulimit -f``)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def bytes_in(folder: Path) -> int:
    """The bytes of all files below a folder; links are not followed, and what is not there has none."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(inner, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def no_room(path: Path, needed: int, *, file: int = 0) -> str | None:
    """Why something does not fit where a path is, in words; None if it does, or nobody can tell.

    Args:
        needed: bytes in all.
        file: bytes of the largest file.
    """
    free, limit = free_at(path), largest_file()
    if free is not None and free < needed:
        return f"{needed:,} bytes are needed, and {free:,} bytes are free on the disk of {path}."
    if limit is not None and limit < file:
        return f"A file of {file:,} bytes is needed, and this process may write files of {limit:,} bytes (ulimit -f)."
    return None


def why_full(path: Path, error: BaseException, needed: int | None = None) -> str:
    """Why nothing more can be written at a path: the system's words, and the bytes needed and free."""
    number, limit, free = number_of(error), largest_file(), free_at(path)
    said = os.strerror(number) if number else str(error)
    more = [] if needed is None else [f"{needed:,} bytes are needed"]
    if number == errno.EFBIG and limit is not None:
        more.append(f"this process may write files of {limit:,} bytes (ulimit -f)")
    elif free is not None:
        more.append(f"{free:,} bytes are free on the disk of {path}")
    return f"{said}: {' and '.join(more)}." if more else f"{said}."


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the errors of a full or lost disk the name of the file that is written, which a write does not know."""
    try:
        yield
    except WRITE_ERRORS as error:
        number = number_of(error)
        if number not in (*FULL, *GONE) or isinstance(error, BlockingIOError):
            raise
        if not isinstance(error, OSError):
            raise OSError(number, os.strerror(number), str(path)) from error
        if error.filename is None:
            error.filename = str(path)
        raise


def _free_here() -> str:
    """The bytes that are free where a command usually writes, for an error that names no file."""
    places = {"the working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    free = {name: free_at(path) for name, path in places.items()}
    return " and ".join(f"{count:,} on the disk of {name}" for name, count in free.items() if count is not None)


@contextmanager
def disk_errors(path: Path | None = None, kind: type[TunesmithError] = RunError) -> Iterator[None]:
    """Turns the errors of a full, closed or lost disk into a message. Functions may be decorated with it.

    Args:
        path: where files are written, if the error names none.
        kind: of the message.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        number, named = number_of(error), error.filename if isinstance(error, OSError) else None
        where = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
        if number == errno.ENOENT and named is None and "temporary directory" in str(error):
            raise kind(
                "No folder for temporary files can be written",
                where="TMPDIR",
                why=f"Tried: {str(error).partition('found in ')[2].strip('[]')}.",
                remedy="Set TMPDIR to a folder that you can write to.",
            ) from error
        if number in (errno.ENAMETOOLONG, errno.ELOOP) and named is not None:
            raise kind(
                "This cannot be the name of a file",
                where=f"{os.fsdecode(named)[:40]}...",
                why=f"{os.strerror(number)}.",
                remedy="Check the name that you gave.",
            ) from error
        if number in FULL:
            raise kind(
                "The disk is full",
                where=str(where) if where else None,
                why=why_full(where, error) if where else f"{os.strerror(number)}. Bytes that are free: {_free_here()}.",
                remedy="Make room there, or write to another place. What was complete before is still complete.",
            ) from error
        if number in (*SHUT, *GONE) and where is not None:
            raise kind(
                "A file cannot be read or written",
                where=str(where),
                why=f"{os.strerror(number)}.",
                remedy="Change its permissions, or name another place."
                if number in SHUT
                else "Look whether that disk is still connected, and give the command again.",
            ) from error
        raise
