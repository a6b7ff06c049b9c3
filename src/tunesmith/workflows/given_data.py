"""Where rows that a Python program hands over are kept, and the recipe that names their files instead of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.data.files.given_rows import is_rows, store_rows
from tunesmith.recipe.paths import local
from tunesmith.runs.cache import cache_dir, writable
from tunesmith.runs.temporary import temporary_folder

Given = TypeVar("Given")


def with_files(recipe: Given) -> Given:
    """A recipe whose rows are files. Those of a mapping are stored beside its run, in ``<output_dir>.rows``.

    Args:
        recipe: whatever ``read_recipe`` takes. In a mapping, ``data.train``, ``data.eval`` and ``data.test`` and the
            ``path`` of a source may be rows.
    """
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("data"), Mapping):
        return recipe
    folder = recipe.get("output_dir")
    folder = Path(f"{local(folder)}.rows") if isinstance(folder, str | os.PathLike) else _of_nobody()
    data = dict(recipe["data"])
    for split in ("train", "eval", "test"):
        if split in data:
            data[split] = _as_sources(data[split], folder, split)
    return {**recipe, "data": data}  # type: ignore[return-value]


@contextmanager
def given(data: Any) -> Iterator[tuple[str, Path | None]]:
    """The path of data, and that of rows: a file that only the user may read, and which goes again."""
    if not is_rows(data):
        yield os.fspath(data), None
        return
    with temporary_folder("rows-", writable(cache_dir())) as folder:
        stored = store_rows(data, folder, "rows")
        yield str(stored), stored


@contextmanager
def kept(data: Any, folder: Path | None, name: str) -> Iterator[tuple[str, Path | None]]:
    """The path of data, and that of rows, which stay in a folder, or the cache. A failure leaves nothing new there."""
    if not is_rows(data):
        yield os.fspath(data), None
        return
    folder = folder or _of_nobody()
    before = set(folder.iterdir()) if folder.is_dir() else None
    stored = store_rows(data, folder, name)
    try:
        yield str(stored), stored
    except BaseException:
        if stored not in (before or ()):
            stored.unlink(missing_ok=True)
        if before is None:
            with suppress(OSError):
                folder.rmdir()
        raise


def _of_nobody() -> Path:
    return cache_dir() / "rows"


def _as_sources(value: Any, folder: Path, split: str) -> Any:
    if is_rows(value):
        return str(store_rows(value, folder, split))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and "path" in value:
        return {**value, "path": _as_sources(value["path"], folder, split)}
    if isinstance(value, list | tuple):
        return [_as_sources(item, folder, split) for item in value]
    return value
