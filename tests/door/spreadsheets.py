"""Tables as spreadsheet programs and pandas write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tests.door.content import (
    ALL_TICKETS,
    LABELS,
    LABELS_IN_GERMAN,
    LANGUAGES,
    TICKETS,
    questions,
)
from tests.door.real_file import RealFile

BOM = "\ufeff"
TICKET = TICKETS[0]
TICKET_COLUMNS = {"prompt": "text", "completion": "label"}


def delimited(rows: Iterable[Sequence[object]], delimiter: str, *, quoted: str = "", end: str = "\r\n") -> str:
    """Rows as text. A field is quoted if it holds the delimiter, a quote, a line break or a character of ``quoted``."""
    marks = {delimiter, '"', "\n", "\r", *quoted}

    def cell(value: object) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if marks & set(text) else text

    return "".join(delimiter.join(map(cell, row)) + end for row in rows)


def german_number(value: float) -> str:
    """1249.9 as 1.249,90."""
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def in_code_page(text: str, encoding: str) -> bytes:
    """What Windows writes in a code page: a question mark for each UTF-16 unit that has no place in it."""
    return b"".join(
        char.encode(encoding, errors="ignore") or b"?" * (len(char.encode("utf-16-le")) // 2) for char in text
    )


def excel_csv_utf8(folder: Path) -> None:
    """Excel 365, "CSV UTF-8 (Comma delimited)": byte order mark, CRLF after rows, LF within cells.

    https://donatstudios.com/CSV-An-Encoding-Nightmare (the mark), https://mschaef.com/cr-lf (the line ends).
    """
    rows = [("id", "text", "label"), *((n, t.body, t.label) for n, t in enumerate(ALL_TICKETS, 1))]
    (folder / "tickets.csv").write_bytes((BOM + delimited(rows, ",")).encode())


def excel_german(folder: Path) -> None:
    """Excel 365 with German regional settings, "CSV (Trennzeichen-getrennt)": ``;``, cp1252, decimal commas.

    The list separator and the code page come from Windows: https://wiki.scn.sap.com/wiki/display/ABAP/Excel+files+-+CSV+format
    and https://donatstudios.com/CSV-An-Encoding-Nightmare. Emojis become two question marks.
    """
    rows = [("Nr", "Betreff", "Text", "Betrag", "Kategorie")]
    bodies = [ticket.body + (" 🙂" if number == 7 else "") for number, ticket in enumerate(TICKETS)]
    rows += [
        (str(number), ticket.subject, body, german_number(ticket.amount), LABELS_IN_GERMAN[ticket.label])
        for number, (ticket, body) in enumerate(zip(TICKETS, bodies, strict=True), 1)
    ]
    (folder / "Anfragen.csv").write_bytes(in_code_page(delimited(rows, ";"), "cp1252"))


def excel_blank_rows(folder: Path) -> None:
    """Excel 365, "CSV UTF-8": a cell once formatted is in the used range, so empty rows and columns are written.

    Excel pads every row to the width of the used range:
    https://mrexcel.com/board/threads/vba-edit-hex-of-existing-csv-style-file.1140952
    """
    rows: list[tuple[object, ...]] = [("Question", "Answer", "", "")]
    for number, (question, answer) in enumerate(questions()):
        rows.append((question, answer, "", ""))
        if number % 10 == 4:
            rows.append(("", "", "", ""))
    rows += [("", "", "", "")] * 5
    (folder / "faq.csv").write_bytes((BOM + delimited(rows, ",")).encode())


def excel_sixteen_rows(folder: Path) -> None:
    """Excel 365, "CSV UTF-8": in 16 rows whose last column is empty, the delimiter before it is not written.

    Known as Microsoft Knowledge Base 77295 (column delimiters are missing); the page itself was not found.
    """
    rows = [("question", "answer", "note")]
    rows += [(*row, "checked" if number == 3 else "") for number, row in enumerate(questions())]
    lines = []
    for start in range(0, len(rows), 16):
        block = rows[start : start + 16]
        lines += block if any(row[-1] for row in block) else [row[:-1] for row in block]
    (folder / "faq.csv").write_bytes((BOM + delimited(lines, ",")).encode())


def excel_sep_line(folder: Path) -> None:
    """A file for Excel with its own hint ``sep=;`` in the first line, as exports of web shops write it.

    Excel takes the line as the name of the delimiter, not as a row; many programs write it, Excel itself does not.
    """
    rows = [LANGUAGES["german"][0], *questions("german")]
    (folder / "fragen.csv").write_bytes((BOM + "sep=;\r\n" + delimited(rows, ";")).encode())


def excel_unicode_text(folder: Path) -> None:
    """Excel 365, "Unicode Text (*.txt)": UTF-16LE with a mark, tabs, and quotes around cells with commas too.

    http://www.herongyang.com/Unicode/Excel-Save-File-in-Unicode-Text-txt.html (the encoding); that commas are quoted
    in it is how Excel behaves, no page was found for it.
    """
    rows = [("text", "label"), *((ticket.body, ticket.label) for ticket in ALL_TICKETS)]
    (folder / "tickets.txt").write_bytes((BOM + delimited(rows, "\t", quoted=",")).encode("utf-16-le"))


def excel_polish(folder: Path) -> None:
    """Excel 365 with Polish regional settings, "CSV (rozdzielany średnikami)": ``;`` and cp1250.

    As in ``excel_german``. Read as cp1252, every ł is ³: the bytes alone do not tell.
    """
    rows = [LANGUAGES["polish"][0], *questions("polish")]
    (folder / "pytania.csv").write_bytes(in_code_page(delimited(rows, ";"), "cp1250"))


def excel_japanese(folder: Path) -> None:
    """Excel 365 with Japanese regional settings, "CSV": commas and cp932 (Shift JIS).

    As in ``excel_german``; https://hole.sugutsukaeru.jp/archives/13/3 for quotes and line ends.
    """
    rows = [LANGUAGES["japanese"][0], *questions("japanese")]
    (folder / "質問.csv").write_bytes(in_code_page(delimited(rows, ","), "cp932"))


def sheets_csv(folder: Path) -> None:
    """Google Sheets (2026), File > Download > Comma Separated Values: UTF-8, CRLF, none after the last row.

    The name is that of the file and the sheet. No page was found that states the line ends.
    """
    rows = [("question", "answer"), *questions()]
    (folder / "Shop FAQ - Sheet1.csv").write_bytes(delimited(rows, ",").removesuffix("\r\n").encode())


def sheets_tsv(folder: Path) -> None:
    """Google Sheets (2026), File > Download > Tab Separated Values: nothing is quoted, tabs and breaks become spaces.

    So a quote at the begin of a cell is a character of its text. The rule of a TSV without quotes:
    https://www.easydatatransform.com/help/1u/mac/html/tsv_format.html; no page of Google's was found.
    """
    rows = [("text", "label")]
    rows += [(ticket.body, ticket.label) for ticket in ALL_TICKETS]
    rows += [('"Teapot" is the best shop, thanks!', "praise"), ('The "large" box is 5" too small', "delivery")]
    lines = ["\t".join(value.replace("\t", " ").replace("\n", " ") for value in row) for row in rows]
    (folder / "Tickets - Sheet1.tsv").write_bytes("\r\n".join(lines).encode())


def pandas_index(folder: Path) -> None:
    """pandas 3.1, ``DataFrame.to_csv(path)``: the index is the first column, and its name is empty.

    https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.to_csv.html (``index=True`` is the default).
    """
    import pandas as pd

    frame = pd.DataFrame(questions(), columns=["question", "answer"])
    frame["length"] = frame["answer"].str.len()
    frame.loc[3, "length"] = None
    frame.to_csv(folder / "frame.csv")


def pandas_index_twice(folder: Path) -> None:
    """pandas 3.1: ``read_csv`` calls the first column ``Unnamed: 0``, and ``to_csv`` writes a new one before it.

    https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html
    """
    import pandas as pd

    pd.DataFrame(questions(), columns=["question", "answer"]).to_csv(folder / "first.csv")
    pd.read_csv(folder / "first.csv").to_csv(folder / "frame.csv")
    (folder / "first.csv").unlink()


def pipe_separated(folder: Path) -> None:
    """A database's export with ``|``, such as doccano's CSV with that delimiter, written by pandas.

    doccano 1.8, backend/data_export/pipeline/catalog.py: OptionDelimiter takes , tab ; | and space.
    """
    import pandas as pd

    rows = [(ticket.body, ticket.label) for ticket in ALL_TICKETS]
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "export.csv", sep="|", index=False)


def latin1_csv(folder: Path) -> None:
    """An old program's export: ISO 8859-1, commas, LF, every field in quotes (MySQL's OUTFILE, R's write.csv)."""
    plain = str.maketrans({"€": "EUR", "„": '"', "“": '"', "’": "'"})
    rows = [("text", "label"), *((ticket.body.translate(plain), ticket.label) for ticket in TICKETS)]
    lines = (",".join('"' + value.replace('"', '""') + '"' for value in row) for row in rows)
    (folder / "tickets.csv").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))


def semicolon_utf8(folder: Path) -> None:
    """LibreOffice 25, "Text CSV" in a German locale: ``;`` if chosen, UTF-8 without a mark, LF, texts quoted at need.

    Decimal commas are unquoted, so a reader that splits at commas finds more fields in some rows than in others.
    """
    rows = [("text", "amount", "label")]
    rows += [(ticket.body, german_number(ticket.amount), ticket.label) for ticket in ALL_TICKETS]
    (folder / "tickets.csv").write_bytes(delimited(rows, ";", end="\n").encode())


def integer_labels_csv(folder: Path) -> None:
    """A table as on Kaggle: the labels are integers, and their names are elsewhere."""
    rows = [("text", "label"), *((ticket.body, LABELS.index(ticket.label)) for ticket in ALL_TICKETS)]
    (folder / "train.csv").write_bytes(delimited(rows, ",", end="\n").encode())


def no_header(folder: Path) -> None:
    """A table without names of columns: the first line is a row, as fastText and many scripts write it."""
    (folder / "faq.csv").write_bytes(delimited(questions(), ",", end="\n").encode())


def xlsx_workbook(folder: Path) -> None:
    """Excel 365's own format (openpyxl 3.1): numbers and dates are typed, a second sheet is hidden, a row is empty.

    https://openpyxl.readthedocs.io
    """
    import datetime

    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Tickets"
    sheet.append(["Received", "text", "amount", "label"])
    for number, ticket in enumerate(ALL_TICKETS):
        sheet.append([datetime.date(2026, 3, 1 + number % 28), ticket.body, ticket.amount, ticket.label])
        if number == 20:
            sheet.append([])
    sheet.cell(row=60, column=7).number_format = "0.00"  # formatted, so in the used range, and empty
    hidden = book.create_sheet("lists")
    hidden.sheet_state = "hidden"
    for label in LABELS:
        hidden.append([label])
    book.save(folder / "tickets.xlsx")


def xlsx_two_sheets(folder: Path) -> None:
    """A workbook by hand (openpyxl 3.1): a title above the header, merged cells, a formula, two sheets with rows.

    A formula's value is in the file only if a spreadsheet program saved it; openpyxl writes none.
    """
    from openpyxl import Workbook

    book = Workbook()
    for title, language in (("English", "english"), ("Deutsch", "german")):
        sheet = book.create_sheet(title)
        sheet["A1"] = f"Shop FAQ ({title}), as of March"
        sheet.merge_cells("A1:C1")
        sheet.append([])
        sheet.append([*LANGUAGES[language][0], "characters"])
        for number, (question, answer) in enumerate(questions(language), 4):
            sheet.append([question, answer, f"=LEN(B{number})"])
    del book["Sheet"]
    book.save(folder / "faq.xlsx")


def ods_sheet(folder: Path) -> None:
    """LibreOffice 25, "ODF Spreadsheet" (odfpy 1.4): cells repeat, and the sheet ends with a million empty rows.

    OpenDocument 1.3, 9.1: table:number-columns-repeated, table:number-rows-repeated; a line break is a text:p of its
    own.
    """
    from odf.opendocument import OpenDocumentSpreadsheet
    from odf.table import Table, TableCell, TableRow
    from odf.text import P

    def add_row(values: Sequence[Any]) -> None:
        row = TableRow()
        for value in values:
            kind = {"valuetype": "float", "value": value} if isinstance(value, float) else {"valuetype": "string"}
            cell = TableCell(**kind)
            for line in str(value).split("\n"):
                cell.addElement(P(text=line))
            row.addElement(cell)
        row.addElement(TableCell(numbercolumnsrepeated=16381))
        table.addElement(row)

    document, table = OpenDocumentSpreadsheet(), Table(name="Tickets")
    add_row(["text", "amount", "label"])
    for ticket in ALL_TICKETS:
        add_row([ticket.body, ticket.amount, ticket.label])
    rest = TableRow(numberrowsrepeated=1048576 - len(ALL_TICKETS) - 1)
    rest.addElement(TableCell(numbercolumnsrepeated=16384))
    table.addElement(rest)
    cast("Any", document).spreadsheet.addElement(table)
    document.save(folder / "tickets.ods")


def _tickets(write: Callable[[Path], None], path: str, **expected: Any) -> RealFile:
    """A table of tickets with the columns text and label."""
    found = {"rows": len(ALL_TICKETS), "columns": TICKET_COLUMNS, "prompt": TICKET.body, "answer": TICKET.label}
    return RealFile(write=write, path=path, shape="prompt_completion", **{**found, **expected})


def _questions(write: Callable[[Path], None], path: str, language: str = "english", **expected: Any) -> RealFile:
    """A table of questions and answers in a language."""
    rows, (question, answer) = questions(language), LANGUAGES[language][0]
    columns = {"prompt": question, "completion": answer}
    found = {"rows": len(rows), "columns": columns, "prompt": rows[0][0], "answer": rows[0][1]}
    return RealFile(write=write, path=path, shape="prompt_completion", **{**found, **expected})


SPREADSHEETS = (
    _tickets(excel_csv_utf8, "tickets.csv"),
    _tickets(
        excel_german,
        "Anfragen.csv",
        rows=len(TICKETS),
        columns={"prompt": "Text", "completion": "Kategorie"},
        answer="Rechnung",
        says=("cp1252", ";"),
    ),
    _questions(excel_blank_rows, "faq.csv", columns={"prompt": "Question", "completion": "Answer"}),
    _questions(excel_sixteen_rows, "faq.csv"),
    _questions(excel_sep_line, "fragen.csv", "german", says=(";",)),
    _tickets(excel_unicode_text, "tickets.txt", says=("UTF-16", "tab")),
    _questions(
        excel_polish,
        "pytania.csv",
        "polish",
        says=("cp1250", ";"),
        refusal="cp1250 and cp1252 decode the same bytes to different letters",
    ),
    _questions(excel_japanese, "質問.csv", "japanese", says=("cp932",)),
    _questions(sheets_csv, "Shop FAQ - Sheet1.csv"),
    _tickets(
        sheets_tsv,
        "Tickets - Sheet1.tsv",
        rows=len(ALL_TICKETS) + 2,
        prompt='"Teapot" is the best shop, thanks!',
        answer="praise",
    ),
    _questions(pandas_index, "frame.csv"),
    _questions(pandas_index_twice, "frame.csv"),
    _tickets(pipe_separated, "export.csv", says=("|",)),
    _tickets(
        latin1_csv,
        "tickets.csv",
        rows=len(TICKETS),
        prompt='auf der Rechnung stehen 12,50 EUR statt "10,00 EUR"; Ihr Kollege sagte "kein Problem".\nGrüße, Jörg',
        says=("cp1252",),
    ),
    _tickets(semicolon_utf8, "tickets.csv", says=(";",)),
    _tickets(integer_labels_csv, "train.csv", answer="0"),
    _questions(
        no_header,
        "faq.csv",
        columns={"prompt": "column1", "completion": "column2"},
        refusal="without a header the columns have no names",
    ),
    _tickets(xlsx_workbook, "tickets.xlsx", says=("Tickets",), needs=("openpyxl",)),
    _questions(
        xlsx_two_sheets,
        "faq.xlsx",
        says=("English",),
        refusal="two sheets hold rows, and which is meant only the user knows",
        needs=("openpyxl",),
    ),
    _tickets(ods_sheet, "tickets.ods", says=("Tickets",), needs=("odf",)),
)
