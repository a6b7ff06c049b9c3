"""The interval of a paired difference: tuned minus base on the same rows, both resampled together by group.

Rates of independent rows have Tango's score interval (Statistics in Medicine 17, 1998), which holds also where few rows
differ. All others have the wider of two on each side:

- the percentile bootstrap (Efron and Tibshirani 1993, chapter 13), widened for few groups. A resample sums the
  statistics of its rows, and ``of_sums`` of a metric gives its value: a ratio such as the loss is one of sums in every
  resample, and macro F1 is computed anew.
- Student's t with the error of the jackknife over groups (Efron and Tibshirani 1993, chapter 11). The bootstrap spreads
  too little for a metric that is made of few rows, such as the F1 of a label with few: a resample lacks some labels and
  doubles rows of others. The jackknife leaves out one group at a time. Its variance is too large on average, not too
  small (Efron and Stein 1981).

Where so few groups differ that they cannot be evidence, or all differ alike, both know too little of others, and the
interval of ``_interval_of_few`` is added.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from tunesmith.evaluation.metrics.base import RowStatistics, Scores
from tunesmith.evaluation.metrics.perplexity import perplexity_of
from tunesmith.evaluation.statistics import Influence, score_interval, widened_tail

ROUNDING = 1e-6  # two fp32 passes over the same weights can differ by this much, relatively
_COUNTS_AT_A_TIME = 1 << 21  # int64 counts held in memory at a time: 16 MiB


def interval(
    base: Scores,
    tuned: Scores,
    found: Influence,
    *,
    exponential: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[float]:
    """The interval of tuned minus base.

    Args:
        base: the base's scores.
        tuned: the tuned model's, of the same rows.
        found: what each group adds to the difference.
        exponential: it is of the exponentials of both values, which makes perplexity of loss.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    if found.gained is not None and found.lost is not None:
        return score_interval(found.gained, found.lost, found.groups, confidence)
    differences = bootstrap_differences(base, tuned, exponential=exponential, resamples=resamples, seed=seed)
    # The interval cuts off half of what the confidence leaves on each side of the differences.
    tail, sums = (1 - confidence) / 2, group_sums(base, tuned)
    widened = widened_tail(tail, found.groups)
    ends = [np.quantile(differences, [widened, 1 - widened]).tolist()]
    if found.standard_error:
        before, after = (float(scaled(np.array(scores.value), exponential)) for scores in (base, tuned))
        reach = float(stats.t.isf(tail, found.groups - 1)) * found.standard_error
        ends += [[after - before - reach, after - before + reach]] if math.isfinite(reach) else []
    extremes = base.extremes if tuned.extremes is not None else None
    alike = not found.standard_error  # all groups, or there is one
    if extremes is not None and (alike or differing(sums) < least_groups(confidence)):
        ends += _interval_of_few(base, tuned, sums, extremes, confidence)
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if extremes is not None:  # no difference is larger than that of all rows wrong and all rows right
        wrong, right = (base.of_sums(each.sum(axis=0)) for each in extremes)
        low, high = max(low, float(wrong - right)), min(high, float(right - wrong))
    return [low, high]


def interval_of_value(
    scores: Scores, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> list[float]:
    """The interval of one model's value: the percentile bootstrap, widened for few groups."""
    # The difference from a model whose value is always 0 is the value itself.
    zero = RowStatistics(scores.statistics, _zero, scores.of_rows, scores.groups)
    values = bootstrap_differences(zero, scores, resamples=resamples, seed=seed)
    groups = len(scores) if scores.groups is None else len(np.unique(scores.groups))
    tail = widened_tail((1 - confidence) / 2, groups)
    return np.quantile(values, [tail, 1 - tail]).tolist()


def _zero(sums: np.ndarray) -> np.ndarray:
    """[..., k] -> [...]."""
    return np.zeros(sums.shape[:-1])


def _interval_of_few(
    base: Scores, tuned: Scores, sums: np.ndarray, extremes: tuple[np.ndarray, np.ndarray], confidence: float
) -> list[list[float]]:
    """The interval of a difference that few groups show: Tango's score of the effective number of groups.

    A group that goes from wholly wrong to wholly right changes the value by its reach: 1 / rows in a mean, and more for
    a row of a rare label in macro F1. Groups of unequal reach count as fewer equal ones, (sum)^2 / sum of squares (Kish
    1965; Korn and Graubard 1998, who do this for the interval of a rate in survey data). The largest part of its reach
    by which a group changes counts as one change, and a group that changes by less counts as a part of one: of all that
    lie between -1 and 1 with the same mean, whole changes vary most. If none changes, one may change by all its reach.

    Args:
        base: the base's scores.
        tuned: the tuned model's.
        sums: the statistics of both by group, float64 [groups, 2 k].
        extremes: those of rows that are wrong and right, float64 [rows, k] each.
        confidence: of the interval.

    Returns:
        One interval; none if a group cannot change the value.
    """
    wrong, right = (sums_by_group(each, base.groups) for each in extremes)  # [groups, k] each
    before, after = np.split(sums, 2, axis=1)  # [groups, k] each
    # The mean over both models of what a group changes if it becomes wholly right, from wholly wrong: [groups].
    reach = np.zeros(len(sums))
    for scores, own in ((base, before), (tuned, after)):
        others = own.sum(axis=0) - own  # [groups, k]
        reach += (scores.of_sums(others + right) - scores.of_sums(others + wrong)) / 2
    if not (reach > 0).all():
        return []
    size = float(reach.sum() ** 2 / (reach**2).sum())  # the effective number of groups
    # What the difference owes to each group: all of it less what is left if the group had not changed. [groups]
    total = after.sum(axis=0)
    gains = tuned.of_sums(total[None]) - tuned.of_sums(total - after + before)
    gains = np.where(_differ(sums), gains, 0.0)  # without what rounding adds
    unit = float(np.abs(gains / reach).max()) or 1.0
    whole = unit * float(reach.sum())  # the difference if every group gained one unit
    gained, lost = (size * float(np.maximum(sign * gains, 0).sum()) / whole for sign in (1, -1))
    return [[whole * end for end in score_interval(gained, lost, size, confidence)]]


def bootstrap_differences(
    base: Scores, tuned: Scores, *, exponential: bool = False, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Tuned minus base in each resample of the groups, drawn with replacement: float64 [resamples].

    With ``exponential`` it is the difference of the exponentials of both values, which makes perplexity of loss.
    """
    sums = group_sums(base, tuned)  # [groups, 2 k]
    sums = sums[drawing_order(sums)]
    groups, k = len(sums), sums.shape[1] // 2
    whole = np.array_equal(sums, np.rint(sums))
    random = np.random.default_rng(seed)
    chunk = max(1, _COUNTS_AT_A_TIME // groups)  # resamples at a time, so that memory stays bounded
    differences = []
    for start in range(0, resamples, chunk):
        number = min(chunk, resamples - start)
        # Each resample draws as many groups as there are: group numbers [number, groups], offset by resample.
        drawn = random.integers(groups, size=(number, groups)) + np.arange(number)[:, None] * groups
        # How often each resample has each group [number, groups].
        counts = np.bincount(drawn.ravel(), minlength=number * groups).reshape(number, groups)
        # The sums of each resample [number, 2 k]. A BLAS product is exact for whole numbers, and others it could round
        # differently for other chunk sizes.
        totals = counts.astype(np.float64) @ sums if whole else np.einsum("ng,gk->nk", counts, sums)
        of_base, of_tuned = base.of_sums(totals[:, :k]), tuned.of_sums(totals[:, k:])  # [number] each
        differences.append(scaled(of_tuned, exponential) - scaled(of_base, exponential))
    return np.concatenate(differences)


def drawing_order(sums: np.ndarray) -> np.ndarray:
    """The order by value in which resamples draw the rows of ``sums``, float64 [groups, 2 k]: their numbers, [groups].

    So the same scores have the same interval, whatever the order of their rows and the numbers of their groups: that of
    a run's verdict and that of a comparison are one.
    """
    before, after = np.split(sums, 2, axis=1)  # [groups, k] each
    # What both have together comes first, so that swapped models keep the order unless rows tie. Bytes of big-endian
    # floats compare like the numbers, but for signs; adding 0 makes one zero of -0 and 0.
    columns = np.concatenate([before + after, before], axis=1) + 0.0  # [groups, 2 k]
    keys = np.ascontiguousarray(columns.astype(">f8")).view(f"V{8 * columns.shape[1]}").ravel()  # [groups]
    return np.argsort(keys, kind="stable")


def least_groups(confidence: float) -> int:
    """The number of groups that must differ before there can be evidence: 6 at 95%.

    If base and tuned were equally good, each differing group would favour one of them like a coin toss (Fisher's
    randomisation test). All n groups then favour the same model with probability 2 ** (1 - n). The bootstrap cannot
    see that: if two rows both improved, every resample improves, and the interval excludes 0.
    """
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def group_sums(base: Scores, tuned: Scores) -> np.ndarray:
    """The k statistics of the base, then those of the tuned model, summed by group: float64 [groups, 2 k]."""
    assert len(base) == len(tuned) > 0, f"{len(base)} rows of the base, {len(tuned)} of the tuned model"
    assert base.statistics.shape == tuned.statistics.shape, "other statistics"
    columns = np.concatenate([base.statistics, tuned.statistics], axis=1)  # [rows, 2 k]
    assert np.isfinite(columns).all(), "a score that is not finite"
    if base.groups is not None:
        assert tuned.groups is not None and np.array_equal(base.groups, tuned.groups), "groups of other rows"
    return sums_by_group(columns, base.groups)


def sums_by_group(columns: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Statistics of rows summed by group: float64 [rows, k] -> [groups, k]. Without groups each row is one."""
    if groups is None:
        return columns
    names, number = np.unique(groups, return_inverse=True)  # [groups], and each row's group [rows]
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, number, columns)
    return sums


def scaled(value: np.ndarray, exponential: bool) -> np.ndarray:
    """A value, or with ``exponential`` its exponential."""
    return perplexity_of(value) if exponential else value


def differing(sums: np.ndarray) -> int:
    """The groups on which base and tuned model differ: one of their statistics does, by more than rounding.

    ``sums`` is [groups, 2 k].
    """
    return int(_differ(sums).sum())


def _differ(sums: np.ndarray) -> np.ndarray:
    """Which groups differ: bool [groups]."""
    pairs = np.stack(np.split(sums, 2, axis=1))  # [2, groups, k]: base and tuned
    return (np.abs(pairs[1] - pairs[0]) > ROUNDING * np.abs(pairs).max(axis=0)).any(axis=1)
