"""What training rows say as text: to find answers that were copied from them, and to learn baselines from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.baselines import MOST_ROWS, TrainingPairs
from tunesmith.evaluation.label_set import last_answer, without_stops
from tunesmith.model.generate import decode_text


def training_answers(rows: Iterable[Encoded], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """(source, text of the supervised tokens) of each row, one at a time."""
    for row in rows:
        yield row.source, decode_text(tokenizer, tuple(row.ids[row.supervised].tolist()))


def training_pairs(
    rows: Sequence[Encoded],
    raw_text: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    *,
    are_labels: bool,
    seed: int,
) -> TrainingPairs:
    """Prompt and answer of each row, as a question has them; of at most MOST_ROWS rows, drawn by seed.

    Args:
        rows: that the run was trained on.
        raw_text: bool, by example number: documents have no answer and are left out.
        tokenizer: decodes them.
        stop_ids: token ids that end an answer.
        are_labels: whether the answers are labels.
        seed: of the draw.
    """
    numbers = np.arange(len(rows))
    if len(numbers) > MOST_ROWS:
        numbers = np.sort(np.random.default_rng(seed).choice(numbers, MOST_ROWS, replace=False))
    prompts, answers = [], []
    for number in numbers.tolist():
        row = rows[number]
        if raw_text[row.example]:
            continue
        start, end = last_answer(row)
        prompts.append(decode_text(tokenizer, row.ids[:start].tolist()))
        answers.append(decode_text(tokenizer, without_stops(row.ids[start:end].tolist(), stop_ids)))
    return TrainingPairs(prompts, answers, len(rows), are_labels)
