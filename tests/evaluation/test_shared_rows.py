"""Which rows several targets have in common: by their content, or by their place in the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey, survey_rows
from tunesmith.evaluation.shared_rows import by_place, held_out_alone, rows_that_judge, shared_keys
from tunesmith.recipe.data import DataSettings


def surveyed(file: Path, **more: Any) -> Survey:
    settings = DataSettings.model_validate({"train": str(file), "eval": 0.0, "instruction": "Say it.", **more})
    return survey_rows(settings, seed=0)


def written(file: Path, numbers: Any) -> Path:
    rows = [{"input": f"thing {n}", "output": f"word {n % 3}"} for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(survey: Survey, keys: Any, rows: Any) -> list[int]:
    return [int(survey.scan.line[rows.numbers[key]]) for key in keys]


def test_rows_of_other_files_are_the_same_by_their_content(tmp_path: Path) -> None:
    one, other = surveyed(written(tmp_path / "a.jsonl", range(8))), surveyed(written(tmp_path / "b.jsonl", [9, 2, 1]))
    mine, theirs = rows_that_judge(one, one.scan.good), rows_that_judge(other, other.scan.good)
    keys = shared_keys([mine, theirs], limit=None, seed=0)
    assert lines(one, keys, mine) == [2, 3]  # things 1 and 2
    assert lines(other, keys, theirs) == [3, 2]


def test_a_row_that_is_there_twice_is_shared_as_often_as_all_have_it(tmp_path: Path) -> None:
    one, other = (
        surveyed(written(tmp_path / "a.jsonl", [1, 1, 1, 2])),
        surveyed(written(tmp_path / "b.jsonl", [1, 1, 3])),
    )
    mine, theirs = rows_that_judge(one, one.scan.good), rows_that_judge(other, other.scan.good)
    assert len(shared_keys([mine, theirs], limit=None, seed=0)) == 2


def test_a_row_that_is_known_by_its_place_is_not_replaced_by_another_one_like_it(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [1, 2])
    more = written(tmp_path / "b.jsonl", [1, 3])
    mine = rows_that_judge(one := surveyed(file), one.scan.good)
    for first, second in ((file, more), (more, file)):
        survey = survey_rows(
            DataSettings.model_validate(
                {"train": [{"path": str(path)} for path in (first, second)], "eval": 0.0, "instruction": "Say it."}
            ),
            seed=0,
        )
        theirs = rows_that_judge(survey, survey.scan.good, by_place(mine))
        assert len(theirs.numbers) == 4, "every row has a key of its own"
        shared = [theirs.numbers[key] for key in shared_keys([mine, theirs], limit=None, seed=0)]
        assert [survey.scan.files[int(survey.scan.file[number])] for number in shared] == [str(file)] * 2
        assert [int(survey.scan.line[number]) for number in shared] == [1, 2]


def test_rows_with_other_instructions_are_the_same_by_their_place(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", range(8))
    one, other = surveyed(file), surveyed(file, instruction="Be brief.")
    mine = rows_that_judge(one, one.scan.good)
    assert shared_keys([mine, rows_that_judge(other, other.scan.good)], limit=None, seed=0) == []
    theirs = rows_that_judge(other, other.scan.good, by_place(mine))
    keys = shared_keys([mine, theirs], limit=None, seed=0)
    assert lines(one, keys, mine) == lines(other, keys, theirs) == [*range(1, 9)]


def test_a_limit_draws_by_seed_and_nothing_else_stays_on_any_side(tmp_path: Path) -> None:
    survey = surveyed(written(tmp_path / "a.jsonl", range(20)), eval=0.5)
    rows = rows_that_judge(survey, survey.outcome == OUTCOME["held_out"])
    keys = shared_keys([rows], limit=3, seed=1)
    assert len(keys) == 3 and keys == shared_keys([rows], limit=3, seed=1) != shared_keys([rows], limit=3, seed=2)
    left = held_out_alone(rows, keys)
    assert sorted(left.outcome.tolist()) == sorted([OUTCOME["held_out"]] * 3 + [OUTCOME["left_out"]] * 17)
