"""Compares pairs of models on the same rows, corrected for being several (Holm 1979). It does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from tunesmith.evaluation.compare import compare
from tunesmith.evaluation.metrics.base import RowScores, Scores
from tunesmith.evaluation.metrics.calibration import NOT_COMPARED
from tunesmith.evaluation.statistics import holm
from tunesmith.evaluation.verdict import MetricVerdict, Verdict
from tunesmith.evaluation.wording import ALONE
from tunesmith.recipe.settings import TOKEN_METRICS, EvaluationSettings

ACROSS_TOKENIZERS = "bits_per_byte"  # the only metric of tokens that models with other tokens share

# TypedDict's functional form, as `from` is a word of Python.
PairVerdict = TypedDict("PairVerdict", {"from": str, "to": str, "verdict": Verdict})


@dataclass(frozen=True, slots=True)
class Scored:
    """Everything that was measured of one model, by metric. ``signs`` are those of broken answers.

    Models with the same ``tokens`` were scored on the same labels, so that their losses can be compared.
    """

    scores: Mapping[str, Scores]
    signs: Mapping[str, RowScores] = field(default_factory=dict)
    tokens: str = ""


@dataclass(frozen=True, slots=True)
class AskedPair:
    """Two models to compare, by name: the first one takes the place of the base."""

    one: str
    other: str
    before: Scored
    after: Scored


def compare_pairs(
    pairs: Sequence[AskedPair], *, metrics: Sequence[str], settings: EvaluationSettings
) -> list[PairVerdict]:
    """The verdict of each pair. It is over the metrics that both models have.

    Two families are corrected by Holm's method: the deciding metrics of all pairs, and all their other metrics.

    Args:
        pairs: of the same rows in the same order.
        metrics: the first one decides.
        settings: confidence, resamples, seed and margin.
    """
    found = []
    for pair in pairs:
        before, after = shared_scores(pair.before, pair.after)
        named = [name for name in metrics if name in before]
        if "loss" not in before and not named:
            named = [ACROSS_TOKENIZERS]
        signs = {
            name: (sign, pair.after.signs[name])
            for name, sign in pair.before.signs.items()
            if name in pair.after.signs and len(sign) == len(pair.after.signs[name])
        }
        verdict = compare(
            before,
            after,
            metrics=named,
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
            margin=settings.margin,
            signs=signs,
        )
        found.append(PairVerdict({"from": pair.one, "to": pair.other, "verdict": verdict}))
    _correct([each["verdict"] for each in found], 1 - settings.confidence)
    return found


def shared_scores(one: Scored, other: Scored) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """The metrics that two models can be compared by. Empty if there are none."""
    names = [name for name in one.scores if name in other.scores]
    if one.tokens != other.tokens:
        names = [name for name in names if _crosses(name)]
    return {name: one.scores[name] for name in names}, {name: other.scores[name] for name in names}


def _correct(verdicts: Sequence[Verdict], level: float) -> None:
    deciding = [verdict["metrics"][verdict["decided_by"]] for verdict in verdicts]
    beside = [metric for verdict in verdicts for metric in _beside(verdict)]
    if len(verdicts) > 1:
        for family, what in ((deciding, f"{len(deciding)} comparisons"), (beside, f"{len(beside)} further tests")):
            for metric, p_value in zip(family, holm([each["p_value"] for each in family]), strict=True):
                _demote(metric, p_value, level, what)
        _correct_margins(deciding, level)
    for verdict, metric in zip(verdicts, deciding, strict=True):
        if "perplexity" in verdict["metrics"] and "loss" in verdict["metrics"]:  # one test by two names
            one, other = (verdict["metrics"][name] for name in ALONE)
            known, copy = (other, one) if verdict["decided_by"] == "perplexity" else (one, other)
            copy["adjusted_p_value"] = known["adjusted_p_value"]
        if verdict["verdict"] in ("better", "worse", "no worse") and metric["verdict"] == "no evidence":
            verdict["verdict"], verdict["reason"] = metric["verdict"], metric["reason"]


def _beside(verdict: Verdict) -> list[MetricVerdict]:
    """The metrics besides the deciding one that test something: not at the end of their scale, and not twice."""
    found = verdict["metrics"]
    names = [name for name in found if name != verdict["decided_by"] and found[name]["bound"] is None]
    if verdict["decided_by"] in ALONE:
        names = [name for name in names if name not in ALONE]
    if "loss" in names and "perplexity" in names:
        names.remove("perplexity")
    return [found[name] for name in names]


def _demote(metric: MetricVerdict, p_value: float, level: float, what: str) -> None:
    """Sets the corrected p-value, and what it leaves of the metric's verdict."""
    metric["adjusted_p_value"] = p_value
    if metric["verdict"] in ("better", "worse") and p_value > level:
        metric["verdict"] = "no evidence"
        metric["reason"] = f"Corrected for {what} (Holm), p = {p_value:.2g}."


def _correct_margins(deciding: Sequence[MetricVerdict], level: float) -> None:
    """`no worse` is a test of each pair, too."""
    tested = [(metric, metric["equivalence"]) for metric in deciding]
    tested = [(metric, found) for metric, found in tested if found is not None]
    adjusted = holm([found["not_worse"] for _, found in tested])
    for (metric, _), p_value in zip(tested, adjusted, strict=True):
        if metric["verdict"] == "no worse" and p_value > level:
            metric["verdict"] = "no evidence"
            metric["reason"] = f"Corrected for {len(tested)} comparisons (Holm), no worse by p = {p_value:.2g}."


def values(models: Mapping[str, Scored], pairs: Sequence[PairVerdict]) -> dict[str, dict[str, float]]:
    """The value of each metric for each model: ``{metric: {model: value}}``.

    Metrics of tokens are left out if not all models have the same tokens.
    """
    found: dict[str, dict[str, float]] = {}
    one_kind = len({each.tokens for each in models.values()}) == 1
    for pair in pairs:
        for name, metric in pair["verdict"]["metrics"].items():
            own = next(iter(models.values())).scores
            if (name in own or name == "perplexity") and (one_kind or _crosses(name)):
                found.setdefault(name, {}).update({pair["from"]: metric["base"], pair["to"]: metric["tuned"]})
    for name in NOT_COMPARED:
        if own := {model: of.scores[name].value for model, of in models.items() if name in of.scores}:
            found[name] = own
    return {name: {model: of[model] for model in models if model in of} for name, of in found.items()}


def _crosses(name: str) -> bool:
    """Whether a metric means the same for models with other tokens, or another objective."""
    return name == ACROSS_TOKENIZERS or name not in (*TOKEN_METRICS, "reward_margin")
