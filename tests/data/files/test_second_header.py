"""A second line of a table's header is learned as a row: `init` warns, and data.header: 2 leaves it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.rows import Row
from tunesmith.data.files.second_header import second_header
from tunesmith.recipe.data import SourceSettings

ROWS = "".join(f"Where is pot {number}?,{number}.50,here\n" for number in range(1, 9))


def opened(path: Path, text: str, **settings: Any) -> tuple[str | None, list[str]]:
    """The warning, and the lines of the rows."""
    path.write_text(text)
    source = SourceSettings.model_validate({"path": str(path), **settings})
    parts = parts_of(source, "train")[0]
    lines = [row.source.rpartition(":")[2] for part in parts for row in part.rows() if isinstance(row, Row)]
    return second_header(parts, source.header), lines


@pytest.mark.parametrize(
    "line",
    ["Frage,Betrag,Antwort", "text,EUR,class", ",(EUR),", "string,float,category", "问题,,答案"],
    ids=["translated", "unit", "unit alone", "types", "Chinese"],
)
def test_a_second_line_of_the_header_is_warned_of_and_the_key_leaves_it_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.csv"
    text = f"question,amount,answer\n{line}\n{ROWS}"
    warning, lines = opened(path, text)
    assert warning is not None and warning.startswith(f"{path}:2 may be a second line of the header (")
    assert "add data.header=2 to this command" in warning
    assert lines[0] == "2" and len(lines) == 9
    for header, first in ((2, "3"), (True, "2")):
        assert opened(path, text, header=header)[0] is None
        assert opened(path, text, header=header)[1][0] == first


@pytest.mark.parametrize(
    "line",
    [
        "Where is it?,3.20,there",
        "What,n/a,there",
        "yes,unknown,no",
        "What is it all about then,EUR,x",
        "Antwort,3,there",
    ],
)
def test_a_row_is_not_taken_for_a_header(tmp_path: Path, line: str) -> None:
    assert opened(tmp_path / "t.csv", f"question,amount,answer\n{line}\n{ROWS}")[0] is None


def test_a_title_stands_above_a_header_of_two_lines(tmp_path: Path) -> None:
    text = f"Report,,\nquestion,amount,answer\nFrage,Betrag,Antwort\n{ROWS}"
    assert opened(tmp_path / "t.csv", text, header=2)[1][0] == "4"


def test_a_sheet_may_have_a_header_of_two_lines(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for line in f"question,amount,answer\nFrage,Betrag,Antwort\n{ROWS}".splitlines():
        book.active.append(line.split(","))
    path = tmp_path / "t.xlsx"
    book.save(path)
    parts = parts_of(SourceSettings(path=str(path)), "train")[0]
    assert second_header(parts, None) is not None
    rows = [row for row in parts_of(SourceSettings(path=str(path), header=2), "train")[0][0].rows()]
    assert [row.source.rpartition(":")[2] for row in rows] == [str(number) for number in range(3, 11)]


@pytest.mark.parametrize("given", [False, True, 2, 3])
def test_the_header_is_true_or_false_or_a_number_of_lines(given: object) -> None:
    found = SourceSettings.model_validate({"path": "t.csv", "header": given}).header
    assert found == given and type(found) is type(given)


@pytest.mark.parametrize("given", [0, 1, 20, "2"])
def test_other_values_of_the_header_are_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        SourceSettings.model_validate({"path": "t.csv", "header": given})
