"""Manifests: the sha256 of each file in a folder, by which a damaged file is noticed. The one owner of that rule.

A folder that is written once, such as a checkpoint, lists all of its files. A run's folder lists its own files as they
are written. While one is being replaced, its former content counts, too, so a kill at any moment is no damage; a file
that grows line by line is listed as far as it was sealed.

A damaged manifest is never written anew: that would vouch for files that nobody has compared.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tunesmith.errors import RunError
from tunesmith.runs.checkpoint_names import checkpoints_in
from tunesmith.runs.plain_files import open_plain
from tunesmith.runs.stored_json import most_bytes, most_of_a_line, most_text, too_large
from tunesmith.runs.whole_files import write_whole

MANIFEST = "manifest.json"
_RECIPE, _FINGERPRINT = "recipe.yaml", "fingerprint.json"
GROWING = ("metrics.jsonl", "samples_during.jsonl", "evaluations.jsonl", "comparisons.jsonl", "benchmarks.jsonl")

_SETTLED_NS = 2 * 10**9  # a file that was written less than this ago could change again within one tick of its clock
_TRIES = 3  # to read a file and the manifest while another process writes both

Facts = dict[str, Any]  # {"bytes": int, "sha256": str}
Files = dict[str, Facts]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal. It is computed once in a process while the file stays the same."""
    stat = path.stat()
    if time.time_ns() - stat.st_mtime_ns < _SETTLED_NS:
        return _sha256(path)
    return _remembered(str(path), (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=4096)
def _remembered(path: str, _state: tuple[int, ...]) -> str:
    return _sha256(Path(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of(content: bytes) -> Facts:
    """The size and the sha256 of what a file holds."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def listing(folder: Path, *, besides: Collection[str] = ()) -> Files:
    """Every file in a folder, at every depth, with its size and sha256."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in paths.items()
        if name not in besides
    }


def difference(
    path: Path, facts: Mapping[str, Any], *, content: bool = True, digest: Callable[[Path], str] = sha256_of
) -> str | None:
    """In words, how a file differs from what was written; None if it does not.

    Args:
        content: whether to read it; otherwise only its size counts.
        digest: gives the sha256 of a file.
    """
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != facts["bytes"]:
            return f"has {size:,} bytes, and {facts['bytes']:,} were written"
        if content and digest(path) != facts["sha256"]:
            return "has other content than was written"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None


def write_manifest(folder: Path) -> None:
    """Lists all files of a folder that is still being filled. Call it last."""
    (folder / MANIFEST).write_text(_render(listing(folder, besides=[MANIFEST]), {}), encoding="utf-8")


def take_off(folder: Path, name: str) -> None:
    """Removes a file that is no longer needed, and first its entry."""
    with _alone(folder), _damaged_stays():
        files, before = _read(folder) if (folder / MANIFEST).is_file() else ({}, {})
        if name in files:
            write_whole(folder / MANIFEST, _render({key: files[key] for key in files if key != name}, before))
    (folder / name).unlink(missing_ok=True)


def is_listed(folder: Path, name: str) -> bool:
    """Whether a file belongs to the folder. Without a readable manifest, all files do."""
    try:
        return name in _read(folder)[0]
    except (OSError, ValueError):
        return True


def has_manifest(folder: Path) -> bool:
    """Whether the folder's files can be verified. Earlier versions wrote no manifests."""
    return (folder / MANIFEST).exists()


def damage(folder: Path, *, unread: Collection[str] = (), digest: Callable[[Path], str] = sha256_of) -> dict[str, str]:
    """The damaged files of a folder by name, in words. It is empty for a whole folder and for one without a manifest.

    Args:
        unread: files of which only the size is compared, because the caller does not read them.
        digest: gives the sha256 of a file.
    """
    if not folder.is_dir():
        return {".": "is missing"}
    if not has_manifest(folder):
        return {}
    try:
        files, _ = _read(folder)
    except (OSError, ValueError) as error:
        return {MANIFEST: f"cannot be read ({error})"}
    found = {
        name: read_checked(folder, name)[1]
        if name in GROWING
        else difference(folder / name, facts, content=name not in unread, digest=digest)
        for name, facts in files.items()
    }
    return {name: why for name, why in found.items() if why is not None}


def in_words(found: Mapping[str, str]) -> str:
    """What is damaged, as the end of a sentence."""
    named = [f"{name} {why}" if name != "." else f"the folder {why}" for name, why in found.items()]
    return "; ".join([*named[:5], *([f"{len(named) - 5} more files differ"] if len(named) > 5 else [])])


def refuse_damaged(folder: Path, *, unread: Collection[str] = ()) -> dict[str, str]:
    """Raises RunError for a damaged checkpoint, which names another one if it can.

    Returns the damage to files in ``unread``, which the caller does without.
    """
    if not has_manifest(folder):
        return {}
    found = damage(folder, unread=unread)
    needed = {name: why for name, why in found.items() if name not in unread}
    if not needed:
        return found
    raise RunError(
        "The checkpoint is damaged" if folder.parent.name == "checkpoints" else "The files of this folder are damaged",
        where=str(folder),
        why=f"{in_words(needed)}.",
        remedy=_way_out(folder, unread),
    )


def _way_out(folder: Path, unread: Collection[str]) -> str:
    own = f"If you changed the files yourself, remove {folder / MANIFEST}: they are then used as they are."
    if folder.parent.name != "checkpoints":
        return f"Copy the folder again from where it came. {own}"
    others = [path for path in reversed(checkpoints_in(folder.parent)) if path != folder]
    whole = next((path for path in others if has_manifest(path) and not damage(path, unread=unread)), None)
    other = "" if whole is None else f"Name {whole}, which is whole. "
    again = f"`tunesmith train {folder.parent.parent} --resume` makes a damaged checkpoint again."
    return f"{other}{again} {own}"


def expect(folder: Path, name: str, content: bytes) -> None:
    """Notes in a run's manifest what one of its files is about to hold. Call it before the file is written."""
    facts = facts_of(content)
    with _alone(folder), _damaged_stays():
        files, before = _known(folder)
        if files.get(name) == facts and name not in before:
            return
        _update(folder, files, before, {name: facts})


def seal(folder: Path, *names: str) -> dict[str, str]:
    """Lists files that grow as far as they go now, where they exist. Earlier content that changes is damage.

    Returns the files of which nothing new is listed, with the reason: the part that was listed before has changed. If
    the manifest itself is damaged, it is named, and nothing is listed.
    """
    refused: dict[str, str] = {}
    with _alone(folder), _damaged_stays(refused):
        files, before = _known(folder)
        found = {}
        for name in names:
            with _opened(folder / name) as file:
                if file is None:
                    continue
                os.fsync(file.fileno())
                if name in files and (why := _difference(folder, name, file, files, before)):
                    refused[name] = why
                else:
                    found[name] = _facts(file)
        if any(files.get(name) != facts for name, facts in found.items()):
            _update(folder, files, before, found)
    return refused


def settle(folder: Path) -> None:
    """Ends the time in which the former content of a file counts, too, where the new one is there by now.

    Call it after the last file that a command writes: each earlier one is settled by the next.
    """
    with _alone(folder), _damaged_stays():
        files, before = _known(folder)
        if before:
            _update(folder, files, before, {})


def has_other_bytes(folder: Path, name: str) -> bool:
    """Whether a file of a run has other bytes than the run wrote, also where they say the same."""
    try:
        files, before = _read(folder)
        with open_plain(folder / name) as file:
            return name in files and not _is_accepted(name, file, files, before)
    except (OSError, ValueError):
        return False


def _change(folder: Path, name: str, file: BinaryIO | None) -> str | None:
    """In words, how a file of a run differs from what the run wrote; None if it does not or is not listed."""
    try:
        files, before = _read(folder)
    except (OSError, ValueError):
        return None
    return _difference(folder, name, file, files, before) if name in files else None


def _difference(
    folder: Path, name: str, file: BinaryIO | None, files: Files, before: Mapping[str, Facts | None]
) -> str | None:
    if _is_accepted(name, file, files, before):
        return None
    if file is None:
        return "is missing"
    if name == _RECIPE and _says_the_same(folder):
        return None
    size, written = _size(file), files[name]["bytes"]
    if size != written and (name not in GROWING or size < written):
        return f"has {size:,} bytes, and {written:,} were written"
    return "has other content than the run wrote"


def changes(folder: Path) -> dict[str, str]:
    """Every file of a run that differs from what the run wrote, in words."""
    if not has_manifest(folder):
        return {}
    try:
        files, _ = _read(folder)
    except (OSError, ValueError) as error:
        return {MANIFEST: f"cannot be read ({error})"}
    found: dict[str, str] = {}
    for name in files:
        with open_checked(folder, name) as (_, why):
            found |= {} if why is None else {name: why}
    return found


def unlisted(folder: Path, names: Collection[str]) -> list[str]:
    """Files with these names that are there and that the manifest does not list, so they cannot be verified.

    There are none without a readable manifest: then nothing can be verified.
    """
    try:
        files, _ = _read(folder)
    except (OSError, ValueError):
        return []
    return [name for name in names if name not in files and (folder / name).is_file()]


def read_checked(folder: Path, name: str) -> tuple[bytes | None, str | None]:
    """The content of a run's file, and how it differs from what was written. A process may write both meanwhile.

    Raises OSError if the file is there and cannot be read.
    """
    with open_checked(folder, name) as (file, why):
        if file is None:
            return None, why
        much = too_large(_size(file), most_text())
        return (None, much) if much is not None else (file.read(), why)


@contextmanager
def open_checked(folder: Path, name: str) -> Iterator[tuple[BinaryIO | None, str | None]]:
    """Inside, a run's file to read from, and how it differs from what was written. None: there is no such file.

    Raises OSError if the file is there and cannot be read.
    """
    for left in reversed(range(_TRIES)):
        with ExitStack() as opened:
            try:
                file = opened.enter_context(_opened(folder / name))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENXIO):
                    raise
                yield None, "is no plain file"
                return
            if file is not None and (much := too_large(_size(file), most_bytes())):
                yield None, much
                return
            why = _change(folder, name, file)
            if why is None or not left:
                yield file, why
                return


def _says_the_same(folder: Path) -> bool:
    """Whether the user has only written other places into the run's recipe, or line ends."""
    from tunesmith.runs.edited_recipe import says_the_same  # reads recipes, which most commands do not need here

    intact = read_checked(folder, _FINGERPRINT)[1] is None
    return intact and says_the_same(folder / _RECIPE, folder / _FINGERPRINT)


def _accepted(name: str, files: Files, before: Mapping[str, Facts | None]) -> list[Facts | None]:
    return [files[name], *([before[name]] if name in before else [])]


def _is_accepted(name: str, file: BinaryIO | None, files: Files, before: Mapping[str, Facts | None]) -> bool:
    return any(_agrees(name, facts, file) for facts in _accepted(name, files, before))


def _agrees(name: str, facts: Facts | None, file: BinaryIO | None) -> bool:
    if facts is None or file is None:
        return facts is file
    size = _size(file)
    if size < facts["bytes"] or (size > facts["bytes"] and name not in GROWING):
        return False
    return _facts(file, facts["bytes"]) == facts


def _facts(file: BinaryIO, most: int | None = None) -> Facts:
    """The size and the sha256 of a file, or of its first bytes. It is read in parts, and left at its begin."""
    found, left = hashlib.sha256(), _size(file) if most is None else most
    size = left
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 2**20))):
        found.update(part)
        left -= len(part)
    file.seek(0)
    return {"bytes": size - left, "sha256": found.hexdigest()}


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """Inside, a file to read from; None if it is not there."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(open_plain(path))
        except (FileNotFoundError, NotADirectoryError):
            file = None
        yield file


def _update(folder: Path, files: Files, before: Mapping[str, Facts | None], new: Files) -> None:
    """Writes the manifest anew. A file that is as listed by now has its former content no more."""
    pending = {}
    for name, facts in before.items():
        with suppress(OSError), open_plain(folder / name) as file:
            if _agrees(name, files[name], file):
                continue
        pending[name] = facts
    for name in new:
        pending.setdefault(name, files.get(name))
        if name in GROWING:
            with _opened(folder / name) as file:
                if file is not None and _agrees(name, new[name], file):
                    del pending[name]
    write_whole(folder / MANIFEST, _render({**files, **new}, pending))


def _known(folder: Path) -> tuple[Files, dict[str, Facts | None]]:
    """What the manifest lists; nothing if there is none yet. Raises _Damaged."""
    try:
        return _read(folder)
    except FileNotFoundError:
        return {}, {}


class _Damaged(ValueError):
    """A manifest is not as it was written."""


@contextmanager
def _damaged_stays(found: dict[str, str] | None = None) -> Iterator[None]:
    """Inside, the manifest is written anew. A damaged one stays as it is, and ``found`` names it."""
    try:
        yield
    except _Damaged as error:
        if found is not None:
            found[MANIFEST] = f"cannot be read ({error})"


def _render(files: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """The text of a manifest. Its last entry is the sha256 of the others, so no byte of it changes unnoticed."""
    body: dict[str, Any] = {"files": dict(sorted(files.items()))}
    if before:
        body["before"] = dict(sorted(before.items()))
    own = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": own}, indent=2) + "\n"


def _read(folder: Path) -> tuple[Files, dict[str, Facts | None]]:
    """A folder's manifest. Raises FileNotFoundError, OSError or _Damaged, as ``_parse`` does."""
    file = folder / MANIFEST
    if file.exists() and not file.is_file():
        raise _Damaged("it is no plain file")
    with open_plain(file) as opened:
        if much := too_large(_size(opened), most_of_a_line()):
            raise _Damaged(f"it {much}")
        return _parse(opened.read())


def _parse(text: bytes) -> tuple[Files, dict[str, Facts | None]]:
    """The files of a manifest, and the former content of those that were being replaced. Raises _Damaged."""
    try:
        value = json.loads(text.decode())
        files, before = value["files"], value.get("before", {})
        same = _render(files, before).encode() == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged("it is no whole JSON") from error
    if not same:
        raise _Damaged("it differs from its own sha256")
    for name, facts in [*files.items(), *((name, facts) for name, facts in before.items() if facts is not None)]:
        if not isinstance(facts, dict) or not isinstance(facts.get("bytes"), int) or "sha256" not in facts:
            raise _Damaged(f"{name!r} has no size and sha256")
    if before.keys() - files.keys():
        raise _Damaged("it lists a former file that it does not list now")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise _Damaged(f"{name!r} is outside of the folder")
        if str(path) != name or name == "." or not name.isprintable():
            raise _Damaged(f"{name!r} is no plain name of a file")
    return files, before


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process changes the folder's manifest, where the file system can promise that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
