"""Column names that tell a question from its answer."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tunesmith.data.examples.column_names import ColumnsUnclear, propose_columns
from tunesmith.data.examples.row_shapes import detect_shape

FIELDS = ("prompt", "completion")


def row(*names: str) -> list[dict[str, Any]]:
    return [dict.fromkeys(names, "some words")] * 3


@pytest.mark.parametrize(
    ("names", "question", "answer"),
    [
        (("id", "Frage", "Antwort"), "Frage", "Antwort"),
        (("text", "label"), "text", "label"),
        (("TITLE", "Body"), "TITLE", "Body"),
        (("вопрос", "ответ"), "вопрос", "ответ"),
        (("问题", "答案", "序号"), "问题", "答案"),
        (("id", "from", "subject", "body", "reply", "tags"), "{subject}\n\n{body}", "reply"),
        (("Titel", "Inhalt", "Antwort"), "{Titel}\n\n{Inhalt}", "Antwort"),
    ],
)
def test_the_only_pair_of_known_names_is_proposed_with_rows(names: tuple[str, ...], question: str, answer: str) -> None:
    proposal = propose_columns(row(*names), FIELDS)
    assert proposal is not None
    assert proposal.columns == {"prompt": question, "completion": answer}
    assert all(name in proposal.reason for name in (*re.findall(r"\w+", question), answer))
    assert proposal.samples == (f"{'some words ' * question.count('{') or 'some words '}-> some words",) * 3


@pytest.mark.parametrize(
    "names",
    [
        ("question", "answer", "solution"),  # two answers
        ("text", "label", "category"),
        ("subject", "body", "label", "category"),
        ("name", "price"),
        ("subject", "body", "reply", "answer"),  # two answers
        ("text", "label", "response"),
        ("text", "_task_hash", "answer", "label"),  # an annotator's decision, not the text's answer
        ("text", "annotations", "label"),
    ],
)
def test_nothing_is_proposed_where_the_names_leave_a_choice(names: tuple[str, ...]) -> None:
    assert propose_columns(row(*names), FIELDS) is None


def test_a_column_of_other_things_than_texts_is_no_answer() -> None:
    assert propose_columns([{"question": "Why?", "answer": ["so"]}], FIELDS) is None
    assert propose_columns([{"question": "Why?", "answer": None}], FIELDS) is None


def test_what_is_not_clear_says_what_it_looks_like_and_is_a_data_error_for_programs() -> None:
    with pytest.raises(ColumnsUnclear) as caught:
        detect_shape(row("frage", "antwort"))
    assert caught.value.proposal is not None
    assert caught.value.proposal.columns == {"prompt": "frage", "completion": "antwort"}
    assert caught.value.to_json()["error"] == "DataError"


def test_what_an_instruction_is_about_is_proposed_as_its_input() -> None:
    rows = [{"instruction": "Sum up.", "context": "A text.", "response": "So.", "category": "qa"}]
    for known in (rows, [{**rows[0], "context": ""}, *rows]):
        with pytest.raises(ColumnsUnclear) as caught:
            detect_shape(known)
        assert caught.value.proposal is not None
        columns = {"instruction": "instruction", "input": "context", "output": "response"}
        assert caught.value.proposal.columns == columns
        assert detect_shape(known, columns=columns)[0] == "alpaca"


@pytest.mark.parametrize(
    ("names", "prompt"),
    [
        ("ABCD", "{question}\nA. {A}\nB. {B}\nC. {C}\nD. {D}"),
        (("option1", "option2"), "{question}\n1. {option1}\n2. {option2}"),
        (("choice_b", "choice_a"), "{question}\nA. {choice_a}\nB. {choice_b}"),
        (("options",), "{question}\n{options}"),
        (("B", "C"), "question"),
        (("option1", "optionB"), "question"),
    ],
)
def test_choices_belong_into_the_prompt(names: tuple[str, ...], prompt: str) -> None:
    rows = [{"question": f"What is {n}?", **dict.fromkeys(names, f"It is {n}."), "answer": "A"} for n in range(3)]
    proposal = propose_columns(rows, ("prompt", "completion"))
    assert proposal is not None
    assert proposal.columns == {"prompt": prompt, "completion": "answer"}


def test_letters_name_a_question_and_its_answer_unless_they_are_choices() -> None:
    found = propose_columns([{"q": "Where?", "a": "Here.", "id": "1"}], ("prompt", "completion"))
    assert found is not None and found.columns == {"prompt": "q", "completion": "a"}
    assert propose_columns([{"q": "Where?", "a": "Here.", "b": "There."}], ("prompt", "completion")) is None
