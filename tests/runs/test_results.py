"""A result that a later command adds to a run: beside other processes, and where the run is damaged."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tunesmith.cli.terminal.session import session
from tunesmith.errors import RecipeError, RunError
from tunesmith.runs.disk import disk_errors
from tunesmith.runs.folder import Run
from tunesmith.runs.later_results import later_results
from tunesmith.runs.manifest import MANIFEST, changes
from tunesmith.runs.outputs import strangers
from tunesmith.runs.overview import wrong_answers
from tunesmith.runs.progress import Failure, Silent
from tunesmith.runs.results import keep_result
from tunesmith.runs.run_files import ANSWERS, BENCHMARKS, COMPARISONS, EVALUATIONS, HALF_WRITTEN, LATER, OWN
from tunesmith.runs.stored_comparisons import comparison_lines
from tunesmith.runs.stored_shapes import benchmark_lines, evaluation_lines
from tunesmith.runs.whole_files import names_beside, write_whole
from tunesmith.workflows.benchmarks import _folder


class Heard(Silent):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.write_text("recipe.yaml", "model: m\n")
    run.write_json("verdict.json", {"loss": 5.71})
    run.set_status("finished")
    run.settle()
    return run


def kept(run: Run, name: str = EVALUATIONS, number: int = 1) -> list[str]:
    heard = Heard()
    keep_result(run, name, {"n": number}, heard, beside={ANSWERS: [{"n": number}]} if name == EVALUATIONS else None)
    return heard.warned


def numbers(run: Run, name: str = EVALUATIONS) -> list[int]:
    return [line["n"] for line in run.read_lines(name)]


def test_a_result_vouches_for_no_file_of_a_run_with_a_damaged_manifest(run: Run) -> None:
    manifest = run.folder / MANIFEST
    whole = bytearray(manifest.read_bytes())
    whole[60] ^= 1
    manifest.write_bytes(whole)
    (warned,) = kept(run)
    assert "the result is kept, and cannot be verified" in warned
    (run.folder / "verdict.json").write_text('{"loss": 1.71}')
    assert list(changes(run.folder)) == [MANIFEST]
    assert numbers(run) == [1]
    manifest.unlink()  # as the message says
    assert kept(run) == []
    assert "verdict.json" in run.unverified()


@pytest.mark.parametrize("name", LATER)
def test_a_result_vouches_for_no_damaged_line_before_it(run: Run, name: str) -> None:
    assert kept(run, name) == []
    whole = (run.folder / name).read_bytes()
    (run.folder / name).write_bytes(whole.replace(b"1", b"7"))
    (warned,) = kept(run, name, 2)
    assert f"{name} has other content than the run wrote: its last line is this result" in warned
    assert list(changes(run.folder)) == [name]
    lines = (run.folder / name).read_bytes().splitlines(keepends=True)
    (run.folder / name).write_bytes(whole + lines[-1])  # the lines before it are put back, as the message says
    assert kept(run, name, 3) == []
    assert numbers(run, name) == [1, 2, 3]
    assert changes(run.folder) == {}


def test_a_file_of_results_that_is_gone_begins_anew_and_that_is_said(run: Run) -> None:
    kept(run)
    (run.folder / EVALUATIONS).unlink()
    (warned,) = kept(run, number=2)
    assert "was missing: the results that it held are lost" in warned
    assert (numbers(run), changes(run.folder)) == ([2], {})


def test_processes_that_keep_results_at_once_lose_none_and_the_answers_are_of_the_newest(run: Run) -> None:
    code = (
        "import sys\nfrom tests.runs.test_results import Run, kept\nrun = Run(sys.argv[1])\n"
        "for number in range(15):\n    assert kept(run, sys.argv[2], int(sys.argv[3]) + number) == []\n"
        "    with run.lock():\n        pass\n"
    )
    asked = [(EVALUATIONS, "0"), (EVALUATIONS, "100"), ("comparisons.jsonl", "0")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    working = [
        subprocess.Popen([sys.executable, "-c", code.split("    with")[0] if number else code, str(run.folder), *each],
                         env=environment)
        for number, each in enumerate(asked)
    ]  # fmt: skip
    assert [process.wait(60) for process in working] == [0, 0, 0]
    found = numbers(run)
    assert sorted(found) == [*range(15), *range(100, 115)]
    assert numbers(run, ANSWERS) == found[-1:]
    assert changes(run.folder) == {}


@pytest.mark.parametrize("stops_at", ["seal", "write_bytes", "settle"])
def test_a_line_never_takes_the_answers_of_another_evaluation(
    run: Run, stops_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"time": "now", "target": "run", "settings": [], "rows": 1, "verdict": "Nothing."}

    def evaluate(answer: str) -> None:
        answers = [{"source": "r:1", "prompt": "p", "truth": "t", "tuned": answer, "scores": {"exact_match": 0.0}}]
        keep_result(run, EVALUATIONS, {**line, "metrics": {}}, Silent(), beside={ANSWERS: answers})

    class Killed(BaseException):
        pass

    def kill(*given: object, **named: object) -> None:
        raise Killed

    evaluate("first")
    assert [each["tuned"] for each in wrong_answers(run.folder, of_eval=True).wrong] == ["first"]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, stops_at, kill)
        evaluate("second")
    if stops_at == "settle":  # all is written
        assert [each["tuned"] for each in wrong_answers(run.folder, of_eval=True).wrong] == ["second"]
    else:
        with pytest.raises(RunError, match=r"(?s)answers of the newest evaluation are not there.*tunesmith eval"):
            wrong_answers(run.folder, of_eval=True)
    evaluate("third")
    assert [each["tuned"] for each in wrong_answers(run.folder, of_eval=True).wrong] == ["third"]


def test_what_a_kill_leaves_of_any_file_is_removed_and_known_as_the_runs_own(run: Run) -> None:
    for name in (*LATER, *HALF_WRITTEN):
        for beside in names_beside(name):
            beside = beside.replace("[0-9a-f]" * 8, "0123abcd")
            (run.folder / beside).write_text("half")
    kept(run)
    assert list(strangers(run.folder, [*OWN])) == []
    with run.lock():
        assert [path.name for path in run.folder.glob(".*.tmp")] == []
        assert [path.name for path in run.folder.glob(".*.tunesmith-0*")] == []


def test_a_result_that_finds_a_full_disk_is_a_failure_with_the_file_and_the_bytes(run: Run) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = run.folder / COMPARISONS
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        heard = Heard()
        assert not keep_result(run, COMPARISONS, {"x": "y" * 100_000}, heard)
        with pytest.raises(RunError) as caught, disk_errors():
            write_whole(run.folder / "big.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (warned,) = heard.warned
    assert isinstance(warned, Failure) and f"{file}: the result is not kept whole in the run" in warned
    assert "may write files of 40,000 bytes" in warned
    assert caught.value.where == str(run.folder / "big.json") and "40,000 bytes" in str(caught.value.why)


def test_an_error_of_a_full_disk_that_names_no_file_has_the_bytes_that_are_free() -> None:
    with pytest.raises(RunError, match=r"[\d,]+ on the disk of the working folder"), disk_errors():
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_command_that_said_a_failure_ends_with_1() -> None:
    with pytest.raises(typer.Exit) as ended, session() as terminal:
        terminal.warn(Failure("not kept"))
    assert ended.value.exit_code == 1
    with session() as terminal:
        terminal.warn("only a warning")


def test_a_name_that_is_not_utf_8_is_stored_as_json_writes_it(run: Run) -> None:
    assert keep_result(run, COMPARISONS, {"x": "tasks-\udcff"}, Heard())
    assert b"tasks-\\udcff" in (run.folder / COMPARISONS).read_bytes()
    assert run.read_lines(COMPARISONS) == [{"x": "tasks-\udcff"}]
    (run.folder / "tasks-\udcff").mkdir()
    with pytest.raises(RecipeError, match="not UTF-8"):
        _folder(run.folder / "tasks-\udcff")


def test_a_result_is_kept_through_no_link(run: Run, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("own")
    (run.folder / ".keeping").symlink_to(victim)
    (warned,) = kept(run)
    assert "the result is not kept in the run" in warned
    assert victim.read_text() == "own"
    assert json.loads((run.folder / "verdict.json").read_text()) == {"loss": 5.71}


@pytest.mark.parametrize("name", LATER)
def test_a_damaged_result_hides_nothing_else_of_the_run(run: Run, name: str) -> None:
    kept(run, name)  # a line that lacks everything
    found = later_results(run)
    assert list(found.damaged) == [name]
    with pytest.raises(RunError, match=f"{name} is damaged") as caught:
        {EVALUATIONS: evaluation_lines, BENCHMARKS: benchmark_lines, COMPARISONS: comparison_lines}[name](run)
    assert "tunesmith train" not in str(caught.value.remedy)
    assert "remove it" in str(caught.value.remedy)
    (run.folder / name).unlink()  # as the message says
    kept(run, name)
    assert changes(run.folder) == {}
