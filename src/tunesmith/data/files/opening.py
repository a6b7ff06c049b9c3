"""How a file is read: its format, encoding and layout, from its ending, the recipe and its first bytes."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.examples.column_values import names_in
from tunesmith.data.examples.labels import classes_in_words
from tunesmith.data.files.arrow_rows import parquet_classes
from tunesmith.data.files.documents import DOCUMENTS, HTML, TEXT, has_pages
from tunesmith.data.files.encodings import (
    UTF8,
    Encoding,
    charset_of,
    find_encoding,
    known_encoding,
    mark_of,
    transcoded,
)
from tunesmith.data.files.formats import DOCUMENT, FORMATS, JSONL, LINE, PAGES, Format, document_format, table_format
from tunesmith.data.files.json_layouts import (
    VIEWER,
    Kind,
    are_columns,
    are_pairs,
    choose_key,
    column_blocks,
    column_rows,
    is_split,
    keyed_blocks,
    keys_of_first,
    numbered_blocks,
    object_blocks,
    outline,
    pair_blocks,
    under_key,
    viewer_classes,
    viewer_rows,
)
from tunesmith.data.files.json_rows import ENDS, array_rows, not_numbers
from tunesmith.data.files.marked_turns import CONVERSATIONS, INPUTS, PAIRS, Marks, find_marks, turns_format
from tunesmith.data.files.quoting import fits
from tunesmith.data.files.rows import BLOCK_BYTES, ready_rows
from tunesmith.data.files.sheets import SHEETS, find_sheet, sheet_blocks
from tunesmith.data.files.splits import TEST, TRAIN, VALIDATION, split_of_file
from tunesmith.data.files.squad import is_article, question_blocks
from tunesmith.data.files.streams import COMPRESSIONS, seekable
from tunesmith.data.files.tables import find_table, header_lines, is_anki
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.recipe.data import SourceSettings

TABLES = {".csv": ",", ".tsv": "\t"}
CONVERTED = {
    ".pdf": "make a .txt file of it, for example with `pdftotext FILE.pdf`",
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf"), "save it as text (.txt) or as HTML in your office program"),
    ".xls": "save it as .xlsx or .csv",
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "unpack it, and name the file or folder that it holds"),
    **dict.fromkeys((".yaml", ".yml", ".xml", ".toml"), "write its rows as JSON lines (.jsonl): an object a line"),
    **dict.fromkeys(
        (".sqlite", ".sqlite3", ".db"),
        "write the table to a .csv file, for example with `sqlite3 -header -csv FILE 'select * from TABLE' > rows.csv`",
    ),
    **dict.fromkeys(
        (".pkl", ".pickle", ".feather", ".arrow", ".orc", ".h5"),
        "write the table with pandas: `frame.to_parquet('rows.parquet')`",
    ),
    **dict.fromkeys((".epub", ".tex", ".ipynb"), "make a .md file of it, for example with `pandoc FILE -o rows.md`"),
    **dict.fromkeys((".srt", ".vtt", ".py", ".log", ".conll"), "give it the ending .txt to train on it as raw text"),
}
JSON = frozenset({".json", ".jsonl", ".ndjson"})
CONVERSATION = ("messages", "conversations")  # keys of a row, not of rows
BINARY = frozenset({".parquet"})
READ_BY = {  # which files a key of the recipe says something about
    "delimiter": frozenset({*TABLES, TEXT}),
    "encoding": frozenset({*TABLES, *JSON, TEXT}),
    "header": frozenset({*TABLES, TEXT, *SHEETS}),
    "key": JSON,
    "sheet": frozenset(SHEETS),
}
Open = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True)
class Opening:
    """A format, the encoding of the text, and what was chosen in the words for the user."""

    format: Format
    encoding: str = UTF8.name
    said: tuple[str, ...] = ()

    def text(self, file: BinaryIO, name: str) -> BinaryIO:
        """The text of a file of this name as UTF-8."""
        return transcoded(file, self.encoding, name)


def without_query(name: str) -> str:
    """A URL without its query, which may hold a signature or a token; another name as it is."""
    return name.partition("?")[0] if "://" in name else name


def suffix_of(name: str) -> tuple[str, str | None]:
    """(.jsonl, .gz) for rows.jsonl.gz; of a URL, the ending of its path."""
    path = PurePosixPath(without_query(name).lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else None
    return (PurePosixPath(path.stem).suffix if compression else path.suffix), compression


def is_document(name: str) -> bool:
    """Whether it is a file of text without columns."""
    return suffix_of(name)[0] in DOCUMENTS


def is_table(name: str) -> bool:
    """Whether it is a file of records that may have a header."""
    return suffix_of(name)[0] in READ_BY["header"]


def format_of(name: str, sample_by: str) -> Format:
    """The format of a file's ending.

    Raises:
        DataError: there is none.
    """
    suffix, _ = suffix_of(name)
    if suffix not in FORMATS:
        raise DataError(
            f"{suffix} files are not supported" if suffix else "the file's name has no ending",
            where=name,
            why=f"the formats are {', '.join(FORMATS)}, as they are or with {', '.join(COMPRESSIONS)}",
            remedy=CONVERTED.get(suffix, "convert the file, or give it the ending of its format"),
        )
    return document_format(suffix, sample_by) if is_document(name) else FORMATS[suffix]


def refuse_unread_keys(sources: Iterable[tuple[SourceSettings, Sequence[str]]]) -> None:
    """Stops at a key that says how files are read where no file is of such a kind.

    Args:
        sources: with the names of their files.

    Raises:
        DataError: there is such a key.
    """
    given = [*sources]
    for key, suffixes in READ_BY.items():
        asking = [names for source, names in given if getattr(source, key) is not None]
        if asking and not any(suffix_of(name)[0] in suffixes for names in asking for name in names):
            raise DataError(
                f"data.{key} says nothing about this file",
                where=asking[0][0],
                why=f"it is for {', '.join(sorted(suffixes))} files",
                remedy=f"take data.{key} out",
            )


def find_opening(file: Open, name: str, source: SourceSettings) -> Opening:
    """How a file is read.

    Args:
        file: opens its contents, which are unpacked.
        name: of the file.
        source: the recipe's word on it.

    Raises:
        DataError: the encoding or the separator cannot be told, or the recipe's does not exist.
    """
    suffix, kind = suffix_of(name)[0], format_of(name, source.sample_by)
    if suffix in BINARY:
        with file() as content:
            return Opening(kind, said=parquet_classes(seekable(content)))
    if suffix in SHEETS:
        with file() as content:
            layout = find_sheet(content, suffix, name, source.sheet, headers=header_lines(source.header))
        blocks = partial(sheet_blocks, suffix=suffix, layout=replace(layout, named=_named(source)))
        return Opening(replace(kind, blocks=blocks), said=layout.said)
    encoding = _encoding(file, name, source, tells=suffix in TABLES or suffix in DOCUMENTS)
    said = (encoding.said,) if encoding.said else ()
    if suffix in JSON:
        text, whole = _beginning(file, encoding.name, name)
        kind, found = _json(file, text, whole, encoding.name, name, source, kind)
        missing = not_numbers(text)
        found += (
            (f"{' and '.join(missing)} in place of a number {'are' if missing[1:] else 'is'} null",) if missing else ()
        )
        return Opening(kind, encoding.name, (*found, *said))
    if suffix in DOCUMENTS and suffix != TEXT:
        cut = "each file is a document" if source.sample_by == "auto" else f"sample_by: {source.sample_by}"
        without = " without scripts, styles and navigation" if suffix in HTML else ""
        return Opening(kind, encoding.name, (f"{cut}{without}", *said))
    usual = TABLES.get(suffix)
    marks = _marks(file, name, encoding.name, source) if suffix == TEXT else None
    if marks is not None and source.format != "auto":
        return Opening(turns_format(marks, source.format), encoding.name, (_taken(marks, source.format), *said))
    if marks is not None:
        said += (
            f"lines begin with {marks.question}: and {marks.answer}:, and each is raw text (data.format: {PAIRS} reads "
            "questions and answers)",
        )
    is_text = usual is None and not (suffix == TEXT and (source.delimiter or encoding.name == "utf-16"))
    text, whole = _beginning(file, encoding.name, name)
    if is_text and (suffix != TEXT or source.sample_by != "auto" or not is_anki(text)):
        return _text(file, name, encoding.name, source, kind, said)
    if (
        usual is None
        and source.delimiter is None
        and not is_anki(text)
        and not fits(text if whole else text[: text.rfind("\n") + 1], "\t")
    ):
        return Opening(kind, encoding.name, said)  # UTF-16 that is no table
    table = find_table(
        text, whole=whole, usual=usual or ",", asked=source.delimiter, name=name, headers=header_lines(source.header)
    )
    spaced = any(column != column.strip() for column in source.columns.values())  # the user names them so
    table = replace(table, spaced=spaced, named=_named(source))
    return Opening(table_format(table), encoding.name, (*table.said, *said))


def _named(source: SourceSettings) -> tuple[str, ...]:
    """The columns that the user names."""
    return tuple(part for column in source.columns.values() for part in names_in(column, ()))


def _marks(file: Open, name: str, encoding: str, source: SourceSettings) -> Marks | None:
    """The marks before questions and answers, where they may be what is asked for."""
    plain = source.delimiter is None and source.sample_by == "auto" and not source.columns
    inputs = source.format == INPUTS and source.instruction is not None
    if not plain or not (inputs or source.format in ("auto", PAIRS, CONVERSATIONS)):
        return None
    return find_marks(_beginning(file, encoding, name)[0])


def _taken(marks: Marks, shape: str) -> str:
    if shape == CONVERSATIONS:
        return f"{marks.question}: and {marks.answer}: begin turns; a blank line before {marks.question}: ends a row"
    begin = f"{marks.question}: and {marks.answer}: begin questions and answers"
    return f"{begin}, such as {marks.shown} (data.format: text reads raw text)"


def _text(file: Open, name: str, encoding: str, source: SourceSettings, kind: Format, said: tuple[str, ...]) -> Opening:
    """A .txt file, which may have the pages of a PDF."""
    if source.sample_by == LINE or not has_pages(_beginning(file, encoding, name)[0]):
        return Opening(kind, encoding, said)
    sample_by = DOCUMENT if source.sample_by == "auto" else source.sample_by
    cut = f"each file is a {sample_by}" if sample_by == DOCUMENT else f"sample_by: {sample_by}"
    return Opening(
        PAGES[sample_by], encoding, (f"the text of a PDF: {cut}, without form feeds and page numbers", *said)
    )


def _encoding(file: Open, name: str, source: SourceSettings, *, tells: bool) -> Encoding:
    """``tells``: whether bytes that are not UTF-8 may be another encoding, which JSON's are not."""
    if source.encoding is not None:
        return known_encoding(source.encoding, name)
    if suffix_of(name)[0] in HTML and (said := _charset(file)) is not None:
        return said
    try:
        with file() as content:
            if tells:
                return find_encoding(_chunks(content), name)
            marked = mark_of(content.read(4))
    except DataError as error:
        if error.remedy is not None and "data.encoding" in error.remedy:
            raise
        return UTF8  # a damaged file: whoever reads the rows hears of it where it is
    return Encoding(marked, f"encoding {marked.upper()}, by its mark") if marked else UTF8


def _charset(file: Open) -> Encoding | None:
    """What the page says, unless it is UTF-8 all the same: browsers save so what servers sent in other encodings."""
    with file() as content:
        data = content.read(BLOCK_BYTES)
    said = charset_of(data)
    if said is None or mark_of(data[:4]):
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < BLOCK_BYTES)
    except UnicodeDecodeError:
        return said
    return None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(BLOCK_BYTES):
        yield chunk


def _beginning(file: Open, encoding: str, name: str) -> tuple[str, bool]:
    """The first characters of a file, without its mark, and whether those are all."""
    with file() as content:
        data = io.BytesIO(content.read(BLOCK_BYTES))
        whole = len(data.getvalue()) < BLOCK_BYTES
    text = transcoded(data, encoding, name).read().decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff"), whole


def _json(
    file: Open, text: str, whole: bool, encoding: str, name: str, source: SourceSettings, usual: Format
) -> tuple[Format, tuple[str, ...]]:
    """How JSON is laid out, by its beginning: an array, objects in a row, rows under a key, or columns."""
    text = text.strip() if whole else text.lstrip()
    if source.key is not None or not text.startswith("{"):
        array = text.startswith("[") and source.key is None
        if array and "\n" not in text:
            return Format(numbered_blocks, array_rows), ()
        if array:
            return FORMATS[".json"], ("one JSON array",) if usual is JSONL else ()
        if not text.startswith("{"):
            return usual, ()
    try:
        _, end = ENDS.raw_decode(text)
    except (ValueError, RecursionError):
        end = None
    if source.key is None and (usual is JSONL or (end is not None and text[end:].strip())):
        several = end is not None and "\n" in text[:end].strip()
        if several and text[end:].lstrip()[:1] in ("", "{"):
            return Format(object_blocks, array_rows), ("objects over several lines",)
        if end is None or text[end:].lstrip(" \t\r")[:1] in ("", "\n"):
            return JSONL, () if usual is JSONL else ("one object a line",)
        return usual, ()
    if end is None and whole:
        return usual, ()
    with file() as content:
        found = outline(transcoded(content, encoding, name), name)

    def first_under(key: str) -> Any:
        with file() as content:
            return json.loads(next(under_key(transcoded(content, encoding, name), name, key))[1])

    kind, said = _keyed(found, name, source, usual, first_under)
    if kind.blocks is column_blocks and {*found.values()} == {"object"}:
        with file() as content:
            keys = keys_of_first(transcoded(content, encoding, name), name)
        if not are_columns([*found], keys):
            kind, said = replace(kind, same_columns=False), ("the object under each key is a row",)
    if found.keys() >= VIEWER and found["features"] == found["rows"] == "rows":
        with file() as content:
            classes = viewer_classes(transcoded(content, encoding, name), name)
        if classes:
            return replace(kind, rows=partial(viewer_rows, classes=classes)), (*said, *classes_in_words(classes))
    return kind, said


def _keyed(
    found: Mapping[str, Kind],
    name: str,
    source: SourceSettings,
    usual: Format,
    first_under: Callable[[str], Any],
) -> tuple[Format, tuple[str, ...]]:
    """How an object is read. ``first_under``: the first element of the array under a key."""
    rows = [key for key, kind in found.items() if kind == "rows"]
    rows = ["rows"] if "rows" in rows and found.keys() >= VIEWER else rows
    asked = source.key or (source.split if source.split in rows else None)
    if asked is None and any(key in CONVERSATION for key in rows):
        return Format(object_blocks, array_rows), ("one row",)
    if (
        asked is None
        and not rows
        and found
        and len({*found.values()} & {"list", "object"}) == len({*found.values()}) == 1
    ):
        said = "columns, index and data, as pandas splits them" if is_split(found) else "an object of columns"
        return Format(column_blocks, column_rows, same_columns=True), (said,)
    if asked is None and len(rows) > 1:
        asked = next((key for key in TRAIN if key in rows), None)
        if asked is None:
            raise DataError(
                "several keys hold rows",
                where=name,
                why=f"they are {', '.join(rows)}",
                remedy=f"set data.key: {rows[0]}, or another of them",
            )
    if asked is None and not rows and are_pairs(found):
        said = f"an object of {len(found):,} texts: each is a row with the columns key and value"
        return Format(pair_blocks, column_rows, same_columns=True), (said,)
    if asked is None and not rows:
        return usual, ()
    key = choose_key(found, asked or rows[0], name)
    others = [other for other in rows if other != key]
    said = f"the rows under the key {key}" + (f" (not {', '.join(others)})" if others else "")
    if is_article(first_under(key)):
        return Format(partial(question_blocks, key=key), ready_rows), (said, "each question of a paragraph is a row")
    return Format(partial(keyed_blocks, key=key), viewer_rows), (said,)


def splits_in(file: Open, name: str, source: SourceSettings) -> list[str]:
    """The keys of a JSON file that hold rows and are named for splits, where one is for training."""
    if suffix_of(name)[0] != ".json" or source.key is not None:
        return []
    text, whole = _beginning(file, source.encoding or UTF8.name, name)
    try:
        single = text.lstrip().startswith("{") and (not whole or isinstance(json.loads(text), dict))
    except (ValueError, RecursionError):
        return []
    if not single or not any(f'"{key}"' in text for key in (*TRAIN, *VALIDATION, *TEST)):
        return []
    try:
        with file() as content:
            found = outline(transcoded(content, source.encoding or UTF8.name, name), name)
    except DataError:
        return []
    names = [key for key, kind in found.items() if kind == "rows" and split_of_file(key) == key]
    return names if any(key in TRAIN for key in names) else []
