"""Starts other programs so that no file of the working folder is imported or run.

Data often lies in a folder of somebody else, and Python puts the working folder on its path for `-m` and `-c`. So every
process that Tunesmith starts gets this Python by its absolute name with `-P`, and a clean environment: paths that are
relative or empty, which mean the working folder, are left out.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError

PATH_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
OWN = str(Path(__file__).resolve().parents[2])  # what Tunesmith is imported from
RUNS_A_FILE = ("BASH_ENV", "ENV", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT")


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment of a program to start, with some variables changed. git gets none of its own variables."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for name in RUNS_A_FILE:
        found.pop(name, None)
    for name in PATH_LISTS:
        if name in found or (name == "PYTHONPATH" and _is(OWN, ".")):
            found[name] = _absolute(found.get(name, ""))
            if not found[name]:  # an empty list means the working folder, too
                del found[name]
    return {**found, "PYTHONSAFEPATH": "1", **changes}


def python_command(*arguments: str) -> list[str]:
    """This Python with arguments, and without the working folder on its path. Use it with ``clean_environment``."""
    if not os.path.isabs(sys.executable or ""):
        raise RunError(
            "Python does not know its own program, so no other process can be started",
            why=f"sys.executable is {sys.executable!r}.",
            remedy="Run the command `tunesmith` of an environment (venv), and not Python inside another program.",
        )
    return [sys.executable, "-P", *arguments]


def find_program(name: str) -> str | None:
    """The absolute name of a program on the PATH, whose relative and empty entries are not looked at."""
    found = shutil.which(name, path=_absolute(os.environ.get("PATH", os.defpath)))
    return None if found is None or not os.path.isabs(found) else found


def worker_pool(workers: int, *, initializer: Callable[..., None], arguments: Sequence[Any]) -> Any:
    """A loky ProcessPoolExecutor whose processes are started, with the helper that loky starts beside them."""
    with clean_process():
        from loky import ProcessPoolExecutor

        # loky starts a process anew where one was ended, later than this.
        later = {name: os.environ.get(name, "") for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
        pool = ProcessPoolExecutor(workers, initializer=initializer, initargs=tuple(arguments), env=later)
        try:
            pool.submit(int)  # the first call starts every process
        except BaseException:
            pool.shutdown(kill_workers=True)
            raise
    return pool


@contextmanager
def clean_process() -> Iterator[None]:
    """Inside, this process has a clean environment and no working folder on its path, and so has what it starts."""
    before, path = dict(os.environ), list(sys.path)
    clean = clean_environment()
    _change_environment(clean)
    sys.path[:] = without_working_folder(path)
    try:
        yield
    finally:
        for name in {*before, *clean}:
            if os.environ.get(name) == clean.get(name):  # else it was changed inside, on purpose
                _set(name, before.get(name))
        sys.path[:] = path


@contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, the working folder is the root, where only an administrator can put files."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(os.sep)
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def without_working_folder(path: Sequence[str]) -> list[str]:
    """A module path without the working folder, unless Tunesmith itself lies there."""

    if _is(OWN, "."):
        return list(path)
    return [entry for entry in path if os.path.isabs(entry) and not _is(entry, ".")]


def _absolute(paths: str) -> str:
    """The absolute entries of a list of paths, and the one that Tunesmith itself was imported from."""
    entries = paths.split(os.pathsep)
    kept = (entry if os.path.isabs(entry) else OWN if _is(entry or ".", OWN) else "" for entry in entries)
    return os.pathsep.join(filter(None, kept))


def _is(entry: str, other: str) -> bool:
    return os.path.isdir(entry) and os.path.samefile(entry, other)


def _change_environment(wanted: dict[str, str]) -> None:
    for name in {*os.environ, *wanted}:
        if os.environ.get(name) != wanted.get(name):
            _set(name, wanted.get(name))


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
