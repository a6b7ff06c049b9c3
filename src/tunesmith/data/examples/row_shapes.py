"""Detects the shape of a source's rows from their fields and gives the reason, or refuses and names the choices."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunesmith.data.examples.column_names import ColumnsUnclear, Proposal, propose_columns, with_context
from tunesmith.data.examples.column_values import MISSING, leaves, names_in, roots_of, value_of
from tunesmith.data.examples.message import ROW_MASKS, RowError, printable
from tunesmith.errors import DataError

NEAR_SHOWN = 6  # of the names near a mistyped one
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("chosen", "rejected"),
    "unpaired_preference": ("prompt", "completion", "label"),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "history", "system", "tools"),
    "prompt_completion": ("system", "tools"),
    "text": (),
    "preference": ("prompt", "instruction", "input", "system", "tools"),
    "unpaired_preference": ("system", "tools"),
}
JUDGED = ("messages", "label")  # unpaired_preference as a whole conversation, whose last turn is the answer
PREFERENCES = ("preference", "unpaired_preference")  # rows that say which answers are better
FIELDS = tuple(dict.fromkeys(field for fields in (*REQUIRED.values(), *OPTIONAL.values()) for field in fields))
# Columns that may stand beside a raw text without making one wonder what the row is for.
METADATA = frozenset(
    ("id", "idx", "index", "uuid", "url", "source", "src", "meta", "metadata", "date", "timestamp", "__index_level_0__")
)
LARGE_SHARE = 0.1  # of the first rows: so many of another shape are no slip
# Names that others give to the two halves, for a suggestion only.
QUESTIONS = ("question", "query", "prompt", "instruction", "input", "text", "sentence", "problem", "user", "source")
ANSWERS = ("answer", "response", "completion", "output", "target", "label", "category", "summary", "solution", "intent")


def map_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the file's columns under their canonical names; a mapped column keeps no second name.

    Raises:
        RowError: a template joins what is no text.
    """
    taken = {root for column in columns.values() for root in roots_of(row, column)}
    fields = {name: value for name, value in row.items() if name not in taken}
    mapped = {field: value_of(row, column) for field, column in columns.items()}
    return fields | {field: value for field, value in mapped.items() if value is not MISSING}


def required_fields(shape: str, instruction: str | None = None, *, among: Collection[str] = ()) -> tuple[str, ...]:
    """Fields that every row of the shape has; an instruction given once replaces alpaca's own.

    ``among``: the fields that rows have, where a shape may be written in two ways.
    """
    if shape == "unpaired_preference" and {*JUDGED} <= {*among} and "prompt" not in among:
        return JUDGED
    return ("input", "output") if shape == "alpaca" and instruction is not None else REQUIRED[shape]


def fitting_shapes(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], instruction: str | None) -> list[str]:
    """The shapes all of whose fields one row has, after ``columns`` is applied; raw text is not among them."""
    names = [set(_fields(row, columns)) for row in rows]
    return [
        shape
        for shape in REQUIRED
        if shape != "text" and any(row.issuperset(required_fields(shape, instruction, among=row)) for row in names)
    ]


def detect_shape(
    rows: Sequence[Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    wanted: str | None = None,
) -> tuple[str, str]:
    """The shape whose fields the rows have, and the reason in words.

    A shape fits when one row has all its fields, after `columns` is applied. Exactly one of messages, sharegpt, alpaca
    and prompt_completion must fit, or a shape of preferences where none of these does. If none does, rows of `text` are
    raw text, unless other columns stand beside it that are no metadata: then the text may be a question, and the user
    decides.

    Args:
        rows: the first rows of the source.
        columns: canonical field to the file's column.
        instruction: an instruction for all rows.
        wanted: the shape that is taken where it fits, whatever else does.

    Raises:
        DataError: no shape fits, or more than one.
    """
    columns = columns or {}
    names = [set(_fields(row, columns)) for row in rows]
    fitting = fitting_shapes(rows, columns, instruction)
    if wanted in fitting:
        fitting = [str(wanted)]
    else:
        fitting = [shape for shape in fitting if shape not in PREFERENCES] or fitting
    if not fitting and any("text" in row for row in names):
        _refuse_text_beside_others(rows, columns, instruction)
        fitting = ["text"]
    if not fitting:
        raise _unknown_shape(rows, _proposal(rows, columns, instruction))
    if len(fitting) > 1:
        raise DataError(
            f"the rows fit more than one shape: {' and '.join(fitting)}",
            why="; ".join(
                f"{shape} has {', '.join(required_fields(shape, instruction))}, as "
                f"{_share(sum(row.issuperset(required_fields(shape, instruction)) for row in names), len(names))} have"
                for shape in fitting
            ),
            remedy=f"name the shape: data.format: {fitting[0]}",
        )
    return fitting[0], _reason(rows, fitting[0], columns)


def other_shape(
    rows: Sequence[Mapping[str, Any]], *, shape: str, columns: Mapping[str, str], instruction: str | None
) -> str | None:
    """That many of the first rows have another shape than the one that all are read as, in words; None: they have not.

    Many are a tenth. Rows that have the fields of both are of the shape asked about.
    """
    names = [set(_fields(row, columns)) for row in rows]
    others = [row for row in names if not row.issuperset(required_fields(shape, instruction, among=row))]
    fit = {
        other: sum(row.issuperset(required_fields(other, instruction)) for row in others)
        for other in REQUIRED
        if other != shape
    }
    likely = max(fit, key=lambda other: fit[other])
    if not fit[likely] or fit[likely] < len(rows) * LARGE_SHARE:
        return None
    fields = ", ".join(required_fields(likely, instruction))
    return f"{_share(fit[likely], len(rows))} have the shape {likely} ({fields}), and are read as {shape}"


def check_columns(
    rows: Sequence[Mapping[str, Any]], *, shape: str, columns: Mapping[str, str], instruction: str | None
) -> None:
    """Refuses, once for the whole source, a mapping or a shape that its rows cannot have.

    Raises:
        DataError: a column that is in no row, a field that no shape has, or an instruction that cannot be used.
    """
    check_mapping(rows, columns)
    if instruction is not None and shape != "alpaca":
        raise DataError(
            f"data.instruction cannot be used with rows of the shape {shape}",
            why="an instruction for all rows goes before the input of alpaca rows {input, output}",
            remedy="map the columns: data.columns: {input: <column>, output: <column>}, or leave the instruction out",
        )
    mapped = list(dict.fromkeys(name for row in rows for name in _fields(row, columns)))
    if instruction is not None and "instruction" in mapped:
        raise DataError(
            "an instruction is given for all rows, and the rows have a column 'instruction' of their own",
            remedy="remove data.instruction, or map another column to the input and leave this one out",
        )
    for field in required_fields(shape, instruction, among=mapped):
        if field not in mapped:
            near = did_you_mean(field, mapped) or "<column>"
            raise DataError(
                f"no row has the field {field!r} that the shape {shape} needs",
                why=f"the columns are {listed(mapped)}",
                remedy=f"name the column that holds it: data.columns: {{{field}: {near}}}",
            )


def check_mapping(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Refuses a `columns` mapping with a field that no shape has, or a column that no row has.

    Raises:
        DataError: with the nearest known name.
    """
    if not columns:
        return
    present = leaves(rows)
    for field, column in columns.items():
        absent = next((part for part in names_in(column, rows) if not _is_there(rows, part)), None)
        if field in FIELDS and absent is None:
            continue
        swapped = column in FIELDS and field in present
        if field not in FIELDS or absent is None:
            what, known, wrong = f"data.columns: {printable(field)!r} is not a field of any shape", FIELDS, field
        else:
            what, known, wrong = f"data.columns: there is no column {printable(absent)!r}", present, absent
        near = did_you_mean(wrong, known)
        hint = f"did you mean {near}? " if near else ""
        remedy = f"{hint}data.columns is written {{field: column}}"
        if field in FIELDS:
            remedy = f"{hint}say which column is what: data.columns: {{{_corrected(rows, columns, present)}}}"
        if swapped:
            remedy = f"field and column are swapped: data.columns: {{{column}: {field}}}"
        raise DataError(
            what,
            why=f"the columns are {listed(present)}; the fields are {', '.join(FIELDS)}",
            remedy=remedy,
        )


def _corrected(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], present: Sequence[str]) -> str:
    """The mapping with the nearest column, or a place to write one, for each that no row has."""
    pairs = []
    for field, column in columns.items():
        lacking = not all(_is_there(rows, part) for part in names_in(column, rows))
        kept = f'"{printable(column)}"' if "{" in column else printable(column)
        pairs.append(f"{field}: {did_you_mean(column, present) or '<column>' if lacking else kept}")
    return ", ".join(pairs)


def unused_masks(rows: Sequence[Mapping[str, Any]], shape: str, columns: Mapping[str, str]) -> str:
    """A warning about columns in which other tools say what is learned of a row, which are not used; else nothing."""
    taken = {*columns.values(), *REQUIRED[shape], *OPTIONAL[shape]}
    names = [printable(name) for name in _names(rows) if name in ROW_MASKS and name not in taken]
    if not names:
        return ""
    verb = "do" if len(names) > 1 else "does"
    return (
        f"; {listed(names)} {verb} not change what is learned: write train: false on a turn that is not to be learned, "
        "and leave out a row that is not to be learned"
    )


def did_you_mean(name: str, names: Iterable[str]) -> str | None:
    """The known name nearest to a mistyped one, if any is near; letter case does not count."""
    known = {str(other).lower(): str(other) for other in names}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return known[near[0]] if near else None


def listed_near(name: str, names: Sequence[str]) -> str:
    """All names where they are few; else the closest to a mistyped one, and how many others there are."""
    if len(names) <= NEAR_SHOWN:
        return listed(sorted(names))
    shown = difflib.get_close_matches(name, names, n=NEAR_SHOWN, cutoff=0.0)
    return f"{listed(shown)} and {len(names) - len(shown)} others"


def listed(names: Iterable[str]) -> str:
    """Names from a file, safe to print, the first thirty."""
    all_names = list(names)
    more = f" and {len(all_names) - 30} more" if len(all_names) > 30 else ""
    return ", ".join(printable(name) for name in all_names[:30]) + more


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, in the order of their first appearance."""
    seen: dict[str, None] = {}
    for row in rows:
        if row.keys() - seen.keys():
            seen.update(dict.fromkeys(row))
    return list(seen)


def _fields(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterable[str]:
    """The names that a row has after ``columns`` is applied."""
    try:
        return map_columns(row, columns)
    except RowError:  # it is told of where the row is read
        return (*row, *columns)


def _is_there(rows: Iterable[Mapping[str, Any]], name: str) -> bool:
    return any(value_of(row, name) is not MISSING for row in rows)


def _within(one: str, other: str) -> bool:
    """Whether two paths are the same, or one leads into what the other names."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _share(count: int, rows: int) -> str:
    return f"{count} of the first {rows} rows" if rows > 1 else "the first row"


def _reason(rows: Sequence[Mapping[str, Any]], shape: str, columns: Mapping[str, str]) -> str:
    """Such as 'columns text (input), category (output) -> alpaca; not used: id'."""
    wanted = (*required_fields(shape, among=_names(rows)), *REQUIRED[shape], *OPTIONAL[shape])
    parts = {column: names_in(column, rows) for column in columns.values()}
    used: dict[str, None] = {}
    unused = []
    for name in leaves(rows):
        fields = [field for field, column in columns.items() if any(_within(part, name) for part in parts[column])]
        for field in fields:
            column = columns[field]
            used[printable(column) if field == column else f"{printable(column)} ({field})"] = None
        own = next((field for field in wanted if _within(name, field)), None)
        if own is not None and not fields:
            used[printable(own)] = None
        elif not fields:
            unused.append(name)
    rest = f"; not used: {listed(unused)}" if unused else ""
    judged = shape == "messages" and any(isinstance(row.get("label"), bool) for row in rows)
    if (shape == "prompt_completion" or judged) and "label" in unused:
        rest += " (objective: kto learns from label)"
    return f"column{'s' if len(used) > 1 else ''} {', '.join(used)} -> {shape}{rest}"


def _refuse_text_beside_others(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], instruction: str | None
) -> None:
    others = [name for name in _names(rows) if name != "text" and name.lower() not in METADATA]
    if "text" in columns or not others:
        return
    proposal = _proposal(rows, columns, instruction)
    raise ColumnsUnclear(
        f"ambiguous: is `text` raw text, or a prompt that another column answers ({listed(others)})?",
        why="rows with a column text and others can be read both ways",
        remedy=f"as raw text, set data.format: text; prompts with answers: {_suggestion(['text', *others])}",
        proposal=proposal
        and replace(proposal, otherwise=f"set data.format: text for raw text; or {proposal.otherwise}"),
    )


def _proposal(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], instruction: str | None
) -> Proposal | None:
    if columns:
        return None
    if instruction is not None:
        return propose_columns(rows, ("input", "output"))
    found = propose_columns(rows, ("prompt", "completion"))
    return found and with_context(rows, found)


def _unknown_shape(rows: Sequence[Mapping[str, Any]], proposal: Proposal | None) -> ColumnsUnclear:
    names = leaves(rows)
    shapes = "; ".join(f"{shape}: {', '.join(fields)}" for shape, fields in REQUIRED.items())
    return ColumnsUnclear(
        "the shape of the rows is not known",
        why=f"the columns are {listed(names)}\nthe shapes are {shapes}",
        remedy=f"say which column is what, such as {_suggestion(names)}",
        proposal=proposal,
    )


def _suggestion(names: Sequence[str]) -> str:
    """A mapping to copy, with the columns that look like question and answer."""
    known = {name.rpartition(".")[2].lower(): name for name in reversed(names)}
    answer = next((known[name] for name in ANSWERS if name in known), None)
    question = next((known[name] for name in QUESTIONS if name in known and known[name] != answer), None)
    question, answer = printable(question or "<column>"), printable(answer or "<column>")
    return (
        f"data.columns: {{prompt: {question}, completion: {answer}}}, "
        f"or data.columns: {{input: {question}, output: {answer}}} with one data.instruction for all rows"
    )
