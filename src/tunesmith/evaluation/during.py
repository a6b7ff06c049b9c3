"""What a validation measures by answers: the metrics of `evaluation.during` on a fixed sample of its rows.

The rows are those of the validation, which judge nothing where they select a step (training/tasks.py). They are drawn
by seed, so they are the same at every step and after a resume. Answers are greedy, and begin where the loss pass that
the validation has just made says that they differ from the reference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from tunesmith.errors import RecipeError
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.base import COMPUTE_METRICS_KEY, DURING_KEY
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.model.modes import random_state_kept
from tunesmith.runs.progress import Silent

# Nobody reads these answers, so they may end early; and no function sees the logits once more.
_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "samples": 0,
    "whole_answers": False,
    "compute_metrics": None,
}


def during_judge(judge: Judge | None) -> Judge | None:
    """The judge of the sampled rows by the metrics of validations; None if there are none.

    Args:
        judge: of all validation rows. Its loss pass numbers the rows of the sample, too.
    """
    if judge is None or not judge.settings.during:
        return None
    settings, questions = judge.settings, judge.task.questions
    if len(questions) > settings.during_rows:
        drawn = np.random.default_rng(settings.seed).choice(len(questions), settings.during_rows, replace=False)
        questions = [questions[number] for number in sorted(drawn.tolist())]
    metrics = settings.model_copy(update={**_GREEDY, "metrics": settings.during})
    return replace(judge, task=replace(judge.task, questions=questions), settings=metrics)


def measured_during(judge: Judge, model: nn.Module, known: TokenScores) -> dict[str, float]:
    """Each metric of validations by name. Weights, modes and random state stay as they are.

    Args:
        judge: as ``during_judge`` makes it.
        model: with the weights of this step.
        known: the token scores of all validation rows with the same weights.

    Raises:
        ModelError: memory ran out.
        RecipeError: a function failed.
    """
    with random_state_kept(next(model.parameters()).device):
        measured = judge.measure(model, "validation", listener=Silent(), known=known)
    return {name: measured.of_answers[name].value for name in judge.settings.metrics}


def refuse_two_of_a_name(names: Collection[str], others: Collection[str]) -> None:
    """Raises RecipeError if the user's function gives a metric that validations also measure by answers."""
    both = [name for name in names if name in others]
    if both:
        raise RecipeError(
            f"A validation would have two metrics called {both[0]}",
            where=DURING_KEY,
            why=f"The function of {COMPUTE_METRICS_KEY} gives one of this name, too.",
            remedy=f"Rename the one that the function gives, or take {both[0]} out of {DURING_KEY}.",
        )
