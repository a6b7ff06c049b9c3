"""Exports of annotation tools: what is taken, what is left out, and what is refused."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.loading import load

from tunesmith.cli.options import in_flags
from tunesmith.data.examples.export_layout import LeftOutRow
from tunesmith.data.examples.exports import export_of
from tunesmith.data.examples.message import RowError
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import LeftOut
from tunesmith.data.survey import survey_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings, SourceSettings

Row = dict[str, Any]


def written(tmp_path: Path, *rows: Row) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task(text: str, *annotations: Row) -> Row:
    return {"id": 1, "data": {"text": text, "id": 7}, "annotations": list(annotations)}


def annotation(*labels: str, name: str = "mood", **keys: Any) -> Row:
    return {"result": [{"from_name": name, "type": "choices", "value": {"choices": list(labels)}}], **keys}


def pairs(path: Path, **settings: Any) -> list[tuple[str, str]]:
    source = SourceSettings.model_validate({"path": str(path), **settings})
    return [(example.messages[0].content, example.answer()) for example in load(source, on_error="skip").examples]


def refusal(path: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        open_source(SourceSettings.model_validate({"path": str(path), **settings}))
    return in_flags(caught.value, "tunesmith init rows.jsonl")


def test_annotators_who_agree_give_one_answer_and_a_ground_truth_comes_before_others(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        task("one", annotation("good"), annotation("good")),
        task("two", annotation("bad"), annotation("good", ground_truth=True)),
        task("three", annotation("bad", was_cancelled=True), annotation("fair")),
    )
    assert pairs(path) == [("one", "good"), ("two", "good"), ("three", "fair")]


def test_several_labels_are_refused_and_each_command_that_is_named_chooses(tmp_path: Path) -> None:
    path = written(tmp_path, task("one", annotation("good", "new")), task("two", annotation("bad")))
    error = refusal(path)
    assert error.what == "the rows are an export of Label Studio, and one has several values for mood"
    assert error.remedy == (
        "to learn all of them as one answer (`a, b`), run `tunesmith init rows.jsonl --columns 'completion={mood}'`; "
        "to learn the first, run `tunesmith init rows.jsonl --columns completion=mood.0`"
    )
    assert pairs(path, columns={"completion": "{mood}"}) == [("one", "good, new"), ("two", "bad")]
    assert pairs(path, columns={"completion": "mood.0"}) == [("one", "good"), ("two", "bad")]


def test_several_questions_are_refused_and_their_names_are_columns(tmp_path: Path) -> None:
    record = {"fields": {"text": "one"}, "responses": {"mood": [{"value": "good"}], "topic": [{"value": "tea"}]}}
    path = written(tmp_path, record)
    assert "run `tunesmith init rows.jsonl --columns completion=mood`" in str(refusal(path).remedy)
    assert pairs(path, columns={"completion": "topic"}) == [("one", "tea")]


def test_rows_that_the_tool_rejects_are_counted_and_do_not_stop_a_run(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {number}", "label": "tea", "answer": answer, "_task_hash": number, "_input_hash": number}
        for number, answer in enumerate(("accept", "reject", "ignore", "accept", "reject"))
    ]
    path = written(tmp_path, *rows)
    found = survey_rows(DataSettings.model_validate({"train": str(path), "eval": 0.0, "max_lost": 0.1}), seed=0)
    assert found.left_out_in_words() == ["left out, as the file says: 2 rejected, 1 ignored"]
    assert found.ledger().in_words() == ["rows: 5 read: 3 left out, 2 trained"]
    assert next(str(row) for row in found.rejected if isinstance(row, LeftOut)) == f"{path}:2: left out: rejected"
    assert found.findings == [] or all(finding.id != "invalid_rows" for finding in found.findings)


def test_with_an_instruction_the_text_is_its_input(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": 1, "text": "one", "label": ["tea"], "Comments": []})
    assert pairs(path, instruction="Name the topic.") == [("Name the topic.\n\none", "tea")]


def test_a_text_with_labels_is_read_as_a_document_where_that_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "one", "label": []}, {"text": "two", "label": ["a", "b"]})
    loaded = load(SourceSettings.model_validate({"path": str(path), "format": "text"}))
    assert [example.text for example in loaded.examples] == ["one", "two"]


def test_dialogues_as_texts_become_turns_and_what_they_share_is_the_prompt(tmp_path: Path) -> None:
    before = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tea?\n\nAssistant: "
    path = written(tmp_path, {"chosen": f"{before}Yes.", "rejected": f"{before}No."})
    (example,) = load(SourceSettings.model_validate({"path": str(path)})).examples
    assert [turn.content for turn in example.messages] == ["Hi", "Hello", "Tea?", "Yes."]
    assert example.rejected is not None and example.rejected.content == "No."


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a", "label": "b"},
        {"text": "a", "label": [1, 2]},
        {"data": [], "annotations": []},
        {"answer": "accept", "text": "a", "label": "b"},
        {"chosen": "a", "rejected": "b"},
    ],
)
def test_other_rows_are_no_export(row: Row) -> None:
    assert export_of([row]) is None


@pytest.mark.parametrize("holder", ["data", "fields"])
def test_a_field_may_have_the_name_of_what_holds_it(tmp_path: Path, holder: str) -> None:
    row = {
        "data": {"data": {"data": "one"}, "annotations": [annotation("good")]},
        "fields": {"fields": {"fields": "one"}, "responses": {"mood": [{"value": "good"}]}},
    }[holder]
    path = written(tmp_path, row)
    assert pairs(path) == pairs(path, columns={"prompt": holder}) == [("one", "good")]
    export = export_of([row])
    assert export is not None
    assert export.asked(row, {})["prompt"] == "one"


@pytest.mark.parametrize(
    ("accept", "answer"), [("good", "good"), (2, "fair"), ([2], "fair"), (["good"], "good")], ids=str
)
def test_an_accepted_choice_may_stand_in_no_list(tmp_path: Path, accept: object, answer: str) -> None:
    options = [{"id": 1, "text": "good"}, {"id": 2, "text": "fair"}]
    path = written(tmp_path, {"text": "one", "options": options, "answer": "accept", "accept": accept, "_task_hash": 1})
    assert pairs(path) == [("one", answer)]


WHOLE: list[Row] = [
    {"data": {"text": "one"}, "annotations": [annotation("good")]},
    {"fields": {"text": "one"}, "responses": {"mood": [{"value": "good", "status": "submitted"}]}},
    {"text": "one", "answer": "accept", "accept": [1], "options": [{"id": 1, "text": "good"}], "_task_hash": 1},
    {"text": "one", "answer": "accept", "accept": [1], "label": "good", "_task_hash": 1},
    {"text": "one", "label": ["good"]},
    {"input": {"messages": [], "tools": []}, "preferred_output": [], "non_preferred_output": []},
    {"context": "one", "question": "two", "answers": {"text": ["good"], "answer_start": [1]}},
    {"context": "one", "question": "two", "answers": [{"text": "good"}]},
    {"prompt": {"text": "a", "role": "prompter", "replies": [{"text": "b", "role": "assistant", "rank": 0}]}},
]


def spoilt(value: Any) -> Iterator[Any]:
    """The value with each of its parts, one at a time, in place of which something else stands."""
    yield from (None, True, 7, 0.5, "", "x", [], [7], [{}], {}, {"x": {}})
    if isinstance(value, dict):
        for key in value:
            yield from ({**value, key: part} for part in spoilt(value[key]))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from ([*value[:number], part, *value[number + 1 :]] for part in spoilt(item))


def test_no_value_of_an_export_breaks_off_its_reading() -> None:
    read = 0
    for row in (row for whole in WHOLE for row in spoilt(whole) if isinstance(row, dict)):
        export = export_of([row])
        if export is not None:
            read += 1
            for fields in (export.fields, export.asked):
                with contextlib.suppress(LeftOutRow, RowError):
                    fields(row, {})
    assert read > 300


RECORD = {"id": "a", "status": "completed", "_server_id": "b", "metadata.team": "west", "text": "one"}


def responses(values: list[Any], states: list[str]) -> Row:
    """A record as `dataset.records.to_list(flatten=True)` and `to_datasets()` of Argilla 2 give it."""
    users = [f"user {number}" for number in range(len(values))]
    return {"label.responses": values, "label.responses.users": users, "label.responses.status": states}


def test_columns_of_argilla_give_the_submitted_response_and_suggestions_are_a_choice(tmp_path: Path) -> None:
    suggestion = {"label.suggestion": "bad", "label.suggestion.score": 0.6, "label.suggestion.agent": "a model"}
    path = written(
        tmp_path,
        {**RECORD, **responses(["good"], ["submitted"]), **suggestion},
        {**RECORD, **responses(["bad", "fair"], ["discarded", "submitted"]), **suggestion},
        {**RECORD, "label.responses": None, **suggestion},
    )
    assert pairs(path) == [("one", "good"), ("one", "fair")]
    assert "an export of Argilla's columns" in open_source(SourceSettings(path=str(path))).reason
    assert pairs(path, columns={"completion": "label.suggestion"}) == [("one", "bad")] * 3


def span(start: int, end: int, text: str, label: str) -> Row:
    return {"start": start, "end": end, "text": text, "labels": [label]}


def minimal(text: str, **answers: Any) -> Row:
    facts = {"annotator": 1, "annotation_id": 9, "created_at": "t", "updated_at": "t", "lead_time": 4.2}
    return {"text": text, "id": 3, **answers, **facts}


def test_spans_of_label_studio_become_the_texts_of_each_label(tmp_path: Path) -> None:
    spans = [span(0, 3, "Ann", "who"), span(9, 12, "Bob", "who"), span(16, 20, "Oslo", "where")]
    answer = '{"who": ["Ann", "Bob"], "where": ["Oslo"]}'
    assert pairs(written(tmp_path, minimal("Ann met Bob in Oslo", entities=spans))) == [("Ann met Bob in Oslo", answer)]
    regions = [{"from_name": "entities", "type": "labels", "value": value} for value in spans]
    assert pairs(written(tmp_path, task("Ann met Bob in Oslo", {"result": regions}))) == [
        ("Ann met Bob in Oslo", answer)
    ]


def test_a_rating_beside_a_response_is_a_choice_and_no_answer(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "one", "quality.responses": [4], "mood.responses": ["good"]})
    assert pairs(path) == [("one", "good")]
    assert pairs(path, columns={"completion": "quality"}) == [("one", "4")]


def test_spans_beside_a_choice_can_be_named(tmp_path: Path) -> None:
    regions = [{"from_name": "names", "type": "labels", "value": span(0, 3, "Ann", "who")}]
    path = written(tmp_path, task("Ann met Bob", {"result": [*annotation("good")["result"], *regions]}))
    assert pairs(path) == [("Ann met Bob", "good")]
    assert pairs(path, columns={"completion": "{names}"}) == [("Ann met Bob", '{"who": ["Ann"]}')]


@pytest.mark.parametrize("order", ["as written", "id first", "sorted", "no id"])
@pytest.mark.parametrize("answer", ["good", {"choices": ["good"]}], ids=str)
def test_json_min_is_read_whatever_the_order_of_its_columns(tmp_path: Path, order: str, answer: object) -> None:
    row = minimal("one", mood=answer)
    row = {
        "as written": row,
        "id first": {"id": 3, **row},
        "sorted": dict(sorted(row.items())),
        "no id": {name: value for name, value in row.items() if name != "id"},
    }[order]
    if order == "id first":
        assert next(iter(row)) == "id"
    path = written(tmp_path, row, row)
    assert pairs(path) == [("one", "good")] * 2


@pytest.mark.parametrize("ordered", [False, True], ids=["sorted", "as written"])
@pytest.mark.parametrize(
    ("given", "answers", "expected"),
    [
        ({"text": "one"}, {"mood": "good", "topic": "tea"}, ("one", "good")),
        ({"text": "one", "author": "Ann"}, {"mood": "good"}, ("one", None)),
        ({"ticket": "a longer one"}, {"queue": "tea"}, ("a longer one", "tea")),
        ({"text": "one"}, {"mood": {"choices": ["good"]}, "names": []}, ("one", "good")),
        ({"question": "one", "prompt": "a longer one"}, {"mood": "good"}, (None, None)),
    ],
    ids=str,
)
def test_what_json_min_does_not_say_is_asked_with_both_keys_and_the_remedy_opens_the_file(
    tmp_path: Path, ordered: bool, given: Row, answers: Row, expected: tuple[str | None, str | None]
) -> None:
    facts = {"annotator": 1, "annotation_id": 9, "lead_time": 4.2}
    row = {**given, "id": 3, **answers, **facts}
    path = written(tmp_path, row if ordered else dict(sorted(row.items())))
    remedy = str(refusal(path).remedy)
    named = re.search(r"--columns (?:'([^']*)'|(\S+))`", remedy)
    assert named is not None, remedy
    columns = dict(each.split("=", 1) for each in str(named[1] or named[2]).split(","))
    assert columns.keys() == {"prompt", "completion"}
    ((prompt, answer),) = pairs(path, columns=columns)
    assert prompt == (expected[0] or prompt)
    assert answer == (expected[1] or answer)
    if ordered and expected[0] is not None:
        assert answer == next(iter(answers.values())) or answer == "good"


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside the usual order"])
@pytest.mark.parametrize("answer", ["good", 0.5, {"choices": ["good"]}, ["good"]], ids=str)
def test_an_answer_before_the_id_may_be_data_so_it_is_asked_for_and_the_remedy_opens_the_file(
    tmp_path: Path, answer: object, others: int
) -> None:
    facts = {"annotator": 1, "annotation_id": 9}
    rows = [{"text": "one", "mood": answer, "id": 3, **facts}, {"text": "two", "mood": answer, "id": 4, **facts}]
    path = written(tmp_path, *rows, *[{"text": "three", "id": 5, "mood": answer, **facts}] * others)
    error = refusal(path)
    assert error.what == "the rows are an export of Label Studio (JSON-MIN), and mood may be their answer or not"
    assert f"2 of the first {2 + others} rows have nothing behind it" in str(error.why)
    remedy = str(error.remedy)
    named = re.search(r"if it is the answer, run `tunesmith init rows\.jsonl --columns '?([^`']*)'?`", remedy)
    assert named is not None, remedy
    columns = dict(each.split("=", 1) for each in named[1].split(","))
    answers = [answer for _, answer in pairs(path, columns=columns)]
    assert answers == [str(answer) if isinstance(answer, float) else "good"] * (2 + others)


def test_a_column_of_data_is_no_answer_where_others_have_theirs_behind_the_id(tmp_path: Path) -> None:
    row = {"text": "one", "score": 0.5, "id": 3, "annotator": 1, "annotation_id": 9}
    path = written(tmp_path, minimal("two", mood="good"), row)
    assert pairs(path) == [("two", "good")]


def test_a_column_that_is_named_for_one_field_is_not_taken_for_the_other(tmp_path: Path) -> None:
    path = written(tmp_path, {"ticket": "one", "queue": "tea", "annotator": 1, "annotation_id": 9})
    assert pairs(path, columns={"completion": "queue"}) == pairs(path, columns={"prompt": "ticket"}) == [("one", "tea")]


def test_answers_of_json_min_stand_in_columns(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        minimal("one", mood="good"),
        minimal("two", mood={"choices": ["bad"]}),
        minimal("three", mood=[{"rating": 4}]),
        minimal("four"),
    )
    assert pairs(path) == [("one", "good"), ("two", "bad"), ("three", "4")]
    several = written(tmp_path, minimal("one", mood="good", topic="tea"))
    assert "--columns prompt=text,completion=mood" in str(refusal(several).remedy)
    assert pairs(several, columns={"completion": "topic"}) == [("one", "tea")]
