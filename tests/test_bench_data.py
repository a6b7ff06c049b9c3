"""The benchmark of the data part: what its rows are, what it counts as memory, and what its last line says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench import data

from tunesmith.workflows.check import inspect

ROWS = 2_000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "rows.jsonl"
    data.write_rows(path, ROWS)
    return path


def test_the_rows_are_of_about_a_kilobyte_and_have_what_check_should_find(rows: Path) -> None:
    assert 0.8e3 < rows.stat().st_size / ROWS < 1.2e3
    found = {finding.id: finding.count for finding in inspect(str(rows)).findings}
    expected = {"invalid_rows": data.BAD, "duplicate_rows": 2 * data.EXACT, "near_duplicates": 2 * data.NEAR}
    for name, share in {**expected, "email": data.EMAIL}.items():
        assert share * ROWS / 4 < found[name] < share * ROWS * 4, name


def test_a_larger_file_begins_with_the_smaller_one(rows: Path, tmp_path: Path) -> None:
    size = data.write_rows(tmp_path / "some.jsonl", 50)
    assert size == (tmp_path / "some.jsonl").stat().st_size
    assert rows.read_bytes().startswith((tmp_path / "some.jsonl").read_bytes())


def test_a_process_is_watched_with_what_it_started() -> None:
    held = 64 * 2**20
    code = f"import sys; held = b'x' * {held}; print(flush=True); sys.stdin.read()"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        data.Watch() as together,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in data.family(data.os.getpid())
        own = data._proportional(child.pid)
        together.sample()
        child.communicate(b"")
    assert held < own < 2 * held
    assert together.peak > own + 2**20  # this process is more than a megabyte


def test_the_summary_is_of_the_largest_size() -> None:
    runs = [
        {"pass": name, "rows": rows, "seconds": seconds, "peak_bytes": peak}
        for name, rows, seconds, peak in (
            ("check", 20, 9.0, 2**30), ("near", 20, 9.0, 2**30), ("check", 200, 10.0, 2**29),
            ("near", 200, 20.0, 2**29), ("check", 2000, 125.0, 2**29), ("near", 2000, 180.0, 2**28),
        )
    ]  # fmt: skip
    assert data.summary(runs) == "check_rows_per_second=16 near_rows_per_second=11 peak_gib=1.00 linear=1.25"
    assert data.summary(runs[:1]) == "check_rows_per_second=2 peak_gib=1.00"


@pytest.mark.slow
def test_a_run_prints_and_keeps_its_figures(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, data.__file__, "--sizes", "300", "600", "--passes", *data.PASSES, "--out", str(report)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept = json.loads(report.read_text())
    assert printed.splitlines()[-1] == kept["summary"]
    assert [(run["pass"], run["rows"]) for run in kept["runs"]] == [
        (name, rows) for rows in (300, 600) for name in data.PASSES
    ]
