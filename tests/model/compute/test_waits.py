"""How threads wait for each other: by what other processes do, the user's choice first, with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunesmith.model.compute import waits
from tunesmith.model.compute.waits import Chooser, Look, waiting_as_others_allow

IDLE = "tunesmith-idle-team"


def _looks(others: list[float], own: float = 1.8) -> Iterator[Look]:
    """Looks half a second apart, between which other processes use so many cores."""
    at = Look(100.0, 5000.0, 7.0)
    yield at
    for used in others:
        at = Look(at.clock + 0.5, at.used + 0.5 * (used + own), at.own + 0.5 * own)
        yield at


def _choices(others: list[float], cores: int = 2, threads: int = 2) -> list[bool]:
    first, *rest = _looks(others)
    chooser = Chooser(cores, threads, first)
    return [chooser.hear(each) for each in rest]


def test_threads_wait_for_a_short_time_while_others_take_a_core() -> None:
    assert _choices([0.0, 0.1, 0.3]) == [False, False, False]
    assert _choices([0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1]) == [True] * 5 + [False, False]
    assert _choices([0.7, 0.1, 0.1, 0.7, 0.1, 0.1, 0.1, 0.2]) == [True] * 8  # never quiet for two seconds


def test_cores_that_a_team_does_not_need_may_be_taken() -> None:
    assert _choices([5.0, 6.3, 6.5], cores=8, threads=2) == [False, False, True]
    assert _choices([0.5], cores=8, threads=8) == [True]


def test_a_process_that_was_stopped_draws_no_conclusion() -> None:
    chooser = Chooser(2, 2, Look(0.0, 0.0, 0.0))
    assert not chooser.hear(Look(60.0, 120.0, 0.0))
    assert chooser.hear(Look(60.5, 121.0, 0.0))


@contextmanager
def _busy(count: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _becomes(number: int) -> bool:
    """Whether the process has so many threads within 20 seconds."""
    until = time.monotonic() + 20
    while _threads() != number and time.monotonic() < until:
        time.sleep(0.05)
    return _threads() == number


@pytest.mark.skipif(waits._gnu_openmp() is None, reason="torch computes with another OpenMP")
def test_a_team_of_idle_threads_is_there_beside_other_work_and_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in waits._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: len(os.sched_getaffinity(0)))
    before = _threads()
    with waiting_as_others_allow(), waiting_as_others_allow(), _busy(len(os.sched_getaffinity(0))):
        assert _becomes(before + 1 + 2)  # the watcher, and two threads that do nothing
    assert _becomes(before)


def _on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look finds the cores taken, a hundred times a second, and a library whose regions do nothing."""
    for name in waits._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: len(os.sched_getaffinity(0)))
    monkeypatch.setattr(waits, "INTERVAL", 0.01)
    monkeypatch.setattr(Chooser, "hear", lambda chooser, now: True)
    library = SimpleNamespace(GOMP_parallel=lambda *given: 0)
    monkeypatch.setattr(waits, "_gnu_openmp", lambda: library)


def _named(name: str) -> bool:
    """Whether a thread of this name is there within five seconds."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if any(thread.name == name for thread in threading.enumerate()):
            return True
        time.sleep(0.005)
    return False


def test_the_idle_team_leaves_with_the_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_busy_machine(monkeypatch)
    with waiting_as_others_allow():
        assert _named(IDLE)
    assert not any(thread.name.startswith("tunesmith-") for thread in threading.enumerate())


def test_a_look_that_fails_ends_the_watch_and_not_the_work(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _on_a_busy_machine(monkeypatch)
    looks = iter([Look(0.0, 0.0, 0.0), Look(0.5, 0.5, 0.0)])

    def fail() -> Look:
        for each in looks:
            return each
        raise OSError("no /proc")

    monkeypatch.setattr(waits, "look", fail)
    with waiting_as_others_allow():
        until = time.monotonic() + 5
        while any(each.name.startswith("tunesmith-") for each in threading.enumerate()) and time.monotonic() < until:
            time.sleep(0.01)
        assert not any(thread.name.startswith("tunesmith-") for thread in threading.enumerate())
    assert capfd.readouterr().err == ""


def test_threads_that_cannot_be_started_are_not_asked_of_libgomp(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _on_a_busy_machine(monkeypatch)
    asked = []
    library = SimpleNamespace(GOMP_parallel=lambda *given: asked.append(given))
    monkeypatch.setattr(waits, "_gnu_openmp", lambda: library)

    def refuse(count: int) -> None:
        asked.append(count)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(waits, "_try_threads", refuse)
    with waiting_as_others_allow():
        until = time.monotonic() + 5
        while not asked and time.monotonic() < until:
            time.sleep(0.01)
    assert asked == [2]
    assert capfd.readouterr().err == ""


def test_a_machine_with_many_cores_to_spare_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_busy_machine(monkeypatch)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert waits._watch_of_this_machine() is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 128)
    assert waits._watch_of_this_machine() is not None


def test_a_fork_inside_watches_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_busy_machine(monkeypatch)
    reading, writing = os.pipe()
    with waiting_as_others_allow():
        assert _named(IDLE)
        pid = os.fork()
        if pid == 0:
            with waiting_as_others_allow():
                found = _named(IDLE)
            os.write(writing, b"1" if found else b"0")
            os._exit(0)
        assert os.read(reading, 1) == b"1"
        os.waitpid(pid, 0)


MAPPED = """
import mmap, os, sys
from tunesmith.model.compute import waits
found = waits._gnu_openmp() is not None
name = os.fsencode(sys.argv[1]) + b"/libgomp-\\xe9.bin"
with open(name, "wb") as file:
    file.write(b"x" * 4096)
with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
    assert (waits._gnu_openmp() is not None) == found
os.remove(name)  # others than us cannot write its name
"""


def test_a_mapped_file_whose_name_is_no_utf8_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", waits._OWN_SETTINGS)
def test_how_threads_wait_is_the_users_choice_first(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "7" if name == "GOMP_SPINCOUNT" else "active")
    before = _threads()
    with waiting_as_others_allow():
        assert _threads() == before


TRAINED = """
import sys, tunesmith, torch, hashlib, pathlib
from tunesmith.model.compute import waits
assert torch.__config__.parallel_info().count("OpenMP")
always = sys.argv[3] == "short"
waits.Chooser.hear = lambda chooser, now: always
waits.INTERVAL = 0.01
made = []
begin = waits._IdleTeam.__init__
waits._IdleTeam.__init__ = lambda team, *given: (made.append(1), begin(team, *given))[1]
done = tunesmith.train(sys.argv[1], ["output_dir=" + sys.argv[2]])
assert bool(made) == always
file = done.run / "checkpoints/step-000004/adapter_model.safetensors"
print(hashlib.sha256(file.read_bytes()).hexdigest(), torch.get_num_threads())
"""


@pytest.mark.skipif(waits._gnu_openmp() is None, reason="torch computes with another OpenMP")
def test_how_threads_wait_changes_no_byte(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 25)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": str(tiny_model_dir), "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 4}, "evaluation": {"metrics": ["loss"], "resamples": 100, "samples": 0},
        "training": {"learning_rate": 1e-2, "max_steps": 4, "batch_size": 8, "threads": 2, "report_to": "none"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    environment = {key: value for key, value in os.environ.items() if key not in waits._OWN_SETTINGS}
    said = []
    for name in ("short", "long"):
        done = subprocess.run(
            [sys.executable, "-c", TRAINED, str(tmp_path / "recipe.yaml"), str(tmp_path / name), name],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0].endswith(" 2")
