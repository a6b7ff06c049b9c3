"""Which files of a folder are its rows: tables, or else its documents and those of its subfolders, or a spreadsheet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
DEEPEST = 20  # folders within each other
MOST_FOLDERS, MOST_NAMES = 100_000, 5_000_000  # that are listed: a server can invent more without an end
SHOWN = 5
LINK = " (a link to "
TABLES = frozenset(FORMATS) - {*DOCUMENTS, *SHEETS}
Entries = Sequence[tuple[str, bool]]  # (name, whether it is a file; links are none)


@dataclass(frozen=True, slots=True)
class Link:
    """A link in a folder. ``to``: where it leads; ``within``: the same as a path in the folder, None outside of it."""

    to: str
    within: str | None
    is_file: bool
    is_folder: bool

    def said(self, path: str) -> str:
        """The link by its path within the folder, in words."""
        return f"{path}{LINK}{self.to}{'' if self.within is not None else ', outside the folder: not followed'})"


def choose_files(
    where: str, entries: Callable[[str], Entries], link: Callable[[str], Link | None]
) -> tuple[list[str], list[str]]:
    """The files that are read, and what is passed over, by their paths within the folder.

    Tables (and .txt files beside them) are read where the folder has some itself, without its subfolders. Else all
    documents are read, those of subfolders too; else spreadsheets. A README or a licence is read only if no file of
    another ending is. No link leads out of the folder, and each folder within it is read once.

    Args:
        where: the folder, for the message.
        entries: what a folder within it holds; the name of the folder itself is empty.
        link: where a path within it leads, if it is a link.

    Raises:
        DataError: it has no data files, or only its subfolders have; or it holds folders without an end.
    """
    top = [(name, is_file) for name, is_file in entries("")]
    names = [name for name, is_file in top if is_file and not _hidden(name)]
    refuse_slack_folder(names, where)
    tables = [name for name in names if suffix_of(name)[0] in TABLES]
    if tables:
        chosen = [name for name in names if suffix_of(name)[0] in {*TABLES, TEXT} and not _is_note(name)]
        links = {name: link(name) for name, is_file in top if not is_file}
        others = _rest([name for name, _ in top], chosen)
        return chosen, [found.said(name) if (found := links.get(name)) else name for name in others]
    walk = _Walk(where, entries, link)
    walk.enter(top)
    every = walk.found
    documents = [name for name in every if not _hidden(name) and suffix_of(name)[0] in DOCUMENTS]
    endings = {suffix_of(name)[0] for name in documents if not _is_note(name)}
    told = [name for name in documents if not _is_note(name) or {suffix_of(name)[0]} == endings]
    if told:
        return told, walk.passed + _rest(every, told)
    sheets = [name for name in names if suffix_of(name)[0] in SHEETS]
    below = [name for name in every if not _hidden(name) and suffix_of(name)[0] in {*TABLES, *SHEETS}]
    if sheets or (documents and not below):
        chosen = sheets or documents
        return chosen, walk.passed + _rest(every, chosen)
    ignored = [name for name, _ in top if not link(name)] + walk.passed
    remedy = "name the folder that holds the files"
    if any(LINK in name for name in ignored):
        remedy = "name the folder that holds the files; for a link out of this one, name what it leads to"
    if below:
        remedy = f"name the folder that holds the files: {where.rstrip('/')}/{below[0].rpartition('/')[0]}"
    raise DataError(
        "there are no data files in the folder",
        where=where,
        why=f"it holds {listed(ignored) if ignored else 'nothing'}; the formats are {', '.join(FORMATS)}",
        remedy=remedy,
    )


def local_link(folder: str, within: str) -> Link | None:
    """Where a path in a folder of this machine's disk leads, if it is a link."""
    path = f"{folder}/{within}"
    if not os.path.islink(path):
        return None
    to, home = os.path.realpath(path), os.path.realpath(folder)
    inside = os.path.commonpath([to, home]) == home
    return Link(to, os.path.relpath(to, home) if inside else None, os.path.isfile(to), os.path.isdir(to))


def passed_over(names: Sequence[str]) -> list[str]:
    """What is not read, in words: a line, or none."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    shown = sorted(names, key=lambda name: (LINK not in name, suffix_of(name)[0] not in FORMATS, _hidden(name)))[:SHOWN]
    return [f"passed over {len(names):,}: {', '.join(map(printable, shown))}{more}"]


class _Walk:
    """The files of a folder and of those within it. ``found``: their paths, in order; ``passed``: links, in words."""

    def __init__(self, where: str, entries: Callable[[str], Entries], link: Callable[[str], Link | None]) -> None:
        self.found: list[str] = []
        self.passed: list[str] = []
        self._where, self._entries, self._link = where, entries, link
        self._seen: set[str] = set()
        self._names = 0

    def enter(self, entries: Entries, within: str = "", real: str = "", depth: int = 0) -> None:
        """Takes what a folder holds; a hidden folder is named and not entered. ``real``: ``within`` without links."""
        self._names += len(entries)
        if len(self._seen) > MOST_FOLDERS or self._names > MOST_NAMES:
            raise DataError(
                f"there are more than {MOST_FOLDERS:,} folders or {MOST_NAMES:,} names in the folder",
                where=self._where,
                why="so many are listed, and no more",
                remedy="name a folder within it, or put the documents into one table (.jsonl)",
            )
        for name, is_file in entries:
            path, place = f"{within}{name}", f"{real}{name}"
            link = None if is_file else self._link(path)
            if link is not None:
                if not self._leads_to_more(link, path):
                    self.passed.append(link.said(path))
                    continue
                is_file, place = link.is_file, str(link.within)
            if is_file or _hidden(path) or depth == DEEPEST:
                self.found.append(path if is_file else f"{path}/")
            elif place not in self._seen:
                self._seen.add(place)
                self.enter(self._entries(path), f"{path}/", f"{place}/", depth + 1)

    def _leads_to_more(self, link: Link, path: str) -> bool:
        """Whether it is the way to a hidden file or folder of the folder; others are read by their own names."""
        if link.within is None or not _hidden(link.within) or _hidden(path) or link.within in self._seen:
            return False
        if link.is_file:
            self._seen.add(link.within)
        return link.is_file or link.is_folder


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _is_note(path: str) -> bool:
    return PurePosixPath(path).stem.lower() in NOTES


def _rest(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    return [name for name in names if name not in {*chosen}]
