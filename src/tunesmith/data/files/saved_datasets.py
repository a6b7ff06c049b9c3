"""A folder that `datasets` saved: its own lists of files name files of the folder, and no others."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.runs.stored_json import parsed

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_SPLITS, _STATE = "dataset_dict.json", "state.json"
_LONGEST = 2**24  # bytes of a list of files


def load_saved(path: str, system: Any, root: str) -> Dataset | DatasetDict:
    """What is saved in a folder.

    Args:
        path: as the user named it.
        system: the file system of fsspec that it is in.
        root: the folder in that.

    Raises:
        DataError: the folder names a file outside it, or cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        for name, place in _named(system, root):
            _refuse_outside(path, root, name, place, local="file" in system.protocol)
        return datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, DatasetsError) as error:
        raise DataError(
            "the dataset saved here cannot be read",
            where=path,
            why=f"{type(error).__name__}: {error}",
            remedy="save it again with datasets' save_to_disk",
        ) from error


def _named(system: Any, root: str) -> Iterator[tuple[str, str]]:
    """The splits and files that the lists of a folder name, and the folder of each list."""
    folders = [root]
    if system.isfile(posixpath.join(root, _SPLITS)):
        splits = _listed(system, posixpath.join(root, _SPLITS))["splits"]
        yield from ((split, root) for split in splits)
        folders = [posixpath.join(root, split) for split in splits]
    for folder in folders:
        if system.isfile(posixpath.join(folder, _STATE)):
            for file in _listed(system, posixpath.join(folder, _STATE))["_data_files"]:
                yield file["filename"], folder


def _listed(system: Any, file: str) -> Any:
    if system.size(file) > _LONGEST:
        raise ValueError(f"{posixpath.basename(file)} has more than {_LONGEST:,} bytes")
    return parsed(system.cat_file(file))


def _refuse_outside(path: str, root: str, name: Any, place: str, *, local: bool) -> None:
    inside = isinstance(name, str) and name not in ("", ".", "..") and not {*"/\\:\0"} & {*name}
    if inside and local:  # a link within the folder is no way out
        inside = os.path.realpath(os.path.join(place, name)).startswith(os.path.join(os.path.realpath(root), ""))
    if not inside:
        raise DataError(
            f"the dataset saved here names a file outside its folder: {name!r}",
            where=path,
            why="a dataset of somebody else could name any file of this machine",
            remedy="save it again with datasets' save_to_disk, or name that file itself as data",
        )
