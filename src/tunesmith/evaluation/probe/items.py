"""The probe: questions with answers that can be checked, to see what a model knew before and lost by training.

A file of items is JSON lines. Each line is ``{id, kind, messages, check}``: the messages end with a user's turn, and
the check is a mapping of rules (rules.py). The package has items of its own. This module does not import torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.examples.message import Message, RowError, describe, openai_message
from tunesmith.data.files.json_rows import Position, row_of
from tunesmith.data.files.rows import BOM, BadRow
from tunesmith.errors import DataError
from tunesmith.evaluation.probe.rules import RULES, is_right
from tunesmith.recipe.paths import local
from tunesmith.runs.plain_files import read_plain

BUILT_IN = "the built-in probe"
KEY = "evaluation.probe"
FIELDS = ("id", "kind", "messages", "check")
SHOWN = 10  # bad lines
LARGEST = 2**26  # bytes of a file
LONGEST_NAME = 100  # characters of an id or a kind
_OWN = Path(__file__).with_name("items.jsonl")


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """One question: its messages, and the check of its answer. ``source`` is its ``file:line``."""

    id: str
    kind: str
    messages: tuple[Message, ...]
    check: Mapping[str, Any]
    source: str

    def is_right(self, answer: str) -> bool:
        """Whether an answer passes the check. Raises DataError if a pattern of a user's file takes too long."""
        return is_right(self.check, answer)


@dataclass(frozen=True, slots=True)
class ProbeItems:
    """The items of one file. ``name`` is the file as the user gave it, or BUILT_IN."""

    name: str
    items: tuple[ProbeItem, ...]


def probe_of(setting: bool | str) -> ProbeItems | None:
    """The probe that a recipe asks for: none, the built-in one, or that of a file.

    Raises:
        DataError: the file cannot be read, or lines of it are no items. Every bad line is named.
    """
    if setting is False:
        return None
    return ProbeItems(BUILT_IN, _items(_OWN, _OWN.name)) if setting is True else ProbeItems(setting, _of_file(setting))


def own_file(setting: bool | str) -> Path | None:
    """The file of a user's own questions; None for the built-in probe, and for none."""
    return Path(local(setting)) if isinstance(setting, str) else None


def _of_file(path: str) -> tuple[ProbeItem, ...]:
    if not Path(local(path)).exists():
        raise DataError(
            "There is no such file of probe items",
            where=path,
            why=f"{KEY} is true for {BUILT_IN}, or names a file of JSON lines.",
            remedy="Correct the path, or use the built-in probe: `--probe`, or `evaluation.probe: true` in the recipe.",
        )
    return _items(Path(local(path)), path)


def _items(file: Path, name: str) -> tuple[ProbeItem, ...]:
    found: list[ProbeItem] = []
    bad: list[BadRow] = []
    lines: dict[str, str] = {}
    for row in _rows(file, name):
        if isinstance(row, ProbeItem) and row.id in lines:
            row = BadRow(row.source, "id", f"{row.id!r}, which {lines[row.id]} has, too", "an id of its own", "")
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        lines[row.id] = row.source
        found.append(row)
    if bad:
        more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        number = "One line is" if len(bad) == 1 else f"{len(bad)} lines are"
        raise DataError(
            f"{number} no item of a probe",
            where=bad[0].source,
            why="\n".join([*map(str, bad[:SHOWN]), *more]),
            remedy="Correct them. An item is one line, such as "
            '{"id": "capital-france", "kind": "facts", "messages": [{"role": "user", "content": "What is the capital '
            'of France?"}], "check": {"contains": "Paris"}}.',
        )
    if not found:
        raise DataError("The file has no items", where=name, remedy="Write one JSON object a line.")
    return tuple(found)


def _rows(file: Path, name: str) -> Iterator[ProbeItem | BadRow]:
    try:
        content = read_plain(file)
    except OSError as error:
        raise DataError(
            "The file of probe items cannot be read",
            where=name,
            why=f"{error.strerror or error}.",
            remedy="Name a file that you can read.",
        ) from error
    if len(content) > LARGEST:
        raise DataError(
            "The file of probe items is too large",
            where=name,
            why=f"It has {len(content):,} bytes. The limit is {LARGEST:,}.",
            remedy="Judge many rows with `--data`, which needs no checks.",
        )
    for number, line in enumerate(content.removeprefix(BOM).split(b"\n"), start=1):
        if not line or line.isspace():
            continue
        row = row_of(line.decode(errors="surrogateescape"), name, Position(number))
        yield row if isinstance(row, BadRow) else _item(row.fields, row.source)


def _item(fields: Mapping[str, Any], source: str) -> ProbeItem | BadRow:
    try:
        json.dumps(fields, ensure_ascii=False).encode()
        return ProbeItem(
            id=_name(fields, "id"),
            kind=_name(fields, "kind"),
            messages=_messages(_known(fields)["messages"]),
            check=_check(fields["check"]),
            source=source,
        )
    except RowError as error:
        return BadRow(source, error.field, error.found, error.expected, "")
    except UnicodeEncodeError:
        return BadRow(source, "row", "half a character (a lone surrogate)", "text", "")


def _known(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in fields:
        if name not in FIELDS:
            raise RowError(name[:LONGEST_NAME], "an unknown field", _close(name, FIELDS))
    for name in FIELDS:
        if name not in fields:
            raise RowError(name, "nothing", f"the fields {', '.join(FIELDS)}")
    return fields


def _name(fields: Mapping[str, Any], field: str) -> str:
    value = _known(fields)[field]
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_NAME or not value.isprintable():
        raise RowError(field, describe(value), f"a name of at most {LONGEST_NAME} characters")
    return value


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError("messages", describe(value), "a list of messages")
    turns = tuple(openai_message(turn, f"messages[{number}]") for number, turn in enumerate(value))
    if turns[-1].role != "user":
        raise RowError(f"messages[{len(turns) - 1}].role", turns[-1].role, "user: the last message is answered")
    return turns


def _check(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise RowError("check", describe(value), f"an object of rules: {', '.join(RULES)}")
    for name, wanted in value.items():
        if name not in RULES:
            raise RowError(f"check.{name[:LONGEST_NAME]}", "an unknown rule", _close(name, tuple(RULES)))
        if not RULES[name].fits(wanted):
            raise RowError(f"check.{name}", describe(wanted), RULES[name].expected)
    return value


def _close(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{close[0]}, if that is meant" if close else f"one of {', '.join(known)}"
