"""The run folder: what may be written where, by whom, and that a reader never sees half of a file."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.runs.environment import RECORDED_PACKAGES, environment
from tunesmith.runs.folder import Run, find_runs
from tunesmith.runs.git import git_state
from tunesmith.training.checkpoint import prune

HOLDER = """
import os, sys
from tunesmith.runs.folder import Run
with Run(sys.argv[1]).lock():
    print("held by", os.getpid(), flush=True)
    sys.stdin.read()
"""
FORKING_HOLDER = """
import os, sys, time
from tunesmith.runs.folder import Run
with Run(sys.argv[1]).lock():
    if os.fork() == 0:  # the orphan
        print("held beside", os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, program: str = HOLDER) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the folder until its standard input ends, and the id that it or its child tells."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    teller = 0
    try:
        teller = int(process.stdout.readline().split()[-1])
        yield process, teller
    finally:
        process.kill()
        if teller not in (0, process.pid):
            os.kill(teller, signal.SIGKILL)
        process.communicate()


def started(folder: Path, status: str = "running") -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    run.write_text("recipe.yaml", "model: m\n")
    run.set_status(status)  # type: ignore[arg-type]
    return run


def refusal(run: Run, *, overwrite: bool = False) -> RunError:
    with pytest.raises(RunError) as caught:
        run.check_free(overwrite=overwrite)
    return caught.value


# What may be begun where


def test_a_folder_that_is_not_there_or_holds_nothing_is_free(tmp_path: Path) -> None:
    Run(tmp_path / "new").check_free(overwrite=False)
    Run(tmp_path).check_free(overwrite=False)
    (tmp_path / ".lock").touch()  # left by a run that was refused before it wrote anything
    Run(tmp_path).check_free(overwrite=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("text")
    assert refusal(Run(tmp_path / "out"), overwrite=True).what == "The output folder is a file"


def test_an_output_folder_below_a_file_is_refused_with_the_key_to_set(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("text")
    run = Run(tmp_path / "rows.jsonl" / "run")
    with pytest.raises(RunError, match="Nothing can be written to the output folder") as caught, run.lock():
        pass
    assert caught.value.where == str(run.folder)
    assert caught.value.why == f"{tmp_path / 'rows.jsonl'} is a file, not a folder."
    assert "output_dir=runs/new" in str(caught.value.remedy)
    with Run(tmp_path / "runs" / "new").lock():
        assert (tmp_path / "runs" / "new" / ".lock").is_file()


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_an_output_folder_that_takes_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, call, refuse)
    run = Run(tmp_path / "shut" if call == "mkdir" else tmp_path)
    with pytest.raises(RunError, match="Permission denied") as caught, run.lock():
        pass
    monkeypatch.undo()
    assert caught.value.where == str(run.folder)


def test_an_output_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert refusal(Run(tmp_path)).why == f"{tmp_path}: Permission denied."


def test_files_of_others_are_not_overwritten_even_when_asked(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("text")
    for overwrite in (False, True):
        error = refusal(Run(tmp_path), overwrite=overwrite)
        assert (error.what, error.where) == ("The output folder holds files that are not a run", str(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "text"


def test_a_run_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    run = started(tmp_path / "out", "stopped")
    error = refusal(run)
    assert error.why == "Its status is: stopped."
    assert "--resume" in str(error.remedy)
    assert "--overwrite" in str(error.remedy)
    run.check_free(overwrite=True)


def test_a_process_that_was_killed_in_its_first_write_does_not_block_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".status.json.tmp").write_text('{"sta')
    run = Run(folder)
    assert not run.exists()
    run.check_free(overwrite=False)
    with run.lock():
        assert [entry.name for entry in folder.iterdir()] == [".lock"]
    (folder / ".notes.tmp").touch()  # of the user
    assert refusal(run).what == "The output folder holds files that are not a run"


DAMAGED = {"half": '{"status": "runn', "empty": "", "a list": "[]", "null": "null", "deep": "[" * 100_000}
DAMAGED |= {"other types": '{"status": 3}', "no UTF-8": b"\xff\xfe{}", "a step": '{"status": "running", "step": "x"}'}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_status_is_overwritten_as_its_message_says(text: str | bytes, tmp_path: Path) -> None:
    run = started(tmp_path / "out")
    run.write_text("recipe.yaml", "model: m\n")
    (run.folder / "status.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RunError) as caught:
        run.status()
    assert caught.value.what == "status.json is damaged"
    assert f"start over with `tunesmith train {run.folder} --overwrite`" in str(caught.value.remedy)
    error = refusal(run)
    assert error.what == "The output folder already holds a run" and "status.json is damaged" in str(error.why)
    assert str(error.remedy) == "Add --overwrite to replace it, or name another output_dir."
    run.check_free(overwrite=True)
    with run.lock():
        run.clear()
    assert run.status() == {"status": "starting"}


def test_a_damaged_status_among_files_of_others_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("of something else")
    assert refusal(Run(tmp_path), overwrite=True).remedy == "Name another output_dir."


def test_a_run_killed_while_it_was_set_up_can_be_started_again(tmp_path: Path) -> None:
    run = started(tmp_path / "out")
    with run.lock():
        run.clear()
    run.write_text("recipe.yaml", "half: written\n")
    assert not run.exists()
    run.check_free(overwrite=False)


def test_an_error_of_an_earlier_attempt_does_not_stay(tmp_path: Path) -> None:
    run = started(tmp_path / "out")
    run.set_status("failed", error={"what": "x"})
    run.set_status("finished", seconds=1.0)
    assert "error" not in run.status()


def test_clearing_leaves_the_lock_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    run = started(tmp_path / "out")
    (run.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (run.folder / "link").symlink_to(outside)
    with run.lock():
        run.clear()
        assert sorted(entry.name for entry in run.folder.iterdir()) == [".lock", "status.json"]
    assert run.status() == {"status": "starting"}
    assert (outside / "kept").exists()


def test_opening_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path)
    assert Run.open(started(tmp_path / "out").folder).status()["status"] == "running"


# One process a folder


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "out")
    with holder(run.folder) as (process, _):
        with pytest.raises(RunError) as caught, run.lock():
            pass
        assert caught.value.what == "Another process works in this run folder"
        assert caught.value.why == f"It is held by process {process.pid} on {os.uname().nodename}."
        process.communicate("")
    with run.lock():
        assert (run.folder / ".lock").read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


def test_a_killed_process_leaves_the_folder_free(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        process.kill()
        process.wait()
        with Run(tmp_path).lock():
            pass


def test_an_orphaned_child_does_not_keep_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path, FORKING_HOLDER) as (process, orphan):
        with pytest.raises(RunError), Run(tmp_path).lock():
            pass
        process.kill()
        process.wait()
        assert orphan != process.pid
        os.kill(orphan, 0)  # it lives
        with Run(tmp_path).lock():
            pass


def test_a_child_that_ends_does_not_free_the_folder_of_its_parent(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.lock():
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunError, match=f"process {os.getpid()}"), Run(tmp_path).lock():
            pass


def test_who_only_looks_keeps_no_run_from_beginning(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_held() and not Run(tmp_path / "nothing").is_held() and run.holder() == "unknown"
    (tmp_path / ".lock").touch()
    looking = (tmp_path / ".lock").open("rb")
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.02, looking.close).start()
    with run.lock():
        assert run.is_held() and run.holder() == f"{os.getpid()} on {os.uname().nodename}"
    assert not run.is_held()


def test_a_folder_that_was_made_for_a_lock_goes_again_unless_something_is_in_it(tmp_path: Path) -> None:
    for written in (False, True):
        run = Run(tmp_path / "runs" / "new")
        with pytest.raises(KeyError), run.lock():
            if written:
                run.write_text("recipe.yaml", "x")
            raise KeyError
        assert run.folder.exists() == written
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), Run(tmp_path / "mine").lock():
        raise KeyError
    assert (tmp_path / "mine").is_dir(), "it was there before"


def test_a_lock_ends_with_its_block_also_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Run(tmp_path).lock():
        raise KeyError
    with Run(tmp_path).lock():
        pass


# Files


def test_a_json_file_is_replaced_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_json("verdict.json", {"a": "é", "b": [1, 2.5, None]})
    run.write_json("verdict.json", {"c": 1})
    assert run.read_json("verdict.json") == {"c": 1}
    assert (tmp_path / "verdict.json").read_bytes() == b'{\n  "c": 1\n}\n'
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["manifest.json", "verdict.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.write_json("verdict.json", {"old": True})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_json("verdict.json", {"new": True})
    with pytest.raises(TypeError):
        run.write_json("verdict.json", {"new": object()})
    assert run.read_json("verdict.json") == {"old": True}


def test_a_reader_beside_a_writer_sees_whole_files_only(tmp_path: Path) -> None:
    run = Run(tmp_path)
    values = [{"text": letter * 200_000} for letter in "ab"]
    run.write_json("big.json", values[0])
    writer = threading.Thread(target=lambda: [run.write_json("big.json", value) for value in values * 10])
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(run.read_json("big.json") in values)
    assert seen
    assert all(seen)


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    run = started(tmp_path, "failed")
    with pytest.raises(RunError) as caught:
        run.read_json("verdict.json")
    assert (caught.value.what, caught.value.why) == ("This run has no verdict.json", "Its status is: failed.")
    (tmp_path / "verdict.json").write_text('{"verdict": ')
    with pytest.raises(RunError) as caught:
        run.read_json("verdict.json")
    assert (caught.value.what, caught.value.where) == ("verdict.json is damaged", str(tmp_path / "verdict.json"))


def test_lines_are_appended_and_a_last_one_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_lines("metrics.jsonl") == []
    for step in (1, 2):
        run.append("metrics.jsonl", {"step": step, "text": "é\u2028\n"})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_lines("metrics.jsonl") == [{"step": step, "text": "é\u2028\n"} for step in (1, 2)]


def test_a_line_goes_after_the_last_whole_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for rest in ('{"step": 1}\n', '{"step": 1}\n{"st', '{"st', "", '{"step": 1}\n{"step": 2}'):
        (tmp_path / "metrics.jsonl").write_text(rest)
        run.append("metrics.jsonl", {"step": 7})
        kept = [{"step": 1}] if rest.startswith('{"step": 1}') else []
        assert run.read_lines("metrics.jsonl") == [*kept, {"step": 7}], rest


def test_a_damaged_line_is_told_with_its_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError) as caught:
        run.read_lines("metrics.jsonl")
    assert (caught.value.what, caught.value.where) == ("metrics.jsonl is damaged", str(tmp_path / "metrics.jsonl"))


def test_lines_after_a_step_are_dropped_with_what_was_cut_off(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 2, 3, 4):
        run.append("metrics.jsonl", {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5')
    run.drop_after("metrics.jsonl", 2)
    run.append("metrics.jsonl", {"step": 3, "again": True})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"step": 1}, {"step": 2}, {"step": 2}, {"step": 3, "again": True}]
    run.drop_after("metrics.jsonl", 0)
    assert run.read_lines("metrics.jsonl") == []


def test_a_status_keeps_the_facts_recorded_before(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.status() == {}
    run.set_status("running", step=3, started="then")
    run.set_status("finished", step=4)
    status = run.status()
    assert time.strptime(status.pop("updated"), "%Y-%m-%dT%H:%M:%SZ").tm_year >= 2024
    assert status == {"status": "finished", "step": 4, "started": "then"}


def test_checkpoints_are_the_finished_ones_oldest_first(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.checkpoints == []
    for name in ("step-000100", "step-000020", ".step-000120.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000300").touch()
    assert [path.name for path in run.checkpoints] == ["step-000020", "step-000100"]


# Finding runs, and what a run records of its surroundings


def test_runs_are_found_in_a_folder_and_one_level_below(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/er"):
        started(tmp_path / name)
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    assert [run.folder.name for run in find_runs(tmp_path)] == ["a", "b"]
    assert [run.folder for run in find_runs(tmp_path / "a")] == [tmp_path / "a"]
    assert find_runs(tmp_path / "nowhere") == []


def test_the_environment_names_versions_threads_and_git() -> None:
    found = environment(3)
    assert list(found) == [
        "python", "packages", "platform", "processor", "gpu", "cpus", "memory_bytes", "threads", "command",
        "git",
    ]  # fmt: skip
    assert found["threads"] == 3 and found["gpu"] is None and environment(1, "A100")["gpu"] == "A100"
    assert "liger-kernel" in found["packages"]
    assert list(found["packages"]) == ["tunesmith", *RECORDED_PACKAGES]
    assert found["packages"]["torch"].split(".")[0].isdigit()
    assert found["memory_bytes"] > 2**28
    json.dumps(found)


def test_git_tells_commit_and_whether_the_tree_differs(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "new").touch()
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_checkpoints_are_in_the_order_of_their_steps_and_copies_are_none(tmp_path: Path) -> None:
    """A folder with another name is the user's own: a run must neither continue from it nor remove it."""
    run = Run(tmp_path)
    for name in (
        "step-000002",
        "step-1000000",
        "step-999999",
        "step-best",
        "step-999999-copy",
        "step-3",
        ".step-000004",
    ):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000001").touch()
    assert [path.name for path in run.checkpoints] == ["step-000002", "step-999999", "step-1000000"]
    prune(tmp_path / "checkpoints", keep=1, best=None)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert left == [".step-000004", "step-1000000", "step-3", "step-999999-copy", "step-best"]
