"""Looks through the header of a GGUF file before the library does, which believes every count and length in it."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

MOST_VALUES = 2**22  # of metadata; a vocabulary of 256,000 with its merges has a third of that
MOST_DIMENSIONS = 8
DEEPEST = 4  # arrays in arrays
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type of value
_STRING, _ARRAY = 8, 9
_LEAST_FIELD, _LEAST_TENSOR = 13, 24  # bytes


def refuse_lying_header(path: Path) -> None:
    """Looks at every count, length and offset of the header.

    Raises:
        ValueError: one of them is beyond the file, or beyond what a model has.
    """
    tensor_shapes(path)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor as torch has it, by the name in the file. Raises as ``refuse_lying_header`` does."""
    with path.open("rb") as file:
        if path.stat().st_size < 24:
            raise ValueError("It ends within the header.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(data)
            header.look()
            return header.shapes


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.size, self.at, self.values = data, len(data), 4, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.order = ">" if struct.unpack_from("<I", data, 4)[0] & 65535 == 0 else "<"

    def look(self) -> None:
        self._number("I")
        tensors, fields = self._number("Q"), self._number("Q")
        self._refuse_many(fields, _LEAST_FIELD, "keys")
        self._refuse_many(tensors, _LEAST_TENSOR, "tensors")
        for _ in range(fields):
            self._skip_string()
            self._skip_value(self._number("I"), 0)
        ends = [self._tensor() for _ in range(tensors)]
        if max(ends, default=0) > self.size - self.at:
            raise ValueError(f"A tensor ends behind the {self.size:,} bytes of the file.")

    def _number(self, form: str) -> int:
        size = struct.calcsize(form)
        self._refuse_many(1, size, "numbers")
        (found,) = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += size
        return found

    def _refuse_many(self, count: int, size: int, what: str) -> None:
        """Raises ValueError if so many values of so many bytes cannot be in the rest of the file."""
        left = self.size - self.at
        if count * size > left:
            raise ValueError(f"The header says {count:,} {what}, and {left:,} bytes are left of the file.")

    def _skip(self, count: int, size: int, what: str) -> None:
        self._refuse_many(count, size, what)
        self.at += count * size

    def _skip_string(self) -> None:
        self._skip(self._number("Q"), 1, "characters")

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            inner, count = self._number("I"), self._number("Q")
            self._refuse_many(count, _SCALARS.get(inner, 8), "values")
            self.values += count
            if self.values > MOST_VALUES or depth >= DEEPEST:
                raise ValueError(f"The metadata has more than {MOST_VALUES:,} values, or too many lists in lists.")
            if inner in _SCALARS:
                self._skip(count, _SCALARS[inner], "values")
            else:
                for _ in range(count):
                    self._skip_value(inner, depth + 1)
        elif kind in _SCALARS:
            self._skip(1, _SCALARS[kind], "values")
        else:
            raise ValueError(f"A value has a type that is not known: {kind}.")

    def _tensor(self) -> int:
        """Passes a tensor, and gives the byte where its values end, counted from where those of the first begin."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        begin = self.at + 8  # after the length of the name
        self._skip_string()
        name = self.data[begin : self.at].decode(errors="replace")
        count = self._number("I")
        if count > MOST_DIMENSIONS:
            raise ValueError(f"A tensor has {count:,} dimensions.")
        self.shapes[name] = tuple(self._number("Q") for _ in range(count))[::-1]  # the file has the columns first
        elements = math.prod(self.shapes[name])
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self._number("I"))]
        return self._number("Q") + elements * size // block
