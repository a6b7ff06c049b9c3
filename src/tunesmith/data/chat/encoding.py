"""Encodes text as token ids: a whole text, or the continuation of text that is encoded already.

Control tokens in a text can be marked. A marked part is encoded as the characters it is made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tunesmith.data.chat.tokenizing import tokenizing
from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_START, _END = "\U000f0000", "\U000f0001"  # marks, from the private use area
# Tags that an assistant may write, even if the tokenizer has them as control tokens.
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
        # A template that escapes JSON writes marks, and tokens of other scripts, as escapes. A mark alone is half of a
        # pair that the template cut apart. It is not text, and the texts on its two sides must not join.
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
        """A rendered text without its marks in pieces: (start, piece, whether it was marked)."""
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
        frame: ids that the template writes around a user turn. Qwen's ``<tool_call>`` is not one of them, so a text
            may be about tool calls.
        meant: tokens that are in texts on purpose. They are not control tokens, unless they end or frame a turn or have
            a special function, such as padding.
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
    """A pattern that matches any of the texts, the longest first, in which common beginnings are written once.

    Vocabularies have thousands of control tokens. A flat alternation would try them all at every ``<``.
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


@dataclass(slots=True)
class Tokens:
    """Ids [n], and for each the characters [start, end) of the text; no offsets if the tokenizer does not give them."""

    ids: list[int] = field(default_factory=list)
    starts: list[int] | None = field(default_factory=list)
    ends: list[int] | None = field(default_factory=list)

    def append(self, other: Tokens, *, shift: int = 0) -> None:
        """Appends tokens whose text begins at the character ``shift`` of this text."""
        self.ids += other.ids
        if self.starts is None or self.ends is None or other.starts is None or other.ends is None:
            self.starts = self.ends = None
            return
        self.starts += [start + shift for start in other.starts]
        self.ends += [end + shift for end in other.ends]

    def after(self, count: int, *, shift: int = 0) -> Tokens:
        """The tokens from position ``count`` on, with offsets that count from the character ``shift``."""
        if self.starts is None or self.ends is None:
            return Tokens(self.ids[count:], None, None)
        starts, ends = ([max(0, at - shift) for at in side[count:]] for side in (self.starts, self.ends))
        return Tokens(self.ids[count:], starts, ends)


class TextEncoder:
    """A tokenizer that adds no special tokens of its own, because templates write them.

    Args:
        control: the control tokens that may be marked in a text; None if texts have no marks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: ControlTokens | None = None) -> None:
        self.tokenizer = tokenizer
        self._control = control
        added = tokenizer.added_tokens_decoder.items()
        self._control_ids = {number for number, token in added if control and token.content in control.texts}
        # SentencePiece-like tokenizers put a space before a text, which does not belong inside one.
        begins = [self._call(text).ids for text in ("\na", "\n", "a")]
        self._adds_space = begins[0] != begins[1] + begins[2]

    def tokens(self, text: str, *, offsets: bool = False) -> Tokens:
        """A rendered text as tokens. Offsets count in the text with its marks."""
        return self._pieces(text, within=False, offsets=offsets)

    def continuation(self, text: str, *, offsets: bool = False) -> Tokens:
        """A text as tokens, as they are behind other text, without joining it."""
        return self._pieces(text, within=True, offsets=offsets)

    def _pieces(self, text: str, *, within: bool, offsets: bool) -> Tokens:
        if self._control is None or not has_control_marks(text):
            return self._piece(text, within=within, offsets=offsets)
        tokens = Tokens()
        for start, piece, plain in self._control.split(text):
            encode = self._plain if plain else self._piece
            tokens.append(encode(piece, within=within or bool(tokens.ids), offsets=offsets), shift=start)
        return tokens

    def _plain(self, text: str, *, within: bool, offsets: bool) -> Tokens:
        """The text of a control token as ids of its characters, none of which is a control token."""
        tokens = self._piece(text, within=within, split=True, offsets=offsets)
        if self._control_ids.isdisjoint(tokens.ids):
            return tokens
        if len(text) == 1:
            raise ModelError(f"the tokenizer cannot write {text!r} as plain text: its only token is a control token")
        tokens = self._plain(text[:1], within=within, offsets=offsets)
        tokens.append(self._plain(text[1:], within=True, offsets=offsets), shift=1)
        return tokens

    def _piece(self, text: str, *, within: bool, offsets: bool, split: bool = False) -> Tokens:
        # Inside a text: encode it behind an anchor, and drop the anchor's ids, if they are the same with the text.
        for anchor in ("\n", "a", "0") if within and self._adds_space else ():
            head = self._call(anchor, split=split)
            whole = self._call(anchor + text, split=split, offsets=offsets)
            if whole.ids[: len(head.ids)] == head.ids:
                return whole.after(len(head.ids), shift=len(anchor))
        return self._call(text, split=split, offsets=offsets)

    def _call(self, text: str, *, split: bool = False, offsets: bool = False) -> Tokens:
        offsets = offsets and bool(self.tokenizer.is_fast)
        options: dict[str, Any] = {"return_offsets_mapping": True} if offsets else {}
        with tokenizing(len(text)):
            out = self.tokenizer(
                text,
                add_special_tokens=False,
                return_attention_mask=False,
                split_special_tokens=split,
                verbose=False,
                **options,
            )
        ids = list(cast(Sequence[int], out["input_ids"]))
        if not offsets:
            return Tokens(ids, None, None)
        spans = cast(Sequence[tuple[int, int]], out["offset_mapping"])
        return Tokens(ids, [start for start, _ in spans], [end for _, end in spans])
