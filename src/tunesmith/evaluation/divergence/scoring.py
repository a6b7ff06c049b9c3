"""What the divergence at single positions says of texts: means with intervals by document, and the worst places.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.divergence.texts import GeneralText
from tunesmith.evaluation.intervals import interval_of_value
from tunesmith.evaluation.metrics.base import RowScores

WORST_TEXTS, WORST_TOKENS, LEAST_TEXTS = 3, 8, 2
LONGEST_TEXT, TOKENS_BEFORE = 200, 12
Shown = Callable[[Sequence[int]], str]  # token ids as text


def measured(
    texts: Sequence[GeneralText],
    ids: Sequence[Sequence[int]],
    row: np.ndarray,
    at: np.ndarray,
    kl: np.ndarray,
    likeliest: np.ndarray,
    nll: np.ndarray | None,
    *,
    level: Level,
    shown: Shown,
) -> dict[str, Any] | None:
    """The divergence on some texts; None if too few were measured.

    Args:
        texts: what the rows are.
        ids: the token ids of each row.
        row: int [E], the row of each position, in ascending order.
        at: int [E], the place in its row of the token that the position predicts.
        kl: float64 [E], in nats.
        likeliest: int [E,2], the likeliest token of the base and of the tuned model.
        nll: float64 [E,2], the negative log-likelihood of the token under both; None: not reported.
        level: of the intervals.
        shown: tokens as text.

    Returns:
        ``{texts, tokens, kl, interval, changed, changed_interval, by, worst_texts, worst_tokens}``, and with ``nll``
        also ``loss`` and ``perplexity``. Texts are resampled whole, because the tokens of one are not independent.
    """
    present, number = np.unique(row, return_inverse=True)  # [texts], [E]
    if len(present) < LEAST_TEXTS:
        return None
    tokens = np.bincount(number).astype(np.float64)  # [texts]
    of_texts = np.bincount(number, weights=kl)
    differs = likeliest[:, 0] != likeliest[:, 1]
    mean, share = (RowScores(each, tokens) for each in (of_texts, np.bincount(number, weights=differs)))
    drawn = {"confidence": level.confidence, "resamples": level.resamples, "seed": level.seed}
    found: dict[str, Any] = {
        "texts": len(present),
        "tokens": len(row),
        "kl": mean.value,
        "interval": interval_of_value(mean, **drawn),
        "changed": share.value,
        "changed_interval": interval_of_value(share, **drawn),
    }
    if nll is not None:
        sums = [np.bincount(number, weights=column) for column in nll.T]  # base, tuned: [texts] each
        loss = compare_alone("loss", RowScores(sums[0], tokens), RowScores(sums[1], tokens), level)
        facts = ("base", "tuned", "difference", "interval", "p_value", "verdict")
        found["loss"] = {name: loss[name] for name in facts}
        found["perplexity"] = {name: _exponential(loss[name]) for name in ("base", "tuned")}
    rows = present.tolist()
    named = [texts[each] for each in rows]
    found["by"] = _by(named, of_texts, tokens)
    found["worst_texts"] = [
        {
            "id": named[n].id,
            "tokens": int(tokens[n]),
            "kl": float(of_texts[n] / tokens[n]),
            "text": shown(ids[rows[n]])[-LONGEST_TEXT:],
        }
        for n in np.argsort(-of_texts / tokens, kind="stable")[:WORST_TEXTS].tolist()
    ]
    found["worst_tokens"] = [
        {
            "id": texts[int(row[edge])].id,
            **_token(ids[int(row[edge])], int(at[edge]), likeliest[edge].tolist(), shown),
            "kl": float(kl[edge]),
        }
        for edge in np.argsort(-kl, kind="stable")[:WORST_TOKENS].tolist()
    ]
    return found


def _token(ids: Sequence[int], at: int, likeliest: Sequence[int], shown: Shown) -> dict[str, str]:
    """A token with what stands before it, and what both models would have said."""
    return {
        "before": shown(ids[max(0, at - TOKENS_BEFORE) : at]),
        "token": shown(ids[at : at + 1]),
        "base": shown(likeliest[:1]),
        "tuned": shown(likeliest[1:]),
    }


def _by(texts: Sequence[GeneralText], kl: np.ndarray, tokens: np.ndarray) -> list[dict[str, Any]]:
    """The divergence by form and by language, the largest first: kl and tokens are [texts]."""
    found = []
    for by in ("form", "language"):
        names = np.array([getattr(text, by) for text in texts])
        for name in dict.fromkeys(names.tolist()):
            own = names == name
            count = int(tokens[own].sum())
            found.append({"by": by, "name": name, "tokens": count, "kl": float(kl[own].sum() / count)})
    return sorted(found, key=lambda each: -each["kl"])


def _exponential(loss: float) -> float:
    """A perplexity; the largest number where it has no room."""
    return math.exp(min(loss, 700.0))
