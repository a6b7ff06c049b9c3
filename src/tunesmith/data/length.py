"""Rows longer than max_length: refused, dropped or cut, and counted in every case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.data.template import Encoded
from tunesmith.errors import DataError

NAMED = 5  # so many of the longest rows are named


@dataclass(frozen=True, slots=True)
class Fitted:
    """kept: rows of at most max_length tokens. dropped: rows set aside, as they were. truncated: rows of ``kept`` that
    were cut, as they were before."""

    kept: list[Encoded]
    dropped: list[Encoded]
    truncated: list[Encoded]


def fit(rows: Sequence[Encoded], max_length: int, too_long: Literal["error", "drop", "truncate"]) -> Fitted:
    """The rows that fit into ``max_length`` tokens, prompt and answer together.

    A row is cut at its right end: the prompt stays what generation sends, and the answer loses its end and with it the
    token that ends the turn, so the row does not teach when to stop. A row whose labels all lie behind the cut is
    dropped.

    Raises:
        DataError: there are longer rows and ``too_long`` is "error"; it names the longest.
    """
    long = [row for row in rows if len(row.ids) > max_length]
    if long and too_long == "error":
        raise _refusal(long, len(rows), max_length)
    kept, dropped, truncated = [], [], []
    for row in rows:
        if len(row.ids) <= max_length:
            kept.append(row)
        elif too_long == "truncate" and row.supervised[:max_length].any():
            kept.append(replace(row, ids=row.ids[:max_length], supervised=row.supervised[:max_length]))
            truncated.append(row)
        else:
            dropped.append(row)
    return Fitted(kept, dropped, truncated)


def _refusal(long: Sequence[Encoded], total: int, max_length: int) -> DataError:
    longest = sorted(long, key=lambda row: -len(row.ids))
    names = [f"{row.source}: {len(row.ids):,} tokens" for row in longest[:NAMED]]
    more = [f"and {len(long) - NAMED:,} more"] if len(long) > NAMED else []
    return DataError(
        f"{len(long):,} of {total:,} rows are longer than data.max_length ({max_length:,} tokens)",
        where=longest[0].source,
        why="\n".join(["the longest:", *names, *more]),
        remedy=(
            f"set data.max_length: {len(longest[0].ids)} (it costs memory), data.too_long: drop (leaves these rows "
            "out), or data.too_long: truncate (cuts the end of their answers)."
        ),
    )
