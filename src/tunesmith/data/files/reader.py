"""A source of the recipe -> examples, each with the file and line it comes from.

A source is, in this order: a path that exists, an fsspec URL (``s3://...``), a hub id ``user/name[@revision]``.

- jsonl, json (one array), csv, tsv and parquet files; a sheet of an xlsx or ods file; files of text: each line of a
  txt file that is not blank is a document, a md, rst or html file is one, or as `sample_by` says.
  Text is UTF-8, with or without a byte order mark, and may be compressed (.gz, .bz2, .xz, .zst).
- A folder of those: all its files in the order of their names; documents of its subfolders, too. What is passed over
  is named in `Reader.ignored` and in the reason. If some files are named for training and some for evaluation
  (train.csv and test.csv), each role reads its own.
- A folder that `datasets` saved to disk, and a hub id: the split named in the source, or the one for the role.

Every file is read as a stream: what is held of it is a few blocks of a megabyte, or its largest row. Where all rows
are not wanted at once, `open_source` finds the shape from the first of them and leaves the passes to its caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.examples.column_names import SAMPLE_CHARACTERS, ColumnsUnclear
from tunesmith.data.examples.column_values import MISSING, is_template, names_in, start_of, value_of
from tunesmith.data.examples.comparisons import refuse_passing_over
from tunesmith.data.examples.example import Example, to_example
from tunesmith.data.examples.export_layout import Export, LeftOutRow, PerhapsAnswered, SeveralValues
from tunesmith.data.examples.exports import EXPORTS_BY_NAME, export_to_read
from tunesmith.data.examples.labels import ANSWER, labels_in_words
from tunesmith.data.examples.message import RowError, describe, printable
from tunesmith.data.examples.no_header import First, what_the_first_line_is, without_names
from tunesmith.data.examples.row_shapes import (
    FIELDS,
    check_columns,
    check_mapping,
    detect_shape,
    other_shape,
    unused_masks,
)
from tunesmith.data.files.chats import refuse_chats
from tunesmith.data.files.folders import passed_over
from tunesmith.data.files.locations import parts_of, split_names
from tunesmith.data.files.message_trees import are_messages_of_trees, with_trees
from tunesmith.data.files.opening import is_document, is_table
from tunesmith.data.files.rows import BadRow, LeftOut, Row, by_reason
from tunesmith.data.files.source_part import SourcePart
from tunesmith.data.files.splits import Role, held_out_split
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.recipe.data import SourceSettings


Columns = Mapping[str, Any]
ROWS_THAT_TELL_THE_SHAPE = 100
BAD_ROWS_SHOWN = 10  # reasons
BAD_ROWS_KEPT = 1_000
MOST_COLUMNS = 1000  # that are remembered when a column is looked for in all rows
_PYTHON = re.compile(r"\s*\{\s*'")  # a dict as Python writes it
FIELD_COUNT = re.compile(r"\d+ fields?( \(|$)")  # of a record of a table


@dataclass(slots=True)
class Reader:
    """A source whose shape is known and whose rows have not been read.

    `mixture` says, where it is so, that many of the first rows have another shape.
    """

    source: SourceSettings
    parts: list[SourcePart]
    shape: str
    reason: str
    ignored: list[str]
    split: str | None
    mixture: str | None = None
    export: str | None = None  # the name of a layout of exports.py

    def examples(self) -> Iterator[Example | BadRow]:
        """Every row in order; a pass over the files, which can be repeated."""
        for part in self.parts:
            for row in part.rows():
                yield row if isinstance(row, BadRow) else example_of(row, self.source, self.shape, self.export)

    def files(self) -> list[tuple[str, str]]:
        """(name, sha256) of each part: of a file's bytes, of a dataset's rows as JSON."""
        return [(part.name, part.sha256) for part in self.parts]

    def refusal(self, bad: Sequence[BadRow], count: int, good: int) -> DataError:
        """That rows cannot be used: the first of them, how many there are, and how many can be used."""
        return _bad_rows(self.source.path, bad, count, good=good, mixture=self.mixture)


def open_source(source: SourceSettings, *, role: Role = "train", wanted: str | None = None) -> Reader:
    """A source with its shape, found from the first ROWS_THAT_TELL_THE_SHAPE rows of each part.

    Args:
        source: path, and optionally format, columns, instruction, split and name.
        role: which of a dataset's own splits is read where the source names none.
        wanted: the shape that is taken where the rows fit several.

    Raises:
        DataError: nothing is there, it holds no rows or no good one, or the shape or the columns cannot be used.
    """
    parts, ignored, split = parts_of(source, role)
    first, empty = first_rows(source, parts)
    parts = [part for part in parts if part not in empty]
    if source.format == "auto" and not source.columns:
        refuse_chats(first, source.path)
        if are_messages_of_trees(first):
            parts = with_trees(parts)
            first, _ = first_rows(source, parts)
    ignored = [*ignored, *(part.name.removeprefix(f"{source.path.rstrip('/')}/") for part in empty)]
    if source.format == "auto":
        refuse_passing_over(first, source.columns, source.path)
    export = export_in(source, first)
    if export is not None:
        first = flat_rows(export, first, source, instruction=source.instruction)
    shape, reason = _shape(source, parts, first, wanted)
    if export is not None:
        said = f"; {export.taken} -> {shape}" if not source.columns and source.format == "auto" else f"; {reason}"
        reason = f"an export of {export.name}{said}"
    reason = "; ".join([reason, *_number_labels(source, first, shape), *_choices(parts), *passed_over(ignored)])
    mixture = other_shape(first, shape=shape, columns=source.columns, instruction=source.instruction)
    return Reader(source, parts, shape, reason, ignored, split, mixture, export and export.name)


def export_in(source: SourceSettings, first: Sequence[Columns]) -> Export | None:
    """The layout of an export that the first rows have, unless the source says that they are raw text.

    Where the source names a format, rows are no export of those that give way to shapes.
    """
    if source.format == "text" or "text" in source.columns:
        return None
    export = export_to_read(first, source.columns, source.instruction)
    return None if export is not None and export.gives_way is not None and source.format != "auto" else export


def flat_rows(
    export: Export, first: Sequence[Columns], source: SourceSettings, *, instruction: str | None, asked: bool = False
) -> list[Columns]:
    """The first rows with the fields that the export gives them; ``asked``: those of their prompts.

    Raises:
        DataError: a row has several answers, or the tool marks all of them as not to be used.
    """
    rows: list[Columns] = []
    left_out: list[LeftOutRow] = []
    for row in first:
        try:
            rows.append((export.asked if asked else export.fields)(row, source.columns, instruction))
        except LeftOutRow as why:
            left_out.append(why)
        except SeveralValues as error:
            raise DataError(
                f"the rows are an export of {export.name}, and one has several values for {error.field}",
                where=source.path,
                why=f"found {error.found}; expected {error.expected}",
                remedy=error.remedy,
            ) from None
        except RowError:
            rows.append(dict.fromkeys(export.makes))  # it is told of where the row is read
    unsure = [why for why in left_out if isinstance(why, PerhapsAnswered)]
    for why in unsure:
        if not rows or any(why.column in row for row in rows):  # it answers no row, or others too
            raise DataError(
                f"the rows are an export of {export.name}, and {printable(why.column)} may be their answer or not",
                where=source.path,
                why=f"it stands before the id, as the data does, and {len(unsure)} of the first {len(first)} rows have "
                "nothing behind it",
                remedy=f"if it is the answer, {why.remedy}; otherwise export rows that have been annotated",
            )
    if not rows:
        raise DataError(
            f"the rows are an export of {export.name}, and none of the first {len(first)} can be used",
            where=source.path,
            why=f"they are {', '.join(dict.fromkeys(map(str, left_out)))}",
            remedy="export rows that have been annotated",
        )
    return rows


def _number_labels(source: SourceSettings, first: Sequence[Columns], shape: str) -> list[str]:
    """That answers are numbers, where they are."""
    field = ANSWER.get(shape, "")
    column = source.columns.get(field, field)
    return [] if is_template(column) else labels_in_words([value_of(row, column) for row in first], column)


def _choices(parts: Sequence[SourcePart]) -> list[str]:
    """How files are read where it was chosen; what is said of several files alike is said once."""
    found: dict[str, list[str]] = {}
    for part in parts:
        if part.choices:
            found.setdefault(", ".join(part.choices), []).append(part.name)
    if len(found) == 1 and len(next(iter(found.values()))) == len(parts):
        return [*found]
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {said}" for said, names in found.items()
    ]


def example_of(row: Row, source: SourceSettings, shape: str, export: str | None = None) -> Example | BadRow:
    """A row as an example of the source's shape, or what is wrong with it, under the file's own column name."""
    try:
        layout = None if export is None else EXPORTS_BY_NAME[export]
        fields = row.fields if layout is None else layout.fields(row.fields, source.columns, source.instruction)
        return to_example(
            fields, shape=shape, source=row.source, columns=source.columns, instruction=source.instruction
        )
    except LeftOutRow as why:
        return LeftOut(row.source, "row", str(why), "a row to be used", _raw(row.fields))
    except RowError as error:
        return bad_row(row, error, source.columns)


def bad_row(row: Row, error: RowError, columns: Mapping[str, str]) -> BadRow:
    """What is wrong with a row, under the file's own column name."""
    return BadRow(row.source, columns.get(error.field, error.field), error.found, error.expected, _raw(row.fields))


def own_eval_split(source: SourceSettings) -> str | None:
    """The split that the source itself holds out (validation before test), where it has one beside its training split.

    Read it with ``load(source.model_copy(update={"split": name}), role="eval")``.

    Raises:
        DataError: the source cannot be found.
    """
    names = split_names(source)
    trained = names[0] if source.split is None and len(names) == 1 else source.split
    split = held_out_split(names)
    return None if trained is not None and trained.partition("[")[0] == split else split


def first_rows(source: SourceSettings, parts: Sequence[SourcePart]) -> tuple[list[Columns], list[SourcePart]]:
    """The columns of the first good rows of each part, with the start of each text: values may be large.

    With it the documents without text; one among others is passed over.
    """
    first: list[Columns] = []
    empty: list[SourcePart] = []
    bad: list[BadRow] = []
    count = 0
    for part in parts:
        good, count_before = 0, count
        for row in part.rows():
            if isinstance(row, BadRow):
                count += 1
                if len(bad) < BAD_ROWS_KEPT:
                    bad.append(row)
                continue
            first.append({name: start_of(value, SAMPLE_CHARACTERS + 1) for name, value in row.fields.items()})
            good += 1
            if good == ROWS_THAT_TELL_THE_SHAPE:
                break
        if not good and count == count_before:
            if is_document(part.name):
                empty.append(part)
                continue
            raise DataError(
                "there are no rows in it",
                where=part.name,
                remedy="give a file, or a split of a dataset, with at least one row",
            )
    if not first and not bad:
        raise DataError(
            "there are no rows in it",
            where=empty[0].name,
            why=f"none of {len(empty)} documents has text" if len(empty) > 1 else None,
            remedy="give a file with at least one row, or a folder with at least one document that has text",
        )
    if not first:
        raise _bad_rows(source.path, bad, count, good=0)
    return first, empty


def _shape(
    source: SourceSettings, parts: Sequence[SourcePart], first: Sequence[Columns], wanted: str | None
) -> tuple[str, str]:
    """The shape of all rows and the reason, after the source's columns have been checked against the rows.

    A column that is missing in the first rows may stand in a later one: then all are asked before it is refused.
    """

    known = [*first]

    def ask(check: Callable[[Sequence[Columns]], None]) -> None:
        try:
            return check(known)
        except DataError:
            if len(known) > len(first):
                raise
        known.append(_all_columns(source, parts))
        return check(known)

    try:
        ask(lambda rows: check_mapping(rows, source.columns))
        if source.format == "auto":
            shape, reason = detect_shape(first, columns=source.columns, instruction=source.instruction, wanted=wanted)
        else:
            shape, reason = source.format, f"data.format: {source.format}"
        ask(lambda rows: check_columns(rows, shape=shape, columns=source.columns, instruction=source.instruction))
    except ColumnsUnclear as error:
        line, separators = _first_line(source, parts, first), _separators(parts)
        if line != "names" and (source.header is False or error.proposal is None):  # else the names are known
            fields = ("prompt", "completion") if source.instruction is None else ("input", "output")
            read_so = source.header is False
            error = without_names(
                first, fields, read_so=read_so, sure=line == "a row", cut=separators, where=source.path
            )
            raise error from None
        raise ColumnsUnclear(
            error.what,
            where=error.where or source.path,
            why="\n".join(filter(None, [error.why, *separators])),
            remedy=error.remedy,
            proposal=error.proposal,
        ) from None
    except DataError as error:
        remedy = error.remedy
        if begins_with_row(source, parts, first):
            remedy = f"{remedy}; or, if the first line is a row, write a line with the names of the columns above it"
        raise DataError(error.what, where=error.where or source.path, why=error.why, remedy=remedy) from None
    return shape, reason + unused_masks(first, shape, source.columns)


def _separators(parts: Sequence[SourcePart]) -> list[str]:
    """Those at which tables are cut where that was chosen, in words."""
    return list(dict.fromkeys(said for part in parts for said in part.choices if said.startswith("separator ")))


def _first_line(source: SourceSettings, parts: Sequence[SourcePart], first: Sequence[Columns]) -> First:
    """What the first line of tables is; where there are none, or the columns are said, a header."""
    if source.columns or not first or not all(is_table(part.name) for part in parts):
        return "names"
    if source.header is False:
        return "a row"
    return what_the_first_line_is(first) if begins_with_row(source, parts, first) else "names"


def begins_with_row(source: SourceSettings, parts: Sequence[SourcePart], first: Sequence[Columns]) -> bool:
    """Whether the first line of tables looks like a row, and nobody says that it is none."""
    tables = source.header is None and all(is_table(part.name) for part in parts)
    return tables and what_the_first_line_is(first) != "names"


def _all_columns(source: SourceSettings, parts: Sequence[SourcePart]) -> Columns:
    """Those of all rows that may have others than the first; of any number of them only the first and those asked for.

    Raises:
        DataError: a file cannot be read to its end.
    """
    paths = {part for column in source.columns.values() for part in (column, *names_in(column, ()))}
    asked_for = {*FIELDS, *paths}
    nested = any("." in path for path in paths)
    found: dict[str, None] = {}
    for part in parts:
        for row in part.rows() if not part.same_columns or nested else ():
            fields = row.fields if isinstance(row, Row) else {}
            for name in fields:
                if name in asked_for or len(found) < MOST_COLUMNS:
                    found[name] = None
            for path in paths if nested else ():
                if path not in found and "{" not in path and value_of(fields, path) is not MISSING:
                    found[path] = None
    return found


def _raw(fields: dict[str, Any]) -> str:
    """The row as one line of JSON; lone surrogates and other types are written out."""
    try:
        text = json.dumps(fields, ensure_ascii=False, default=str)
    except RecursionError:  # a row nested so deeply that it could be read but not written
        text = describe(fields)
    return text.encode(errors="backslashreplace").decode()


def _bad_rows(path: str, bad: Sequence[BadRow], count: int, *, good: int, mixture: str | None = None) -> DataError:
    reasons = by_reason(bad)
    shown = [said if rows == 1 else f"{rows:,} rows: {said}" for rows, said in reasons[:BAD_ROWS_SHOWN]]
    others = len(reasons) - len(shown)
    more = [f"and rows with {others:,} other reasons"] if others > 0 else []
    more += [f"and {count - len(bad):,} more rows"] if count > len(bad) else []
    skip = ", or set data.on_error: skip to set them aside in rejected.jsonl" if good else ""
    skip += _other_reading(path, bad)
    return DataError(
        f"{count:,} of {count + good:,} rows cannot be used",
        where=path,
        why="\n".join([*shown, *more, *([mixture] if mixture else [])]),
        remedy=f"correct the row{'s' if count > 1 else ''}{skip}",
    )


def _other_reading(path: str, bad: Sequence[BadRow]) -> str:
    """What else the lines may be: no JSON, or no table, where records have other numbers of fields than the first."""
    if any("property name enclosed in double quotes" in row.found and _PYTHON.match(row.raw) for row in bad):
        return "; Python's dicts are no JSON: write each with `json.dumps(row)`"
    counts = [row for row in bad if FIELD_COUNT.match(row.found) and FIELD_COUNT.match(row.expected)]
    if not counts or not path.lower().endswith((".csv", ".tsv")):
        return ""
    if counts[0].expected.startswith("1 ") and path.lower().endswith(".csv"):
        return "; or, if commas are part of the one column, set data.delimiter: tab"
    return "; or, if each line is one text, give the file the ending .txt"
