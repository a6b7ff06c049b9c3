"""Rows to be answered: a source is read as for training, and each row gives its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.examples.example import Example
from tunesmith.data.examples.export_layout import Export
from tunesmith.data.examples.message import RowError
from tunesmith.data.examples.no_header import KEY
from tunesmith.data.examples.prompts import prompt_columns, prompt_shape, to_prompt
from tunesmith.data.examples.row_shapes import map_columns
from tunesmith.data.files.folders import passed_over
from tunesmith.data.files.locations import parts_of
from tunesmith.data.files.message_trees import are_messages_of_trees, with_trees
from tunesmith.data.files.reader import bad_row, begins_with_row, export_in, first_rows, flat_rows
from tunesmith.data.files.rows import BadRow, Row
from tunesmith.data.files.source_part import SourcePart
from tunesmith.errors import DataError
from tunesmith.recipe.paths import shown

if TYPE_CHECKING:
    from tunesmith.recipe.data import SourceSettings


@dataclass(frozen=True, slots=True)
class PromptRows:
    """A source whose rows are to be answered. ``said``: how it is read, for the user.

    Rows of the shape alpaca get their instruction here: ``instruction``, or ``own_instruction``: each has one.
    """

    source: SourceSettings
    parts: list[SourcePart]
    shape: str
    instruction: str | None
    ignored: list[str]
    export: Export | None = None
    own_instruction: bool = False

    @property
    def said(self) -> str:
        """How the rows are read, in words."""
        choices = dict.fromkeys(choice for part in self.parts for choice in part.choices)
        export = [] if self.export is None else [f"an export of {self.export.name}"]
        return "; ".join([*export, f"prompts of the shape {self.shape}", *choices, *passed_over(self.ignored)])

    def rows(self) -> Iterator[tuple[Row, Example | BadRow] | BadRow]:
        """Every row in order, as the file has it and as its prompt; a pass over the files, which can be repeated."""
        for part in self.parts:
            for row in part.rows():
                yield row if isinstance(row, BadRow) else (row, self._prompt(row))

    def _prompt(self, row: Row) -> Example | BadRow:
        columns = self.source.columns
        try:
            fields = row.fields
            if self.export is not None:
                fields = self.export.asked(fields, columns, self.instruction)
            return to_prompt(fields, shape=self.shape, source=row.source, columns=columns, instruction=self.instruction)
        except RowError as error:
            return bad_row(row, error, columns)


def _are_prompts(
    first: Sequence[Mapping[str, Any]], source: SourceSettings, wanted: str | None, instruction: str | None
) -> bool:
    """Whether the rows have a prompt without being taken for an export."""
    try:
        return bool(prompt_shape(first, wanted=wanted, columns=source.columns, instruction=instruction))
    except DataError:
        return False


def open_prompts(
    source: SourceSettings, *, wanted: str | None, instruction: str | None, columns_of_run: bool = False
) -> PromptRows:
    """A source with the shape of its prompts, found from its first rows.

    Args:
        source: as in a recipe.
        wanted: the shape that the model was trained on; None if that is not known.
        instruction: goes before the input of alpaca rows.
        columns_of_run: the columns are those of the training rows.

    Raises:
        DataError: nothing is there, it holds no rows or no good one, or where the prompts stand cannot be told.
    """
    parts, ignored, _ = parts_of(source, "train", answered=False)
    first, empty = first_rows(source, parts)
    parts = [part for part in parts if part not in empty]
    if source.format == "auto" and not source.columns and are_messages_of_trees(first):
        parts = with_trees(parts)
        first, _ = first_rows(source, parts)
    export = export_in(source, first)
    if export is not None and export.gives_way is not None and _are_prompts(first, source, wanted, instruction):
        export = None
    if export is not None:
        own_input = instruction if wanted in (None, "alpaca") else None
        first = flat_rows(export, first, source, instruction=own_input, asked=True)
    shape: str = source.format
    if shape == "auto" or shape == wanted:
        try:
            shape = prompt_shape(
                first,
                wanted=wanted,
                columns=source.columns,
                instruction=instruction,
                columns_of_run=columns_of_run,
            )
        except DataError as error:
            remedy = error.remedy
            if begins_with_row(source, parts, first):
                remedy = f"{remedy}; or, if the first line is a row, set {KEY}"
            raise DataError(error.what, where=shown(source.path), why=error.why, remedy=remedy) from None
    own = shape == "alpaca" and any("instruction" in map_columns(row, prompt_columns(source.columns)) for row in first)
    given = None if own or shape != "alpaca" else instruction
    return PromptRows(source, parts, shape, given, ignored, export, own)
