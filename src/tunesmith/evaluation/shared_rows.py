"""Which rows several targets can be compared on: those that all of them hold out.

A row is the same if its whole content is, or if it stands on the same line of the same file: two runs may put other
instructions around one row. This module does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey

Key = tuple[int, int, int]  # the fingerprint of a row's content, and how many rows before it have the same one
_Place = tuple[str, int]  # the sha256 of a file, and a line of it


@dataclass(frozen=True, slots=True)
class JudgingRows:
    """The rows of one target that may judge: the number of each in the survey, by its key, in their order."""

    survey: Survey
    numbers: Mapping[Key, int]


def rows_that_judge(survey: Survey, judges: np.ndarray, known: Mapping[_Place, Key] | None = None) -> JudgingRows:
    """The rows of a target with their keys.

    Args:
        survey: of its rows.
        judges: bool [rows]: whether a row may judge.
        known: rows of another target by their place, whose keys are taken over.
    """
    scan, seen = survey.scan, Counter[tuple[int, int]]()
    places, own = _places(survey), np.flatnonzero(judges).tolist()
    # 1. Known keys come first, each for one row: no row may take the key of another one.
    keys: dict[int, Key] = {}
    taken: set[Key] = set()
    for number in own:
        key = (known or {}).get(places.get(number, ("", 0)))
        if key is not None and key not in taken:
            keys[number] = key
            taken.add(key)
    # 2. The others count the rows of their content, past the keys that are taken.
    for number in own:
        content = (int(scan.content[number, 0]), int(scan.content[number, 1]))
        while number not in keys:
            key = (*content, seen[content])
            seen[content] += 1
            if key not in taken:
                keys[number] = key
    return JudgingRows(survey, {keys[number]: number for number in own})


def by_place(rows: JudgingRows) -> dict[_Place, Key]:
    """The keys by the place of each row, where the file of a row is known."""
    places = _places(rows.survey)
    return {places[number]: key for key, number in rows.numbers.items() if number in places}


def _places(survey: Survey) -> dict[int, _Place]:
    """The file and the line of each row, by its number."""
    scan = survey.scan
    digests = {name: digest for each in scan.sources for name, digest in each.reader.files()}
    files = [digests.get(name) for name in scan.files]
    pairs = zip(scan.file.tolist(), scan.line.tolist(), strict=True)
    found = ((number, files[int(file)], int(line)) for number, (file, line) in enumerate(pairs))
    return {number: (digest, line) for number, digest, line in found if digest is not None}


def shared_keys(targets: Sequence[JudgingRows], *, limit: int | None, seed: int) -> list[Key]:
    """The rows that all targets have, in the order of the first one; at most ``limit`` of them, drawn by seed."""
    first, *others = targets
    keys = [key for key in first.numbers if all(key in other.numbers for other in others)]
    if limit is None or len(keys) <= limit:
        return keys
    drawn = np.random.default_rng(seed).choice(len(keys), limit, replace=False)
    return [keys[number] for number in sorted(drawn.tolist())]


def held_out_alone(rows: JudgingRows, keys: Sequence[Key]) -> Survey:
    """The survey with these rows held out, and no other row on any side."""
    outcome = np.full(len(rows.survey.outcome), OUTCOME["left_out"], rows.survey.outcome.dtype)
    outcome[[rows.numbers[key] for key in keys]] = OUTCOME["held_out"]
    return replace(rows.survey, outcome=outcome, findings=[])
