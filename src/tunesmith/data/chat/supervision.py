"""Decides which tokens of a conversation are learned: the assistant's turns, each with the token that ends it.

The rule is prefix rendering. The prompt of a turn is the conversation before it with the generation prompt, encoded
alone, as generation will encode it. The turn is what the template writes behind that prompt, up to the first token that
generation stops on. {% generation %} marks, where a template has them, can leave out tokens of a turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunesmith.data.chat.encoding import TextEncoder, Tokens
from tunesmith.data.chat.notes import (
    CONTENT_LOST,
    EMPTY_THINKING,
    HISTORY_LOST,
    IMPLIED_END,
    MARKS_EARLY,
    MARKS_SHORT,
    MARKS_UNUSED,
    OWN_ROWS,
    REASONING_LOST,
    TOOLS_LOST,
    Notes,
)
from tunesmith.data.chat.rendering import RenderError, TemplatedConversation
from tunesmith.data.chat.tokenizing import tokenizing
from tunesmith.errors import DataError

_PROBE = "tunesmith-answer"
_OPEN, _CLOSE = "<think>", "</think>"


def text_after_prefill(conversation: TemplatedConversation, number: int, prompt: str, full: str) -> str:
    """What the assistant must write behind ``prompt`` for turn ``number`` if ``full`` does not begin with the prompt.

    The template renders an opaque answer. The text before it must begin the prompt (the rest of the prompt is the
    prefill), and the text behind it ends the turn. If the row has no reasoning, a thinking block that the prompt opens
    is closed at once, as Qwen3.5's own template does.

    Raises:
        DataError: prompt and answer cannot be reconciled.
    """
    same = _common(prompt, full)
    if prompt[:same].endswith(_OPEN) and not prompt[same:].strip():
        return full[same:].lstrip("\n")  # only the white space behind the opening tag differs (Nemotron)
    turn = conversation.turns[number]
    opaque = {key: value for key, value in turn.items() if key != "reasoning_content"} | {"content": _PROBE}
    head, found, tail = conversation.with_turn(number, opaque).rpartition(_PROBE)
    if not found or not prompt.startswith(head):
        raise _refusal(conversation, prompt, full)
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
    raise _refusal(conversation, prompt, full)


def thinks_nothing(prompt: str, answer: str) -> bool:
    """Whether the learned answer has an empty thinking block, opened by the prompt or by the answer."""
    opened = "" if prompt.rstrip().endswith(_OPEN) else _OPEN
    begins, found, _ = answer.partition(_CLOSE)
    return bool(found) and begins.strip() == opened


def _refusal(conversation: TemplatedConversation, prompt: str, full: str) -> DataError:
    same = _common(prompt, full)
    thinks = _CLOSE in prompt[same:] or _CLOSE in prompt[-40:]
    closed = "give it no reasoning, or let the prompt think: data.chat_template_kwargs: {enable_thinking: true}."
    other = (
        "if the model thinks, give the turn reasoning_content, or set data.chat_template_kwargs: "
        "{enable_thinking: false}; or give another template in data.chat_template."
    )
    return DataError(
        "the chat template writes this answer differently from how its generation prompt begins it",
        where=conversation.source,
        why=f"the prompt ends with {prompt[same:][-60:]!r}, the row goes on with {full[same:][:60]!r}",
        remedy=closed if thinks else other,
    )


def _common(first: str, second: str) -> int:
    """Characters that two texts begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


_FIRST, _SECOND, _THIRD = "tunesmith-first", "tunesmith-second", "tunesmith-third"


@dataclass(frozen=True, slots=True)
class Turn:
    """One learned turn of a row.

    prompt: the ids before it [p]; end: the position of the token that ends it; labels: bool [end + 1 - p], whether each
    token from the prompt to that end is a label.
    """

    prompt: list[int]
    end: int
    labels: np.ndarray


class Supervisor:
    """Turns conversations into rows of ids with their learned turns.

    Args:
        stop_ids: ids that generation stops on; a learned turn ends at one of them.
        notes: takes the notes about the rows.
    """

    def __init__(self, encoder: TextEncoder, *, stop_ids: Sequence[int], notes: Notes) -> None:
        self._encoder = encoder
        self._stop_ids = frozenset(stop_ids)
        self._notes = notes
        self._implied: dict[tuple[str, bool], int | None] = {}
        self._harmless_tails: set[tuple[int, ...]] = set()

    def rows(self, conversation: TemplatedConversation, wanted: Sequence[int]) -> list[tuple[list[int], list[Turn]]]:
        """One row for the conversation if its rendering only grows from turn to turn; otherwise one row a wanted turn.

        Args:
            wanted: indexes of the assistant turns to learn, in order.

        Raises:
            DataError: the template refuses the turns, or a turn has no end that generation stops on.
        """
        whole = self._whole(conversation, wanted) if len(wanted) > 1 else None
        if whole is not None:
            return [whole]
        if len(wanted) > 1:
            self._notes.note(OWN_ROWS, conversation.source)
        return [self._own(conversation, number) for number in wanted]

    def _whole(self, conversation: TemplatedConversation, wanted: Sequence[int]) -> tuple[list[int], list[Turn]] | None:
        """The row of all wanted turns; None if a turn in it is not what it is on its own."""
        text, marks = conversation.full(wanted[-1] + 1)
        tokens = self._encoder.tokens(text, offsets=True)
        if tokens.starts is None or tokens.ends is None:
            return None
        turns = []
        for number in wanted:
            # 1. The row begins with this turn's own prompt, as text and as ids, and has a stop token behind it.
            before = conversation.prompt(number)
            prompt = self._encoder.tokens(before).ids
            end = self._stop_after(tokens.ids, len(prompt))
            if not text.startswith(before) or tokens.ids[: len(prompt)] != prompt or end is None:
                return None
            # 2. The turn reads as it does at the end of a conversation.
            alone = text if number == wanted[-1] else conversation.full(number + 1)[0]
            cut = tokens.ends[end]
            if tokens.starts[end] >= len(alone) or alone[:cut] != text[:cut]:
                return None
            self._check_content(conversation, number, before, text[len(before) : cut])
            if alone[cut:].strip():
                self._check_tail(conversation, self._encoder.continuation(alone[cut:]).ids)
            labels = self._labels(conversation.source, tokens, marks, (len(before), len(prompt), end))
            turns.append(Turn(prompt, end, labels))
        self._check_history(conversation, wanted[-1], text)
        return tokens.ids, turns

    def _own(self, conversation: TemplatedConversation, number: int) -> tuple[list[int], list[Turn]]:
        """The row of one turn behind its own prompt."""
        before = conversation.prompt(number)
        text, marks = conversation.full(number + 1)
        prompt = self._encoder.tokens(before).ids
        if text.startswith(before):
            answer = text[len(before) :]
            tokens = self._encoder.tokens(text, offsets=bool(marks))
            if tokens.ids[: len(prompt)] != prompt:
                # The tokenizer joins the end of the prompt with the beginning of the answer. Generation encodes the
                # prompt alone and never sees such a token, so the answer is encoded alone as well.
                tokens = Tokens([*prompt], [0] * len(prompt), [0] * len(prompt))
                tokens.append(self._encoder.continuation(answer, offsets=bool(marks)), shift=len(before))
        else:
            answer = text_after_prefill(conversation, number, before, text)
            tokens = Tokens(prompt + self._encoder.continuation(answer).ids, None, None)
        self._check_content(conversation, number, before, answer)
        self._check_history(conversation, number, before)
        end = self._stop_after(tokens.ids, len(prompt))
        if end is None:
            tokens, end = self._with_implied_end(conversation, number, tokens)
        self._check_tail(conversation, tokens.ids[end + 1 :])
        labels = self._labels(conversation.source, tokens, marks, (len(before), len(prompt), end))
        return tokens.ids, [Turn(prompt, end, labels)]

    def _stop_after(self, ids: Sequence[int], start: int) -> int | None:
        return next((at for at in range(start, len(ids)) if ids[at] in self._stop_ids), None)

    def _with_implied_end(self, conversation: TemplatedConversation, number: int, tokens: Tokens) -> tuple[Tokens, int]:
        """The tokens with the one that begins the next turn, if generation stops on that; and its position."""
        calls = bool(conversation.turns[number].get("tool_calls"))
        key = (conversation.renderer.source, calls)
        if key not in self._implied:
            self._implied[key] = self._find_implied_end(conversation, calls=calls)
        stop = self._implied[key]
        if stop is None:
            names = self._encoder.tokenizer.convert_ids_to_tokens(sorted(self._stop_ids))
            raise DataError(
                "the assistant's turn has no token that generation stops on",
                where=conversation.source,
                why=f"the template writes none of {', '.join(map(str, names))} behind it; the model would never stop",
                remedy="give a template that ends assistant turns with one of these in data.chat_template.",
            )
        self._notes.note(IMPLIED_END, conversation.source)
        return Tokens([*tokens.ids, stop], None, None), len(tokens.ids)

    def _find_implied_end(self, conversation: TemplatedConversation, *, calls: bool) -> int | None:
        """The first stop token between an assistant turn and the next turn (GLM-4 stops on the next header)."""
        call = {"type": "function", "function": {"name": _SECOND, "arguments": {}}}
        answer: dict[str, Any] = {"role": "assistant", "content": "" if calls else _SECOND}
        answer |= {"tool_calls": [call]} if calls else {}
        turns = [{"role": "user", "content": _FIRST}, answer, {"role": "tool" if calls else "user", "content": _THIRD}]
        try:
            text = conversation.renderer.render(
                [conversation.dialect.view(turn) for turn in turns], add_generation_prompt=False
            )
        except RenderError:
            return None
        if _SECOND not in text or _THIRD not in text:
            return None
        between = self._encoder.continuation(text[text.index(_SECOND) + len(_SECOND) : text.index(_THIRD)]).ids
        at = self._stop_after(between, 0)
        return None if at is None else between[at]

    def _labels(
        self, source: str, tokens: Tokens, marks: Sequence[tuple[int, int]], bounds: tuple[int, int, int]
    ) -> np.ndarray:
        """The labels of a turn, bool [end + 1 - prompt].

        Args:
            marks: character spans [first, last) inside {% generation %} marks.
            bounds: characters of the prompt, ids of the prompt, position of the end.

        Raises:
            DataError: marks leave out the token that ends the turn.
        """
        characters, prompt, end = bounds
        labels = np.ones(end + 1 - prompt, dtype=bool)
        if not marks:
            return labels
        if tokens.starts is None or tokens.ends is None:
            self._notes.note(MARKS_UNUSED, source)
            return labels
        starts, ends = np.array(tokens.starts[prompt : end + 1]), np.array(tokens.ends[prompt : end + 1])
        labels[:] = False
        for first, last in marks:  # tokens that overlap the span; an empty token counts where it stands
            labels |= (starts < last) & ((ends > first) | ((starts == ends) & (starts >= first)))
        if not labels[-1]:
            raise DataError(
                "the chat template's {% generation %} marks leave out the token that ends the assistant's turn",
                where=source,
                why="a model that never learns this token does not stop",
                remedy="move {% endgeneration %} behind it, or remove the marks, in data.chat_template.",
            )
        if any(first < characters < last for first, last in marks):
            self._notes.note(MARKS_EARLY, source)
        if not labels.all():
            self._notes.note(MARKS_SHORT, source)
        return labels

    def _check_tail(self, conversation: TemplatedConversation, tail: Sequence[int]) -> None:
        """Raises DataError if text follows the token that ends a turn; white space and special tokens may."""
        key = tuple(tail)
        if not key or key in self._harmless_tails:
            return
        with tokenizing(len(key)):
            text = str(self._encoder.tokenizer.decode(list(key), skip_special_tokens=True))
        if text.strip():
            raise DataError(
                "the template writes part of the assistant's turn behind a token that generation stops on",
                where=conversation.source,
                why=f"this part would never be generated: {text.strip()[:80]!r}",
                remedy="give a template whose turns end at their first stop token in data.chat_template.",
            )
        self._harmless_tails.add(key)

    def _check_content(self, conversation: TemplatedConversation, number: int, prompt: str, answer: str) -> None:
        """Raises DataError if the template leaves out a tool call; takes a note if it leaves out or rewrites text."""
        turn = conversation.turns[number]
        for call in turn.get("tool_calls", ()):
            if call["function"]["name"] not in answer:
                raise DataError(
                    "the chat template does not write tool calls",
                    where=conversation.source,
                    why=f"the call of {call['function']['name']} would be lost",
                    remedy="write it into the content, or give a template that knows tool calls in data.chat_template "
                    "(chatml_tools is one, for a model that knows ChatML).",
                )
        if thinks_nothing(prompt, answer):
            self._notes.note(EMPTY_THINKING, conversation.source)
        if not _written(turn["content"], answer):
            self._notes.note(CONTENT_LOST, conversation.source)
        if not _written(turn.get("reasoning_content") or "", answer):
            self._notes.note(REASONING_LOST, conversation.source)

    def _check_history(self, conversation: TemplatedConversation, count: int, text: str) -> None:
        for turn in conversation.turns[:count]:
            if not _written(turn["content"], text):
                self._notes.note(HISTORY_LOST, conversation.source)
        if conversation.tools and not _writes_tools(conversation, count):
            self._notes.note(TOOLS_LOST, conversation.source)


def check_row(ids: np.ndarray, supervised: np.ndarray, turns: Sequence[Turn], stop_ids: Sequence[int]) -> None:
    """Asserts what must be true of every finished row: ids int32 [n], supervised bool [n].

    Each label lies between its turn's prompt and its turn's end. The end is a label and generation stops on it. The
    prompt is what generation will send. No turn reaches into the next prompt's own part.
    """
    assert len(ids) == len(supervised) and supervised.any() and not supervised[0]
    allowed = np.zeros(len(ids), dtype=bool)
    last_end = -1
    for turn in turns:
        start = len(turn.prompt)
        assert last_end < start <= turn.end, "turns overlap"
        assert np.array_equal(ids[:start], turn.prompt), "the prompt in training is not the prompt of generation"
        assert supervised[turn.end] and ids[turn.end] in stop_ids, "a turn does not end with a learned stop token"
        allowed[start : turn.end + 1] = True
        last_end = turn.end
    assert not supervised[~allowed].any(), "a token outside the assistant's turns is a label"


def _writes_tools(conversation: TemplatedConversation, count: int) -> bool:
    """Whether the prompt of the turn ``count`` has the name of every tool where the same prompt without tools has not.

    The name may stand in a turn too, so it must stand there more often with the tools than without them.
    """
    text = conversation.prompt(count)
    try:
        without = replace(conversation, tools=()).prompt(count)
    except DataError:  # the template needs the tools, so it reads them
        without = ""
    functions = [each if isinstance(each := tool.get("function"), Mapping) else tool for tool in conversation.tools]
    names = [str(function["name"]) for function in functions if function.get("name")]
    return text != without and all(_times(name, text) > _times(name, without) for name in names)


def _times(name: str, text: str) -> int:
    return text.count(name) or text.count(json.dumps(name)[1:-1])


def _written(content: str, text: str) -> bool:
    """Whether a rendering has this text, without the white space around it and the thinking before it."""
    visible = content.rsplit("</think>", 1)[-1].strip()
    return visible in text or json.dumps(visible, ensure_ascii=False)[1:-1] in text
