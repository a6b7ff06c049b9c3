"""Text to token ids, whole or as the continuation of ids that stand already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tunesmith.data.control import ControlTokens, has_control_marks
from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Tokens:
    """Ids, and for each the characters [start, end) it stands for; no offsets where the tokenizer knows none."""

    ids: list[int] = field(default_factory=list)
    starts: list[int] | None = field(default_factory=list)
    ends: list[int] | None = field(default_factory=list)

    def append(self, other: Tokens, *, shift: int = 0) -> None:
        """Adds tokens whose offsets count from the character ``shift``."""
        self.ids += other.ids
        if self.starts is None or self.ends is None or other.starts is None or other.ends is None:
            self.starts = self.ends = None
            return
        self.starts += [start + shift for start in other.starts]
        self.ends += [end + shift for end in other.ends]

    def after(self, count: int, *, shift: int = 0) -> Tokens:
        """The tokens from position ``count`` on, offsets counted from the character ``shift``."""
        if self.starts is None or self.ends is None:
            return Tokens(self.ids[count:], None, None)
        starts, ends = ([max(0, at - shift) for at in side[count:]] for side in (self.starts, self.ends))
        return Tokens(self.ids[count:], starts, ends)


class TextEncoder:
    """A tokenizer that adds no special tokens of its own, since templates write them.

    Args:
        control: what may be marked in a text; marked parts become the tokens of their characters. None: no marks.
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
        """A rendered text as tokens; offsets, where they are asked for, count in the text as it stands."""
        return self._pieces(text, within=False, offsets=offsets)

    def continuation(self, text: str, *, offsets: bool = False) -> Tokens:
        """A text as tokens, as it stands behind other text and without joining it."""
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
        """A control token's text as the characters it is made of: none of its ids is a control token's."""
        tokens = self._piece(text, within=within, split=True, offsets=offsets)
        if self._control_ids.isdisjoint(tokens.ids):
            return tokens
        if len(text) == 1:
            raise ModelError(f"the tokenizer cannot write {text!r} as plain text: its only token is a control token")
        tokens = self._plain(text[:1], within=within, offsets=offsets)
        tokens.append(self._plain(text[1:], within=True, offsets=offsets), shift=1)
        return tokens

    def _piece(self, text: str, *, within: bool, offsets: bool, split: bool = False) -> Tokens:
        for anchor in ("\n", "a", "0") if within and self._adds_space else ():
            head = self._call(anchor, split=split)
            whole = self._call(anchor + text, split=split, offsets=offsets)
            if whole.ids[: len(head.ids)] == head.ids:
                return whole.after(len(head.ids), shift=len(anchor))
        return self._call(text, split=split, offsets=offsets)

    def _call(self, text: str, *, split: bool = False, offsets: bool = False) -> Tokens:
        offsets = offsets and bool(self.tokenizer.is_fast)
        options: dict[str, Any] = {"return_offsets_mapping": True} if offsets else {}
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
