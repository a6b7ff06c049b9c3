"""The mean negative log-likelihood of a supervised token."""

from __future__ import annotations

from tunesmith.evaluation.metrics.base import RowScores, TokenRows


class Loss:
    """Nats a token, over all rows. Lower is better."""

    name = "loss"

    def scores(self, rows: TokenRows) -> RowScores:
        """The negative log-likelihood of a row over its tokens."""
        return RowScores(rows.nll_sum, rows.tokens, rows.groups)
