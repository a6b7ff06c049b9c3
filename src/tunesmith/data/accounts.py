"""The bookkeeping of `survey` and `corpus`: counts where the rows and tokens went, and refuses to lose too many.

It only counts. What becomes of a row is decided by `placement` before there are tokens, and by `corpus` after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.data.checks.scan import Scan
from tunesmith.data.ledger import KEPT_OUTCOMES, LOST_OUTCOMES, OUTCOMES, Ledger, RowCounts
from tunesmith.data.placement import OUTCOME
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings

if TYPE_CHECKING:
    from tunesmith.data.encoded_rows import EncodedRows


@dataclass(frozen=True, slots=True)
class Fitted:
    """By encoded row: whether it is kept, cut, or split. By example: its outcome, ``too_long`` included."""

    kept: np.ndarray
    cut: np.ndarray
    split: np.ndarray
    outcome: np.ndarray


def ledger_of(
    seen: Scan, outcome: np.ndarray, rows: EncodedRows | None = None, fitted: Fitted | None = None, limit: int = 0
) -> Ledger:
    """Rows as they stand in the files: an example that became several rows is one, kept if any of them is.

    Tokens that were cut off, and those of rows that were dropped from a kept example, went to ``too_long``. Those of a
    row that was split are counted once, though each block begins with the last token of the one before.
    """
    ledger = Ledger(tokenized=rows is not None)
    amounts: dict[str, np.ndarray] = {"rows": np.ones(len(seen), np.int64)}
    lost: dict[str, np.ndarray] = {}
    truncated = np.zeros(len(seen), bool)
    blocks = np.zeros(len(seen), np.int64)
    if rows is not None and fitted is not None:
        from tunesmith.data.encoded_rows import blocks_of

        truncated[rows.examples[fitted.cut]] = True
        blocks = _by_example(rows, np.where(fitted.split, blocks_of(rows.lengths, limit), 0), len(seen))
        kept_outcome = np.isin(outcome[rows.examples], [OUTCOME[name] for name in KEPT_OUTCOMES])
        for unit, whole, short in (
            ("tokens", rows.lengths, np.minimum(rows.lengths, limit)),
            ("supervised", rows.supervised_counts, rows.select(np.arange(len(rows)), longest=limit).supervised_counts),
        ):
            kept = np.where(kept_outcome, np.where(fitted.split, whole, np.where(fitted.kept, short, 0)), whole)
            amounts[unit] = _by_example(rows, kept, len(seen))
            lost[unit] = _by_example(rows, whole - kept, len(seen))
    for number, each in enumerate(seen.sources):
        if each.side == "against":
            continue
        account, mine = ledger.source(each.settings.path), slice(each.rows.start, each.rows.stop)
        for unit, amount in amounts.items():
            counts: RowCounts = getattr(account, unit)
            placed = np.bincount(outcome[mine], weights=amount[mine], minlength=len(OUTCOMES)).astype(np.int64)
            if unit in lost:
                placed[OUTCOME["too_long"]] += int(lost[unit][mine].sum())
            for name, count in zip(OUTCOMES, placed.tolist(), strict=True):
                setattr(counts, name, getattr(counts, name) + count)
            counts.read += int(amount[mine].sum()) + (int(lost[unit][mine].sum()) if unit in lost else 0)
        account.truncated += int(truncated[mine].sum())
        account.split += int(np.count_nonzero(blocks[mine]))
        account.blocks += int(blocks[mine].sum())
        assert number == 0 or each.rows.start == seen.sources[number - 1].rows.stop
    ledger.check()
    return ledger


def _by_example(rows: EncodedRows, amount: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(rows.examples, weights=amount, minlength=count).astype(np.int64)


def refuse_lost(ledger: Ledger, settings: DataSettings) -> None:
    """Raises DataError where more rows are lost than ``data.max_lost`` allows."""
    if settings.max_lost is None:
        return
    counts = ledger.total.rows
    lost = sum(getattr(counts, name) for name in LOST_OUTCOMES)
    share = lost / counts.read
    if share > settings.max_lost:
        where = ", ".join(f"{getattr(counts, name):,} {name.replace('_', ' ')}" for name in LOST_OUTCOMES)
        raise DataError(
            f"{lost:,} of {counts.read:,} rows are lost before training ({share:.1%})",
            where="data.max_lost",
            why=f"{where}; data.max_lost allows {settings.max_lost:.1%}",
            remedy="look at them with `tunesmith check`, correct the data, or raise data.max_lost",
        )
