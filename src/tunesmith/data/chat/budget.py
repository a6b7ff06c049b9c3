"""What the rendering of one conversation may use: seconds, and bytes that are made, held and written."""

from __future__ import annotations

import sys
from time import monotonic, thread_time
from typing import Any

from tunesmith.errors import ModelError

SECONDS = 2.0  # of computing for one conversation
SECONDS_A_TURN = 0.1  # in place of it for a long one
MADE = 2**28  # bytes that are made while one conversation is rendered, those that are freed again among them
MADE_TIMES, MOST_MADE = 4096, 2**30  # for a large conversation: so many times its size, but no more than that
OUTPUT, OUTPUT_TIMES = 2**24, 64  # bytes of the text, and for a large conversation so many times its size
HELD = 2**24  # bytes of a list or mapping with all that is in it; more for a large conversation
DEEPEST = 100  # lists in lists
MOST_SOURCE = 2**20  # characters of a template
_REMEDY = "use another template (data.chat_template), or look for the loop that makes it so large."
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS = (list, tuple, dict, set, frozenset, *_VIEWS)


class TemplateLimitError(ModelError):
    """A chat template takes more time or memory than a conversation needs."""


def too_much(what: str) -> TemplateLimitError:
    """The error of a template that does too much."""
    return TemplateLimitError(
        f"the chat template {what}",
        why="Templates of models take under a millisecond and write the conversation once. This one may be made to "
        "stop the machine, or it has an endless loop.",
        remedy=_REMEDY,
    )


class Budget:
    """What one rendering may still use. Each method raises TemplateLimitError where it is used up."""

    def __init__(self) -> None:
        self.begin((), SECONDS)

    def begin(self, given: Any, seconds: float) -> None:
        """Starts anew for a conversation. Its size is looked at only if the template needs more than usual."""
        self._given, self._weight = given, -1
        self._seconds, self._began = seconds, thread_time()
        self._wall = monotonic() + seconds
        self._left = MADE

    def step(self) -> None:
        """Counts a step of a loop, a call or an operator."""
        if monotonic() > self._wall:
            self._late()

    def take(self, size: int) -> None:
        """Counts bytes, before they are made where they can be many."""
        self._left -= size
        if self._left < 0:
            self._more()

    def output(self, size: int) -> None:
        """Refuses a text that is too long."""
        if size > OUTPUT and size > OUTPUT_TIMES * self._size():
            raise too_much(f"writes more than {max(OUTPUT, OUTPUT_TIMES * self._size()) / 1e6:,.0f} MB of text")

    def held(self, value: Any) -> int:
        """The bytes of a list or mapping with all that is in it, each part as often as it stands there."""
        size = weigh(value, HELD)
        if size > HELD:
            most = 2 * self._size() + HELD
            size = weigh(value, most)
            if size > most:
                raise too_much(f"makes a list or mapping of more than {most / 1e6:,.0f} MB")
        return size

    def _late(self) -> None:
        used = thread_time() - self._began
        if used > self._seconds:
            raise too_much(f"takes more than {max(self._seconds, SECONDS):g} s for one conversation")
        self._wall = monotonic() + self._seconds - used  # the machine was busy or asleep

    def _more(self) -> None:
        most = max(MADE, min(MADE_TIMES * self._size(), MOST_MADE), OUTPUT_TIMES * self._size())
        if MADE - self._left > most:
            raise too_much(f"makes more than {most / 1e6:,.0f} MB of text and lists")

    def _size(self) -> int:
        if self._weight < 0:
            self._weight = weigh(self._given, sys.maxsize)
        return self._weight


def weigh(value: Any, most: int) -> int:
    """About the bytes that a value takes when it is written out; counting stops beyond ``most``.

    Raises:
        TemplateLimitError: it is nested too deeply.
    """
    size, level, depth = 0, [value], 0
    while level:
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                size += sys.getsizeof(each)
            elif isinstance(each, dict):
                below.extend(each.keys())
                below.extend(each.values())
                size += 16
            elif isinstance(each, CONTAINERS):
                below.extend(each)
                size += 16
            else:
                size += sys.getsizeof(each)
            if size > most or 16 * len(below) > most:
                return most + 1
        level, depth = below, depth + 1
        if depth > DEEPEST:
            raise too_much(f"nests lists more than {DEEPEST} deep")
    return size
