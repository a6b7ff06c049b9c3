"""Files that are read without the newer exports, as they were before there were any: a matrix of columns.

What is expected is what commit 303c19d read, before Argilla's columns, JSON-MIN, spans, and decimal commas were known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.loading import load

from tunesmith.data.examples.example import Example
from tunesmith.data.files.prompt_rows import open_prompts
from tunesmith.data.files.reader import open_source
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

Row = dict[str, Any]
TURNS = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]
# Rows of each shape: its fields, and what is learned: (shape, the prompt's last turn, the answer, the other or label).
SHAPED: dict[str, tuple[Row, tuple[object, ...]]] = {
    "prompt and completion": (
        {"prompt": "ask", "completion": "say"},
        ("prompt_completion", "ask", "say", None),
    ),
    "a number as completion": (
        {"prompt": "ask", "completion": 3},
        ("prompt_completion", "ask", "3", None),
    ),
    "instruction and output": (
        {"instruction": "ask", "output": "say"},
        ("alpaca", "ask", "say", None),
    ),
    "instruction, input and output": (
        {"instruction": "ask", "input": "this", "output": "say"},
        ("alpaca", "ask\n\nthis", "say", None),
    ),
    "preference": (
        {"prompt": "ask", "chosen": "say", "rejected": "no"},
        ("preference", "ask", "say", "no"),
    ),
    "messages": (
        {"messages": TURNS},
        ("messages", "ask", "say", None),
    ),
    "conversations": (
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
        ("sharegpt", "ask", "say", None),
    ),
    "a judged answer": (
        {"prompt": "ask", "completion": "say", "label": True},
        ("prompt_completion", "ask", "say", None),
    ),
}
# Columns beside them, as they were found.
BESIDE: dict[str, Row] = {
    "nothing": {},
    "annotator": {"annotator": "Ann", "annotation_id": 7},
    "an id and annotator": {"id": 3, "annotator": 1, "annotation_id": 7, "lead_time": 2.5},
    "a quality": {"quality.responses": [4]},
    "a rating of nobody": {"rating.responses": None},
    "a rating in words": {"rating.responses": ["good"], "rating.responses.status": ["submitted"]},
    "a suggestion": {"status": "pending", "mood.suggestion": "good"},
    "both": {"annotator": "Ann", "annotation_id": 7, "quality.responses": [4]},
}


def written(tmp_path: Path, *rows: Row) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def source(path: str, **settings: Any) -> SourceSettings:
    return SourceSettings.model_validate({"path": path, **settings})


def learned(example: Example) -> tuple[object, ...]:
    other = example.rejected.content if example.rejected else example.label
    return (example.messages[-2].content, example.answer(), other)


def pairs(path: str, **settings: Any) -> list[tuple[object, ...]]:
    return [learned(example)[:2] for example in load(source(path, **settings)).examples]


def refused(path: str, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        open_source(source(path, **settings))
    return caught.value


@pytest.mark.parametrize("first", [True, False], ids=["shape first", "shape last"])
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("shaped", SHAPED)
def test_rows_with_the_fields_of_a_shape_keep_it(tmp_path: Path, shaped: str, beside: str, first: bool) -> None:
    fields, (shape, *expected) = SHAPED[shaped]
    row = {**fields, **BESIDE[beside]} if first else {**BESIDE[beside], **fields}
    path = written(tmp_path, row, row)
    loaded = load(source(path))
    assert loaded.shape == shape
    assert [learned(example) for example in loaded.examples] == [tuple(expected)] * 2
    assert "an export" not in loaded.reason
    assert [learned(each) for each in load(source(path, format=shape)).examples] == [tuple(expected)] * 2
    rows = [
        found[1]
        for found in open_prompts(source(path), wanted=str(shape), instruction=None).rows()
        if type(found) is tuple
    ]
    assert [each.messages[-1].content for each in rows if isinstance(each, Example)] == [expected[0]] * 2


@pytest.mark.parametrize("beside", BESIDE)
def test_rows_whose_columns_are_named_keep_their_fields(tmp_path: Path, beside: str) -> None:
    row = {"question": "ask", "answer": "say", "quality": "mine", **BESIDE[beside]}
    path = written(tmp_path, row)
    assert pairs(path, columns={"prompt": "question", "completion": "answer"}) == [("ask", "say")]
    assert pairs(path, columns={"prompt": "question", "completion": "quality"}) == [("ask", "mine")]
    named = {"input": "question", "output": "answer"}
    assert pairs(path, columns=named, instruction="Do.") == [("Do.\n\nask", "say")]
    named = {"prompt": "question", "chosen": "answer", "rejected": "quality"}
    assert load(source(path, columns=named)).shape == "preference"
    text = load(source(path, columns={"text": "question"}))
    assert (text.shape, text.examples[0].text) == ("text", "ask")


@pytest.mark.parametrize("beside", [name for name in BESIDE if name != "nothing"])
def test_a_question_and_its_answer_are_proposed_whoever_has_judged_them(tmp_path: Path, beside: str) -> None:
    error = refused(written(tmp_path, {"question": "ask", "answer": "say", **BESIDE[beside]}))
    assert error.what == "the shape of the rows is not known"
    assert "data.columns: {prompt: question, completion: answer}" in str(error.remedy)


@pytest.mark.parametrize("beside", [name for name in BESIDE if name not in ("nothing", "a rating in words")])
def test_ratings_are_never_learned(tmp_path: Path, beside: str) -> None:
    path = written(tmp_path, {"prompt": "ask", **BESIDE[beside]})
    assert "4" not in str(refused(path).remedy)
    text = written(tmp_path, {"text": "ask", "quality.responses": [4], "quality.responses.status": ["submitted"]})
    assert refused(text).what.startswith("ambiguous: is `text` raw text")


def test_a_format_that_is_named_is_followed(tmp_path: Path) -> None:
    for beside in BESIDE.values():
        path = written(tmp_path, {"text": "ask", "mood": "good", **beside})
        assert [each.text for each in load(source(path, format="text")).examples] == ["ask"]
        assert "no row has the field 'prompt'" in refused(path, format="prompt_completion").what


def test_labels_of_doccano_stay_its_own_beside_an_annotator(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "ask", "label": ["good"], **BESIDE["annotator"]})
    assert (pairs(path), "an export of doccano" in load(source(path)).reason) == ([("ask", "good")], True)


def region(name: str, kind: str, **value: Any) -> Row:
    return {"from_name": name, "type": kind, "value": value}


@pytest.mark.parametrize("first", ["the choice", "the spans"])
def test_spans_beside_a_choice_are_no_answer(tmp_path: Path, first: str) -> None:
    regions = [
        region("mood", "choices", choices=["pos"]),
        region("names", "labels", start=0, end=3, text="Ann", labels=["who"]),
    ]
    result = regions if first == "the choice" else regions[::-1]
    row = {"data": {"text": "Ann met Bob"}, "annotations": [{"result": result}]}
    path = written(tmp_path, row)
    assert pairs(path) == [("Ann met Bob", "pos")]
    own = written(tmp_path, {**row, "data": {"text": "Ann met Bob", "names": "a list"}})
    assert pairs(own, columns={"prompt": "text", "completion": "names"}) == [("Ann met Bob", "a list")]


def test_classes_without_names_keep_their_numbers(tmp_path: Path) -> None:
    kind = {"names": [], "_type": "ClassLabel"}
    expected = [("one", "1"), ("two", "0")]
    columns = {"prompt": "text", "completion": "label"}
    features = [{"name": "text", "type": {"dtype": "string", "_type": "Value"}}, {"name": "label", "type": kind}]
    rows = [{"row_idx": n, "row": {"text": t, "label": int(v)}} for n, (t, v) in enumerate(expected)]
    viewer = tmp_path / "viewer.json"
    viewer.write_text(json.dumps({"features": features, "rows": rows}))
    assert pairs(str(viewer), columns=columns) == expected
    table = pa.table({"text": ["one", "two"], "label": [1, 0]})
    metadata = json.dumps({"info": {"features": {"label": kind}}})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "rows.parquet")
    assert pairs(str(tmp_path / "rows.parquet"), columns=columns) == expected


def test_a_table_is_cut_at_commas_between_words(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a|b,c|d\ne|f,g|h\n")
    columns = {"prompt": "column1", "completion": "column2"}
    assert pairs(str(path), header=False, columns=columns)[0] == ("a|b", "c|d")
