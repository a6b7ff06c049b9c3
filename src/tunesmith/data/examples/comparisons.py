"""Rows that compare two answers in columns of their own, and say in another which is better."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.examples.message import printable
from tunesmith.errors import DataError

WINNERS = frozenset(
    ("winner", "preference", "preferred", "choice", "better", "better_answer", "better_response", "chosen_answer")
)
STEMS = frozenset(
    ("", "answer", "response", "reply", "completion", "output", "text", "conversation", "summary", "generation")
)
QUESTIONS = ("prompt", "question", "query", "instruction", "input", "frage")
NEITHER = frozenset(("", "tie", "ties", "draw", "equal", "both", "neither", "none", "bothbad", "tiebothbad"))
_SIDE = re.compile(r"^(?P<stem>.*?)[ _-]?(?P<side>[ab12])$", re.IGNORECASE)
_SAID = re.compile(r"^(answer|response|reply|completion|output|model|assistant|text|conversation|summary)?([ab12])$")
SIDES = {"a": 0, "1": 0, "b": 1, "2": 1}


@dataclass(frozen=True, slots=True)
class TwoAnswers:
    """The columns of a row: of the two answers, and of what says which is better."""

    answers: tuple[str, str]
    winner: str


def comparison_of(row: Mapping[str, Any]) -> TwoAnswers | None:
    """The only pair of columns of answers (answer_a and answer_b, response1 and response2), with the winner's."""
    winners = [name for name in row if name.strip().casefold().replace(" ", "_") in WINNERS]
    sides: dict[str, dict[int, str]] = {}
    for name in row:
        found = _SIDE.match(name.strip())
        if found and found["stem"].casefold() in STEMS and isinstance(row[name], str | list):
            sides.setdefault(found["stem"].casefold(), {})[SIDES[found["side"].casefold()]] = name
    pairs = [(pair[0], pair[1]) for pair in sides.values() if len(pair) == 2]
    return TwoAnswers(pairs[0], winners[0]) if len(winners) == len(pairs) == 1 else None


def winner_of(value: object, found: TwoAnswers) -> int | None:
    """0 or 1: the better answer; None where it is neither. Raises ValueError for any other value."""
    said = re.sub(r"[^\w]|_", "", "" if value is None else str(value).casefold())
    for side, name in enumerate(found.answers):
        if said == re.sub(r"[^\w]|_", "", name.casefold()):
            return side
    if said in NEITHER:
        return None
    match = _SAID.match(said)
    if match is None or isinstance(value, bool):
        raise ValueError(str(value))
    return SIDES[match[2]]


def all_compare(rows: Sequence[Mapping[str, Any]]) -> TwoAnswers | None:
    """The columns, where all rows have them, whatever the winner's says."""
    found = [comparison_of(row) for row in rows]
    return found[0] if found and found[0] is not None and found.count(found[0]) == len(found) else None


def refuse_passing_over(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], where: str) -> None:
    """Raises DataError where one of two answers is taken whatever the winner's column says, or that cannot be read."""
    found = all_compare(rows)
    if found is None:
        return
    answers = " and ".join(map(printable, found.answers))
    said = [row[found.winner] for row in rows]
    try:
        sides = {winner_of(value, found) for value in said} - {None}
    except ValueError as error:
        raise DataError(
            f"the column {printable(found.winner)} says which of {answers} is better, in a way that is not known",
            where=where,
            why=f"it holds {printable(str(error))!r:.60}",
            remedy="write a, b or tie in it; or write the better answer to a column chosen and the other to rejected",
        ) from None
    taken = {field: column for field, column in columns.items() if column in found.answers}
    given = {field: found.answers.index(column) for field, column in taken.items()}
    agree = all(sides <= {1 - side if field == "rejected" else side} for field, side in given.items())
    if not taken or agree:
        return
    rest = ", ".join(f"{field}: {printable(column)}" for field, column in columns.items() if field not in taken)
    raise DataError(
        f"data.columns takes {' and '.join(taken)} from {' and '.join(map(printable, taken.values()))}, and the column "
        f"{printable(found.winner)} says of each row which answer is better",
        where=where,
        why="some of these answers are the worse ones",
        remedy=f"leave {' and '.join(taken)} out, so that {printable(found.winner)} decides"
        + (f": set data.columns: {{{rest}}}" if rest else "")
        + "; or give its column another name, if it says something else",
    )
