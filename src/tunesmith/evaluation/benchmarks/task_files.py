"""What the files of somebody's tasks would run: the functions, metrics and prompts of Python that they name.

lm-evaluation-harness runs Python that a task's file names. Files of its own package are trusted as the package is.
Files of the user's folder are looked through first. Their YAML becomes nodes, and no values are made of it. This module
imports neither torch nor the harness.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_INCLUDED = 100  # files that one task's file may include, one through the other
LARGEST = 2**20  # bytes of a file
UNREADABLE = "it cannot be read, so what it would run is not known"
_STANDARD, _MERGE = "tag:yaml.org,2002:", "<<"
_OF_PYTHON = f"{_STANDARD}python"
_NAMING = ("class", "use_prompt")  # keys whose values name code


def code_named(folder: Path, metrics: Collection[str]) -> list[tuple[Path, str]]:
    """(file, what it would run) for everything in the YAML files of a folder, and in what they include.

    Args:
        folder: of the tasks.
        metrics: names of metrics that the harness has itself. Others would be fetched, and are programs.
    """
    found: dict[tuple[Path, str], None] = {}
    for file in sorted(folder.glob("**/*.yaml")):
        waiting, seen = [file.resolve()], set()
        while waiting and len(seen) < MOST_INCLUDED:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            try:
                root = _nodes(path)
            except (YAMLError, OSError, ValueError, RecursionError):
                found[path, UNREADABLE] = None
                continue
            found |= dict.fromkeys((path, what) for what in _code_in(root, metrics))
            waiting += [path.parent / each for each in _included(root)]
    return list(found)


def _nodes(path: Path) -> Node | None:
    """The nodes of a file; None if it is empty."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))


def _included(root: Node | None) -> Iterator[str]:
    """The paths that a file includes."""
    for node in _values(root, "include") if isinstance(root, MappingNode) else ():
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
            for value in _values(node, key):
                yield f"{key}: {_text(value)}"
        fetched = [value for value in _values(node, "hf_evaluate") if _text(value).lower() != "false"]
        for value in _values(node, "metric"):
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


def _values(node: MappingNode, key: str, depth: int = 0) -> Iterator[Node]:
    """The values of a key in a mapping and in those that are merged into it. A key that is given twice has two."""
    for name, value in node.value:
        if not isinstance(name, ScalarNode):
            continue
        if name.value == key:
            yield value
        elif name.value == _MERGE and depth < MOST_INCLUDED:
            for each in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(each, MappingNode):
                    yield from _values(each, key, depth + 1)


def _text(node: Node) -> str:
    return str(node.value) if isinstance(node, ScalarNode) else "(no text)"
