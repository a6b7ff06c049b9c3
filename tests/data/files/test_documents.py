"""Folders of documents as people have them: which files are read, how, and what is said of the others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.examples.example import Example
from tunesmith.data.files import folders
from tunesmith.data.files.reader import Reader, open_source, own_eval_split
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings


def folder(root: Path, **files: str | bytes) -> Path:
    """Files by name; ``__`` in a name is a slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def opened(path: Path | str, **settings: Any) -> Reader:
    return open_source(SourceSettings(path=str(path), **settings))


def texts(reader: Reader) -> list[str]:
    return [example.text or "" for example in reader.examples() if isinstance(example, Example)]


def test_documents_of_subfolders_are_read_whole_and_what_is_passed_over_is_named(tmp_path: Path):
    folder(
        tmp_path,
        **{
            "b.md": "# B\n\nTwo\nlines.\n",
            "a__deep__a.rst": "A\n=\n",
            "a__c.markdown": "C",
            "img__logo.png": b"\x89PNG",
            ".git__HEAD.md": "hidden",
            ".DS_Store": b"\0",
            "README": "no ending",
            "empty.md": "\n\n",
            "prices.xlsx": b"PK",
        },
    )
    reader = opened(tmp_path)
    assert texts(reader) == ["C", "A\n=", "# B\n\nTwo\nlines."]
    assert [name.removeprefix(f"{tmp_path}/") for name, _ in reader.files()] == ["a/c.markdown", "a/deep/a.rst", "b.md"]
    assert reader.ignored == [".DS_Store", ".git/", "README", "img/logo.png", "prices.xlsx", "empty.md"]
    said = "each file is a document; passed over 6: prices.xlsx, empty.md, README, img/logo.png, .DS_Store and 1 more"
    assert said in reader.reason


@pytest.mark.parametrize(
    ("files", "read", "left"),
    [
        ({"README.md": "x", "a.jsonl": '{"text": "a"}', "docs__x.md": "x"}, ["a.jsonl"], ["README.md", "docs"]),
        ({"LICENSE.txt": "x", "a.jsonl": '{"text": "a"}'}, ["a.jsonl"], ["LICENSE.txt"]),
        ({"README.md": "x", "a.txt": "a"}, ["a.txt"], ["README.md"]),
        ({"README.md": "x", "a.md": "a"}, ["README.md", "a.md"], []),
        ({"one__README.md": "x", "two__README.md": "a"}, ["one/README.md", "two/README.md"], []),
        ({"a.md": "a", "assets__prices.csv": "text\nx"}, ["a.md"], ["assets/prices.csv"]),
        ({"notes.md": "a", "b.txt": "b\nc"}, ["b.txt", "notes.md"], []),
    ],
)
def test_notes_beside_data_are_no_rows(tmp_path: Path, files: dict[str, str], read: list[str], left: list[str]):
    reader = opened(folder(tmp_path, **files))
    assert [name.removeprefix(f"{tmp_path}/") for name, _ in reader.files()] == read
    assert reader.ignored == left


def test_a_folder_whose_data_is_in_a_subfolder_is_refused_and_the_remedy_opens_it(tmp_path: Path):
    folder(tmp_path, **{"README.md": "x", "data__rows.jsonl": '{"text": "a"}'})
    with pytest.raises(DataError) as refused:
        opened(tmp_path)
    assert str(refused.value.why).startswith("it holds README.md, data; the formats are")
    assert refused.value.remedy == f"name the folder that holds the files: {tmp_path}/data"
    assert texts(opened(tmp_path / "data")) == ["a"]


def test_subfolders_named_for_splits_are_splits(tmp_path: Path):
    folder(tmp_path, **{"train__a.md": "a", "train__b.md": "b", "test__c.md": "c", "x.md": "x"})
    source = SourceSettings(path=str(tmp_path))
    assert texts(open_source(source)) == ["a", "b"]
    assert own_eval_split(source) == "test"
    assert texts(open_source(source, role="test")) == ["c"]
    assert open_source(source).ignored == ["x.md"]


def test_a_circle_of_links_ends(tmp_path: Path):
    folder(tmp_path, **{"a__b.md": "b"})
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert set(texts(opened(tmp_path))) == {"b"}


def test_a_folder_with_many_links_to_itself_is_read_once(tmp_path: Path):
    folder(tmp_path, **{"a__b.md": "b"})
    for number in range(4):  # with each, there are as many ways into each folder as links: 4 to the 20th
        (tmp_path / f"l{number}").symlink_to(tmp_path)
        (tmp_path / "a" / f"l{number}").symlink_to("..")
    found = opened(tmp_path)
    assert texts(found) == ["b"]
    assert found.ignored[0] == f"a/l0 (a link to {tmp_path.resolve()})"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_link_out_of_the_folder_is_not_followed_and_is_named(tmp_path: Path, scheme: str):
    private = folder(tmp_path / "private", **{"diary.md": "secret"})
    foreign = folder(tmp_path / "foreign", **{"own.md": "own"})
    (foreign / "docs").symlink_to(private)
    (foreign / "one.md").symlink_to(private / "diary.md")
    (foreign / "up").symlink_to("..")
    found = opened(f"{scheme}{foreign}")
    assert texts(found) == ["own"]
    assert found.ignored[0] == f"docs (a link to {private.resolve()}, outside the folder: not followed)"
    assert [name.split()[0] for name in found.ignored] == ["docs", "one.md", "up"]
    (foreign / "own.md").unlink()
    with pytest.raises(DataError, match="there are no data files") as refused:
        opened(f"{scheme}{foreign}")
    assert "not followed" in str(refused.value.why)
    assert "name what it leads to" in str(refused.value.remedy)
    assert texts(opened(private)) == ["secret"]


def test_a_link_to_a_table_is_named_as_one(tmp_path: Path):
    here = folder(tmp_path / "here", **{"b.jsonl": '{"text": "b"}'})
    (here / "a.jsonl").symlink_to(folder(tmp_path / "other", **{"a.jsonl": '{"text": "a"}'}) / "a.jsonl")
    assert "not followed" in opened(here).ignored[0]


def test_a_link_to_a_hidden_folder_of_the_same_is_followed_once(tmp_path: Path):
    folder(tmp_path, **{".v2__a.md": "a", ".v2__sub__b.md": "b"})
    for name in ("latest", "other"):
        (tmp_path / name).symlink_to(".v2")
    (tmp_path / ".v2" / "back").symlink_to(".")
    (tmp_path / "again").symlink_to(".v2/sub")
    assert sorted(texts(opened(tmp_path))) == ["a", "b"]


def test_folders_without_an_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "MOST_FOLDERS", 3)
    folder(tmp_path, **{f"{number}__a.md": "a" for number in range(6)})
    with pytest.raises(DataError, match="more than 3 folders"):
        opened(tmp_path)


def test_a_folder_without_a_document_that_has_text_is_one_error(tmp_path: Path):
    folder(tmp_path, **{"a.md": "", "b.md": " \n"})
    with pytest.raises(DataError, match="there are no rows in it") as refused:
        opened(tmp_path)
    assert refused.value.why == "none of 2 documents has text"


@pytest.mark.parametrize(("name", "word"), [("a.pdf", "pdftotext"), ("a.docx", "HTML"), ("a.xls", ".xlsx")])
def test_a_file_of_an_office_program_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str, word: str):
    with pytest.raises(DataError, match="files are not supported") as refused:
        opened(folder(tmp_path, **{name: b"%PDF"}) / name)
    assert word in str(refused.value.remedy)


def test_sample_by_cuts_markdown_too(tmp_path: Path):
    path = folder(tmp_path, **{"a.md": "# A\n\nOne\ntwo\n"}) / "a.md"
    found = {way: texts(opened(path, sample_by=way)) for way in ("auto", "document", "paragraph", "line")}
    assert found == {
        "auto": ["# A\n\nOne\ntwo"],
        "document": ["# A\n\nOne\ntwo"],
        "paragraph": ["# A", "One\ntwo"],
        "line": ["# A", "One", "two"],
    }


PAGES = "A book\n\nIt begins\nhere and goes\n\n  1\n\fon\n\nwith 3\n\n  2\n\f3\n\nends.\n\n  3\n\f"


def test_the_text_of_a_pdf_is_a_document_without_form_feeds_and_page_numbers(tmp_path: Path):
    path = folder(tmp_path, **{"book.txt": PAGES}) / "book.txt"
    reader = opened(path)
    assert "the text of a PDF: each file is a document, without form feeds and page numbers" in reader.reason
    assert texts(reader) == ["A book\n\nIt begins\nhere and goes\n\n\non\n\nwith 3\n\n\n3\n\nends."]
    rows = [each for each in opened(path, sample_by="paragraph").examples() if isinstance(each, Example)]
    assert [(row.text, row.source.rpartition(":")[2]) for row in rows] == [
        ("A book", "1"), ("It begins\nhere and goes", "3"), ("on", "7"), ("with 3", "9"), ("3", "12"), ("ends.", "14"),
    ]  # fmt: skip
    assert texts(opened(path, sample_by="line"))[3:5] == ["  1", "\fon"]


def test_numbers_that_do_not_count_the_pages_stay(tmp_path: Path):
    text = "One\n\n1999\n\fTwo\n\n2004\n\fThree\n\nPage 7\n\f"
    assert texts(opened(folder(tmp_path, **{"a.txt": text}) / "a.txt")) == [text.replace("\f", "").rstrip("\n")]
    titled = "- 4 -\nOne\n\f- 5 -\nTwo\n\fPage of a picture\n\f- 7 -\nThree\n"
    assert texts(opened(folder(tmp_path, **{"b.txt": titled}) / "b.txt")) == ["One\n\nTwo\nPage of a picture\n\nThree"]


def test_a_form_feed_by_chance_makes_no_pages_of_lines(tmp_path: Path):
    lines = [f"line {number}" for number in range(500)]
    for odd in ("a \f b", "a\n\f"):
        path = folder(tmp_path, **{"a.txt": "\n".join([*lines, odd])}) / "a.txt"
        assert len(texts(opened(path))) >= 501


def test_a_page_of_html_is_its_text(tmp_path: Path):
    pytest.importorskip("resiliparse")
    page = (
        "<!DOCTYPE html><html><head><title>T</title><style>p {}</style><script>var x = '<p>';</script></head><body>"
        "<nav><a href='/'>Home</a></nav><main><h1>Caf&eacute; &amp; co</h1><p>One<p>Two<br>lines<ul><li>a<li>b</ul>"
        "<table><tr><td>1<td>2</table></main><noscript>no</noscript><footer>Imprint</footer></body></html>"
    )
    reader = opened(folder(tmp_path, **{"a.html": page, "b.htm": "<nav>Home</nav>"}))
    (text,) = texts(reader)
    assert text.split() == ["Café", "&", "co", "One", "Two", "lines", "•", "a", "•", "b", "1", "2", "Imprint"]
    assert "Café & co\n\nOne\n\nTwo\nlines" in text
    assert reader.ignored == ["b.htm"]
    assert "each file is a document without scripts, styles and navigation" in reader.reason


@pytest.mark.parametrize(("charset", "codec"), [("iso-8859-1", "cp1252"), ("windows-1251", "cp1251")])
def test_a_page_is_read_in_the_encoding_that_it_names(tmp_path: Path, charset: str, codec: str):
    pytest.importorskip("resiliparse")
    word = "“Straße”" if codec == "cp1252" else "Привет"
    page = f'<html><head><meta charset="{charset}"></head><body>\n<p>{word}</p></body></html>'
    reader = opened(folder(tmp_path, **{"a.html": page.encode(codec)}))
    assert texts(reader) == [word]
    assert f"encoding {codec}, as the page says" in reader.reason
    again = opened(folder(tmp_path, **{"a.html": page.encode()}))
    assert texts(again) == [word]


def test_html_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "resiliparse", None)
    monkeypatch.delitem(sys.modules, "resiliparse.extract.html2text", raising=False)
    monkeypatch.delitem(sys.modules, "resiliparse.extract", raising=False)
    with pytest.raises(DataError, match="reads HTML, and it is not installed") as refused:
        opened(folder(tmp_path, **{"a.html": "<p>x"}))
    assert refused.value.remedy == "pip install 'tunesmith[html]', or save the pages as .txt"
