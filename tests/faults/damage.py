"""What can happen to the bytes of a file: it is cut off, a bit of it flips, it is gone."""

from __future__ import annotations

import random
from collections.abc import Iterator

FLIPS = 20


def damages(
    whole: bytes, *, flips: int = FLIPS, within: int | None = None, seed: int = 0
) -> Iterator[tuple[str, bytes | None]]:
    """What was done, and what the file holds then; None: there is no file.

    Args:
        flips: how many places have one bit flipped, the first and the last byte among them.
        within: only so many bytes at its beginning are damaged, as the rest is not yet vouched for.
    """
    size = len(whole) if within is None else within
    for cut in sorted({0, 1, size // 2, size - 1} & set(range(size))):
        yield f"cut off at {cut} of {size}", whole[:cut]
    draw = random.Random(seed)
    places = {0, size - 1, *draw.sample(range(size), min(max(flips - 2, 0), size))} if size else set()
    for place in sorted(places):
        bit = draw.randrange(8)
        changed = bytes([whole[place] ^ 1 << bit])
        yield f"bit {bit} of byte {place} flipped", whole[:place] + changed + whole[place + 1 :]
    yield "deleted", None
