"""Paths and URLs as users give them: ``~`` is the home folder, and secrets of URLs are neither shown nor stored."""

from __future__ import annotations

import os

from tunesmith.errors import RecipeError
from tunesmith.safe_text import HIDDEN, MASK, without_secrets


def local(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` as the home folder, unless a file of that very name is there."""
    text = os.fspath(path)
    refuse_odd_name(text)
    return expanded(text)


def expanded(path: str | os.PathLike[str]) -> str:
    """The same for what is only read and not stored: its name may be no text."""
    text = os.fspath(path)
    return os.path.expanduser(text) if text.startswith("~") and not os.path.lexists(text) else text


def refuse_odd_name(path: str) -> None:
    """Raises RecipeError for a name that is not UTF-8: no recipe, report or JSON file could hold it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        name = path.encode(errors="surrogateescape" if _is_bytes(path) else "backslashreplace")
        raise RecipeError(
            "This name is not UTF-8",
            where=name.decode(errors="backslashreplace"),
            why=f"Its character {error.start + 1:,} is no text, so that nothing can store the name.",
            remedy="Rename the file or folder, such as with `mv`, or give a link to it: `ln -s NAME other-name`.",
        ) from None


def _is_bytes(text: str) -> bool:
    return all(not 0xD800 <= ord(letter) <= 0xDFFF or 0xDC80 <= ord(letter) <= 0xDCFF for letter in text)


def shown(path: str) -> str:
    """A path as it is shown and stored: a URL has ``...`` in place of its query and of a user with a password, and
    ``***`` in place of a key in its path."""
    if "://" not in path:
        return path
    head, query, _ = path.partition("?")
    return without_secrets(f"{head}?{HIDDEN}" if query else head)


def is_shortened(path: str) -> bool:
    """Whether a URL was stored without its secrets, so that it cannot be read."""
    return "://" in path and (path.endswith(f"?{HIDDEN}") or f"://{HIDDEN}@" in path or MASK in path)
