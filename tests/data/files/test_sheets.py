import datetime
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.door.spreadsheets import ods_sheet, xlsx_two_sheets

from tunesmith.data.files import expansion
from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.rows import BadRow
from tunesmith.data.files.sheet_sizes import MOST_COLUMNS, MOST_ROWS
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings


def book(path: Path, **pages: list[list[Any]]) -> Path:
    from openpyxl import Workbook

    made = Workbook()
    del made["Sheet"]
    for title, rows in pages.items():
        page = made.create_sheet(title)
        for row in rows:
            page.append(row)
    made.save(path)
    return path


def read(path: Path, **settings: Any) -> tuple[list[Any], str]:
    part = parts_of(SourceSettings(path=str(path), **settings), "train")[0][0]
    rows = [str(row) if isinstance(row, BadRow) else (row.source.rpartition(":")[2], row.fields) for row in part.rows()]
    return rows, "; ".join(part.choices)


def refused(path: Path, **settings: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    return caught.value


def test_cells_are_text_as_the_sheet_shows_them_and_rows_keep_their_numbers(tmp_path: Path):
    values = ["a\nb", 3, 3.0, 0.1 + 0.2, True, datetime.date(2026, 3, 1), datetime.datetime(2026, 3, 1, 9, 30), None]
    names = ["text", "n", "whole", "part", "yes", "day", "time", "none"]
    path = book(tmp_path / "a.xlsx", Tickets=[names, [], values, [None, " "]], Empty=[])
    shown = ["a\nb", "3", "3", "0.3", "true", "2026-03-01", "2026-03-01T09:30:00", ""]
    assert read(path) == ([("3", dict(zip(names, shown, strict=True)))], "sheet Tickets")


def test_several_sheets_are_refused_and_the_remedy_leads_out(tmp_path: Path):
    xlsx_two_sheets(tmp_path)
    error = refused(tmp_path / "faq.xlsx")
    assert (error.what, error.why) == ("several sheets hold rows", "they are English, Deutsch")
    assert error.remedy == 'set data.sheet: "English", or another of them'
    rows, said = read(tmp_path / "faq.xlsx", sheet="English")
    assert rows[0][0] == "4" and {*rows[0][1]} == {"question", "answer", "characters"}
    title, formulas = "the header is row 3, below a title", "no value was saved for the formulas of characters"
    assert said == f"sheet English; {title}; {formulas}"
    assert refused(tmp_path / "faq.xlsx", sheet="Dutch").why == "the sheets are English, Deutsch"


def test_a_sheet_of_one_column_has_its_name_in_the_first_row(tmp_path: Path):
    path = book(tmp_path / "a.xlsx", Texts=[["text"], ["one"], ["two"]])
    assert read(path)[0] == [("2", {"text": "one"}), ("3", {"text": "two"})]


def test_a_value_without_a_column_costs_no_row_and_a_repeated_column_has_a_number(tmp_path: Path):
    rows, said = read(book(tmp_path / "a.xlsx", Page=[["a", None, "b"], ["1", None, "2"], ["1", "x", "2", "3"]]))
    assert rows == [("2", {"a": "1", "b": "2"}), ("3", {"a": "1", "b": "2"})]
    assert "without a name and not used: columns 2, 4" in said
    rows, said = read(book(tmp_path / "b.xlsx", Page=[["a", "b", "a"], ["1", "2", "3"]]))
    assert rows == [("2", {"a": "1", "b": "2", "a.2": "3"})]
    assert "the column a is there 2 times: a, a.2" in said
    error = refused(book(tmp_path / "c.xlsx", Page=[["prompt", "prompt"], ["1", "2"]]))
    assert error.what == "the header names the column 'prompt' twice"


def test_formulas_without_a_saved_value_are_no_empty_texts(tmp_path: Path):
    rows = [["text", "label", "length"], ["one", "=A2", "=LEN(A2)"], ["two", "b", "=LEN(A3)"]]
    path = book(tmp_path / "a.xlsx", Page=rows)
    assert read(path) == (
        [
            ("2", {"text": "one", "label": None, "length": None}),
            ("3", {"text": "two", "label": "b", "length": None}),
        ],
        "sheet Page; no value was saved for the formulas of label, length",
    )


def test_an_ods_sheet_with_a_million_repeated_rows_gives_its_own(tmp_path: Path):
    ods_sheet(tmp_path)
    rows, said = read(tmp_path / "tickets.ods")
    assert said == "sheet Tickets"
    assert rows[0][0] == "2" and {*rows[0][1]} == {"text", "amount", "label"}
    assert not any(row[1]["amount"].endswith(".0") for row in rows)


@pytest.mark.parametrize(("suffix", "module"), [(".xlsx", "openpyxl"), (".ods", "defusedxml.ElementTree")])
def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str):
    path = tmp_path / f"a{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("content.xml", "<a/>")
    monkeypatch.setitem(sys.modules, module, None)
    assert refused(path).remedy == f"pip install 'tunesmith[{suffix[1:]}]', or save the sheet as .csv"


def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**20)
    with zipfile.ZipFile(tmp_path / "a.ods", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("content.xml", " " * 2**22)
    assert "times its size" in refused(tmp_path / "a.ods").what


SHEET = "xl/worksheets/sheet1.xml"


def changed(path: Path, part: str, change: Callable[[bytes], bytes], *, said: int | None = None) -> Path:
    """A book with another part; ``said``: the part's size, as its directory gives it, with the checksum of so much."""
    with zipfile.ZipFile(book(path, Page=[["prompt", "completion"], ["a", "b"]])) as archive:
        parts = {each: archive.read(each) for each in archive.namelist()}
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in parts.items():
            archive.writestr(each, content)
            if each == part and said is not None:
                entry = archive.getinfo(each)
                entry.file_size, entry.CRC = said, zlib.crc32(content[:said])
    return path


@pytest.mark.parametrize("number", ["99999999999", str(MOST_ROWS + 1), "1e12"])
def test_a_row_beyond_the_end_of_a_sheet_is_refused_before_the_rows_before_it_are_made(tmp_path: Path, number: str):
    def far(content: bytes) -> bytes:
        return content.replace(b'<row r="2"', b'<row r="%s"' % number.encode())

    error = refused(changed(tmp_path / "a.xlsx", SHEET, far))
    assert "is beyond the end of a sheet" in error.what
    assert error.why == "a sheet has at most 1,048,576 rows and 16,384 columns"
    assert error.remedy == "save the sheet as .csv"


def test_the_last_row_and_the_last_column_of_a_sheet_are_read(tmp_path: Path):
    last = b'<row r="3"><c r="XFD3"><v>1</v></c></row><row r="%d"><c t="str"><v>c</v></c></row></sheetData>' % MOST_ROWS
    path = changed(tmp_path / "a.xlsx", SHEET, lambda content: content.replace(b"</sheetData>", last))
    assert [number for number, _ in read(path)[0]] == ["2", "3", str(MOST_ROWS)]


def test_a_column_beyond_the_end_of_a_sheet_is_refused(tmp_path: Path):
    beyond = b'<row r="3"><c r="ZZZ3"><v>1</v></c></row></sheetData>'
    path = changed(tmp_path / "a.xlsx", SHEET, lambda content: content.replace(b"</sheetData>", beyond))
    assert refused(path).what == "column 18,278 is beyond the end of a sheet"


def test_few_rows_of_many_cells_are_made_at_once(tmp_path: Path):
    wide = b"".join(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (at, at) for at in range(3, 203))
    path = changed(tmp_path / "a.xlsx", SHEET, lambda content: content.replace(b"</sheetData>", wide + b"</sheetData>"))
    tracemalloc.start()
    assert len(read(path)[0]) == 201
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100 * MOST_COLUMNS * 8  # bytes: of a hundred rows, and not of all


def test_a_part_that_is_larger_than_the_file_says_is_refused_before_it_is_unpacked(tmp_path: Path):
    name = "xl/workbook.xml"
    with zipfile.ZipFile(book(tmp_path / "b.xlsx", Page=[["a"], ["b"]])) as archive:
        size = archive.getinfo(name).file_size
    path = changed(tmp_path / "a.xlsx", name, lambda content: content + b" " * 2**26, said=size)
    tracemalloc.start()
    assert f"{name} has " in str(refused(path).why)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**25


@pytest.mark.parametrize("cells", [b"<c/>", b"<row><c/></row>"])
def test_elements_that_would_fill_the_memory_are_counted_before_a_library_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: bytes
):
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**20)
    many = b'<row r="3">' + cells * 10_000 + b"</row></sheetData>"
    path = changed(tmp_path / "a.xlsx", SHEET, lambda content: content.replace(b"</sheetData>", many))
    assert "times its size" in refused(path).what


ODS_HEAD = (
    '<o:document-content xmlns:o="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:t="urn:oasis:names:tc:opendocument:xmlns:table:1.0" '
    'xmlns:x="urn:oasis:names:tc:opendocument:xmlns:text:1.0" '
    'xmlns:s="urn:oasis:names:tc:opendocument:xmlns:style:1.0"><o:automatic-styles><s:style s:name="away">'
    '<s:table-properties t:display="false"/></s:style></o:automatic-styles><o:body>'
)


def ods(path: Path, *tables: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        body = f"<o:spreadsheet>{''.join(tables)}</o:spreadsheet></o:body></o:document-content>"
        archive.writestr("content.xml", ODS_HEAD + body)
    return path


def table(name: str, *rows: list[str], style: str = "") -> str:
    cells = ["".join(f"<t:table-cell><x:p>{cell}</x:p></t:table-cell>" for cell in row) for row in rows]
    lines = "".join(f"<t:table-row>{row}</t:table-row>" for row in cells)
    return f'<t:table t:name="{name}" t:style-name="{style}">{lines}</t:table>'


def test_an_ods_file_is_read_row_by_row_in_little_memory(tmp_path: Path):
    many = [[f"question {number}", f"answer {number}", "a", "b"] for number in range(4_000)]
    path = ods(tmp_path / "a.ods", table("Page", ["prompt", "completion", "one", "two"], *many))
    tracemalloc.start()
    part = parts_of(SourceSettings(path=str(path)), "train")[0][0]
    assert sum(1 for _ in part.rows()) == 4_000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22  # bytes, of 16,000 cells


def test_cells_of_one_ods_row_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = ods(tmp_path / "a.ods", table("Page", ["a", "b"], ["c"] * 10_000))
    monkeypatch.setattr(expansion, "MOST_UNPACKED", 2**20)
    assert "times its size" in refused(path).what
    monkeypatch.setenv("TUNESMITH_MAX_UNPACKED_GB", "1")
    assert read(path)[0]


def test_spaces_tabs_and_lines_of_an_ods_cell_are_its_text_and_spaces_without_end_are_refused(tmp_path: Path):
    text = 'a<x:s x:c="3"/>b<x:tab/>c<x:span>d<x:s/>e</x:span>f<x:line-break/>g'
    path = ods(tmp_path / "a.ods", table("Page", ["prompt", "completion"], [text, "h"]))
    assert read(path)[0] == [("2", {"prompt": "a   b\tcd ef\ng", "completion": "h"})]
    path = ods(tmp_path / "a.ods", table("Page", ["prompt", "completion"], ['a<x:s x:c="99999999999"/>', "h"]))
    assert refused(path).why == "row 2 has more than 1,048,576 spaces"
    path = ods(
        tmp_path / "a.ods", table("Page", ["prompt", "completion"], ["<x:span>" * 5000 + "</x:span>" * 5000, "h"])
    )
    assert refused(path).what == "the .ods file cannot be read"


def test_sheets_of_an_ods_file_are_known_by_name_and_hidden_ones_are_not_read(tmp_path: Path):
    pages = [table(name, ["prompt", "completion"], [name, "x"], [name, "y"]) for name in ("One", "Two")]
    path = ods(tmp_path / "a.ods", *pages, table("Empty"), table("Away", ["a", "b"], ["c", "d"], style="away"))
    assert refused(path).what == "several sheets hold rows"
    assert [row[1]["prompt"] for row in read(path, sheet="Two")[0]] == ["Two", "Two"]
    path = ods(tmp_path / "a.ods", pages[1], table("Away", ["a", "b"], ["c", "d"], style="away"))
    assert read(path)[1] == "sheet Two; hidden, not read: Away"
    assert refused(ods(tmp_path / "b.ods")).what == "there are no rows in it"


def test_entities_are_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.ods", "w") as archive:
        archive.writestr("content.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    assert refused(tmp_path / "a.ods").what == "the .ods file cannot be read"


def test_an_old_or_locked_file_says_what_to_do(tmp_path: Path):
    (tmp_path / "a.xlsx").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    assert refused(tmp_path / "a.xlsx").why == "it has a password, or it is an old .xls file"


def test_spreadsheets_beside_other_data_are_named_and_passed_over(tmp_path: Path):
    book(tmp_path / "notes.xlsx", Notes=[["a", "b"], ["1", "2"]])
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    parts, ignored, _ = parts_of(SourceSettings(path=str(tmp_path)), "train")
    assert ([part.name.rpartition("/")[2] for part in parts], ignored) == (["rows.jsonl"], ["notes.xlsx"])


def test_a_sheet_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    path = book(tmp_path / "b.xlsx", A=[["Where?", "Here."], ["When?", "Now."]])
    rows, said = read(path, header=False)
    assert rows == [("1", {"column1": "Where?", "column2": "Here."}), ("2", {"column1": "When?", "column2": "Now."})]
    assert "no header: the columns are column1, column2" in said
