"""Paths and URLs as users give them: ``~`` is the home folder, and secrets of URLs are neither shown nor stored."""

from __future__ import annotations

import os

from tunesmith.safe_text import HIDDEN, MASK, without_secrets


def local(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` as the home folder, unless a file of that very name is there."""
    text = os.fspath(path)
    return os.path.expanduser(text) if text.startswith("~") and not os.path.lexists(text) else text


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
