"""Messages that name the one they reply to, such as OpenAssistant's: they are joined to trees, a row for each.

A message is {message_id, parent_id, role, text} with its rank among the replies to one message. A tree is the row
{prompt: {text, role, replies: [...]}}, as OpenAssistant's files of trees have it.
https://huggingface.co/datasets/OpenAssistant/oasst1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.examples.dataset_exports import TREE_FACTS, TREE_ROLES
from tunesmith.data.examples.message import describe
from tunesmith.data.files.rows import BadRow, Block, LeftOut, Row, blocks_of_rows, ready_rows
from tunesmith.data.files.source_part import SourcePart

KEYS = frozenset(("message_id", "parent_id", "role", "text"))
ORPHAN = "a reply to a message that is not in the file"


def are_messages_of_trees(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the first rows are messages that name the one they reply to."""
    return bool(rows) and all(
        row.keys() >= KEYS and "replies" not in row and str(row["role"]).lower() in TREE_ROLES for row in rows
    )


def joined(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """A row for each tree, where its first message stands; a reply whose message is missing is left out."""
    nodes: dict[str, tuple[Row, dict[str, Any]]] = {}
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        name = str(row.fields.get("message_id"))
        if name in nodes:
            yield BadRow(row.source, "message_id", f"{describe(name)} a second time", "each message_id once", name)
            continue
        nodes[name] = row, {key: row.fields.get(key) for key in TREE_FACTS} | {"replies": []}
    roots = []
    for row, node in nodes.values():
        parent = row.fields.get("parent_id")
        if parent in (None, "") or parent != parent:  # NaN, as pandas writes a missing one
            roots.append((row, node))
        elif str(parent) in nodes:
            nodes[str(parent)][1]["replies"].append(node)
        else:
            yield LeftOut(row.source, "row", ORPHAN, "the messages of whole trees", str(row.fields.get("text")))
    for row, node in roots:
        facts = {key: row.fields[key] for key in ("message_tree_id", "lang") if key in row.fields}
        yield Row({**facts, "prompt": node}, row.source)


@dataclass(slots=True, kw_only=True)
class TreePart(SourcePart):
    """The trees of a file or split of messages. All its messages are held while it is read."""

    messages: SourcePart

    @property
    def choices(self) -> tuple[str, ...]:
        """What was chosen about how it is read, in words for the user."""
        return (*self.messages.choices, "messages joined to trees by parent_id")

    def blocks(self) -> Iterator[Block]:
        sized = ((int(row.source.rpartition(":")[2]), row, len(str(row))) for row in joined(self.messages.rows()))
        return blocks_of_rows(sized, self.name)

    def _hash(self) -> None:
        self._digest = self.messages.sha256


def with_trees(parts: Sequence[SourcePart]) -> list[SourcePart]:
    """The parts, whose rows are messages, as parts whose rows are trees."""
    return [TreePart(part.name, ready_rows, same_columns=False, messages=part) for part in parts]
