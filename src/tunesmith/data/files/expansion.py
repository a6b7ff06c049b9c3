"""How much a packed file may become: a small one that unpacks to gigabytes may be made to fill the memory."""

from __future__ import annotations

import os
from collections.abc import Callable

from tunesmith.errors import DataError

MOST_UNPACKED = 2**30  # bytes, of a file that is packed to less than 1 / MOST_TIMES of them
MOST_TIMES = 50
VARIABLE = "TUNESMITH_MAX_UNPACKED_GB"
RAISE = f"if you know the file, set {VARIABLE} to the GB that it may unpack to"


def most_unpacked() -> int:
    """The bytes that a small file may unpack to: ``TUNESMITH_MAX_UNPACKED_GB``, or one GB.

    Raises:
        DataError: the variable is no number.
    """
    said = os.environ.get(VARIABLE)
    if said is None:
        return MOST_UNPACKED
    try:
        found = float(said)
    except ValueError:
        found = -1.0
    if not 0 < found < 1e9:
        raise DataError(f"{VARIABLE} is no number of GB", why=f"found {said!r}", remedy="set it to 4, or unset it")
    return int(found * 2**30)


class Expansion:
    """Counts what one file has become.

    Args:
        name: of the file.
        packed: its bytes so far.
        instead: what else the user can do, such as unpacking it by another program.
    """

    def __init__(self, name: str, packed: Callable[[], int], instead: str) -> None:
        self._name, self._packed, self._instead = name, packed, instead
        self._most, self._made = most_unpacked(), 0

    def add(self, made: int) -> None:
        """Counts bytes that have been made. Raises DataError if they are too many for the file."""
        self._made += made
        if self._made > self._most:
            self.refuse_beyond(self._made)

    def refuse_with(self, more: int) -> None:
        """Raises DataError if so many bytes more would be too many for the file."""
        self.refuse_beyond(self._made + more)

    def refuse_beyond(self, made: int) -> None:
        """Raises DataError if so many bytes in all are too many for the file."""
        packed = max(self._packed(), 1)
        if made > self._most and made > MOST_TIMES * packed:
            raise DataError(
                f"the file unpacks to more than {made / 2**30:.1f} GB, {made // packed:,} times its size",
                where=self._name,
                why="a small file that unpacks to so much may be made to fill the memory",
                remedy=f"{RAISE}; or {self._instead}",
            )
