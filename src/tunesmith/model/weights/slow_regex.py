"""Regular expressions of a model's files that may never end on some text, found by their form."""

from __future__ import annotations

import re
from re import _constants, _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

from tunesmith.errors import ModelError

_LONGEST = 20_000  # characters
_DEEPEST = 50
_FEW = 8  # repetitions


def refuse_slow_regex(pattern: str, where: str, remedy: str) -> None:
    """Refuses a regular expression in which a repeated part is itself of no fixed form, such as ``(a+)+``."""
    if len(pattern) > _LONGEST or _is_slow(pattern):
        raise ModelError(
            "a regular expression of the model may never end",
            where=where,
            why=f"A part that is repeated has a repetition or a choice in it: {pattern[:120]!r}",
            remedy=remedy,
        )


def _is_slow(pattern: str) -> bool:
    simple = re.sub(r"\\[pP]\{[^}]*\}|\\[pPhHRXKGzZ]", "w", pattern)  # classes that Python's parser does not know
    simple = re.sub(r"\[\[:\^?\w+:\]\]|\[:\^?\w+:\]", "w", simple).replace("(?i:", "(?:").replace("&&", "")
    simple = re.sub(r"([*+?}])\+", r"\1", simple)
    try:
        parsed = _parser.parse(simple)
    except (re.error, RecursionError, OverflowError, ValueError):
        # One that cannot be taken apart: brackets with a repetition in them that are repeated themselves.
        return re.search(r"[*+}][^()]*\)[*+{]", pattern) is not None
    return _repeats(parsed, inside=False, depth=0)


def _repeats(parsed: Any, *, inside: bool, depth: int) -> bool:
    if depth > _DEEPEST:
        return True
    for name, argument in parsed:
        if name in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
            least, most, body = argument
            if inside and int(most) != int(least):
                return True
            if _repeats(body, inside=inside or int(most) > _FEW, depth=depth + 1):
                return True
        elif name is _constants.BRANCH:
            if inside and not _told_apart(argument[1]):
                return True
            if any(_repeats(each, inside=inside, depth=depth + 1) for each in argument[1]):
                return True
        elif name is _constants.SUBPATTERN:
            if _repeats(argument[-1], inside=inside, depth=depth + 1):
                return True
        elif name in (_constants.ASSERT, _constants.ASSERT_NOT):
            if _repeats(argument[1], inside=inside, depth=depth + 1):
                return True
        elif name is _constants.ATOMIC_GROUP:
            if _repeats(argument, inside=False, depth=depth + 1):
                return True
        elif name is _constants.GROUPREF and inside:
            return True
    return False


def _told_apart(branches: Any) -> bool:
    """Whether the choices begin with different characters, so that at each place one of them can fit."""
    firsts = [each[0] for each in branches if len(each)]
    letters = [argument for name, argument in firsts if name is _constants.LITERAL]
    return len(letters) == len(branches) == len(set(letters))
