"""The sha256 of large files, which are read once: the cache folder keeps it with the file's size, times and inode."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from tunesmith.runs.cache import Say, cache_dir
from tunesmith.runs.manifest import sha256_of
from tunesmith.runs.temporary import temporary

SMALL = 1 << 20  # bytes; a smaller file is read each time
LARGE = 2 << 30  # bytes; that such a file is read is said
SETTLED_S = 2.0  # a file that changed within so many seconds may change again with the same times
KEPT = 1000  # entries


def known_sha256(path: Path, *, say: Say) -> str:
    """The sha256 of a file, from the cache if the file is the same by path, device, inode, size and times.

    The time of the last change of the inode counts too: writing, and setting the other times back, both move it.

    Args:
        say: takes a line before a file of several gigabytes is read.
    """
    path = path.resolve()
    stat = path.stat()
    if stat.st_size < SMALL:
        return sha256_of(path)
    state = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    entry = _entry(path)
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(entry.read_text(encoding="utf-8"))
        if found["state"] == state and len(found["sha256"]) == 64:
            return found["sha256"]
    if stat.st_size >= LARGE:
        say(f"reading {path.name} for its sha256, once ({stat.st_size / 1e9:.1f} GB)")
    begun = time.time()
    digest = sha256_of(path)
    after = path.stat()
    same = state == [after.st_dev, after.st_ino, after.st_size, after.st_mtime_ns, after.st_ctime_ns]
    if same and max(after.st_mtime, after.st_ctime) < begun - SETTLED_S:
        with suppress(OSError):  # a cache may be for reading only, or full: then the file is read again next time
            _write(entry, {"state": state, "sha256": digest})
    return digest


def _entry(path: Path) -> Path:
    return cache_dir() / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _write(entry: Path, found: dict[str, object]) -> None:
    """Replaces an entry whole. Several processes may do so at once, so each has a name of its own to write to."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with temporary(entry.with_name(f".{secrets.token_hex(8)}.tmp")) as beside:
        with beside.open("x", encoding="utf-8") as file:
            file.write(json.dumps(found))
        beside.replace(entry)
    entries = sorted(entry.parent.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
    for old in entries[: -KEPT or None]:
        old.unlink(missing_ok=True)
