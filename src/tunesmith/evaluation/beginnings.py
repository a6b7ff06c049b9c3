"""What the pass over the reference answers says about the greedy answers: the reference is a draft that costs nothing.

The pass gives, at every position of a reference, the token that the model finds likeliest after the true tokens before
it. As long as these tokens are the reference's own, they are also what greedy decoding takes, one after the other. The
first that differs is the answer's own too, and the last that is known. A stop token among them ends the answer.

Where rounding or a change of rotary frequencies could turn a choice (model/compute/choices.py, rope.py), nothing is
taken from the pass: decoding begins there, and decides by the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tunesmith.evaluation.metrics.tokens import KeysWanted
from tunesmith.evaluation.task import Question
from tunesmith.model.compute.kept_keys import KeptKeys
from tunesmith.model.generate import Beginning


def beginning(
    reference: Sequence[int],
    likeliest: np.ndarray,
    certain: np.ndarray,
    *,
    stop_ids: Sequence[int],
    keys: KeptKeys | None = None,
) -> Beginning:
    """The part of a greedy answer that a pass over its reference decides.

    Args:
        reference: the token ids of the reference answer, int [n].
        likeliest: the likeliest token at each label of its row, int [labels]; the last n are those of the answer.
        certain: whether each is certain, bool [labels].
        stop_ids: token ids that end an answer.
        keys: of the row, if the pass has kept them.
    """
    taken: list[int] = []
    text = tuple(reference)
    first = len(likeliest) - len(text)
    for true, choice, sure in zip(text, likeliest[first:].tolist(), certain[first:].tolist(), strict=True):
        if not sure:
            break
        if choice in stop_ids:
            return Beginning(tuple(taken), ended=True, reference=text)
        taken.append(choice)
        if choice != true:
            break
    return Beginning(tuple(taken), reference=text, keys=keys)


def unfinished(
    questions: Sequence[Question], stop_ids: Sequence[int], settled: Callable[[int, Sequence[int]], bool] | None
) -> KeysWanted:
    """Whether the answer to a row's question goes on behind what the pass decides of it.

    Args:
        settled: whether the rest of an answer does not count any more, from the question's number and its first tokens.
    """
    number_of = {question.row: number for number, question in enumerate(questions)}

    def goes_on(row: int, likeliest: np.ndarray, certain: np.ndarray) -> bool:
        number = number_of.get(row)
        if number is None:
            return False
        begun = beginning(questions[number].reference, likeliest, certain, stop_ids=stop_ids)
        return not begun.ended and not (begun.tokens and settled is not None and settled(number, begun.tokens))

    return goes_on
