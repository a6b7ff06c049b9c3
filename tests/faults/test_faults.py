"""The short form of the table of faults: the rows of each module in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.table import Fault, Row, Try, as_text, faults_by_module, run_rows

ROOT = Path(__file__).parents[2]
# The payloads of the other modules are in tests of their own, one by one: test_not_finite_runs, test_foreign_runs,
# test_foreign_files, test_planted_secrets. `make faults` has all rows.
IN_EVERY_TEST_RUN = ("corruption", "disks", "drift", "kills", "signals", "together")


@pytest.mark.slow
@pytest.mark.parametrize("module", IN_EVERY_TEST_RUN)
def test_nothing_is_lost(module: str) -> None:
    assert module in faults_by_module()
    command = [sys.executable, "-m", "tests.faults", "--module", module, "--short", "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_loss_and_a_row_that_fails_are_in_the_table() -> None:
    def tries(folder: Path, whole: bool):
        yield Try("one")
        yield Try("two", "it is gone")
        if whole:
            raise ValueError("broken")

    rows = run_rows([Fault("disk", tries)], whole=True, jobs=1, done=lambda row: None)
    assert [(row.name, row.tries, len(row.lost)) for row in rows] == [("disk", 3, 2)]
    rows = run_rows([Fault("a", tries), Fault("b", tries)], whole=False, jobs=2, done=lambda row: None)
    assert [(row.name, row.tries, row.lost) for row in rows] == [(name, 2, ["two: it is gone"]) for name in "ab"]
    lines = as_text([Row("disk", 4, ["x: gone"], 2.0)], 3.0).splitlines()
    assert lines[1].split() == ["disk", "4", "3", "1", "2.0"]
    assert lines[2].split() == ["all", "4", "3", "1", "3.0"]
    assert lines[-1] == "lost in disk: x: gone"
