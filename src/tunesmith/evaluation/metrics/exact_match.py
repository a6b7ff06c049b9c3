"""Whether answer and truth are the same text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tunesmith.evaluation.metrics.base import RowMetric
from tunesmith.evaluation.metrics.normalize import lasting, normalized
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

    def ends_early(self, truths: Sequence[str]) -> Callable[[str, str], bool] | None:
        """An answer is lost once the truth does not begin like it, in the form that ``score`` compares."""
        if self.forms:  # what is overlooked may change the letters before it, too
            return None
        return lambda beginning, truth: not normalized(truth).startswith(lasting(beginning))
