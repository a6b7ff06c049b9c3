"""Compares base and tuned model on the same rows: differences, paired bootstrap intervals, tests, and the verdict.

The interval is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of tuned minus base, widened for few
groups. Both models are resampled together, and so are the rows of one group. A resample sums the statistics of its
rows, and a metric's ``of_sums`` gives its value: a ratio such as the loss is a ratio of sums in every resample, and
macro F1 is computed anew. Where so few rows of a rate differ that they cannot be evidence, the interval is that of
Tango's score. docs/verdict.md says how the verdict follows from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.evaluation import damage as damages
from tunesmith.evaluation.metrics.base import RowScores, Scores, is_rate
from tunesmith.evaluation.metrics.calibration import NOT_COMPARED
from tunesmith.evaluation.metrics.perplexity import perplexity_of
from tunesmith.evaluation.statistics import (
    CLUSTERED,
    MCNEMAR,
    PAIRED,
    Influence,
    clustered_p_value,
    detectable,
    equivalence,
    holm,
    influence,
    mcnemar,
    score_interval,
    widened_tail,
)
from tunesmith.evaluation.verdict import Damage, Judgement, MetricVerdict, Verdict
from tunesmith.evaluation.wording import lower_is_better
from tunesmith.recipe.settings import TOKEN_METRICS

_COUNTS_AT_A_TIME = 1 << 21  # int64 counts held in memory at a time: 16 MiB
_ROUNDING = 1e-6  # two fp32 passes over the same weights can differ by this much, relatively
_NEAR_BOUND = 0.01  # of the scale of a rate: both models are at its end if no more than this is left

Pair = tuple[Scores, Scores]  # of the base and of the tuned model


@dataclass(frozen=True, slots=True)
class Level:
    """How sure a verdict must be, and how its bootstrap is drawn. ``margin`` is of the deciding metric."""

    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0
    margin: float | None = None


def compare(
    base: Mapping[str, Scores],
    tuned: Mapping[str, Scores],
    *,
    metrics: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    margin: float | None = None,
    signs: Mapping[str, Pair] | None = None,
) -> Verdict:
    """The verdict over scores of the same rows in the same order.

    Args:
        base: Scores of the base by metric name. ``perplexity`` is computed from ``loss``.
        tuned: the same for the tuned model.
        metrics: names in the order of verdict.json. The first one decides, or ``loss`` if none is named. ``loss`` is
            always included, at the end if it is not named, unless the models have none that can be compared. Those of
            NOT_COMPARED are left out.
        confidence: of the intervals and tests.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        margin: how much worse is still as good, in the unit of the metric that decides; None: not tested.
        signs: of broken answers, base and tuned, from ``damage.signs``.
    """
    names = [name for name in metrics if name not in NOT_COMPARED]
    names += ["loss"] if "loss" not in names and "loss" in base else []
    level = Level(confidence, resamples, seed, margin)
    found = {name: _metric_verdict(name, *_pair(base, tuned, name), level) for name in names}
    # A metric at its floor or ceiling says nothing, so the next one decides. If all are, it is the first one.
    cannot_tell = [name for name in names if found[name]["bound"] is not None]
    decides = next((name for name in names if name not in cannot_tell), names[0])
    cannot_tell = cannot_tell[: names.index(decides)]
    _correct(found, decides, confidence)
    if margin is not None:
        _test_margin(found[decides], decides, _pair(base, tuned, decides), level)
    losses = {"loss": _pair(base, tuned, "loss")} if "loss" in base else {}
    damage = _damage({**losses, **(signs or {})}, level)
    evident = [each for each in damage if each["evidence"]]
    verdict, reason = found[decides]["verdict"], found[decides]["reason"]
    # Damage is never no evidence, and a loss that decides only because no answer is right does not outweigh it.
    stands_in = decides in TOKEN_METRICS and any(found[name]["bound"] == "floor" for name in cannot_tell)
    if evident and (verdict == "no evidence" or (stands_in and verdict != "worse")):
        kind = evident[0]["kind"]
        if kind != "loss":
            found[kind] = _metric_verdict(kind, *(signs or {})[kind], level)
        reason = f"{decides} alone is {verdict}, which does not outweigh the damage."
        if verdict == "no evidence":
            reason = f"{decides} shows no difference, but the damage does."
        verdict, decides = "worse", kind
    return Verdict(
        verdict=verdict,
        decided_by=decides,
        reason=reason,
        rows=found[decides]["rows"],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        metrics=found,
        cannot_tell=cannot_tell,
        damage=damage,
    )


def compare_alone(name: str, base: Scores, tuned: Scores, level: Level) -> MetricVerdict:
    """The verdict of a metric that has no others beside it, with the tests against the margin if there is one."""
    found = _metric_verdict(name, base, tuned, level)
    if level.margin is not None:
        _test_margin(found, name, (base, tuned), level)
    return found


def bootstrap_differences(
    base: Scores, tuned: Scores, *, exponential: bool = False, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """Tuned minus base in each resample of the groups, drawn with replacement: float64 [resamples].

    With ``exponential`` it is the difference of the exponentials of both values, which makes perplexity of loss.
    """
    sums = _group_sums(base, tuned)  # [groups, 2 k]
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
        differences.append(_scale(of_tuned, exponential) - _scale(of_base, exponential))
    return np.concatenate(differences)


def least_groups(confidence: float) -> int:
    """The number of groups that must differ before there can be evidence: 6 at 95%.

    If base and tuned were equally good, each differing group would favour one of them like a coin toss (Fisher's
    randomisation test). All n groups then favour the same model with probability 2 ** (1 - n). The bootstrap cannot
    see that: if two rows both improved, every resample improves, and the interval excludes 0.
    """
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def _group_sums(base: Scores, tuned: Scores) -> np.ndarray:
    """The k statistics of the base, then those of the tuned model, summed by group: float64 [groups, 2 k]."""
    assert len(base) == len(tuned) > 0, f"{len(base)} rows of the base, {len(tuned)} of the tuned model"
    assert base.statistics.shape == tuned.statistics.shape, "other statistics"
    columns = np.concatenate([base.statistics, tuned.statistics], axis=1)  # [rows, 2 k]
    assert np.isfinite(columns).all(), "a score that is not finite"
    if base.groups is None:
        return columns
    assert tuned.groups is not None and np.array_equal(base.groups, tuned.groups), "groups of other rows"
    names, number = np.unique(base.groups, return_inverse=True)  # [groups], and each row's group [rows]
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, number, columns)
    return sums


def _scale(value: np.ndarray, exponential: bool) -> np.ndarray:
    return perplexity_of(value) if exponential else value


def _pair(base: Mapping[str, Scores], tuned: Mapping[str, Scores], name: str) -> Pair:
    source = "loss" if name == "perplexity" else name
    return base[source], tuned[source]


def _metric_verdict(name: str, base: Scores, tuned: Scores, level: Level) -> MetricVerdict:
    """The verdict of one metric as if it stood alone."""
    exponential, confidence = name == "perplexity", level.confidence
    differences = bootstrap_differences(
        base, tuned, exponential=exponential, resamples=level.resamples, seed=level.seed
    )
    values = _scale(np.array([base.value, tuned.value]), exponential)  # [2]
    found, sums = _influence(base, tuned, exponential), _group_sums(base, tuned)
    # The interval cuts off half of what the confidence leaves on each side of the differences.
    tail = widened_tail((1 - confidence) / 2, found.groups)
    low, high = np.quantile(differences, [tail, 1 - tail]).tolist()
    few = _differing(sums) < least_groups(confidence)
    if found.gained is not None and found.lost is not None and (few or low == high):
        # A bootstrap of rows that hardly differ, or all alike, does not know how many others may be otherwise.
        low, high = score_interval(found.gained, found.lost, found.groups, confidence)
    elif few and _is_bounded(base) and _is_bounded(tuned):
        # The same of scores from 0 to 1 and of groups of rows, as if every group that differs did so wholly.
        changes = _changes(base, tuned, sums)  # [groups]
        widest = score_interval(int((changes > 0).sum()), int((changes < 0).sum()), found.groups, confidence)
        low, high = min(low, widest[0]), max(high, widest[1])
    test, p_value = _tested(base, tuned)
    # There is evidence if enough groups differ, the interval excludes 0 by more than rounding, and the test agrees.
    noise = _ROUNDING * float(np.abs(values).max())
    reason = _too_little(base, tuned, confidence)
    # Rows that can be no evidence, or that differ by rounding alone, measure no error of a difference.
    shows = found.groups >= least_groups(confidence) and _differing(sums) > 0
    judgement: Judgement = "no evidence"
    if reason is None and (low > noise or high < -noise):
        if p_value <= 1 - confidence:
            judgement = "better" if (low > 0) != lower_is_better(name) else "worse"
        else:
            reason = f"{_capital(test)} does not confirm it (p = {p_value:.2g})."
    return MetricVerdict(
        base=float(values[0]),
        tuned=float(values[1]),
        difference=float(values[1] - values[0]),
        interval=[low, high],
        verdict=judgement,
        reason=reason,
        rows=len(base),
        standard_error=_finite(found.standard_error),
        test=test,
        p_value=p_value,
        adjusted_p_value=p_value,
        detectable=_finite(detectable(found.standard_error, found.groups, confidence)) if shows else None,
        bound=_bound(name, base, tuned, confidence),
        equivalence=None,
    )


def _influence(base: Scores, tuned: Scores, exponential: bool) -> Influence:
    """What each group adds to the difference; of rates of independent rows also how many rows changed."""
    of_groups = influence(
        lambda sums: _scale(base.of_sums(sums), exponential),
        lambda sums: _scale(tuned.of_sums(sums), exponential),
        _group_sums(base, tuned),
    )  # [groups]
    if not (is_rate(base) and is_rate(tuned) and _independent(base)):
        return Influence(of_groups)
    changes = tuned.of_rows - base.of_rows  # [rows]: 1, 0 or -1
    return Influence(of_groups, int((changes > 0).sum()), int((changes < 0).sum()))


def _tested(base: Scores, tuned: Scores) -> tuple[str, float]:
    """The name of the test that fits these scores, and its p-value. Perplexity is tested as the loss that it is of."""
    found = _influence(base, tuned, False)
    if found.gained is not None and found.lost is not None:
        return MCNEMAR, mcnemar(found.gained, found.lost)
    name = PAIRED if _independent(base) else CLUSTERED
    return name, clustered_p_value(tuned.value - base.value, found.standard_error, found.groups)


def _is_bounded(scores: Scores) -> bool:
    """Whether the value is the mean of scores from 0 to 1, one a row."""
    return (
        isinstance(scores, RowScores)
        and bool((scores.weight == 1).all())
        and bool(((scores.total >= 0) & (scores.total <= 1)).all())
    )


def _changes(base: Scores, tuned: Scores, sums: np.ndarray) -> np.ndarray:
    """Tuned minus base of each group, float64 [groups], from the sums of both [groups, 2 k]."""
    before, after = np.split(sums, 2, axis=1)  # [groups, k] each
    return tuned.of_sums(after) - base.of_sums(before)


def _independent(scores: Scores) -> bool:
    return scores.groups is None or len(np.unique(scores.groups)) == len(scores)


def _bound(name: str, base: Scores, tuned: Scores, confidence: float) -> Literal["floor", "ceiling"] | None:
    """The end of the scale that both models are at: so few rows are elsewhere that they could never decide.

    The scale is 0 to 1. A metric with another one is at its floor if every row of both models has 0.
    """
    if lower_is_better(name):
        return None
    rows, values = np.stack([base.of_rows, tuned.of_rows]), np.array([base.value, tuned.value])  # [2, rows], [2]
    if not rows.any():
        return "floor"
    if min(rows.min(), values.min()) < 0 or max(rows.max(), values.max()) > 1:
        return None
    ends: tuple[tuple[Literal["floor", "ceiling"], float], ...] = (("floor", 0.0), ("ceiling", 1.0))
    for end, value in ends:
        elsewhere = (np.abs(rows - value) > _ROUNDING).sum(axis=1)  # [2]
        if (elsewhere < least_groups(confidence)).all() and (np.abs(values - value) <= _NEAR_BOUND).all():
            return end
    return None


def _correct(found: Mapping[str, MetricVerdict], decides: str, confidence: float) -> None:
    """Holm's correction of the metrics beside the one that decides, which was named before and stands alone.

    Perplexity is the loss by another name, and a metric at the end of its scale tests nothing: both do not count.
    """
    beside = [name for name in found if name != decides and found[name]["bound"] is None]
    beside = [name for name in beside if not (name in ("loss", "perplexity") and decides in ("loss", "perplexity"))]
    if "loss" in beside and "perplexity" in beside:
        beside.remove("perplexity")
    adjusted = dict(zip(beside, holm([found[name]["p_value"] for name in beside]), strict=True))
    if "loss" in adjusted and "perplexity" in found:
        adjusted["perplexity"] = adjusted["loss"]
    for name, p_value in adjusted.items():
        each = found[name]
        each["adjusted_p_value"] = p_value
        if each["verdict"] in ("better", "worse") and p_value > 1 - confidence:
            each["verdict"] = "no evidence"
            each["reason"] = f"Corrected for {len(beside)} metrics beside {decides} (Holm), p = {p_value:.2g}."


def _test_margin(found: MetricVerdict, name: str, pair: Pair, level: Level) -> None:
    """Adds the two one-sided tests to the deciding metric. Where there is no evidence, they may say `no worse`."""
    assert level.margin is not None
    sums = _group_sums(*pair)
    towards_better = -1.0 if lower_is_better(name) else 1.0
    found["equivalence"] = equivalence(
        towards_better * found["difference"],
        _influence(*pair, name == "perplexity"),
        margin=level.margin,
        differing=_differing(sums),
        least=least_groups(level.confidence),
        confidence=level.confidence,
    )
    if found["verdict"] == "no evidence" and found["equivalence"]["outcome"] != "not shown":
        found["verdict"], found["reason"] = "no worse", None


def _damage(pairs: Mapping[str, Pair], level: Level) -> list[Damage]:
    """The signs of damage that rose, those with evidence first. Their tests are corrected together."""
    corrected = holm([_tested(*pair)[1] for pair in pairs.values()])
    found = []
    for (name, (base, tuned)), p_value in zip(pairs.items(), corrected, strict=True):
        if damages.rose(name, base.value, tuned.value):
            sure = p_value <= 1 - level.confidence and _metric_verdict(name, base, tuned, level)["verdict"] == "worse"
            values = {"base": base.value, "tuned": tuned.value, "rows": len(base)}
            found.append(Damage(kind=name, **values, p_value=p_value, evidence=sure))  # type: ignore[typeddict-item]
    return sorted(found, key=lambda each: not each["evidence"])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _differing(sums: np.ndarray) -> int:
    """The groups on which base and tuned model differ: one of their statistics does, by more than rounding.

    ``sums`` is [groups, 2 k].
    """
    pairs = np.stack(np.split(sums, 2, axis=1))  # [2, groups, k]: base and tuned
    return int((np.abs(pairs[1] - pairs[0]) > _ROUNDING * np.abs(pairs).max(axis=0)).any(axis=1).sum())


def _too_little(base: Scores, tuned: Scores, confidence: float) -> str | None:
    """The reason why these rows cannot be evidence whatever the interval is, or None."""
    sums = _group_sums(base, tuned)  # [groups, 2 k]
    differing = _differing(sums)
    needed = least_groups(confidence)
    if differing >= needed:
        return None
    kind, count = "row" if base.groups is None else "group", len(sums)
    least = f"at least {needed} {kind}s must differ for a verdict at {100 * confidence:g}% confidence."
    if count < needed:
        one, of = ("is", "") if count == 1 else ("are", "s")
        whole = f"{kind}{of}" if base.groups is None else f"independent {kind}{of} of rows"
        return f"There {one} only {count} {whole}, too few to show any difference: {least}"
    if differing:
        whole = "rows" if base.groups is None else "independent groups of rows"
        verb = "differs" if differing == 1 else "differ"
        return f"Only {differing} of {count} {whole} {verb}; {least}"
    before, after = np.split(sums, 2, axis=1)  # [groups, k] each
    if np.array_equal(before, after):
        return f"Both models score the same; {least}"
    return "Nothing changed: the difference is within rounding."
