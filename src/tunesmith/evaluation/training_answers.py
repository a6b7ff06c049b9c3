"""The answers of training rows as text, to find answers that were copied from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import Encoded
from tunesmith.model.generate import decode_text


def training_answers(rows: Iterable[Encoded], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """(source, text of the supervised tokens) of each row, one at a time."""
    for row in rows:
        yield row.source, decode_text(tokenizer, tuple(row.ids[row.supervised].tolist()))
