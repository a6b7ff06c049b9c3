"""A large file is read once for its sha256, and again if anything about it has changed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tunesmith.runs import file_hashes
from tunesmith.runs.file_hashes import KEPT, SMALL, known_sha256
from tunesmith.runs.manifest import sha256_of

Reads = list[Path]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reads:
    """The files that were read to the end. A file counts as settled after 50 ms."""
    found: Reads = []

    def read(path: Path) -> str:
        found.append(path)
        return sha256_of(path)

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "sha256_of", read)
    monkeypatch.setattr(file_hashes, "SETTLED_S", 0.05)
    return found


def digest(path: Path) -> str:
    return known_sha256(path, say=lambda text: None)


def large(folder: Path) -> Path:
    path = folder / "weights"
    path.write_bytes(os.urandom(SMALL + 10))
    time.sleep(0.1)
    return path


def test_a_large_file_is_read_once(reads: Reads, tmp_path: Path) -> None:
    path = large(tmp_path)
    assert digest(path) == digest(path) == sha256_of(path)
    assert reads == [path]


def test_a_changed_file_is_read_again_even_with_its_old_size_and_times(reads: Reads, tmp_path: Path) -> None:
    path = large(tmp_path)
    before, times = digest(path), path.stat()
    with path.open("r+b") as file:
        file.seek(SMALL // 2)
        byte = file.read(1)[0]
        file.seek(SMALL // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    time.sleep(0.1)
    assert digest(path) == sha256_of(path) != before
    other = tmp_path / "other"
    shutil.copyfile(path, other)
    other.write_bytes(other.read_bytes()[::-1])
    other.replace(path)
    assert digest(path) == sha256_of(path)
    assert len(reads) == 3


def test_a_file_that_has_just_changed_is_not_remembered(reads: Reads, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(SMALL))
    digest(path)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_entry_is_made_again(reads: Reads, tmp_path: Path) -> None:
    path = large(tmp_path)
    expected = digest(path)
    [entry] = (tmp_path / "cache" / "hashes").iterdir()
    whole = entry.read_text()
    for text in ("", whole[: len(whole) // 2], "[]", '{"state": []}', "\x00"):
        entry.write_text(text)
        assert digest(path) == expected
        assert entry.read_text() == whole
    assert len(reads) == 6


def test_a_cache_that_takes_no_files_costs_a_reading_and_no_error(reads: Reads, tmp_path: Path) -> None:
    path = large(tmp_path)
    (tmp_path / "cache").write_text("a file")
    assert digest(path) == digest(path) == sha256_of(path)
    assert len(reads) == 2


def test_the_oldest_entries_are_removed(reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "KEPT", 2)
    for name in "abc":
        (tmp_path / name).mkdir()
        digest(large(tmp_path / name))
    assert KEPT > 2 == len([*(tmp_path / "cache" / "hashes").iterdir()])


def test_reading_several_gigabytes_is_said(reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "LARGE", SMALL)
    heard: list[str] = []
    known_sha256(large(tmp_path), say=heard.append)
    assert len(heard) == 1 and "weights" in heard[0]
