"""Signs that the tuned model is broken, whatever the deciding metric says: a loss that rose, answers that go wrong."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.evaluation.metrics.base import RowScores, row_scores

UNFINISHED, REPETITION = "unfinished", "repetition"
SIGNS = (UNFINISHED, REPETITION)  # shares of answers; they become metrics of a verdict where they are evidence
LEAST_SHARE = 0.05  # of all answers that must be broken besides those of the base
# A loss that rose by less than this share of it, or so many nats, is no damage: the same as for a curve that turns
# (runs/symptoms.py).
LEAST_RISE, LEAST_NATS = 0.05, 0.02
REPEATS, LEAST_REPEATED, LONGEST_PERIOD = 4, 24, 200  # times, characters in all, characters of a period


def repeats(text: str, *, digits: bool = False) -> bool:
    """Whether a text ends with the same characters at least four times, over at least 24 characters.

    So it is in every script. Digits alone do not count unless ``digits``: 1000000000000000000000000 is a number.
    """
    end = text.rstrip()[-REPEATS * LONGEST_PERIOD :]
    for period in range(1, min(LONGEST_PERIOD, len(end) // REPEATS) + 1):
        length = max(REPEATS * period, LEAST_REPEATED)
        tail = end[-length:]
        if len(tail) == length and tail[period:] == tail[:-period] and (digits or not tail.isdigit()):
            return True
    return False


def signs(
    texts: Sequence[str], stopped: Sequence[bool], truths: Sequence[str], groups: Sequence[int]
) -> dict[str, RowScores]:
    """1 for each answer that was cut off, and for each that repeats itself where the reference answer does not.

    Digits count as repetition in an answer of many times the reference's length.
    """
    unfinished = [float(not each) for each in stopped]
    again = [
        float(repeats(text, digits=len(text) > REPEATS * len(truth)) and not repeats(truth, digits=True))
        for text, truth in zip(texts, truths, strict=True)
    ]
    return {UNFINISHED: row_scores(unfinished, groups), REPETITION: row_scores(again, groups)}


def rose(kind: str, base: float, tuned: float) -> bool:
    """Whether a sign rose by more than what may be harmless."""
    least = max(LEAST_RISE * abs(base), LEAST_NATS) if kind == "loss" else LEAST_SHARE
    return tuned - base >= least
