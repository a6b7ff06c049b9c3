"""Turns values into text for a terminal."""

from __future__ import annotations

import re
from typing import Any

UNLIMITED = 1 << 16  # columns of a file
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_COMMAND = r"`(?:tunesmith|pip|python|git) [^`\n]*`"  # stays on one line, so that it can be copied
_WORD = re.compile(rf"(?:{_COMMAND}|\S)+")


def as_text(value: Any) -> str:
    """A value in words: four digits of a float, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cells(text: str) -> int:
    """The columns that a text takes on a screen: wide characters take two, and styles none."""
    plain = _STYLE.sub("", text)
    if plain.isascii():
        return len(plain)
    from rich.cells import cell_len

    return cell_len(plain)


def words(text: str) -> list[str]:
    """The parts between which a line may be broken. A command in backticks is one part."""
    return _WORD.findall(text)


def folded(text: str, width: int) -> list[str]:
    """The lines of a text, broken between words to at most ``width`` columns. A longer word has a line of its own.

    Texts of wide characters, such as Chinese, have no spaces: they are broken between any two.

    A line that was broken goes on below its own indentation.
    """
    lines = []
    for line in text.split("\n"):
        if cells(line) <= width:
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip(" "))]
        current, end = "", 0
        for match in _WORD.finditer(line):
            longer = current + line[end : match.start()] + match[0]
            end = match.end()
            if cells(match[0]) > max(width - len(indent), len(match[0])):  # wide characters
                *whole, current = _broken(longer, indent, width)
                lines += whole
            elif current.strip() and cells(longer) > width:
                lines.append(current)
                current = indent + match[0]
            else:
                current = longer
        lines.append(current)
    return lines


def _broken(text: str, indent: str, width: int) -> list[str]:
    """The lines of a text, broken between any two characters; each has at least one of them."""
    lines, current, used = [], "", 0
    for character in text:
        wide = cells(character)
        if used + wide > width and current.strip():
            lines.append(current)
            current, used = indent, len(indent)
        current, used = current + character, used + wide
    return [*lines, current]
