"""JSON as programs write it, when it is neither one array of rows nor one object a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.door.content import ALL_TICKETS, TICKETS, questions, records
from tests.door.real_file import RealFile

PROMPTS = [{"instruction": question, "input": "", "output": answer} for question, answer in questions()]
HELD_OUT = 4


def json_under_data(folder: Path) -> None:
    """A web API's answer (Directus, Strapi and others): the rows under ``data``, facts about them beside it."""
    content = {"data": records(), "meta": {"total_count": len(ALL_TICKETS), "page": 1}}
    (folder / "response.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def json_under_rows(folder: Path) -> None:
    """The hub's dataset viewer, ``GET /rows``: features, and each row under ``row`` with its number.

    https://huggingface.co/docs/dataset-viewer/rows
    """
    content = {
        "features": [
            {"feature_idx": number, "name": name, "type": {"dtype": "string", "_type": "Value"}}
            for number, name in enumerate(("text", "label"))
        ],
        "rows": [{"row_idx": number, "row": row, "truncated_cells": []} for number, row in enumerate(records())],
        "num_rows_total": len(ALL_TICKETS),
        "num_rows_per_page": 100,
        "partial": False,
    }
    (folder / "rows.json").write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def json_train_test(folder: Path) -> None:
    """Both splits in one file, under ``train`` and ``test``."""
    content = {"train": PROMPTS[HELD_OUT:], "test": PROMPTS[:HELD_OUT]}
    (folder / "dataset.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def json_pretty_lines(folder: Path) -> None:
    """Objects behind one another, each over several lines, as ``jq .`` and many log tools print a .jsonl file.

    https://jqlang.org/manual/#invoking-jq (without ``--compact-output``)
    """
    text = "".join(json.dumps(row, indent=2, ensure_ascii=False) + "\n" for row in PROMPTS)
    (folder / "faq.jsonl").write_text(text, encoding="utf-8")


def json_one_line(folder: Path) -> None:
    """``json.dump(rows, file)``: the whole array on one line, every letter that is not ASCII escaped."""
    (folder / "faq.json").write_text(json.dumps(PROMPTS))


def json_columns(folder: Path) -> None:
    """A list for each column, as ``Dataset.to_dict()`` and ``DataFrame.to_dict("list")`` give it.

    https://huggingface.co/docs/datasets/package_reference/main_classes#datasets.Dataset.to_dict
    """
    rows = records()
    content = {name: [row[name] for row in rows] for name in ("text", "label")}
    (folder / "tickets.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def pandas_to_json(folder: Path) -> None:
    """pandas 3.1, ``DataFrame.to_json(path)``: an object for each column, with the index as keys.

    https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.to_json.html (``orient="columns"`` is the default)
    """
    import pandas as pd

    pd.DataFrame(records()).to_json(folder / "tickets.json")


def json_lines_named_json(folder: Path) -> None:
    """One object a line in a file named .json, as ``Dataset.to_json`` writes it and many hub datasets name it.

    https://huggingface.co/docs/datasets/loading#json
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PROMPTS)
    (folder / "train.json").write_text(text, encoding="utf-8")


def json_nan(folder: Path) -> None:
    """``json.dump`` of a data frame's records: a missing number is NaN, which is not JSON.

    https://docs.python.org/3/library/json.html (``allow_nan=True`` is the default)
    """
    rows = [{**row, "score": float("nan") if number % 5 == 2 else 0.5} for number, row in enumerate(PROMPTS)]
    (folder / "faq.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def _tickets(write: Callable[[Path], None], path: str, **expected: Any) -> RealFile:
    return RealFile(
        write,
        path,
        len(ALL_TICKETS),
        "prompt_completion",
        TICKETS[0].body,
        "billing",
        {"prompt": "text", "completion": "label"},
        **expected,
    )


def _prompts(write: Callable[[Path], None], path: str, rows: int = len(PROMPTS), **expected: Any) -> RealFile:
    return RealFile(write, path, rows, "alpaca", PROMPTS[-1]["instruction"], PROMPTS[-1]["output"], **expected)


JSON_FILES = (
    _tickets(json_under_data, "response.json", says=("data",)),
    _tickets(json_under_rows, "rows.json", says=("rows",)),
    _prompts(json_train_test, "dataset.json", len(PROMPTS) - HELD_OUT, says=("train", "test")),
    _prompts(json_pretty_lines, "faq.jsonl"),
    _prompts(json_one_line, "faq.json"),
    _tickets(json_columns, "tickets.json"),
    _tickets(pandas_to_json, "tickets.json"),
    _prompts(json_lines_named_json, "train.json"),
    _prompts(json_nan, "faq.json", says=("NaN",)),
)
