"""Columns named by a path into nested values, or joined by a template."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.examples.column_names import propose_columns
from tunesmith.data.examples.column_values import MISSING, leaves, value_of
from tunesmith.data.examples.message import RowError
from tunesmith.data.examples.row_shapes import check_mapping, detect_shape, map_columns
from tunesmith.errors import DataError

ROW: dict[str, Any] = {
    "mail": {"subject": "Order", "body": "Where is it?", "tags": ["late", "post"]},
    "answer": {"text": "On its way.", "score": 3},
    "a.b": "flat",
    "{odd}": "braced",
    "empty": "",
    "none": None,
}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("answer.text", "On its way."),
        ("mail.tags.1", "post"),
        ("a.b", "flat"),
        ("{odd}", "braced"),
        ("none", None),
        ("{mail.subject}\n\n{mail.body}", "Order\n\nWhere is it?"),
        ("Mail: {mail.subject}, {{so}} {a.b}", "Mail: Order, {so} flat"),
        ("{answer.score} of 5", "3 of 5"),
        ("{mail.tags}", "late, post"),
        ("{empty}\n\n{mail.body}", "Where is it?"),
        ("Subject: {empty}{none}", ""),
        ("answer.words", MISSING),
        ("mail.tags.7", MISSING),
    ],
)
def test_a_column_a_path_and_a_template_give_a_value(column: str, value: object) -> None:
    assert value_of(ROW, column) == value


def test_a_template_does_not_join_objects() -> None:
    with pytest.raises(RowError, match="mail: found an object with subject, body, tags"):
        value_of(ROW, "{mail}")


def test_what_is_mapped_leaves_its_own_column_and_keeps_the_others() -> None:
    mapped = map_columns(ROW, {"prompt": "{mail.subject}: {empty}", "completion": "answer.text"})
    assert mapped == {"prompt": "Order:", "completion": "On its way.", "a.b": "flat", "{odd}": "braced", "none": None}


def test_the_reason_names_paths_and_what_else_the_objects_hold() -> None:
    shape, reason = detect_shape([ROW], columns={"prompt": "{mail.subject}\n{mail.body}", "completion": "answer.text"})
    assert shape == "prompt_completion"
    assert reason == (
        "columns '{mail.subject}\\n{mail.body}' (prompt), answer.text (completion) -> prompt_completion; "
        "not used: mail.tags, answer.score, a.b, {odd}, empty, none"
    )


def test_a_path_that_no_row_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError) as caught:
        check_mapping([ROW], {"prompt": "{mail.subject} {mail.bod}", "completion": "answer.text"})
    assert caught.value.what == "data.columns: there is no column 'mail.bod'"
    assert "did you mean mail.body?" in str(caught.value.remedy)


def test_nested_columns_are_proposed_and_a_title_beside_a_text_is_a_part_of_it() -> None:
    rows = [{"id": 1, "ticket": {"text": "Hi", "by": "Ann"}, "triage": {"label": "new"}}]
    assert leaves(rows) == ["id", "ticket.text", "ticket.by", "triage.label"]
    proposal = propose_columns(rows, ("prompt", "completion"))
    assert proposal is not None
    assert proposal.columns == {"prompt": "ticket.text", "completion": "triage.label"}
    joined = propose_columns([{"subject": "Order", "body": "Where?", "label": "late"}], ("input", "output"))
    assert joined is not None
    assert joined.columns == {"input": "{subject}\n\n{body}", "output": "label"}
    assert joined.samples == ("Order Where? -> late",)
