"""Answers of HTTP servers, as a driver gets them: none takes more memory or disk than was asked for and is allowed."""

from __future__ import annotations

import re
from typing import Any, cast

import aiohttp

from tunesmith.data.files.downloads import MOST_AT_ONCE, most_downloaded, refuse_endless, refuse_longer

PIECE_BYTES = 2**18
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Answer(aiohttp.ClientResponse):
    """An answer that is counted as it comes. ``aiohttp`` unpacks it (Content-Encoding) a piece at a time."""

    async def start(self, connection: Any) -> Answer:
        """Waits for the headers; what comes after them is counted."""
        await super().start(connection)
        self.content = cast(aiohttp.StreamReader, _Counted(self.content, self._named))
        return self

    async def read(self) -> bytes:
        """The whole answer, which a driver keeps in memory.

        Raises:
            DataError: it is longer than the range that was asked for, or than what is kept at once.
        """
        if self._body is None:
            found = RANGE.fullmatch(self.request_info.headers.get("Range", ""))
            asked = min(int(found[2]) - int(found[1]) + 1, MOST_AT_ONCE) if found else MOST_AT_ONCE
            pieces, taken = [], 0
            try:
                while piece := await self.content.read(PIECE_BYTES):
                    taken += len(piece)
                    refuse_longer(taken, asked, self._named)
                    pieces.append(piece)
            except BaseException:
                self.close()
                raise
            self._body = b"".join(pieces)
        return self._body

    async def text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """Nothing: ``fsspec`` looks for links in a page with expressions that can take forever."""
        return ""

    @property
    def _named(self) -> str:
        return str(self.url.with_query(None))


class _Counted:
    """A stream of bytes that ends with an error after more of them than are read of a file."""

    def __init__(self, content: aiohttp.StreamReader, name: str) -> None:
        self._content, self._name = content, name
        self._most, self._taken = most_downloaded(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        data = await self._content.read(size)
        self._taken += len(data)
        refuse_endless(self._taken, self._most, self._name)
        return data
