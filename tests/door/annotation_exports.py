"""Exports of annotation tools."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.door.column_files import write_json_lines
from tests.door.content import ALL_TICKETS, LABELS, TICKETS, Ticket, questions
from tests.door.real_file import RealFile

SKIPPED = 2
USER = "4f9c1b1e-6f0d-4a5e-9d7a-2f1b8a6c3d21"


def _label_studio_task(
    number: int, data: dict[str, str], result: Sequence[dict[str, Any]], *, skipped: bool
) -> dict[str, Any]:
    """One task with one annotation; a skipped one has no result and is cancelled."""
    created = f"2026-03-02T10:{number % 60:02}:04.512334Z"
    annotation = {
        "id": 900 + number,
        "completed_by": 1,
        "result": [] if skipped else list(result),
        "was_cancelled": skipped,
        "ground_truth": False,
        "created_at": created,
        "updated_at": created,
        "draft_created_at": None,
        "lead_time": 4.281,
        "prediction": {},
        "result_count": 0 if skipped else len(result),
        "unique_id": str(uuid.UUID(int=number)),
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": number,
        "project": 3,
        "updated_by": 1,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
    }
    return {
        "id": number,
        "annotations": [annotation],
        "file_upload": "5b3c9c2a-tickets.csv",
        "drafts": [],
        "predictions": [],
        "data": data,
        "meta": {},
        "created_at": "2026-03-01T09:00:00.000001Z",
        "updated_at": created,
        "inner_id": number,
        "total_annotations": 0 if skipped else 1,
        "cancelled_annotations": int(skipped),
        "total_predictions": 0,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 3,
        "updated_by": 1,
        "comment_authors": [],
    }


def _region(from_name: str, to_name: str, kind: str, value: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "value": value,
        "id": f"r{number:09}",
        "from_name": from_name,
        "to_name": to_name,
        "type": kind,
        "origin": "manual",
    }


def label_studio_choices(folder: Path) -> None:
    """Label Studio 1.20, export "JSON", template Text Classification: the label is in value.choices, a list.

    https://labelstud.io/guide/task_format.html; the order of the keys as in
    https://github.com/HumanSignal/label-studio/issues/6027. Two tasks were skipped.
    """
    tasks = [
        _label_studio_task(
            number,
            {"text": ticket.body},
            [_region("sentiment", "text", "choices", {"choices": [ticket.label]}, number)],
            skipped=number in (4, 9),
        )
        for number, ticket in enumerate(ALL_TICKETS, 1)
    ]
    text = json.dumps(tasks, ensure_ascii=False, separators=(",", ":"))
    (folder / "project-3-at-2026-03-02-10-44-1b2c3d4e.json").write_text(text, encoding="utf-8")


def label_studio_answers(folder: Path) -> None:
    """Label Studio 1.20, export "JSON", template Supervised LLM Fine-tuning: the answer in value.text, a list.

    https://labelstud.io/templates/generative-supervised-llm.html (data.prompt, a TextArea named ``instruction``). Two
    tasks were skipped.
    """
    tasks = [
        _label_studio_task(
            number,
            {"prompt": question},
            [_region("instruction", "prompt", "textarea", {"text": [answer]}, number)],
            skipped=number in (4, 9),
        )
        for number, (question, answer) in enumerate(questions(), 1)
    ]
    (folder / "project-4.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")


def label_studio_min(folder: Path) -> None:
    """Label Studio 1.20, export "JSON-MIN": a flat row for each annotation.

    https://labelstud.io/guide/export.html#JSON-MIN, and tests/data/test_export_json_min in label-studio-converter
    """
    rows = [
        {
            "text": ticket.body,
            "id": number,
            "sentiment": ticket.label,
            "annotator": 1,
            "annotation_id": 900 + number,
            "created_at": "2026-03-02T10:00:04.512334Z",
            "updated_at": "2026-03-02T10:00:04.512334Z",
            "lead_time": 4.281,
        }
        for number, ticket in enumerate(ALL_TICKETS, 1)
    ]
    (folder / "project-3-min.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def argilla_records(folder: Path) -> None:
    """Argilla 2.8, ``dataset.records(with_responses=True).to_json(path)``: one line, letters escaped.

    argilla/src/argilla/records/_io/_json.py and _resource.py (``Record.to_dict``): fields, suggestions by question, and
    a list of responses by question. The last two records have a suggestion that nobody has answered.
    """
    rows = [
        {
            "id": str(uuid.UUID(int=1000 + number)),
            "fields": {"text": ticket.body},
            "metadata": {"language": ticket.language},
            "suggestions": {"label": {"value": LABELS[number % 4], "score": 0.62, "agent": "teapot-classifier"}},
            "responses": (
                {"label": [{"value": ticket.label, "user_id": USER}]} if number < len(ALL_TICKETS) - SKIPPED else {}
            ),
            "vectors": {},
            "_server_id": str(uuid.UUID(int=5000 + number)),
        }
        for number, ticket in enumerate(ALL_TICKETS)
    ]
    (folder / "records.json").write_text(json.dumps(rows))


def _write_doccano(folder: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    pd.DataFrame(rows).to_json(folder / "all.jsonl", orient="records", force_ascii=False, lines=True)


def doccano_categories(folder: Path) -> None:
    r"""doccano 1.8, text classification as JSONL: labels in a list, comments in a list, ``/`` escaped by pandas.

    backend/data_export/pipeline/{factories,formatters,writers}.py. Two texts were confirmed without a label.
    """
    _write_doccano(
        folder,
        [
            {
                "id": number,
                "text": ticket.body + (" http://shop.example/faq" if number == 1 else ""),
                "label": [] if number in (4, 9) else [ticket.label],
                "Comments": ["not sure"] if number == 12 else [],
            }
            for number, ticket in enumerate(ALL_TICKETS, 1)
        ],
    )


def doccano_texts(folder: Path) -> None:
    """doccano 1.8, sequence to sequence as JSONL: the answers in a list named ``label``.

    backend/data_export/pipeline/factories.py: mapper_seq2seq names the texts ``label``.
    """
    _write_doccano(
        folder,
        [
            {"id": number, "text": question, "label": [answer], "Comments": []}
            for number, (question, answer) in enumerate(questions(), 1)
        ],
    )


def _prodigy_task(number: int, ticket: Ticket, answer: str, **fields: Any) -> dict[str, Any]:
    return {
        "text": ticket.body,
        "meta": {"language": ticket.language},
        "_input_hash": -1530009927 + number * 7919,
        "_task_hash": 340967702 - number * 104729,
        **fields,
        "answer": answer,
        "_timestamp": 1772445600 + number,
        "_annotator_id": "2026-03-02_10-00-00",
        "_session_id": "2026-03-02_10-00-00",
    }


def prodigy_binary(folder: Path) -> None:
    """Prodigy 1.18, ``textcat.teach`` and ``textcat.manual`` with one label, then ``db-out``: accept, reject or ignore.

    https://prodigy.ai/docs/api-interfaces#classification; a rejected label is not the text's label:
    https://github.com/explosion/prodigy-openai-recipes/pull/54. Every fourth is rejected, two are ignored.
    """
    rows = []
    for number, ticket in enumerate(ALL_TICKETS):
        answer = "ignore" if number in (5, 9) else "reject" if number % 4 == 3 else "accept"
        label = LABELS[(LABELS.index(ticket.label) + (answer == "reject")) % 4]
        rows.append(_prodigy_task(number, ticket, answer, label=label, score=0.41, spans=[], _view_id="classification"))
    write_json_lines(folder / "tickets.jsonl", rows)


def prodigy_choice(folder: Path) -> None:
    """Prodigy 1.18, ``textcat.manual --exclusive``, then ``db-out``: the chosen option's id in ``accept``, a list.

    https://prodigy.ai/docs/api-interfaces#choice. Two tasks were ignored, and have an empty list.
    """
    options = [{"id": label, "text": label} for label in LABELS]
    rows = [
        _prodigy_task(
            number,
            ticket,
            "ignore" if number in (5, 9) else "accept",
            options=options,
            _view_id="choice",
            config={"choice_style": "single"},
            accept=[] if number in (5, 9) else [ticket.label],
        )
        for number, ticket in enumerate(ALL_TICKETS)
    ]
    write_json_lines(folder / "tickets.jsonl", rows)


def _export(write: Callable[[Path], None], path: str, rows: int, **expected: Any) -> RealFile:
    found = {"prompt": TICKETS[0].body, "answer": TICKETS[0].label, "says": ("billing",)}
    return RealFile(write=write, path=path, rows=rows, shape="prompt_completion", **{**found, **expected})


_ALL = len(ALL_TICKETS)
_ANSWER = {"prompt": questions()[0][0], "answer": questions()[0][1], "says": ()}
_REJECTED = sum(number % 4 == 3 for number in range(_ALL))

ANNOTATION_EXPORTS = (
    _export(
        label_studio_choices,
        "project-3-at-2026-03-02-10-44-1b2c3d4e.json",
        _ALL - SKIPPED,
        says=("Label Studio",),
        left_out={"skipped": SKIPPED},
    ),
    _export(
        label_studio_answers,
        "project-4.json",
        len(questions()) - SKIPPED,
        **{**_ANSWER, "says": ("Label Studio",)},
        left_out={"skipped": SKIPPED},
    ),
    _export(
        label_studio_min,
        "project-3-min.json",
        _ALL,
        says=("Label Studio (JSON-MIN)",),
    ),
    _export(argilla_records, "records.json", _ALL - SKIPPED, says=("Argilla",), left_out={"no response": SKIPPED}),
    _export(doccano_categories, "all.jsonl", _ALL - SKIPPED, says=("doccano",), left_out={"no label": SKIPPED}),
    _export(doccano_texts, "all.jsonl", len(questions()), **{**_ANSWER, "says": ("doccano",)}),
    _export(
        prodigy_binary,
        "tickets.jsonl",
        _ALL - SKIPPED - _REJECTED,
        says=("Prodigy",),
        left_out={"ignored": SKIPPED, "rejected": _REJECTED},
    ),
    _export(prodigy_choice, "tickets.jsonl", _ALL - SKIPPED, says=("Prodigy",), left_out={"ignored": SKIPPED}),
)
