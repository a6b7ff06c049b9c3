"""Compares base and tuned model on the same rows: differences with their intervals (intervals.py), tests, the verdict.

docs/verdict.md says how the verdict follows from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunesmith.evaluation import damage as damages
from tunesmith.evaluation.intervals import ROUNDING, differing, group_sums, interval, least_groups, scaled
from tunesmith.evaluation.metrics.base import Scores, is_rate
from tunesmith.evaluation.metrics.calibration import NOT_COMPARED
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
)
from tunesmith.evaluation.verdict import Damage, Judgement, MetricVerdict, Verdict
from tunesmith.evaluation.wording import lower_is_better
from tunesmith.recipe.settings import TOKEN_METRICS

_PREFERRED = "preference_accuracy"  # of dpo and orpo
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
    # A metric at its floor or ceiling says nothing, so the next one decides. If all are, it is the first one. The loss
    # of a preference objective falls long before a pair changes sides, so it decides only where it was asked for.
    of_pairs = _PREFERRED in base
    cannot_tell = [name for name in names if found[name]["bound"] is not None]
    may_decide = [name for name in names if name == names[0] or not (of_pairs and name == "loss")]
    decides = next((name for name in may_decide if name not in cannot_tell), names[0])
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
    if of_pairs and verdict != "worse" and (said := _unmoved_pairs(found, *_pair(base, tuned, _PREFERRED), level)):
        reason = f"{said} {reason or ''}".strip()
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


def _unmoved_pairs(found: Mapping[str, MetricVerdict], base: Scores, tuned: Scores, level: Level) -> str | None:
    """That a preference objective's loss fell while the model hardly prefers other answers, if that is so.

    ``base`` and ``tuned`` say of each pair whether the model finds the chosen answer likelier than the rejected one.
    """
    if "loss" not in found or found["loss"]["verdict"] != "better":
        return None
    preferred = found[_PREFERRED] if _PREFERRED in found else _metric_verdict(_PREFERRED, base, tuned, level)
    if preferred["verdict"] == "better":
        return None
    before, after = base.of_rows > 0.5, tuned.of_rows > 0.5  # bool [pairs]
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    sides = f"{gained} changed to the chosen answer and {lost} away from it" if gained or lost else "none changed sides"
    return (
        f"The loss fell, but of {len(after)} pairs {sides}: the chosen answer is the likelier one in "
        f"{int(after.sum())} (base: {int(before.sum())})."
    )


def compare_alone(name: str, base: Scores, tuned: Scores, level: Level) -> MetricVerdict:
    """The verdict of a metric that has no others beside it, with the tests against the margin if there is one."""
    found = _metric_verdict(name, base, tuned, level)
    if level.margin is not None:
        _test_margin(found, name, (base, tuned), level)
    return found


def _pair(base: Mapping[str, Scores], tuned: Mapping[str, Scores], name: str) -> Pair:
    source = "loss" if name == "perplexity" else name
    return base[source], tuned[source]


def _metric_verdict(name: str, base: Scores, tuned: Scores, level: Level) -> MetricVerdict:
    """The verdict of one metric as if it stood alone."""
    exponential, confidence = name == "perplexity", level.confidence
    values = scaled(np.array([base.value, tuned.value]), exponential)  # [2]
    found, sums = _influence(base, tuned, exponential), group_sums(base, tuned)
    low, high = interval(
        base,
        tuned,
        found,
        exponential=exponential,
        confidence=confidence,
        resamples=level.resamples,
        seed=level.seed,
    )
    test, p_value = _tested(base, tuned)
    # There is evidence if enough groups differ, the interval excludes 0 by more than rounding, and the test agrees.
    noise = ROUNDING * float(np.abs(values).max())
    reason = _too_little(base, tuned, confidence)
    # Rows that can be no evidence, or that differ by rounding alone, measure no error of a difference.
    shows = found.groups >= least_groups(confidence) and differing(sums) > 0
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
        lambda sums: scaled(base.of_sums(sums), exponential),
        lambda sums: scaled(tuned.of_sums(sums), exponential),
        group_sums(base, tuned),
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
        elsewhere = (np.abs(rows - value) > ROUNDING).sum(axis=1)  # [2]
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
    sums = group_sums(*pair)
    towards_better = -1.0 if lower_is_better(name) else 1.0
    found["equivalence"] = equivalence(
        towards_better * found["difference"],
        _influence(*pair, name == "perplexity"),
        margin=level.margin,
        differing=differing(sums),
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


def _too_little(base: Scores, tuned: Scores, confidence: float) -> str | None:
    """The reason why these rows cannot be evidence whatever the interval is, or None."""
    sums = group_sums(base, tuned)  # [groups, 2 k]
    number = differing(sums)
    needed = least_groups(confidence)
    if number >= needed:
        return None
    kind, count = "row" if base.groups is None else "group", len(sums)
    least = f"at least {needed} {kind}s must differ for a verdict at {100 * confidence:g}% confidence."
    if count < needed:
        one, of = ("is", "") if count == 1 else ("are", "s")
        whole = f"{kind}{of}" if base.groups is None else f"independent {kind}{of} of rows"
        return f"There {one} only {count} {whole}, too few to show any difference: {least}"
    if number:
        whole = "rows" if base.groups is None else "independent groups of rows"
        verb = "differs" if number == 1 else "differ"
        return f"Only {number} of {count} {whole} {verb}; {least}"
    before, after = np.split(sums, 2, axis=1)  # [groups, k] each
    if np.array_equal(before, after):
        return f"Both models score the same; {least}"
    return "Nothing changed: the difference is within rounding."
