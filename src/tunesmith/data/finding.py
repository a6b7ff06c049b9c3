"""Something about the data that its owner should know, with every row it is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

Severity = Literal["error", "warning", "info"]


class Places(Sequence[str]):
    """Names of rows, ``file:line``, written out only when they are asked for: there may be millions.

    Args:
        names: files.
        file: index of each row's file, int [n].
        line: its line, counted from 1, int [n].
    """

    def __init__(self, names: Sequence[str], file: np.ndarray, line: np.ndarray) -> None:
        assert len(file) == len(line)
        self._names, self._file, self._line = names, file, line

    def __len__(self) -> int:
        return len(self._file)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [
                self._name(int(file), int(line))
                for file, line in zip(self._file[index], self._line[index], strict=True)
            ]
        return self._name(int(self._file[index]), int(self._line[index]))

    def __iter__(self) -> Iterator[str]:
        return map(self._name, self._file.tolist(), self._line.tolist())

    def _name(self, file: int, line: int) -> str:
        return f"{self._names[file]}:{line}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A place in a row, short and with personal data masked."""

    row: str
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing, with all its rows; a duplicate, a contradiction or a leak names those on both sides.

    An error makes the run's verdict worthless; a warning is probably a mistake; an info is advice.
    """

    id: str
    severity: Severity
    rows: Sequence[str]
    message: str
    remedy: str
    samples: tuple[Sample, ...] = ()

    @property
    def count(self) -> int:
        """How many rows are named."""
        return len(self.rows)

    def to_json(self) -> dict[str, Any]:
        """``{id, severity, count, rows, samples, message, remedy}``, every row written out."""
        return {
            "id": self.id,
            "severity": self.severity,
            "count": self.count,
            "rows": list(self.rows),
            "samples": [{"row": sample.row, "text": sample.text} for sample in self.samples],
            "message": self.message,
            "remedy": self.remedy,
        }


def rows_in_words(count: int) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{count:,} row{'' if count == 1 else 's'}"
