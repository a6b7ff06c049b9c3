"""How much a store may send: of one file, and as one answer."""

from __future__ import annotations

import os

from tunesmith.errors import DataError

VARIABLE = "TUNESMITH_MAX_DOWNLOAD_GB"
MOST_DOWNLOADED = 64 * 2**30  # bytes of a file
MOST_AT_ONCE = 2**28  # bytes of an answer that is held in memory, however many are asked for
READ_AT_ONCE = 2**24  # bytes that a driver is asked for


def most_downloaded() -> int:
    """The bytes that are read of one file of a store.

    Raises:
        DataError: ``TUNESMITH_MAX_DOWNLOAD_GB`` is no number.
    """
    said = os.environ.get(VARIABLE)
    if said is None:
        return MOST_DOWNLOADED
    try:
        return int(float(said) * 2**30)
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{VARIABLE} is no number of GB", why=f"found {said!r}", remedy="set it to 100, or unset it"
        ) from error


def refuse_endless(taken: int, most: int, name: str) -> None:
    """Raises DataError after more bytes of a file than are read."""
    if taken > most:
        raise DataError(
            f"the file is larger than {most / 2**30:,.1f} GB, or has no end",
            where=name,
            why="so much is read of one file of a store, and no more",
            remedy=f"set {VARIABLE} to the GB that it may have, or download it yourself and name the file",
        )


def refuse_longer(taken: int, asked: int, name: str) -> None:
    """Raises DataError for an answer with more bytes than were asked for: a driver would keep them all in memory."""
    if taken > asked:
        raise DataError(
            "the server sends more than it was asked for",
            where=name,
            why=f"{asked:,} bytes were asked for",
            remedy="download it by another program and name the file",
        )
