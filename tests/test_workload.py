"""How much an epoch has to compute: as it is said, and from the characters of rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import read_recipe
from tunesmith.workload import as_said, by_characters


def recipe(path: Path, **data: object) -> Recipe:
    sections = {"train": str(path), "eval": 0.0, **data}
    return read_recipe({"model": "a/model", "data": sections, "output_dir": "run"}).recipe


def test_rows_as_they_are_said_share_nothing_and_half_is_learned() -> None:
    found = as_said(10, 8)
    assert (found.rows, found.longest, found.tokens, found.computed) == (10, 8, 80, 80)
    assert (found.logits, found.pairs) == (40, 10 * 36)


def test_four_characters_are_a_token_and_no_row_is_longer_than_the_recipe_allows(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 12, "completion": "c" * 8}, {"prompt": "q" * 400, "completion": "d" * 8}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = by_characters(recipe(tmp_path / "rows.jsonl", max_length=50, too_long="truncate"))
    assert (found.rows, found.longest, found.tokens, found.computed) == (2, 50, 55, 55)
    assert found.logits == 4
    assert found.pairs == 5 * 6 // 2 + 50 * 51 // 2


def test_a_document_is_learned_whole(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "t" * 40}) + "\n")
    found = by_characters(recipe(tmp_path / "rows.jsonl"))
    assert (found.tokens, found.logits) == (10, 10)


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        by_characters(recipe(tmp_path / "nothing.jsonl"))
