"""Tables as spreadsheet programs write them: what is found, what is said, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.options import in_flags
from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.files.reader import Reader, open_source
from tunesmith.data.files.rows import BadRow, LeftOut, Row
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings


def opened(path: Path, text: str | bytes, **settings: Any) -> Reader:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(SourceSettings(path=str(path), **settings))


def rows_of(reader: Reader) -> list[Row | BadRow]:
    return [row for part in reader.parts for row in part.rows()]


def fields_of(reader: Reader) -> list[dict[str, str]]:
    return [row.fields for row in rows_of(reader) if isinstance(row, Row)]


@pytest.mark.parametrize(("delimiter", "said"), [(";", "';'"), ("\t", "tab"), ("|", "'|'")])
def test_the_separator_is_the_one_that_gives_each_record_as_many_fields(tmp_path: Path, delimiter: str, said: str):
    lines = [("prompt", "completion"), ("Wie viel, bitte?", "12,50"), (f'"a{delimiter}b"', "1,2")]
    reader = opened(tmp_path / "t.csv", "".join(delimiter.join(line) + "\r\n" for line in lines))
    assert f"separator {said}" in reader.reason
    assert fields_of(reader) == [
        {"prompt": "Wie viel, bitte?", "completion": "12,50"},
        {"prompt": f"a{delimiter}b", "completion": "1,2"},
    ]


def test_the_usual_separator_is_not_said(tmp_path: Path):
    assert "separator" not in opened(tmp_path / "t.csv", "prompt,completion\na,b\n").reason


def test_two_separators_that_fit_are_refused_and_the_key_decides(tmp_path: Path):
    text = "prompt;x|completion\na;y|b\n"
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "t.csv", text)
    assert caught.value.what == "several separators fit this table"
    assert "['prompt', 'x|completion']" in str(caught.value.why)
    assert 'data.delimiter: ";"' in str(caught.value.remedy)
    reader = opened(tmp_path / "t.csv", text.replace("x|c", "c|"), delimiter=";", columns={"completion": "c|ompletion"})
    assert fields_of(reader) == [{"prompt": "a", "c|ompletion": "y|b"}]


def test_commas_within_numbers_alone_separate_nothing_where_another_separator_fits(tmp_path: Path):
    text = "Das Kabel kostet 3,50 Euro;Preis\nEs wiegt 1,2 kg;Gewicht\nWie lang: 2,5 m?;Maße\n"
    for content in (text, f"{text}kurz\n"):
        reader = opened(
            tmp_path / "t.csv", content, header=False, columns={"prompt": "column1", "completion": "column2"}
        )
        assert "separator ';'" in reader.reason
        assert fields_of(reader)[1] == {"column1": "Es wiegt 1,2 kg", "column2": "Gewicht"}
    other = opened(
        tmp_path / "o.csv", "a;b,c\n3;4,5\n", header=False, columns={"prompt": "column1", "completion": "column2"}
    )
    assert fields_of(other)[0] == {"column1": "a;b", "column2": "c"}, "the usual one where commas are others, too"


def test_a_line_that_names_the_separator_is_no_row(tmp_path: Path):
    reader = opened(tmp_path / "t.csv", "\ufeffsep=;\r\nprompt;completion\r\na,b;c\r\n")
    assert rows_of(reader) == [Row({"prompt": "a,b", "completion": "c"}, f"{tmp_path / 't.csv'}:3")]


def test_quotes_are_text_in_a_tab_file_that_quotes_nothing(tmp_path: Path):
    reader = opened(tmp_path / "t.tsv", 'prompt\tcompletion\n"Tea" is good\tb\n5" box\tc')
    assert [row["prompt"] for row in fields_of(reader)] == ['"Tea" is good', '5" box']
    assert "quotes are part of the text" in reader.reason


def test_empty_records_and_columns_behind_are_left_out_and_a_value_there_costs_no_row(tmp_path: Path):
    text = "prompt,completion,,\na,b,,\n,,,\nc,d,,\n"
    reader = opened(tmp_path / "t.csv", text)
    assert fields_of(reader) == [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    assert "2 empty columns behind the others left out" in reader.reason
    many = "".join(f"q{number},a,,\n" for number in range(1200))
    rows = rows_of(opened(tmp_path / "t.csv", f"prompt,completion,,\n{many}x,y,z,\n"))
    assert isinstance(rows[-1], Row) and rows[-1].fields == {"prompt": "x", "completion": "y"}


def test_a_repeated_column_has_a_number_and_is_proposed_for_nothing(tmp_path: Path):
    text = "title,Comment,Comment.2,Comment,,\na,b,c,d,e,f\n"
    reader = opened(tmp_path / "t.csv", text, columns={"prompt": "title", "completion": "Comment.3"})
    assert fields_of(reader) == [
        {"title": "a", "Comment": "b", "Comment.2": "c", "Comment.3": "d", "": "e", "column6": "f"}
    ]
    assert "the column Comment is there 2 times: Comment, Comment.3" in reader.reason
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.csv", "question,answer,answer\na,b,c\n")
    assert caught.value.proposal is None


def test_the_index_of_pandas_is_no_column_and_a_column_of_numbers_with_a_name_is(tmp_path: Path):
    reader = opened(tmp_path / "t.csv", ",Unnamed: 0,prompt,completion\n0,0,a,b\n1,1,c,d\n")
    assert fields_of(reader)[1] == {"prompt": "c", "completion": "d"}
    assert "only counts the rows: left out" in reader.reason
    assert "id" in fields_of(opened(tmp_path / "t.csv", "id,prompt,completion\n0,a,b\n1,c,d\n"))[0]


def test_records_that_excel_cut_short_in_blocks_of_16_get_their_empty_fields_and_others_do_not(tmp_path: Path):
    full = ["prompt,completion,note", *(f"q{number},a,ok" for number in range(15))]
    reader = opened(tmp_path / "t.csv", "\n".join([*full, *(f"q{number},a" for number in range(15, 20))]))
    assert len(fields_of(reader)) == 20 and fields_of(reader)[-1]["note"] == ""
    assert "Excel left out empty fields at the end of some records: note" in reader.reason
    ragged = rows_of(opened(tmp_path / "t.csv", "\n".join([*full, "q,a", "r,b,c"])))
    assert [row.found for row in ragged if isinstance(row, BadRow)] == ["2 fields"]


def test_a_code_page_is_found_and_said_with_an_example(tmp_path: Path):
    text = "prompt;completion\nDie Größe stimmt nicht – was nun?;Bitte schicken Sie das Paket zurück\n"
    reader = opened(tmp_path / "t.csv", text.encode("cp1252"))
    assert "encoding cp1252 (for example 'Größe')" in reader.reason
    assert fields_of(reader)[0]["prompt"].startswith("Die Größe stimmt nicht –")
    text = text.replace("prompt;", "prompt;Priorität;").replace("nun?;", "nun?;hoch;")
    reader = opened(tmp_path / "t.csv", text.encode("cp1252"))
    assert "(for example 'Priorität')" in reader.reason, "a whole word of one cell"


def test_a_few_invalid_bytes_in_utf_8_are_bad_rows_and_no_other_encoding(tmp_path: Path):
    text = "prompt,completion\n" + "Größe,schön\n" * 5
    rows = rows_of(opened(tmp_path / "t.csv", text.encode() + b"gr\xf6\xdfe,x\n"))
    assert [row.found for row in rows if isinstance(row, BadRow)] == ["bytes that are not UTF-8"]
    assert len(rows) == 6


def test_the_encoding_of_the_recipe_is_taken_and_an_unknown_one_refused(tmp_path: Path):
    text = "prompt,completion\nżółw,dół\n".encode("cp1250")
    assert fields_of(opened(tmp_path / "t.csv", text, encoding="cp1250"))[0] == {"prompt": "żółw", "completion": "dół"}
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "t.csv", text, encoding="cp99999")
    assert "data.encoding" in str(caught.value.remedy)


def test_a_table_without_a_header_has_numbered_columns_and_keeps_its_first_row(tmp_path: Path):
    columns = {"prompt": "column1", "completion": "column2"}
    reader = opened(tmp_path / "t.csv", "Where?,Here.\nWhen?,Now.\n", header=False, columns=columns)
    assert fields_of(reader) == [{"column1": "Where?", "column2": "Here."}, {"column1": "When?", "column2": "Now."}]
    assert [row.source.rpartition(":")[2] for row in rows_of(reader)] == ["1", "2"]
    assert "no header: the columns are column1, column2" in reader.reason


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("Where is it?,In Lyon.\nWhen is it?,At nine.\n", {"prompt": "column1", "completion": "column2"}),
        ("good,__label__5\n" + "fine,__label__5\n" * 5, {"prompt": "column1", "completion": "column2"}),
        ("pos,great\n" + "pos,nice\nneg,bad\npos,fun\nneg,sad\n" * 2, {"prompt": "column2", "completion": "column1"}),
    ],
    ids=["sentences", "fasttext", "labels first"],
)
def test_a_first_line_that_is_a_row_is_refused_with_the_key_and_the_columns(
    tmp_path: Path, text: str, columns: dict[str, str]
):
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.csv", text)
    assert caught.value.what == "the first line is a row, and not the names of the columns"
    proposal = caught.value.proposal
    assert proposal is not None
    assert (proposal.columns, proposal.keys) == (columns, ("data.header=false",))
    reader = opened(tmp_path / "t.csv", text, header=False, columns=columns)
    assert len(fields_of(reader)) == text.count("\n")


@pytest.mark.parametrize(
    "text",
    [
        "What do you ask?,What do we say?\n" + "Where is it?,In Lyon.\nWhen is it?,At nine.\n" * 5,
        "frage,2023\nWhere is it?,In Lyon.\n",
        "Tell us in a few words what you think,note\nfine,good\n",
        "foo,bar\nyes,no\nfoo,bar\nmaybe,so\nfoo,bar\n",
        "foo,bar\nfoo,no\nmaybe,so\n",
    ],
    ids=["questions", "year", "long", "joined files", "one value"],
)
def test_of_a_first_line_that_may_be_names_nothing_is_proposed_and_both_keys_lead_on(tmp_path: Path, text: str):
    with pytest.raises(ColumnsUnclear, match="the first line may be a row or the names") as caught:
        opened(tmp_path / "t.csv", text)
    assert caught.value.proposal is None
    remedy = str(in_flags(caught.value, "tunesmith init t.csv").remedy)
    assert remedy.startswith(
        "if it is a row, run `tunesmith init t.csv data.header=false --columns prompt=column1,completion=column2`; if "
        "they are the names of the columns, run `tunesmith init t.csv data.header=true --columns "
    )
    with pytest.raises(ColumnsUnclear, match="the columns have no names") as caught:
        opened(tmp_path / "t.csv", text, header=False)
    proposal = caught.value.proposal
    assert proposal is not None
    kept = opened(tmp_path / "t.csv", text, header=False, columns=proposal.columns)
    assert len(fields_of(kept)) == text.count("\n")
    with pytest.raises(ColumnsUnclear, match="the shape of the rows is not known"):
        opened(tmp_path / "t.csv", text, header=True)
    names = dict(zip(("prompt", "completion"), text.partition("\n")[0].split(","), strict=True))
    rows = rows_of(opened(tmp_path / "t.csv", text, header=True, columns=names))
    assert len(rows) == text.count("\n") - 1
    assert sum(isinstance(row, LeftOut) for row in rows) == text.count(text.partition("\n")[0] + "\n") - 1


FIGURES = "".join(
    f"{n};{n % 28 + 1:02}.03.2024;Wo ist mein Paket {n}?;{('Versand', 'Rechnung')[n % 2]};{n + 100},50\n"
    for n in range(1, 91)
)


def test_numbers_and_dates_under_a_line_of_words_make_it_the_names(tmp_path: Path):
    with pytest.raises(ColumnsUnclear, match="the shape of the rows is not known"):
        opened(tmp_path / "t.csv", f"Lfd. Nr.;Datum;Kundenfrage;Kategorie;Betrag\n{FIGURES}")
    columns = {"prompt": "Kundenfrage", "completion": "Kategorie"}
    reader = opened(tmp_path / "t.csv", f"Lfd. Nr.;Datum;Kundenfrage;Kategorie;Betrag\n{FIGURES}", columns=columns)
    assert len(fields_of(reader)) == 90


def test_of_a_table_without_names_one_remedy_says_the_header_and_the_columns(tmp_path: Path):
    whole = FIGURES.replace(",50", "")
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.csv", whole)
    assert str(in_flags(caught.value, "tunesmith init t.csv").remedy).startswith(
        "run `tunesmith init t.csv data.header=false --columns prompt=column3,completion=column4`; "
    )
    columns = {"prompt": "column3", "completion": "column4"}
    assert len(fields_of(opened(tmp_path / "t.csv", whole, header=False, columns=columns))) == 90


def test_names_that_are_known_are_no_row_where_values_are_the_same(tmp_path: Path):
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.csv", "Question,Answer\nQuestion,yes\nQuestion,no\nWhy?,so\n")
    proposal = caught.value.proposal
    assert proposal is not None
    assert (proposal.columns, proposal.keys) == ({"prompt": "Question", "completion": "Answer"}, ())


def test_three_columns_without_names_are_shown_and_none_is_proposed(tmp_path: Path):
    rows = "Where is it?,Wo ist es?,Où est-ce?\nWhen is it?,Wann ist es?,Quand est-ce?\n"
    with pytest.raises(ColumnsUnclear, match=r"set data\.header: false"):
        opened(tmp_path / "t.csv", rows)
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.csv", rows, header=False)
    assert caught.value.proposal is None
    assert "column2: 'Wo ist es?'" in str(caught.value.why)
    assert "{prompt: <column>, completion: <column>}" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("third", "left_out"),
    [
        ("CC-BY 2.0 (France) Attribution: tatoeba.org #{n} (CK) & #9{n} (sacredceltic)", True),
        ("https://example.com/{n}", True),
        ("SUP-{n}", True),
        ("{n}", True),
        ("Exported by ann{n}@mail.example at {n}:00", True),
        ("Das {n}. Mal ist {word} hier im {word}.", False),
    ],
)
def test_an_id_or_a_licence_is_no_answer(tmp_path: Path, third: str, left_out: bool):
    words = ["Haus", "Garten", "Wald", "Hof", "Zug", "Bad", "Dorf", "Park", "Markt", "Bus"]
    text = "".join(
        f"The {word} is here {n}.\t{third.format(n=n, word=word)}\tC'est {word} ici {n}.\n"
        for n, word in enumerate(words * 6)
    )
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.tsv", text)
    proposal = caught.value.proposal
    if not left_out:
        assert proposal is None
        return
    assert proposal is not None, caught.value.what
    assert proposal.columns == {"prompt": "column1", "completion": "column3"}
    assert "(column2: ids, figures, a licence or one text in all rows)" in proposal.reason
    assert "{prompt: column3, completion: column1} for the other way round" in proposal.otherwise


def test_a_text_of_the_first_row_is_no_name_in_a_command(tmp_path: Path):
    text = "I bought it here?\tno end\n" + "I sold it there today\tsome other\n" * 5
    with pytest.raises(ColumnsUnclear) as caught:
        opened(tmp_path / "t.tsv", text.replace("I bought it here?", "I bought this one yesterday."))
    assert "prompt: I bought" not in str(caught.value.remedy)


def test_names_that_are_no_values_are_not_taken_for_a_row(tmp_path: Path):
    with pytest.raises(ColumnsUnclear, match="the shape of the rows is not known"):
        opened(tmp_path / "t.csv", "foo,bar\nWhere?,Here.\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-7"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json", "t.txt"])
def test_an_encoding_that_the_file_is_not_in_is_told_of(tmp_path: Path, encoding: str, name: str):
    text = '{"prompt": "żółw\U0001f600+", "completion": "dół +ü-\udcff"}\n'.encode("utf-8", "surrogateescape")
    with pytest.raises(DataError) as caught:
        opened(tmp_path / name, text * 999, encoding=encoding)
    assert caught.value.render()


def test_what_is_said_of_a_wrong_encoding_leads_out(tmp_path: Path):
    text = "prompt,completion\nżółw,dół\n" * 5
    with pytest.raises(DataError, match="cannot be read in the encoding utf-32") as caught:
        opened(tmp_path / "t.csv", text, encoding="utf-32")
    assert "take data.encoding out" in str(caught.value.remedy)
    assert fields_of(opened(tmp_path / "t.csv", text))[0] == {"prompt": "żółw", "completion": "dół"}


@pytest.mark.parametrize("title", ["Report,,\n", "Report,,\nof March,,\n,,\n"])
def test_lines_above_the_header_are_passed_over_and_said_and_rows_keep_their_lines(tmp_path: Path, title: str):
    reader = opened(tmp_path / "t.csv", f"{title}prompt,completion,agent\na,b,Ann\nc,d,Bo\n")
    assert fields_of(reader)[0] == {"prompt": "a", "completion": "b", "agent": "Ann"}
    assert f"{title.count(chr(10))} line" in reader.reason and "above the header passed over" in reader.reason
    assert rows_of(reader)[0].source.endswith(f":{title.count(chr(10)) + 2}")


def test_a_header_of_one_name_is_no_title(tmp_path: Path):
    assert fields_of(opened(tmp_path / "t.csv", "text,,\none,,\ntwo,,\n", format="text")) == [
        {"text": "one"},
        {"text": "two"},
    ]


def test_names_in_a_header_have_no_spaces_around_them_unless_they_are_named_so(tmp_path: Path):
    text = "\ufeff prompt ,\u00a0completion\na,b\n"
    assert fields_of(opened(tmp_path / "t.csv", text)) == [{"prompt": "a", "completion": "b"}]
    named = {"prompt": " prompt ", "completion": "\u00a0completion"}
    assert fields_of(opened(tmp_path / "t.csv", text, columns=named)) == [{" prompt ": "a", "\u00a0completion": "b"}]
    both = opened(tmp_path / "t.csv", "prompt,completion, prompt\na,b,c\n")
    assert fields_of(both) == [{"prompt": "a", "completion": "b", " prompt": "c"}]


def test_python_s_dicts_and_a_comma_too_many_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"write each with `json\.dumps\(row\)`"):
        opened(tmp_path / "t.jsonl", "{'prompt': 'a', 'completion': 'b'}\n" * 3)
    with pytest.raises(DataError, match="a comma before the ] that ends the array"):
        opened(tmp_path / "t.json", '[\n{"prompt": "a", "completion": "b"},\n]\n')
