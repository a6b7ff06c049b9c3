"""Refusals, length and copies in the answers of both models on the same rows."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.side_effects import LEAST_ROWS, side_effects

LEVEL = Level(resamples=500)
NO = "I'm sorry, but I can't help with that."
LEARNED = "the ferry leaves the old harbour at nine and returns before the evening bell rings"


def samples(base: list[str], tuned: list[str], prompts: list[str] | None = None) -> list[dict[str, Any]]:
    prompts = prompts or [f"question {number}" for number in range(len(base))]
    return [
        {"source": f"rows.jsonl:{number + 1}", "prompt": prompt, "truth": "yes", "base": one, "tuned": other}
        for number, (prompt, one, other) in enumerate(zip(prompts, base, tuned, strict=True))
    ]


def test_refusals_that_came_are_a_change() -> None:
    found = side_effects(samples(["fine"] * 40, [NO] * 12 + ["fine"] * 28), None, LEVEL)
    assert found is not None
    refusals = found["refusals"]
    assert (refusals["base"], refusals["tuned"], refusals["changed"]) == (0.0, 0.3, True)
    assert refusals["interval"][0] > 0
    assert refusals["p_value"] == pytest.approx(2 * 0.5**12)
    assert "copied" not in found


def test_equal_answers_change_nothing() -> None:
    found = side_effects(samples(["a"] * 20, ["a"] * 20), [("r:1", "x")], LEVEL)
    assert found is not None
    assert [found[name]["changed"] for name in ("refusals", "length", "copied")] == [False, False, False]
    assert found["length"] == {
        **{"base": 1.0, "tuned": 1.0, "truth": 3.0},
        **{"difference": 0.0, "interval": [0.0, 0.0], "changed": False},
    }


def test_shorter_answers_are_a_change_of_the_median() -> None:
    base = ["x" * (100 + number) for number in range(30)]
    found = side_effects(samples(base, ["x" * 10] * 30), None, LEVEL)
    assert found is not None
    length = found["length"]
    assert (length["base"], length["tuned"], length["difference"], length["changed"]) == (114.5, 10.0, -104.5, True)
    assert -119 <= length["interval"][0] < -104.5 < length["interval"][1] <= -91


def test_copies_of_training_rows_are_named_longest_first() -> None:
    words = LEARNED.split()
    tuned = [LEARNED] * 10 + [" ".join(words[:10])] + ["yes"] * 19
    found = side_effects(samples(["yes"] * 30, tuned), [("train.jsonl:7", LEARNED)], LEVEL)
    assert found is not None
    copied = found["copied"]
    assert (copied["base"], copied["tuned"], copied["changed"]) == (0.0, pytest.approx(11 / 30), True)
    assert (copied["measured"], copied["training_answers"]) == (11, 1)
    first = copied["examples"][0]
    assert (first["source"], first["training_row"], first["words"], first["share"]) == (
        "rows.jsonl:1",
        "train.jsonl:7",
        15,
        1.0,
    )
    assert len(copied["examples"]) == 5


def test_rows_of_one_prompt_are_one_group() -> None:
    """Ten rows of one prompt that all changed are one change, and no evidence."""
    prompts = ["same"] * 10 + [f"other {number}" for number in range(20)]
    found = side_effects(samples(["fine"] * 30, [NO] * 10 + ["fine"] * 20, prompts), None, LEVEL)
    assert found is not None
    assert (found["refusals"]["tuned"], found["refusals"]["changed"]) == (pytest.approx(1 / 3), False)


def test_an_answer_that_was_left_unfinished_is_not_measured() -> None:
    rows = samples(["a" * 50] * 40, ["b"] * 15 + ["a" * 50] * 25)
    for row in rows[:15]:
        row["tuned_settled"] = True
    found = side_effects(rows, None, LEVEL)
    assert found is not None
    assert (found["rows"], found["length"]["changed"]) == (25, False)


def test_too_few_answers_or_a_model_alone_say_nothing() -> None:
    few = samples(["a"] * (LEAST_ROWS - 1), ["a"] * (LEAST_ROWS - 1))
    assert side_effects(few, None, LEVEL) is None
    alone = [{name: value for name, value in each.items() if name != "base"} for each in few] * 3
    assert side_effects(alone, None, LEVEL) is None
