"""Reads the JSON of a run's files within limits of size, because a run may come from somebody else or be damaged.

JSON takes up to twenty times its bytes in memory, so a text has a lower limit than a file that is only compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from tunesmith.errors import RunError

VARIABLE = "TUNESMITH_MAX_RUN_FILE_GB"
MOST_BYTES = 2**30
LARGEST_NUMBER = 1e150  # squares and differences of such numbers are still finite
_DIGITS = 150


def most_bytes() -> int:
    """The bytes that a file of a run may have: ``TUNESMITH_MAX_RUN_FILE_GB``, or one GB. RunError: it is no number."""
    said = os.environ.get(VARIABLE)
    if said is None:
        return MOST_BYTES
    try:
        found = float(said)
    except ValueError:
        found = -1.0
    if not 0 < found < 1e9:
        raise RunError(f"{VARIABLE} is no number of GB", why=f"It is {said!r}.", remedy="Set it to 4, or unset it.")
    return int(found * 2**30)


def most_text() -> int:
    """The bytes of a file that is read whole, or line by line."""
    return most_bytes() // 4


def most_of_a_line() -> int:
    """The bytes of one line."""
    return most_bytes() // 64


def too_large(size: int, most: int) -> str | None:
    """In words, that a file has more bytes than it may; None if it has not."""
    if size <= most:
        return None
    return f"has {size:,} bytes, and at most {most:,} are read; {VARIABLE} raises this limit"


def parsed(text: bytes | str) -> Any:
    """A value of JSON. Raises ValueError, also for a number that no run writes, or RecursionError."""
    return json.loads(text, parse_int=_whole, parse_float=_number)


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file that are not empty, one at a time, without an unfinished last one.

    Raises ValueError if one is too long.
    """
    most = most_of_a_line()
    while line := file.readline(most + 1):
        if len(line) > most:
            raise ValueError(f"a line has more than {most:,} bytes; {VARIABLE} raises this limit")
        if not line.endswith(b"\n"):
            return
        if line != b"\n":
            yield line[:-1]


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"the number {text[:12]}... has {len(text):,} digits")
    return int(text)


def _number(text: str) -> float:
    found = float(text)
    if abs(found) > LARGEST_NUMBER:
        raise ValueError(f"the number {text[:24]} is too large")
    return found
