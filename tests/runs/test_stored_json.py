"""The files of a run are read within limits: of size, of a line, and of numbers. What is over a limit is damage."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.report.made_run import made_run

from tunesmith.deploy.report.page import run_report
from tunesmith.deploy.report.run_facts import run_facts
from tunesmith.errors import RunError, TunesmithError
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import MANIFEST
from tunesmith.runs.overview import details
from tunesmith.runs.stored_json import VARIABLE, most_bytes, parsed

LINES = ("metrics.jsonl", "samples.jsonl", "samples_during.jsonl", "evaluations.jsonl", "benchmarks.jsonl")
WHOLE = ("recipe.yaml", "status.json", "verdict.json", "ledger.json", "environment.json", "data.json")
LOOK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
from tunesmith.deploy.report.run_facts import run_facts
from tunesmith.errors import TunesmithError
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import details
for size in (2**28 - 1, 2**29, 3 * 2**30):
    for name in sys.argv[3:]:
        file = Run(sys.argv[1]).folder / name
        whole = file.read_bytes() if file.exists() else b""
        with file.open("ab") as grown:
            grown.truncate(size)
        for look in (lambda: details(sys.argv[1]), lambda: run_facts(Run(sys.argv[1]))):
            try:
                look()
            except TunesmithError as error:
                assert error.what == f"{name} is damaged" or "recipe" in error.what.lower(), error
        file.write_bytes(whole)
"""


@pytest.mark.parametrize("listed", [True, False])
def test_a_file_that_became_gigabytes_takes_no_memory(tmp_path: Path, listed: bool) -> None:
    """Whatever its size, and whether the manifest lists it: beside the imports, a quarter of a GB for a text."""
    run = made_run(tmp_path / "run")
    if not listed:
        (run.folder / MANIFEST).unlink()
    most = str(3 * 2**29)
    asked = [sys.executable, "-c", LOOK, str(run.folder), most, *LINES, *WHOLE]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_limits_can_be_raised_as_the_message_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.append("metrics.jsonl", {"step": 1, "more": "x" * 3000})
    monkeypatch.setenv(VARIABLE, str(2**16 / 2**30))  # lines of one KB
    with pytest.raises(RunError, match=f"a line has more than 1,024 bytes; {VARIABLE} raises this limit"):
        run.read_lines("metrics.jsonl")
    monkeypatch.setenv(VARIABLE, str(2**13 / 2**30))
    with pytest.raises(RunError, match=f"and at most 2,048 are read; {VARIABLE} raises this limit"):
        run.read_lines("metrics.jsonl")
    monkeypatch.setenv(VARIABLE, "0.01")
    assert [line["step"] for line in run.read_lines("metrics.jsonl")] == [1]
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(RunError, match="no number of GB"):
        most_bytes()


@pytest.mark.parametrize("text", ["1" * 400, "-" + "1" * 400, "1e308", "-1e200", "1e999", '{"a": [1e160]}'])
def test_a_number_that_no_run_writes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the number"):
        parsed(text)


def test_numbers_of_runs_are_taken() -> None:
    text = json.dumps([0, -1, 2**63, 10**30, 1.5, -1e100, 3.4e38, float("inf"), None])
    assert parsed(text) == json.loads(text)


def put(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = put(value[path[0]], path[1:], odd)
    return copied


def numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where numbers stand in a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    own = [path] if isinstance(value, int | float) and not isinstance(value, bool) else []
    return own + [found for key, item in inside for found in numbers(item, (*path, key))]


FOUND = [
    ("ledger.json", ("tokens", "unbalanced"), 10**400),
    ("verdict.json", ("metrics", "accuracy", "interval", 1), 1e308),
    ("verdict.json", ("metrics", "accuracy", "p_value"), 10**400),
]


@pytest.mark.parametrize(("name", "path", "odd"), FOUND, ids=["ledger", "interval", "p_value"])
def test_a_number_out_of_range_in_a_foreign_run_names_its_file(
    tmp_path: Path, name: str, path: tuple[Any, ...], odd: float
) -> None:
    run = made_run(tmp_path / "run")
    (run.folder / MANIFEST).unlink()
    value = put(json.loads((run.folder / name).read_text()), path, odd)
    (run.folder / name).write_text(json.dumps(value))
    with pytest.raises(RunError, match=f"{name} is damaged") as caught:
        run_report(run_facts(run))
    assert "the number" in str(caught.value.why)


@pytest.mark.slow
@pytest.mark.parametrize("odd", [10**149, -9.9e149], ids=["whole", "least"])
def test_a_huge_number_in_any_place_of_a_foreign_run_is_no_traceback(tmp_path: Path, odd: float) -> None:
    run, tried = made_run(tmp_path / "run"), 0
    (run.folder / MANIFEST).unlink()
    for name in (name for name in (*LINES, *WHOLE[1:]) if (run.folder / name).is_file()):
        text = (run.folder / name).read_text()
        first, *rest = text.splitlines(keepends=True) if name.endswith("l") else [text]
        for path in numbers(json.loads(first)):
            (run.folder / name).write_text(json.dumps(put(json.loads(first), path, odd)) + "\n" + "".join(rest))
            for look in (lambda: details(run.folder).to_json(), lambda: run_report(run_facts(run))):
                tried += 1
                try:
                    look()
                except TunesmithError as error:
                    assert error.what == f"{name} is damaged", (name, path)
        (run.folder / name).write_text(text)
    assert tried > 200


def test_a_list_that_a_foreign_verdict_has_as_null_is_taken_as_empty(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    (run.folder / MANIFEST).unlink()
    value = json.loads((run.folder / "verdict.json").read_text())
    (run.folder / "verdict.json").write_text(json.dumps({**value, "damage": None}))
    assert "harmless" in run_report(run_facts(run))
