"""Tests of a paired difference: exact, clustered, corrected for many, and against a margin; and what rows can show.

Sources: McNemar 1947 for rates; Miller 2024 (arXiv:2411.00640) for clustered standard errors and power; Holm 1979;
Schuirmann 1987 for two one-sided tests; Tango 1998 for rates within a margin; Hesterberg 2015 for the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tunesmith.evaluation.verdict import POWER, Equivalence

MCNEMAR = "McNemar's exact test"
CLUSTERED = "t-test with standard errors clustered by group"
PAIRED = "paired t-test"
OfSums = Callable[[np.ndarray], np.ndarray]  # the value of summed statistics
MOST_EXACT = 2000  # rows up to which the power of McNemar's test is computed exactly


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """What each independent group adds to a difference (see ``influence``), and whether the metric is a rate.

    Args:
        of_groups: float64 [groups], with a mean of 0. Its standard deviation over root groups is the error of the
            difference.
        gained: rows that only the tuned model has right, if the rows are independent and right or wrong. Else None.
        lost: rows that only the base has right; the same.
    """

    of_groups: np.ndarray
    gained: int | None = None
    lost: int | None = None

    @property
    def groups(self) -> int:
        """The number of independent groups."""
        return len(self.of_groups)

    @property
    def standard_error(self) -> float | None:
        """Of the difference, clustered by group (Miller 2024, section 2.2); None for a single group.

        With n / (n - 1), as the variance of few groups is else too small.
        """
        number, largest = self.groups, float(np.abs(self.of_groups).max(initial=0.0))
        if number < 2 or largest == 0.0:
            return None if number < 2 else 0.0
        squares = float(((self.of_groups / largest) ** 2).sum())  # a perplexity's would overflow
        return largest * math.sqrt(squares / (number * (number - 1)))


def influence(of_base: OfSums, of_tuned: OfSums, sums: np.ndarray) -> np.ndarray:
    """What each group adds to a difference, by the jackknife (Efron and Tibshirani 1993, chapter 11): float64 [groups].

    With G groups it is (G - 1) x (the difference - the difference without the group). For a mean this is exactly the
    group's deviation from the mean; for ratios and other values of sums it is that to first order.

    Args:
        of_base: the value of summed statistics, [..., k] -> [...].
        of_tuned: the same of the tuned model.
        sums: the statistics by group: k of the base, then k of the tuned model, float64 [groups, 2 k].
    """
    groups = len(sums)
    if groups < 2:
        return np.zeros(groups)
    without = sums.sum(axis=0) - sums  # [groups, 2 k]
    before, after = np.split(without, 2, axis=1)  # [groups, k] each
    left = of_tuned(after) - of_base(before)  # [groups]
    return (groups - 1) * (left.mean() - left)


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test: would a coin split the rows that differ so unevenly?"""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def clustered_p_value(difference: float, standard_error: float | None, groups: int) -> float:
    """The two-sided p-value of difference / standard error, by Student's t with groups - 1 degrees of freedom."""
    if standard_error is None:
        return 1.0
    if standard_error == 0.0:  # every group differs by the same amount
        return 1.0 if difference == 0.0 else 0.0
    return float(2 * stats.t.sf(abs(difference) / standard_error, groups - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being several (Holm 1979): each is compared with the level as if it stood alone.

    The smallest is multiplied by their number, the next one by one less, and so on. None is below a smaller one.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def widened_tail(tail: float, groups: int) -> float:
    """The quantile of a bootstrap distribution that few groups need in place of ``tail`` (Hesterberg 2015, 4.3).

    A bootstrap of n groups spreads by root((n - 1) / n) too little, and knows nothing of Student's t.
    """
    if groups < 2:
        return tail
    return float(stats.norm.cdf(math.sqrt(groups / (groups - 1)) * stats.t.ppf(tail, groups - 1)))


def detectable(standard_error: float | None, groups: int, confidence: float) -> float | None:
    """The smallest true difference that is found with a chance of POWER, by the measured error (Miller 2024, part 5).

    None where the error is not known or was measured as 0.
    """
    if not standard_error:
        return None
    found, missed = stats.t.ppf([1 - (1 - confidence) / 2, POWER], groups - 1)
    return float((found + missed) * standard_error)


def foreseen(groups: int, confidence: float, discordance: float) -> float:
    """The smallest difference of a rate that McNemar's test would find with a chance of POWER, before it is measured.

    Args:
        groups: independent rows.
        confidence: of the test.
        discordance: the share of rows that only one of the two models has right. It is assumed.

    Returns:
        A share of rows, at most 1. Where so few rows differ that even a change in one direction is not found, it is the
        smallest share that is found if all changes are in one direction.
    """
    if _power(groups, discordance, discordance, confidence) < POWER:
        return _smallest(lambda share: _power(groups, share, share, confidence), discordance, 1.0)
    return _smallest(lambda share: _power(groups, share, discordance, confidence), 0.0, discordance)


def _smallest(power_of: Callable[[float], float], low: float, high: float) -> float:
    if power_of(high) < POWER:
        return 1.0
    for _ in range(20):  # to a millionth of the scale
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle) >= POWER else (middle, high)
    return high


def _power(groups: int, difference: float, discordance: float, confidence: float) -> float:
    """The chance that McNemar's test finds a difference in favour of the tuned model."""
    level = (1 - confidence) / 2
    if groups > MOST_EXACT:
        error = math.sqrt(max(discordance - difference**2, 1e-12) / groups)
        return float(stats.norm.sf(stats.norm.isf(level) - difference / error))
    differing = np.arange(groups + 1)  # [groups + 1]: so many rows may differ
    # Of k rows that differ, so many must be in favour. A test that no split can pass needs k + 1.
    needed = stats.binom.isf(level, differing, 0.5) + 1
    in_favour = (discordance + difference) / (2 * discordance)  # the chance of each row that differs
    return float(
        (stats.binom.pmf(differing, groups, discordance) * stats.binom.sf(needed - 1, differing, in_favour)).sum()
    )


def equivalence(
    difference: float, found: Influence, *, margin: float, differing: int, least: int, confidence: float
) -> Equivalence:
    """Two one-sided tests that the tuned model is not worse and not better by more than a margin.

    Each is at the level 1 - confidence, as is usual. Rates of independent rows are tested by Tango's score, which holds
    where no row differs: then 52 rows bound the change by 5 points. Other metrics are tested by Student's t, and only
    if enough groups differ to measure their variance.

    Args:
        difference: tuned minus base, in the direction in which more is better.
        found: what each group adds to it.
        margin: above 0, in the unit of the metric.
        differing: groups on which base and tuned model differ.
        least: groups that must differ before their variance is taken as known.
        confidence: 1 - confidence is the level of each test.
    """
    if found.gained is not None and found.lost is not None:
        worse = _tango(found.gained, found.lost, found.groups, -margin)
        better = _tango(found.lost, found.gained, found.groups, -margin)
    elif differing < least or not found.standard_error:
        worse = better = 1.0
    else:
        error, freedom = found.standard_error, found.groups - 1
        worse = float(stats.t.sf((difference + margin) / error, freedom))
        better = float(stats.t.sf((margin - difference) / error, freedom))
    level = 1 - confidence
    outcome = "not shown" if worse > level else ("equivalent" if better <= level else "no worse")
    return Equivalence(margin=margin, not_worse=worse, not_better=better, outcome=outcome)


def score_interval(gained: float, lost: float, rows: float, confidence: float) -> list[float]:
    """The interval of (gained - lost) / rows by Tango's score (1998), which holds where few rows differ, or none.

    Each end is the difference at which the one-sided test has half of what the confidence leaves. Parts of rows count
    as such.
    """
    tail, found = (1 - confidence) / 2, []
    for one, other, sign in ((gained, lost, 1.0), (lost, gained, -1.0)):
        low, high = -1.0, (one - other) / rows  # the p-value grows from 0 to a half between them
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if _tango(one, other, rows, middle) >= tail else (middle, high)
        found.append(sign * low)
    return found


def _tango(gained: float, lost: float, rows: float, limit: float) -> float:
    """The one-sided p-value of (gained - lost) / rows <= limit, by Tango's score (Statistics in Medicine 17, 1998)."""
    if abs(limit) >= 1:
        return 0.0
    # The share of rows that only the base has right, as likely as can be if the difference were the limit: the root of
    # a q^2 + b q + c.
    a, b = 2 * rows, -gained - lost + (2 * rows - gained + lost) * limit
    c = -lost * limit * (1 - limit)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * share + limit * (1 - limit))
    if variance <= 0:
        return 0.0 if gained - lost > rows * limit else 1.0
    return float(stats.norm.sf((gained - lost - rows * limit) / math.sqrt(variance)))
