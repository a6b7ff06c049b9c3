"""Small files of mixed separators: what each gives. The choice is made where it is sure, and said; else it is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.reader import open_source
from tunesmith.data.files.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings

BARE = {"header": False}
SEMICOLON, PIPE, TAB = "separator ';'", "separator '|'", "separator tab"
NO = ", and not ',', which stands only within "
# name: content, settings, what is said of the separator, and the first row's values.
READ: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "commas": ("prompt,completion\na,b\n", {}, "", ("a", "b")),
    "semicolons with decimal commas": (
        "text;price;label\nTea;3,50;x\nPot;12,00;y\n",
        {},
        SEMICOLON,
        ("Tea", "3,50", "x"),
    ),
    "semicolons with prose commas": ("text;label\nHi, you?;a\nMy pot, it leaks;b\n", {}, SEMICOLON, ("Hi, you?", "a")),
    "pipes": ("text|label\nTea, please|tea\nPots|pots\n", {}, PIPE, ("Tea, please", "tea")),
    "pipes with decimal commas": ("text|price\ntea|1,2\nmilk|3,4\n", {}, PIPE, ("tea", "1,2")),
    "tabs in a csv": ("text\tlabel\nTea, please\ttea\n", {}, TAB, ("Tea, please", "tea")),
    "quoted commas": ('text,label\n"Tea, please","tea"\n"Pots|pans","pots"\n', {}, "", ("Tea, please", "tea")),
    "quoted semicolons": ('text;label\n"a;b";"c,d"\n"e;f";"g,h"\n', {}, SEMICOLON, ("a;b", "c,d")),
    "every comma quoted": ('text;label\n"Tea, please";tea\n"Pots, pans";pots\n', {}, SEMICOLON, ("Tea, please", "tea")),
    "thousands": ("text;n\nsold 1,200 cups;1\nsold 3,400 pots;2\n", {}, SEMICOLON, ("sold 1,200 cups", "1")),
    "a category path": ("text,label\nmilk,food|dairy\npots,home|kitchen\n", {}, "", ("milk", "food|dairy")),
    "a short record": ("text;label\na, b;c\nd, e, f;g\nh\n", {}, SEMICOLON, ("a, b", "c")),
    "bare, commas": ("tea,cups\nmilk,jugs\n", BARE, "", ("tea", "cups")),
    "bare, pipes alone": ("tea|cups\nmilk|jugs\n", BARE, PIPE, ("tea", "cups")),
    "bare, semicolons and decimal commas": ("tea;1,2\nmilk;3,4\n", BARE, f"{SEMICOLON}{NO}numbers", ("tea", "1,2")),
    "bare, tabs and decimal commas": ("tea\t1,2\nmilk\t3,4\n", BARE, f"{TAB}{NO}numbers", ("tea", "1,2")),
    "bare, tabs and sentences": ("Hi, you\ta\nBye, you\tb\n", BARE, f"{TAB}{NO}sentences", ("Hi, you", "a")),
    "bare, commas between words": ("a|b,c|d\ne|f,g|h\n", BARE, "", ("a|b", "c|d")),
    "bare, semicolons but one short record": (
        "Hi, you;a\nBye;b\nGood night;b\nHi;a\nSo, so, so;c\nSo;c\nbroken\n",
        BARE,
        SEMICOLON,
        ("Hi, you", "a"),
    ),
    "one column": ("text\nhello\nbye\n", {}, "", ("hello",)),
}
# name: content, and the delimiters that are named.
ASKED: dict[str, tuple[str, str]] = {
    "pipes and commas in numbers": ("tea|1,2|cups\nmilk|3,4|jugs\n", ",|"),
    "a price and a pipe": ("Das Kabel kostet 3,50 Euro|Preis\nEs wiegt 1,2 kg|Gewicht\n", ",|"),
    "numbers and pipes": ("1|2,3|4\n5|6,7|8\n", ",|"),
    "numbers and semicolons": ("1;2,3;4\n5;6,7;8\n", ",;"),
    "sentences and semicolons": ("Guten Tag, wo ist es?;Versand\nHallo, was kostet es?;Preis\n", ",;"),
    "semicolons and pipes": ("a;x|b\nc;y|d\n", ";|"),
}


def opened(path: Path, **settings: Any) -> tuple[str, list[tuple[str, ...]]]:
    source = SourceSettings.model_validate({"path": str(path), **settings})
    parts, _, _ = parts_of(source, "train")
    rows = [tuple(row.fields.values()) for part in parts for row in part.rows() if isinstance(row, Row)]
    return next((said for said in parts[0].choices if said.startswith("separator")), ""), rows


@pytest.mark.parametrize("name", READ)
def test_a_separator_that_is_sure_is_taken_and_said(tmp_path: Path, name: str) -> None:
    text, settings, said, first = READ[name]
    path = tmp_path / "t.csv"
    path.write_text(text)
    found, rows = opened(path, **settings)
    assert (found, rows[0]) == (said, first)


@pytest.mark.parametrize("header", [False, None], ids=["no header", "nothing said"])
@pytest.mark.parametrize("name", ASKED)
def test_a_separator_that_would_be_guessed_is_asked_for_and_each_way_leads_out(
    tmp_path: Path, name: str, header: bool | None
) -> None:
    text, delimiters = ASKED[name]
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="several separators fit this table") as caught:
        opened(path, header=header)
    remedy = str(caught.value.remedy)
    named = re.findall(r'set data\.delimiter: "(.)"', remedy)
    assert "".join(sorted(named)) == "".join(sorted(delimiters))
    first = text.splitlines()[0]
    for each in named:
        assert opened(path, header=False, delimiter=each)[1][0] == tuple(first.split(each))
    lines = path.rename(tmp_path / "t.txt")
    assert opened(lines)[1][0] == (first,)
    assert open_source(SourceSettings(path=str(lines))).shape == "text"


def test_a_column_of_texts_with_bare_commas_is_read_with_the_key_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text\nHello, you\nBye\nOne, two, three\n")
    source = SourceSettings(path=str(path), format="text")
    reader = open_source(source)
    rows = list(reader.examples())
    error = reader.refusal([row for row in rows if hasattr(row, "found")], 2, 1)  # type: ignore[misc]
    assert "if commas are part of the one column, set data.delimiter: tab" in str(error.remedy)
    assert opened(path, delimiter="tab")[1] == [("Hello, you",), ("Bye",), ("One, two, three",)]


def test_lines_without_a_separator_are_texts_in_a_file_of_the_ending_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Hello, you\nBye\nOne, two, three\n")
    with pytest.raises(DataError) as caught:
        open_source(SourceSettings(path=str(path)))
    assert "if each line is one text, give the file the ending .txt" in str(caught.value.remedy)


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", None), ("t.txt", "|")])
def test_a_table_of_markdown_is_read_without_its_frame(tmp_path: Path, name: str, delimiter: str | None) -> None:
    path = tmp_path / name
    path.write_text("| question | answer |\n|:---|---:|\n| Where, please? | Here. |\n| When? | --- |\n| So? | |\n")
    columns = {"prompt": "question", "completion": "answer"}
    reader = open_source(SourceSettings(path=str(path), delimiter=delimiter, columns=columns))
    assert "a table of Markdown" in reader.reason
    rows = [row for row in reader.parts[0].rows() if isinstance(row, Row)]
    assert [(*row.fields.values(), row.source.rpartition(":")[2]) for row in rows] == [
        ("Where, please?", "Here.", "3"), ("When?", "---", "4"), ("So?", "", "5")
    ]  # fmt: skip
