"""Exports of WhatsApp, Slack, Telegram and Discord: only the user knows which of their people the model should be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunesmith.data.examples.row_shapes import listed
from tunesmith.errors import DataError

# 3/2/26, 9:01 AM - Name: text; [02.03.26, 09:01:12] Name: text
STAMP = re.compile(
    r"\u200e?\[?\d{1,4}[./-]\d{1,2}[./-]\d{2,4},?\s+\d{1,2}[:.]\d{2}([:.]\d{2})?(\s?[AaPp]\.?\s?[Mm]\.?)?(\]| -)\s+"
)
SPEAKER = re.compile(r"([^:]{1,60}): ")
LEAST_SHARE, LEAST_LINES = 0.2, 3  # of the first lines, that begin with a date and a name
SLACK_FILES = frozenset({"channels.json", "users.json"})
SPEAKERS = ("from", "author", "sender")
SLACK_MESSAGE = frozenset({"type", "ts", "text"})


def refuse_chats(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Stops at the first rows of a chat.

    Args:
        rows: the first of a source, as its files have them.
        where: the source.

    Raises:
        DataError: they are lines of a WhatsApp chat, or messages of Slack, Telegram, Discord or their like.
    """
    people = [name for row in rows for name in _speakers(row.get("messages"))]
    if people and not any("conversations" in row for row in rows):
        raise _refusal("chat messages", "they are", _names(people), where)
    if rows and all(row.keys() >= SLACK_MESSAGE and row["type"] == "message" for row in rows):
        raise _refusal("Slack messages", "they are", _names(row.get("user") for row in rows), where)
    texts = [row["text"] for row in rows if row.keys() == {"text"} and isinstance(row["text"], str)]
    stamped = [(text, match.end()) for text in texts if (match := STAMP.match(text))]
    said = [match[1] for text, end in stamped if (match := SPEAKER.match(text, end))]
    if len(said) >= max(LEAST_LINES, LEAST_SHARE * len(rows)):
        raise _refusal("a WhatsApp chat", "they are", _names(said), where)


def _speakers(messages: object) -> list[str]:
    """The people of messages as Telegram and Discord export them, which have an author in place of a role."""
    turns = messages if isinstance(messages, list) else []
    said = [turn for turn in turns if isinstance(turn, Mapping) and turn.keys() & {"text", "content"}]
    if not said or any(turn.keys() & {"role", "value"} for turn in said):
        return []
    names = [next((turn[key] for key in SPEAKERS if turn.get(key)), None) for turn in said]
    names = [name.get("name") if isinstance(name, Mapping) else name for name in names]
    return [name for name in names if isinstance(name, str)]


def refuse_slack_folder(names: Iterable[str], where: str) -> None:
    """Stops at the folder of a Slack export, of which the files at the top are lists of people and channels.

    Raises:
        DataError: it is one.
    """
    if {*names} >= SLACK_FILES:
        raise _refusal("a Slack export", "they are in", "users.json", where)


def _names(names: Iterable[Any]) -> str:
    return listed([str(name) for name in dict.fromkeys(names) if name])


def _refusal(what: str, are: str, people: str, where: str) -> DataError:
    turns = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
    raw = "" if "WhatsApp" not in what else "; to train on its lines as raw text, set data.format: text"
    begins = "these are" if what.endswith("s") else "this is"
    return DataError(
        f"{begins} {what}, and the person whom the model should be is not known",
        where=where,
        why=f"{are} {people}",
        remedy=f"write each conversation as a line {turns} of chat.jsonl, where the person that the model should be is "
        f"the assistant, and run `tunesmith check chat.jsonl`{raw}",
    )
