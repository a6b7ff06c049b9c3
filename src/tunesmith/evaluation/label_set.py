"""The labels of a task: the different answers of its training rows and held-out rows, as text and as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.metrics.classification import MOST_LABELS
from tunesmith.model.generate import decode_text


@dataclass(frozen=True, slots=True)
class Spelling:
    """An answer as rows have it: its text, and its token ids with the stop tokens that end it in the row.

    One label may have several: in another case where `evaluation.normalize` overlooks it, or cut into other tokens.
    """

    text: str
    ids: tuple[int, ...]


def last_answer(row: Encoded) -> tuple[int, int]:
    """Where the last run of supervised tokens begins and ends."""
    end = int(np.flatnonzero(row.supervised)[-1]) + 1
    before = np.flatnonzero(~row.supervised[:end])
    return int(before[-1]) + 1 if len(before) else 0, end


def without_stops(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """An answer without the stop tokens at its end."""
    answer = list(ids)
    while answer and answer[-1] in stop_ids:
        answer.pop()
    return answer


def spellings(
    rows: Iterable[Encoded], tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> tuple[Spelling, ...]:
    """The different last answers of rows, in the order of their tokens; one more than MOST_LABELS if there are more."""
    different: set[tuple[int, ...]] = set()
    for row in rows:
        start, end = last_answer(row)
        different.add(tuple(row.ids[start:end].tolist()))
        if len(different) > MOST_LABELS:
            break
    return tuple(Spelling(decode_text(tokenizer, without_stops(ids, stop_ids)), ids) for ids in sorted(different))
