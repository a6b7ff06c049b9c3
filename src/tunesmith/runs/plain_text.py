"""Durations and intervals in words."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def between(ends: Sequence[float]) -> str:
    """The ends of the interval of a difference, ``+0.65 to +0.925``: in the same digits wherever it is shown."""
    low, high = ends
    return f"{low:+.3g} to {high:+.3g}"
