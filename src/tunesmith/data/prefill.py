"""Answers behind a generation prompt that already begins the answer, as DeepSeek-R1's ``<think>`` does."""

from __future__ import annotations

from tunesmith.data.conversation import Conversation
from tunesmith.errors import DataError

_PROBE = "tunesmith-answer"
_OPEN, _CLOSE = "<think>", "</think>"


def text_after_prefill(talk: Conversation, number: int, prompt: str, full: str) -> str:
    """What the assistant has to write behind ``prompt`` for turn ``number``, where ``full`` does not begin with it.

    The template is asked how it writes an opaque answer: what stands before it must begin the prompt (the rest of the
    prompt is the prefill) and what stands behind it ends the turn. A thinking block that the prompt opens is closed
    at once where the row has no reasoning, as Qwen3.5's own template does.

    Raises:
        DataError: prompt and answer cannot be reconciled.
    """
    same = _common(prompt, full)
    if prompt[:same].endswith(_OPEN) and not prompt[same:].strip():
        return full[same:].lstrip("\n")  # only the white space behind the opening tag differs (Nemotron)
    turn = talk.turns[number]
    opaque = {key: value for key, value in turn.items() if key != "reasoning_content"} | {"content": _PROBE}
    head, found, tail = talk.with_turn(number, opaque).rpartition(_PROBE)
    if not found or not prompt.startswith(head):
        raise _refusal(talk, prompt, full)
    prefill = prompt[len(head) :]
    content, reasoning = turn["content"], turn.get("reasoning_content")
    if prefill.rstrip().endswith(_OPEN):
        if reasoning:
            return f"{reasoning.strip(chr(10))}\n{_CLOSE}\n\n{content.lstrip(chr(10))}{tail}"
        if _CLOSE in content:
            return content.lstrip().removeprefix(_OPEN).lstrip("\n") + tail
        return f"\n{_CLOSE}\n\n{content}{tail}"
    if prefill.rstrip().endswith(_CLOSE) and not reasoning and _CLOSE not in content:
        return content + tail
    if prefill and content.startswith(prefill):
        return content[len(prefill) :] + tail
    raise _refusal(talk, prompt, full)


def thinks_nothing(prompt: str, answer: str) -> bool:
    """Whether the answer is taught with an empty thinking block, which the prompt or the answer opens."""
    opened = "" if prompt.rstrip().endswith(_OPEN) else _OPEN
    begins, found, _ = answer.partition(_CLOSE)
    return bool(found) and begins.strip() == opened


def _refusal(talk: Conversation, prompt: str, full: str) -> DataError:
    same = _common(prompt, full)
    thinks = _CLOSE in prompt[same:] or _CLOSE in prompt[-40:]
    closed = "give it no reasoning, or let the prompt think: data.chat_template_kwargs: {enable_thinking: true}."
    other = (
        "if the model thinks, give the turn reasoning_content, or set data.chat_template_kwargs: "
        "{enable_thinking: false}; or give another template in data.chat_template."
    )
    return DataError(
        "the chat template writes this answer differently from how its generation prompt begins it",
        where=talk.source,
        why=f"the prompt ends with {prompt[same:][-60:]!r}, the row goes on with {full[same:][:60]!r}",
        remedy=closed if thinks else other,
    )


def _common(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
