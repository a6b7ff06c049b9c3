"""Files and folders that are written whole or not at all.

All of them are made the same way: written under another name beside their place, flushed to the disk, then renamed. A
process that is killed leaves the old one or the new one, never a half. A folder is removed the other way round: it gets
another name first. What a killed process left under such names is removed by the next one that works there.

These names hold the word ``tunesmith``, which no other program puts there. What has a name such as ``.NAME.old`` is the
user's, unless its place or content shows that an earlier version left it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import ExportError
from tunesmith.recipe.paths import local
from tunesmith.runs.disk import is_full, naming, why_full
from tunesmith.runs.temporary import temporary

_REPLACING = ".tunesmith-replacing"  # in a folder whose entries are being replaced
REPLACING = (_REPLACING, ".replacing")  # the second: of earlier versions
_EARLIER = ("tmp", "old", "del")  # ends of the names that earlier versions used
_TRIES = 5  # to make a file that no other process takes for one that was left
_STALE_S = 86_400  # after which a file was left by a killed process, where the file system has no locks


def why_not(path: Path, error: OSError) -> str:
    """Why a file or folder cannot be written, in words."""
    if error.errno == errno.ENAMETOOLONG:
        longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
        return f"The name {longest[:20]}... has {len(os.fsencode(longest)):,} bytes, which is too long."
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which is not there."
    if is_full(error):
        return why_full(path, error)
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return (
        f"{error.filename or path}: {error.strerror or error}."
        if there.is_dir()
        else f"{there} is a file, not a folder."
    )


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file. Text is written in UTF-8."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def part_from_others(path: Path) -> None:
    """Gives a file that has other names, too (hard links), a copy of its own in this place. Others stay as they are.

    Call it before a file is changed in place. What is no plain file, or is not there, is left alone.
    """
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        with path.open("rb") as there, whole_file(path) as file:
            shutil.copyfileobj(there, file)


def place_for(out: str | os.PathLike[str]) -> Path:
    """Where a file or folder is to be written, as the user names it. Raises ExportError for a name that is too long."""
    path = Path(local(out))
    try:
        refuse_long_name(path)
    except OSError as error:
        raise ExportError(
            "it cannot be written", where=os.fspath(out), why=why_not(path, error), remedy="Choose a shorter name."
        ) from None
    return path


def refuse_long_name(path: Path) -> None:
    """Raises OSError where the file, or the one beside it that is written first, has too long a name."""
    for each in (path, _new_name(path)) if path.name else ():  # the folder you are in has no name
        try:
            each.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Inside, an open file to write to. It takes the place of ``path`` if nothing is raised."""
    _remove_left(path.parent, [path.name])
    with naming(path), ExitStack() as held:
        beside, file = _new_file(path, held)
        with file:
            yield file
        put_in_place(beside, path)


def _new_file(path: Path, held: ExitStack) -> tuple[Path, BinaryIO]:
    """A file beside ``path`` that no other process writes to or takes for one that was left. It goes with ``held``."""
    for _ in range(_TRIES):
        beside = held.enter_context(temporary(_new_name(path)))
        file = held.enter_context(beside.open("xb"))
        lock = os.dup(file.fileno())  # which holds until the file has its name, also if it is closed before
        held.callback(os.close, lock)
        if _reserve(lock, beside):
            return beside, file
    raise BlockingIOError(errno.EAGAIN, "other processes are writing it", str(path))


def _reserve(descriptor: int, path: Path) -> bool:
    """Locks a new file. False if another process takes it for one that was left, as it may just before it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return _is_at(descriptor, path)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_left(folder: Path, names: Iterable[str]) -> None:
    """Removes what killed processes left of files with these names. What is locked is still being written."""
    left = _left_of(names)
    with suppress(OSError):  # a folder that is not there, or that may not be listed
        for name in os.listdir(folder):
            if left.fullmatch(name):
                with suppress(OSError):  # another process was faster, or it is another user's
                    _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:  # a file system without locks
            if time.time() - os.fstat(descriptor).st_mtime < _STALE_S:
                return
        if _is_at(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(path: Path, *, beside: Path | None = None, last: str | None = None) -> Iterator[Path]:
    """Inside, an empty folder to fill. It takes the place of ``path`` if nothing is raised.

    Args:
        beside: the folder to fill; by default a hidden one next to ``path``. One process at a time fills it.
        last: the file that marks a folder as complete. With it, a folder that exists at ``path`` stays the same folder,
            because a shell may stand in it: its entries are replaced, this file after all others. Meanwhile the folder
            ``is_half_replaced``.
    """
    beside = beside or _beside(path)
    with naming(path), _reserved(beside):
        yield beside
        if last is not None and path.exists():
            _replace_entries(beside, path, last)
        else:
            put_in_place(beside, path)


@contextmanager
def _reserved(folder: Path) -> Iterator[None]:
    """Makes an empty folder that no other process takes meanwhile, and removes it, also what a killed one left."""
    if folder.is_dir() and not folder.is_symlink():
        with suppress(FileNotFoundError), _locked(folder):
            shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    busy = BlockingIOError(errno.EAGAIN, "another process is writing it", str(folder))
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True)
            descriptor = held.enter_context(_locked(folder))
        except (FileExistsError, FileNotFoundError):  # another process made it, or took it for one that was left
            raise busy from None
        if not _is_at(descriptor, folder):
            raise busy
        held.enter_context(temporary(folder, descriptor))  # once it has its place, another process may take the name
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Inside, a descriptor of the folder. Raises BlockingIOError if another process is writing to the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is writing it", str(folder)) from None
        except OSError:
            pass  # a file system without locks
        yield descriptor
    finally:
        os.close(descriptor)


def put_in_place(beside: Path, path: Path) -> None:
    """Flushes a file or a folder to the disk and gives it its name, in place of what has that name."""
    _flush(beside)
    old, folder = _set_aside(path), beside.is_dir()
    if not folder and path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if folder and path.is_dir():  # a folder cannot be renamed onto another one
        _clear(old)
        path.rename(old)
    _rename(beside, path)
    _flush_names(path.parent)
    if folder:
        with suppress(OSError):
            _clear(old)


def _rename(source: Path, target: Path) -> None:
    """Renames. A network file system may have done it and say that it failed, because its first answer was lost."""
    made = source.stat()
    try:
        source.replace(target)
    except OSError:
        if source.exists() or not target.exists() or not os.path.samestat(made, target.stat()):
            raise


def recover_folder(path: Path, *, earlier: Collection[str] | None = None) -> None:
    """Clears up after a process that was killed while it wrote or removed this folder, which no process does now.

    The old folder comes back if it was killed between the two renames of ``put_in_place``.

    Args:
        path: the folder.
        earlier: files that show that an old folder under a name of earlier versions is Tunesmith's. It then comes back,
            too, and everything else under such names stays. By default all of it stays.
    """
    beside, old = _beside(path), _set_aside(path)
    try:
        with _locked(beside) if beside.is_dir() and not beside.is_symlink() else ExitStack():
            _clear(beside)
    except BlockingIOError:
        return  # another process is filling it, and goes on
    except FileNotFoundError:
        pass  # another process is done with it
    if earlier is not None and not os.path.lexists(old) and _is_ours(_earlier(path, "old"), earlier):
        old = _earlier(path, "old")
    if not os.path.lexists(path) and old.is_dir() and not old.is_symlink():
        old.rename(path)
    for left in (_set_aside(path), _gone(path)):
        with suppress(OSError):  # it stays, and is in the way of nothing
            _clear(left)


def _is_ours(folder: Path, files: Collection[str]) -> bool:
    return folder.is_dir() and not folder.is_symlink() and all((folder / name).is_file() for name in files)


def _clear(path: Path) -> None:
    """Removes what has a name that is Tunesmith's alone. Where a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Removes a folder. A process that is killed leaves all of it, or nothing under its name."""
    gone = _gone(path)
    _clear(gone)
    path.rename(gone)
    shutil.rmtree(gone)


def remove_half_written(folder: Path, names: Iterable[str]) -> None:
    """Removes what a killed process left of a run's files with these names, also one of an earlier version."""
    names = [*names]
    _remove_left(folder, names)
    for name in names:
        _earlier(folder / name, "tmp").unlink(missing_ok=True)


def is_half_written(path: Path, names: Collection[str]) -> bool:
    """Whether this is what a killed process left of a run's file with one of these names."""
    earlier = any(path.name == _earlier(path.with_name(name), "tmp").name for name in names)
    return earlier or _left_of(names).fullmatch(path.name) is not None


def is_half_replaced(path: Path) -> bool:
    """Whether a process was killed while it replaced the entries of this folder."""
    return any((path / name).is_file() for name in REPLACING)


def names_beside(name: str) -> tuple[str, ...]:
    """Patterns of the names under which a run's file or folder is written, set aside and removed, or was formerly."""
    return (
        f".{name}.tunesmith-{'[0-9a-f]' * 8}",
        *(f".{name}.tunesmith-{end}" for end in _EARLIER),
        *(f".{name}.{end}" for end in _EARLIER),
    )


def _left_of(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"\.(?:{'|'.join(map(re.escape, names))})\.tunesmith-[0-9a-f]{{8}}")


def _new_name(path: Path) -> Path:
    """A name that no other process uses, so that several may write one file at once."""
    return path.with_name(f".{path.name}.tunesmith-{secrets.token_hex(4)}")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tunesmith-tmp")


def _set_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tunesmith-old")


def _gone(path: Path) -> Path:
    return path.with_name(f".{path.name}.tunesmith-del")


def _earlier(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}.{end}")


def _replace_entries(made: Path, path: Path, last: str) -> None:
    _flush(made)
    (path / _REPLACING).touch()
    for entry in path.iterdir():
        if entry.name == _REPLACING:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in sorted(made.iterdir(), key=lambda entry: entry.name == last):
        entry.replace(path / entry.name)
    (path / _REPLACING).unlink()
    _flush_names(path)


def _flush(path: Path) -> None:
    """Flushes a file, or every file and folder in a folder; the files become readable as the umask says."""
    if not path.is_dir():
        _flush_file(path)
        return
    mask = os.umask(0)
    os.umask(mask)
    for entry in path.rglob("*"):
        if entry.is_dir():
            _flush_names(entry)
        elif entry.is_file():
            entry.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read
            _flush_file(entry)
    _flush_names(path)


def _flush_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
