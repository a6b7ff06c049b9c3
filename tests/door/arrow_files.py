"""Parquet files and saved datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.door.content import ALL_TICKETS, LABELS, TICKETS
from tests.door.real_file import RealFile

NULLS = 3


def _dataset(count: int = len(ALL_TICKETS)) -> Any:
    """The first tickets as a `datasets` table whose labels are a ClassLabel."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
    rows = {
        "text": [ticket.body for ticket in ALL_TICKETS[:count]],
        "label": [LABELS.index(ticket.label) for ticket in ALL_TICKETS[:count]],
    }
    return Dataset.from_dict(rows, features=features)


def parquet_class_labels(folder: Path) -> None:
    """datasets 5.2, ``Dataset.to_parquet``: labels are integers, their names are in the schema's metadata.

    https://huggingface.co/docs/datasets/about_dataset_features (the key ``huggingface`` holds the features as JSON)
    """
    _dataset().to_parquet(folder / "train-00000-of-00001.parquet")


def parquet_integers(folder: Path) -> None:
    """pandas 3.1, ``DataFrame.to_parquet``: plain integers as labels, and rows without one.

    A column of integers with gaps is floating point in pandas, so a label is 2.0.
    """
    import pandas as pd

    frame = pd.DataFrame([(t.body, LABELS.index(t.label)) for t in ALL_TICKETS], columns=["text", "label"])
    frame["label"] = frame["label"].astype(float)
    frame.loc[frame.index[5 : 5 + NULLS], "label"] = None
    frame.to_parquet(folder / "tickets.parquet")


def saved_dataset(folder: Path) -> None:
    """datasets 5.2, ``DatasetDict.save_to_disk``: a folder with a split each, and ClassLabel.

    https://huggingface.co/docs/datasets/process#save
    """
    from datasets import DatasetDict

    whole = _dataset()
    size = len(ALL_TICKETS)
    splits: dict[Any, Any] = {"train": whole.select(range(size - 8)), "test": whole.select(range(size - 8, size))}
    DatasetDict(splits).save_to_disk(folder / "tickets")


def _labelled(write: Callable[[Path], None], path: str, rows: int, answer: str, **expected: Any) -> RealFile:
    return RealFile(
        write,
        path,
        rows,
        "prompt_completion",
        TICKETS[0].body,
        answer,
        {"prompt": "text", "completion": "label"},
        **expected,
    )


ARROW_FILES = (
    _labelled(parquet_class_labels, "train-00000-of-00001.parquet", len(ALL_TICKETS), "billing", says=("billing",)),
    _labelled(parquet_integers, "tickets.parquet", len(ALL_TICKETS) - NULLS, "0", left_out={"no label": NULLS}),
    _labelled(saved_dataset, "tickets", len(ALL_TICKETS) - 8, "billing", says=("billing",)),
)
