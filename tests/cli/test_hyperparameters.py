"""`init --method` and `train --lr-range` on a tiny model, and every command that docs/hyperparameters.md shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.docs import JSON_KEYS
from tunesmith.recipe.file import read_recipe

Command = Callable[..., Any]
FAST = ["training.num_train_epochs=1", "training.report_to=none", "training.threads=1", "evaluation.resamples=100"]


@pytest.fixture
def tickets(command: Command, tmp_path: Path) -> Path:
    """Sixty rows, in the folder that commands run in."""
    rows = [{"prompt": f"item {n}?", "completion": "red" if n % 2 else "blue"} for n in range(60)]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_every_command_of_the_page_works(
    command: Command, tickets: Path, tiny_model_dir: Path, pytestconfig: pytest.Config
) -> None:
    page = (pytestconfig.rootpath / "docs" / "hyperparameters.md").read_text(encoding="utf-8")
    shown = [shlex.split(line, comments=True)[1:] for line in page.splitlines() if line.startswith("    tunesmith ")]
    assert [words[0] for words in shown] == ["init", "init", "train", "train", "train", "train"]
    for words in shown:
        extra = [] if words[0] == "init" else [f"model={tiny_model_dir}", *FAST]
        outcome = command(*words, *extra)
        assert outcome.code == 0, outcome.err
    assert read_recipe(tickets / "recipe.yaml").recipe.method.name == "lora"
    assert read_recipe(tickets / "full.yaml").recipe.method.name == "full"
    tested = json.loads((tickets / "runs" / "tickets-lr-range" / "lr-range.json").read_text())
    assert (tested["lr_min"], tested["lr_max"], tested["steps"]) == (1e-5, 1e-2, 30)
    assert read_recipe(tickets / "runs" / "tickets" / "recipe.yaml").recipe.training.learning_rate == 3e-4


def test_a_range_test_shows_a_table_the_reason_and_the_line(
    command: Command, tickets: Path, tiny_model_dir: Path
) -> None:
    assert command("init", "tickets.jsonl", "--model", str(tiny_model_dir)).code == 0
    outcome = command("train", "recipe.yaml", "--lr-range", "--lr-steps", "24", "training.threads=1")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    header = next(
        number
        for number, line in enumerate(lines)
        if line.split() == ["learning", "rate", "loss", "smoothed", "grad", "norm"]
    )
    assert 8 <= len([line for line in lines[header + 1 :] if line.strip()[:1].isdigit()]) <= 12
    found = command("train", "recipe.yaml", "--lr-range", "--lr-steps", "24", "training.threads=1", "--json").json
    assert list(found) == list(JSON_KEYS["train --lr-range"])
    assert found["reason"] in lines
    if found["line"] is not None:
        assert lines[-1] == f"To use it, add {found['line']} to the `train` command or to the recipe."
    assert "learning-rate range  24/24 (100%)" in outcome.err
    written = json.loads((tickets / "runs" / "tickets-lr-range" / "lr-range.json").read_text())
    assert found == {"folder": "runs/tickets-lr-range", **written}


def test_a_mistake_in_the_bounds_is_said(command: Command, recipe: str) -> None:
    outcome = command("train", recipe, "--lr-range", "--lr-min", "1", "--lr-max", "0.1", "--json")
    assert (outcome.code, outcome.json["error"]) == (1, "RecipeError")
    assert command("train", recipe, "--lr-range", "--lr-steps", "3").code == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr-range", "--resume"], "--resume has no effect with --lr-range"),
        (["--lr-range", "--overwrite"], "--overwrite has no effect with --lr-range"),
        (["--lr-range", "--dry-run"], "--dry-run has no effect with --lr-range"),
        (["--lr-min", "1e-5"], "this flag needs --lr-range"),
        (["--lr-max", "1e-5"], "this flag needs --lr-range"),
        (["--lr-steps", "20", "--dry-run"], "this flag needs --lr-range"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(command: Command, recipe: str, flags: list[str], said: str) -> None:
    outcome = command("train", recipe, *flags)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.replace("│", " ").split())


def test_init_takes_a_method_and_says_what_speaks_against_it(command: Command, tickets: Path) -> None:
    outcome = command("init", "tickets.jsonl", "--method", "full", "--model", "maker/model-8B", "--json")
    assert outcome.code == 0
    found = outcome.json
    assert list(found) == list(JSON_KEYS["init"])
    assert (found["method"], found["parameters"]) == ("full", 8 * 10**9)
    rate = next(choice for choice in found["choices"] if choice["key"] == "training.learning_rate")
    assert rate["value"] == 2e-5 and rate["source"].startswith("guide")
    assert "rows are few for that" in outcome.err
    assert command("init", "tickets.jsonl", "--method", "fll", "--overwrite").code == 1
