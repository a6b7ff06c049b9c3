"""The loss in bits over the bytes of the text, which compares models whose tokenizers differ."""

from __future__ import annotations

import math

from tunesmith.evaluation.metrics.base import RowScores, TokenRows


class BitsPerByte:
    """Bits of all supervised tokens over the bytes of their text in UTF-8. Lower is better.

    An end-of-turn token has bits and no bytes. A row without text counts as one byte.
    """

    name = "bits_per_byte"

    def scores(self, rows: TokenRows) -> RowScores:
        """The bits of a row over its bytes."""
        assert rows.text_bytes is not None, "bytes that were not counted"
        return RowScores(rows.nll_sum / math.log(2), rows.text_bytes, rows.groups)
