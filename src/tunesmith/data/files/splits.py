"""Which of a source's own splits serves which role, by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from tunesmith.data.examples.row_shapes import did_you_mean, listed
from tunesmith.errors import DataError

Role = Literal["train", "eval", "test"]
TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev", "eval", "evaluation")
TEST = ("test", "testing")
ORDER: dict[str, tuple[str, ...]] = {
    "train": TRAIN,
    "eval": (*VALIDATION, *TEST),
    "test": (*TEST, *VALIDATION),
}


def choose_split(names: Sequence[str], *, role: Role, asked: str | None, where: str) -> str:
    """The split for a role: the one asked for, else the first with a name for the role, else the only one there is.

    Raises:
        DataError: the split asked for is not there, or none of several is named for the role.
    """
    if asked is not None:
        if asked in names:
            return asked
        near = did_you_mean(asked, names)
        raise DataError(
            f"there is no split {asked!r}",
            where=where,
            why=f"the splits are {listed(names)}",
            remedy=f"did you mean {near}?" if near else "name one of them in `split`",
        )
    for name in ORDER[role]:
        if name in names:
            return name
    if len(names) == 1 and (role == "train" or names[0] not in TRAIN):
        return names[0]
    raise DataError(
        f"none of its splits is for {'training' if role == 'train' else 'evaluation'}",
        where=where,
        why=f"the splits are {listed(names)}",
        remedy=f"name one: {{path: {where}, split: {names[0]}}}",
    )


def held_out_split(names: Sequence[str]) -> str | None:
    """The split that a source holds out itself: its validation split before its test split."""
    return next((name for name in ORDER["eval"] if name in names), None)


def split_of_file(stem: str) -> str | None:
    """The split that a file's name begins with, such as test for test.csv or train-00000-of-00002.parquet."""
    first = re.split(r"[-_.]", stem.lower(), maxsplit=1)[0]
    return first if first in (*TRAIN, *VALIDATION, *TEST) else None
