"""Which files of a folder are its rows: tables, or else its documents and those of its subfolders, or a spreadsheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from tunesmith.data.examples.message import printable
from tunesmith.data.examples.row_shapes import listed
from tunesmith.data.files.chats import refuse_slack_folder
from tunesmith.data.files.documents import DOCUMENTS, TEXT
from tunesmith.data.files.formats import FORMATS
from tunesmith.data.files.opening import suffix_of
from tunesmith.data.files.sheets import SHEETS
from tunesmith.errors import DataError

NOTES = frozenset(
    {"readme", "license", "licence", "copying", "notice", "authors", "changelog", "contributing", "citation"}
)
DEEPEST = 20  # folders within each other: more are links in a circle
SHOWN = 5
TABLES = frozenset(FORMATS) - {*DOCUMENTS, *SHEETS}
Entries = Sequence[tuple[str, bool]]  # (name, whether it is a file)


def choose_files(where: str, entries: Callable[[str], Entries]) -> tuple[list[str], list[str]]:
    """The files that are read, and what is passed over, by their paths within the folder.

    Tables (and .txt files beside them) are read where the folder has some itself, without its subfolders. Else all
    documents are read, those of subfolders too; else spreadsheets. A README or a licence is read only if no file of
    another ending is.

    Args:
        where: the folder, for the message.
        entries: what a folder within it holds; the name of the folder itself is empty.

    Raises:
        DataError: it has no data files, or only its subfolders have.
    """
    top = [(name, is_file) for name, is_file in entries("")]
    names = [name for name, is_file in top if is_file and not _hidden(name)]
    refuse_slack_folder(names, where)
    tables = [name for name in names if suffix_of(name)[0] in TABLES]
    if tables:
        chosen = [name for name in names if suffix_of(name)[0] in {*TABLES, TEXT} and not _is_note(name)]
        return chosen, _rest([name for name, _ in top], chosen)
    every = _walk(top, entries)
    documents = [name for name in every if not _hidden(name) and suffix_of(name)[0] in DOCUMENTS]
    endings = {suffix_of(name)[0] for name in documents if not _is_note(name)}
    told = [name for name in documents if not _is_note(name) or {suffix_of(name)[0]} == endings]
    if told:
        return told, _rest(every, told)
    sheets = [name for name in names if suffix_of(name)[0] in SHEETS]
    below = [name for name in every if not _hidden(name) and suffix_of(name)[0] in {*TABLES, *SHEETS}]
    if sheets or (documents and not below):
        chosen = sheets or documents
        return chosen, _rest(every, chosen)
    ignored = _rest([name for name, _ in top], [])
    remedy = "name the folder that holds the files"
    if below:
        remedy = f"name the folder that holds the files: {where.rstrip('/')}/{below[0].rpartition('/')[0]}"
    raise DataError(
        "there are no data files in the folder",
        where=where,
        why=f"it holds {listed(ignored) if ignored else 'nothing'}; the formats are {', '.join(FORMATS)}",
        remedy=remedy,
    )


def passed_over(names: Sequence[str]) -> list[str]:
    """What is not read, in words: a line, or none."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    shown = sorted(names, key=lambda name: (suffix_of(name)[0] not in FORMATS, _hidden(name)))[:SHOWN]
    return [f"passed over {len(names):,}: {', '.join(map(printable, shown))}{more}"]


def _walk(top: Entries, entries: Callable[[str], Entries], within: str = "", depth: int = 0) -> list[str]:
    """Every file by its path, in order; a hidden folder is named and not entered."""
    found = []
    for name, is_file in top:
        path = f"{within}{name}"
        if is_file or _hidden(name) or depth == DEEPEST:
            found.append(path if is_file else f"{path}/")
        else:
            found += _walk(entries(path), entries, f"{path}/", depth + 1)
    return found


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _is_note(path: str) -> bool:
    return PurePosixPath(path).stem.lower() in NOTES


def _rest(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    return [name for name in names if name not in {*chosen}]
