"""Exports of annotation tools and services: a table of layouts, which are known by their keys.

A row of an export gets the fields of a shape beside its own. A row that the tool marks as not to be used is left out,
with the tool's word for it. Where a row has several answers nothing is chosen: the columns say which is meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.examples.comparisons import QUESTIONS, comparison_of, winner_of
from tunesmith.data.examples.message import RowError, describe, printable

Fields = Mapping[str, Any]
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\n(Human|Assistant): ?")
LABEL_COLUMNS = ("label", "labels", "categories")  # of doccano's versions
COMPARED = "\0compared"
ANSWERS, HELD = "\0answers", "\0held"  # of a flat row: the names of its answers, and what its holder holds
# Fields in place of which a user may name a column, by what an export fills in.
IN_PLACE = {
    "prompt": ("prompt", "input", "instruction", "text", "messages", "conversations"),
    "completion": ("completion", "output", "text", "messages", "conversations"),
}


class LeftOutRow(Exception):
    """The tool that wrote the row marks it as not to be used; its text says how, such as ``skipped``."""


class SeveralValues(RowError):
    """There is a choice; ``remedy`` says how it is made."""

    def __init__(self, field: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(field, found, expected)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Export:
    """A layout. ``known``: whether a row has its keys. ``flat``: what stands in the row, under names without a path.

    Args:
        name: of the tool, with what it wrote.
        taken: what is made of it, in words.
        shape: of the rows.
        makes: field of the shape to what gives its value, of the flat row.
        holder: the key of the object with the texts of a row, if they are in one.
    """

    name: str
    taken: str
    shape: str
    known: Callable[[Fields], bool]
    flat: Callable[[Fields], dict[str, Any]]
    makes: Mapping[str, Callable[[Fields], Any]]
    holder: str | None = None

    def asked(self, row: Fields, columns: Mapping[str, str], instruction: str | None = None) -> dict[str, Any]:
        """The row with the fields that its prompt needs. It may have no answer, and no mark leaves it out.

        Raises:
            RowError: a field cannot be told.
        """
        try:
            flat = {**row, **self.flat(row)}
        except LeftOutRow:
            flat = {**row, **(row[self.holder] if self.holder else {})}
        return self._made(row, flat, columns, instruction, [field for field in self.makes if field != "completion"])

    def fields(self, row: Fields, columns: Mapping[str, str], instruction: str | None = None) -> dict[str, Any]:
        """The row with the fields of the shape, but for those in whose place ``columns`` names others.

        With an instruction for all rows, prompt and completion are its input and output.

        Raises:
            LeftOutRow: the tool marks the row as not to be used.
            RowError: a field cannot be told.
        """
        return self._made(row, {**row, **self.flat(row)}, columns, instruction, [*self.makes])

    def _made(
        self,
        row: Fields,
        flat: dict[str, Any],
        columns: Mapping[str, str],
        instruction: str | None,
        fields: Sequence[str],
    ) -> dict[str, Any]:
        if self.holder and HELD not in flat:  # one of its fields may have its name
            flat[HELD] = row[self.holder]
        names = {} if instruction is None else {"prompt": "input", "completion": "output"}
        made = {
            names.get(field, field): self.makes[field](flat)
            for field in fields
            if not any(other in columns for other in IN_PLACE.get(field, (field,)))
        }
        return {**{name: value for name, value in flat.items() if name not in (ANSWERS, HELD, COMPARED)}, **made}


def export_of(rows: Sequence[Fields]) -> Export | None:
    """The layout that all rows have."""
    return next((export for export in EXPORTS if rows and all(export.known(row) for row in rows)), None)


def _only(values: Fields, field: str, what: str) -> Any:
    """The only one of several named values.

    Raises:
        RowError: there is none, or more than one.
    """
    if not values:
        raise RowError(field, f"no {what}", f"one {what}")
    if len(values) > 1:
        names = [printable(name) for name in values]
        raise SeveralValues(
            field,
            f"several of them: {', '.join(names)}",
            f"one {what}",
            f"set data.columns: {{{field}: {names[0]}}}, or another of {', '.join(names)}",
        )
    return next(iter(values.values()))


def _answer(flat: Fields, name: str) -> Any:
    """The answer under a name, which may be a list of one."""
    value = flat[name]
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    if isinstance(value, list):
        raise SeveralValues(
            name,
            f"{len(value)} values: {', '.join(map(str, value[:5]))}",
            "one value",
            f"to learn all of them as one answer (`a, b`), set data.columns: {{completion: {{{name}}}}}; to learn the "
            f"first, set data.columns: {{completion: {name}.0}}",
        )
    return value


def _texts(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if isinstance(value, str) and value.strip()}


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _agreed(values: Sequence[Any], name: str) -> Any:
    """What all annotators say; their answers as lists in a list where they differ."""
    different = [value for number, value in enumerate(values) if value not in values[:number]]
    if len(different) > 1:
        return [item for value in different for item in (value if isinstance(value, list) else [value])]
    return different[0] if different else None


# Label Studio: data, and annotations with regions whose value is named by its type. https://labelstud.io/guide/export
REGIONS = ("choices", "text", "rating", "number", "taxonomy")


def _label_studio(row: Fields) -> dict[str, Any]:
    annotations = [each for each in row["annotations"] if isinstance(each, Mapping)]
    done = [each for each in annotations if not each.get("was_cancelled")]
    if not done:
        raise LeftOutRow("skipped" if annotations else "not annotated")
    done = [each for each in done if each.get("ground_truth")] or done
    found: dict[str, list[Any]] = {}
    for annotation in done:
        own: dict[str, list[Any]] = {}
        for region in _items(annotation.get("result")):
            value = region.get("value") if isinstance(region, Mapping) else None
            if isinstance(value, Mapping):
                own.setdefault(str(region.get("from_name")), []).append(value)
        for name, values in own.items():
            items = _region_items(values)
            if items:
                found.setdefault(name, []).append(items)
    if not found:
        raise LeftOutRow("without an answer")
    return {**row["data"], **{name: _agreed(values, name) for name, values in found.items()}, ANSWERS: list(found)}


def _region_items(regions: Sequence[Fields]) -> list[Any]:
    """What the regions of one name say; of spans one JSON object, with the texts of each label in their order.

    An answer about a part of a media file is passed over.
    """
    spans: dict[str, list[str]] = {}
    for region in regions:
        for label in _items(region.get("labels")):
            if "start" in region and isinstance(region.get("text"), str):
                spans.setdefault(str(label), []).append(region["text"])
    if spans:
        return [json.dumps(spans, ensure_ascii=False)]
    items = []
    for region in regions:
        kind = next((kind for kind in REGIONS if kind in region), None)
        if kind is not None and "start" not in region:
            items += region[kind] if isinstance(region[kind], list) else [region[kind]]
    return items


# JSON-MIN: the data, an id, the answers by their names, then who gave them. label_studio_sdk/converter
MIN_FACTS = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")


def _label_studio_min(row: Fields) -> dict[str, Any]:
    names = list(row)
    start = names.index("id") + 1 if "id" in names else 0
    answers = names[start : names.index("annotator")]
    answers = answers if start else [name for name in answers if not isinstance(row[name], str)]
    found: dict[str, Any] = {}
    for name in answers:
        value = row[name]
        regions = [value] if isinstance(value, Mapping) else value
        if isinstance(regions, list) and regions and all(isinstance(each, Mapping) for each in regions):
            value = _region_items(regions)
        if value not in (None, "", []):
            found[name] = value
    given = {name: value for name, value in row.items() if name not in (*answers, *MIN_FACTS, "id")}
    return {**found, ANSWERS: list(found), HELD: given}


def _answer_if_any(flat: Fields) -> Any:
    if not flat[ANSWERS]:
        raise LeftOutRow("without an answer")
    return _named_answer(flat)


def _named_answer(flat: Fields) -> Any:
    return _answer(flat, _only({name: name for name in flat[ANSWERS]}, "completion", "answer"))


# Argilla: fields, and responses by question. argilla/src/argilla/records/_resource.py
def _argilla(row: Fields) -> dict[str, Any]:
    found = {}
    for question, responses in row["responses"].items():
        given = [each for each in _items(responses) if isinstance(each, Mapping)]
        sent = [each["value"] for each in given if each.get("status", "submitted") == "submitted" and "value" in each]
        if sent:
            found[question] = _agreed(sent, question)
    if not found:
        raise LeftOutRow("no response")
    return {**row["fields"], **found, ANSWERS: list(found)}


# The same in columns, as datasets and tables have it: `label.responses` and `label.suggestion` beside the fields.
_COLUMN_OF = re.compile(r"\.(responses|suggestion)(\.\w+)?$")
_RECORD_FACTS = ("id", "_server_id", "external_id", "status", "inserted_at", "updated_at")


def _is_flat_argilla(row: Fields) -> bool:
    lists = [row[name] for name in row if name.endswith(".responses")]
    suggested = any(name.endswith(".suggestion") for name in row) and "status" in row
    return (bool(lists) or suggested) and all(value is None or isinstance(value, list) for value in lists)


def _flat_argilla(row: Fields) -> dict[str, Any]:
    found = {}
    for name in row:
        if name.endswith(".responses"):
            given = _items(row[name])
            states = _items(row.get(f"{name}.status")) or ["submitted"] * len(given)
            sent = [value for value, state in zip(given, states, strict=False) if state == "submitted"]
            if sent:
                found[name.removesuffix(".responses")] = _agreed(sent, name)
    facts = {name for name in row if _COLUMN_OF.search(name) or name.startswith(("metadata.", "vectors."))}
    given = {name: value for name, value in row.items() if name not in {*facts, *_RECORD_FACTS}}
    return {**found, ANSWERS: list(found), HELD: given}


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
    options = [option for option in _items(row.get("options")) if isinstance(option, Mapping)]
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
        _label_studio,
        {"prompt": lambda flat: _only(_texts(flat[HELD]), "prompt", "text in data"), "completion": _named_answer},
        "data",
    ),
    Export(
        "Argilla",
        "the field is the prompt, the response its answer",
        "prompt_completion",
        lambda row: isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), Mapping),
        _argilla,
        {"prompt": lambda flat: _only(_texts(flat[HELD]), "prompt", "field of text"), "completion": _named_answer},
        "fields",
    ),
    Export(
        "Argilla's columns",
        "the text is the prompt, the response its answer",
        "prompt_completion",
        _is_flat_argilla,
        _flat_argilla,
        {"prompt": lambda flat: _only(_texts(flat[HELD]), "prompt", "column of text"), "completion": _answer_if_any},
    ),
    Export(
        "Label Studio (JSON-MIN)",
        "the text is the prompt, the annotation its answer (spans: a JSON object of texts by label)",
        "prompt_completion",
        lambda row: row.keys() >= {"annotator", "annotation_id"},
        _label_studio_min,
        {"prompt": lambda flat: _only(_texts(flat[HELD]), "prompt", "text"), "completion": _answer_if_any},
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
)
EXPORTS_BY_NAME = {export.name: export for export in EXPORTS}
