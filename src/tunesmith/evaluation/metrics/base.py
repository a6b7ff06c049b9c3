"""Defines a metric: what each row adds up to, and the value of such sums.

Every metric gives Scores: some sufficient statistics of each row, and a function from their sums to the value. A
resample of the rows is a weighted sum of the same statistics, so compare.py resamples any metric with one matrix
product and one call: means and ratios (RowScores), and metrics that are no mean over rows, such as macro F1 and BLEU
(RowStatistics).

Each metric has a file of its own beside this one: a class with a name and ``scores``, of answers (TextMetric, listed in
answers.py) or of tokens (TokenMetric, listed in tokens.py). Most metrics of answers score row by row (RowMetric).
This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from tunesmith.errors import RecipeError, pip_install

METRICS_KEY = "evaluation.metrics"  # the recipe key that names metrics
DURING_KEY = "evaluation.during"  # the same, for validations
COMPUTE_METRICS_KEY = "evaluation.compute_metrics"

# From statistics [rows, k] to those of a wrong and of a right answer to each row, [rows, k] each.
ExtremesOf = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Scores(Protocol):
    """One metric of one model on every row, in a form that can be resampled.

    With ``counts`` [resamples, groups], how often each resample has each group, and ``sums`` [groups, k], the
    statistics of the rows added up by group, ``of_sums(counts @ sums)`` is the value of every resample, [resamples].
    Two models on the same rows have statistics with the same meaning, column by column.
    """

    @property
    def groups(self) -> np.ndarray | None:
        """Int [rows]: rows with the same number are resampled together. None: all rows are independent."""
        ...

    @property
    def statistics(self) -> np.ndarray:
        """What each row adds to the sums: float64 [rows, k]. Counts are whole numbers, so their sums are exact."""
        ...

    @property
    def of_rows(self) -> np.ndarray:
        """The score of each row by itself, float64 [rows]: for samples, slices and the worst rows."""
        ...

    @property
    def details(self) -> Mapping[str, Any]:
        """What else verdict.json keeps of this model, as JSON: a confusion matrix, the signature of a library."""
        ...

    @property
    def value(self) -> float:
        """The metric over all rows."""
        ...

    def of_sums(self, sums: np.ndarray, /) -> np.ndarray:
        """The value of summed statistics, float64 [..., k] -> [...]. Each sum is over at least one row."""
        ...

    @property
    def extremes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The statistics that each row would have if it were wholly wrong, and wholly right: float64 [rows, k] each.

        None: a row can count without bound, as in a loss, or the bounds are not known.
        """
        ...

    def __len__(self) -> int: ...


class TextMetric(Protocol):
    """Scores the answers of one model. A higher value is better, and a rate is a fraction from 0 to 1."""

    @property
    def name(self) -> str:
        """The name in the recipe, and the key in verdict.json."""
        ...

    def fault_of(self, truth: str) -> str | None:
        """The reason why no answer can be scored against this reference answer, or None."""
        ...

    def fault_of_all(self, truths: Sequence[str]) -> str | None:
        """The reason why these reference answers cannot be scored against together, or None."""
        ...

    def scores(self, rows: AnswerRows) -> Scores:
        """The metric on every row. The reference answers have no faults."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """What a metric of answers knows: a model's answers, the reference answers, the prompts; and groups int [rows].

    ``labels`` are answers of training rows that are labels, too.
    """

    answers: Sequence[str]
    truths: Sequence[str]
    prompts: Sequence[str]
    groups: Sequence[int] | None = None
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        assert len(self.answers) == len(self.truths) == len(self.prompts), "one answer a row"

    @property
    def group_numbers(self) -> np.ndarray | None:
        """The groups as an array."""
        return None if self.groups is None else np.asarray(self.groups)


class RowMetric:
    """Base of the metrics whose value is the mean over the scores of the rows: they have a name and ``score``."""

    name: str

    def score(self, answer: str, truth: str, prompt: str) -> float:
        """The score of one answer to one prompt, given the reference answer. Higher is better."""
        raise NotImplementedError

    def fault_of(self, truth: str) -> str | None:
        """None: any text can be scored against."""
        return None

    def fault_of_all(self, truths: Sequence[str]) -> str | None:
        """None: each row is scored by itself."""
        return None

    def scores(self, rows: AnswerRows) -> Scores:
        """Every row by itself. Raises RecipeError with the number of the row, from 1, if one cannot be scored."""
        found = []
        for number, row in enumerate(zip(rows.answers, rows.truths, rows.prompts, strict=True), start=1):
            try:
                found.append(self.score(*row))
            except RecipeError as error:
                raise RecipeError(
                    error.what,
                    where=f"{METRICS_KEY}, row {number} of {len(rows.answers)}",
                    why=error.why,
                    remedy=error.remedy,
                ) from error
        return row_scores(found, rows.groups)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Sums over the supervised tokens of each row, float64 [rows].

    Args:
        nll_sum: negative log-likelihood in nats.
        correct: tokens that the model found likeliest.
        tokens: how many there are.
        text_bytes: bytes of their text in UTF-8, at least 1; None if they were not counted.
        groups: as in RowScores.
    """

    nll_sum: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray | None = None
    groups: np.ndarray | None = None


class TokenMetric(Protocol):
    """A metric of the supervised tokens, from their log-probabilities."""

    @property
    def name(self) -> str:
        """The name in the recipe, and the key in verdict.json."""
        ...

    def scores(self, rows: TokenRows) -> Scores:
        """The metric on every row."""
        ...


def needs_extra(name: str, *packages: str) -> None:
    """Raises RecipeError if a package that a metric needs is not installed. It is imported only when it is used."""
    lacking = [package for package in packages if find_spec(package) is None]
    if lacking:
        raise RecipeError(
            f"The metric {name} needs a package that is not installed",
            where=METRICS_KEY,
            why=f"{', '.join(lacking)} cannot be found.",
            remedy=f"Install it with {pip_install('metrics')}, or take {name} out of {METRICS_KEY}.",
        )


@runtime_checkable
class EndsEarly(TextMetric, Protocol):
    """A metric that can tell from the beginning of an answer how it counts, whatever follows."""

    def ends_early(self, truths: Sequence[str]) -> Callable[[str, str], bool] | None:
        """A function of the beginning of an answer and its truth: whether every answer that begins so counts the same.

        The beginning itself is one of them. Where that is not sure the function says no. None: it never is.

        Args:
            truths: the reference answers of all rows, and of training rows that are labels.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """One metric on every row. Its value is ``total.sum() / weight.sum()``.

    Args:
        total: float64 [rows]: summed negative log-likelihood, correct tokens, or the score of the answer.
        weight: float64 [rows]: supervised tokens, or ones.
        groups: int [rows]: rows with the same number are not independent (turns of one conversation, two answers to one
            prompt) and are resampled together. None: all rows are independent.
        details: what else verdict.json keeps.
        counts: a total is how many of its weight are right, such as tokens.
    """

    total: np.ndarray
    weight: np.ndarray
    groups: np.ndarray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    counts: bool = False

    def __post_init__(self) -> None:
        assert self.total.shape == self.weight.shape and self.total.ndim == 1, "one total and one weight a row"
        assert (self.weight > 0).all(), "a row without weight"
        assert self.groups is None or self.groups.shape == self.total.shape, "one group a row"

    def __len__(self) -> int:
        return len(self.total)

    @property
    def value(self) -> float:
        """The metric over all rows: a ratio of sums, not a mean of ratios."""
        return float(self.total.sum() / self.weight.sum())

    @property
    def statistics(self) -> np.ndarray:
        """Total and weight, float64 [rows, 2]."""
        return np.stack([self.total, self.weight], axis=1).astype(np.float64)

    @property
    def of_rows(self) -> np.ndarray:
        """Total over weight of each row, float64 [rows]."""
        return self.total / self.weight

    def of_sums(self, sums: np.ndarray) -> np.ndarray:
        """The ratio of the sums, [..., 2] -> [...]."""
        return sums[..., 0] / sums[..., 1]

    @property
    def extremes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """0 and 1 of scores from 0 to 1, and none or all of what is counted."""
        scores = bool((self.weight == 1).all()) and bool(((self.total >= 0) & (self.total <= 1)).all())
        if not (scores or self.counts):
            return None
        none, full = (np.stack([total, self.weight], axis=1) for total in (np.zeros_like(self.weight), self.weight))
        return none, full


@dataclass(frozen=True, slots=True, eq=False)
class RowStatistics:
    """One metric on every row that is no ratio of two sums. Its value is ``of_sums(statistics.sum(axis=0))``.

    Args:
        statistics: float64 [rows, k], such as true and false positives of each class, or matching n-grams.
        of_sums: the value of summed statistics, [..., k] -> [...].
        of_rows: float64 [rows], the score of each row by itself.
        groups: as in RowScores.
        details: what else verdict.json keeps.
        extremes_of: from the statistics to those of a wrong and of a right answer to each row (see Scores). None: not
            known.
    """

    statistics: np.ndarray
    of_sums: Callable[[np.ndarray], np.ndarray]
    of_rows: np.ndarray
    groups: np.ndarray | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    extremes_of: ExtremesOf | None = None

    def __post_init__(self) -> None:
        assert self.statistics.ndim == 2 and self.of_rows.shape == self.statistics.shape[:1], "statistics for each row"
        assert self.groups is None or self.groups.shape == self.of_rows.shape, "one group a row"

    def __len__(self) -> int:
        return len(self.statistics)

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.of_sums(self.statistics.sum(axis=0)))

    @property
    def extremes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """By ``extremes_of``."""
        return None if self.extremes_of is None else self.extremes_of(self.statistics)


def row_scores(scores: Sequence[float], groups: Sequence[int] | None = None) -> RowScores:
    """RowScores of a metric whose value is the mean over rows."""
    total = np.asarray(scores, dtype=np.float64)
    return RowScores(total, np.ones_like(total), None if groups is None else np.asarray(groups))


def is_rate(scores: Scores) -> TypeGuard[RowScores]:
    """Whether the value is the share of rows that are right."""
    return (
        isinstance(scores, RowScores)
        and bool((scores.weight == 1).all())
        and set(np.unique(scores.total)) <= {0.0, 1.0}
    )
