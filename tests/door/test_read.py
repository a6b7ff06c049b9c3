"""Each real file is read as it is meant: its shape, its rows, what is left out, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.door.files import FILES, write
from tests.door.real_file import RealFile

from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.examples.example import Example
from tunesmith.data.files.reader import Reader, open_source
from tunesmith.data.files.rows import LeftOut
from tunesmith.data.files.second_header import second_header
from tunesmith.data.files.text_that_is_rows import refuse_rows_in_text
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

# What a user adds where `init` names it: how the file is read.
KEYS = {
    "excel_tab_text": {"delimiter": "tab"},
    "no_header": {"header": False},
    "wikipedia": {"format": "text"},
    "xlsx_two_sheets": {"sheet": "English"},
}


def opened(file: RealFile, path: Path) -> tuple[Reader, str]:
    """The file as `init` reads it, with the columns that are proposed, and all that is said on the way."""
    source = SourceSettings.model_validate({"path": str(path), **KEYS.get(file.name, {})})
    refuse_rows_in_text(source)
    try:
        return open_source(source), ""
    except ColumnsUnclear as error:
        assert error.proposal is not None, error
        return open_source(source.model_copy(update={"columns": dict(error.proposal.columns)})), str(error)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_read_as_it_is_meant(file: RealFile, tmp_path: Path) -> None:
    for module in file.needs:
        pytest.importorskip(module)
    path = write(file, tmp_path)
    try:
        reader, refused = opened(file, path)
    except DataError as error:
        assert file.refusal, error
        pytest.skip(f"refused: {error.what}")
    rows = [*reader.examples()]
    good = [row for row in rows if isinstance(row, Example)]
    assert len(good) == file.rows
    assert (reader.shape in ("text", "preference", "unpaired_preference")) <= (reader.shape == file.shape)
    assert any(file.prompt in (row.text or _before(row)) and file.answer in ("", row.answer()) for row in good)
    left_out = [row.found for row in rows if isinstance(row, LeftOut)]
    for why, count in file.left_out.items():
        assert left_out.count(why) == count or len(rows) - len(good) == count
    said = " ".join([reader.reason, refused, *left_out, second_header(reader.parts, None) or ""]).lower()
    assert all(word.lower() in said for word in file.says if word not in ("kto", "tie")), said


def _before(row: Example) -> str:
    return "\n".join(turn.content for turn in row.messages[: row.last_answer()])
