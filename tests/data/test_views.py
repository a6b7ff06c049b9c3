"""What a person reads about many rows: one line for each reason, and how much was masked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.data.files.rows import BadRow, by_reason
from tunesmith.data.survey import survey_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings


def write(folder: Path, rows: list[dict[str, str]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_that_are_bad_for_one_reason_are_one_line_with_their_number() -> None:
    empty = [BadRow(f"a.jsonl:{line}", "text", "an empty text", "a text", "") for line in range(3, 10)]
    number = BadRow("b.jsonl:1", "text", "the number 3", "a text", "")
    assert by_reason([*empty[:2], number, *empty[2:]]) == [
        (7, "text is empty (a.jsonl:3, 4, 5, 6, 7, ...)"),
        (1, "b.jsonl:1: text: found the number 3, expected a text"),
    ]
    assert by_reason([empty[0], BadRow("b.jsonl:1", "text", "an empty text", "a text", "")]) == [
        (2, "text is empty (a.jsonl:3, b.jsonl:1)")
    ]


def test_the_refusal_of_bad_rows_names_each_reason_once(tmp_path: Path) -> None:
    good = [{"prompt": f"p {n}", "completion": "c"} for n in range(30)]
    path = write(tmp_path, [*good, *({"prompt": "p", "completion": ""} for _ in range(20))])
    with pytest.raises(DataError) as refused:
        survey_rows(DataSettings.model_validate({"train": path}), seed=0)
    assert refused.value.what == "20 of 50 rows cannot be used"
    assert refused.value.why == f"20 rows: completion is empty ({path}:31, 32, 33, 34, 35, ...)"


def test_masking_says_how_many_items_of_each_kind_it_masked(tmp_path: Path) -> None:
    rows = [{"prompt": f"mail a{n}@example.org and b@example.org", "completion": "+44 20 7946 0958"} for n in range(4)]
    section = {"train": write(tmp_path, [*rows, {"prompt": "nothing", "completion": "here"}]), "eval": 0}
    found = survey_rows(DataSettings.model_validate({**section, "clean": {"mask_pii": ["email", "phone"]}}), seed=0)
    assert found.notes[-1] == "masked by data.clean.mask_pii: email 8, phone 4"
    plain = survey_rows(DataSettings.model_validate(section), seed=0)
    assert not any("masked" in note for note in plain.notes)
