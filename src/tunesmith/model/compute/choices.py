"""The token that greedy decoding takes, and whether rounding could make it another one.

Batched matrices, trees and caches add the same products in another order, so two ways to compute one logit differ in
the last digits. The likeliest token is the same both ways unless the two largest logits are closer than that. So each
choice has a margin, and one rule decides:

1. fp32: a choice is certain if its margin is more than twice (both logits move) what a way to compute may differ from
   the row alone and still be admitted by the probe (probe.py): 4e-5 of the largest logit.
2. A choice that is not certain is made again for its row alone: one plain pass, no cache, no padding, no tree.
3. If the margin is within the rounding even there (1e-5, again for both logits), two plain ways may differ too. Then
   transformers' ``generate`` decodes the row alone, and its answer is taken.

bf16 and fp16 have ties at every other token, and no way to compute is the true one. There every choice is certain, as
everywhere where rows are batched.

Shapes: N positions, V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.model.compute.agreement import ROUNDING, TOLERANCE

_EXACT = 1e-6  # the unit roundoff of a dtype below which answers are promised to be those of the row alone
CERTAIN = 2 * TOLERANCE * ROUNDING  # of the largest logit: the margin that no admitted way to compute can turn
PLAIN = 2 * ROUNDING  # the same for the row alone


def choose(logits: Tensor, dtype: torch.dtype, limit: float = CERTAIN) -> tuple[Tensor, Tensor]:
    """The likeliest tokens int64 [N] of fp32 logits [N,V], and whether each is certain, bool [N].

    Args:
        logits: they are changed during the call, and are as before after it.
        dtype: what the model computes in.
        limit: the margin that makes a choice certain, relative to the largest logit of its position.
    """
    highest, best = logits.max(-1)  # [N] each
    if torch.finfo(dtype).eps > _EXACT:
        return best, torch.ones_like(best, dtype=torch.bool)
    largest = torch.maximum(highest.abs(), logits.amin(-1).abs())
    at = best[:, None]
    logits.scatter_(-1, at, -torch.inf)
    second = logits.amax(-1)
    logits.scatter_(-1, at, highest[:, None])
    return best, highest - second > limit * largest
