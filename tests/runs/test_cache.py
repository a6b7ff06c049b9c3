"""What is built once is whole or absent, whoever is killed and however many ask."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.errors import ModelError
from tunesmith.runs import file_hashes
from tunesmith.runs.built_folders import PROVENANCE, build_once, damage_to
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.manifest import MANIFEST

RACER = """
import sys, time
from pathlib import Path
from tunesmith.runs import cache
from tunesmith.runs.built_folders import build_once

cache.WAIT_BEFORE_SAYING_S = 0.2

def build(to):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (to / "half.txt").write_text("half")
    time.sleep(float(sys.argv[3]))
    (to / "whole.txt").write_text("whole")
    return {"source": "test"}

folder = build_once(Path(sys.argv[1]), build, say=print)
print((folder / "whole.txt").read_text())
"""


def racer(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RACER, str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert path.exists()


def write_one(to: Path) -> dict[str, object]:
    (to / "weights").write_bytes(b"12345")
    return {"source": "test"}


def test_cache_folder_is_the_one_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert cache_dir().name == "tunesmith"


def test_two_processes_build_once_and_the_second_says_that_it_waits(tmp_path: Path) -> None:
    folder, log = tmp_path / "model", tmp_path / "log"
    first = racer(folder, log, 1.0)
    wait_for(tmp_path / "model.partial" / "half.txt")
    second = racer(folder, log, 1.0)
    said = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    assert said == [["whole"], ["Another process is preparing model; waiting for it.", "whole"]]
    assert log.read_text() == "built\n"


def test_a_killed_build_leaves_nothing_that_looks_finished_and_the_next_one_builds(tmp_path: Path) -> None:
    folder, log = tmp_path / "model", tmp_path / "log"
    killed = racer(folder, log, 60)
    wait_for(tmp_path / "model.partial" / "half.txt")
    killed.kill()
    killed.wait()
    assert not folder.exists()
    assert racer(folder, log, 0).communicate(timeout=60)[0] == "whole\n"
    assert log.read_text() == "built\nbuilt\n"
    assert not (tmp_path / "model.partial").exists()


def test_a_build_that_raises_leaves_no_folder(tmp_path: Path) -> None:
    def build(to: Path) -> dict[str, object]:
        (to / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build_once(tmp_path / "model", build)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.lock"]


def test_provenance_names_every_file_with_its_size_and_sha256(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "model", write_one)
    assert json.loads((folder / PROVENANCE).read_text()) == {
        "source": "test",
        "files": {
            "weights": {
                "bytes": 5,
                "sha256": "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5",
            }
        },
    }


@pytest.mark.parametrize("damaged", [b"123", b"12344", b"", None])
@pytest.mark.parametrize("name", ["weights", PROVENANCE, MANIFEST])
def test_a_folder_with_a_damaged_file_is_built_again_and_that_is_said(
    tmp_path: Path, name: str, damaged: bytes | None
) -> None:
    said: list[str] = []
    folder = build_once(tmp_path / "model", write_one, say=said.append)
    assert (said, damage_to(folder)) == ([], None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / name).unlink()
    if damaged is not None:
        (folder / name).write_bytes(damaged)
    elif name == MANIFEST:
        assert damage_to(folder) is None, "provenance.json has the same hashes, as in caches of earlier versions"
        return
    why = damage_to(folder)
    assert why is not None
    assert why.startswith(f"{name} ")
    build_once(folder, write_one, say=said.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert said == [f"{folder} is damaged and is made again: {why}."]


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(to: Path) -> dict[str, object]:
        (to / "weights").write_bytes(b"1" * (2 << 20))
        return {"source": "test"}

    read: list[str] = []

    def counted(path: Path) -> str:
        if path.stat().st_size >= file_hashes.SMALL:
            read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    folder = build_once(tmp_path / "model", write)
    monkeypatch.setattr(file_hashes, "SETTLED_S", -60.0)  # as if it were written long ago
    monkeypatch.setattr(file_hashes, "sha256_of", counted)
    for _ in range(3):
        assert build_once(folder, write) == folder
    assert read == ["weights"]
    times = (folder / "weights").stat()
    with (folder / "weights").open("r+b") as file:  # in place, of the same size, and with the times set back
        file.write(b"2")
    os.utime(folder / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert damage_to(folder) == "weights has other content than was written"
    said: list[str] = []
    build_once(folder, write, say=said.append)
    assert len(said) == 1
    assert (folder / "weights").read_bytes() == b"1" * (2 << 20)


def test_a_cache_of_an_earlier_version_is_used_and_verified(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "model", write_one)
    (folder / MANIFEST).unlink()
    (folder / "weights").write_bytes(b"12344")
    assert damage_to(folder) == "weights has other content than was written"


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    def build(to: Path) -> dict[str, object]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match=r"disk is full.*(\n.*)*TUNESMITH_CACHE"):
        build_once(tmp_path / "model", build)
