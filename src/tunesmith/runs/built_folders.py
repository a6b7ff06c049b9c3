"""Folders of the cache that are built once, by one process, and are whole or absent."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.runs.cache import Say, only_process, to_stderr
from tunesmith.runs.disk import WRITE_ERRORS, is_full, number_of, why_full
from tunesmith.runs.file_hashes import known_sha256
from tunesmith.runs.manifest import damage, difference, has_manifest, in_words, listing, write_manifest
from tunesmith.runs.whole_files import whole_folder

PROVENANCE = "provenance.json"
"""Names the source of a folder and the size and sha256 of each file in it. Its own is in the folder's manifest."""

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)


def damage_to(folder: Path, *, say: Say = to_stderr) -> str | None:
    """In words, what of a folder that was built is damaged; None if every file is as it was then.

    A large file is read once. After that its sha256 is known as long as its size, times and inode stay the same.
    """
    digest = partial(known_sha256, say=say)
    if has_manifest(folder):
        found = damage(folder, digest=digest)
    else:  # as built by earlier versions
        try:
            files = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["files"]
            found = {
                name: why for name, facts in files.items() if (why := difference(folder / name, facts, digest=digest))
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            found = {PROVENANCE: f"cannot be read ({type(error).__name__}: {error})"}
    return in_words(found) or None


def build_once(folder: Path, build: Callable[[Path], Mapping[str, object]], *, say: Say = to_stderr) -> Path:
    """Return ``folder``, building it first if it is not there, or again if a file of it is damaged.

    ``build`` fills an empty folder beside it and returns the facts for ``provenance.json``; only a rename makes the
    result visible, so a process that dies leaves nothing that looks finished. One process builds, the others wait.

    Raises:
        ModelError: the cache cannot be written, or the disk is full.
    """
    if folder.is_dir() and damage_to(folder, say=say) is None:
        return folder
    with _cache_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"Another process is preparing {folder.name}; waiting for it."
        with only_process(folder.with_name(f"{folder.name}.lock"), waiting, say=say):
            why = damage_to(folder, say=say) if folder.is_dir() else "is missing"
            if why is not None:
                if folder.is_dir():
                    say(f"{folder} is damaged and is made again: {why}.")
                _build(folder, build)
    return folder


def _build(folder: Path, build: Callable[[Path], Mapping[str, object]]) -> None:
    with whole_folder(folder, beside=folder.with_name(f"{folder.name}.partial")) as beside:
        _write_provenance(beside, build(beside))


def _write_provenance(folder: Path, facts: Mapping[str, object]) -> None:
    text = json.dumps({**facts, "files": listing(folder)}, indent=2, ensure_ascii=False)
    (folder / PROVENANCE).write_text(text + "\n", encoding="utf-8")
    write_manifest(folder)


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except WRITE_ERRORS as error:
        if is_full(error):
            what = f"the disk is full while preparing {folder.name}"
        elif number_of(error) in _FORBIDDEN:
            what = "the model cache cannot be written"
        else:
            raise
        raise ModelError(
            what,
            where=str(folder.parent),
            why=why_full(folder, error) if is_full(error) else str(error),
            remedy="free some space there, or set TUNESMITH_CACHE to a folder with room that you may write to.",
        ) from error
