"""A folder that `datasets` saved reads no file outside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.data.loading import load

from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two datasets side by side: one without splits, one with."""
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "own")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "split")
    Dataset.from_list([{"prompt": "secret", "completion": "s"}]).save_to_disk(tmp_path / "private")
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def rows_of(path: Path) -> list[str]:
    return [each.messages[0].content for each in load(SourceSettings(path=str(path))).examples]


ARROW = "data-00000-of-00001.arrow"


@pytest.mark.parametrize("name", [f"../private/{ARROW}", f"{{private}}/{ARROW}", "..", "a/../../x", "C:x", 3, None])
def test_a_file_outside_the_folder_is_not_read(saved: Path, name: object) -> None:
    if isinstance(name, str):
        name = name.format(private=saved / "private")
    change(saved / "own" / "state.json", json.dumps(ARROW), json.dumps(name))
    with pytest.raises(DataError, match=r"(?s)names a file outside its folder.*save it again"):
        rows_of(saved / "own")


def test_a_split_outside_the_folder_is_not_read(saved: Path) -> None:
    change(saved / "split" / "dataset_dict.json", '"train"', '"../private"')
    with pytest.raises(DataError, match="names a file outside its folder"):
        rows_of(saved / "split")


def test_a_link_that_leads_out_is_not_read_and_one_within_is(saved: Path) -> None:
    file = saved / "own" / ARROW
    file.rename(saved / "own" / "elsewhere.arrow")
    os.symlink("elsewhere.arrow", file)
    assert rows_of(saved / "own") == ["a", "c"]
    os.symlink(saved / "own", saved / "link")
    assert rows_of(saved / "link") == ["a", "c"]
    file.unlink()
    os.symlink(saved / "private" / ARROW, file)
    with pytest.raises(DataError, match="names a file outside its folder"):
        rows_of(saved / "own")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"_data_files": 3}', '{"_data_files": [3]}', "[" * 100_000, " " * (2**24 + 1)]
)
def test_a_damaged_list_is_one_message(saved: Path, text: str) -> None:
    (saved / "own" / "state.json").write_text(text)
    with pytest.raises(DataError, match=r"(?s)the dataset saved here cannot be read.*save it again"):
        rows_of(saved / "own")
