"""The files are what their tools write: mark, delimiter, line ends, encoding, layout."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
from tests.door.content import ALL_TICKETS, LABELS, LANGUAGES, TICKETS, articles, dialogues, questions
from tests.door.files import FILES, write
from tests.door.real_file import RealFile

BY_NAME = {file.name: file for file in FILES}
SHAPES = {"alpaca", "prompt_completion", "messages", "sharegpt", "text", "preference", "unpaired_preference"}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a file by its name and gives its path."""

    def make(name: str) -> Path:
        for module in BY_NAME[name].needs:
            pytest.importorskip(module)
        return write(BY_NAME[name], tmp_path)

    return make


def rows_of(path: Path, encoding: str, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode(encoding), newline=""), delimiter=delimiter))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_file_has_a_name_of_its_own_and_there_are_many() -> None:
    assert len(BY_NAME) == len(FILES) >= 100


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_says_where_its_layout_is_from_and_what_it_should_become(file: RealFile) -> None:
    assert file.write.__doc__
    assert file.shape in SHAPES
    assert 20 <= file.rows <= 60
    assert file.prompt and (file.answer or file.shape == "text")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_is_written_the_same_way_twice(file: RealFile, tmp_path: Path) -> None:
    for module in file.needs:
        pytest.importorskip(module)
    first, second = (write(file, tmp_path / name) for name in "ab")
    assert first.exists()
    assert _names(first) == _names(second)
    if first.is_file() and first.suffix not in (".xlsx", ".ods"):  # these hold the time of writing
        assert first.read_bytes() == second.read_bytes()


def _names(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


@pytest.mark.parametrize(
    ("name", "encoding", "delimiter", "end", "begins"),
    [
        ("excel_csv_utf8", "utf-8-sig", ",", "\r\n", b"\xef\xbb\xbfid,text,label\r\n"),
        ("excel_german", "cp1252", ";", "\r\n", b"Nr;Betreff;Text;Betrag;Kategorie\r\n"),
        ("excel_unicode_text", "utf-16", "\t", "\r\n", b"\xff\xfet\x00e\x00x\x00t\x00\t\x00"),
        ("excel_polish", "cp1250", ";", "\r\n", "pytanie;odpowiedź\r\n".encode("cp1250")),
        ("excel_japanese", "cp932", ",", "\r\n", "質問,回答\r\n".encode("cp932")),
        ("latin1_csv", "latin-1", ",", "\n", b'"text","label"\n"Guten Tag,\n'),
        ("semicolon_utf8", "utf-8", ";", "\n", b"text;amount;label\n"),
        ("pipe_separated", "utf-8", "|", "\n", b"text|label\n"),
        ("source_target", "utf-8", "\t", "\n", b"source\ttarget\n"),
        ("pandas_index", "utf-8", ",", "\n", b",question,answer,length\n0,"),
        ("pandas_index_twice", "utf-8", ",", "\n", b",Unnamed: 0,question,answer\n0,0,"),
    ],
)
def test_a_table_has_its_program_s_encoding_delimiter_and_line_ends(
    written: Any, name: str, encoding: str, delimiter: str, end: str, begins: bytes
) -> None:
    path = written(name)
    content = path.read_bytes()
    assert content.startswith(begins)
    assert content.decode(encoding).endswith(end)
    assert ("\r" in content.decode(encoding)) == (end == "\r\n")
    header, *rows = rows_of(path, encoding, delimiter)
    assert {len(row) for row in rows} == {len(header)}
    assert len(rows) == BY_NAME[name].rows
    if encoding != "utf-8" and not encoding.startswith("utf-16") and encoding != "utf-8-sig":
        with pytest.raises(UnicodeDecodeError):
            content.decode("utf-8")


@pytest.mark.parametrize("name", [file.name for file in FILES if file.name.startswith("columns_in_")])
def test_columns_are_named_in_the_language_of_the_rows(written: Any, name: str) -> None:
    language = name.removeprefix("columns_in_")
    rows = rows_of(written(name), "utf-8", ",")
    assert tuple(rows[0]) == LANGUAGES[language][0]
    assert [tuple(row) for row in rows[1:]] == questions(language)
    assert len({question for question, _ in rows[1:]}) == len(rows) - 1


def test_german_excel_writes_decimal_commas_quotes_line_breaks_and_question_marks_for_emojis(written: Any) -> None:
    path = written("excel_german")
    _, first, *rows = rows_of(path, "cp1252", ";")
    assert first == ["1", TICKETS[0].subject, TICKETS[0].body, "12,50", "Rechnung"]
    assert rows[2][3] == "1.249,90"
    assert rows[6][2].endswith(" ??")
    assert b"\x80" in path.read_bytes()  # € in cp1252, a control character in latin-1
    assert b";12,50;" in path.read_bytes(), "a decimal comma is not quoted"


def test_excel_pads_blank_rows_and_empty_columns(written: Any) -> None:
    lines = written("excel_blank_rows").read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == "Question,Answer,,"
    assert lines[-5:] == [",,,"] * 5
    assert sum(line == ",,," for line in lines) == 7


def test_excel_leaves_delimiters_out_after_sixteen_rows(written: Any) -> None:
    widths = [len(row) for row in rows_of(written("excel_sixteen_rows"), "utf-8-sig", ",")]
    assert widths == [3] * 16 + [2] * 9


def test_the_sep_line_comes_before_the_header(written: Any) -> None:
    assert written("excel_sep_line").read_bytes().startswith(b"\xef\xbb\xbfsep=;\r\nFrage;Antwort\r\n")


def test_polish_excel_read_as_cp1252_has_other_letters(written: Any) -> None:
    content = written("excel_polish").read_bytes()
    assert "każdego" in content.decode("cp1250") and "każdego" not in content.decode("cp1252")


def test_sheets_ends_without_a_line_break_and_quotes_nothing_in_tsv(written: Any) -> None:
    assert not written("sheets_csv").read_bytes().endswith(b"\n")
    lines = written("sheets_tsv").read_bytes().decode().split("\r\n")
    assert lines[0] == "text\tlabel"
    assert {line.count("\t") for line in lines} == {1}
    assert '"Teapot" is the best shop, thanks!\tpraise' in lines
    assert not any(line.endswith('"') for line in lines)


def test_a_table_without_a_header_begins_with_a_row(written: Any) -> None:
    assert rows_of(written("no_header"), "utf-8", ",")[0] == list(questions()[0])


def test_a_workbook_has_types_a_hidden_sheet_and_empty_rows(written: Any) -> None:
    path = written("xlsx_workbook")
    from openpyxl import load_workbook

    book = load_workbook(path)
    assert path.read_bytes()[:2] == b"PK"
    assert [(sheet.title, sheet.sheet_state) for sheet in book] == [("Tickets", "visible"), ("lists", "hidden")]
    assert book["Tickets"].max_row == 60 and book["Tickets"].max_column == 7
    assert isinstance(book["Tickets"]["C2"].value, float) and book["Tickets"]["A2"].is_date


def test_a_workbook_by_hand_has_its_header_in_the_third_row_of_two_sheets(written: Any) -> None:
    path = written("xlsx_two_sheets")
    from openpyxl import load_workbook

    for sheet, language in zip(load_workbook(path), ("english", "german"), strict=True):
        assert [cell.value for cell in sheet[3]][:2] == list(LANGUAGES[language][0])
        assert sheet["C4"].value == "=LEN(B4)"


def test_an_ods_sheet_ends_with_a_million_repeated_rows(written: Any) -> None:
    path = written("ods_sheet")
    from odf.namespaces import TABLENS
    from odf.opendocument import load
    from odf.table import TableRow

    rows = cast("Any", load(path)).spreadsheet.getElementsByType(TableRow)
    assert rows[-1].getAttrNS(TABLENS, "number-rows-repeated") == str(1048576 - len(ALL_TICKETS) - 1)
    assert path.read_bytes()[30:38] == b"mimetype"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("json_under_data", ["data", "meta"]),
        ("json_under_rows", ["features", "rows", "num_rows_total", "num_rows_per_page", "partial"]),
        ("json_train_test", ["train", "test"]),
        ("json_columns", ["text", "label"]),
        ("pandas_to_json", ["text", "label"]),
    ],
)
def test_json_under_keys(written: Any, name: str, keys: list[str]) -> None:
    assert list(json.loads(written(name).read_bytes())) == keys


def test_pandas_writes_columns_as_objects_by_index(written: Any) -> None:
    assert json.loads(written("pandas_to_json").read_bytes())["label"]["0"] == "billing"


def test_json_is_laid_out_as_it_says(written: Any) -> None:
    assert written("json_one_line").read_bytes().count(b"\n") == 0
    assert len(lines_of(written("json_lines_named_json"))) == len(questions())
    with pytest.raises(json.JSONDecodeError):
        lines_of(written("json_pretty_lines"))
    assert b"NaN" in written("json_nan").read_bytes()


def test_parquet_labels_are_integers_with_and_without_names(written: Any) -> None:
    import pyarrow.parquet as pq

    named = pq.read_table(written("parquet_class_labels"))
    plain = pq.read_table(written("parquet_integers"))
    features = json.loads(named.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": list(LABELS), "_type": "ClassLabel"}
    assert str(named.schema.field("label").type) == "int64"
    assert b"huggingface" not in plain.schema.metadata
    assert str(plain.schema.field("label").type) == "double" and plain["label"].null_count == 3


def test_a_saved_dataset_has_two_splits(written: Any) -> None:
    path = written("saved_dataset")
    assert json.loads((path / "dataset_dict.json").read_bytes()) == {"splits": ["train", "test"]}


@pytest.mark.parametrize(
    ("name", "ending", "mark"),
    [
        ("documents_markdown", ".md", "---\ntitle:"),
        ("documents_html", ".html", "<!DOCTYPE html>"),
        ("documents_rst", ".rst", ".. image::"),
        ("documents_pdf_text", ".txt", "\f"),
    ],
)
def test_documents_stand_in_subfolders_beside_an_image_and_the_finder_s_file(
    written: Any, name: str, ending: str, mark: str
) -> None:
    root = written(name)
    pages = sorted(root.rglob(f"*{ending}"))
    assert len(pages) == len(articles()) and {page.parent.name for page in pages} == {"en", "de", "fr"}
    assert all(mark in page.read_text(encoding="utf-8") for page in pages)
    assert (root / "img" / "logo.png").read_bytes().startswith(b"\x89PNG")
    assert (root / ".DS_Store").read_bytes()[4:8] == b"Bud1"


def test_label_studio_keeps_the_label_in_the_result_and_marks_what_was_skipped(written: Any) -> None:
    tasks = json.loads(written("label_studio_choices").read_bytes())
    assert tasks[0]["data"] == {"text": TICKETS[0].body}
    assert tasks[0]["annotations"][0]["result"][0]["value"] == {"choices": ["billing"]}
    assert sum(task["annotations"][0]["was_cancelled"] for task in tasks) == 2
    answers = json.loads(written("label_studio_answers").read_bytes())
    assert answers[0]["annotations"][0]["result"][0]["value"] == {"text": [questions()[0][1]]}
    assert json.loads(written("label_studio_min").read_bytes())[0]["sentiment"] == "billing"


def test_argilla_has_a_list_of_responses_by_question_on_one_escaped_line(written: Any) -> None:
    path = written("argilla_records")
    rows = json.loads(path.read_bytes())
    assert path.read_bytes().isascii() and b"\n" not in path.read_bytes()
    assert list(rows[0]) == ["id", "fields", "metadata", "suggestions", "responses", "vectors", "_server_id"]
    assert rows[0]["responses"]["label"][0]["value"] == "billing"
    assert sum(not row["responses"] for row in rows) == 2


def test_doccano_has_lists_of_labels_and_escaped_slashes(written: Any) -> None:
    path = written("doccano_categories")
    rows = lines_of(path)
    assert list(rows[0]) == ["id", "text", "label", "Comments"]
    assert rows[0]["label"] == ["billing"] and rows[3]["label"] == []
    assert b"http:\\/\\/shop.example" in path.read_bytes()


def test_prodigy_has_answers_and_accepted_options(written: Any) -> None:
    binary = lines_of(written("prodigy_binary"))
    assert {row["answer"] for row in binary} == {"accept", "reject", "ignore"}
    accepted = [row for row in binary if row["answer"] == "accept"]
    assert len(accepted) == BY_NAME["prodigy_binary"].rows
    choice = lines_of(written("prodigy_choice"))[0]
    assert choice["accept"] == ["billing"] and [option["id"] for option in choice["options"]] == list(LABELS)


def test_openai_files_have_weights_tools_and_answers_in_another_order(written: Any) -> None:
    rows = lines_of(written("openai_chat"))
    assert rows[1]["messages"][2]["weight"] == 0 and rows[1]["messages"][-1]["weight"] == 1
    assert "content" not in rows[0]["messages"][4] and rows[0]["tools"][0]["type"] == "function"
    folder = written("openai_batch")
    asked, answered = lines_of(folder / "requests.jsonl"), lines_of(folder / "batch_68f0c1_output.jsonl")
    assert [row["custom_id"] for row in asked] == [row["custom_id"] for row in answered][::-1]
    assert sum(row["response"]["status_code"] == 200 for row in answered) == len(asked) - 1


def test_conversations_and_pairs_have_the_hub_s_layouts(written: Any) -> None:
    shared = json.loads(written("sharegpt_tools").read_bytes())[0]
    assert [turn["from"] for turn in shared["conversations"]][3:] == ["function_call", "observation", "gpt"]
    assert json.loads(shared["tools"])[0]["name"] == "opening_hours"
    alpaca = json.loads(written("alpaca_history").read_bytes())[0]
    assert alpaca["history"] == [list(dialogues()[0][0])]
    with gzip.open(written("hh_pairs"), "rt", encoding="utf-8") as file:
        pair = json.loads(file.readline())
    assert pair["chosen"].startswith("\n\nHuman: ") and pair["rejected"].count("\n\nAssistant: ") == 2


def test_ultrafeedback_has_prompt_lists_scores_and_messages(written: Any) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(written("ultrafeedback"))
    assert {"prompt", "chosen", "rejected", "messages", "score_chosen", "score_rejected"} <= set(table.column_names)
    assert table["chosen"][0].as_py()[0].keys() == {"content", "role"}


def test_messengers_write_what_phones_and_slack_write(written: Any) -> None:
    chat = written("whatsapp_chat").read_text(encoding="utf-8")
    assert "\u202fAM - Teapot Shop: " in chat and "<Media omitted>" in chat
    export = written("slack_export")
    messages = json.loads((export / "questions" / "2026-03-02.json").read_bytes())
    assert [message["ts"] for message in messages] == sorted(message["ts"] for message in messages)
    assert messages[1]["thread_ts"] == messages[2]["thread_ts"]
