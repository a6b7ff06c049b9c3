"""Conversations as services write them: Gemini's tuning files, and the exports of ChatGPT and Claude.

Each becomes a list of messages. Where the text of a turn is not all that was said, the conversation is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.examples.export_layout import Export, Fields, LeftOutRow, items_of
from tunesmith.data.examples.message import RowError, describe

Turn = tuple[str, str | None]  # role and text; None where there is more than text

GEMINI_ROLES = {"user": "user", "model": "assistant", "system": "system"}
# Parts of ChatGPT's export that it does not show as text of the conversation.
NOT_SHOWN = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")
CLAUDE_ROLES = {"human": "user", "assistant": "assistant"}


def _text_of(parts: object) -> str | None:
    """The text of a list of parts {text}; None if one is anything else."""
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in items_of(parts)]
    return "".join(map(str, texts)) if texts and all(isinstance(text, str) for text in texts) else None


# Gemini's tuning files. https://cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-supervised-tuning-prepare
def _is_gemini(row: Fields) -> bool:
    turns = items_of(row.get("contents"))
    return bool(turns) and all(isinstance(turn, Mapping) and isinstance(turn.get("parts"), list) for turn in turns)


def _gemini(row: Fields) -> list[dict[str, str]]:
    system = row.get("systemInstruction") or row.get("system_instruction")
    turns = [({"role": "system", **system}, "systemInstruction")] if isinstance(system, Mapping) else []
    turns += [(turn, f"contents[{number}]") for number, turn in enumerate(row["contents"])]
    messages = []
    for turn, where in turns:
        text, role = _text_of(turn.get("parts")), GEMINI_ROLES.get(str(turn.get("role", "user")))
        if text is None:
            raise RowError(f"{where}.parts", describe(turn.get("parts")), 'parts with text: {"text": ...}')
        if role is None:
            raise RowError(f"{where}.role", describe(turn.get("role")), f"one of {', '.join(GEMINI_ROLES)}")
        messages.append({"role": "system" if where == "systemInstruction" else role, "content": text})
    return messages


# ChatGPT's export (conversations.json): a tree of messages, of which the last branch is the conversation.
def _chatgpt(row: Fields) -> list[Turn]:
    turns: list[Turn] = []
    seen: set[str] = set()
    at = row["current_node"]
    while isinstance(at, str) and at not in seen and isinstance(node := row["mapping"].get(at), Mapping):
        seen.add(at)
        turns += _chatgpt_turn(node.get("message"))
        at = node.get("parent")
    return turns[::-1]


def _chatgpt_turn(message: object) -> list[Turn]:
    if not isinstance(message, Mapping):
        return []
    author, content = message.get("author"), message.get("content")
    role = str(author.get("role")) if isinstance(author, Mapping) else ""
    if not isinstance(content, Mapping) or content.get("content_type") in NOT_SHOWN:
        return []
    parts = items_of(content.get("parts"))
    plain = content.get("content_type") == "text" and all(isinstance(part, str) for part in parts)
    text = "".join(map(str, parts)) if plain else None
    if role == "tool" or message.get("recipient", "all") != "all":
        text = None
    return [] if role == "system" or (text is not None and not text.strip()) else [(role, text)]


# Claude's export (conversations.json): a list of turns of human and assistant.
def _claude(row: Fields) -> list[Turn]:
    turns: list[Turn] = []
    for turn in row["chat_messages"]:
        given = turn if isinstance(turn, Mapping) else {}
        text = _text_of(given.get("content")) or given.get("text")
        whole = isinstance(text, str) and not given.get("attachments") and not given.get("files")
        turns.append((CLAUDE_ROLES.get(str(given.get("sender")), "tool"), str(text) if whole else None))
    return turns


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns if text is not None]


def _checked(turns: Sequence[Turn]) -> dict[str, Any]:
    """Nothing to add. Raises LeftOutRow for a conversation that is not all of it text, or has no answer."""
    if any(text is None for _, text in turns):
        raise LeftOutRow("with tools, images or files")
    if not turns or turns[-1][0] != "assistant":
        raise LeftOutRow("without an answer")
    return {}


SERVICE_EXPORTS: tuple[Export, ...] = (
    Export(
        "Gemini",
        "contents are the conversation, systemInstruction its system text",
        "messages",
        _is_gemini,
        lambda _: {},
        {"messages": _gemini},
    ),
    Export(
        "ChatGPT",
        "the last branch of each conversation, of its text",
        "messages",
        lambda row: isinstance(row.get("mapping"), Mapping) and "current_node" in row,
        lambda row: _checked(_chatgpt(row)),
        {"messages": lambda flat: _messages(_chatgpt(flat))},
    ),
    Export(
        "Claude",
        "the turns of each conversation, of their text",
        "messages",
        lambda row: isinstance(row.get("chat_messages"), list) and "uuid" in row,
        lambda row: _checked(_claude(row)),
        {"messages": lambda flat: _messages(_claude(flat))},
    ),
)
