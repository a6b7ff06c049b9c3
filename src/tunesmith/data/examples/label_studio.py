"""Exports of Label Studio: JSON, with regions by annotation, and JSON-MIN, a flat row for each annotation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.examples.column_names import is_label_name, propose_columns
from tunesmith.data.examples.export_layout import (
    ANSWERS,
    BEFORE,
    HELD,
    IN_PLACE,
    MAPPED,
    Fields,
    LeftOutRow,
    PerhapsAnswered,
    SeveralValues,
    agreed,
    answer_under,
    items_of,
    texts_in,
)
from tunesmith.data.examples.message import printable

# Label Studio: data, and annotations with regions whose value is named by its type. https://labelstud.io/guide/export
REGIONS = ("choices", "text", "rating", "number", "taxonomy")


def label_studio_fields(row: Fields) -> dict[str, Any]:
    """The data of a task with the answers of its annotations.

    Raises:
        LeftOutRow: nobody has answered the task.
    """
    annotations = [each for each in row["annotations"] if isinstance(each, Mapping)]
    done = [each for each in annotations if not each.get("was_cancelled")]
    if not done:
        raise LeftOutRow("skipped" if annotations else "not annotated")
    done = [each for each in done if each.get("ground_truth")] or done
    found: dict[str, list[Any]] = {}
    spans: dict[str, list[Any]] = {}
    for annotation in done:
        own: dict[str, list[Any]] = {}
        for region in items_of(annotation.get("result")):
            value = region.get("value") if isinstance(region, Mapping) else None
            if isinstance(value, Mapping):
                own.setdefault(str(region.get("from_name")), []).append(value)
        for name, values in own.items():
            if items := _said(values):
                found.setdefault(name, []).append(items)
            elif items := _spans(values):
                spans.setdefault(name, []).append(items)
    answers = found or spans  # spans are the answer where there is no other
    if not answers:
        raise LeftOutRow("without an answer")
    marked, said = ({name: agreed(each[name], name) for name in each} for each in (spans, answers))
    return {**marked, **row["data"], **said, ANSWERS: list(answers)}


def _spans(regions: Sequence[Fields]) -> list[Any]:
    """The spans of one name as one JSON object, with the texts of each label in their order."""
    spans: dict[str, list[str]] = {}
    for region in regions:
        for label in items_of(region.get("labels")):
            if "start" in region and isinstance(region.get("text"), str):
                spans.setdefault(str(label), []).append(region["text"])
    return [json.dumps(spans, ensure_ascii=False)] if spans else []


def _said(regions: Sequence[Fields]) -> list[Any]:
    """What the regions of one name say. An answer about a part of a text or of a media file is passed over."""
    items = []
    for region in regions:
        kind = next((kind for kind in REGIONS if kind in region), None)
        if kind is not None and "start" not in region:
            items += region[kind] if isinstance(region[kind], list) else [region[kind]]
    return items


# JSON-MIN: columns of the data and of the answers, in no sure order, and facts. label_studio_sdk/converter
MIN_FACTS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")
MIN_TEXTS = ("text", "prompt", "question", "query", "sentence", "document", "article")  # such an answer is no choice


def is_regions(value: object) -> bool:
    """Whether a column of JSON-MIN holds an answer as regions, which are an object or a list of objects."""
    regions = [value] if isinstance(value, Mapping) else items_of(value)
    return bool(regions) and all(isinstance(each, Mapping) and {*each} & {*REGIONS, "labels"} for each in regions)


def _own_columns(row: Fields) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in MIN_FACTS}


def json_min_fields(row: Fields) -> dict[str, Any]:
    """The answers of a row of JSON-MIN, with the columns that are no facts about the annotation."""
    own = _own_columns(row)
    said = {}
    for name, value in own.items():
        if is_regions(value):
            regions = [value] if isinstance(value, Mapping) else value
            said[name] = _said(regions) or _spans(regions)
    return {**said, HELD: {**own, **said}, BEFORE: _before_the_id([*row])}


def _before_the_id(names: Sequence[str]) -> list[str]:
    """The columns before the id, where all are in the tool's order: the data, the id, the answers, then the facts."""
    if "id" not in names:
        return []
    at = names.index("id")
    data, rest = names[:at], names[at + 1 :]
    facts = rest[rest.index("annotator") :] if "annotator" in rest else []
    ordered = facts[:2] == ["annotator", "annotation_id"] and {*facts} <= {*MIN_FACTS} and not {*data} & {*MIN_FACTS}
    return [*data] if ordered else []


def _min_columns(flat: Fields) -> tuple[str | None, list[str]]:
    """The column of the text, if it can be told, and those that may be answers."""
    held, before = flat[HELD], flat[BEFORE]
    if {*IN_PLACE["prompt"]} & flat[MAPPED]:
        return None, [*held]
    named = [name for name in held if name.strip().casefold() in MIN_TEXTS]
    texts = named or [name for name, value in held.items() if isinstance(value, str) or value is None]
    text = texts[0] if len(texts) == 1 and (texts[0] in before or not {*before} & {*held}) else None
    return text, [name for name in held if name != text]


def _min_unclear(flat: Fields) -> SeveralValues:
    """That the text or the answer is a choice: both keys are named at once."""
    text, names = _min_columns(flat)
    held, behind = flat[HELD], [name for name in names if name not in flat[BEFORE]]
    text = text or max(texts_in(held), key=lambda name: (name in flat[BEFORE], len(held[name])), default=names[0])
    answer = next((name for name in (*behind, *names) if name != text and held[name] not in (None, "", [])), "<column>")
    written = f"{{{printable(answer)}}}" if isinstance(held.get(answer), list) else printable(answer)
    others = ", ".join(map(printable, held))
    return SeveralValues(
        "prompt and completion",
        f"the columns {others}",
        "one text and one answer",
        f"set data.columns: {{prompt: {printable(text)}, completion: {written}}}, or other columns of {others}",
    )


def json_min_prompt(flat: Fields) -> Any:
    """The text of a row.

    Raises:
        SeveralValues: it may be one of several columns.
    """
    text, _ = _min_columns(flat)
    if text is None:
        raise _min_unclear(flat)
    return flat[text]


def json_min_answer(flat: Fields) -> Any:
    """The answer of a row.

    Raises:
        LeftOutRow: there is none, or it stands among the columns of the data, whose annotation may be empty.
        SeveralValues: it may be one of several columns.
    """
    text, answers = _min_columns(flat)
    if len(answers) > 1:
        raise _min_unclear(flat)
    if not answers or flat[HELD][answers[0]] in (None, "", []):
        raise LeftOutRow("without an answer")
    if text in flat[BEFORE] and answers[0] in flat[BEFORE]:
        raise PerhapsAnswered("without an answer behind the id", answers[0], _min_unclear(flat).remedy)
    return answer_under(flat, answers[0])


def answers_stand_in_data(rows: Sequence[Fields]) -> bool:
    """Whether the columns hold a question and its answer, which annotations only judge."""
    pair = propose_columns([_own_columns(row) for row in rows], ("prompt", "completion"))
    return pair is not None and not is_label_name(pair.columns["completion"])
