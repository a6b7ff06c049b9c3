"""The prompt of a row: what training has before the row's last answer. Rows without an answer have one, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.examples.column_kinds import are_figures, text_columns
from tunesmith.data.examples.column_names import question_names
from tunesmith.data.examples.example import Example, to_example
from tunesmith.data.examples.message import SHAREGPT_ROLES, Message, printable, turns_in
from tunesmith.data.examples.row_shapes import FIELDS, METADATA, check_mapping, listed, map_columns
from tunesmith.errors import DataError

SOME_ANSWER = "answer"  # stands where the row's answer would be, and is taken away again
ANSWER_FIELDS = ("completion", "output", "chosen", "rejected", "label")
ASKING = ("messages", "sharegpt", "alpaca", "prompt_completion")  # in other rows a prompt stands under the same names


def prompt_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The mapping without the columns of answers, which need not be there."""
    return {field: column for field, column in columns.items() if field not in ANSWER_FIELDS}


def prompt_fields(shape: str, instruction: str | None) -> tuple[str, ...]:
    """The fields that a prompt of this shape needs."""
    if shape == "alpaca":
        return ("input",) if instruction is not None else ("instruction",)
    return {"messages": ("messages",), "sharegpt": ("conversations",), "text": ("text",)}.get(shape, ("prompt",))


def prompt_shape(
    rows: Sequence[Mapping[str, Any]],
    *,
    wanted: str | None,
    columns: Mapping[str, str],
    instruction: str | None,
    columns_of_run: bool = False,
) -> str:
    """The shape in which rows are read to be answered.

    Args:
        rows: the first rows.
        wanted: the shape that the model was trained on, which is taken if the rows have its prompt.
        columns: canonical field to the file's column.
        instruction: the model's, in place of alpaca's own.
        columns_of_run: they are those of the training rows, and conversations do not need them.

    Raises:
        DataError: a column is not there, or the rows have no prompt or several.
    """
    columns = prompt_columns(columns)
    try:
        check_mapping(rows, columns)
    except DataError as error:
        conversations = [shape for shape in ASKING[:2] if any(prompt_fields(shape, None)[0] in row for row in rows)]
        if columns_of_run and len(conversations) == 1:
            return conversations[0]
        found = list(dict.fromkeys(name for row in rows for name in row))
        field = next(iter(columns))
        raise DataError(
            error.what,
            why=f"the columns are {listed(found)}",
            remedy=f"say where the prompt stands in this file, such as data.columns={{{field}: {_likely(rows)}}}",
        ) from None
    mapped = [map_columns(row, columns) for row in rows]
    names = [set(row) for row in mapped]

    def has(shape: str, instruction: str | None) -> bool:
        return any(row.issuperset(prompt_fields(shape, instruction)) for row in names)

    if wanted is not None and has(wanted, instruction):
        return wanted
    if wanted == "preference" and any(row.issuperset(("chosen", "rejected")) for row in names):
        return wanted
    fitting = [shape for shape in ASKING if has(shape, None)]
    if len(fitting) == 1:
        return fitting[0]
    found = list(dict.fromkeys(name for row in mapped for name in row))
    expected = prompt_fields(wanted or "prompt_completion", instruction)[0]
    if fitting:
        fields = [prompt_fields(shape, None)[0] for shape in fitting]
        raise DataError(
            f"the rows have several prompts: {' and '.join(fields)}",
            why=f"the columns are {listed(found)}",
            remedy=f"name the shape: add data.format={fitting[0]}, or another of {', '.join(fitting)}",
        )
    raise DataError(
        f"no row has the field {expected!r}, which holds the prompt",
        why=f"the columns are {listed(found)}",
        remedy=f"name the column that holds the prompt, such as data.columns={{{expected}: {_likely(mapped)}}}",
    )


def _likely(rows: Sequence[Mapping[str, Any]]) -> str:
    """The column that holds the prompt most likely: one that is named for a question, else the longest texts."""
    found = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in found if name == "text" or name not in (*FIELDS, *METADATA)] or found
    texts = text_columns(rows, names)
    named = question_names([name for name in names if not are_figures(rows, name)])
    likely = max(texts, key=lambda name: sum(len(str(row.get(name) or "")) for row in rows), default="COLUMN")
    return printable(named[0] if named else likely)


def to_prompt(
    row: Mapping[str, Any], *, shape: str, source: str, columns: Mapping[str, str], instruction: str | None
) -> Example:
    """The row as an example that ends before its last answer; what stands there as the answer is not looked at.

    Raises:
        RowError: as ``to_example`` does.
    """
    fields = map_columns(row, prompt_columns(columns))
    if shape == "text":
        example = to_example(fields, shape=shape, source=source)
        return Example((Message("user", example.text or ""),), source)
    filled = {**fields, **_answer(fields, shape)}
    own = instruction if shape == "alpaca" else None
    example = to_example(filled, shape=shape, source=source, instruction=own)
    return Example(example.messages[:-1], source, tools=example.tools)


def _answer(fields: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """An answer for the row, in place of its own, so that it becomes an example."""
    turn = {"role": "assistant", "content": SOME_ANSWER}
    if shape == "alpaca":
        return {"output": SOME_ANSWER}
    if shape == "messages":
        return {"messages": _ended(turns_in(fields.get("messages"), "messages"), "role", turn)}
    if shape == "sharegpt":
        turns = turns_in(fields.get("conversations"), "conversations")
        return {"conversations": _ended(turns, "from", {"from": "gpt", "value": SOME_ANSWER})}
    if shape == "preference":
        if fields.keys().isdisjoint(("prompt", "instruction", "input")):
            return {}  # the prompt is what both answers begin with
        return {"chosen": SOME_ANSWER, "rejected": f"no {SOME_ANSWER}"}
    return {"completion": [turn] if isinstance(fields.get("prompt"), list) else SOME_ANSWER, "label": True}


def _ended(turns: Any, speaker: str, answer: dict[str, str]) -> Any:
    """The turns with this answer in place of the assistant's at the end, or behind them."""
    if not isinstance(turns, list) or not turns:
        return turns
    last = turns[-1].get(speaker) if isinstance(turns[-1], Mapping) else None
    answered = isinstance(last, str) and SHAREGPT_ROLES.get(last.lower()) == "assistant"
    return [*(turns[:-1] if answered else turns), answer]
