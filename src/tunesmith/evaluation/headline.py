"""The verdict in one sentence for a reader who knows no metrics. This module imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.evaluation.verdict import STARTED_FROM
from tunesmith.evaluation.wording import SIGNS, of_data

RATES = {  # metrics that are shares of rows or tokens, and what the share is of
    "exact_match": "right answers",
    "accuracy": "right labels",
    "json_valid": "answers that are JSON",
    "json_schema": "answers that fit the schema",
    "json_exact": "right JSON answers",
    "number_match": "right numbers",
    "regex_match": "answers with the right part",
    "judge": "answers that the judge prefers",
    "token_accuracy": "right tokens",
    "preference_accuracy": "right preferences",
    "reward_accuracy": "right preferences",
    **{name: f"answers that {what}" for name, what in SIGNS.items()},
}
_OTHERS = {
    "loss": "the loss on them (lower is better)",
    "perplexity": "the perplexity (lower is better)",
    "bits_per_byte": "the bits per byte (lower is better)",
}
_DAMAGED = {
    "loss": "its loss rose",
    "unfinished": "its answers do not end",
    "repetition": "its answers end in repetition",
}


def headline(verdict: Mapping[str, Any] | None, status: str = "finished") -> str:
    """The verdict in one sentence: what the tuned model is, by what it was measured, and on how much.

    Args:
        verdict: as in verdict.json, whose shape was checked; None: the run has none.
        status: of the run.
    """
    if verdict is None:
        return f"This run has no verdict yet: its status is {status}."
    if not verdict["metrics"]:
        reason = str(verdict.get("reason") or "nothing was measured").rstrip(".")
        return f"This run cannot say whether the tuned model is better: {_begun(reason)}."
    broken = [_DAMAGED[each["kind"]] for each in verdict.get("damage") or [] if each["evidence"]]
    damage = f", and {' and '.join(broken)}" if broken else ""
    base = STARTED_FROM if verdict.get("base_model") == STARTED_FROM else "the base model"
    rows = f"{verdict['rows']:,} {'row' if verdict['rows'] == 1 else 'rows'}"
    if verdict.get("data"):
        rows += f" {of_data(verdict['data'])}"
    rows += f", {trained:,} of which it was trained on" if (trained := verdict.get("trained_on")) else ""
    rows += "" if verdict.get("data") else " that it was not trained on"
    measured = _measured(verdict["metrics"][verdict["decided_by"]], verdict["decided_by"])
    if verdict["verdict"] == "no evidence":
        return f"It is not shown whether the tuned model is better or worse than {base}: on {rows}, {measured}{damage}."
    is_what = {"better": "better than", "worse": "worse than", "no worse": "not worse, within the margin, than"}
    return f"The tuned model is {is_what[verdict['verdict']]} {base}: on {rows}, {measured}{damage}."


def in_words(name: str, value: float) -> str:
    """A value of a metric: a rate in percent, anything else with four digits."""
    return f"{100 * value:.1f}%" if name in RATES else f"{value:.4g}"


def _measured(found: Mapping[str, Any], name: str) -> str:
    what = RATES.get(name) or _OTHERS.get(name) or f"the score {name}"
    base, tuned = in_words(name, found["base"]), in_words(name, found["tuned"])
    if base == tuned:
        return f"{what}: {base} for both"
    return f"{what} went from {base} to {tuned}"


def _begun(text: str) -> str:
    """A sentence as the end of another one."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
