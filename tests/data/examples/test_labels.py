"""Labels that are numbers or truth values, in every format that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tests.data.loading import load

from tunesmith.data.examples.column_names import propose_columns
from tunesmith.data.examples.example import to_example
from tunesmith.data.examples.labels import labels_in_words
from tunesmith.recipe.data import SourceSettings

COLUMNS = {"prompt": "text", "completion": "label"}
NAMES = ["cold", "warm"]


def answers(path: Path) -> tuple[list[str], list[str], str]:
    """The answers, the bad rows and the reason of a source with the columns text and label."""
    found = load(SourceSettings(path=str(path), columns=COLUMNS), on_error="skip")
    return [example.answer() for example in found.examples], [str(row) for row in found.bad], found.reason


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-3, "-3"), (2.0, "2"), (0.5, "0.5"), (True, "true"), (False, "false"), (10**20, "1" + "0" * 20)],
)
def test_a_number_as_answer_is_taken_as_text_in_every_shape(value: Any, text: str) -> None:
    rows = {
        "prompt_completion": {"prompt": "a", "completion": value},
        "alpaca": {"instruction": "a", "output": value},
        "unpaired_preference": {"prompt": "a", "completion": value, "label": True},
    }
    for shape, row in rows.items():
        assert to_example(row, shape=shape, source="f:1").answer() == text


def test_it_is_said_once_with_an_example() -> None:
    assert labels_in_words([None, 2.0, 1.0], "label") == ["label: numbers are taken as text, such as 2.0 as '2'"]
    assert labels_in_words([True], "completion") == [
        "completion: truth values are taken as text, such as true as 'true'"
    ]
    assert labels_in_words(["b"], "completion") == []


def test_integers_of_json_lines_are_labels_and_a_null_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "ints.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in (0, 1, None)))
    texts, bad, reason = answers(path)
    assert texts == ["0", "1"]
    assert bad == [f"{path}:3: label: found null, expected a text"]
    assert "label: numbers are taken as text, such as 0 as '0'" in reason


def test_floats_of_parquet_are_whole_numbers_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [0.0, None, 3.0]}), path)
    texts, bad, reason = answers(path)
    assert (texts, len(bad)) == (["0", "3"], 1)
    assert "such as 0.0 as '0'" in reason


def labelled(labels: list[int]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"text": ["t"] * len(labels), "label": labels}, features=features)


def test_class_labels_are_read_by_their_names_and_the_names_are_said(tmp_path: Path) -> None:
    labelled([0, 1, -1]).to_parquet(tmp_path / "rows.parquet")
    labelled([0, 1, -1]).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": labelled([0, 1, -1])}).save_to_disk(tmp_path / "splits")
    for name in ("rows.parquet", "saved", "splits"):
        texts, bad, reason = answers(tmp_path / name)
        assert (texts, len(bad)) == (NAMES, 1), name
        assert "label: each number is replaced by the name of its class (cold, warm)" in reason


def test_a_column_of_numbers_is_proposed_where_no_column_of_texts_is() -> None:
    rows = [{"text": "a", "label": 2.0}, {"text": "b", "label": None}]
    proposal = propose_columns(rows, ("prompt", "completion"))
    assert proposal is not None and proposal.columns == COLUMNS
    assert proposal.samples[0] == "a -> 2"
    both = propose_columns([{"text": "a", "label": 1, "category": "cold"}], ("prompt", "completion"))
    assert both is not None and both.columns == {"prompt": "text", "completion": "category"}
