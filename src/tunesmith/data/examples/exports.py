"""Exports of annotation tools and services: a table of layouts, which are known by their keys.

A row of an export gets the fields of a shape beside its own. A row that the tool marks as not to be used is left out,
with the tool's word for it. Where a row has several answers nothing is chosen: the columns say which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.examples.column_names import propose_columns
from tunesmith.data.examples.column_values import names_in, value_of
from tunesmith.data.examples.comparisons import QUESTIONS, comparison_of, winner_of
from tunesmith.data.examples.dataset_exports import DATASET_EXPORTS
from tunesmith.data.examples.export_layout import (
    ANSWERS,
    COMPARED,
    HELD,
    Export,
    Fields,
    LeftOutRow,
    agreed,
    answer_under,
    items_of,
    only_value,
    texts_in,
)
from tunesmith.data.examples.label_studio import (
    answers_stand_in_data,
    is_regions,
    json_min_answer,
    json_min_fields,
    json_min_prompt,
    label_studio_fields,
)
from tunesmith.data.examples.labels import is_label
from tunesmith.data.examples.message import RowError, describe
from tunesmith.data.examples.row_shapes import fitting_shapes
from tunesmith.data.examples.service_exports import SERVICE_EXPORTS

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant): ?")
LABEL_COLUMNS = ("label", "labels", "categories")  # of doccano's versions


def export_of(rows: Sequence[Fields]) -> Export | None:
    """The layout that all rows have."""
    return next((export for export in EXPORTS if rows and all(export.known(row) for row in rows)), None)


def export_to_read(rows: Sequence[Fields], columns: Mapping[str, str], instruction: str | None) -> Export | None:
    """The layout that all rows have, unless they are better read as rows of a shape.

    Args:
        rows: the first rows.
        columns: field to the file's column, as the user names them.
        instruction: an instruction for all rows.
    """
    export = export_of(rows)
    if export is None or export.gives_way is None:
        return export
    answers = [columns.get(field, field) for field in ("completion", "output")]
    marked = any(
        is_regions(value_of(row, name)) for row in rows for answer in answers for name in names_in(answer, [row])
    )
    if fitting_shapes(rows, columns, instruction) and not marked:  # an answer as regions is none of a shape
        return None
    return None if not columns and export.gives_way(rows) else export


def _answer_if_any(flat: Fields) -> Any:
    if not flat[ANSWERS]:
        raise LeftOutRow("without an answer")
    return _named_answer(flat)


def _named_answer(flat: Fields) -> Any:
    return answer_under(flat, only_value({name: name for name in flat[ANSWERS]}, "completion", "answer"))


# Argilla: fields, and responses by question. argilla/src/argilla/records/_resource.py
def _argilla(row: Fields) -> dict[str, Any]:
    found = {}
    for question, responses in row["responses"].items():
        given = [each for each in items_of(responses) if isinstance(each, Mapping)]
        sent = [each["value"] for each in given if each.get("status", "submitted") == "submitted" and "value" in each]
        if sent:
            found[question] = agreed(sent, question)
    if not found:
        raise LeftOutRow("no response")
    return {**row["fields"], **found, ANSWERS: list(found)}


# The same in columns, as datasets and tables have it: `label.responses` and `label.suggestion` beside the fields.
_COLUMN_OF = re.compile(r"\.(responses|suggestion)(\.\w+)?$")
_RECORD_FACTS = ("id", "_server_id", "external_id", "status", "inserted_at", "updated_at")


def _is_flat_argilla(row: Fields) -> bool:
    lists = [row[name] for name in row if name.endswith(".responses")]
    if not lists:
        return any(name.endswith(".suggestion") for name in row) and "status" in row
    return all(value is None or isinstance(value, list) for value in lists) and not all(map(_is_rating, lists))


def _is_rating(value: object) -> bool:
    """Whether a response is a number. It rates what the row holds, and is no answer to it."""
    return any(is_label(item) for item in items_of(value))


def _fields_of_record(row: Fields) -> dict[str, Any]:
    facts = {name for name in row if _COLUMN_OF.search(name) or name.startswith(("metadata.", "vectors."))}
    return {name: value for name, value in row.items() if name not in {*facts, *_RECORD_FACTS}}


def _flat_argilla(row: Fields) -> dict[str, Any]:
    found = {}
    for name in row:
        if name.endswith(".responses"):
            given = items_of(row[name])
            states = items_of(row.get(f"{name}.status")) or ["submitted"] * len(given)
            sent = [value for value, state in zip(given, states, strict=False) if state == "submitted"]
            if sent:
                found[name.removesuffix(".responses")] = agreed(sent, name)
    answers = [name for name, value in found.items() if not is_label(value) and not _is_rating(value)]
    return {**found, ANSWERS: answers, HELD: _fields_of_record(row)}


# doccano: a text and a list of labels or texts. backend/data_export/pipeline
def _doccano_column(row: Fields) -> str | None:
    lists = [name for name in LABEL_COLUMNS if isinstance(row.get(name), list)]
    return lists[0] if len(lists) == 1 and all(isinstance(item, str) for item in row[lists[0]]) else None


def _doccano(row: Fields) -> dict[str, Any]:
    column = _doccano_column(row)
    if column is not None and not row[column]:
        raise LeftOutRow("no label")
    return {ANSWERS: [column] if column else []}


# Prodigy: an annotator's answer to a task. https://prodigy.ai/docs/api-interfaces
PRODIGY = {"reject": "rejected", "ignore": "ignored"}


def _prodigy(row: Fields) -> dict[str, Any]:
    if row["answer"] != "accept":
        raise LeftOutRow(PRODIGY.get(str(row["answer"]), "not accepted"))
    accepted = row.get("accept")
    if isinstance(accepted, (str, int)) and accepted != "" and not isinstance(accepted, bool):
        accepted = [accepted]
    names = [name for name in ("label", "user_input") if name in row]
    if not isinstance(accepted, list) and names:
        return {ANSWERS: names[:1]}
    if not accepted:
        raise LeftOutRow("accepted without a choice")
    if not isinstance(accepted, list):
        raise RowError("accept", describe(accepted), "a list of choices")
    options = [option for option in items_of(row.get("options")) if isinstance(option, Mapping)]
    texts = {str(option.get("id")): option.get("text") for option in options}
    chosen = [texts.get(str(item)) or item if isinstance(item, int) else item for item in accepted]
    return {"accept": chosen, ANSWERS: ["accept"]}


# OpenAI's preference files. https://platform.openai.com/docs/guides/direct-preference-optimization
def _openai_preference(row: Fields) -> dict[str, Any]:
    given = row["input"] if isinstance(row["input"], Mapping) else {}
    return {"tools": given.get("tools") or None}


def _dialogue(text: str, field: str) -> list[dict[str, str]]:
    before, *turns = TURN.split(text)
    if before.strip() or not turns:
        raise RowError(field, describe(text), "turns that begin with Human: and Assistant:")
    return [
        {"role": SPEAKERS[speaker], "content": content}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def _is_dialogue(value: object) -> bool:
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def _is_comparison(row: Fields) -> bool:
    found = comparison_of(row)
    if found is None or row.keys() >= {"chosen", "rejected"}:
        return False
    try:
        winner_of(row[found.winner], found)
    except ValueError:
        return False
    return True


def _compared(row: Fields) -> dict[str, Any]:
    found = comparison_of(row)
    if found is None:
        raise RowError("winner", "no two answers and a winner", "two answers and a winner, as the first rows have")
    try:
        side = winner_of(row[found.winner], found)
    except ValueError:
        raise RowError(found.winner, describe(row[found.winner]), "the better answer: a, b or tie") from None
    if side is None:
        raise LeftOutRow("a tie")
    better, worse = (row[found.answers[each]] for each in (side, 1 - side))
    asked = [name for name in row if name.strip().casefold() in QUESTIONS]
    return {COMPARED: {"prompt": row[asked[0]] if len(asked) == 1 else None, "chosen": better, "rejected": worse}}


EXPORTS: tuple[Export, ...] = (
    Export(
        "a comparison",
        "the answer that the winner's column names is chosen, the other rejected, and ties are left out",
        "preference",
        _is_comparison,
        _compared,
        {name: lambda flat, name=name: flat[COMPARED][name] for name in ("prompt", "chosen", "rejected")},
    ),
    Export(
        "Label Studio",
        "the text in data is the prompt, the annotation its answer (spans: a JSON object of texts by label)",
        "prompt_completion",
        lambda row: isinstance(row.get("annotations"), list) and isinstance(row.get("data"), Mapping),
        label_studio_fields,
        {
            "prompt": lambda flat: only_value(texts_in(flat[HELD]), "prompt", "text in data"),
            "completion": _named_answer,
        },
        "data",
    ),
    Export(
        "Argilla",
        "the field is the prompt, the response its answer",
        "prompt_completion",
        lambda row: isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), Mapping),
        _argilla,
        {
            "prompt": lambda flat: only_value(texts_in(flat[HELD]), "prompt", "field of text"),
            "completion": _named_answer,
        },
        "fields",
    ),
    Export(
        "Prodigy",
        "text is the prompt, the accepted label its answer",
        "prompt_completion",
        lambda row: (
            row.keys() >= {"_task_hash", "answer", "text"} and bool(row.keys() & {"label", "accept", "user_input"})
        ),
        _prodigy,
        {"prompt": lambda flat: flat["text"], "completion": _named_answer},
    ),
    Export(
        "doccano",
        "text is the prompt, its only label the answer",
        "prompt_completion",
        lambda row: isinstance(row.get("text"), str) and _doccano_column(row) is not None,
        _doccano,
        {"prompt": lambda flat: flat["text"], "completion": _named_answer},
    ),
    Export(
        "OpenAI preferences",
        "input.messages, preferred_output (chosen) and non_preferred_output (rejected)",
        "preference",
        lambda row: row.keys() >= {"input", "preferred_output", "non_preferred_output"},
        _openai_preference,
        {
            "prompt": lambda flat: (
                flat["input"].get("messages") if isinstance(flat["input"], Mapping) else flat["input"]
            ),
            "chosen": lambda flat: flat["preferred_output"],
            "rejected": lambda flat: flat["non_preferred_output"],
        },
    ),
    Export(
        "hh-rlhf",
        "chosen and rejected are dialogues of Human: and Assistant: turns",
        "preference",
        lambda row: _is_dialogue(row.get("chosen")) and _is_dialogue(row.get("rejected")),
        lambda _: {},
        {
            "chosen": lambda flat: _dialogue(flat["chosen"], "chosen"),
            "rejected": lambda flat: _dialogue(flat["rejected"], "rejected"),
        },
    ),
    Export(
        "Argilla's columns",
        "the text is the prompt, the response its answer",
        "prompt_completion",
        _is_flat_argilla,
        _flat_argilla,
        {
            "prompt": lambda flat: only_value(texts_in(flat[HELD]), "prompt", "column of text"),
            "completion": _answer_if_any,
        },
        gives_way=lambda rows: bool(
            propose_columns([_fields_of_record(row) for row in rows], ("prompt", "completion"))
        ),
    ),
    Export(
        "Label Studio (JSON-MIN)",
        "the text is the prompt, the annotation its answer (spans: a JSON object of texts by label)",
        "prompt_completion",
        lambda row: row.keys() >= {"annotator", "annotation_id"} and not any(map(_COLUMN_OF.search, row)),
        json_min_fields,
        {"prompt": json_min_prompt, "completion": json_min_answer},
        gives_way=answers_stand_in_data,
    ),
    *SERVICE_EXPORTS,
    *DATASET_EXPORTS,
)
EXPORTS_BY_NAME = {export.name: export for export in EXPORTS}
