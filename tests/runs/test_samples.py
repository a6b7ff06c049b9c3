from __future__ import annotations

from typing import Any

from tunesmith.runs.samples import LONGEST, side_by_side, worst_labels, wrong_lines


def sample(number: int, **values: Any) -> dict[str, Any]:
    return {"source": f"a.jsonl:{number}", "prompt": f"ask\n{number}", "truth": "yes", "tuned": "yes", **values}


def scored(truth: str, right: bool) -> dict[str, Any]:
    return sample(1, truth=truth, scores={"exact_match": float(right)})


def test_the_first_rows_are_shown_with_base_tuned_and_truth() -> None:
    lines = side_by_side([sample(number, base="no\nidea") for number in range(1, 9)])
    assert lines[0] == "3 judged rows, with the answers of the base and the tuned model:"
    assert lines[1:6] == [
        "  a.jsonl:1",
        "    prompt ask 1",
        "    base   no | idea",
        "    tuned  yes",
        "    truth  yes",
    ]
    assert len(lines) == 16


def test_a_long_prompt_is_shown_by_its_end() -> None:
    line = side_by_side([sample(1, prompt="instruction " * 50 + "the question")])[2]
    assert line.startswith("    prompt ...") and line.endswith(" the question")
    assert len(line) == len("    prompt ") + LONGEST


def test_the_turn_that_was_asked_stands_for_the_prompt_where_it_is_known() -> None:
    rows = [sample(1, prompt="systemYou are a bot.user\nWhich colour?assistant", asked="Which colour?")]
    assert side_by_side(rows)[2] == "    prompt Which colour?"


def test_an_empty_answer_is_named() -> None:
    assert side_by_side([sample(1, tuned=" \n")])[3] == "    tuned  (empty)"


def test_without_samples_nothing_is_said() -> None:
    assert side_by_side([]) == []
    assert worst_labels([]) is None


def test_labels_that_are_wrong_most_often_come_first() -> None:
    rows = [scored("a", True)] * 4 + [scored("b", False)] * 2 + [scored("c", True), scored("c", False)]
    assert worst_labels(rows) == "labels, worst first: b 0 of 2, c 1 of 2 right"


def test_labels_that_accuracy_scored_are_named_too() -> None:
    rows = [
        sample(1, truth=truth, scores={"accuracy": float(right)}) for truth, right in [("a", 1), ("a", 1), ("b", 0)] * 2
    ]
    assert worst_labels(rows) == "labels, worst first: b 0 of 2 right"


def test_answers_that_are_no_labels_have_no_worst_ones() -> None:
    assert worst_labels([scored(str(number), False) for number in range(10)]) is None
    assert worst_labels([sample(1, truth="a"), sample(2, truth="a")]) is None
    assert worst_labels([scored("a", True), scored("a", True), scored("b", True), scored("b", True)]) is None


def test_wrong_rows_say_which_answers_are_not_whole() -> None:
    row = {"source": "a:1", "prompt": "p", "base": "b", "tuned": "t", "truth": "u", "scores": {"exact_match": 0.0}}
    text = "\n".join(wrong_lines([{**row, "base_stopped": False, "tuned_stopped": False, "tuned_settled": True}], 1))
    assert "b  (cut off)" in text and "t  (left unfinished: it cannot be right)" in text


def test_a_wrong_row_shows_the_turn_that_was_asked_and_not_the_template_around_it() -> None:
    row = sample(1, prompt="systemYou are a bot.user\nWhich colour?assistant", asked="Which\ncolour?", tuned="no")
    assert wrong_lines([row], 1)[2:4] == ["    prompt Which", "           colour?"]
    assert wrong_lines([{**row, "asked": None}], 1)[2].startswith("    prompt systemYou are")  # of an earlier version
