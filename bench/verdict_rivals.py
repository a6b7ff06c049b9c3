"""What Soup's `ship` rule and FineTuneCheck say of pairs of row scores. It runs in an environment of its own.

Reads one JSON line a pair from standard input, ``{"base": [...], "tuned": [...]}`` with scores from 0 to 1, and answers
each with ``{"soup": "better" | "not better", "finetunecheck": ..., "finetunecheck_interval": ...}``. Both get a general
benchmark that did not change, since neither says anything good without one.
"""

from __future__ import annotations

import json
import sys
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from finetunecheck.eval.runner import EvalRunner
from finetunecheck.eval.scorer import Scorer
from finetunecheck.forgetting.metrics import compute_roi_details, paired_delta_interval
from finetunecheck.models import JudgeVerdict, MeasurementStatus, Verdict
from soup_cli.utils.ship_verdict import DECISION_SHIP, build_task_win, compute_benchmark_deltas, decide_ship

UNCHANGED = [1.0, 0.0] * 15  # rows of a benchmark that both models answer alike: as many as FineTuneCheck asks for
GOOD = (Verdict.EXCELLENT, Verdict.GOOD, Verdict.GOOD_WITH_CONCERNS)


def soup(base: list[float], tuned: list[float]) -> bool:
    """Whether Soup ships the tuned model."""
    win = build_task_win("metric", fmean(base), fmean(tuned))
    general = {"general": fmean(UNCHANGED)}
    return decide_ship(win, compute_benchmark_deltas(general, general)).decision == DECISION_SHIP


def finetunecheck(base: list[float], tuned: list[float]) -> bool:
    """Whether FineTuneCheck calls the tuned model good, by the rules of its runner."""
    runner = EvalRunner.__new__(EvalRunner)  # without its models
    names = ("task", "safety", "general")
    runner._probes = [SimpleNamespace(name=name, provenance={}, samples=[]) for name in names]  # type: ignore[assignment]
    runner.config = SimpleNamespace(target_tasks=["task"], hard_gates={}, verdict_weights={})  # type: ignore[assignment]
    sides: list[dict[str, Any]] = []
    for task in (base, tuned):
        rows = {"task": task, "safety": UNCHANGED, "general": UNCHANGED}
        sides.append({name: Scorer.compute_category_scores(_verdicts(rows[name]), name) for name in names})
    improvement = Scorer.compute_target_improvement(sides[0]["task"], sides[1]["task"])
    forgetting = runner._compute_forgetting(*sides)
    rates = [rate for rate in forgetting.capability_retention_rates.values() if rate is not None]
    roi = compute_roi_details(
        target_improvement=improvement,
        bwt=forgetting.backward_transfer,
        sar=forgetting.safety_alignment_retention,
        sfi=forgetting.selective_forgetting_index,
        mean_crr=fmean(rates) if rates else None,
    )
    return runner._compute_verdict(improvement, forgetting, *sides, roi)[0] in GOOD


def _verdicts(scores: list[float]) -> list[JudgeVerdict]:
    return [
        JudgeVerdict(sample_id=str(number), score=score, status=MeasurementStatus.MEASURED)
        for number, score in enumerate(scores)
    ]


def main() -> None:
    """Answers every pair."""
    for line in sys.stdin:
        pair = json.loads(line)
        interval = paired_delta_interval(pair["base"], pair["tuned"])
        answers = {
            "soup": soup(pair["base"], pair["tuned"]),
            "finetunecheck": finetunecheck(pair["base"], pair["tuned"]),
            "finetunecheck_interval": interval is not None and interval[1] > 0,
        }
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
