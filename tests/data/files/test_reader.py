"""Sources of every kind become examples with file and line, or one clear message."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from tests.data.loading import Loaded, load

from tunesmith.data.files.reader import own_eval_split
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def source(path: object, **settings: Any) -> SourceSettings:
    return SourceSettings(path=str(path), **settings)


def pairs(loaded: Loaded) -> list[tuple[str, str]]:
    return [(example.messages[0].content, example.messages[-1].content) for example in loaded.examples]


def refused(path: object, *, role: Any = "train", on_error: Any = "stop", **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(source(path, **settings), role=role, on_error=on_error)
    return caught.value


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("r.jsonl", LINES, [1, 2]),
        ("r.ndjson", LINES, [1, 2]),
        ("r.JSONL", LINES, [1, 2]),
        ("r.json", json.dumps(ROWS, indent=1), [2, 6]),
        ("r.csv", "prompt,completion\na,b\nc,d\n", [2, 3]),
        ("r.tsv", "prompt\tcompletion\na\tb\nc\td\n", [2, 3]),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), [1, 2]),
        ("r.jsonl.bz2", bz2.compress(LINES.encode()), [1, 2]),
        ("r.csv.xz", lzma.compress(b"prompt,completion\na,b\nc,d\n"), [2, 3]),
    ],
)
def test_files_of_every_format_give_the_same_rows(tmp_path: Path, name: str, content: str | bytes, lines: list[int]):
    path = write(tmp_path / name, content)
    loaded = load(source(path))
    assert pairs(loaded) == [("a", "b"), ("c", "d")]
    assert [example.source for example in loaded.examples] == [f"{path}:{line}" for line in lines]
    assert loaded.files == [(str(path), hashlib.sha256(path.read_bytes()).hexdigest())]
    assert (loaded.shape, loaded.reason) == ("prompt_completion", "columns prompt, completion -> prompt_completion")


def test_parquet_rows_are_counted_from_1(tmp_path: Path):
    path = write_parquet(tmp_path / "r.parquet", ROWS)
    assert [example.source for example in load(source(path)).examples] == [f"{path}:1", f"{path}:2"]


def test_a_line_of_a_txt_file_is_a_document(tmp_path: Path):
    path = write(tmp_path / "r.txt", "Once.\r\n\n  \nTwice.")
    loaded = load(source(path))
    assert [(example.text, example.source) for example in loaded.examples] == [
        ("Once.", f"{path}:1"),
        ("Twice.", f"{path}:4"),
    ]
    assert loaded.shape == "text"


def test_a_document_of_a_txt_file_is_what_sample_by_says(tmp_path: Path):
    path = write(tmp_path / "r.txt", "\ufeffOnce\r\nupon.\r\n \t\r\n\r\n\nA time\n\n\nThe\nend\n")
    expected = {
        "line": [("Once", 1), ("upon.", 2), ("A time", 6), ("The", 9), ("end", 10)],
        "paragraph": [("Once\nupon.", 1), ("A time", 6), ("The\nend", 9)],
        "document": [("Once\nupon.\n \t\n\n\nA time\n\n\nThe\nend", 1)],
    }
    for sample_by, rows in expected.items():
        loaded = load(source(path, sample_by=sample_by))
        assert [(example.text, example.source) for example in loaded.examples] == [
            (text, f"{path}:{line}") for text, line in rows
        ], sample_by
        assert loaded.files == [(str(path), hashlib.sha256(path.read_bytes()).hexdigest())]


@pytest.mark.parametrize("sample_by", ["paragraph", "document"])
def test_what_a_document_is_does_not_depend_on_where_the_file_is_cut(
    tmp_path: Path, sample_by: str, monkeypatch: pytest.MonkeyPatch
):
    text = "".join("word " * (n % 7) + "\n" * (1 + n % 3) + " \n" * (n % 5 == 0) for n in range(200))
    path = write(tmp_path / "r.txt.gz", gzip.compress(text.encode()))
    whole = load(source(path, sample_by=sample_by)).examples
    assert len(whole) > 50 or sample_by == "document"
    for size in (1, 7, 50):
        monkeypatch.setattr("tunesmith.data.files.rows.BLOCK_BYTES", size)
        assert load(source(path, sample_by=sample_by)).examples == whole


def test_a_folder_of_texts_is_a_document_a_file(tmp_path: Path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.txt", f"{name}\n\n{name}\n")
    empty = write(tmp_path / "empty.txt", "\n \n")
    error = refused(empty, sample_by="document")
    assert (error.what, error.where) == ("there are no rows in it", f"{tmp_path}/empty.txt")
    loaded = load(source(tmp_path, sample_by="document"))
    assert [example.text for example in loaded.examples] == ["a\n\na", "b\n\nb"]
    assert loaded.ignored == ["empty.txt"]


def test_bad_bytes_of_a_document_are_named_with_their_line(tmp_path: Path):
    path = write(tmp_path / "r.txt", b"on\xc3\xa9\n\ntwo\nthr\xffee\n\nfour")
    loaded = load(source(path, sample_by="paragraph"), on_error="skip")
    assert [example.text for example in loaded.examples] == ["oné", "four"]
    (bad,) = loaded.bad
    found = "the byte 0xff at byte 4 of the line, line 2 of the document"
    assert (bad.source, bad.found, bad.raw) == (f"{path}:3", found, "thr\\xffee")


def test_a_document_that_is_too_large_is_one_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tunesmith.data.files.rows.LARGEST_ROW", 3_000_000)
    path = write(tmp_path / "r.txt", "x" * 100 + "\n")
    assert len(load(source(path, sample_by="document")).examples) == 1
    path.write_bytes(b"x" * 99 + b"\n" + b"y\n" * 2_000_000)
    for sample_by, remedy in (("document", "sample_by: paragraph"), ("paragraph", "blank line")):
        error = refused(path, sample_by=sample_by)
        assert (error.what, error.where) == ("a row of more than 2 MB", f"{path}:1")
        assert remedy in str(error.remedy)


def test_sample_by_has_no_meaning_without_a_txt_file(tmp_path: Path):
    error = refused(write(tmp_path / "r.jsonl", LINES), sample_by="document")
    assert "data.sample_by: document says what a document of a text file is, and there is none" in error.what
    assert "sample_by: document" in str(error.remedy)


def test_messages_keep_their_tool_calls_through_parquet_without_the_nulls_of_other_rows(tmp_path: Path):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": null}'}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "1"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "2", "tool_call_id": "c"},
                {"role": "assistant", "content": "3"},
            ],
            "tools": [{"name": "f"}, {"name": "g", "strict": True}],
        },
    ]
    example = load(source(write_parquet(tmp_path / "r.parquet", rows))).examples[0]
    assert example.messages[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": None}}
    assert example.messages[0].to_template() == {"role": "user", "content": "1"}
    assert example.tools == ({"name": "f"}, {"name": "g", "strict": True})


def test_a_folder_is_all_its_files_in_the_order_of_names(tmp_path: Path):
    write(tmp_path / "b.csv", "prompt,completion\n3,4\n")
    write(tmp_path / "a.jsonl", LINES)
    write(tmp_path / ".hidden.jsonl", "{")
    write(tmp_path / "README.md", "# rows")
    write(tmp_path / "more" / "c.jsonl", LINES)
    loaded = load(source(f"{tmp_path}/"))
    assert pairs(loaded) == [("a", "b"), ("c", "d"), ("3", "4")]
    assert [name for name, _ in loaded.files] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b.csv"]
    assert loaded.ignored == [".hidden.jsonl", "README.md", "more"]


def test_a_folder_with_files_for_training_and_for_evaluation_gives_each_role_its_own(tmp_path: Path):
    write(tmp_path / "train-00000-of-00002.jsonl", LINES)
    write(tmp_path / "train-00001-of-00002.jsonl", '{"prompt": "e", "completion": "f"}')
    write(tmp_path / "test.jsonl", '{"prompt": "x", "completion": "y"}')
    write(tmp_path / "labels.json", "[]")
    train = load(source(tmp_path))
    assert pairs(train) == [("a", "b"), ("c", "d"), ("e", "f")]
    assert (train.split, train.ignored) == ("train", ["labels.json"])
    assert pairs(load(source(tmp_path), role="eval")) == [("x", "y")]
    assert pairs(load(source(tmp_path, split="test"))) == [("x", "y")]
    assert own_eval_split(source(tmp_path)) == "test"
    assert refused(tmp_path, split="tset").remedy == "did you mean test?"


def test_validation_serves_evaluation_before_test(tmp_path: Path):
    for name in ("train", "test", "validation"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"prompt": name, "completion": "x"}))
    assert load(source(tmp_path), role="eval").split == own_eval_split(source(tmp_path)) == "validation"
    assert load(source(tmp_path), role="test").split == "test"


def test_a_folder_with_only_evaluation_files_is_read_for_any_role(tmp_path: Path):
    write(tmp_path / "test.jsonl", LINES)
    assert len(load(source(tmp_path), role="train").examples) == 2
    assert own_eval_split(source(tmp_path)) is None


def test_files_of_two_shapes_in_one_folder_are_refused(tmp_path: Path):
    write(tmp_path / "a.jsonl", LINES)
    write(tmp_path / "b.jsonl", '{"instruction": "a", "output": "b"}')
    assert refused(tmp_path).what == "the rows fit more than one shape: alpaca and prompt_completion"


def test_a_mapped_csv_with_one_instruction_for_all_rows(tmp_path: Path):
    path = write(tmp_path / "train.csv", 'text,category\n"Where, please?",card_arrival\n')
    settings = {"columns": {"input": "text", "output": "category"}, "instruction": "Name the intent."}
    loaded = load(source(path, **settings))
    assert pairs(loaded) == [("Name the intent.\n\nWhere, please?", "card_arrival")]
    assert loaded.reason == "columns text (input), category (output) -> alpaca"


def test_a_shape_named_in_the_recipe_is_taken(tmp_path: Path):
    path = write(tmp_path / "r.csv", "text,category\nOnce.,x\n")
    loaded = load(source(path, format="text"))
    assert (loaded.examples[0].text, loaded.reason) == ("Once.", "data.format: text")


def test_a_first_row_that_is_bad_does_not_decide_the_shape(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", '{"prompt": "a"}\n' + LINES)
    assert load(source(path), on_error="skip").shape == "prompt_completion"


def test_a_mistyped_column_is_one_error_that_names_the_columns(tmp_path: Path):
    path = write(tmp_path / "r.csv", "text,category\n" + "a,b\n" * 50)
    error = refused(path, columns={"input": "txt", "output": "category"}, instruction="x")
    assert error.where == str(path)
    assert "there is no column 'txt'" in error.what
    assert "text, category" in str(error.why) and "did you mean text?" in str(error.remedy)


def bad_file(tmp_path: Path) -> Path:
    rows = ["{", '{"prompt": "a", "completion": "b"}', '{"prompt": "a", "completion": null}', '{"prompt": "a"}']
    return write(tmp_path / "r.jsonl", "\n".join(rows))


def test_bad_rows_stop_with_all_of_them_found_first(tmp_path: Path):
    path = bad_file(tmp_path)
    error = refused(path)
    assert error.what == "3 of 4 rows cannot be used"
    assert str(error.why).splitlines() == [
        f"{path}:1: row: found not JSON: Expecting property name enclosed in double quotes at column 2 (byte 2), "
        "expected one JSON object on the line",
        f"{path}:3: completion: found null, expected a text",
        f"{path}:4: completion: found no such field, expected a text",
    ]
    assert "data.on_error: skip" in str(error.remedy)


def test_bad_rows_can_be_set_aside_and_come_back_with_their_text(tmp_path: Path):
    path = bad_file(tmp_path)
    loaded = load(source(path), on_error="skip")
    assert pairs(loaded) == [("a", "b")]
    assert [(bad.source, bad.field, bad.raw) for bad in loaded.bad] == [
        (f"{path}:1", "row", "{"),
        (f"{path}:3", "completion", '{"prompt": "a", "completion": null}'),
        (f"{path}:4", "completion", '{"prompt": "a"}'),
    ]


def test_the_field_of_a_bad_row_is_the_files_own_column(tmp_path: Path):
    path = write(tmp_path / "r.csv", "q,a\nx,y\nx,\n")
    loaded = load(source(path, columns={"prompt": "q", "completion": "a"}), on_error="skip")
    assert [(bad.field, bad.found) for bad in loaded.bad] == [("a", "an empty text")]


def test_only_the_first_ten_reasons_for_bad_rows_are_shown(tmp_path: Path):
    numbers = "".join(f'{{"prompt": {number}, "completion": "b"}}\n' for number in range(25))
    path = write(tmp_path / "r.jsonl", LINES + numbers)
    lines = str(refused(path).why).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and rows with 15 other reasons"


@pytest.mark.parametrize("content", ['{"prompt": "a", "completion": " "}\n' * 3, "{\n[1]\n"])
def test_no_good_row_stops_even_when_bad_rows_are_set_aside(tmp_path: Path, content: str):
    error = refused(write(tmp_path / "r.jsonl", content), on_error="skip")
    assert "rows cannot be used" in error.what
    assert error.remedy == "correct the rows"


def test_half_a_character_is_a_bad_row_whose_text_can_be_written(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", LINES + r'{"prompt": "\ud800é", "completion": "b"}')
    bad = load(source(path), on_error="skip").bad[0]
    assert bad.source == f"{path}:3"
    assert bad.raw == '{"prompt": "\\ud800é", "completion": "b"}'
    assert "lone surrogate" in bad.found


def test_a_row_too_deep_to_write_is_a_bad_row(tmp_path: Path):
    deep = '{"messages": ' + '[{"a":' * 450 + "1" + "}]" * 450 + "}"
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    loaded = load(source(write(tmp_path / "r.jsonl", f"{good}\n{deep}")), on_error="skip")
    assert [bad.source.rpartition(":")[2] for bad in loaded.bad] == ["2"]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("r.jsonl", "", "there are no rows in it"),
        ("r.csv", "prompt,completion\n", "there are no rows in it"),
        ("r.json", "[]", "there are no rows in it"),
        ("r.txt", "\n \n", "there are no rows in it"),
        ("r.parquet", "PAR1", "the parquet file cannot be read"),
        ("r.jsonl.gz", "no gzip", "the .gz file is damaged"),
        ("r.jsonl.bz2", bz2.compress(b"{}")[:-3], "the .bz2 file is damaged"),
        ("r.docx", "PK", ".docx files are not supported"),
        ("r.xlsx", "PK", "the .xlsx file cannot be read"),
        ("r.ods", "PK", "the .ods file cannot be read"),
        ("rows", "{}", "the file's name has no ending"),
    ],
)
def test_a_file_without_rows_or_of_another_format_is_one_error(
    tmp_path: Path, name: str, content: str | bytes, what: str
):
    path = write(tmp_path / name, content)
    error = refused(path)
    assert (error.what, error.where) == (what, str(path))


def test_a_missing_file_names_its_neighbours(tmp_path: Path):
    write(tmp_path / "tickets.jsonl", LINES)
    write(tmp_path / ".hidden", "")
    error = refused(tmp_path / "tikets.jsonl")
    assert error.what == "there is no such file or folder"
    assert error.why == f"the folder {tmp_path} holds tickets.jsonl"
    assert error.remedy == "did you mean tickets.jsonl?"
    for number in range(29):
        write(tmp_path / f"other {number}.txt", "")
    error = refused(tmp_path / "tikets.jsonl")
    assert f"the folder {tmp_path} holds tickets.jsonl, " in str(error.why)
    assert str(error.why).endswith(" and 24 others") and str(error.why).count("other ") == 5
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert refused(tmp_path / "link.jsonl").what == "this link leads nowhere"
    assert "is not there" in str(refused(tmp_path / "nowhere" / "tickets.jsonl").why)


def test_a_relative_path_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "r.jsonl", LINES)
    assert load(source("data/r.jsonl")).examples[1].source == "data/r.jsonl:2"
    assert load(source("data")).examples[1].source == "data/r.jsonl:2"
    assert refused("r.jsonl").why == "the folder you are in holds data"


def test_an_empty_folder_is_one_error(tmp_path: Path):
    write(tmp_path / "notes.pdf", "x")
    assert str(refused(tmp_path).why).startswith("it holds notes.pdf")


def test_split_and_name_have_no_meaning_for_a_file(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", LINES)
    assert refused(path, split="train").what == "a file has no splits"
    assert "configuration" in refused(path, name="en").what
    assert refused(tmp_path, split="train").what == "the files of this folder are not named for splits"


def test_urls_of_files_and_folders_are_read_through_fsspec(tmp_path: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/rows/a.jsonl", LINES.encode())
    memory.pipe("/rows/b.csv.gz", gzip.compress(b"prompt,completion\ne,f\n", mtime=0))
    memory.pipe("/rows/README.md", b"x")
    try:
        one = load(source("memory://rows/a.jsonl"))
        assert one.examples[1].source == "memory://rows/a.jsonl:2"
        assert one.files == [("memory://rows/a.jsonl", hashlib.sha256(LINES.encode()).hexdigest())]
        folder = load(source("memory://rows"))
        assert pairs(folder) == [("a", "b"), ("c", "d"), ("e", "f")]
        assert folder.ignored == ["README.md"]
        assert refused("memory://rows/aa.jsonl").remedy == "did you mean a.jsonl?"
    finally:
        memory.rm("/rows", recursive=True)
    path = write(tmp_path / "r.jsonl", LINES)
    assert load(source(f"file://{path}")).examples[0].source == f"file://{path}:1"


def test_the_ending_of_a_url_is_that_of_its_path_and_rows_do_not_name_its_query():
    import fsspec

    url = "memory://signed/r.jsonl?token=abc.123"
    with fsspec.open(url, "w") as file:
        cast("Any", file).write('{"prompt": "a", "completion": "b"}\n')
    (example,) = load(source(url)).examples
    assert example.source == "memory://signed/r.jsonl:1"


@pytest.mark.parametrize("url", ["nosuch://bucket/r.jsonl", "memory://nothing/r.jsonl"])
def test_a_url_that_leads_nowhere_is_one_error(url: str):
    assert refused(url).where == url


def test_a_file_that_may_not_be_read_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fsspec.implementations.local import LocalFileSystem

    def denied(self: object, path: str, mode: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    path = write(tmp_path / "r.jsonl", LINES)
    monkeypatch.setattr(LocalFileSystem, "open", denied)
    error = refused(path)
    assert "Permission denied" in str(error.why)
    assert error.remedy == "check that you may read it"


def test_a_dataset_saved_without_splits_has_its_labels_by_name(tmp_path: Path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    saved = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "r.parquet")
    for path in (tmp_path / "saved", tmp_path / "r.parquet"):
        loaded = load(source(path, columns={"prompt": "text", "completion": "label"}), on_error="skip")
        assert pairs(loaded) == [("a", "yes"), ("b", "no")]
        assert [str(bad) for bad in loaded.bad] == [f"{path}:3: label: found null, expected a text"]
    assert own_eval_split(source(tmp_path / "saved")) is None
    assert refused(tmp_path / "saved", split="train").what == "this dataset was saved without splits"


def test_a_saved_dataset_dict_gives_each_role_its_own_split(tmp_path: Path):
    from datasets import Dataset, DatasetDict

    path = tmp_path / "saved"
    splits = {"train": ROWS, "test": [{"prompt": "x", "completion": "y"}]}
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(path)
    train = load(source(path))
    assert (train.split, train.examples[1].source) == ("train", f"{path}:train:2")
    assert train.files == load(source(path)).files
    assert pairs(load(source(path), role="eval")) == [("x", "y")]
    assert own_eval_split(source(path)) == "test"
    assert own_eval_split(source(path, split="test")) is None
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "one")
    assert load(source(tmp_path / "one")).split == "test"
    assert own_eval_split(source(tmp_path / "one")) is None
    assert refused(path, split="validation").why == "the splits are train, test"


def test_json_columns_of_a_saved_dataset_are_decoded(tmp_path: Path):
    from datasets import Dataset, Features, Json, List

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tools = [{"name": "f", "parameters": {"default": None}}]
    features = Features({"messages": List(Json()), "tools": List(Json())})
    Dataset.from_list([{"messages": turns, "tools": tools}], features=features).save_to_disk(tmp_path / "saved")
    example = load(source(tmp_path / "saved")).examples[0]
    assert [message.content for message in example.messages] == ["a", "b"]
    assert example.tools == tuple(tools)


def test_a_damaged_saved_dataset_is_one_error(tmp_path: Path):
    write(tmp_path / "saved" / "state.json", "{")
    write(tmp_path / "saved" / "dataset_info.json", "{")
    assert refused(tmp_path / "saved").what == "the dataset saved here cannot be read"


def test_a_hub_id_is_asked_for_with_its_revision_configuration_and_split(monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked = []

    def load_dataset(*args: object, **options: object) -> object:
        asked.append((args, options))
        rows = datasets.Dataset.from_list(ROWS)
        return rows if options["split"] else datasets.DatasetDict({"train": rows, "validation": rows.select([0])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load(source("user/name@v1.0", name="en"))
    assert loaded.examples[1].source == "user/name@v1.0:train:2"
    assert pairs(load(source("user/name"), role="eval")) == [("a", "b")]
    assert load(source("user/name", split="train[:50%]")).split == "train[:50%]"
    assert own_eval_split(source("user/name", split="train[:50%]")) == "validation"
    assert asked[0] == (("user/name", "en"), {"split": None, "revision": "v1.0"})
    assert asked[2] == (("user/name", None), {"split": "train[:50%]", "revision": None})


def test_a_folder_that_exists_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "user" / "name" / "r.jsonl", LINES)
    assert len(load(source("user/name")).examples) == 2


def test_a_hub_that_cannot_be_reached_is_one_error_and_is_not_asked_for_a_mistyped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import datasets

    def load_dataset(*args: object, **options: object) -> object:
        raise ConnectionError("no connection")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "trian" / "r.jsonl", LINES)
    error = refused("user/rows")
    assert "no file or folder of this name is here" in error.what
    assert error.why == "ConnectionError: no connection"
    error = refused("data/train")
    assert (error.what, error.remedy) == ("there is no such file or folder", "did you mean trian?")


HUB_FILES = {"train.jsonl": LINES.encode(), "test.jsonl": b'{"prompt": "x", "completion": "y"}\n'}
HUB_COMMIT = "1" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as `datasets` asks for: one repository with two files."""

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        entries = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in HUB_FILES.items()]
        if path.startswith("/api/datasets/user/name"):
            repository = {"id": "user/name", "sha": HUB_COMMIT, "siblings": [{"rfilename": n} for n in HUB_FILES]}
            return self.answer(json.dumps(entries if "/tree/" in path else repository).encode())
        name = path.rpartition("/")[2]
        if path.startswith("/datasets/user/name/resolve/") and name in HUB_FILES:
            return self.answer(HUB_FILES[name], X_Repo_Commit=HUB_COMMIT, ETag=f'"{name}"')
        return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=HUB_COMMIT)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_hub_dataset_is_read_over_http(hub: str, tmp_path: Path):
    script = """
from tests.data.loading import load
from tunesmith.data.files.reader import own_eval_split
from tunesmith.recipe.data import SourceSettings
source = SourceSettings(path="user/name")
print([e.source for e in load(source).examples], own_eval_split(source), load(source, role="eval").examples[0].source)
"""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['user/name:train:1', 'user/name:train:2'] test user/name:test:1", done.stderr


def test_reading_needs_neither_torch_nor_transformers_nor_datasets(tmp_path: Path):
    path = write(tmp_path / "r.jsonl", LINES)
    script = f"""
import sys
from tests.data.loading import load
from tunesmith.recipe.data import SourceSettings
from tunesmith.data import ledger, placement
from tunesmith.data.report import findings, summary
load(SourceSettings(path={str(path)!r}))
print(sorted({{"torch", "transformers", "datasets", "pyarrow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_mistyped_file_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "faq.csv", "prompt,completion\na,b\n")
    monkeypatch.chdir(tmp_path)
    error = refused("data/faq.cvs")
    assert (error.what, error.remedy) == ("there is no such file or folder", "did you mean faq.csv?")


@pytest.mark.parametrize("url", ["https://example.com/rows.csv", "simplecache::http://example.com/rows.csv"])
def test_without_the_library_of_http_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, url: str):
    def missing(_: str, **options: object) -> None:
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(DataError) as caught:
        load(SourceSettings(path=url))
    assert caught.value.remedy == "pip install 'tunesmith[http]'"
