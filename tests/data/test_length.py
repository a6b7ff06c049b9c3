from __future__ import annotations

import numpy as np
import pytest

from tunesmith.data.length import fit
from tunesmith.data.template import Encoded
from tunesmith.errors import DataError


def row(tokens: int, prompt: int, line: int) -> Encoded:
    supervised = np.arange(tokens) >= prompt
    return Encoded(np.arange(tokens, dtype=np.int32), supervised, f"rows.jsonl:{line}", line)


ROWS = [row(6, 3, 1), row(9, 3, 2), row(8, 8 - 1, 3), row(12, 10, 4), row(7, 2, 5)]


def test_rows_that_fit_are_kept_as_they_are():
    fitted = fit(ROWS, 12, "error")
    assert (fitted.kept, fitted.dropped, fitted.truncated) == (ROWS, [], [])


def test_long_rows_are_refused_by_default_naming_the_longest_and_a_length_that_fits_them():
    with pytest.raises(DataError) as caught:
        fit(ROWS, 6, "error")
    error = caught.value
    assert "4 of 5 rows are longer than data.max_length (6 tokens)" in error.what
    assert error.where == "rows.jsonl:4"
    assert (error.why or "").splitlines()[1:3] == ["rows.jsonl:4: 12 tokens", "rows.jsonl:2: 9 tokens"]
    assert "data.max_length: 12" in (error.remedy or "")


def test_only_the_longest_rows_are_named():
    with pytest.raises(DataError, match="and 7 more"):
        fit([row(20 + line, 3, line) for line in range(12)], 10, "error")


def test_drop_sets_long_rows_aside_and_counts_them():
    fitted = fit(ROWS, 7, "drop")
    assert [r.example for r in fitted.kept] == [1, 5]
    assert [r.example for r in fitted.dropped] == [2, 3, 4]
    assert fitted.truncated == []


def test_truncate_cuts_the_end_and_drops_what_has_no_label_left():
    fitted = fit(ROWS, 7, "truncate")
    assert [r.example for r in fitted.kept] == [1, 2, 5]
    assert [r.example for r in fitted.dropped] == [3, 4]
    assert [(r.example, len(r.ids)) for r in fitted.truncated] == [(2, 9)]
    cut = fitted.kept[1]
    assert cut.ids.tolist() == list(range(7))
    assert cut.supervised.tolist() == [False, False, False, True, True, True, True]
    assert cut.source == "rows.jsonl:2"


def test_every_row_is_kept_or_dropped():
    for mode in ("drop", "truncate"):
        fitted = fit(ROWS, 7, mode)
        assert len(fitted.kept) + len(fitted.dropped) == len(ROWS)
