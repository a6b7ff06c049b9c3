"""Files and folders that are written whole or not at all.

All of them are made the same way: written under another name beside their place, flushed to the disk, then renamed. A
process that is killed leaves the old one or the new one, never a half. A folder is removed the other way round: it gets
another name first. What a killed process left under such names is removed by the next one that works there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import ExportError
from tunesmith.recipe.paths import local
from tunesmith.runs.disk import is_full, why_full
from tunesmith.runs.temporary import temporary

_REPLACING = ".replacing"  # in a folder whose entries are being replaced
_TRIES = 5  # to make a file that another process makes, too


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
    for each in (path, _beside(path), _set_aside(path)) if path.name else ():  # the folder you are in has no name
        try:
            each.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Inside, an open file to write to. It takes the place of ``path`` if nothing is raised."""
    with temporary(_beside(path)) as beside:
        with _new_file(beside) as file:
            yield file
        put_in_place(beside, path)


def _new_file(path: Path) -> BinaryIO:
    """A file that was not there. What has its name goes first, so a link there is not followed."""
    for left in reversed(range(_TRIES)):
        path.unlink(missing_ok=True)
        try:
            return path.open("xb")
        except FileExistsError:  # another process makes it at the same moment
            if not left:
                raise
    raise AssertionError


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
    with _reserved(beside):
        yield beside
        if last is not None and path.exists():
            _replace_entries(beside, path, last)
        else:
            put_in_place(beside, path)


@contextmanager
def _reserved(folder: Path) -> Iterator[None]:
    """Makes an empty folder that no other process takes meanwhile, and removes it, also what a killed one left."""
    if folder.is_symlink():
        folder.unlink()
    try:
        with _locked(folder):
            shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    folder.mkdir(parents=True)
    with _locked(folder), temporary(folder):
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError if another process is writing to the folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is writing it", str(folder)) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def put_in_place(beside: Path, path: Path) -> None:
    """Flushes a file or a folder to the disk and gives it its name, in place of what has that name."""
    _flush(beside)
    old = _set_aside(path)
    if path.is_dir():  # a folder cannot be renamed onto another one
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    _rename(beside, path)
    _flush_names(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    """Renames. A network file system may have done it and say that it failed, because its first answer was lost."""
    made = source.stat()
    try:
        source.replace(target)
    except OSError:
        if source.exists() or not target.exists() or not os.path.samestat(made, target.stat()):
            raise


def recover_folder(path: Path) -> None:
    """Clears up after a process that was killed while it wrote or removed this folder, which no process does now.

    The old folder comes back if it was killed between the two renames of ``put_in_place``.
    """
    if not path.exists() and _set_aside(path).exists():
        _set_aside(path).rename(path)
    for left in (_set_aside(path), _gone(path)):
        if left.is_dir():
            shutil.rmtree(left)
    if _beside(path).is_dir():
        with suppress(BlockingIOError), _locked(_beside(path)):  # else another process is filling it
            shutil.rmtree(_beside(path))


def remove_folder(path: Path) -> None:
    """Removes a folder. A process that is killed leaves all of it, or nothing under its name."""
    gone = _gone(path)
    if gone.exists():
        shutil.rmtree(gone)
    path.rename(gone)
    shutil.rmtree(gone)


def remove_half_written(folder: Path, names: Iterable[str]) -> None:
    """Removes what a killed process left of files with these names. Call it while no other process writes them."""
    for name in names:
        _beside(folder / name).unlink(missing_ok=True)


def is_half_written(path: Path, names: Iterable[str]) -> bool:
    """Whether this is what a killed process left of a file with one of these names."""
    return any(path.name == _beside(path.with_name(name)).name for name in names)


def is_half_replaced(path: Path) -> bool:
    """Whether a process was killed while it replaced the entries of this folder."""
    return (path / _REPLACING).is_file()


def names_beside(name: str) -> tuple[str, ...]:
    """The names under which a file or folder of this name is written, set aside and removed."""
    return tuple(made(Path(name)).name for made in (_beside, _set_aside, _gone))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _set_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _gone(path: Path) -> Path:
    return path.with_name(f".{path.name}.del")


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
