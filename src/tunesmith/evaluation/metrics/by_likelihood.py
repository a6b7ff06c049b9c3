"""Metrics of the likelihood of each label as the answer: the likeliest one is the prediction. Nothing is generated.

A label's likelihood is the product over all of its tokens, with the stop token that ends it: the probability that the
model answers exactly this. It is not divided by the length. Brown et al. 2020 (arXiv:2005.14165) do that for models
that were not trained on the task, to favour long choices less; but what is divided is no probability, and a model that
was trained on these labels has learned their whole probabilities. The softmax over the labels is then the model's own
probability of each, given that the answer is a label.

Shapes: K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunesmith.evaluation.metrics.base import Scores, needs_extra
from tunesmith.evaluation.metrics.classification import LabelMetricName, label_scores, predicted_by_likelihood
from tunesmith.model.label_tree import Wanted

REPORT = "classification_by_likelihood"


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodRows:
    """What one model makes of the labels of some rows.

    Args:
        log_likelihoods: of each label as the whole answer, float64 [rows, K], in nats.
        truths: number of the right label, int64 [rows].
        labels: their names, [K].
        groups: as in RowScores.
        known: what the log-likelihoods are right for: the likeliest label, the probabilities, or all of their values.
            Those of labels that do not matter for it are upper bounds.
    """

    log_likelihoods: np.ndarray
    truths: np.ndarray
    labels: Sequence[str]
    groups: np.ndarray | None = None
    known: Wanted = "all"

    def __post_init__(self) -> None:
        assert self.log_likelihoods.shape == (len(self.truths), len(self.labels)), "a likelihood for each label"

    def only(self, rows: np.ndarray, labels: Sequence[str], groups: np.ndarray) -> LikelihoodRows:
        """Some rows, and some of their labels, by name.

        Args:
            rows: their numbers, int [rows].
            labels: names that are known, in an order of their own. The right labels of the rows are among them.
            groups: of these rows, int [rows].
        """
        assert self.known == "all" or set(labels) == set(self.labels), "bounds say nothing of a choice of labels"
        columns = [self.labels.index(name) for name in labels]
        place = np.full(len(self.labels), len(labels))  # [K]: where each label is now
        place[columns] = np.arange(len(labels))
        truths = place[self.truths[rows]]
        assert (truths < len(labels)).all(), "every right answer is a label"
        return LikelihoodRows(self.log_likelihoods[rows][:, columns], truths, list(labels), groups, self.known)

    @property
    def probabilities(self) -> np.ndarray:
        """Of each label, given that the answer is one of them: float64 [rows, K]."""
        assert self.known != "likeliest", "bounds are no probabilities"
        shifted = np.exp(self.log_likelihoods - self.log_likelihoods.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


class LikelihoodMetric(Protocol):
    """A metric of the likelihoods of labels."""

    @property
    def name(self) -> str:
        """The name in the recipe, and the key in verdict.json."""
        ...

    def scores(self, rows: LikelihoodRows) -> Scores:
        """The metric on every row."""
        ...


class ByLikelihood:
    """Accuracy or macro F1 of the likeliest label, as ``accuracy`` and ``macro_f1`` are of the answers."""

    def __init__(self, of_answers: LabelMetricName) -> None:
        self.name = f"likelihood_{of_answers}"
        self.of_answers: LabelMetricName = of_answers
        needs_extra(self.name, "sklearn")

    def scores(self, rows: LikelihoodRows) -> Scores:
        """With the report on each label and the confusion matrix as details."""
        predicted = predicted_by_likelihood(rows.log_likelihoods)
        return label_scores(self.of_answers, predicted, rows.truths, rows.labels, rows.groups, key=REPORT)
