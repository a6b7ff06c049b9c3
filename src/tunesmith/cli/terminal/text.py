"""Turns values into text for a terminal."""

from __future__ import annotations

from typing import Any


def escaped(text: str) -> str:
    """The text with control characters, other than newline and tab, written as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if (c >= " " and not "\x7f" <= c <= "\x9f") or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def as_text(value: Any) -> str:
    """A value in words: four digits of a float, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
