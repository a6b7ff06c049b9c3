"""Two answers to a question, and a column that says which is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.loading import load

from tunesmith.data.files.reader import open_source
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings


def source(
    tmp_path: Path, winners: list[Any], names: tuple[str, str] = ("answer_a", "answer_b"), **settings: Any
) -> SourceSettings:
    rows = [
        {"question": f"q{n}", names[0]: f"first {n}", names[1]: f"second {n}", "winner": winner}
        for n, winner in enumerate(winners)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSettings.model_validate({"path": str(path), **settings})


@pytest.mark.parametrize(
    ("winners", "names"),
    [
        (["a", "b", "tie"], ("answer_a", "answer_b")),
        (["A", "B", "both"], ("Response A", "Response B")),
        (["answer_a", "answer_b", None], ("answer_a", "answer_b")),
        (["model_a", "model_b", "tie (bothbad)"], ("conversation_a", "conversation_b")),
        ([1, 2, "tie"], ("answer1", "answer2")),
        (["1", "2", ""], ("output_a", "output_b")),
    ],
)
def test_the_winner_is_chosen_and_a_tie_is_left_out(tmp_path: Path, winners: list[Any], names: tuple[str, str]) -> None:
    found = load(source(tmp_path, winners, names), on_error="skip")
    made = [(each.messages[0].content, each.messages[-1].content, each.rejected) for each in found.examples]
    assert [(prompt, chosen, rejected and rejected.content) for prompt, chosen, rejected in made] == [
        ("q0", "first 0", "second 0"),
        ("q1", "second 1", "first 1"),
    ]
    assert "an export of a comparison" in found.reason and "ties are left out" in found.reason


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "question", "chosen": "answer_a", "rejected": "answer_b"},
        {"prompt": "question", "completion": "answer_a"},
    ],
)
def test_a_mapping_that_passes_over_the_winner_is_refused_and_what_is_said_works(
    tmp_path: Path, columns: dict[str, str]
) -> None:
    with pytest.raises(DataError) as caught:
        open_source(source(tmp_path, ["a", "b"], columns=columns))
    assert "winner says of each row which answer is better" in caught.value.what
    assert "set data.columns: {prompt: question}; " in str(caught.value.remedy)
    assert open_source(source(tmp_path, ["a", "b"], columns={"prompt": "question"})).shape == "preference"
    assert open_source(source(tmp_path, ["a", "a"], columns=columns)).shape in ("preference", "prompt_completion")


@pytest.mark.parametrize("winners", [[0, 1], ["left", "right"], [True, False]])
def test_a_winner_in_other_words_is_refused_with_what_to_write(tmp_path: Path, winners: list[Any]) -> None:
    with pytest.raises(DataError, match="in a way that is not known") as caught:
        open_source(source(tmp_path, winners))
    assert "write a, b or tie in it" in str(caught.value.remedy)
