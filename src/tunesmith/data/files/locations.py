"""The files and dataset splits of a source: a file, a folder, a URL, a dataset on disk or on the hub."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.examples.labels import classes_in_words
from tunesmith.data.examples.row_shapes import did_you_mean, listed_near
from tunesmith.data.files.arrow_rows import arrow_rows, batch_blocks, label_names
from tunesmith.data.files.batches import MARK, Kind, batch_kind, with_batches
from tunesmith.data.files.batches import SUFFIXES as BATCHES
from tunesmith.data.files.documents import DOCUMENTS, TEXT
from tunesmith.data.files.downloads import most_downloaded
from tunesmith.data.files.folders import Link, choose_files, local_link
from tunesmith.data.files.formats import FORMATS
from tunesmith.data.files.hub_datasets import load_from_hub
from tunesmith.data.files.opening import (
    Opening,
    find_opening,
    format_of,
    is_document,
    is_table,
    splits_in,
    suffix_of,
    without_query,
)
from tunesmith.data.files.rows import Block, Row, RowStream
from tunesmith.data.files.saved_datasets import load_saved
from tunesmith.data.files.source_part import SourcePart
from tunesmith.data.files.splits import TRAIN, Role, choose_split, held_out_split, split_of_file
from tunesmith.data.files.streams import HashedFile, buffered, drain, refuse_pointer, seekable, unpacked
from tunesmith.data.files.web import HTTP, Redirects, plain_http, refuse_schemes
from tunesmith.errors import DataError, TunesmithError, pip_install
from tunesmith.recipe.paths import is_shortened, local, refuse_odd_name, shown
from tunesmith.safe_text import remember_secrets

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    from tunesmith.recipe.data import DataSettings, SourceSettings


_OVER_HTTP = "read over http://: others on the network can change the rows; prefer https://"
BATCH_MARK_WITHIN = 4096  # bytes from a file's start
EVERY_ROLE = ""  # the split of files that are named for none
HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(slots=True, kw_only=True)
class _FilePart(SourcePart):
    """A file, packed or not."""

    location: _Location
    source: SourceSettings
    compression: str | None
    _opening: Opening | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """What was chosen about how it is read, in words for the user."""
        said = self._opened().said
        return (*said, _OVER_HTTP) if self.location.plain_http else said

    def blocks(self) -> Iterator[Block]:
        opening = self._opened()
        with self.location.open(self.name) as stored:
            file = buffered(stored)
            refuse_pointer(file, self.name)
            content = opening.text(unpacked(file, self.compression, self.name), self.name)
            yield from opening.format.blocks(seekable(content) if opening.format.seeks else content, self.name)
            if stored.in_order:
                self._note(file, stored)
        if opening.format.seeks and self._digest is not None:  # read here and there, so its bytes are read once more
            self._hash()

    def _opened(self) -> Opening:
        """How it is read; found once."""
        if self._opening is None:
            self._opening = find_opening(self.content, self.name, self.source)
            self.parse, self.same_columns = self._opening.format.rows, self._opening.format.same_columns
        return self._opening

    @contextmanager
    def content(self) -> Iterator[BinaryIO]:
        """The file, open and unpacked."""
        with self.location.open(self.name) as stored:
            file = buffered(stored)
            refuse_pointer(file, self.name)
            yield unpacked(file, self.compression, self.name)

    def _hash(self) -> None:
        with self.location.open(self.name) as stored:
            self._note(buffered(stored), stored)

    def _note(self, file: io.BufferedReader, stored: HashedFile) -> None:
        """Keeps the digest of the bytes, after what is left of them has been read."""
        drain(file)
        found = stored.digest.hexdigest()
        if self._digest not in (None, found):
            raise DataError(
                "the file has changed while it was read", where=self.name, remedy="start again once it is written"
            )
        self._digest = found


@dataclass(slots=True, kw_only=True)
class _DatasetPart(SourcePart):
    """A split of a dataset, or a dataset without splits."""

    dataset: Dataset

    @property
    def choices(self) -> tuple[str, ...]:
        """What was chosen about how it is read, in words for the user."""
        return classes_in_words(label_names(self._notes))

    def blocks(self) -> Iterator[Block]:
        return batch_blocks(self._batches(), self.name)

    def rows(self) -> RowStream:
        digest = hashlib.sha256()
        for block in self.blocks():
            for row in self.parse(block):
                content = row.fields if isinstance(row, Row) else row.raw
                digest.update(json.dumps(content, default=str, sort_keys=True).encode() + b"\n")
                yield row
        self._digest = digest.hexdigest()

    def _hash(self) -> None:
        for _ in self.rows():
            pass

    @property
    def _notes(self) -> dict[bytes, bytes]:
        """The names of class labels, which the tables have lost."""
        return self.dataset.features.arrow_schema.metadata

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for table in self.dataset.with_format("arrow").iter(batch_size=1000):
            yield from table.replace_schema_metadata(self._notes).to_batches()  # type: ignore[union-attr]  (an Arrow table)


def parts_of(
    source: SourceSettings, role: Role, *, answered: bool = True
) -> tuple[list[SourcePart], list[str], str | None]:
    """The files or the split of a source, with the names that were ignored and the split that is read.

    Raises:
        DataError: nothing is there, a file is of no format that can be read, or ``sample_by`` says nothing of any.
    """
    parts, ignored, split = _parts_of(source, role)
    parts = _with_batches(source, parts, answered=answered)
    if source.sample_by not in ("auto", "line") and not any(
        isinstance(part, _FilePart) and is_document(part.name) for part in parts
    ):
        raise DataError(
            f"data.sample_by: {source.sample_by} says what a document of a text file is, and there is none",
            where=source.path,
            why=f"text files are {', '.join(DOCUMENTS)}",
            remedy=f"name it at the sources that have some: {{path: a{TEXT}, sample_by: {source.sample_by}}}",
        )
    return parts, ignored, split


def _parts_of(source: SourceSettings, role: Role) -> tuple[list[SourcePart], list[str], str | None]:
    location = _Location(source.path, source.address)
    if source.name is not None and not location.is_missing:
        raise DataError(
            "`name` chooses a configuration of a hub dataset, and this is a file or folder",
            where=source.path,
            remedy="remove data.name",
        )
    if location.is_file:
        if source.split is not None and source.split not in split_names(source):
            raise DataError("a file has no splits", where=source.path, remedy="remove `split`")
        return [_file_part(location, source.path, source)], [], source.split
    if location.is_dataset:
        part, split = _dataset_part(source, role, location)
        return [part], [], split
    files, ignored = _data_files(location)
    split = EVERY_ROLE
    if EVERY_ROLE not in files:
        split = choose_split(list(files), role=role, asked=source.split, where=source.path)
    elif source.split is not None:
        raise DataError(
            "the files of this folder are not named for splits",
            where=source.path,
            remedy="remove `split`, or name the files train.* and test.*",
        )
    return [_file_part(location, name, source) for name in files[split]], ignored, split or None


def _with_batches(source: SourceSettings, parts: list[SourcePart], *, answered: bool) -> list[SourcePart]:
    """The parts, with the requests and the answers of a batch joined, unless ``data.columns`` says what they are."""
    found: list[tuple[SourcePart, Kind | None]] = [
        (part, None if source.columns else _batch_kind(part)) for part in parts
    ]
    if not any(kind for _, kind in found):
        return parts
    single = len(parts) == 1 and parts[0].name == source.path
    others = _beside(source) if single else []
    beside: list[tuple[SourcePart, Kind | None]] = [(part, _batch_kind(part)) for part in others]
    return with_batches(found, beside, where=source.path, answered=answered)


def _batch_kind(part: SourcePart) -> Kind | None:
    """What a file holds of a batch; a file that cannot be read is told of where its rows are."""
    if not isinstance(part, _FilePart) or suffix_of(part.name)[0] not in BATCHES:
        return None
    try:
        with part.content() as content:
            start = content.read(BATCH_MARK_WITHIN)
            if MARK not in start:
                return None
            line, ended, _ = start.partition(b"\n")
            return batch_kind(line if ended else line + content.readline())
    except DataError:
        return None


def _beside(source: SourceSettings) -> list[SourcePart]:
    """The other files of a file's folder that may hold a batch."""
    if "://" in source.path:
        return []
    path = source.path.rpartition("/")
    folder = _Location(path[0] or (path[1] or "."))
    names = [name for name, is_file in folder.entries() if is_file and suffix_of(name)[0] in BATCHES]
    prefix = f"{path[0]}{path[1]}" if path[1] else "./"
    return [_file_part(folder, f"{prefix}{name}", source) for name in names if name != path[2]]


def missing_source(source: SourceSettings) -> DataError | None:
    """That a file or folder is not there; None if it is, and for a URL or an id of the hub."""
    if "://" in source.path:
        return None
    location = _Location(source.path, source.address)
    return _missing(location) if location.is_nowhere else None


def refuse_missing(data: DataSettings) -> None:
    """Raises DataError that names the key of a recipe whose file or folder is not there."""
    for split in ("train", "eval", "test"):
        for source in data.sources(split):
            error = missing_source(source)
            if error is not None:
                asks = str(error.remedy).endswith("?")
                remedy = (
                    f"{error.remedy} Then correct data.{split}" if asks else f"correct data.{split}; {error.remedy}"
                )
                raise DataError(error.what, where=f"data.{split}: {source.path}", why=error.why, remedy=remedy)


def holds_text(path: str) -> bool:
    """Whether it is a file of text or a folder with some: what ``sample_by`` can be said of."""
    return _holds(path, is_document)


def holds_tables(path: str) -> bool:
    """Whether it is a file that may have a header or a folder with some: what ``header`` can be said of."""
    return _holds(path, is_table)


def _holds(path: str, is_kind: Callable[[str], bool]) -> bool:
    location = _Location(shown(path), local(path))
    if location.is_file:
        return is_kind(path)
    return not location.is_dataset and any(
        is_kind(name) for names in _data_files(location)[0].values() for name in names
    )


def split_names(source: SourceSettings) -> list[str]:
    """The splits that a source has: of a dataset on disk or on the hub, or of a folder's file names; else none.

    Raises:
        DataError: nothing is there.
    """
    location = _Location(source.path, source.address)
    if location.is_file:
        part = _file_part(location, source.path, source)
        return splits_in(part.content, source.path, source)
    if not location.is_dataset:
        return [name for name in _data_files(location)[0] if name != EVERY_ROLE]
    dataset = _dataset(source, location, split=None)
    return [str(name) for name in dataset] if isinstance(dataset, dict) else []


class _Location:
    """A path or URL through fsspec, under the name the user gave it. What is missing may be a dataset of the hub."""

    def __init__(self, path: str, address: str | None = None) -> None:
        import fsspec

        self.path, address = path, address or path
        self.remote = "://" in path
        self._failed: dict[str, DataError] = {}  # a driver that copies files first leaves half a copy, and reads that
        if is_shortened(address):
            raise DataError(
                "the query of this URL was not stored",
                where=path,
                why="it may hold a secret",
                remedy="name the recipe that has the whole URL: `tunesmith train RECIPE --resume`; or give rows with "
                "--data",
            )
        if self.remote:
            remember_secrets(address)
            refuse_schemes(address, without_query(path))
        redirects = Redirects(without_query(path))
        with self._reading(path):
            self.system, self.root = (
                fsspec.core.url_to_fs(address, **redirects.options(address))
                if self.remote
                else (fsspec.filesystem("file"), str(path))
            )
            self.is_file: bool = self.system.isfile(self.root)
            redirects.check()
            self.is_missing: bool = not self.is_file and not self.system.isdir(self.root)
            redirects.check()
        self.plain_http = self.remote and plain_http(address)

    @property
    def is_dataset(self) -> bool:
        """Whether `datasets` reads it: a folder that save_to_disk has written, or an id of the hub."""
        if self.is_file or self.is_missing:
            return self.is_missing
        with self._reading(self.path):
            return any(self.system.isfile(f"{self.root}/{name}") for name in ("dataset_dict.json", "state.json"))

    @property
    def is_nowhere(self) -> bool:
        """Whether it is neither here nor an id of the hub. A name much like one beside it is a mistyped one."""
        match = HUB_ID.fullmatch(self.path)
        if not self.is_missing or match is None or self.remote:
            return self.is_missing
        return suffix_of(match["repository"])[0] in FORMATS or self.nearest() is not None

    def entries(self, within: str = "") -> list[tuple[str, bool]]:
        """(name, whether it is a file) of everything in the folder, or in one within it, by name."""
        with self._reading(self.path):
            found = self.system.ls(f"{self.root}/{within}" if within else self.root, detail=True)
        return sorted((entry["name"].rstrip("/").rpartition("/")[2], entry["type"] == "file") for entry in found)

    def link(self, within: str) -> Link | None:
        """Where a path in the folder leads, if it is a link on this machine's disk."""
        return local_link(self.root, within) if "file" in self.system.protocol else None

    def neighbours(self) -> list[str]:
        """The names beside a path that is not there; none if its folder is not there either."""
        with self._reading(self.path):
            parent = str(self.system._parent(self.system._strip_protocol(self.root)))
            if not self.system.isdir(parent):
                return []
            return [entry.rstrip("/").rpartition("/")[2] for entry in self.system.ls(parent, detail=False)]

    def nearest(self) -> str | None:
        """A suggestion of a neighbour with nearly the same name, in words."""
        near = did_you_mean(self.path.rstrip("/").rpartition("/")[2], self.neighbours())
        return f"did you mean {near}?" if near else None

    @contextmanager
    def open(self, name: str) -> Iterator[HashedFile]:
        """The file itself, or one in the folder; `name` is as the user sees it."""
        root = self.root
        if name not in (self.path, without_query(self.path)):
            root = f"{self.root}/{name.removeprefix(self.path.rstrip('/') + '/')}"
        if root in self._failed:
            raise self._failed[root]
        try:
            with self._reading(name):
                file = self.system.open(root, "rb")
        except DataError as error:
            self._failed[root] = error
            raise
        with file:
            most = most_downloaded() if self.remote else None
            yield HashedFile(file, partial(self._reading, name), name=name, most=most)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        # Each store's driver has errors of its own, without a common base; a local disk has OSError.
        kinds = (Exception,) if self.remote else (OSError,)
        try:
            yield
        except TunesmithError:
            raise
        except kinds as error:
            remedy = "check the address and the access to it"
            if isinstance(error, ImportError):
                remedy = pip_install("http") if HTTP.search(name) else "install what the message above names"
            elif isinstance(error, PermissionError):
                remedy = "check that you may read it"
            why = f"{type(error).__name__}: {error}"
            raise DataError("it cannot be read", where=name, why=why, remedy=remedy) from error


def _file_part(location: _Location, name: str, source: SourceSettings) -> _FilePart:
    kind, (_, compression) = format_of(name, source.sample_by), suffix_of(name)
    name = without_query(name)
    return _FilePart(name, kind.rows, kind.same_columns, location=location, source=source, compression=compression)


def _data_files(folder: _Location) -> tuple[dict[str, list[str]], list[str]]:
    """The data files of a folder by split, and what else is in it.

    They are grouped only if some are named for training and some for evaluation; else all are those of EVERY_ROLE.
    A document of a subfolder is of the split that the subfolder is named for.
    """
    data, ignored = choose_files(folder.path, folder.entries, folder.link)
    splits: dict[str, list[str]] = {}
    for name in data:
        refuse_odd_name(name)
        first, _, within = name.partition("/")
        named = (split_of_file(first) if not within or split_of_file(first) == first.lower() else None) or EVERY_ROLE
        splits.setdefault(named, []).append(name)
    if any(name in TRAIN for name in splits) and held_out_split(list(splits)):
        ignored += splits.pop(EVERY_ROLE, [])
    else:
        splits = {EVERY_ROLE: data}
    prefix = folder.path.rstrip("/")
    return {split: [f"{prefix}/{name}" for name in names] for split, names in splits.items()}, ignored


def _dataset_part(source: SourceSettings, role: Role, location: _Location) -> tuple[SourcePart, str | None]:
    """The split of a dataset that a role reads, and its name."""
    dataset, split = _dataset(source, location, split=source.split), source.split
    if isinstance(dataset, dict):
        split = choose_split([str(name) for name in dataset], role=role, asked=split, where=source.path)
        dataset = dataset[split]
    elif split is not None and not location.is_missing:
        raise DataError("this dataset was saved without splits", where=source.path, remedy="remove `split`")
    name = source.path if split is None else f"{source.path}:{split}"
    return _DatasetPart(name, arrow_rows, same_columns=True, dataset=dataset), split


def _dataset(source: SourceSettings, location: _Location, *, split: str | None) -> Dataset | DatasetDict | Any:
    """A dataset from the disk with all its splits, or from the hub with one of them or all."""
    match = HUB_ID.fullmatch(source.path)
    if location.is_nowhere:
        raise _missing(location)
    if match is None or not location.is_missing:
        return load_saved(source.path, location.system, location.root)
    return load_from_hub(match["repository"], source.name, split=split, revision=match["revision"])


def _missing(location: _Location) -> DataError:
    parent, _, name = location.path.rstrip("/").rpartition("/")
    where = f"the folder {parent}" if parent else "the folder you are in"
    names = [other for other in location.neighbours() if not other.startswith(".")]
    if not location.remote and os.path.islink(location.root):
        why = f"it is a link to {os.readlink(location.root)}, which is not there"
        return DataError(
            "this link leads nowhere", where=location.path, why=why, remedy="make it anew, or name the file"
        )
    if name in names:
        return DataError(
            "this is neither a file nor a folder",
            where=location.path,
            why="a pipe or a device",
            remedy="write the rows to a file: a run reads them again when it resumes",
        )
    return DataError(
        "there is no such file or folder",
        where=location.path,
        why=f"{where} holds {listed_near(name, names)}" if names else f"{where} is empty, or is not there",
        remedy=location.nearest() or "check the path; a dataset of the hub is written user/name",
    )
