"""Rows that a program hands over become a file that reads back as the same rows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.files.given_rows import is_rows, store_rows
from tunesmith.errors import DataError

ROWS = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": "Grüße 🙂\n", "completion": "ja"}]


def stored(rows: Any, folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store_rows(rows, folder / "rows", "train").read_text().splitlines()]


def refusal(rows: Any, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        store_rows(rows, folder / "rows", "train")
    assert list((folder / "rows").iterdir()) == []
    return str(caught.value)


def test_dicts_are_stored_as_they_are_and_the_same_rows_have_the_same_file(tmp_path: Path) -> None:
    assert stored(ROWS, tmp_path) == ROWS
    first, again, other = (store_rows(rows, tmp_path, "train") for rows in (ROWS, tuple(ROWS), ROWS[:1]))
    assert first == again != other


def test_a_dataframe_of_pandas_has_null_for_what_is_missing_and_no_index(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"text": ["a", None, "c"], "label": [1.5, 2.0, np.nan]}, index=[7, 8, 9])
    expected = [{"text": "a", "label": 1.5}, {"text": None, "label": 2.0}, {"text": "c", "label": None}]
    assert stored(frame, tmp_path) == expected
    assert stored(frame.to_dict("records"), tmp_path) == expected


def test_a_dataframe_of_polars_is_read(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    assert stored(polars.DataFrame(ROWS), tmp_path) == ROWS


def test_a_dataset_gives_the_chosen_rows_with_the_names_of_its_labels(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    assert stored(dataset.select([2, 1]), tmp_path) == [{"text": "c", "label": "good"}, {"text": "b", "label": "bad"}]


def test_numbers_of_numpy_dates_and_turns_become_json(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    row = {"n": np.int64(3), "day": datetime.date(2026, 3, 1), "messages": turns, "scores": np.array([1, 2])}
    assert stored([row], tmp_path) == [{"n": 3, "day": "2026-03-01", "messages": turns, "scores": [1, 2]}]


def test_what_cannot_be_stored_is_named_with_its_row_and_key(tmp_path: Path) -> None:
    assert "row 2: `image` has no form in JSON" in refusal([{"image": None}, {"image": b"\x89PNG"}], tmp_path)
    assert "row 2 is no dict" in refusal([{"a": 1}, "text"], tmp_path)
    assert "there are no rows" in refusal([], tmp_path)
    assert "type builtins.set" in refusal({1, 2}, tmp_path)


def test_a_column_of_several_types_and_a_dataset_with_splits_are_refused_with_what_to_do(tmp_path: Path) -> None:
    import pandas
    from datasets import Dataset, DatasetDict

    mixed = pandas.DataFrame({"label": ["a", 1]})
    assert "astype({'label': str})" in refusal(mixed, tmp_path)
    assert [row["label"] for row in stored(mixed.astype({"label": str}), tmp_path)] == ["a", "1"]
    (tmp_path / "rows").rename(tmp_path / "before")
    splits = DatasetDict({"train": Dataset.from_list(ROWS)})
    assert "dataset['train']" in refusal(splits, tmp_path)
    assert stored(splits["train"], tmp_path) == ROWS


def test_keys_that_become_one_are_refused(tmp_path: Path) -> None:
    said = refusal([{"q": "a"}, {1: "a", "1": "b"}], tmp_path)
    assert "row 2 has the key `1` twice" in said and "1 and '1' are the same key" in said
    assert "row 1: `inner` has the key `None` twice" in refusal([{"inner": {None: 1, "None": 2}}], tmp_path)


def test_columns_of_one_name_are_named_and_the_remedy_works(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame([["a", "b", "c"]], columns=["text", "label", "text"])
    said = refusal(frame, tmp_path)
    assert "several columns of one name" in said and "'text'" in said and "types" not in said
    (tmp_path / "rows").rename(tmp_path / "before")
    assert stored(frame.loc[:, ~frame.columns.duplicated()], tmp_path) == [{"text": "a", "label": "b"}]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), np.float64("inf"), np.float32("-inf")])
def test_infinity_is_called_by_its_name(tmp_path: Path, number: float) -> None:
    said = refusal([{"score": 1.0}, {"score": number}], tmp_path)
    assert "row 2: `score` is infinity" in said and "builtins" not in said


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("rows.jsonl", False), (Path("rows.jsonl"), False), (0.1, False), (None, False),
        (["a.jsonl", "b.jsonl"], False),
        ([{"path": "a.jsonl", "weight": 2}], False), ({"path": "a.jsonl"}, False), (ROWS, True), (tuple(ROWS), True),
    ],
)  # fmt: skip
def test_rows_are_told_from_the_sources_of_a_recipe(value: Any, expected: bool) -> None:
    assert is_rows(value) is expected
