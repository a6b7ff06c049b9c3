"""Whether answer and truth are the same text."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from tunesmith.evaluation.metrics.base import RowMetric
from tunesmith.evaluation.metrics.normalize import normalized
from tunesmith.recipe.settings import NormalForm


class ExactMatch(RowMetric):
    """1 where answer and truth are the same text, in Unicode's NFC form and without white space around them.

    Upper and lower case, punctuation and inner white space count, unless `evaluation.normalize` names them.
    """

    name = "exact_match"

    def __init__(self, forms: Collection[NormalForm] = ()) -> None:
        self.forms = forms

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """0 or 1."""
        return float(normalized(answer, self.forms) == normalized(truth, self.forms))

    def is_lost(self, beginning: str, truth: str) -> bool:
        """Whether the truth does not begin like this, in the same form that ``score`` compares."""
        if self.forms:  # what is overlooked may change the letters before it, too
            return False
        return not normalized(truth).startswith(_lasting(beginning))


def _lasting(beginning: str) -> str:
    """What stays at the beginning of the form that is compared whatever text follows: all but the last letter, which
    may get marks."""
    text = unicodedata.normalize("NFC", beginning).lstrip()
    last = next((place for place in range(len(text) - 1, -1, -1) if not unicodedata.combining(text[place])), 0)
    return text[:last].rstrip()
