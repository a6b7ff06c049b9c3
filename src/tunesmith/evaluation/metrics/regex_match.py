"""Whether what a pattern finds in an answer is what it finds in the truth."""

from __future__ import annotations

from collections.abc import Collection

import regex

from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.base import RowMetric
from tunesmith.evaluation.metrics.normalize import normalized
from tunesmith.recipe.settings import NormalForm

PATTERN_KEY = "evaluation.answer_pattern"
_SECONDS = 1.0  # that a search in one text may take


class RegexMatch(RowMetric):
    """1 where the first match of `evaluation.answer_pattern` is the same text in answer and truth.

    The match is its first group, if the pattern has groups. A truth without a match counts as a whole. Texts are
    compared as exact_match does.
    """

    name = "regex_match"

    def __init__(self, pattern: str, forms: Collection[NormalForm] = ()) -> None:
        self.forms = forms
        try:
            self.pattern = regex.compile(pattern)
        except regex.error as error:
            raise RecipeError(
                "The pattern is no regular expression",
                where=PATTERN_KEY,
                why=f"{str(error)[:1].upper()}{str(error)[1:]}. It is {pattern[:200]!r}.",
                remedy="Correct it, such as 'Answer: (.+)'. Single quotes keep its backslashes.",
            ) from None

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """0 or 1. An answer without a match scores 0. Raises RecipeError if a search takes longer than a second."""
        found, expected = self._found(answer), self._found(truth)
        expected = truth if expected is None else expected
        return float(found is not None and normalized(found, self.forms) == normalized(expected, self.forms))

    def _found(self, text: str) -> str | None:
        try:
            match = self.pattern.search(text, timeout=_SECONDS)
        except TimeoutError:
            raise RecipeError(
                f"The pattern searches a text for more than {_SECONDS:g} second",
                where=PATTERN_KEY,
                why=f"The text begins with {text[:80]!r}. Repeats inside repeats can take time without end.",
                remedy="Make the pattern simpler, such as without + inside a group with +.",
            ) from None
        if match is None:
            return None
        return (match.group(1) or "") if self.pattern.groups else match.group()
