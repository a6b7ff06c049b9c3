"""Where rows come from: a file, a folder, a URL, a dataset on disk or on the hub."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.data.examples.row_shapes import did_you_mean, listed
from tunesmith.data.files.arrow_rows import arrow_rows, batch_blocks
from tunesmith.data.files.formats import FORMATS, TEXTS, Format
from tunesmith.data.files.rows import Block, Row, Rows
from tunesmith.data.files.splits import TRAIN, Role, choose_split, held_out_split, split_of_file
from tunesmith.data.files.streams import COMPRESSIONS, Source, buffered, drain, refuse_pointer, seekable, unpacked
from tunesmith.errors import DataError, TunesmithError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    from tunesmith.recipe.data import SourceSettings


TEXT = ".txt"
EVERY_ROLE = ""  # the split of files that are named for none
HUB_ID = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


class Part(Protocol):
    """One file or split; it can be read any number of times, and holds no rows itself."""

    name: str

    def blocks(self) -> Iterator[Block]:
        """Its rows in order, in blocks of about a megabyte that are not parsed yet.

        Raises:
            DataError: the file cannot be read as what its name says.
        """
        ...

    @property
    def parse(self) -> Callable[[Block], Rows]:
        """What makes rows of its blocks: a function of a module, so that another process can be told to call it."""
        ...

    def rows(self) -> Rows:
        """Its rows in order."""
        ...

    @property
    def same_columns(self) -> bool:
        """Whether every row has the columns of the first, as in a table."""
        ...

    @property
    def sha256(self) -> str:
        """Of the file's bytes, or of a dataset's rows as JSON; it costs a pass where none has been made yet."""
        ...


@dataclass(slots=True)
class _FilePart:
    """A file, packed or not."""

    name: str
    place: _Place
    suffix: str
    compression: str | None
    sample_by: str = "line"
    _sha256: str | None = None

    def blocks(self) -> Iterator[Block]:
        kind = self._kind
        with self.place.open(self.name) as source:
            file = buffered(source)
            refuse_pointer(file, self.name)
            content = unpacked(file, self.compression, self.name)
            yield from kind.blocks(seekable(content) if kind.seeks else content, self.name)
            if source.in_order:
                self._note(file, source)
        if kind.seeks and self._sha256 is not None:  # read here and there, so its bytes are read once more
            with self.place.open(self.name) as source:
                self._note(buffered(source), source)

    @property
    def parse(self) -> Callable[[Block], Rows]:
        return self._kind.rows

    @property
    def same_columns(self) -> bool:
        return self._kind.same_columns

    @property
    def _kind(self) -> Format:
        return TEXTS[self.sample_by] if self.suffix == TEXT else FORMATS[self.suffix]

    def rows(self) -> Rows:
        for block in self.blocks():
            yield from self.parse(block)

    @property
    def sha256(self) -> str:
        if self._sha256 is None:
            with self.place.open(self.name) as source:
                self._note(buffered(source), source)
        assert self._sha256 is not None
        return self._sha256

    def _note(self, file: io.BufferedReader, source: Source) -> None:
        """The digest of the bytes, after what is left of them has been read."""
        drain(file)
        found = source.digest.hexdigest()
        if self._sha256 not in (None, found):
            raise DataError(
                "the file has changed while it was read", where=self.name, remedy="start again once it is written"
            )
        self._sha256 = found


@dataclass(slots=True)
class _DatasetPart:
    """A split of a dataset, or a dataset without splits."""

    name: str
    dataset: Dataset
    _sha256: str | None = None

    def blocks(self) -> Iterator[Block]:
        return batch_blocks(self._batches(), self.name)

    @property
    def parse(self) -> Callable[[Block], Rows]:
        return arrow_rows

    @property
    def same_columns(self) -> bool:
        return True

    def rows(self) -> Rows:
        digest = hashlib.sha256()
        for block in self.blocks():
            for row in self.parse(block):
                content = row.fields if isinstance(row, Row) else row.raw
                digest.update(json.dumps(content, default=str, sort_keys=True).encode() + b"\n")
                yield row
        self._sha256 = digest.hexdigest()

    @property
    def sha256(self) -> str:
        if self._sha256 is None:
            for _ in self.rows():
                pass
        assert self._sha256 is not None
        return self._sha256

    def _batches(self) -> Iterator[pa.RecordBatch]:
        notes = self.dataset.features.arrow_schema.metadata  # the names of class labels, which the tables have lost
        for table in self.dataset.with_format("arrow").iter(batch_size=1000):
            yield from table.replace_schema_metadata(notes).to_batches()  # type: ignore[union-attr]  (an Arrow table)


@dataclass(slots=True)
class _Folder:
    """A folder's data files by split (EVERY_ROLE: all of them), and what else is in it."""

    files: dict[str, list[str]]
    ignored: list[str] = field(default_factory=list)


def parts_of(source: SourceSettings, role: Role) -> tuple[list[Part], list[str], str | None]:
    """The files or the split of a source, with the names that were ignored and the split that is read.

    Raises:
        DataError: nothing is there, a file is of no format that can be read, or ``sample_by`` says nothing of any.
    """
    found = _parts_of(source, role)
    if source.sample_by != "line" and not any(isinstance(part, _FilePart) and part.suffix == TEXT for part in found[0]):
        raise DataError(
            f"data.sample_by: {source.sample_by} says what a document of a {TEXT} file is, and there is none",
            where=source.path,
            remedy=f"name it at the sources that have {TEXT} files: {{path: a{TEXT}, sample_by: {source.sample_by}}}",
        )
    return found


def holds_text(path: str) -> bool:
    """Whether it is a .txt file or a folder with some: what ``sample_by`` can be said of."""
    place = _Place(path)
    if place.is_file:
        return _suffix(path)[0] == TEXT
    if not place.is_folder or place.is_dataset():
        return False
    return any(_suffix(name)[0] == TEXT for name, is_file in place.entries() if is_file)


def _parts_of(source: SourceSettings, role: Role) -> tuple[list[Part], list[str], str | None]:
    place = _Place(source.path)
    if not place.is_file and not place.is_folder:
        return _hub_parts(source, role, place)
    if source.name is not None:
        raise DataError(
            "`name` chooses a configuration of a hub dataset, and this is a file or folder",
            where=source.path,
            remedy="remove data.name",
        )
    if place.is_file:
        if source.split is not None:
            raise DataError("a file has no splits", where=source.path, remedy="remove `split`")
        return [_file_part(place, source.path, source.sample_by)], [], None
    if place.is_dataset():
        dataset, split = _saved_dataset(source, role)
        return [_dataset_part(dataset, source.path, split)], [], split
    folder = _folder(place)
    if EVERY_ROLE in folder.files:
        if source.split is not None:
            raise DataError(
                "the files of this folder are not named for splits",
                where=source.path,
                remedy="remove `split`, or name the files train.* and test.*",
            )
        return [_file_part(place, name, source.sample_by) for name in folder.files[EVERY_ROLE]], folder.ignored, None
    split = choose_split(list(folder.files), role=role, asked=source.split, where=source.path)
    return [_file_part(place, name, source.sample_by) for name in folder.files[split]], folder.ignored, split


def split_names(source: SourceSettings) -> list[str]:
    """The splits that a source has: of a dataset on disk or on the hub, or of a folder's file names; else none.

    Raises:
        DataError: nothing is there.
    """
    place = _Place(source.path)
    if place.is_file:
        return []
    if not place.is_folder:
        dataset = _from_hub(source, place, split=None)
        return [str(name) for name in dataset] if isinstance(dataset, dict) else []
    if place.is_dataset():
        dataset = _from_disk(source.path)
        return [str(name) for name in dataset] if isinstance(dataset, dict) else []
    return [name for name in _folder(place).files if name != EVERY_ROLE]


class _Place:
    """A path or URL through fsspec, under the name the user gave it."""

    def __init__(self, path: str) -> None:
        import fsspec

        self.path = path
        self.remote = "://" in path
        with self._reading(path):
            self.system, self.root = (
                fsspec.core.url_to_fs(path) if self.remote else (fsspec.filesystem("file"), str(path))
            )
            self.is_file: bool = self.system.isfile(self.root)
            self.is_folder: bool = not self.is_file and self.system.isdir(self.root)

    def is_dataset(self) -> bool:
        """Whether the folder is what `datasets` writes with save_to_disk."""
        with self._reading(self.path):
            return any(self.system.isfile(f"{self.root}/{name}") for name in ("dataset_dict.json", "state.json"))

    def entries(self) -> list[tuple[str, bool]]:
        """(name, whether it is a file) of everything in the folder, by name."""
        with self._reading(self.path):
            found = self.system.ls(self.root, detail=True)
        return sorted((entry["name"].rstrip("/").rpartition("/")[2], entry["type"] == "file") for entry in found)

    def neighbours(self) -> list[str]:
        """The names beside a path that is not there; none if its folder is not there either."""
        with self._reading(self.path):
            parent = str(self.system._parent(self.system._strip_protocol(self.root)))
            if not self.system.isdir(parent):
                return []
            return [entry.rstrip("/").rpartition("/")[2] for entry in self.system.ls(parent, detail=False)]

    @contextmanager
    def open(self, name: str) -> Iterator[Source]:
        """The file itself, or one in the folder; `name` is as the user sees it."""
        root = self.root if name == self.path else f"{self.root}/{name.rpartition('/')[2]}"
        with self._reading(name):
            file = self.system.open(root, "rb")
        with file:
            yield Source(file, partial(self._reading, name))

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        # Each store's driver has errors of its own, without a common base; a local disk has OSError.
        kinds = (Exception,) if self.remote else (OSError,)
        try:
            yield
        except TunesmithError:
            raise
        except kinds as error:
            why = f"{type(error).__name__}: {error}"
            raise DataError("it cannot be read", where=name, why=why, remedy=_remedy(error)) from error


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install what the message above names"
    if isinstance(error, PermissionError):
        return "check that you may read it"
    return "check the address and the access to it"


def _file_part(place: _Place, name: str, sample_by: str) -> Part:
    suffix, compression = _suffix(name)
    if suffix not in FORMATS:
        raise DataError(
            f"a file named {suffix or 'without an ending'} is none of the formats that can be read",
            where=name,
            why=f"the formats are {', '.join(FORMATS)}, as they are or with {', '.join(COMPRESSIONS)}",
            remedy="convert the file, or give it the ending of its format",
        )
    return _FilePart(name, place, suffix, compression, sample_by)


def _suffix(name: str) -> tuple[str, str | None]:
    """(.jsonl, .gz) for rows.jsonl.gz."""
    path = PurePosixPath(name.lower())
    compression = path.suffix if path.suffix in COMPRESSIONS else None
    return (PurePosixPath(path.stem).suffix if compression else path.suffix), compression


def _folder(place: _Place) -> _Folder:
    """The data files of a folder; grouped by split only if some are named for training and some for evaluation."""
    data, ignored = [], []
    for name, is_file in place.entries():
        if not name.startswith("."):
            (data if is_file and _suffix(name)[0] in FORMATS else ignored).append(name)
    prefix = place.path.rstrip("/")
    if not data:
        raise DataError(
            "there are no data files in the folder",
            where=place.path,
            why=f"it holds {listed(ignored) if ignored else 'nothing'}; the formats are {', '.join(FORMATS)}",
            remedy="name the folder that holds the files",
        )
    splits: dict[str, list[str]] = {}
    for name in data:
        splits.setdefault(split_of_file(name) or EVERY_ROLE, []).append(name)
    if any(name in TRAIN for name in splits) and held_out_split(list(splits)):
        ignored += splits.pop(EVERY_ROLE, [])
    else:
        splits = {EVERY_ROLE: data}
    return _Folder({split: [f"{prefix}/{name}" for name in names] for split, names in splits.items()}, ignored)


def _saved_dataset(source: SourceSettings, role: Role) -> tuple[Dataset, str | None]:
    saved = _from_disk(source.path)
    if not isinstance(saved, dict):
        if source.split is not None:
            raise DataError("this dataset was saved without splits", where=source.path, remedy="remove `split`")
        return saved, None
    split = choose_split([str(name) for name in saved], role=role, asked=source.split, where=source.path)
    return saved[split], split


def _from_disk(path: str) -> Dataset | DatasetDict:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError, DatasetsError) as error:
        raise DataError(
            "the dataset saved here cannot be read",
            where=path,
            why=f"{type(error).__name__}: {error}",
            remedy="save it again with datasets' save_to_disk",
        ) from error


def _hub_parts(source: SourceSettings, role: Role, place: _Place) -> tuple[list[Part], list[str], str | None]:
    found = _from_hub(source, place, split=source.split)
    split = source.split
    if isinstance(found, dict):
        split = choose_split([str(name) for name in found], role=role, asked=None, where=source.path)
        found = found[split]
    return [_dataset_part(found, source.path, split)], [], split


def _from_hub(source: SourceSettings, place: _Place, *, split: str | None) -> Any:
    """A Dataset if a split is asked for, else a DatasetDict."""
    match = HUB_ID.fullmatch(source.path)
    if match is None or place.remote or _suffix(match["repository"])[0] in FORMATS:
        raise _missing(place)
    import datasets

    try:
        return datasets.load_dataset(match["repository"], source.name, split=split, revision=match["revision"])
    except Exception as error:  # the hub's HTTP library has errors of its own, and another library each few releases
        raise DataError(
            "no file or folder of this name is here, and the hub's dataset cannot be read",
            where=source.path,
            why=f"{type(error).__name__}: {error}",
            remedy=_nearest(place) or "check the name, `split`, `name` (configuration) and the connection",
        ) from error


def _missing(place: _Place) -> DataError:
    parent = place.path.rstrip("/").rpartition("/")[0]
    where = f"the folder {parent}" if parent else "the folder you are in"
    names = [name for name in place.neighbours() if not name.startswith(".")]
    if place.path.rstrip("/").rpartition("/")[2] in names:
        return DataError(
            "this is neither a file nor a folder",
            where=place.path,
            why="a pipe, a device, or a link that leads nowhere",
            remedy="write the rows to a file: a run reads them again when it resumes",
        )
    return DataError(
        "there is no such file or folder",
        where=place.path,
        why=f"{where} holds {listed(sorted(names))}" if names else f"{where} is empty, or is not there",
        remedy=_nearest(place) or "check the path; a dataset of the hub is written user/name",
    )


def _nearest(place: _Place) -> str | None:
    near = did_you_mean(place.path.rstrip("/").rpartition("/")[2], place.neighbours())
    return f"did you mean {near}?" if near else None


def _dataset_part(dataset: Dataset, path: str, split: str | None) -> Part:
    return _DatasetPart(path if split is None else f"{path}:{split}", dataset)
