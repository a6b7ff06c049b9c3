"""One file or split of a source, as whoever reads rows sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tunesmith.data.files.rows import Block, RowStream


@dataclass(slots=True)
class SourcePart:
    """One file or split. It can be read any number of times, and holds no rows itself.

    ``parse`` makes rows of its blocks. It is a function of a module, so that another process can be told to call it.
    ``same_columns``: every row has the columns of the first, as in a table.
    """

    name: str
    parse: Callable[[Block], RowStream]
    same_columns: bool
    _digest: str | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """What was chosen about how it is read, in words for the user."""
        return ()

    def blocks(self) -> Iterator[Block]:
        """Its rows in order, in blocks of about a megabyte that are not parsed yet.

        Raises:
            DataError: the file cannot be read as what its name says.
        """
        raise NotImplementedError

    def rows(self) -> RowStream:
        """Its rows in order."""
        for block in self.blocks():
            yield from self.parse(block)

    @property
    def sha256(self) -> str:
        """Of the file's bytes, or of a dataset's rows as JSON; it costs a pass where none has been made yet."""
        if self._digest is None:
            self._hash()
        assert self._digest is not None
        return self._digest

    def _hash(self) -> None:
        raise NotImplementedError
