"""What a real file is: how it is written, and what Tunesmith should make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RealFile:
    """One file or folder as a tool writes it, and the expectations about Tunesmith.

    The docstring of ``write`` names the tool, its version and the page that describes the layout.
    """

    write: Callable[[Path], None]  # writes into a folder
    path: str  # what a user passes to `init`, relative to that folder
    rows: int  # good rows; what the tool marks as skipped, rejected or empty is not among them
    shape: str  # the shape of the rows, as the recipe's data.format names it
    prompt: str  # stands in the prompt of one row; in a document for the shape `text`
    answer: str = ""  # the answer of that row, whole
    columns: Mapping[str, str] = field(default_factory=dict)  # field to column, dotted path or template
    says: tuple[str, ...] = ()  # what `init` says aloud
    left_out: Mapping[str, int] = field(default_factory=dict)  # why rows are left out, and how many
    refusal: str = ""  # why a refusal with a way out is right too
    needs: tuple[str, ...] = ()  # modules that write it and are not Tunesmith's own

    @property
    def name(self) -> str:
        """The name of the kind, such as ``excel_german``."""
        return self.write.__name__
