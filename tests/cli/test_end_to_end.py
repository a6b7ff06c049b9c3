"""The real library under the commands, on a tiny random model."""

from __future__ import annotations

import inspect
import io
import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.docs import JSON_KEYS

Command = Callable[..., Any]
FAST = ["training.num_train_epochs=1", "training.report_to=none", "evaluation.resamples=100"]


@pytest.fixture
def recipe_of_rows(command: Command, tiny_model_dir: Path, tmp_path: Path) -> str:
    """A recipe by `init`, for sixty rows and the tiny model."""
    rows = [{"prompt": f"item {n}?", "completion": "red" if n % 2 else "blue"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("init", "rows.jsonl", "--model", str(tiny_model_dir)).code == 0
    return "recipe.yaml"


@pytest.mark.slow
def test_from_data_to_answers(
    command: Command, recipe_of_rows: str, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    settings = command("train", recipe_of_rows, "--dry-run", *FAST, "--json").json["settings"]
    sources = {line["key"]: line["source"] for line in settings}
    assert sources["training.num_train_epochs"] == "flag"
    lines = Path(recipe_of_rows).read_text().splitlines()
    assert sources["data.train[0].path"] == f"recipe.yaml:{lines.index('  train: rows.jsonl') + 1}"

    trained = command("train", recipe_of_rows, *FAST, "--json")
    assert trained.code == 0
    assert list(trained.json) == list(JSON_KEYS["train"])
    assert trained.json["tokens"]["supervised"] > 0
    assert command("train", recipe_of_rows, *FAST).code == 1, "the folder holds a run"
    again = command("train", recipe_of_rows, *FAST, "--resume", "--json")
    assert (again.code, again.json) == (0, trained.json)

    (listed,) = command("runs", "list", "--json").json["runs"]
    assert (listed["status"], listed["verdict"]) == ("finished", trained.json["verdict"])
    shown = command("runs", "show", "runs/rows", "--json").json
    assert list(shown) == list(JSON_KEYS["runs show"])
    assert shown["validation"][-1][0] == shown["step"] == shown["total_steps"]
    assert command("runs", "show", "runs/rows").code == 0

    judged = command("eval", "runs/rows", "max_rows=4", "--json").json
    assert judged["rows"] == 4 and judged["target"] == "runs/rows"
    (kept,) = command("runs", "show", "runs/rows", "--json").json["evaluations"]
    assert (kept["data"], kept["settings"]) == (None, ["max_rows=4"])
    assert {name: kept[name] for name in judged} == judged
    assert ", on its held-out rows, max_rows=4:\n" in command("runs", "show", "runs/rows").out
    alone = command("eval", str(tiny_model_dir), "--data", "rows.jsonl", "max_rows=4", "--json").json
    assert alone["verdict"] is None and alone["metrics"]["loss"]["value"] > 0

    arguments = ("generate", "runs/rows", "--prompt", "item 3?", "max_new_tokens=4")
    answered = command(*arguments, "--base", "--json").json
    assert list(answered) == list(JSON_KEYS["generate"])
    assert command(*arguments).out == answered["answers"][0]["text"] + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("item 3?\n"))
    assert command("chat", "runs/rows", "max_new_tokens=4").out == answered["answers"][0]["text"] + "\n"


def test_the_fakes_of_these_tests_have_the_librarys_signatures(request: pytest.FixtureRequest) -> None:
    real = {name: import_module(f"tunesmith.workflows.{name}") for name in ("finetune", "evaluate")}
    request.getfixturevalue("finetune")
    for file, name in (("finetune", "train_in"), ("finetune", "dry_run"), ("evaluate", "evaluated")):
        fake = sys.modules[f"tunesmith.workflows.{file}"]
        assert fake is not real[file]
        theirs, ours = (inspect.signature(getattr(module, name)).parameters for module in (real[file], fake))
        assert list(theirs) == list(ours)
        assert [parameter.kind for parameter in theirs.values()] == [parameter.kind for parameter in ours.values()]
