"""Files and folders that are written whole or not at all.

All of them are made the same way: written under another name beside their place, flushed to the disk, then renamed. A
process that is killed leaves the old one or the new one, never a half.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import ExportError
from tunesmith.recipe.paths import local


def why_not(path: Path, error: OSError) -> str:
    """Why a file or folder cannot be written, in words."""
    if error.errno == errno.ENAMETOOLONG:
        longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
        return f"The name {longest[:20]}... has {len(os.fsencode(longest)):,} bytes, which is too long."
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which is not there."
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
    beside = _beside(path)
    try:
        with beside.open("wb") as file:
            yield file
        put_in_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, beside: Path | None = None, last: str | None = None) -> Iterator[Path]:
    """Inside, an empty folder to fill. It takes the place of ``path`` if nothing is raised.

    Args:
        beside: the folder to fill; by default a hidden one next to ``path``.
        last: the file that marks a folder as complete. With it, a folder that exists at ``path`` stays the same folder,
            because a shell may stand in it: its entries are replaced, this file after all others.
    """
    beside = beside or path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        if last is not None and path.exists():
            _replace_entries(beside, path, last)
        else:
            put_in_place(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def put_in_place(beside: Path, path: Path) -> None:
    """Flushes a file or a folder to the disk and gives it its name, in place of what has that name."""
    _flush(beside)
    old = _set_aside(path)
    if path.is_dir():  # a folder cannot be renamed onto another one
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    beside.replace(path)
    _flush_names(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Puts the old folder back if a process was killed between the two renames of ``put_in_place``."""
    if not path.exists() and _set_aside(path).exists():
        _set_aside(path).rename(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _set_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _replace_entries(made: Path, path: Path, last: str) -> None:
    _flush(made)
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in sorted(made.iterdir(), key=lambda entry: entry.name == last):
        entry.replace(path / entry.name)
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
