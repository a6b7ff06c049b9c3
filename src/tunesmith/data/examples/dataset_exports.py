"""Layouts of well-known datasets: SQuAD's questions about a text, and OpenAssistant's trees of messages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.data.examples.export_layout import Export, Fields, LeftOutRow, items_of
from tunesmith.data.examples.message import RowError, describe

TREE_ROLES = {"prompter": "user", "user": "user", "human": "user", "assistant": "assistant"}
TREE_FACTS = ("text", "role", "rank", "deleted", "review_result")  # of a message


# SQuAD: {context, question, answers: {text: [...], answer_start: [...]}}, or answers: [{text, answer_start}].
def _answers(row: Fields) -> list[Any]:
    given = row["answers"]
    if isinstance(given, Mapping):
        texts = given.get("text")
        found = texts if isinstance(texts, list) else [texts]
    else:
        found = [each.get("text") for each in items_of(given) if isinstance(each, Mapping)]
    return [text for text in found if text is not None and text != ""]


def _is_squad(row: Fields) -> bool:
    if not row.keys() >= {"context", "question", "answers"}:
        return False
    given = row["answers"]
    spans = [given] if isinstance(given, Mapping) else items_of(given)
    return given is None or (isinstance(given, (Mapping, list)) and all(_is_span(each) for each in spans))


def _is_span(value: object) -> bool:
    return isinstance(value, Mapping) and "text" in value


def _squad(row: Fields) -> dict[str, Any]:
    if not _answers(row):
        raise LeftOutRow("without an answer")
    return {}


def _question_about(flat: Fields) -> str:
    """The text and the question about it. The text comes first: rows of one text share their prefix."""
    for name in ("context", "question"):
        if not isinstance(flat[name], str) or not flat[name].strip():
            raise RowError(name, describe(flat[name]), "a text that is not empty")
    return f"{flat['context'].strip()}\n\n{flat['question'].strip()}"


# OpenAssistant's trees: {prompt: {text, role, replies: [{text, role, rank, replies: [...]}]}}.
def _root(row: Fields) -> Fields | None:
    prompt = row.get("prompt")
    root = prompt if isinstance(prompt, Mapping) else row
    known = root.keys() >= {"text", "role", "replies"} and isinstance(root["replies"], list)
    return root if known and str(root["role"]).lower() in TREE_ROLES else None


def _is_used(message: Fields) -> bool:
    return not message.get("deleted") and message.get("review_result") is not False


def _rank(message: Fields) -> float:
    """The place of a reply among its siblings, from 0 for the best; those without one come last."""
    rank = message.get("rank")
    number = rank if isinstance(rank, (int, float)) and not isinstance(rank, bool) else math.inf
    return math.inf if math.isnan(number) else number


def _path(row: Fields) -> list[dict[str, Any]]:
    """The turns from the first message on, each the best-ranked reply to the one before it."""
    at = _root(row)
    turns = []
    while at is not None and _is_used(at):
        turns.append({"role": TREE_ROLES.get(str(at.get("role")).lower(), at.get("role")), "content": at.get("text")})
        replies = [each for each in items_of(at.get("replies")) if isinstance(each, Mapping) and _is_used(each)]
        at = min(replies, key=_rank, default=None)
    return turns


def _conversation(row: Fields) -> list[dict[str, Any]]:
    """The path up to its last answer; without an answer, as it is."""
    turns = _path(row)
    answers = [number for number, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
    return turns[: answers[-1]] if answers else turns


def _tree(row: Fields) -> dict[str, Any]:
    if all(turn["role"] != "assistant" for turn in _path(row)):
        raise LeftOutRow("without an answer")
    return {}


DATASET_EXPORTS: tuple[Export, ...] = (
    Export(
        "SQuAD",
        "the context and the question are the prompt, the first of the answers is learned",
        "prompt_completion",
        _is_squad,
        _squad,
        {"prompt": _question_about, "completion": lambda flat: _answers(flat)[0]},
    ),
    Export(
        "OpenAssistant",
        "of each tree the path of the best-ranked replies, or of the first where they have no rank; the other replies "
        "are not learned",
        "messages",
        lambda row: _root(row) is not None,
        _tree,
        {"messages": _conversation},
        replaces=("prompt",),
    ),
)
