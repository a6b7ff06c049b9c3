"""Tables with other quotes, lines around their header, and encodings that are hard to tell, as programs write them."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.door.content import ALL_TICKETS, LABELS_IN_GERMAN, LANGUAGES, TICKETS, questions
from tests.door.real_file import RealFile
from tests.door.spreadsheets import delimited, german_number, in_code_page

HEADER = ("question", "answer")
QUESTIONS = [HEADER, *questions()]
JOINED = 12  # rows of the first of two files that were joined


def pandas_backslash(folder: Path) -> None:
    r"""pandas 3.1, ``to_csv(escapechar="\\", doublequote=False)``: a quote within a field has a backslash before it.

    https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.to_csv.html
    """
    import pandas as pd

    frame = pd.DataFrame(questions(), columns=[*HEADER])
    frame.to_csv(folder / "faq.csv", index=False, escapechar="\\", doublequote=False)


def spark_folder(folder: Path) -> None:
    r"""Spark 4.0, ``frame.write.option("header", True).csv("faq.csv")``: a folder of parts; quotes are written ``\"``.

    https://spark.apache.org/docs/latest/sql-data-sources-csv.html (``escape`` is a backslash by default); checksums and
    ``_SUCCESS`` are Hadoop's.
    """
    home = folder / "faq.csv"
    home.mkdir()
    rows = questions()
    for number, part in enumerate((rows[:JOINED], rows[JOINED:])):
        name = f"part-0000{number}-6a1f2c3d-4e5f-4a7b-8c9d-0e1f2a3b4c5d-c000.csv"
        lines = [",".join(HEADER), *(",".join(map(_spark_field, row)) for row in part)]
        (home / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
        (home / f".{name}.crc").write_bytes(b"crc\x00\x00\x00\x02\x00\x12\x34\x56\x78")
    (home / "_SUCCESS").write_bytes(b"")
    (home / "._SUCCESS.crc").write_bytes(b"crc\x00\x00\x00\x02\x00\x00\x00\x00\x00")


def _spark_field(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if set(text) & set(',"\n') else text


def sqlite_quote(folder: Path) -> None:
    """The shell of SQLite 3.50, ``.headers on`` and ``.mode quote``: every text stands in single quotes.

    https://sqlite.org/cli.html ("quote": escape answers as for SQL); numbers are bare, and a quote is written twice.
    """
    lines = [",".join(f"'{name}'" for name in ("id", *HEADER))]
    for number, row in enumerate(questions(), 1):
        lines.append(",".join([str(number), *("'" + text.replace("'", "''") + "'" for text in row)]))
    (folder / "faq.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


def postgres_single_quotes(folder: Path) -> None:
    r"""PostgreSQL 18, ``\copy faq TO 'faq.csv' WITH (FORMAT csv, HEADER, QUOTE '''')``: single quotes where needed.

    https://www.postgresql.org/docs/current/sql-copy.html (QUOTE, and ESCAPE, which is the same by default)
    """
    text = io.StringIO(newline="")
    csv.writer(text, quotechar="'", lineterminator="\n").writerows(QUESTIONS)
    (folder / "faq.csv").write_text(text.getvalue(), encoding="utf-8", newline="")


def header_twice(folder: Path) -> None:
    """Two exports of one program, joined by ``cat january.csv february.csv > faq.csv``: the header stands twice."""
    rows = questions()
    parts = ([HEADER, *rows[:JOINED]], [HEADER, *rows[JOINED:]])
    (folder / "faq.csv").write_bytes("".join(delimited(part, ",", end="\n") for part in parts).encode())


def header_in_two_languages(folder: Path) -> None:
    """A table of an international team: below the names of the columns stand their translations."""
    rows = [HEADER, LANGUAGES["german"][0], *questions()]
    (folder / "faq.csv").write_bytes(delimited(rows, ",").encode())


def header_with_units(folder: Path) -> None:
    """A table of a measuring or accounting program: the line below the header says the units."""
    rows: list[Sequence[object]] = [("text", "amount", "label"), ("message", "EUR", "class")]
    rows += [(ticket.body, f"{ticket.amount:.2f}", ticket.label) for ticket in ALL_TICKETS]
    (folder / "tickets.csv").write_bytes(delimited(rows, ",", end="\n").encode())


def cp1252_small(folder: Path) -> None:
    """Excel 365 with German regional settings, "CSV": short texts, of which few hold a letter that is not ASCII."""
    rows = [("Frage", "Antwort"), *_short_questions()]
    (folder / "Fragen.csv").write_bytes(in_code_page(delimited(rows, ";"), "cp1252"))


def _short_questions() -> list[tuple[str, str]]:
    """Twenty-four questions of a few words."""
    goods = ("Tee", "Tasse", "Kanne", "Sieb", "Dose", "Karte", "Kerze", "Honig")
    asked = (("Preis {}?", "{} Euro"), ("Ist {} da?", "Ja, {} mal"), ("Größe {}?", "{} cm"))
    return [
        (question.format(good), answer.format(number + 3))
        for number, good in enumerate(goods)
        for question, answer in asked
    ]


def cp1252_names(folder: Path) -> None:
    """Excel 365 with French regional settings, "CSV": names and labels, with an accent here and there."""
    names = ("Renée", "Luc", "Zoé", "Anne", "Noël", "Paul", "Chloé", "Marc", "Inès", "Jean", "Théo", "Rose")
    rows = [("texte", "catégorie")]
    rows += [(f"{name}, commande {n}", ("reçu", "payé")[n % 2]) for n in (1, 2) for name in names]
    (folder / "clients.csv").write_bytes(in_code_page(delimited(rows, ";"), "cp1252"))


def r_write_csv(folder: Path) -> None:
    """R 4.5, ``write.csv(frame, "tickets.csv")``: texts and names in quotes, the row names first, under no name.

    https://stat.ethz.ch/R-manual/R-devel/library/utils/html/write.table.html
    """
    lines = ['"","text","label"']
    for number, ticket in enumerate(ALL_TICKETS, 1):
        fields = (str(number), ticket.body, ticket.label)
        lines.append(",".join('"' + field.replace('"', '""') + '"' for field in fields))
    (folder / "tickets.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


def excel_tab_text(folder: Path) -> None:
    """Excel 365 with German regional settings, "Text (Tabstopp-getrennt)": a .txt file with tabs in cp1252.

    As in ``excel_german``; fields with a quote, a comma or a line break are quoted.
    """
    rows = [("Text", "Betrag", "Kategorie")]
    rows += [(ticket.body, german_number(ticket.amount), LABELS_IN_GERMAN[ticket.label]) for ticket in TICKETS]
    (folder / "Anfragen.txt").write_bytes(in_code_page(delimited(rows, "\t", quoted=","), "cp1252"))


def bigquery_csv_gz(folder: Path) -> None:
    """BigQuery, ``EXPORT DATA`` as CSV with GZIP: numbered shards, each with the header.

    https://cloud.google.com/bigquery/docs/exporting-data
    """
    rows = questions()
    for number, part in enumerate((rows[:JOINED], rows[JOINED:])):
        content = gzip.compress(delimited([HEADER, *part], ",", end="\n").encode(), mtime=0)
        path = folder / "export" / f"faq-{number:012}.csv.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def title_lines(folder: Path) -> None:
    """A report of a help desk, saved by Excel as CSV: its title and a blank line stand above the header."""
    rows: list[Sequence[object]] = [("Support report, March 2026", "", ""), ("", "", ""), ("agent", *HEADER)]
    rows += [("Pia", *row) for row in questions()]
    (folder / "report.csv").write_bytes(delimited(rows, ",").encode())


def markdown_table(folder: Path) -> None:
    """A table that a chat model wrote, pasted into a .csv file: bars around the fields and a line of dashes.

    https://github.github.com/gfm/#tables-extension-
    """
    lines = [HEADER, ("---", "---"), *questions()]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (folder / "faq.csv").write_text(text, encoding="utf-8", newline="")


def train_and_test_csv(folder: Path) -> None:
    """A folder as on Kaggle: train.csv and test.csv, each with the header."""
    rows = [(ticket.body, ticket.label) for ticket in ALL_TICKETS]
    home = folder / "tickets"
    home.mkdir()
    for name, part in (("train", rows[8:]), ("test", rows[:8])):
        (home / f"{name}.csv").write_bytes(delimited([("text", "label"), *part], ",", end="\n").encode())


def anki_notes(folder: Path) -> None:
    """Anki 25.09, File > Export > Notes in Plain Text: facts about the file, then notes with tabs and no header.

    https://docs.ankiweb.net/exporting.html#plain-text
    """
    notes = csv_text(questions(), "\t")
    (folder / "Shop.txt").write_text(f"#separator:tab\n#html:true\n{notes}", encoding="utf-8", newline="")


def csv_text(rows: Iterable[Sequence[str]], delimiter: str) -> str:
    """Rows as Python's csv module and Anki write them, with line feeds."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _faq(write: Callable[[Path], None], path: str = "faq.csv", **expected: Any) -> RealFile:
    rows = questions()
    found: dict[str, Any] = {"rows": len(rows), "columns": dict(zip(("prompt", "completion"), HEADER, strict=True))}
    found |= {"prompt": rows[0][0], "answer": rows[0][1]}
    return RealFile(write=write, path=path, shape="prompt_completion", **{**found, **expected})


def _tickets(write: Callable[[Path], None], path: str, **expected: Any) -> RealFile:
    found: dict[str, Any] = {"rows": len(ALL_TICKETS), "columns": {"prompt": "text", "completion": "label"}}
    found |= {"prompt": TICKETS[0].body, "answer": TICKETS[0].label}
    return RealFile(write=write, path=path, shape="prompt_completion", **{**found, **expected})


QUOTED_TABLES = (
    _faq(pandas_backslash, says=('\\"',)),
    _faq(spark_folder, says=('\\"',)),
    _faq(sqlite_quote, says=("fields are quoted by '",)),
    _faq(postgres_single_quotes, says=("fields are quoted by '",)),
    _faq(header_twice, left_out={"repeated header": 1}, says=("repeated header",)),
    _faq(header_in_two_languages, rows=len(questions()) + 1, says=("data.header=2", "Frage")),
    _tickets(header_with_units, "tickets.csv", rows=len(ALL_TICKETS) + 1, says=("data.header=2", "EUR")),
    _faq(
        cp1252_small,
        "Fragen.csv",
        rows=len(_short_questions()),
        columns={"prompt": "Frage", "completion": "Antwort"},
        prompt="Größe Tee?",
        answer="3 cm",
        says=("cp1252", "Größe"),
    ),
    _tickets(
        cp1252_names,
        "clients.csv",
        rows=24,
        columns={"prompt": "texte", "completion": "catégorie"},
        prompt="Noël, commande 1",
        answer="payé",
        says=("cp1252",),
    ),
    _tickets(r_write_csv, "tickets.csv"),
    _tickets(
        excel_tab_text,
        "Anfragen.txt",
        rows=len(TICKETS),
        columns={"prompt": "Text", "completion": "Kategorie"},
        answer="Rechnung",
        says=("cp1252", "tab"),
    ),
    _faq(bigquery_csv_gz, "export"),
    _faq(title_lines, "report.csv", says=("above the header",)),
    _faq(markdown_table, says=("Markdown",)),
    _tickets(
        train_and_test_csv,
        "tickets",
        rows=len(ALL_TICKETS) - 8,
        prompt=ALL_TICKETS[8].body,
        answer=ALL_TICKETS[8].label,
    ),
    _faq(anki_notes, "Shop.txt", columns={"prompt": "front", "completion": "back"}, says=("Anki",)),
)
