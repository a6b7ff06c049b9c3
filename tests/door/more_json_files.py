"""More layouts of JSON: those of pandas, rows under their ids, and exports of annotation tools in other forms."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.door.annotation_exports import SKIPPED, USER
from tests.door.column_files import write_json_lines
from tests.door.content import ALL_TICKETS, CITIES, LABELS, TICKETS, questions, records
from tests.door.quoted_tables import csv_text
from tests.door.real_file import RealFile

FACTS = {
    "annotator": 1,
    "annotation_id": 900,
    "created_at": "2026-03-02T10:00:04.512334Z",
    "updated_at": "2026-03-02T10:00:04.512334Z",
    "lead_time": 4.281,
}


def _pandas(folder: Path, orient: str, **settings: Any) -> None:
    import pandas as pd

    pd.DataFrame(records()).to_json(folder / "tickets.json", orient=orient, **settings)  # type: ignore[call-overload]


def pandas_split(folder: Path) -> None:
    """pandas 3.1, ``to_json(orient="split")``: columns, index and data.

    https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.to_json.html
    """
    _pandas(folder, "split")


def pandas_by_index(folder: Path) -> None:
    """pandas 3.1, ``to_json(orient="index")``: a row under each number."""
    _pandas(folder, "index")


def pandas_table(folder: Path) -> None:
    """pandas 3.1, ``to_json(orient="table")``: a schema, and the rows under ``data``.

    https://specs.frictionlessdata.io/table-schema
    """
    _pandas(folder, "table")


def rows_under_ids(folder: Path) -> None:
    """Firebase's Realtime Database, Export JSON: rows under the keys that ``push`` made.

    https://firebase.google.com/docs/database/web/lists-of-data
    """
    content = {f"-OIz{number:04}aBcDeFgHiJkL": row for number, row in enumerate(records())}
    (folder / "teapot-export.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def json_with_mark(folder: Path) -> None:
    """C# or PowerShell, ``File.WriteAllText(path, json, Encoding.UTF8)``: UTF-8 with a byte order mark.

    https://learn.microsoft.com/en-us/dotnet/api/system.text.encoding.utf8
    """
    (folder / "tickets.json").write_text("\ufeff" + json.dumps(records(), ensure_ascii=False), encoding="utf-8")


def bigquery_ndjson(folder: Path) -> None:
    """BigQuery, ``EXPORT DATA`` as JSON with GZIP: one object a line in numbered shards.

    https://cloud.google.com/bigquery/docs/exporting-data
    """
    rows = records()
    for number, part in enumerate((rows[:20], rows[20:])):
        lines = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in part)
        path = folder / "export" / f"tickets-{number:012}.ndjson.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def label_studio_csv(folder: Path) -> None:
    """Label Studio 1.20, export "CSV": the columns of JSON-MIN, with a label as it is.

    https://labelstud.io/guide/export.html#CSV
    """
    rows = [("annotation_id", "annotator", "created_at", "id", "lead_time", "sentiment", "text", "updated_at")]
    for number, ticket in enumerate(ALL_TICKETS, 1):
        at = FACTS["created_at"]
        rows.append((str(900 + number), "1", str(at), str(number), "4.281", ticket.label, ticket.body, str(at)))
    (folder / "project-3.csv").write_text(csv_text(rows, ","), encoding="utf-8", newline="")


def _spans(text: str, city: str) -> list[dict[str, Any]]:
    start = text.index(city)
    return [{"start": start, "end": start + len(city), "text": city, "labels": ["CITY"]}]


def label_studio_spans(folder: Path) -> None:
    """Label Studio 1.20, export "JSON", template Named Entity Recognition: regions with start, end and labels.

    https://labelstud.io/templates/named_entity
    """
    tasks = []
    for number, (question, _) in enumerate(questions()):
        result = [
            {"value": span, "id": f"r{number}", "from_name": "label", "to_name": "text", "type": "labels"}
            for span in _spans(question, CITIES[number // 3])
        ]
        annotation = {"id": number, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False}
        tasks.append({"id": number, "annotations": [annotation], "predictions": [], "data": {"text": question}})
    (folder / "project-5.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")


def label_studio_min_spans(folder: Path) -> None:
    """Label Studio 1.20, export "JSON-MIN", template Named Entity Recognition: a list of spans in a column.

    https://labelstud.io/guide/export.html#JSON-MIN
    """
    rows = [
        {"text": question, "id": number, "label": _spans(question, CITIES[number // 3]), **FACTS}
        for number, (question, _) in enumerate(questions())
    ]
    (folder / "project-5-min.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def doccano_labels(folder: Path) -> None:
    """doccano 1.5 and before, text classification as JSONL: the labels under ``labels``, with the annotator.

    https://github.com/doccano/doccano/issues/1287
    """
    rows: list[dict[str, object]] = [
        {"id": number, "text": ticket.body, "meta": {}, "annotation_approver": None, "labels": [ticket.label]}
        for number, ticket in enumerate(ALL_TICKETS, 1)
    ]
    write_json_lines(folder / "file.json1.jsonl", rows)


def doccano_columns(folder: Path) -> None:
    """doccano 1.8, text classification as CSV: id, text and the labels, joined by ``#`` where there are several.

    backend/data_export/pipeline/factories.py (JoinedCategoryFormatter)
    """
    rows = [("id", "text", "label")]
    rows += [(str(number), ticket.body, ticket.label) for number, ticket in enumerate(ALL_TICKETS, 1)]
    (folder / "all.csv").write_text(csv_text(rows, ","), encoding="utf-8", newline="")


def _argilla_columns() -> list[dict[str, Any]]:
    """Records of Argilla with a column for each of their parts; the last two have no response."""
    rows = []
    for number, ticket in enumerate(ALL_TICKETS):
        answered = number < len(ALL_TICKETS) - SKIPPED
        rows.append(
            {
                "id": str(uuid.UUID(int=1000 + number)),
                "status": "completed" if answered else "pending",
                "_server_id": str(uuid.UUID(int=5000 + number)),
                "text": ticket.body,
                "label.responses": [ticket.label] if answered else None,
                "label.responses.users": [USER] if answered else None,
                "label.responses.status": ["submitted"] if answered else None,
                "label.suggestion": LABELS[number % 4],
                "label.suggestion.score": 0.62,
                "label.suggestion.agent": "teapot-classifier",
            }
        )
    return rows


def argilla_flat(folder: Path) -> None:
    """Argilla 2.8, ``dataset.records.to_list(flatten=True)``, written as JSON.

    argilla/src/argilla/records/_io/_generic.py
    """
    (folder / "records.json").write_text(json.dumps(_argilla_columns()))


def argilla_datasets(folder: Path) -> None:
    """Argilla 2.8, ``dataset.records.to_datasets().to_parquet(path)``: the same columns in a table.

    argilla/src/argilla/records/_io/_datasets.py
    """
    from datasets import Dataset

    Dataset.from_list(_argilla_columns()).to_parquet(folder / "records.parquet")


def _tickets(write: Callable[[Path], None], path: str = "tickets.json", **expected: Any) -> RealFile:
    found: dict[str, Any] = {"rows": len(ALL_TICKETS), "columns": {"prompt": "text", "completion": "label"}}
    found |= {"prompt": TICKETS[0].body, "answer": TICKETS[0].label}
    return RealFile(write=write, path=path, shape="prompt_completion", **{**found, **expected})


_EXPORT: dict[str, Any] = {"columns": {}}
_SPANS: dict[str, Any] = {
    "rows": len(questions()),
    "prompt": questions()[0][0],
    "answer": '{"CITY": ["Berlin"]}',
    "columns": {},
    "says": ("spans",),
}

MORE_JSON_FILES = (
    _tickets(pandas_split, says=("as pandas splits them",)),
    _tickets(pandas_by_index, says=("under each key",)),
    _tickets(pandas_table, says=("the key data",)),
    _tickets(rows_under_ids, "teapot-export.json", says=("under each key",)),
    _tickets(json_with_mark),
    _tickets(bigquery_ndjson, "export"),
    _tickets(label_studio_csv, "project-3.csv", says=("JSON-MIN",), **_EXPORT),
    _tickets(label_studio_spans, "project-5.json", **_SPANS),
    _tickets(label_studio_min_spans, "project-5-min.json", **_SPANS),
    _tickets(doccano_labels, "file.json1.jsonl", says=("doccano",), **_EXPORT),
    _tickets(doccano_columns, "all.csv"),
    _tickets(
        argilla_flat,
        "records.json",
        rows=len(ALL_TICKETS) - SKIPPED,
        says=("Argilla's columns",),
        left_out={"without an answer": SKIPPED},
        **_EXPORT,
    ),
    _tickets(
        argilla_datasets,
        "records.parquet",
        rows=len(ALL_TICKETS) - SKIPPED,
        says=("Argilla's columns",),
        left_out={"without an answer": SKIPPED},
        **_EXPORT,
    ),
)
