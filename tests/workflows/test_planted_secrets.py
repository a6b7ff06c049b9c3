"""Secrets of every kind are planted around real processes. Then every byte that these wrote is searched for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.workflows.planted import (
    ARGUMENTS,
    MARK,
    SECRETS,
    commands_of,
    files_with_a_secret,
    planted,
    recipe_of,
    repository,
)  # fmt: skip

import tunesmith


@pytest.mark.slow
def test_no_planted_secret_is_in_a_run_a_cache_a_card_a_report_or_what_is_printed(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    assert len(SECRETS) >= 24
    repository(tmp_path)
    recipe, commands = recipe_of(str(tiny_model_dir)), commands_of(str(tiny_model_dir))
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    (tmp_path / "bad.yaml").write_text(json.dumps({**recipe, "wandb_api_key": "Pl4nt0000000000", "method": "x"}))
    wrong = "https://me:Pl4ntwrong@one.example/wrong.jsonl?sig=Pl4ntwrong"
    failing = [
        ["check", wrong],
        ["check", wrong, "--json"],
        ["train", "bad.yaml"],
        ["train", "r.yaml", f"data.trian={wrong}"],
        ["eval", "run", "--data", wrong],
        ["generate", "run", "--data", wrong, "--out", "other.csv"],
    ]
    said, code = planted(tmp_path, [*commands, *failing], *ARGUMENTS)
    assert code == 0, said
    assert said.count("exit 0") == len(commands) and said.count("exit 1") == len(failing), said
    assert MARK.decode() not in said.lower()
    assert files_with_a_secret(tmp_path, {"r.yaml", "bad.yaml", "made.yaml", ".git/config"}) == []
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["command"][1:] == [
        "--db-password", "***", "--hf-token=***", "API_KEY=***", "postgres://...@db/x",
    ]  # fmt: skip
    assert environment["git"]["commit"]
    assert "https://six.example/rows.jsonl?..." in (tmp_path / "prepared" / "README.md").read_text()


BUG = """
import sys
from tests.workflows.planted_store import install
import tunesmith.cli.data as data
install()
def broken(out):
    raise RuntimeError("no " + {address!r} + " \\x1b[31m") from KeyError({address!r})
data.place_for = broken
from tunesmith.cli.app import main
main(["init", "rows.jsonl"])
"""
CAUSE = """
from tests.workflows.planted_store import install
import tunesmith
install()
tunesmith.check({address!r}, progress=False)
"""


@pytest.mark.parametrize(("program", "ends"), [(BUG, "RuntimeError: no https://..."), (CAUSE, "DataError")])
def test_no_traceback_has_a_secret(program: str, ends: str) -> None:
    address = "https://me:Pl4nt%40wrong@one.example/wrong.jsonl?sig=Pl4ntwrong"
    path = f"{Path(tunesmith.__file__).parents[1]}:{Path(__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-c", program.format(address=address)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr and ends in done.stderr
    assert MARK.decode() not in done.stderr.lower() and "\x1b" not in done.stderr


@pytest.mark.slow
def test_no_output_of_a_notebook_has_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    monkeypatch.setenv("PYTHONPATH", f"{Path(tunesmith.__file__).parents[1]}:{Path(__file__).parents[2]}")
    address = "https://me:Pl4nt%40a@one.example/rows.jsonl?sig=Pl4nt0"
    cells = [
        "from tests.workflows.planted_store import install\nimport os, tunesmith\ninstall()",
        "address = os.environ['ADDRESS']",
        "tunesmith.check(address)",
        "tunesmith.check(address.replace('rows', 'wrong'))",
    ]
    monkeypatch.setenv("ADDRESS", address)
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    client = nbclient.NotebookClient(
        made, timeout=120, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [json.dumps(cell.outputs) for cell in made.cells]
    assert "12 rows" in outputs[2] and "it cannot be read" in outputs[3] and "DataError" in outputs[3]
    assert MARK.decode() not in "".join(outputs).lower()
