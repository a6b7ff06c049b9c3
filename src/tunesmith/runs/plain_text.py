"""Turns values into text that any screen or log can take."""

from __future__ import annotations


def escaped(text: str) -> str:
    """The text with control characters, other than newline and tab, written as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if (c >= " " and not "\x7f" <= c <= "\x9f") or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
