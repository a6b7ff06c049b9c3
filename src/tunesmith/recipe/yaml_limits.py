"""What a recipe's YAML may not hold: tags, values without an end, and more values than a recipe has.

A few hundred bytes of YAML can stand for billions of values (aliases of aliases), for themselves, or for objects of a
program. The text is looked through as a flat row of events first, which takes no more memory than the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import StreamMark
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)

MOST_CHARACTERS = 2**20
DEEPEST = 40  # a recipe has six levels
MOST_VALUES = 20_000  # with what aliases stand for
LONGEST_KEY = 200
LONGEST_NUMBER = 400  # digits
_STANDARD = "tag:yaml.org,2002:"
_TAGGED = {  # the tags that are read, and the scalars that they may have
    "!": ".*",
    f"{_STANDARD}str": ".*",
    f"{_STANDARD}timestamp": ".*",
    f"{_STANDARD}seq": "",
    f"{_STANDARD}map": "",
    f"{_STANDARD}bool": "true|false",
    f"{_STANDARD}null": "null|~",
    f"{_STANDARD}int": r"[-+]?[0-9]+",
    f"{_STANDARD}float": r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?",
}


class YamlRefused(Exception):
    """Why a text of YAML is not read. It becomes a RecipeError, with the file. ``line`` counts from 1."""

    def __init__(self, what: str, line: int, remedy: str) -> None:
        super().__init__(what)
        self.what, self.line, self.remedy = what, line, remedy


@dataclass(slots=True)
class _Open:
    """A list or mapping that has not ended: how many values are in it so far."""

    anchor: str | None
    mapping: bool
    values: int = 1
    events: int = 0


def plain_yaml(version: tuple[int, int] | None = None) -> YAML:
    """A reader of plain values, of a version of YAML: by default of 1.2."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    return yaml


def refuse_bombs(text: str, *, version: tuple[int, int] | None = None, own_tags: bool = False) -> None:
    """Looks for what no recipe needs.

    Args:
        text: of YAML.
        version: of YAML, by which the text is read later.
        own_tags: whether tags that are not YAML's own are left for somebody else to judge.

    Raises:
        YamlRefused: there is something.
        YAMLError: the text is not YAML.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlRefused(
            f"The recipe has more than {MOST_CHARACTERS:,} characters", 1, "Put rows and texts into files of their own."
        )
    sizes: dict[str, int] = {}
    inside: list[_Open] = [_Open(None, mapping=False)]
    for event in plain_yaml(version).parse(text):
        if isinstance(event, DocumentStartEvent):
            sizes.clear()
        elif isinstance(event, CollectionEndEvent):
            done = inside.pop()
            if done.anchor is not None:
                sizes[done.anchor] = done.values
            _add(inside[-1], done.values, event.start_mark)
        elif isinstance(event, NodeEvent):
            _look_at_node(event, inside, sizes, own_tags=own_tags)


def _look_at_node(event: NodeEvent, inside: list[_Open], sizes: dict[str, int], *, own_tags: bool) -> None:
    line = _line(event.start_mark)
    is_key = inside[-1].mapping and inside[-1].events % 2 == 0
    inside[-1].events += 1
    if isinstance(event, AliasEvent):
        if any(each.anchor == event.anchor for each in inside):
            raise YamlRefused(f"*{event.anchor} stands inside what it stands for", line, "Write the value out.")
        _add(inside[-1], sizes.get(str(event.anchor), 1), event.start_mark)
        return
    assert isinstance(event, (ScalarEvent, CollectionStartEvent))
    tag = None if event.ctag is None else str(event.ctag)
    if tag is not None and own_tags and tag not in _TAGGED:
        tag = None
    if tag is not None and tag not in _TAGGED:
        raise YamlRefused(f"The tag {tag[:80]} is not read", line, "Leave the tag out: a recipe has plain values only.")
    if tag is not None and isinstance(event, ScalarEvent) and not re.fullmatch(_TAGGED[tag], event.value, re.DOTALL):
        raise YamlRefused(f"The value is not what its tag {tag[:80]} says", line, "Leave the tag out.")
    if isinstance(event, CollectionStartEvent):
        if is_key:
            raise YamlRefused("A key is a list or mapping", line, "Write a plain key.")
        inside.append(_Open(event.anchor, mapping=isinstance(event, MappingStartEvent)))
        if len(inside) > DEEPEST:
            raise YamlRefused(f"More than {DEEPEST} levels lie in each other", line, "A recipe has six.")
    elif isinstance(event, ScalarEvent):
        if event.anchor is not None:
            sizes[event.anchor] = 1
        if is_key and len(event.value) > LONGEST_KEY:
            raise YamlRefused(f"A key has more than {LONGEST_KEY} characters", line, "Correct the key.")
        if event.style in (None, "", " ") and len(event.value) > LONGEST_NUMBER and _is_number(event.value):
            raise YamlRefused(f"A number has more than {LONGEST_NUMBER} digits", line, "Write it as 1e3, or as a text.")
        _add(inside[-1], 1, event.start_mark)


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace("_", "").isalnum() and text.lstrip("+-")[:1].isdigit()


def _add(into: _Open, values: int, mark: StreamMark) -> None:
    into.values += values
    if into.values > MOST_VALUES:
        raise YamlRefused(
            f"The values are more than {MOST_VALUES:,}, with what aliases (*name) stand for",
            _line(mark),
            "Put rows into a data file, and write out what an alias repeats.",
        )


def _line(mark: StreamMark) -> int:
    return mark.line + 1
