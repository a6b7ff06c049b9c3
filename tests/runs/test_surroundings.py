"""A place that cannot be worked in, and names that cannot be stored, are one message before anything else happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe.paths import local
from tunesmith.runs.surroundings import refuse_lost_folder

ODD = os.fsdecode(b"b\xffd")


def test_names_that_are_no_text_are_refused_with_their_bytes() -> None:
    assert local("é.jsonl") == "é.jsonl"
    with pytest.raises(RecipeError) as caught:
        local(f"{ODD}.jsonl")
    assert (caught.value.what, caught.value.where) == ("This name is not UTF-8", "b\\xffd.jsonl")
    assert caught.value.why == "Its character 2 is no text, so that nothing can store the name."
    with pytest.raises(RecipeError, match="ud800"):
        local("\ud800")


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RunError, match="The working folder is gone"):
        refuse_lost_folder()
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("place", "argv", "said"),
    [
        ("gone", ["check", "rows.jsonl"], "The working folder is gone"),
        ("gone", ["runs", "list"], "The working folder is gone"),
        (ODD, ["train", "../r.yaml"], "This name is not UTF-8"),
        (".", ["check", f"{ODD}.jsonl"], "This name is not UTF-8"),
        (".", ["check", "odd"], "This name is not UTF-8"),
        (".", ["runs", "show", "x" * 5000], "This cannot be the name of a file"),
        (".", ["train", f"{ODD}.yaml"], "This name is not UTF-8"),
        (".", ["train", "r.yaml", f"output_dir={ODD}"], "The value of this argument is not YAML"),
        (".", ["train", "r.yaml", "data.train=odd/*", f"data.eval={ODD}"], "The value of this argument is not YAML"),
        (".", ["train", "r.yaml", "output_dir=/proc/x"], "Nothing can be written to the output folder"),
        (".", ["train", "r.yaml", "output_dir=r.yaml/x"], "Nothing can be written to the output folder"),
        (".", ["train", "r.yaml", f"output_dir={'x' * 300}"], "Nothing can be written to the output folder"),
    ],
)
def test_a_command_ends_at_once_with_one_message_and_no_traceback(
    tmp_path: Path, place: str, argv: list[str], said: str
) -> None:
    (tmp_path / "r.yaml").write_text("model: no/such\ndata: {train: rows.jsonl}\noutput_dir: out\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / f"{ODD}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    # The folder goes once the shell stands in it.
    script = f'{"rmdir ../gone;" if place == "gone" else ""} exec "$0" -m tunesmith "$@"'
    began = time.process_time() + sum(os.times()[2:4])
    command = ["sh", "-c", script, sys.executable, *map(os.fsencode, argv)]
    done = subprocess.run(command, cwd=os.fsencode(folder), capture_output=True, text=True)
    seconds = time.process_time() + sum(os.times()[2:4]) - began
    assert done.returncode == 1, done.stderr
    words = " ".join(done.stderr.split())
    assert said in words and "Traceback" not in words
    assert seconds < 2, "of computing; it imports no torch"
