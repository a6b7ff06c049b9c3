"""Public data as people hand it over; skipped where the folder is absent (TUNESMITH_SHARED_DATA, or ../shared/data)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.data.loading import load

from tunesmith.data.files.reader import own_eval_split
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings


@pytest.fixture(scope="module")
def shared() -> Path:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("TUNESMITH_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the shared data are not here")
    return folder


def test_instructions_are_alpaca_and_the_last_row_has_its_line(shared: Path):
    path = shared / "instruct" / "instruction-data.json"
    loaded = load(SourceSettings(path=str(path)))
    assert (len(loaded.examples), loaded.shape) == (1100, "alpaca")
    last = loaded.examples[-1]
    line = int(last.source.rpartition(":")[2])
    assert path.read_text().splitlines()[line - 1].strip() == "{"
    assert f'"output": "{last.messages[1].content}"' in "\n".join(path.read_text().splitlines()[line : line + 4])


def test_banking77_has_its_own_test_split_and_every_row(shared: Path):
    columns = {"input": "text", "output": "category"}
    source = SourceSettings(path=str(shared / "banking77"), columns=columns, instruction="Name the intent.")
    assert own_eval_split(source) == "test"
    assert len(load(source).examples) == 10_003
    assert len(load(source, role="eval").examples) == 3_080


def test_comments_before_the_array_are_named(shared: Path):
    with pytest.raises(DataError, match="JSON has no comments") as caught:
        load(SourceSettings(path=str(shared / "restaurant" / "train.json")))
    assert str(caught.value.where).endswith("train.json:1")


def test_rows_that_are_lists_are_said_to_be_lists(shared: Path, tmp_path: Path):
    text = (shared / "restaurant" / "train.json").read_text()
    (tmp_path / "train.json").write_text(text[text.index("[") :])
    with pytest.raises(DataError, match="3,114 of 3,114 rows cannot be used") as caught:
        load(SourceSettings(path=str(tmp_path / "train.json")))
    assert "found a list of 3, expected an object with named fields" in str(caught.value)


def test_naughty_strings_come_through_unchanged(shared: Path, tmp_path: Path):
    import json

    naughty = [text for text in json.loads((shared / "hostile" / "blns.json").read_text()) if text.strip()]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text, "completion": text}) for text in naughty))
    loaded = load(SourceSettings(path=str(path)))
    assert [example.messages[1].content for example in loaded.examples] == naughty
