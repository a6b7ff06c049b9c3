"""The share of the supervised tokens that the model finds likeliest after the true tokens before them."""

from __future__ import annotations

from tunesmith.evaluation.metrics.base import RowScores, TokenRows


class TokenAccuracy:
    """Correct tokens over all tokens."""

    name = "token_accuracy"

    def scores(self, rows: TokenRows) -> RowScores:
        """The correct tokens of a row over its tokens."""
        return RowScores(rows.correct, rows.tokens, rows.groups, counts=True)
