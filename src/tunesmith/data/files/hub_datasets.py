"""A dataset of the hub: the card's own list of files names files of the hub, and no others."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_PACKED = frozenset({"zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4"})  # they open what stands behind the next ``::``
_LINE_END = r"(?:\r\n|\r|\n)"
_HEAD = re.compile(rf"^\s*---{_LINE_END}([\S\s]*?){_LINE_END}---[ \t]*(?:\r\n|\n|$)")  # as the hub's library finds it
_CARD, _CONFIGS = "README.md", ".huggingface.yaml"  # the second is a card without text


def load_from_hub(repository: str, name: str | None, *, split: str | None, revision: str | None) -> Any:
    """One split of a dataset of the hub, or all.

    Args:
        repository: such as ``user/name``.
        name: its configuration.
        split: None for all.
        revision: None for the newest.

    Raises:
        DataError: its card names files elsewhere, which ``datasets`` would read, or it cannot be read.
    """
    import datasets

    try:
        revision = _refuse_elsewhere(repository, revision)
        found: Dataset | DatasetDict | Any = datasets.load_dataset(repository, name, split=split, revision=revision)
        return found
    except DataError:
        raise
    except Exception as error:  # the hub's HTTP library has errors of its own, and another library each few releases
        raise DataError(
            "no file or folder of this name is here, and the hub's dataset cannot be read",
            where=repository,
            why=f"{type(error).__name__}: {error}",
            remedy="check the name, `split`, `name` (configuration) and the connection",
        ) from error


def _refuse_elsewhere(repository: str, revision: str | None) -> str | None:
    """The commit whose card names files of the hub only; ``revision`` where the hub does not answer."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in (_CARD, _CONFIGS):
        try:
            path = hf_hub_download(repository, file, repo_type="dataset", revision=revision)
        except LocalEntryNotFoundError:  # no connection: `datasets` takes what it has prepared before
            return revision
        except EntryNotFoundError:
            continue
        revision = os.path.basename(os.path.dirname(path))  # the same commit is read next
        for key, place in _places(_settings(path, repository)):
            if _leads_elsewhere(place):
                raise DataError(
                    "the card of this dataset names data that is not of the dataset",
                    where=f"{repository}: {file}: {key}",
                    why=f"It names {place!r}. The author of a dataset could name any file or address that this machine "
                    "reaches.",
                    remedy="If you trust it, name that address or file itself, in place of the dataset.",
                )
    return revision


def _settings(path: str, repository: str) -> Any:
    """What a card says in YAML: a file, or the head of a text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if path.endswith(".md"):
            head = _HEAD.search(text)
            text = head[1] if head else ""
        said = YAML(typ="safe", pure=True).load(text)
        return said.get("configs") if isinstance(said, dict) else None
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise DataError("the card of this dataset cannot be read", where=repository, why=str(error)) from error


def _places(configs: Any) -> Iterator[tuple[str, str]]:
    """Each place that a card names, with its key."""
    for config in configs if isinstance(configs, list) else [configs]:
        if isinstance(config, dict):
            for key in ("data_files", "data_dir"):
                for place in _texts(config.get(key)):
                    yield f"configs.{key}", place


def _texts(value: Any) -> Iterator[str]:
    """The texts in lists and mappings, at any depth. Aliases of YAML may make one list stand in itself, or often."""
    waiting, seen = [value], set[int]()
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict | list) and id(each) not in seen:
            seen.add(id(each))
            waiting += each.values() if isinstance(each, dict) else each


def _leads_elsewhere(place: str) -> bool:
    """Whether a place is neither within the dataset nor an ``hf://`` address."""
    *around, last = place.replace("\\", "/").split("::")
    if any(part.partition("://")[0].lower() not in _PACKED for part in around):
        return True
    scheme, colon, _ = last.partition("://")
    if colon:
        return scheme.lower() != "hf"
    return posixpath.isabs(last) or last[1:2] == ":" or last.startswith("~") or ".." in last.split("/")
