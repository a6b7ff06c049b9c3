"""Measures the untuned model on every row, for objectives that compare with it: once, before the first step.

The result stays in the run's folder, so a run that continues compares with the same numbers and measures nothing again.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from tunesmith.data.batches.layout import micro_batches
from tunesmith.data.chat.template import Encoded
from tunesmith.errors import TrainError
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import read_checked
from tunesmith.runs.progress import Listener
from tunesmith.training.attach import Ready
from tunesmith.training.step_rows import Steps

FILE = "reference.npz"
AT_A_TIME = 64  # examples that are laid out together
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """Summed log-probabilities under the untuned model, float64.

    ``train`` [rows of the corpus] is NaN for rows that no step of the run sees. ``held_out`` [rows of validation] and
    ``judging`` [rows of the verdict, if others select its step] are empty where there are none. ``mismatched`` is for
    an objective that pairs prompts with the answers of other examples: the rows of each step, one after the other, one
    for each of its examples. ``ends`` [steps] says where each step's rows end.
    """

    train: np.ndarray
    held_out: np.ndarray
    judging: np.ndarray
    mismatched: np.ndarray
    ends: np.ndarray

    def of_step(self, step: int, examples: Sequence[int], *, together: int) -> np.ndarray:
        """The values of a step (counted from 1), in the order in which the objective lays out its rows [rows]."""
        own = self.train.reshape(-1, together)[list(examples)]  # [examples, together]
        if len(self.ends):
            end = int(self.ends[step - 1])
            own = np.column_stack([own, self.mismatched[end - len(examples) : end]])
        if not np.isfinite(own).all():
            raise TrainError(
                f"{FILE} lacks rows of step {step}",
                where=FILE,
                why="The untuned model's log-probability of a row is missing, infinite or not a number: the file is "
                "damaged.",
                remedy=f"Remove {FILE} from the run's folder and continue with --resume: it is then measured again.",
            )
        return own.ravel()

    def save(self, path: Path) -> None:
        """Writes the file as a whole, into a run's folder."""
        file = io.BytesIO()
        np.savez(file, **{name: getattr(self, name) for name in self.__slots__})
        Run(path.parent).write_bytes(path.name, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> References:
        """Reads what ``save`` wrote. Raises one of ``_DAMAGED`` if the file is damaged."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in cls.__slots__})


def with_references(
    folder: Path, ready: Ready, steps: Steps, validation: Judge | None, judging: Judge | None, listener: Listener
) -> tuple[Steps, Judge | None, Judge | None]:
    """Steps and judges with the untuned model's values, from the run's folder or measured now and stored there.

    Where the objective compares with nothing, they are returned as they are.
    """
    if steps.preference is None or not steps.preference.refers:
        return steps, validation, judging
    found = stored(folder, listener)
    if found is None:
        with ready.method.reference(ready.model) as untuned:
            found = measured(untuned, steps, validation, judging, listener)
        found.save(folder / FILE)
    of_step = partial(found.of_step, together=steps.corpus.together)
    return (
        Steps(steps.recipe, steps.corpus, of_step),
        validation and validation.with_reference(found.held_out),
        judging and judging.with_reference(found.judging),
    )


def stored(folder: Path, listener: Listener) -> References | None:
    """The values in a run's folder, or None if there are none or the file is damaged."""
    content, changed = read_checked(folder, FILE)
    if changed is not None:
        listener.warn(f"{folder / FILE} {changed}; the untuned model is measured again")
        return None
    if content is None:
        return None
    try:
        return References.load(folder / FILE)
    except _DAMAGED as error:
        listener.warn(f"{folder / FILE} is damaged ({error}); the untuned model is measured again")
        return None


@waiting_as_others_allow()
def measured(
    untuned: nn.Module, steps: Steps, validation: Judge | None, judging: Judge | None, listener: Listener
) -> References:
    """Measures every row that a step of the run sees, and the held-out rows."""
    recipe, corpus, objective = steps.recipe, steps.corpus, steps.preference
    assert objective is not None
    windows = [window.rows for window in steps.order.windows()]
    seen = sorted({number for rows in windows for number in rows})
    train = np.full((len(corpus.train) // corpus.together, corpus.together), np.nan)  # [examples, together]
    with listener.task("untuned model: reference", len(seen)) as advance:
        for start in range(0, len(seen), AT_A_TIME):
            part = seen[start : start + AT_A_TIME]
            sums = _row_logprobs(untuned, corpus.rows_of(part), recipe, together=corpus.together)
            train[part] = sums.reshape(-1, corpus.together)
            advance(start + len(part), {})
    validated, judged = (_held_out_logprobs(untuned, each, listener) for each in (validation, judging))
    mismatched: list[np.ndarray] = []
    if objective.together > objective.answers:
        with listener.task("untuned model: other answers", len(windows)) as advance:
            for number, rows in enumerate(windows, start=1):
                mismatched.append(_row_logprobs(untuned, objective.rows(corpus.rows_of(rows))[1::2], recipe))
                advance(number, {})
    ends = np.cumsum([len(part) for part in mismatched], dtype=np.int64)
    return References(train.ravel(), validated, judged, np.concatenate([np.empty(0), *mismatched]), ends)


def _row_logprobs(untuned: nn.Module, rows: Sequence[Encoded], recipe: Recipe, *, together: int = 1) -> np.ndarray:
    """The log-probability of each row's labels, float64 [rows]."""
    settings = recipe.training
    assert settings.layout != "auto"
    batches = micro_batches(rows, budget=int(settings.micro_batch_tokens), layout=settings.layout, together=together)
    return -row_losses(untuned, batches, rows=len(rows), device=recipe.model.device).nll_sum


def _held_out_logprobs(untuned: nn.Module, judge: Judge | None, listener: Listener) -> np.ndarray:
    if judge is None:
        return np.empty(0)
    return -judge.token_scores(untuned, title="untuned model: held out", listener=listener).nll_sum
