"""The content of verdict.json. This module imports neither numpy nor torch: whatever shows a verdict reads it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

Judgement = Literal["better", "no worse", "no evidence", "worse"]
STARTED_FROM = "the adapter it started from"  # a verdict's base_model if training continued from an adapter
FROM_PYTHON = "rows given in Python"  # what stands for the name of a file that is gone when they are judged
POWER = 0.8  # the chance to see a difference of the size that is called detectable


class Equivalence(TypedDict):
    """Two one-sided tests against a margin, in the unit of the metric (Schuirmann 1987).

    ``not_worse`` and ``not_better`` are their p-values: that the tuned model is worse, or better, by more than the
    margin. ``outcome`` is ``equivalent`` if both are small, ``no worse`` if the first one is, else ``not shown``.
    """

    margin: float
    not_worse: float
    not_better: float
    outcome: Literal["equivalent", "no worse", "not shown"]


class MetricVerdict(TypedDict):
    """One metric in verdict.json. ``difference`` is tuned minus base, and ``interval`` is its [low, high].

    A verdict.json of an earlier version ends with ``rows``. ``standard_error`` is of the difference, clustered by
    group. ``p_value`` is of ``test``; ``adjusted_p_value`` is corrected for the metrics beside the deciding one.
    ``detectable`` is the smallest difference that these rows show with a power of 0.8, by the measured variance.
    ``bound`` says that both models are at the end of the scale, where the metric cannot tell them apart.
    """

    base: float
    tuned: float
    difference: float
    interval: list[float]
    verdict: Judgement
    reason: str | None
    rows: int
    standard_error: float | None
    test: str
    p_value: float
    adjusted_p_value: float
    detectable: float | None
    bound: Literal["floor", "ceiling"] | None
    equivalence: Equivalence | None


class Damage(TypedDict):
    """One sign that the tuned model is broken. ``evidence``: it is larger than chance explains."""

    kind: Literal["loss", "unfinished", "repetition"]
    base: float
    tuned: float
    rows: int
    p_value: float
    evidence: bool


class Advice(TypedDict):
    """What to try next. ``text`` says what was measured. In ``command``, RUN stands for the folder of the run."""

    reason: str
    text: str
    command: str


class Verdict(TypedDict):
    """The content of verdict.json. ``verdict``, ``reason`` and ``rows`` are those of the metric ``decided_by``.

    ``base_model`` says what the tuned model was compared with. ``data`` names the rows where they are not the run's own
    held-out rows, and ``trained_on`` says how many of them the run was trained on, if that is known. ``cannot_tell``
    are metrics that should have decided but are at their floor or ceiling. ``damage`` and ``advice`` are as above.
    ``probe`` is a ProbeResult. ``divergence``, ``memorisation``, ``side_effects`` and ``baselines`` are what modules of
    these names give. ``left_out`` says by key what could not be measured, and why (not_measured.py).
    ``slices`` are SliceResults of the metric ``sliced_by``, the worst first.
    """

    verdict: Judgement
    decided_by: str
    reason: str | None
    rows: int
    confidence: float
    resamples: int
    seed: int
    metrics: dict[str, MetricVerdict]
    cannot_tell: list[str]
    damage: list[Damage]
    base_model: NotRequired[str]
    data: NotRequired[str | None]
    trained_on: NotRequired[int | None]
    advice: NotRequired[list[Advice]]
    probe: NotRequired[dict[str, Any]]
    divergence: NotRequired[dict[str, Any]]
    memorisation: NotRequired[dict[str, Any]]
    left_out: NotRequired[dict[str, str]]
    side_effects: NotRequired[dict[str, Any]]
    baselines: NotRequired[dict[str, Any]]
    sliced_by: NotRequired[str]
    slices: NotRequired[list[dict[str, Any]]]
