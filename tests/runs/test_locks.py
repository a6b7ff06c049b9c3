"""One process holds a lock, whatever the file system, the clock, and what an earlier holder left behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.runs import locks
from tunesmith.runs.folder import Run
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

HOLDER = """
import sys
from pathlib import Path
from tunesmith.runs.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(file: Path) -> Iterator[int]:
    """Inside, another process holds the file; its number."""
    command = [sys.executable, "-c", HOLDER, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.stdin.close()
    assert process.returncode == 0


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


# Takes the lock while another process is between two of its own steps, and says whether it has it.
PREEMPTS = """
import errno, fcntl, sys
from pathlib import Path
from tunesmith.runs import locks
from tunesmith.runs.locks import locked
def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock, locks.BETWEEN_TRIES = refuse, 0.0
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except BlockingIOError:
    print("not held", flush=True)
"""
STEPS = ((os, "open"), (os, "kill"), (os, "write"), (locks, "read_plain"), (Path, "unlink"))


@contextmanager
def taken_at(number: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Inside, another process takes the lock before this one's step of that number. The list gets what it says."""
    said: list[str] = []
    count = 0
    with ExitStack() as other, monkeypatch.context() as patch:

        def watch(owner: object, name: str) -> None:
            step = getattr(owner, name)

            def watched(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == number:
                    command = [sys.executable, "-c", PREEMPTS, str(file)]
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                    other.enter_context(process)
                    assert process.stdout is not None
                    said.append(process.stdout.readline().strip())
                return step(*args, **options)

            patch.setattr(owner, name, watched)

        without_locks(patch)
        patch.setattr(locks, "BETWEEN_TRIES", 0.0)
        for owner, name in STEPS:
            watch(owner, name)
        yield said


@pytest.mark.parametrize("left", [(), ("turn",)], ids=["a dead holder", "and one that died while it took its place"])
def test_whoever_comes_between_two_steps_of_a_process_that_takes_a_dead_ones_place_they_never_both_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    outcomes, dead = set(), f"{dead_process()} on {HOST}\n"
    for number in range(1, 100):
        file = tmp_path / str(number) / "lock"
        file.parent.mkdir()
        stand_in(file).write_text(dead)
        for _ in left:
            turn = f"{stand_in(file).name}.{hashlib.sha256(dead.encode()).hexdigest()[:8]}"
            (file.parent / turn).write_text(dead)
        mine = False
        with taken_at(number, file, monkeypatch) as said:
            with suppress(BlockingIOError), locked(file):
                mine = True
                assert not said or said == ["not held"], f"both hold it: step {number}"
                assert holder(file) == f"{os.getpid()} on {HOST}"
            if said == ["held"]:
                assert not mine
                assert is_locked(file) and holder(file) != f"{os.getpid()} on {HOST}"
        outcomes.add((mine, *said))
        assert [path.name for path in file.parent.iterdir()] == ["lock"], "nothing is left"
        if mine and not said:
            break
    assert outcomes == {(False, "held"), (True, "not held"), (True,)}


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


def test_a_file_that_took_the_place_of_the_opened_one_is_not_removed_from_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lock"
    file.write_text("of three folders\n")
    for copy in ("first", "second"):
        os.link(file, tmp_path / copy)
    flock = fcntl.flock
    holders: list[int] = []
    with ExitStack() as other:

        def late(descriptor: int, operation: int) -> None:  # the old file is open; another process takes the lock now
            monkeypatch.setattr(fcntl, "flock", flock)
            holders.append(other.enter_context(held_elsewhere(file)))
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(BlockingIOError), locked(file):
            pytest.fail("two processes hold one lock")
        assert is_locked(file) and holder(file) == f"{holders[0]} on {HOST}"
    assert (tmp_path / "first").read_text() == "of three folders\n"
    with locked(file):
        pass


def test_a_copy_by_hard_links_of_a_run_that_works_says_how_to_part_it(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    with held_elsewhere(original / ".lock"):
        with pytest.raises(RunError) as alone, Run(original).lock():
            pass
        copy.mkdir()
        os.link(original / ".lock", copy / ".lock")
        with pytest.raises(RunError) as caught, Run(copy).lock():
            pass
        assert "cp -al" in str(caught.value.why) and "cp -al" not in str(alone.value.why)
        assert str(caught.value.remedy).endswith(f"remove {copy / '.lock'}.")
        (copy / ".lock").unlink()  # as the message says
        with Run(copy).lock():
            assert Run(original).is_held() and Run(copy).is_held()
        assert Run(original).is_held() and not Run(copy).is_held()
