"""`generate --data`: many rows at once on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.cli.conftest import Outcome

from tunesmith.cli.docs import JSON_KEYS
from tunesmith.cli.options import in_arguments
from tunesmith.errors import DataError

Command = Callable[..., Outcome]


def test_rows_are_written_with_their_answers(command: Command, tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "in.csv").write_text("prompt\nred hat\nblue hat\n")
    words = ["generate", str(tiny_model_dir), "--data", "in.csv", "max_new_tokens=4"]
    outcome = command(*words, "--out", "out.csv")
    assert outcome.code == 0 and outcome.out.endswith("out.csv: 2 rows, with their answers in answer\n")
    assert "answering  2/2 (100%)" in outcome.err
    found = command(*words, "--out", "out.jsonl", "--json").json
    assert list(found) == list(JSON_KEYS["generate --data"])
    assert (found["rows"], found["columns"], found["bad"]) == (2, ["answer"], [])
    again = command(*words, "--out", "out.csv")
    assert again.code == 1 and "Add --overwrite" in again.err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--prompt", "Hi", "--data", "in.csv", "--out", "out.csv"], "--prompt and --data both say what to answer"),
        ([], "there is nothing to answer"),
        (["--data", "in.csv"], "add --out FILE"),
        (["--data", "in.csv", "--out", "out.csv", "--base"], "--base goes with --prompt"),
        (["--prompt", "Hi", "--out", "out.csv"], "--out goes with --data"),
        (["--prompt", "Hi", "--overwrite"], "--overwrite goes with --data"),
        (["--prompt", "Hi", "data.sheet=A"], "data.sheet=A goes with --data"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(command: Command, words: Sequence[str], found: str) -> None:
    outcome = command("generate", "model", *words)
    assert outcome.code == 2
    assert found in " ".join(outcome.err.replace("│", " ").split())


def test_a_remedy_can_be_pasted(command: Command, tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "in.csv").write_text("what,id\nred hat,3\n")
    words = ["generate", str(tiny_model_dir), "--data", "in.csv", "--out", "out.csv", "max_new_tokens=4"]
    outcome = command(*words)
    assert "such as 'data.columns={prompt: what}'" in outcome.err
    assert command(*words, "data.columns={prompt: what}").code == 0
    error = in_arguments(DataError("several sheets", remedy='set data.sheet: "May 1", or another of them'))
    assert error.remedy == "add 'data.sheet=\"May 1\"', or another of them"
