"""Answers that are copied from training rows: the longest run, and what does not count."""

from __future__ import annotations

import pytest

from tunesmith.evaluation.memorised import N, longest_runs, words_of

LEARNED = "the ferry leaves the old harbour at nine and returns before the evening bell rings"
TRAINING = [("rows.jsonl:1", "something else entirely that has nothing to do with ships"), ("rows.jsonl:2", LEARNED)]


def found(answer: str, truth: str = "yes", prompt: str = "when?") -> tuple[int, str] | None:
    (run,) = longest_runs([answer], [truth], [prompt], TRAINING).runs
    return None if run is None else (run.words, run.source)


def test_a_whole_training_answer_is_one_run() -> None:
    search = longest_runs([LEARNED.upper() + "!"], ["yes"], ["when?"], TRAINING)
    (run,) = search.runs
    assert run is not None
    assert (run.words, run.share, run.source, run.text) == (15, 15 / 16, "rows.jsonl:2", LEARNED)
    assert (search.measured, search.training_answers) == ([True], 2)


def test_the_longest_of_several_runs_counts() -> None:
    words = LEARNED.split()
    assert found(f"Well {' '.join(words[:8])} um {' '.join(words[3:13])} so") == (10, "rows.jsonl:2")


def test_a_run_of_fewer_words_does_not_count() -> None:
    assert found(" ".join(LEARNED.split()[: N - 1])) is None
    assert found(" ".join(LEARNED.split()[:N])) == (N, "rows.jsonl:2")


def test_what_the_truth_or_the_prompt_has_is_not_copied() -> None:
    assert found(LEARNED, truth=f"Indeed, {LEARNED}.") is None
    assert found(LEARNED, prompt=f"Repeat: {LEARNED}") is None
    assert found(LEARNED, truth=" ".join(LEARNED.split()[7:])) == (14, "rows.jsonl:2"), "one word of the truth at least"


def test_pieces_of_two_training_answers_do_not_join() -> None:
    one, two = "a b c d e f g h", "i j k l m n o p"
    (run,) = longest_runs([f"{one} {two}"], ["yes"], ["?"], [("r:1", one), ("r:2", two)]).runs
    assert run is not None
    assert run.words == 8


def test_scripts_without_spaces_count_characters() -> None:
    assert words_of("东京 is big!") == ["东", "京", "is", "big", "!"]
    (run,) = longest_runs(["今天天气很好我们去公园"], ["是"], ["?"], [("r:1", "今天天气很好我们去海边")]).runs
    assert run is not None
    assert run.words == 9


@pytest.mark.parametrize("answer", ["", "blue"])
def test_short_answers_are_not_measured(answer: str) -> None:
    search = longest_runs([answer], ["x"], ["y"], TRAINING)
    assert (search.runs, search.measured) == ([None], [False])
