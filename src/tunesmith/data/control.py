"""Control tokens inside messages: found, and marked so that they are encoded as plain text.

A control token is one that frames turns or ends them. Written by a user into a message it would forge a turn, so it is
refused, or encoded as the characters it is made of. Marks stand around such a text from the message to the encoder
(the way of ``sanitize_control_tokens`` in transformers), so the template can do with the message what it does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_START, _END = "\U000f0000", "\U000f0001"
# Tags that an assistant writes itself, whatever the tokenizer calls them.
REASONING_TAGS = frozenset({"<think>", "</think>"})


class ControlTokens:
    """The texts that count as control tokens, as patterns.

    Args:
        texts: the control tokens of a tokenizer, see ``control_texts``.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(text for text in texts if text.strip())
        self._any = re.compile(_trie_pattern(self.texts))
        self._unwritten = re.compile(_trie_pattern(self.texts - REASONING_TAGS))
        marks = {_START, _END}
        self._to_mark = re.compile(_trie_pattern(self.texts | marks))
        self._answer_to_mark = re.compile(_trie_pattern((self.texts - REASONING_TAGS) | marks))
        # A template that escapes JSON writes marks, and tokens of other scripts, as escapes. A mark alone is one of a
        # pair that the template cut apart: it is no text, and what stands on its two sides must not join.
        within = _trie_pattern({form for text in self.texts | marks for form in (text, _escaped(text))})
        start, end = (f"(?:{mark}|{re.escape(_escaped(mark))})" for mark in (_START, _END))
        self._marked = re.compile(f"{start}({within}){end}|[{_START}{_END}]")

    def find(self, value: Any, *, assistant: bool = False) -> str | None:
        """The first control token in the strings of a value, keys included; an assistant may write reasoning tags."""
        pattern = self._unwritten if assistant else self._any
        return next((match[0] for text in _strings(value) if (match := pattern.search(text))), None)

    def mark(self, value: Any, *, assistant: bool = False) -> Any:
        """The same value with marks around what ``find`` finds, in every string."""
        pattern = self._answer_to_mark if assistant else self._to_mark
        return _mapped(value, lambda text: pattern.sub(rf"{_START}\g<0>{_END}", text))

    def split(self, text: str) -> list[tuple[int, str, bool]]:
        """A rendered text in pieces (start, piece, whether it is plain text), the marks left out."""
        pieces, at = [], 0
        for match in self._marked.finditer(text):
            pieces.append((at, text[at : match.start()], False))
            if match[1]:
                pieces.append((match.start(1), match[1], True))
            at = match.end()
        pieces.append((at, text[at:], False))
        return [piece for piece in pieces if piece[1]]


def has_control_marks(text: str) -> bool:
    """Whether a rendered text holds marks."""
    return _START in text or _escaped(_START) in text


def control_texts(
    tokenizer: PreTrainedTokenizerBase, stop_ids: Iterable[int], frame: Iterable[int], meant: Iterable[str] = ()
) -> set[str]:
    """The texts of a tokenizer's control tokens: all special ones, and added ones that end or frame a turn.

    Args:
        stop_ids: ids that generation stops on.
        frame: ids that the template writes around a user turn; Qwen's ``<tool_call>`` is not among them, so text
            about tool calls stays allowed.
        meant: tokens that stand in texts on purpose, and so are none, unless they end or frame a turn or have a part of
            their own, such as padding.
    """
    structural = {*stop_ids, *frame}
    added = tokenizer.added_tokens_decoder
    texts = {token.content for number, token in added.items() if token.special or number in structural}
    parts = {added[number].content for number in structural if number in added}
    parts |= {str(token) for token in tokenizer.special_tokens_map.values()}
    return (texts | set(tokenizer.all_special_tokens)) - (set(meant) - parts)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(item, change) for item in value]
    return value


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _trie_pattern(texts: Iterable[str]) -> str:
    """A pattern that matches any of the texts, the longest first, with common beginnings written once.

    Vocabularies have thousands of control tokens; a flat alternation would try them all at every ``<``.
    """
    trie: dict[str, Any] = {}
    for text in texts:
        node = trie
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return _branch(trie) if trie else "(?!)"


def _branch(node: Mapping[str, Any]) -> str:
    ways = [re.escape(character) + _branch(below) for character, below in sorted(node.items()) if character]
    if not ways:
        return ""
    whole = ways[0] if len(ways) == 1 and "" not in node else f"(?:{'|'.join(ways)})"
    return f"{whole}?" if "" in node else whole
