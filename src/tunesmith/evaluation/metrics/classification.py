"""Answers that are labels: accuracy and macro F1, with each label's figures and the confusion matrix.

A prediction is the number of a label. It comes from an answer (``predicted_by_answers``) or from the likelihood of each
label (``predicted_by_likelihood``; by_likelihood.py), and ``label_scores`` makes the metrics of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np

from tunesmith.evaluation.metrics.base import AnswerRows, RowScores, RowStatistics, Scores, needs_extra
from tunesmith.evaluation.metrics.normalize import lasting, normalized
from tunesmith.recipe.settings import NormalForm

MOST_LABELS = 1000
LabelMetricName = Literal["accuracy", "macro_f1"]


class LabelMetric:
    """Whether the answer is the right one of the labels. These are the different truths of the rows and training rows.

    ``accuracy`` is the share of right answers. ``macro_f1`` is the mean of the F1 of each label, whatever its number of
    rows. An answer that is none of the labels is wrong. Labels are compared as exact_match compares texts.
    """

    def __init__(self, name: LabelMetricName, forms: Collection[NormalForm] = ()) -> None:
        needs_extra(name, "sklearn")
        self.name: LabelMetricName = name
        self.forms = forms

    def fault_of(self, truth: str) -> str | None:
        """None: any text can be a label."""
        return None

    def fault_of_all(self, truths: Sequence[str]) -> str | None:
        """There must not be too many labels."""
        number = len(labels_of(truths, self.forms))
        return None if number <= MOST_LABELS else f"they are {number:,} different texts, and {MOST_LABELS:,} labels fit"

    def ends_early(self, truths: Sequence[str]) -> Callable[[str, str], bool] | None:
        """An answer is none of the labels once no label begins like it."""
        if self.forms:  # what is overlooked may change the letters before it, too
            return None
        labels = labels_of(truths)

        def is_none(beginning: str, truth: str) -> bool:
            start = lasting(beginning)
            place = bisect_left(labels, start)  # labels that begin so come first among those that are not before it
            return place == len(labels) or not labels[place].startswith(start)

        return is_none

    def scores(self, rows: AnswerRows) -> Scores:
        """Of the answers as they were generated."""
        labels = labels_of([*rows.truths, *rows.labels], self.forms)
        predicted = predicted_by_answers(rows.answers, labels, self.forms)
        truths = label_numbers(rows.truths, labels, self.forms)
        return label_scores(self.name, predicted, truths, labels, rows.group_numbers)


def labels_of(truths: Sequence[str], forms: Collection[NormalForm] = ()) -> list[str]:
    """The different labels among some truths, in order. The number of a label is its place."""
    return sorted({normalized(truth, forms) for truth in truths})


def label_numbers(texts: Sequence[str], labels: Sequence[str], forms: Collection[NormalForm] = ()) -> np.ndarray:
    """The number of each text's label, int64 [rows]; ``len(labels)`` for a text that is no label."""
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers.get(normalized(text, forms), len(labels)) for text in texts], dtype=np.int64)


predicted_by_answers = label_numbers


def predicted_by_likelihood(log_likelihoods: np.ndarray) -> np.ndarray:
    """The likeliest label of each row, int64 [rows].

    Args:
        log_likelihoods: of each label as the whole answer, float [rows, labels], in the order of ``labels_of``.
    """
    return log_likelihoods.argmax(axis=1)


def label_scores(
    name: LabelMetricName,
    predicted: np.ndarray,
    truths: np.ndarray,
    labels: Sequence[str],
    groups: np.ndarray | None = None,
    *,
    key: str = "classification",
) -> Scores:
    """A metric of predicted labels, with scikit-learn's report on them as details.

    Args:
        name: of the metric, when it is of answers.
        predicted: int [rows], numbers of labels; ``len(labels)`` is none of them.
        truths: int [rows], numbers of labels.
        labels: their names.
        groups: as in RowScores.
        key: of the report in the details.
    """
    right = (predicted == truths).astype(np.float64)  # [rows]
    details = {key: _report(predicted, truths, labels)}
    if name == "accuracy":
        return RowScores(right, np.ones_like(right), groups, details)
    statistics = np.zeros((len(truths), 3, len(labels) + 1))  # [rows, (tp, fp, fn), labels and none]
    rows, wrong = np.arange(len(truths)), predicted != truths
    statistics[rows[~wrong], 0, truths[~wrong]] = 1
    statistics[rows[wrong], 1, predicted[wrong]] = 1
    statistics[rows[wrong], 2, truths[wrong]] = 1
    statistics = statistics[:, :, :-1].reshape(len(truths), -1)  # [rows, 3 labels]
    return RowStatistics(statistics, macro_f1, right, groups, details, extremes_of_labels)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """The mean F1 of the labels that have a row: true positives, false positives, misses [..., 3 K] -> [...].

    With all rows this is scikit-learn's ``f1_score(average="macro")`` over the labels of the truths. A resample may
    lack a label, which then does not count.
    """
    tp, fp, fn = np.split(sums, 3, axis=-1)  # [..., K] each
    has_rows = tp + fn > 0
    f1 = np.divide(2 * tp, 2 * tp + fp + fn, out=np.zeros_like(tp), where=has_rows)
    return f1.sum(axis=-1) / np.maximum(has_rows.sum(axis=-1), 1)


def extremes_of_labels(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A miss of each row's own label, and a true positive: [rows, 3 K] -> [rows, 3 K] each."""
    tp, _, fn = np.split(statistics, 3, axis=-1)  # [rows, K] each
    own, none = tp + fn, np.zeros_like(tp)
    return np.concatenate([none, none, own], axis=-1), np.concatenate([own, none, none], axis=-1)


def _report(predicted: np.ndarray, truths: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Each label's precision, recall, F1 and rows, and the cells of the confusion matrix that are not 0."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    numbers = np.arange(len(labels))
    found = precision_recall_fscore_support(truths, predicted, labels=numbers, zero_division=0.0)  # pyright: ignore[reportArgumentType]
    figures = [np.asarray(each) for each in found]  # [labels] each
    matrix = confusion_matrix(truths, predicted, labels=np.arange(len(labels) + 1))  # [truth, prediction]
    names = [*labels, None]
    return {
        "labels": [
            {"label": label, "precision": float(precision), "recall": float(recall), "f1": float(f1), "rows": int(rows)}
            for label, precision, recall, f1, rows in zip(labels, *figures, strict=True)
        ],
        "confusion": [
            {"truth": names[truth], "answer": names[answer], "rows": int(matrix[truth, answer])}
            for truth, answer in np.argwhere(matrix)
        ],
    }
