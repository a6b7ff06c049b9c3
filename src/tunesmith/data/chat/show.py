"""Prints rows as text. Learned tokens are in colour, or between marks if there is no colour."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tunesmith.data.chat.template import Encoded
from tunesmith.data.chat.tokenizing import tokenizing
from tunesmith.safe_text import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase


OPENING, CLOSING = "[[", "]]"
LEARNED_STYLE, CONTEXT_STYLE = "bold green", "dim"


def spans(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The row's text in runs of learned and of other tokens, in order. Control characters are made visible."""
    pairs = zip(row.ids.tolist(), row.supervised.tolist(), strict=True)
    runs = [(learned, [number for number, _ in run]) for learned, run in groupby(pairs, key=lambda pair: pair[1])]
    return [(_decode(tokenizer, ids), learned) for learned, ids in runs]


def heading(row: Encoded) -> str:
    """One line: where the row comes from and how many tokens it has."""
    return f"{row.source}: {len(row.ids):,} tokens, {int(row.supervised.sum()):,} learned"


def plain_text(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """The row with learned runs between ``[[`` and ``]]``."""
    return "".join(f"{OPENING}{text}{CLOSING}" if learned else text for text, learned in spans(row, tokenizer))


def coloured_text(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The row with learned runs in colour."""
    from rich.text import Text

    parts = [(text, LEARNED_STYLE if learned else CONTEXT_STYLE) for text, learned in spans(row, tokenizer)]
    return Text.assemble(*parts)


def show(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, *, console: Console) -> None:
    """Prints each row under its heading: in colour if the console has colour, otherwise with marks."""
    coloured = console.color_system is not None and not console.no_color
    for row in rows:
        console.print(escaped(heading(row)), markup=False, highlight=False, style="bold", soft_wrap=True)
        text = coloured_text(row, tokenizer) if coloured else plain_text(row, tokenizer)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        console.print()
    legend = "learned tokens are in green" if coloured else f"learned tokens stand between {OPENING} and {CLOSING}"
    console.print(legend, markup=False, highlight=False, style="italic")


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    with tokenizing(len(ids)):
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return escaped(str(text))
