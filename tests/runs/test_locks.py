"""One process holds a lock, whatever the file system, the clock, and what an earlier holder left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tunesmith.runs.locks import holder, is_locked, locked, stand_in

HOST = os.uname().nodename
# Adds a line for each time that it had the lock; two at once would find the mark of the other.
CONTENDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
from tunesmith.runs.locks import locked
folder, without = Path(sys.argv[1]), sys.argv[2] == "without locks"
if without:
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")
    fcntl.flock = refuse
had = 0
end = time.monotonic() + 20
while had < 5 and time.monotonic() < end:
    try:
        with locked(folder / "lock"):
            os.mkdir(folder / "mark")
            time.sleep(0.002)
            os.rmdir(folder / "mark")
            had += 1
            if had % 2:
                (folder / "lock").unlink()  # as a run does that was refused
    except BlockingIOError:
        pass
print(had)
"""


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("system", ["with locks", "without locks"])
def test_of_eight_processes_one_at_a_time_has_the_lock_also_while_its_file_is_removed(
    tmp_path: Path, system: str
) -> None:
    command = [sys.executable, "-c", CONTENDER, str(tmp_path), system]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]
    ended = [process.communicate() for process in processes]
    assert [out.strip() for out, _ in ended] == [b"5"] * 8, ended


@pytest.mark.parametrize("left", ["{dead}", "{dead} on {host}", "{dead} on elsewhere", "", "\x00\xff", "1 on {host}"])
def test_a_file_that_a_dead_holder_left_is_no_lock(tmp_path: Path, left: str) -> None:
    file = tmp_path / "lock"
    file.write_text(left.format(dead=dead_process(), host=HOST))
    for when in (time.time() - 86_400, time.time() + 86_400):  # a clock that is a day off
        os.utime(file, (when, when))
        assert not is_locked(file)
        with locked(file):
            assert is_locked(file) and file.read_text() == f"{os.getpid()} on {HOST}\n"


def test_without_locks_of_the_file_system_a_file_stands_for_one_until_its_process_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    file = tmp_path / "lock"
    with locked(file):
        assert is_locked(file) and holder(file) == f"{os.getpid()} on {HOST}"
        with pytest.raises(BlockingIOError), locked(file):
            pass
    assert not is_locked(file) and not stand_in(file).exists()
    stand_in(file).write_text(f"{dead_process()} on {HOST}\n")
    assert not is_locked(file)
    with locked(file):
        pass
    stand_in(file).write_text(f"{dead_process()} on elsewhere\n")  # nobody here can know whether it lives
    assert is_locked(file) and holder(file).endswith("on elsewhere")
    with pytest.raises(BlockingIOError), locked(file):
        pass
    stand_in(file).unlink()
    with locked(file):
        pass


def test_another_error_of_the_file_system_is_not_taken_for_a_missing_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: object, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path / "lock"):
        pass


def test_who_waits_for_a_removed_lock_takes_the_new_file(tmp_path: Path) -> None:
    file, order = tmp_path / "run" / "lock", []

    def wait() -> None:
        with locked(file):
            order.append(is_locked(file))

    with locked(file):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.02)
        file.unlink()
        file.parent.rmdir()
    waiting.join()
    assert order == [True]
