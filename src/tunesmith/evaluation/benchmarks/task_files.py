"""Reads the files of somebody's tasks as plain values, and says what they would run.

lm-evaluation-harness runs Python that a task's file names. Files of its own package are trusted as the package is.
Files of the user's folder are read here, each once, with the limits of recipes, and the harness gets the values: what
was looked through is what is used. This module imports neither torch nor the harness.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tunesmith.recipe.yaml_limits import YamlRefused, plain_yaml, refuse_bombs

MOST_INCLUDED = 100  # files that one task's file may include, one through the other
LARGEST = 2**20  # bytes of a file
VERSION = (1, 1)  # of YAML, as the harness reads it: `yes` is true
_STANDARD, _MERGE = "tag:yaml.org,2002:", "<<"
_OF_PYTHON = f"{_STANDARD}python"
_TEXTS = ("y", "Y", "n", "N")
_NUMBER = re.compile(  # a float of PyYAML
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_NAMING = ("class", "use_prompt")  # keys whose values name code


@dataclass(slots=True)
class TaskFiles:
    """What the files of a folder hold.

    Attributes:
        configs: (file, its values with those that it includes) for each file; empty if anything is wrong.
        code: (file, what it would run).
        unread: (file, why it cannot be read as a whole). What it would run is not known.
    """

    configs: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    code: list[tuple[Path, str]] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)


class _Values(SafeConstructor):
    """Makes the values that the harness's own reader (PyYAML) makes: ``y`` is a text there, and so is ``1e-5``."""

    def construct_yaml_bool(self, node: Any) -> Any:
        return node.value if node.value in _TEXTS else super().construct_yaml_bool(node)

    def construct_yaml_float(self, node: Any) -> Any:
        return super().construct_yaml_float(node) if _NUMBER.fullmatch(node.value) else node.value


_Values.add_constructor(f"{_STANDARD}bool", _Values.construct_yaml_bool)
_Values.add_constructor(f"{_STANDARD}float", _Values.construct_yaml_float)


class _UnreadError(Exception):
    """Why a file cannot be read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path, self.why = path, why


def read_task_files(folder: Path, metrics: Collection[str]) -> TaskFiles:
    """Reads the YAML files of a folder, and what they include.

    Args:
        folder: of the tasks.
        metrics: names of metrics that the harness has itself. Others would be fetched, and are programs.
    """
    files = [file.resolve() for file in sorted(folder.glob("**/*.yaml"), key=Path.as_posix)]
    texts: dict[Path, str] = {}
    code, unread = dict[tuple[Path, str], None](), dict[Path, str]()
    for file in files:
        waiting, seen = [file], set[Path]()
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            if len(seen) > MOST_INCLUDED:
                unread[file] = f"It includes more than {MOST_INCLUDED} files."
                break
            seen.add(path)
            try:
                root = _nodes(path, texts)
            except _UnreadError as error:
                unread[path] = error.why
                continue
            code |= dict.fromkeys((path, what) for what in _code_in(root, metrics))
            waiting += [(path.parent / each).resolve() for each in _included(root)]
    found = TaskFiles(code=list(code), unread=list(unread.items()))
    if not code and not unread:
        try:
            values = {path: _values(path, text) for path, text in texts.items()}
            found.configs = [(file, _whole(file, values, set())) for file in files if isinstance(values[file], dict)]
        except _UnreadError as error:
            found.unread.append((error.path, error.why))
    return found


def _nodes(path: Path, texts: dict[Path, str]) -> Node | None:
    """The nodes of a file; None if it is empty. Its text goes into ``texts``.

    Raises:
        _UnreadError: it is no YAML, too large, or not there.
    """
    try:
        if path not in texts:
            if not path.is_file():  # a device or a pipe may never end
                raise _UnreadError(path, "There is no such file.")
            if path.stat().st_size > LARGEST:
                raise _UnreadError(path, f"It has more than {LARGEST:,} bytes.")
            texts[path] = path.read_text(encoding="utf-8")
        refuse_bombs(texts[path], version=VERSION, own_tags=True)
        return plain_yaml(VERSION).compose(texts[path])
    except YamlRefused as error:
        raise _UnreadError(path, f"Line {error.line}: {error.what}.") from error
    except (YAMLError, OSError, ValueError, RecursionError) as error:
        raise _UnreadError(path, _first_line(error)) from error


def _values(path: Path, text: str) -> Any:
    """The values of a file, without those that it includes."""
    try:
        refuse_bombs(text, version=VERSION)
        reader = plain_yaml(VERSION)
        reader.Constructor = _Values
        return reader.load(text)
    except YamlRefused as error:
        raise _UnreadError(path, f"Line {error.line}: {error.what}.") from error
    except (YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _UnreadError(path, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    text = (isinstance(error, MarkedYAMLError) and error.problem) or str(error) or type(error).__name__
    return f"It is no YAML that can be read: {text.splitlines()[0][:200]}."


def _whole(path: Path, values: dict[Path, Any], above: set[Path]) -> dict[str, Any]:
    """The values of a file with those that it includes, by the harness's rules: its own win over them.

    Raises:
        _UnreadError: it includes itself, a file twice, or one that is no mapping.
    """
    if path in above:
        raise _UnreadError(path, "It is included twice by one file, or includes itself.")
    above.add(path)
    config = values.get(path)
    if not isinstance(config, dict):
        raise _UnreadError(path, "It is included, and is no mapping.")
    own = {key: value for key, value in config.items() if key != "include"}
    included = config.get("include", [])
    merged: dict[str, Any] = {}
    for each in included if isinstance(included, list) else [included]:
        if not isinstance(each, str):
            raise _UnreadError(path, "What it includes is no path.")
        inner = _whole((path.parent / each).resolve(), values, above)
        inner.pop("task_list", None)
        merged |= inner
    return merged | own


def _included(root: Node | None) -> Iterator[str]:
    """The paths that a file includes."""
    for node in _of_key(root, "include") if isinstance(root, MappingNode) else ():
        for each in node.value if isinstance(node, SequenceNode) else [node]:
            if isinstance(each, ScalarNode):
                yield str(each.value)


def _code_in(root: Node | None, metrics: Collection[str]) -> Iterator[str]:
    for node in _inside(root):
        tag = str(node.tag)
        if not tag.startswith(_STANDARD) or tag.startswith(_OF_PYTHON):
            yield f"{tag} {node.value if isinstance(node, ScalarNode) else ''}".rstrip()
        if not isinstance(node, MappingNode):
            continue
        for key in _NAMING:
            for value in _of_key(node, key):
                yield f"{key}: {_text(value)}"
        fetched = [value for value in _of_key(node, "hf_evaluate") if _text(value).lower() != "false"]
        for value in _of_key(node, "metric"):
            if fetched or _text(value) not in metrics:
                yield f"metric: {_text(value)}"


def _inside(root: Node | None) -> Iterator[Node]:
    """Every node once, whatever aliases there are."""
    waiting, seen = [root] if root is not None else [], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            waiting += node.value


def _of_key(node: MappingNode, key: str) -> Iterator[Node]:
    """The values of a key in a mapping and in those that are merged into it. A key that is given twice has two."""
    for name, value in node.value:
        if not isinstance(name, ScalarNode):
            continue
        if name.value == key:
            yield value
        elif name.value == _MERGE:
            for each in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(each, MappingNode):
                    yield from _of_key(each, key)


def _text(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "(no text)"
