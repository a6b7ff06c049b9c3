"""What the untuned model says of every row, for objectives that compare with it: measured once, before the first step.

It stays in the run's folder, so a run that goes on compares with the very same numbers and computes none of them again.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from tunesmith.data.batches.layout import Batch, LayoutName, micro_batches
from tunesmith.data.batches.order import Order
from tunesmith.data.chat.template import Encoded
from tunesmith.data.corpus import Corpus
from tunesmith.evaluation.judge import token_scores
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.evaluation.task import Task
from tunesmith.runs.progress import Listener
from tunesmith.runs.whole_files import whole_file
from tunesmith.training.objectives.preference import PreferenceObjective

HeldOut = tuple[Task, Sequence[Batch]]  # and how its rows are laid out
FILE = "reference.npz"
AT_A_TIME = 64  # examples that are laid out together
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """Summed log-probabilities under the untuned model, float64.

    ``train`` [rows of the corpus]: NaN where no step of the run sees the row. ``held_out`` [rows of validation]; empty
    without any. ``judging``: the rows of the verdict, where those of validation select the step; else empty.
    ``mismatched``: of an objective that gives prompts the answers of others, these rows step by step, one
    for each of the step's examples; ``ends`` [steps] says where each step's end.
    """

    train: np.ndarray
    held_out: np.ndarray
    judging: np.ndarray
    mismatched: np.ndarray
    ends: np.ndarray

    def of_step(self, step: int, examples: Sequence[int], *, together: int) -> np.ndarray:
        """By row, as the objective lays out the examples of a step (counted from 1)."""
        own = self.train.reshape(-1, together)[list(examples)]
        if len(self.ends):
            end = int(self.ends[step - 1])
            own = np.column_stack([own, self.mismatched[end - len(examples) : end]])
        assert np.isfinite(own).all(), "a row that was not measured"
        return own.ravel()

    def save(self, path: Path) -> None:
        """Writes all of them into one file."""
        with whole_file(path) as file:
            np.savez(file, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> References:
        """What ``save`` wrote. Raises one of ``_DAMAGED`` where it is not whole."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Measuring:
    """How rows are measured: by which layout, within which budget of tokens, on which device."""

    budget: int
    layout: LayoutName
    device: str

    def rows(self, model: nn.Module, rows: Sequence[Encoded], *, together: int = 1) -> np.ndarray:
        """Log-probability of each row's labels, float64 [rows]."""
        batches = micro_batches(rows, budget=self.budget, layout=self.layout, together=together)
        return -row_losses(model, batches, rows=len(rows), device=self.device).nll_sum


def stored(folder: Path, listener: Listener) -> References | None:
    """Those of a run that has begun."""
    if not (folder / FILE).is_file():
        return None
    try:
        return References.load(folder / FILE)
    except _DAMAGED as error:
        listener.warn(f"{folder / FILE} is damaged ({error}); the untuned model is measured again")
        return None


def measured(
    untuned: nn.Module,
    objective: PreferenceObjective,
    *,
    corpus: Corpus,
    order: Order,
    held_out: HeldOut | None,
    judging: HeldOut | None,
    how: Measuring,
    listener: Listener,
) -> References:
    """Of every row that a step of the run sees, and of the held-out ones.

    Args:
        held_out: what validation losses are taken on.
        judging: what the verdict is taken on, where that is something else.
    """
    windows = [window.rows for window in order.windows()]
    seen = sorted({number for rows in windows for number in rows})
    train = np.full((len(corpus.train) // corpus.together, corpus.together), np.nan)
    with listener.task("untuned model: reference", len(seen)) as advance:
        for start in range(0, len(seen), AT_A_TIME):
            part = seen[start : start + AT_A_TIME]
            sums = how.rows(untuned, corpus.rows_of(part), together=corpus.together)
            train[part] = sums.reshape(-1, corpus.together)
            advance(start + len(part), {})
    validated, judged = (_of_task(untuned, each, listener) for each in (held_out, judging))
    mismatched: list[np.ndarray] = []
    if objective.together > objective.answers:
        with listener.task("untuned model: other answers", len(windows)) as advance:
            for number, rows in enumerate(windows, start=1):
                mismatched.append(how.rows(untuned, objective.rows(corpus.rows_of(rows))[1::2]))
                advance(number, {})
    ends = np.cumsum([len(part) for part in mismatched], dtype=np.int64)
    return References(train.ravel(), validated, judged, np.concatenate([np.empty(0), *mismatched]), ends)


def _of_task(untuned: nn.Module, held_out: HeldOut | None, listener: Listener) -> np.ndarray:
    if held_out is None:
        return np.empty(0)
    task, batches = held_out
    return -token_scores(untuned, task, batches, title="untuned model: held out", listener=listener).nll_sum
