"""A full or closed disk is one message with the bytes needed and free, whichever library meets it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tunesmith.errors import RunError, TrainError
from tunesmith.runs.disk import bytes_in, disk_errors, free_at, is_full, no_room, why_full

# Real errors of a full disk: the largest size of a file stands for it. What is printed is the message or the error.
WRITER = """
import os, resource, sys
from pathlib import Path
from tunesmith.errors import TunesmithError
from tunesmith.runs.disk import disk_errors, system_errors
folder, kind = Path(sys.argv[1]), sys.argv[2]
import numpy, tokenizers, torch
from safetensors.torch import save_file
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    with disk_errors(folder):
        if kind == "python":
            with open(folder / "file", "wb") as file:
                file.write(bytes(10_000))
        elif kind == "numpy":
            numpy.savez(folder / "file", numpy.zeros(10_000))
        elif kind == "tokenizers":
            words = {f"word {number}": number for number in range(1_000)}
            with system_errors():
                tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "word 0")).save(str(folder / "file"))
        else:
            save_file({"a": torch.zeros(10_000)}, folder / "file")
except TunesmithError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["python", "numpy", "safetensors", "tokenizers"])
def test_a_file_that_cannot_grow_is_one_message_whoever_writes_it(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[:2] == [
        f"{tmp_path}: The disk is full",
        "  File too large: this process may write files of 4,096 bytes (ulimit -f).",
    ]


def test_the_message_names_the_bytes_that_are_free(tmp_path: Path) -> None:
    with pytest.raises(TrainError) as caught, disk_errors(tmp_path, TrainError):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.where == str(tmp_path)
    assert str(caught.value.why).startswith("No space left on device: ")
    assert f" bytes are free on the disk of {tmp_path}." in str(caught.value.why)
    assert why_full(tmp_path, OSError(errno.EDQUOT, "x"), 12_345).startswith(
        "Disk quota exceeded: 12,345 bytes are nee"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EBUSY])
def test_a_closed_or_lost_disk_is_named_by_its_file(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunError) as caught, disk_errors():
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert (caught.value.where, caught.value.why) == (str(tmp_path / "file"), f"{os.strerror(number)}.")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (
        FileNotFoundError(2, "x", "y"),
        SafetensorError("header too large"),
        OSError("no number"),
        KeyError(),
    ):
        with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
            raise error
        assert caught.value is error
    assert is_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full(SafetensorError("I/O error: Permission denied (os error 13)"))


def test_what_does_not_fit_is_said_with_both_numbers(tmp_path: Path) -> None:
    free = free_at(tmp_path / "not" / "there")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert no_room(tmp_path, 1) is None
    said = no_room(tmp_path / "new", 2**62)
    assert said is not None and said.startswith(f"{2**62:,} bytes are needed, and ") and " bytes are free" in said


def test_a_limit_of_the_size_of_files_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, resource.RLIM_INFINITY))
    assert no_room(tmp_path, 5000, file=1000) is None
    said = "A file of 1,001 bytes is needed, and this process may write files of 1,000 bytes (ulimit -f)."
    assert no_room(tmp_path, 5000, file=1001) == said


def test_a_file_system_that_does_not_tell_its_size_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: nothing)
    assert free_at(tmp_path) is None and no_room(tmp_path, 2**62) is None


def test_bytes_of_a_folder_do_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(1000))
    (tmp_path / "big").write_bytes(bytes(5000))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "big")
    assert 1000 <= bytes_in(tmp_path / "a") < 1200
    assert bytes_in(tmp_path / "nothing") == 0
