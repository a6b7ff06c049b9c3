"""Where a command may write: never over an input, and never over a file that Tunesmith did not write.

Each file that a user names as an output is noted in the cache by the sha256 of its content, and a page also holds its
own. A file that is there and is not known by these is the user's own: somebody else wrote it, or it was changed since.
Flags do not change that, except for a recipe that still begins with the line by which `init` marks it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import ExportError, TunesmithError
from tunesmith.recipe.paths import expanded
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.manifest import sha256_of
from tunesmith.runs.whole_files import whole_file

RECIPE_MARK = "# Written by `tunesmith init`, which replaces it with --overwrite.\n"
_MARK = re.compile(rb"<!-- Written by Tunesmith; sha256 of all above: ([0-9a-f]{64}) -->\n\Z")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_NAMED = 5  # files of the user that a message lists
_LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*", ".ipynb_checkpoints", "__pycache__")


def check_file(
    out: Path,
    *,
    inputs: Iterable[object] = (),
    overwrite: bool = False,
    mark: str | None = None,
    kind: type[TunesmithError] = ExportError,
    flag: str = "--out",
    others: str = "Add --overwrite, or name another",
) -> None:
    """Raises an error where a file must not be written.

    Args:
        out: the file.
        inputs: paths that the command reads; what is no path of this machine is ignored.
        overwrite: whether a file that Tunesmith wrote may be replaced.
        mark: the first line of files that may be replaced although the user may have changed them.
        kind: of the error.
        flag: that names the file.
        others: how a remedy begins where Tunesmith wrote the file.
    """
    refuse_inputs(out, inputs, kind=kind, flag=flag)
    if out.is_symlink() and not out.exists():
        raise kind(
            "The output is a link to a file that is not there",
            where=str(out),
            why=f"It points to {os.readlink(out)}.",
            remedy=f"Name another {flag}, or remove the link.",
        )
    refuse_shut(out, kind=kind, flag=flag)
    if out.is_dir():
        raise kind("The output is a folder", where=str(out), remedy=f"Name a file in it with {flag}.")
    if not out.exists() or is_device(out):
        return
    if not (wrote(out) or (mark is not None and _begins_with(out, mark))):
        raise kind(
            "The file exists already, and is not known to be written by Tunesmith",
            where=str(out),
            why="Its content is not one that Tunesmith has written here, or it was changed since.",
            remedy=f"Name another {flag}, or remove the file yourself.",
        )
    if not overwrite:
        raise kind("The file exists already", where=str(out), remedy=f"{others} {flag}.")


def refuse_inputs(
    out: Path, inputs: Iterable[object], *, kind: type[TunesmithError] = ExportError, flag: str = "--out"
) -> None:
    """Raises an error where a file or folder to write is an input or holds one, also through links."""
    for named in inputs:
        there = _path(named)
        if there is not None and (_same(out, there) or out.resolve() in there.resolve().parents):
            raise kind(
                "The output would replace an input",
                where=str(out),
                why=f"The command reads {there}.",
                remedy=f"Name another {flag}.",
            )


def refuse_shut(out: Path, *, kind: type[TunesmithError] = ExportError, flag: str = "--out") -> None:
    """Raises an error where no file can be made at a place, before any work for it."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if is_device(out) or (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        return
    raise kind(
        "The output cannot be written",
        where=str(out),
        why=f"{parent} {'takes no new files from you' if parent.is_dir() else 'is a file, not a folder'}.",
        remedy=f"Name another {flag}.",
    )


def refuse_strangers(
    folder: Path, known: Iterable[str], *, kind: type[TunesmithError] = ExportError, flag: str = "--out"
) -> None:
    """Raises an error where a folder that is to be replaced holds something that Tunesmith did not write there.

    Args:
        folder: may be missing.
        known: patterns of the paths inside it that Tunesmith writes, such as ``checkpoints/step-*``. Everything below a
            folder that matches is known. ``functions/**/*.py`` is every such file below a folder, however deep.
    """
    own = strangers(folder, [*known])
    if own:
        more = f" and {len(own) - _NAMED:,} more" if len(own) > _NAMED else ""
        raise kind(
            "The folder to overwrite holds files that Tunesmith did not write",
            where=str(folder),
            why=f"They are {', '.join(own[:_NAMED])}{more}.",
            remedy=f"Move them to another place, or name another {flag}.",
        )


def strangers(folder: Path, known: list[str]) -> list[str]:
    """What in a folder matches no pattern and was not written by Tunesmith, sorted."""
    if not folder.is_dir():
        return []
    found = []
    known = [each for name in known for each in ((name[3:], f"*/{name}") if name.startswith("**/") else (name,))]
    for entry in sorted(folder.iterdir()):
        inner = [pattern.partition("/")[2] for pattern in known if fnmatch(entry.name, pattern.partition("/")[0])]
        if "" in inner or any(fnmatch(entry.name, pattern) for pattern in _LEFT_BY_SYSTEMS):
            continue
        if inner and entry.is_dir() and not entry.is_symlink():
            found += [f"{entry.name}/{name}" for name in strangers(entry, inner)]
        elif not (entry.is_file() and wrote(entry)) and not (entry.is_dir() and not any(entry.iterdir())):
            found.append(entry.name)
    return found


@contextmanager
def output_file(path: Path, *, mark: str | None = None) -> Iterator[BinaryIO]:
    """Inside, a file to write. It takes the place of ``path`` if nothing is raised, and is noted as written.

    What is at ``path`` by then is looked at again, because the work may have taken hours. ``mark``: as for check_file.
    Raises ExportError where that is the user's own.
    """
    if is_device(path):
        with _opened(path) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        yield file
        file.flush()
        _refuse_newcomer(path, Path(file.name), mark)
        _note(Path(file.name))


def _refuse_newcomer(path: Path, made: Path, mark: str | None) -> None:
    """Refuses to replace what the user put there since ``check_file``, unless it is the same as what was made."""
    try:
        if path.is_file() and (
            wrote(path) or (mark is not None and _begins_with(path, mark)) or sha256_of(path) == sha256_of(made)
        ):
            return
    except FileNotFoundError:  # it was removed meanwhile
        return
    if path.exists():
        raise ExportError(
            "The output is not known to be written by Tunesmith, and came or was changed during the work",
            where=str(path),
            why="It stays as it is.",
            remedy="Move it to another place, and give the command again.",
        )


def write_output(path: Path, content: str | bytes, *, marked: bool = False, mark: str | None = None) -> None:
    """Writes a file that a user named as an output. Text is written in UTF-8, and a page gets its mark.

    Args:
        path: the file.
        content: of it.
        marked: gives a mark to text that is no page and may hold a comment of HTML, such as Markdown.
        mark: the first line of files that may be replaced although the user may have changed them.

    Raises:
        ExportError: the user has put something there since ``check_file``.
    """
    written = content.encode() if isinstance(content, str) else content
    if marked or written[:15].lower() == b"<!doctype html>":
        written = written.rstrip(b"\n") + b"\n"
        written += f"<!-- Written by Tunesmith; sha256 of all above: {sha256(written).hexdigest()} -->\n".encode()
    with output_file(path, mark=mark) as file:
        file.write(written)


def wrote(path: Path) -> bool:
    """Whether Tunesmith has written a file of this content on this machine, or one with its mark anywhere."""
    return _notes().joinpath(sha256_of(path)).exists() or _is_marked(path)


def is_device(path: Path) -> bool:
    """Whether this is something to write into: a terminal, a pipe, /dev/null, or a stream that the shell has opened."""
    return _stream(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def is_standard_output(path: Path) -> bool:
    """Whether this is where a command prints its results."""
    return _stream(path) == 1


def _stream(path: Path) -> int | None:
    """The number of the open stream that a path such as /dev/stdout or /dev/fd/3 stands for."""
    name = os.path.abspath(path)
    folder, number = os.path.split(name)
    if folder in ("/dev/fd", "/proc/self/fd") and number.isdecimal() and path.exists():
        return int(number)
    return _STREAMS.get(name)


def _opened(path: Path) -> BinaryIO:
    """Opens a device. A stream goes on where it is: opened by its name, a file behind it would be emptied."""
    stream = _stream(path)
    if stream is None:
        return path.open("wb")
    for each in (sys.stdout, sys.stderr):
        each.flush()
    return os.fdopen(os.dup(stream), "wb")


def _begins_with(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark) + 2).replace(b"\r\n", b"\n").startswith(mark.encode())


def _is_marked(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 200))
        if _MARK.search(file.read()) is None:
            return False
    content = path.read_bytes()
    found = _MARK.search(content)
    return found is not None and sha256(content[: found.start()]).hexdigest() == found[1].decode()


def note_as_written(path: Path) -> None:
    """Makes a file known whose content shows that an earlier version wrote it, without noting it."""
    _note(path)


def _note(path: Path) -> None:
    with suppress(OSError):  # the cache may be for reading only; the file is then not replaced later
        _notes().mkdir(parents=True, exist_ok=True)
        _notes().joinpath(sha256_of(path)).touch()


def _notes() -> Path:
    return cache_dir() / "written"


def _path(named: object) -> Path | None:
    """What a user named, if it is a file or folder that is here."""
    if not isinstance(named, str | os.PathLike) or not os.fspath(named):
        return None
    path = Path(expanded(named))
    try:
        return path if path.exists() else None
    except (OSError, ValueError):  # too long, or with a null byte: no path
        return None


def _same(out: Path, there: Path) -> bool:
    return out.exists() and out.samefile(there)
