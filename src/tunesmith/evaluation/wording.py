"""Says a verdict in plain sentences, from verdict.json of this version or an earlier one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.evaluation.verdict import FROM_PYTHON, POWER, STARTED_FROM
from tunesmith.recipe.settings import CALIBRATION_METRICS, LOWER_IS_BETTER, TOKEN_METRICS
from tunesmith.runs.plain_text import between

SIGNS = {"unfinished": "do not end", "repetition": "end in repetition"}
ALONE = ("loss", "perplexity")
BASELINES = {
    "majority": "The most frequent training answer",
    "nearest": "The answer of the nearest training prompt",
    "linear": "A linear model over words",
    "few_shot": "The base with training rows in its prompt",
}


def lower_is_better(name: str) -> bool:
    """Whether a lower value of a metric of a verdict is better."""
    return name in (*LOWER_IS_BETTER, *CALIBRATION_METRICS, *SIGNS)


def sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict for the terminal: damage first, then what decided, then what limits it."""
    decided_by = verdict["decided_by"]
    found = verdict["metrics"][decided_by]
    signs = [each for each in (verdict.get("damage") or []) if each["evidence"]]
    damage = [_damaged(each) for each in signs if each["kind"] != "loss" or decided_by not in ALONE or len(signs) > 1]
    worse = verdict["verdict"] == "worse"
    heading = _heading(verdict)
    parts = []
    if damage and worse:
        parts.append(f"{heading}: {_listed(damage)}.")
        heading = "What decided"
    elif damage:
        parts.append(f"Damage: {_listed(damage)}.")
    parts += [_cannot_tell(name, verdict["metrics"][name]) for name in verdict.get("cannot_tell", [])]
    parts.append(f"{heading}: {_measured(verdict)}.")
    parts.append(verdict["reason"])
    detectable = found.get("detectable")
    if verdict["verdict"] == "no evidence" and detectable:
        parts.append(f"These rows show a difference of {detectable:.2g} or more, {100 * POWER:.0f} times in 100.")
    if decided_by in ALONE and set(verdict["metrics"]) <= {*TOKEN_METRICS, *verdict.get("cannot_tell", [])}:
        parts.append(f"This is about the {decided_by} alone, not about whether answers are right.")
    parts += baseline_sentences(verdict)
    if trained := verdict.get("trained_on"):
        parts.append(f"The run was trained on {trained:,} rows of them.")
    return " ".join(filter(None, parts))


def sentence_of(verdict: Mapping[str, Any]) -> str | None:
    """The same, or None where nothing was compared."""
    return sentence(verdict) if verdict.get("verdict") and verdict["metrics"] else None


def baseline_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """A sentence for each baseline that is not shown to be worse than the tuned model; none if there are none."""
    found: Mapping[str, Any] = verdict.get("baselines") or {"results": []}
    said = []
    for each in found["results"]:
        values = each["metrics"][found["metric"]]
        outcome = baseline_outcome(each, found["metric"])
        if outcome == "worse":
            continue
        how = {"better": "does better", "as well": f"does as well, within {found.get('margin') or 0:g}"}.get(
            outcome, "is not shown to be worse"
        )
        tuned, who = values["value"] + values["difference"], BASELINES.get(each["name"], each["name"])
        said.append(
            f"{who} {how}: {found['metric']} {values['value']:.4g}, tuned {tuned:.4g} "
            f"(difference {values['difference']:+.3g}, interval {between(values['difference_interval'])})."
        )
    return said


def baseline_outcome(result: Mapping[str, Any], metric: str) -> str:
    """``better``, ``as well``, ``not shown to be worse`` or ``worse``: how a baseline is beside the tuned model.

    Earlier versions kept only the verdict, which is about the tuned model.
    """
    of_verdict = {"better": "worse", "worse": "better"}
    return result.get("outcome") or of_verdict.get(result["metrics"][metric]["verdict"], "not shown to be worse")


def pair_sentence(pair: Mapping[str, Any]) -> str:
    """The verdict of one pair of a comparison: ``runs/a -> runs/b: better: exact_match 0.5 -> 0.6 on ...``."""
    verdict = pair["verdict"]
    said = " ".join([f"{verdict['verdict']}: {_measured(verdict)}.", *pair_notes(pair)])
    return f"{pair['from']} -> {pair['to']}: {said}"


def pair_cells(pair: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """One pair in a table: verdict, the metric that decided, difference, interval and corrected p-value."""
    verdict = pair["verdict"]
    found = verdict["metrics"][verdict["decided_by"]]
    return (
        verdict["verdict"],
        verdict["decided_by"],
        f"{found['difference']:+.3g}",
        between(found["interval"]),
        f"{found['adjusted_p_value']:.2g}",
    )


def pair_notes(pair: Mapping[str, Any]) -> list[str]:
    """What a pair's row in a table does not say: damage, metrics that cannot tell, and the reason of its verdict."""
    verdict = pair["verdict"]
    signs = [_damaged(each) for each in (verdict.get("damage") or []) if each["evidence"]]
    notes = [f"Damage: {_listed(signs)}."] if signs else []
    notes += [_cannot_tell(name, verdict["metrics"][name]) for name in verdict.get("cannot_tell", [])]
    return [*notes, *([verdict["reason"]] if verdict["reason"] else [])]


def foreseen_sentence(metric: str, rows: int, groups: int, shown: Mapping[float, float], confidence: float) -> str:
    """What a number of rows can show of a rate, before anything is measured.

    Args:
        metric: a rate.
        rows: held-out rows.
        groups: independent groups among them.
        shown: assumed share of rows that only one model has right, to the smallest difference that is found.
        confidence: of the test.
    """
    parts = []
    for share, least in shown.items():
        how = f"{share:.0%} of the answers change" if least <= share else "all changes are in one direction"
        parts.append(f"{100 * least:.0f} points if {how}")
    parts = list(dict.fromkeys(parts))
    return (
        f"{held_out(rows, groups)} can show a difference in {metric} of {' or '.join(parts)} "
        f"({100 * POWER:.0f} times in 100, at {100 * confidence:g}% confidence)"
    )


def few_rows_sentence(rows: int, groups: int, least: int, confidence: float) -> str:
    """That a number of rows can show nothing, because a verdict needs ``least`` independent groups."""
    kind = "rows" if rows == groups else "groups"
    return (
        f"{held_out(rows, groups)} cannot show any difference: a verdict at {100 * confidence:g}% confidence needs at "
        f"least {least} {kind} that differ"
    )


def held_out(rows: int, groups: int) -> str:
    """``20 held-out rows in 7 independent groups``."""
    of = f"{rows:,} held-out row{'s' * (rows != 1)}"
    return of if rows == groups else f"{of} in {groups:,} independent group{'s' * (groups != 1)}"


def advice_lines(verdict: Mapping[str, Any], run: str | Path) -> list[str]:
    """What to try next, each with its command; none if nothing was measured that calls for it."""
    lines = []
    for each in verdict.get("advice") or []:
        command = each["command"].replace("RUN", shlex.quote(str(run)))
        lines.append(f"  {each['text']} Try: `{command}`")
    return ["What next:", *lines] if lines else []


def _heading(verdict: Mapping[str, Any]) -> str:
    base = STARTED_FROM if verdict.get("base_model") == STARTED_FROM else "the base"
    if verdict["verdict"] == "no worse":
        tested = verdict["metrics"][verdict["decided_by"]].get("equivalence") or {}
        within = f"{tested['margin']:g}" if tested else "the margin"
        if tested.get("outcome") == "equivalent":
            return f"As good as {base}, within {within}"
        return f"No worse than {base} by more than {within}"
    return {
        "better": f"Better than {base}",
        "no evidence": f"No evidence that the tuned model is better or worse than {base}",
        "worse": f"Worse than {base}",
    }[verdict["verdict"]]


def _measured(verdict: Mapping[str, Any]) -> str:
    name, rows = verdict["decided_by"], verdict["rows"]
    found = verdict["metrics"][name]
    direction = ", lower is better" if lower_is_better(name) else ""
    data = verdict.get("data")
    plural = "s" * (rows != 1)
    judged_on = f"{rows} held-out row{plural}" if data is None else f"{rows} row{plural} {of_data(data)}"
    return (
        f"{name} {found['base']:.4g} -> {found['tuned']:.4g} on {judged_on} "
        f"(difference {found['difference']:+.3g}, {100 * verdict['confidence']:g}% interval "
        f"{between(found['interval'])}{direction})"
    )


def of_data(name: str) -> str:
    """Whose rows they are, behind their number: ``of new.csv``, or ``given in Python``."""
    return name.removeprefix("rows ") if name == FROM_PYTHON else f"of {name}"


def _cannot_tell(name: str, found: Mapping[str, Any]) -> str:
    both = f"{found['base']:.3g} and {found['tuned']:.3g}"
    if found["base"] == found["tuned"]:
        both = f"{found['base']:.3g} for both"
    return f"{name} cannot tell the models apart: both are at its {found['bound']} ({both})."


def _damaged(found: Mapping[str, Any]) -> str:
    """A sign of damage as a part of a sentence."""
    if found["kind"] == "loss":
        return f"the loss rose from {found['base']:.4g} to {found['tuned']:.4g}"
    rows = found["rows"]
    base, tuned = (round(found[name] * rows) for name in ("base", "tuned"))
    return f"{tuned} of {rows} answers {SIGNS[found['kind']]} (base: {base} of {rows})"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
