"""What becomes of each row before it has tokens: taken out as the recipe's ``data.clean`` says, held out, or kept.

A pure function of a scan and the recipe. Rows are drawn by a hash of the seed and of what stays together (the prompt,
or the value of a column), so that rows added later move no other row to another split.
"""

from __future__ import annotations

import numpy as np

from tunesmith.data.checks.scan import SOURCE_SIDES, Scan, first_of
from tunesmith.data.ledger import OUTCOMES
from tunesmith.errors import DataError
from tunesmith.recipe.data import CleanSettings, DataSettings

OUTCOME = {name: number for number, name in enumerate(OUTCOMES)}
NO_OUTCOME = -1  # of rows that the data is only compared with
_DRAWS = 2.0**64


def place_rows(scan: Scan, settings: DataSettings, *, eval_share: float, test_share: float) -> np.ndarray:
    """The outcome of each row, an index of ``OUTCOMES``, int8 [rows].

    Rows that the data is only compared with have NO_OUTCOME, and change nothing.

    Raises:
        DataError: a share leaves a side empty.
    """
    outcome = np.full(len(scan), OUTCOME["held_out"], np.int8)
    outcome[scan.side == SOURCE_SIDES.index("test")] = OUTCOME["test"]
    outcome[scan.side == SOURCE_SIDES.index("train")] = OUTCOME["trained"]
    outcome[~scan.good] = OUTCOME["invalid"]
    outcome[scan.left_out] = OUTCOME["left_out"]
    outcome[scan.side == SOURCE_SIDES.index("against")] = NO_OUTCOME
    clean = settings.clean
    if clean.dedupe:
        _set_aside_repeats(outcome, first_of(scan.content), "duplicate")
    if clean.near_dedupe and scan.near is not None:
        _set_aside_repeats(outcome, scan.near, "duplicate", spare=scan)
    if eval_share or test_share:
        _split(outcome, scan, settings, eval_share=eval_share, test_share=test_share)
    _set_leaked_aside(outcome, scan, clean)
    if clean.balance is not None:
        _balance(outcome, scan, clean.balance)
    return outcome


def _set_aside_repeats(outcome: np.ndarray, group: np.ndarray, where: str, spare: Scan | None = None) -> None:
    """Of the rows to train on that are of one group, the first stays.

    With ``spare``, another answer to the same prompt stays, too: that is no repeat.
    """
    rows = np.flatnonzero(outcome == OUTCOME["trained"])
    _, first, inverse = np.unique(group[rows], return_index=True, return_inverse=True)
    head = rows[first[inverse]]
    again = head != rows
    if spare is not None:
        prompt, content = first_of(spare.prompt), first_of(spare.content)
        again &= (prompt[rows] != prompt[head]) | (content[rows] == content[head])
    outcome[rows[again]] = OUTCOME[where]


def _split(outcome: np.ndarray, scan: Scan, settings: DataSettings, *, eval_share: float, test_share: float) -> None:
    rows = np.flatnonzero(outcome == OUTCOME["trained"])
    chance = _ranked_by_label(scan, rows) if settings.stratify else scan.draw[rows] / _DRAWS
    outcome[rows[chance < eval_share]] = OUTCOME["held_out"]
    outcome[rows[(chance >= eval_share) & (chance < eval_share + test_share)]] = OUTCOME["test"]
    sides = {"evaluation": eval_share, "testing": test_share, "training": 1.0}
    for (side, share), name in zip(sides.items(), ("held_out", "test", "trained"), strict=True):
        if share and not (outcome[rows] == OUTCOME[name]).any():
            together = "prompts" if settings.group is None else f"values of {settings.group}"
            different = len(np.unique(scan.unit[rows]))
            raise DataError(
                f"the shares leave no row for {side}",
                where="data.eval" if not test_share else "data.eval, data.test",
                why=f"{len(rows)} rows with {different} different {together}, drawn by a hash",
                remedy=_way_out(different, 1 + (eval_share > 0) + (test_share > 0), settings),
            )


def _way_out(different: int, splits: int, settings: DataSettings) -> str:
    """What helps when a share is empty: no share and no seed can divide fewer prompts than there are splits."""
    own = "a file of its own (data.eval: held_out.jsonl), or no held-out rows (data.eval: 0), which gives no verdict"
    if different >= splits:
        return f"give more rows, another share or seed, {own}"
    what = "different prompts" if settings.group is None else f"values of {settings.group}"
    return f"give rows with more {what}, {own}"


def _ranked_by_label(scan: Scan, rows: np.ndarray) -> np.ndarray:
    """For each row a number in [0, 1): the rank of its prompt's draw among the prompts with the same label.

    A prompt with two labels counts by that of its first row.
    """
    first = first_of(scan.unit[rows])
    heads = np.flatnonzero(first == np.arange(len(rows)))
    label = scan.answer[rows[heads]]
    order = np.lexsort((scan.draw[rows[heads]], label))
    start, sizes = _runs(label[order])
    # Where a label begins is as good as drawn, so that labels with few prompts are held out at the same rate.
    begin = label[order][start].astype(np.float64) / _DRAWS
    rank = np.empty(len(heads))
    rank[order] = (np.arange(len(order)) - np.repeat(start, sizes) + np.repeat(begin, sizes)) / np.repeat(sizes, sizes)
    of_head = np.empty(len(rows))
    of_head[heads] = rank
    return of_head[first]


def _set_leaked_aside(outcome: np.ndarray, scan: Scan, clean: CleanSettings) -> None:
    """Rows to train on whose prompt, or whose near duplicate, is held out."""
    if not clean.drop_leaked:
        return
    leaked = shares_with(first_of(scan.prompt), outcome)
    if clean.near_dedupe and scan.near is not None:
        leaked |= shares_with(scan.near, outcome) | shares_with(scan.plain, outcome)
    outcome[leaked] = OUTCOME["leaked"]


def shares_with(group: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Rows to train on that have a held-out or test row in their group, bool [rows]."""
    away = np.isin(outcome, [OUTCOME["held_out"], OUTCOME["test"]])
    return (outcome == OUTCOME["trained"]) & np.isin(group, group[away])


def _balance(outcome: np.ndarray, scan: Scan, most: int) -> None:
    """Of each answer at most so many rows, those with the lowest draws."""
    rows = np.flatnonzero(outcome == OUTCOME["trained"])
    answer = scan.answer[rows]
    order = np.lexsort((rows, scan.draw[rows], answer))
    start, sizes = _runs(answer[order])
    rank = np.arange(len(order)) - np.repeat(start, sizes)
    outcome[rows[order[rank >= most]]] = OUTCOME["unbalanced"]


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal values begins, and its length, int [runs]."""
    begins = np.ones(len(ordered), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    start = np.flatnonzero(begins)
    return start, np.diff(start, append=len(ordered))
