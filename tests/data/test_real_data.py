"""Public data as people hand it over; skipped where the folder is absent (TUNESMITH_SHARED_DATA, or ../shared/data)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunesmith.data.formats import FORMATS
from tunesmith.data.read import load, own_eval_split
from tunesmith.data.rows import BadRow, Row
from tunesmith.errors import DataError
from tunesmith.recipe import SourceSettings


@pytest.fixture(scope="module")
def shared() -> Path:
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("TUNESMITH_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the shared data are not here")
    return folder


def outcome(suffix: str, data: bytes) -> str:
    """good: every row can be used; bad: some cannot; error: nor can the file."""
    try:
        rows: list[Row | BadRow] = list(FORMATS[suffix](data, "f"))
    except DataError:
        return "error"
    return "good" if rows and all(isinstance(row, Row) for row in rows) else "bad"


def test_instructions_are_alpaca_and_the_last_row_has_its_line(shared: Path):
    path = shared / "instruct" / "instruction-data.json"
    loaded = load(SourceSettings(path=str(path)))
    assert (len(loaded.examples), loaded.shape) == (1100, "alpaca")
    last = loaded.examples[-1]
    line = int(last.source.rpartition(":")[2])
    assert path.read_text().splitlines()[line - 1].strip() == "{"
    assert f'"output": "{last.messages[1].content}"' in "\n".join(path.read_text().splitlines()[line : line + 4])


def test_banking77_has_its_own_test_split_and_every_row(shared: Path):
    columns = {"input": "text", "output": "category"}
    source = SourceSettings(path=str(shared / "banking77"), columns=columns, instruction="Name the intent.")
    assert own_eval_split(source) == "test"
    assert len(load(source).examples) == 10_003
    assert len(load(source, role="eval").examples) == 3_080


def test_comments_before_the_array_are_named(shared: Path):
    with pytest.raises(DataError, match="JSON has no comments") as caught:
        load(SourceSettings(path=str(shared / "restaurant" / "train.json")))
    assert str(caught.value.where).endswith("train.json:1")


def test_rows_that_are_lists_are_said_to_be_lists(shared: Path, tmp_path: Path):
    text = (shared / "restaurant" / "train.json").read_text()
    (tmp_path / "train.json").write_text(text[text.index("[") :])
    with pytest.raises(DataError, match="3,114 of 3,114 rows cannot be used") as caught:
        load(SourceSettings(path=str(tmp_path / "train.json")))
    assert "found a list of 3, expected an object with named fields" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "outcomes"), [("y", {"good"}), ("n", {"bad", "error"}), ("i", {"good", "bad", "error"})]
)
def test_json_is_read_as_the_json_test_suite_says_and_never_ends_in_a_traceback(
    shared: Path, kind: str, outcomes: set[str]
):
    files = sorted((shared / "hostile" / "json").glob(f"{kind}_*.json"))
    assert len(files) > 30
    for file in files:
        data = file.read_bytes()
        wrapped = b'[{"text": ' + data + b"}]"
        allowed = {"bad"} if "duplicated_key" in file.name else outcomes
        assert outcome(".json", wrapped) in allowed, file.name
        if b"\n" not in data:
            assert outcome(".jsonl", wrapped[1:-1]) in allowed, file.name
        for suffix in (".csv", ".tsv", ".txt"):
            assert outcome(suffix, b"text\n" + data) in {"good", "bad", "error"}


def test_lines_of_invalid_utf_8_are_bad_rows_with_their_numbers(shared: Path):
    data = (shared / "hostile" / "utf8tests.bin").read_bytes()
    rows = list(FORMATS[".txt"](data, "f"))
    invalid = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            invalid.append(f"f:{number}")
    assert len(invalid) > 50
    assert [row.source for row in rows if isinstance(row, BadRow)] == invalid


def test_naughty_strings_come_through_unchanged(shared: Path, tmp_path: Path):
    import json

    naughty = [text for text in json.loads((shared / "hostile" / "blns.json").read_text()) if text.strip()]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text, "completion": text}) for text in naughty))
    loaded = load(SourceSettings(path=str(path)))
    assert [example.messages[1].content for example in loaded.examples] == naughty
