"""Whether the last number of an answer is the last number of the truth."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from tunesmith.evaluation.metrics.base import RowMetric

# A sign belongs to a number unless a word or a number is before it: 3-2 ends in 2.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+\u2212])?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE][-+]?[0-9]+)?"
)


class NumberMatch(RowMetric):
    """1 where the last numbers are equal as numbers: 1,000 and 1000.0 are. Units and words around them do not count.

    A point is decimal, and a comma groups three digits.
    """

    name = "number_match"

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """0 or 1. An answer without a number scores 0."""
        found = last_number(answer)
        return float(found is not None and found == last_number(truth))

    def fault_of(self, truth: str) -> str | None:
        """The truth must hold a number."""
        return "it holds no number" if last_number(truth) is None else None


def last_number(text: str) -> Decimal | None:
    """The last number of a text, exactly as it is written. None: there is none."""
    found = [match.group() for match in _NUMBER.finditer(text)]
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("\u2212", "-"))
    except InvalidOperation:  # an exponent without end
        return None
