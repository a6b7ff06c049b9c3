"""`init` and `check` on real files, without a model and with a tiny one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.shapes import SHAPES
from tunesmith.recipe_file import read_recipe

Command = Callable[..., Any]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Forty good rows and a bad one."""
    good = [{"prompt": f"question {n}", "completion": "yes" if n % 2 else "no"} for n in range(40)]
    lines = [json.dumps(row) for row in [*good, {"prompt": "last", "completion": ""}]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return "rows.jsonl"


def test_init_writes_a_recipe_that_can_be_read(command: Command, rows: str, tmp_path: Path) -> None:
    outcome = command("init", rows)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "40 rows: columns prompt, completion -> prompt_completion",
        "Wrote recipe.yaml. Next: tunesmith check recipe.yaml --show 3, then tunesmith train recipe.yaml",
    ]
    assert outcome.err == "warning: 1 row cannot be used: `tunesmith check rows.jsonl` names it.\n"
    assert read_recipe(tmp_path / "recipe.yaml", []).recipe.output_dir == "runs/rows"


def test_init_overwrites_only_when_told_to(command: Command, rows: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    outcome = command("init", rows, "--out", "mine.yaml")
    assert outcome.code == 1
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    found = command("init", rows, "--out", "mine.yaml", "--overwrite", "--model", "other", "--json").json
    assert list(found) == list(SHAPES["init"])
    assert (found["model"], found["rows"], found["bad"], found["metrics"]) == ("other", 40, 1, ["exact_match"])


def test_init_says_in_flags_what_the_data_lacks(command: Command, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,category\nhello,greeting\n")
    outcome = command("init", "rows.csv")
    assert outcome.code == 1
    assert "--columns input=text,output=category with one --instruction" in outcome.err
    assert not (tmp_path / "recipe.yaml").exists()


def test_init_makes_the_recipes_folder(command: Command, rows: str, tmp_path: Path) -> None:
    assert command("init", rows, "--out", "recipes/a.yaml").code == 0
    (tmp_path / "file").write_text("")
    outcome = command("init", rows, "--out", "file/a.yaml")
    assert outcome.code == 1
    assert "The recipe cannot be written" in outcome.err


def test_check_names_bad_rows_and_exits_with_1(command: Command, rows: str) -> None:
    outcome = command("check", rows)
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        "rows.jsonl: columns prompt, completion -> prompt_completion",
        "rows of     read  invalid  too long  truncated  held out  trained",
        "rows.jsonl    41        1         0          0         0       40",
        "bad row rows.jsonl:41: completion: found an empty text, expected a text that is not empty",
        "info 40 rows to train on; the guide says 1K-10K for LoRA and 10K or more for full fine-tuning",
        "  add rows if you can",
        "Not ready: mend what is marked as an error first.",
    ]


def test_check_under_json_is_one_object(command: Command, rows: str) -> None:
    outcome = command("check", rows, "--json")
    assert outcome.code == 1
    assert outcome.out.count("\n") == 1
    assert list(outcome.json) == list(SHAPES["check"])
    assert outcome.json["bad"][0]["source"] == "rows.jsonl:41"
    assert outcome.json["rows"] == {
        "read": 41,
        "invalid": 1,
        "duplicate": 0,
        "too_long": 0,
        "truncated": 0,
        "held_out": 0,
        "trained": 40,
    }


def test_check_of_a_recipe_that_sets_bad_rows_aside_is_good(
    command: Command, rows: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(
        f"model: {tiny_model_dir}\ndata: {{train: {rows}, on_error: skip, eval: 0.2}}\noutput_dir: runs/x\n"
    )
    outcome = command("check", "r.yaml", "--show", "1")
    assert outcome.code == 0
    assert "[[no<|im_end|>]]" in outcome.out
    assert "Ready to train." in outcome.out
    found = command("check", "r.yaml", "--show", "1", "--json").json
    assert found["good"] is True
    assert found["shown"][0]["text"].endswith("[[no<|im_end|>]]\n")
    assert found["rows"]["trained"] + found["rows"]["held_out"] == 40
    assert found["lengths"]["longest"] >= found["lengths"]["median"] > 0
    assert found["tokens"]["total"] > found["tokens"]["supervised"] > 0


def test_check_counts_rows_that_are_too_long_and_still_shows_the_rest(
    command: Command, rows: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with (tmp_path / rows).open("a") as file:
        file.write(json.dumps({"prompt": "word " * 100, "completion": "yes"}) + "\n")
    (tmp_path / "r.yaml").write_text(
        f"model: {tiny_model_dir}\noutput_dir: x\ndata: {{train: {rows}, on_error: skip, eval: 0, max_length: 64}}\n"
    )
    outcome = command("check", "r.yaml", "--json")
    assert outcome.code == 1
    (finding,) = [finding for finding in outcome.json["findings"] if finding["severity"] == "error"]
    assert (finding["id"], finding["count"], finding["rows"]) == ("too_long", 1, ["rows.jsonl:42"])
    assert outcome.json["rows"]["too_long"] == 1
    assert outcome.json["rows"]["trained"] == 40
