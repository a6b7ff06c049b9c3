"""At 80 columns no line of a command is wider than the screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.docs import commands

Command = Callable[..., Any]
WIDTH = 80


@pytest.fixture
def narrow(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The lines of a command's whole output at 80 columns."""

    def run(*argv: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        outcome = command(*argv)
        return [*outcome.out.splitlines(), *outcome.err.splitlines()]

    return run


def too_wide(lines: list[str]) -> list[str]:
    return [line for line in lines if len(line) > WIDTH and not line.lstrip().startswith("`tunesmith ")]


def test_the_help_of_every_command_fits(narrow: Callable[..., list[str]]) -> None:
    for name, _ in commands():
        lines = narrow(*name.split(), "--help")
        assert lines and too_wide(lines) == [], name


def test_a_check_with_problems_fits(narrow: Callable[..., list[str]], tmp_path: Path) -> None:
    good = [{"prompt": f"Where is card number {n}? " * 3, "completion": f"label_{n % 7}"} for n in range(60)]
    bad = [{"prompt": "a prompt", "completion": ""}] * 9 + [
        {"prompt": "mail me@example.org", "completion": "label_1"}
    ] * 3
    rows = [*good, *bad, {"prompt": "a prompt", "completion": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in (["check", "rows.jsonl"], ["init", "rows.jsonl"], ["init", "rows.jsonl"], ["init", "none.jsonl"]):
        lines = narrow(*arguments)
        assert lines and too_wide(lines) == [], arguments


def test_training_lines_verdict_and_settings_fit(narrow: Callable[..., list[str]], recipe: str, finetune: Any) -> None:
    for arguments in (["train", recipe], ["train", recipe, "--dry-run", "--all"], ["eval", "runs/x"]):
        lines = narrow(*arguments)
        assert lines and too_wide(lines) == [], arguments


def test_a_list_of_runs_fits(narrow: Callable[..., list[str]], tmp_path: Path) -> None:
    for number in range(6):
        run = tmp_path / "runs" / f"a-run-with-a-long-name-{number}"
        run.mkdir(parents=True)
        status = {"status": "interrupted", "step": 120, "total_steps": 1200, "updated": "2026-01-01T00:00:00Z"}
        (run / "status.json").write_text(json.dumps(status))
        (run / "recipe.yaml").write_text("model: m\ndata: {train: r.jsonl}\noutput_dir: o\n")
    lines = narrow("runs", "list")
    assert too_wide(lines) == []
    assert sum("a-run-with-a-long-name" in line for line in lines) == 6
