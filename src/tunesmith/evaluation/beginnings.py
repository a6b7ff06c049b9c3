"""What the pass over the reference answers says about the greedy answers: the reference is a draft that costs nothing.

The pass gives, at every position of a reference, the token that the model finds likeliest after the true tokens before
it. As long as these tokens are the reference's own, they are also what greedy decoding takes, one after the other. The
first that differs is the answer's own too, and the last that is known. A stop token among them ends the answer.

Where rounding or a change of rotary frequencies could turn a choice (model/compute/choices.py, rope.py), nothing is
taken from the pass: decoding begins there, and decides by the row alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
        likeliest: the likeliest token at each of its positions, int [n].
        certain: whether each is certain, bool [n].
        stop_ids: token ids that end an answer.
        keys: of the row, if the pass has kept them.
    """
    taken: list[int] = []
    text = tuple(reference)
    for true, choice, sure in zip(text, likeliest.tolist(), certain.tolist(), strict=True):
        if not sure:
            break
        if choice in stop_ids:
            return Beginning(tuple(taken), ended=True, reference=text)
        taken.append(choice)
        if choice != true:
            break
    return Beginning(tuple(taken), reference=text, keys=keys)
