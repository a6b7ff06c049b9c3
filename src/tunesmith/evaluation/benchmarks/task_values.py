"""What values of somebody's tasks are refused: data from elsewhere, regular expressions, and numbers without an end.

lm-evaluation-harness hands ``dataset_kwargs`` to `datasets` as they are, which reads any file and writes any folder.
Here a list of keys is let through. A file of data must lie below the folder of the tasks, unpacked. This module imports
neither torch nor the harness.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMATS = ("json", "csv", "parquet", "text")  # of local data, by the names of `datasets`
KEYS = ("data_files", "data_dir", "name", "split", "revision", "field", "trust_remote_code")
EXPRESSIONS = ("regex_pattern", "regexes_to_ignore")  # keys of filters and metrics
MOST = {"repeats": 200, "num_fewshot": 200}  # of answers and examples
MOST_TASKS = 2000  # in one group, with those of its groups
_PATHS = f"what is let through is a name on the hub, {', '.join(FORMATS)}"
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_ELSEWHERE = re.compile(r"://|::|^[/~\\]|(^|[/\\])\.\.([/\\]|$)")


def refused_values(
    config: Mapping[str, Any], folder: Path, formats: Collection[str], check: Callable[[Path], str | None]
) -> Iterator[str]:
    """What is not let through in the values of a file, in words. Paths of data are replaced by those that were checked.

    Args:
        config: the values of a file.
        folder: of the tasks, resolved.
        formats: every name that `datasets` takes for a format and not for data on the hub.
        check: why a file of data is not read; None if it is.
    """
    waiting: list[Any] = [config]
    while waiting:
        each = waiting.pop()
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        if not isinstance(each, dict):
            continue
        for key in EXPRESSIONS:
            if each.get(key) is not None:
                yield f"{key}: a regular expression can take time without an end"
        for key, most in MOST.items():
            if isinstance(each.get(key), int) and each[key] > most:
                yield f"{key}: {each[key]} is more than {most}"
        if "dataset_path" in each or "dataset_kwargs" in each:
            yield from _data(each, folder, formats, check)


def _data(
    config: dict[str, Any], folder: Path, formats: Collection[str], check: Callable[[Path], str | None]
) -> Iterator[str]:
    path, given = config.get("dataset_path"), config.get("dataset_kwargs")
    given = {} if given is None else given
    if not isinstance(given, dict):
        yield "dataset_kwargs: it is no mapping"
        return
    for key in given:
        if key not in KEYS:
            yield f"dataset_kwargs.{key}: what is let through is {', '.join(KEYS[:-1])}"
    if given.get("trust_remote_code"):
        yield "dataset_kwargs.trust_remote_code: it asks for code"
    if path is not None and path not in FORMATS:
        yield from _on_hub(path, given, formats)
        return
    if given.get("data_dir") is not None:
        yield "dataset_kwargs.data_dir: name the files in data_files"
    files = given.get("data_files")
    if files is None:
        if path is not None:
            yield f"dataset_path: {path} without dataset_kwargs.data_files reads the working folder"
        return
    by_split: dict[Any, list[str]] = {}
    for split, names in (files if isinstance(files, dict) else {"train": files}).items():
        checked: list[str] = []
        for name in names if isinstance(names, list) else [names]:
            why = _local(name, folder, check, checked)
            if why is not None:
                yield f"dataset_kwargs.data_files: {name}: {why}"
        by_split[split] = checked
    config["dataset_kwargs"] = {**given, "data_files": by_split}


def _on_hub(path: Any, given: Mapping[str, Any], formats: Collection[str]) -> Iterator[str]:
    if not isinstance(path, str) or not _HUB.fullmatch(path) or Path(path).exists():
        yield f"dataset_path: {path}: a folder or address; {_PATHS}"
    elif path in formats:
        yield f"dataset_path: {path}: {_PATHS}"
    inside: list[Any] = [given.get("data_files"), given.get("data_dir"), given.get("revision")]
    while inside:
        each = inside.pop()
        if isinstance(each, dict | list):
            inside += each.values() if isinstance(each, dict) else each
        elif each is not None and (not isinstance(each, str) or _ELSEWHERE.search(each)):
            yield f"dataset_kwargs: {each}: it is no place in the data on the hub"


def _local(name: Any, folder: Path, check: Callable[[Path], str | None], checked: list[str]) -> str | None:
    """Why a file of data is not let through; None if it is. What it stands for goes into ``checked``."""
    if not isinstance(name, str) or "://" in name or "::" in name:
        return "an address is not read; save the data below the folder of the tasks"
    found = [name] if Path(name).exists() or not glob.has_magic(name) else sorted(glob.glob(name, recursive=True))
    for each in found or [name]:
        path = Path(each).resolve()
        if not path.is_relative_to(folder):
            return "it does not lie below the folder of the tasks"
        if path.exists():
            why = check(path) if path.is_file() else "it is no file"
            if why is not None:
                return why
        checked.append(str(path))
    return None


def growing_groups(configs: Sequence[tuple[Path, Mapping[str, Any]]]) -> Iterator[tuple[Path, str]]:
    """(file, what is not let through) of groups of a folder that have too many tasks, or no end."""
    own = _groups(configs)
    tags = Counter(tag for _, config in configs for tag in _names(config.get("tag")))
    sizes: dict[str, int] = {}
    for path, config in configs:
        for name in _odd_names(config) if "group" in config else ():
            yield path, f"group: the name {name} is no text; put it into quotes"
        if "group" in config and _size(config, own, tags, sizes, 0) > MOST_TASKS:
            yield (
                path,
                f"group: it has more than {MOST_TASKS:,} tasks, with those of its groups, or stands inside itself",
            )


def changed_tasks(
    configs: Sequence[tuple[Path, Mapping[str, Any]]], known: Collection[Any]
) -> Iterator[tuple[Path, str]]:
    """(file, what is not let through) of groups of a folder that change a task of the harness.

    Args:
        configs: (file, its values). No group is too large.
        known: names that the harness has and the folder lacks. Such tasks run functions that trust their data.
    """
    own = _groups(configs)
    for path, config in configs:
        if "group" in config:
            yield from ((path, each) for each in _changed(config, {}, own, known))


def _groups(configs: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """The groups by name. As in the harness, the first of a name counts."""
    found: dict[str, Mapping[str, Any]] = {}
    for _, config in configs:
        if isinstance(config.get("group"), str):
            found.setdefault(config["group"], config)
    return found


def _names(given: Any) -> list[str]:
    return [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str)]


def _odd_names(config: Mapping[str, Any]) -> Iterator[Any]:
    """The names in a group that are no text: the harness finds a task or group by them, too."""
    waiting: list[Any] = [config]
    while waiting:
        each = waiting.pop()
        members = each.get("task") if isinstance(each, dict) else None
        if isinstance(members, list):
            waiting += members
        name = each.get("group", members) if isinstance(each, dict) else each
        if not isinstance(name, str):
            yield name


def _size(
    config: Mapping[str, Any], own: Mapping[str, Any], tags: Mapping[str, int], sizes: dict[str, int], depth: int
) -> int:
    """How many tasks a group has; more than MOST_TASKS if it has no end."""
    if depth > MOST_TASKS // 50:
        return MOST_TASKS + 1
    total = 1
    members = config.get("task")
    for each in members if isinstance(members, list) else ():
        name = each.get("group", each.get("task")) if isinstance(each, dict) else each
        if isinstance(name, str) and name in own:
            if name not in sizes:
                sizes[name] = _size(own[name], own, tags, sizes, depth + 1)
            total += sizes[name]
        elif isinstance(each, dict) and "group" in each:
            total += _size(each, own, tags, sizes, depth + 1)
        else:
            total += max(tags.get(name, 1), 1) if isinstance(name, str) else 1
        if total > MOST_TASKS:
            return MOST_TASKS + 1
    return total


# What a group may set for tasks of the harness itself: how they are named, and how many examples they show.
HARMLESS = frozenset({
    "group", "group_alias", "version", "task", "task_alias", "alias", "tag", "num_fewshot", "metadata",
    "aggregate_metric_list", "include", "description", "fewshot_delimiter", "target_delimiter",
    "generation_kwargs", "repeats",
})  # fmt: skip


def _changed(
    config: Mapping[str, Any], above: Mapping[str, Any], own: Mapping[str, Any], known: Collection[Any]
) -> Iterator[str]:
    """The keys that a group sets for tasks of the harness itself and that are not harmless."""
    values = {**above, **{key: config[key] for key in config if key not in HARMLESS}}
    members = config.get("task")
    for each in members if isinstance(members, list) else ():
        name = each.get("group", each.get("task")) if isinstance(each, dict) else each
        mine = {key for key in each if key not in HARMLESS} if isinstance(each, dict) else set()
        if isinstance(name, str) and name in own:
            yield from _changed(own[name], {**values, **dict.fromkeys(mine)}, own, known)
        elif isinstance(each, dict) and "group" in each and name not in known:
            yield from _changed(each, values, own, known)
        elif isinstance(name, str) and name in known and (values or mine):
            keys = ", ".join(sorted({*map(str, values), *map(str, mine)}))
            yield f"{keys}: set for {name}, a task of the harness itself"
