"""The likelihood of each label of a task behind each question, over one tree of labels a row (model/label_logprobs.py).

A label may be spelled in several ways. Its probability is the sum of theirs. Only what the metrics need is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.label_set import Spelling
from tunesmith.evaluation.metrics.base import Scores
from tunesmith.evaluation.metrics.by_likelihood import LikelihoodRows
from tunesmith.evaluation.metrics.calibration import DETAILS, NOT_COMPARED
from tunesmith.evaluation.metrics.classification import label_numbers, labels_of
from tunesmith.evaluation.slices import interval_of
from tunesmith.evaluation.task import Question
from tunesmith.model.label_logprobs import check_labels, label_logprobs
from tunesmith.model.label_tree import Wanted
from tunesmith.recipe.settings import CALIBRATION_METRICS, NormalForm


def label_likelihoods(
    model: nn.Module,
    questions: Sequence[Question],
    labels: Sequence[Spelling],
    *,
    forms: Collection[NormalForm],
    stop_ids: Sequence[int],
    wanted: Wanted,
    on_rows: Callable[[int], None],
) -> LikelihoodRows:
    """The log-likelihood of every label as the answer to each question, as far as it is wanted.

    Args:
        questions: their reference answers are among the labels.
        labels: of the task.
        forms: in what two spellings of one label may differ.
        stop_ids: token ids that end an answer. A spelling that was cut before them counts only if its label has no
            other.
        wanted: as in ``label_logprobs``, of labels.
        on_rows: called with the number of questions that were completed.

    Raises:
        ModelError: as ``label_logprobs`` does.
    """
    names = labels_of([each.text for each in labels], forms)
    spelled = _ended(labels, names, forms, stop_ids)
    numbers = label_numbers([each.text for each in spelled], names, forms)  # [spellings]
    prompts = [question.prompt for question in questions]
    if wanted == "likeliest" and len(spelled) > len(names):
        # The likeliest label need not have the likeliest spelling.
        wanted = "probabilities"
    found = label_logprobs(model, prompts, [each.ids for each in spelled], wanted=wanted, on_rows=on_rows)
    summed = np.full((len(questions), len(names)), -np.inf)  # [rows, labels]
    for column, number in enumerate(numbers):
        summed[:, number] = np.logaddexp(summed[:, number], found.values[:, column])
    truths = label_numbers([question.truth for question in questions], names, forms)
    assert (truths < len(names)).all(), "every reference answer is a label"
    return LikelihoodRows(summed, truths, names, np.array([question.group for question in questions]), wanted)


def wanted_by(metrics: Collection[str]) -> Wanted:
    """What metrics of likelihoods need of the labels."""
    return "probabilities" if any(name in CALIBRATION_METRICS for name in metrics) else "likeliest"


def check_label_lengths(model: nn.Module, questions: Sequence[Question], labels: Sequence[Spelling]) -> None:
    """Raises ModelError if a prompt with the longest label is too long for the model."""
    check_labels(model, [question.prompt for question in questions], [each.ids for each in labels])


def with_intervals(
    details: dict[str, dict[str, Any]], base: Mapping[str, Scores], tuned: Mapping[str, Scores], level: Level
) -> dict[str, dict[str, Any]]:
    """The details with each model's own calibration metrics, and the bootstrap interval of the Brier score.

    A bootstrap of the calibration error would be off by the noise that its value is corrected for.
    """
    if DETAILS not in details:
        return details
    both = {}
    for side, scores in (("base", base), ("tuned", tuned)):
        measured = {name: scores[name] for name in CALIBRATION_METRICS if name in scores}
        found: dict[str, dict[str, Any]] = {name: {"value": each.value} for name, each in measured.items()}
        for name in found.keys() - {*NOT_COMPARED}:
            found[name]["interval"] = interval_of(name, measured[name], level)
        both[side] = {**details[DETAILS][side], **found}
    return {**details, DETAILS: both}


def _ended(
    labels: Sequence[Spelling], names: Sequence[str], forms: Collection[NormalForm], stop_ids: Sequence[int]
) -> list[Spelling]:
    """The spellings that a stop token ends, and those of labels that have no such spelling."""
    numbers = label_numbers([each.text for each in labels], names, forms)
    whole = [bool(each.ids) and each.ids[-1] in stop_ids for each in labels]
    has_whole = {int(number) for number, ends in zip(numbers, whole, strict=True) if ends}
    return [
        each for each, number, ends in zip(labels, numbers, whole, strict=True) if ends or int(number) not in has_whole
    ]
