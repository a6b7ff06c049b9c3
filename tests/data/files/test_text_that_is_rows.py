"""Text files that hold rows: Anki's notes are read, and other lines that look like rows are asked about by `init`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tunesmith.cli.options import in_flags
from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import Row
from tunesmith.data.files.text_that_is_rows import refuse_rows_in_text
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

ROWS = "".join(f"Where is {n}?\tIn {n}.\n" for n in range(5))
LOOKS = {
    "a table with the separator tab": ("question\tanswer\n" + ROWS, "data.delimiter=tab"),
    "a table with the separator ','": ("question,answer\n" + ROWS.replace("\t", ","), "data.delimiter=,"),
    "a table with the separator '|'": ("text|label\n" + ROWS.replace("\t", "|"), "data.delimiter=|"),
    "JSON objects": ('{"prompt": "a", "completion": "b"}\n' * 5, ""),
}


def source(path: Path, **settings: object) -> SourceSettings:
    return SourceSettings.model_validate({"path": str(path), **settings})


@pytest.mark.parametrize("looks", LOOKS)
def test_lines_that_look_like_rows_are_asked_about_and_both_ways_lead_out(tmp_path: Path, looks: str) -> None:
    text, key = LOOKS[looks]
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        refuse_rows_in_text(source(path))
    assert caught.value.what == f"the lines of this text file look like {looks}"
    remedy = str(in_flags(caught.value, "tunesmith init t.txt").remedy)
    assert remedy.endswith("to learn the lines as raw text, add --format text")
    refuse_rows_in_text(source(path, format="text"))
    assert open_source(source(path, format="text")).shape == "text"
    if key:
        assert f"run `tunesmith init t.txt '{key}'`" in remedy.replace(f" {key}`", f" '{key}'`")
        read = source(path, delimiter=key.partition("=")[2])
        refuse_rows_in_text(read)
        with pytest.raises(DataError, match=r"shape of the rows is not known|ambiguous"):
            open_source(read)
    else:
        assert "give the file the ending .jsonl" in remedy
        assert open_source(source(path.rename(tmp_path / "t.jsonl"))).shape == "prompt_completion"


def test_labels_of_fasttext_are_a_table_after_the_named_command(tmp_path: Path) -> None:
    path = tmp_path / "it's labelled.txt"
    path.write_text("".join(f"__label__good-{n} a\ttext, {n}\n" for n in range(4)))
    with pytest.raises(DataError, match="look like fastText's labels") as caught:
        refuse_rows_in_text(source(path))
    remedy = str(in_flags(caught.value, "tunesmith init t.txt").remedy)
    command = remedy.split("make a table of them: ")[1].split("; to learn the lines")[0]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    table = path.with_suffix(".tsv").read_text().splitlines()
    assert table[:2] == ["label\ttext", "good-0\ta text, 0"]


@pytest.mark.parametrize(
    "text",
    [
        "It was, as they say, late.\nSo it went, on.\nAnd on, too.\n",
        "one line\tand\none more\nand more\n",
        "a\tb\nc\td\n",
        "[1]\n[2]\n[3]\n",
    ],
)
def test_other_lines_are_raw_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    refuse_rows_in_text(source(path))
    assert open_source(source(path)).shape == "text"


@pytest.mark.parametrize(
    ("notes", "names"),
    [
        ("#separator:tab\n#html:true\n", ("front", "back")),
        ("#separator:Tab\r\n#columns:Front\tBack\r\n", ("Front", "Back")),
    ],
)
def test_notes_of_anki_are_a_table(tmp_path: Path, notes: str, names: tuple[str, str]) -> None:
    path = tmp_path / "deck.txt"
    path.write_text(notes + ROWS, newline="")
    refuse_rows_in_text(source(path))
    with pytest.raises(ColumnsUnclear) as caught:
        open_source(source(path))
    assert caught.value.proposal is not None
    assert caught.value.proposal.columns == {"prompt": names[0], "completion": names[1]}
    reader = open_source(source(path, columns={"prompt": names[0], "completion": names[1]}))
    assert f"notes of Anki, with separator tab and the columns {', '.join(names)}" in reader.reason
    rows = [row for part in reader.parts for row in part.rows() if isinstance(row, Row)]
    assert [row.fields for row in rows] == [
        dict(zip(names, line.split("\t"), strict=True)) for line in ROWS.splitlines()
    ]
    assert rows[0].source.endswith(f":{1 + notes.count(chr(10))}")
