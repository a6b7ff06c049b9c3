"""Where rows that a Python program hands over are kept, and the recipe that names their files instead of them.

They are the user's, so they stay only where a run, or a recipe that was written, names them. All other files of rows go
with the call, and those of a recipe that is in no file with the process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.files.given_rows import is_rows, store_rows
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.file import LoadedRecipe
from tunesmith.recipe.paths import local
from tunesmith.runs.rows_folders import passing_folder, passing_folder_of, passing_until_exit
from tunesmith.runs.whole_files import whole_file
from tunesmith.workflows.in_python import ROWS, remedies_in_python

Given = TypeVar("Given")
Names = Mapping[Path, str]  # files of rows, and what messages call them
SPLITS = ("train", "eval", "test")


@contextmanager
def given(data: Any) -> Iterator[tuple[str, Names]]:
    """The path of data, and the name of rows: their file is the user's alone to read, and goes again."""
    if not is_rows(data):
        yield os.fspath(data), {}
        return
    with passing_folder() as folder:
        stored = store_rows(data, folder, "rows")
        yield str(stored), {stored: ROWS}


@contextmanager
def with_files(recipe: Given) -> Iterator[tuple[Given, Names]]:
    """A recipe whose rows are files, with their names, which errors have. The files go again.

    Args:
        recipe: whatever ``read_recipe`` takes. In a mapping, ``data.train``, ``data.eval`` and ``data.test`` and the
            ``path`` of a source may be rows.
    """
    data = recipe.get("data") if isinstance(recipe, Mapping) else None
    if not isinstance(data, Mapping):
        yield recipe, {}
        return
    splits = [split for split in SPLITS if split in data]
    with passing_folder() if any(_holds_rows(data[split]) for split in splits) else nullcontext(Path()) as folder:
        names: dict[Path, str] = {}
        sections = {split: _as_sources(data[split], folder, split, names) for split in splits}
        with remedies_in_python(stored=names) if names else nullcontext():
            yield {**recipe, "data": {**data, **sections}}, names  # type: ignore[misc]


@contextmanager
def kept(data: Any, folder: Path | None, name: str) -> Iterator[tuple[str, Names]]:
    """The path of data, and the name of rows, which stay in a folder; without one, until this process ends.

    A failure leaves nothing new there.
    """
    if not is_rows(data):
        yield os.fspath(data), {}
    elif folder is None:
        with passing_until_exit() as passing:
            stored = store_rows(data, passing, name)
            yield str(stored), {stored: ROWS}
    else:
        before = {*folder.iterdir()} if folder.is_dir() else set()
        stored = store_rows(data, folder, name)
        try:
            yield str(stored), {stored: ROWS}
        except BaseException:
            if stored not in before:
                _forget(stored)
            raise


@dataclass(slots=True)
class RowsOfRun:
    """The files of a run's rows, in ``<output_dir>.rows``. ``new``: with their names; ``recipe``: the run's file."""

    new: dict[Path, str] = field(default_factory=dict)
    recipe: Path | None = None

    def moved(self, loaded: LoadedRecipe) -> LoadedRecipe:
        """The recipe with its rows beside its run, where they are in a folder that goes.

        Raises:
            DataError: they cannot be written there.
        """
        data, folder = loaded.recipe.data, Path(f"{local(loaded.recipe.output_dir)}.rows")
        sections = {
            split: [self._moved(source, folder, split) for source in own]
            for split in SPLITS
            if isinstance(own := getattr(data, split), list) and any(passing_folder_of(source.path) for source in own)
        }
        return replace(loaded, recipe=loaded.recipe.with_values(data=sections)) if sections else loaded

    def _moved(self, source: SourceSettings, folder: Path, split: str) -> SourceSettings:
        if passing_folder_of(source.path) is None:
            return source
        there, place = Path(source.path), folder / Path(source.path).name
        if not place.exists():  # else they are the same rows: the name has their hash
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _copy(there, place)
            except OSError as error:
                remedy = "Name an output_dir where files can be written."
                raise DataError("the rows cannot be stored", where=str(folder), why=str(error), remedy=remedy) from None
            self.new[place] = _name(split)
        return source.model_copy(update={"path": str(place)})

    def names(self, file: Path) -> bool:
        """Whether the run's recipe names a file of rows."""
        with suppress(OSError, UnicodeDecodeError):
            return self.recipe is not None and file.name in self.recipe.read_text(encoding="utf-8")
        return False


@contextmanager
def rows_of_run() -> Iterator[RowsOfRun]:
    """Inside, a run begins or goes on. If that fails, rows that its recipe does not name go again."""
    kept = RowsOfRun()
    try:
        yield kept
    except BaseException:
        gone = {file: name for file, name in kept.new.items() if not kept.names(file)}
        for file in gone:
            _forget(file)
        # Only Python hands over rows. Without any, the command line may have begun the run: its remedies are flags.
        with remedies_in_python(stored=gone) if gone else nullcontext():
            raise


def _forget(file: Path) -> None:
    file.unlink(missing_ok=True)
    with suppress(OSError):  # others are there, too
        file.parent.rmdir()


def _name(split: str) -> str:
    return f"{ROWS} of data.{split}"


def _copy(there: Path, place: Path) -> None:
    """The same file at another place, whole or not at all, for its owner alone."""
    try:
        os.link(there, place)
    except FileExistsError:
        return
    except OSError:  # another disk, or one without links
        with there.open("rb") as rows, whole_file(place) as file:
            os.fchmod(file.fileno(), 0o600)
            shutil.copyfileobj(rows, file)


def _holds_rows(value: Any) -> bool:
    """Whether rows stand for a split, or for the path of one of its sources."""
    if isinstance(value, list | tuple) and not is_rows(value):
        return any(map(_holds_rows, value))
    return _holds_rows(value["path"]) if isinstance(value, Mapping) and "path" in value else is_rows(value)


def _as_sources(value: Any, folder: Path, split: str, names: dict[Path, str]) -> Any:
    if is_rows(value):
        stored = store_rows(value, folder, split)
        names[stored] = _name(split)
        return str(stored)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and "path" in value:
        return {**value, "path": _as_sources(value["path"], folder, split, names)}
    if isinstance(value, list | tuple):
        return [_as_sources(item, folder, split, names) for item in value]
    return value
