"""JSON files as programs write them: rows under a key, columns, objects over several lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.loading import load

from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.files.reader import Reader, open_source
from tunesmith.data.files.rows import Row
from tunesmith.data.survey import survey_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings, SourceSettings

ROWS = [{"prompt": f"q{number}", "completion": f"a{number}"} for number in range(4)]


def opened(path: Path, content: Any, **settings: Any) -> Reader:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return open_source(SourceSettings(path=str(path), **settings))


def rows_of(reader: Reader) -> list[dict[str, Any]]:
    return [row.fields for part in reader.parts for row in part.rows() if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"data": ROWS, "meta": {"total": 4}}, "the rows under the key data"),
        ({"features": [{"name": "prompt"}], "rows": [{"row_idx": 0, "row": row} for row in ROWS]}, "the key rows"),
        ({"prompt": ["q0", "q1", "q2", "q3"], "completion": ["a0", "a1", "a2", "a3"]}, "an object of columns"),
        ({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}, "an object of columns"),
        ({f"row {n}": row for n, row in enumerate(ROWS)}, "the object under each key is a row"),
        ({str(n): row for n, row in enumerate(ROWS[:2])}, "the object under each key is a row"),
        (
            {"columns": [*ROWS[0]], "index": [0, 1, 2, 3], "data": [[*row.values()] for row in ROWS]},
            "columns, index and data, as pandas splits them",
        ),
        ("".join(json.dumps(row, indent=2) + "\n" for row in ROWS), "objects over several lines"),
        ("".join(json.dumps(row) + "\n" for row in ROWS), "one object a line"),
    ],
)
def test_a_json_file_of_another_layout_gives_its_rows_and_says_so(tmp_path: Path, content: Any, said: str):
    reader = opened(tmp_path / "r.json", content)
    found = rows_of(reader)
    assert found == ROWS[: len(found)] and len(found) >= min(len(ROWS), len(content))
    assert said in reader.reason


def test_jsonl_files_may_hold_an_array_or_objects_over_several_lines(tmp_path: Path):
    for content in (json.dumps(ROWS, indent=1), "".join(json.dumps(row, indent=2) + "\n" for row in ROWS)):
        assert rows_of(opened(tmp_path / "r.jsonl", content)) == ROWS


def test_rows_under_a_key_have_the_line_they_begin_on_and_rows_of_one_line_their_number(tmp_path: Path):
    lines = list(opened(tmp_path / "r.json", '{"data": [\n{"text": "a"},\n{"text": "b"}]}').parts[0].rows())
    assert [row.source.rpartition(":")[2] for row in lines] == ["2", "3"]
    numbered = list(opened(tmp_path / "r.json", ROWS).parts[0].rows())
    assert [row.source.rpartition(":")[2] for row in numbered] == ["1", "2", "3", "4"]


def test_several_keys_with_rows_are_refused_and_the_named_key_is_read(tmp_path: Path):
    content = {"good": ROWS[:1], "other": ROWS[1:]}
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "r.json", content)
    assert caught.value.remedy == "set data.key: good, or another of them"
    assert rows_of(opened(tmp_path / "r.json", content, key="other")) == ROWS[1:]
    with pytest.raises(DataError, match="no array of rows under the key 'god'"):
        opened(tmp_path / "r.json", content, key="god")


def test_train_and_test_in_one_file_are_its_splits(tmp_path: Path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"train": ROWS[1:], "test": ROWS[:1]}))
    found = survey_rows(DataSettings.model_validate({"train": str(path)}), seed=0)
    assert [(each.side, each.rows.stop - each.rows.start) for each in found.scan.sources] == [("train", 3), ("eval", 1)]
    assert len(load(SourceSettings(path=str(path), split="test")).examples) == 1


def test_columns_of_unequal_length_are_one_error(tmp_path: Path):
    with pytest.raises(DataError, match="do not have the same rows"):
        opened(tmp_path / "r.json", {"prompt": ["a", "b"], "completion": ["c"]})


def test_class_labels_of_the_hubs_viewer_become_their_names(tmp_path: Path):
    features = [
        {"feature_idx": 0, "name": "text", "type": {"dtype": "string", "_type": "Value"}},
        {"feature_idx": 1, "name": "label", "type": {"names": ["neg", "pos"], "_type": "ClassLabel"}},
    ]
    labels = [1, 0, -1, True]
    rows = [{"row_idx": n, "row": {"text": f"t{n}", "label": each}} for n, each in enumerate(labels)]
    reader = opened(
        tmp_path / "r.json", {"features": features, "rows": rows}, columns={"prompt": "text", "completion": "label"}
    )
    assert [row["label"] for row in rows_of(reader)] == ["pos", "neg", None, True]
    assert "label: each number is replaced by the name of its class (neg, pos)" in reader.reason
    plain = opened(
        tmp_path / "p.json", {"features": features[:1], "rows": rows}, columns={"prompt": "text", "completion": "label"}
    )
    assert [row["label"] for row in rows_of(plain)] == labels


def test_an_object_of_texts_is_asked_about_and_one_row_is_none(tmp_path: Path):
    faq = {"When does it open?": "At nine.", "Where is it?": "In Lyon.", "Who runs it?": "Pia."}
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "r.json", faq)
    proposal = caught.value.proposal
    assert proposal is not None and proposal.columns == {"prompt": "key", "completion": "value"}
    assert proposal.samples[0] == "When does it open? -> At nine."
    reader = opened(tmp_path / "r.json", faq, columns=dict(proposal.columns))
    assert rows_of(reader) == [{"key": key, "value": value} for key, value in faq.items()]
    assert "an object of 3 texts: each is a row with the columns key and value" in reader.reason
    with pytest.raises(DataError, match="must hold one array of rows"):
        opened(tmp_path / "r.json", {"id": "1", "prompt": "q", "completion": "a"})
