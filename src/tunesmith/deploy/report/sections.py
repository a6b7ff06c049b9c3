"""What each section of a run's report shows.

A section is a function from the facts of a run to what its template shows, or None where there is nothing to show; a
template ``section_NAME.html.j2`` beside this module; and a line in ``SECTIONS``, whose order is that of the page.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tunesmith.data.report.ledger import OUTCOMES, accounts_of, measures_of
from tunesmith.deploy.report.answers import groups
from tunesmith.deploy.report.forest import forest, points
from tunesmith.deploy.report.run_facts import RunFacts
from tunesmith.evaluation.below_verdict import lines_below
from tunesmith.evaluation.benchmarks.wording import HEADER, benchmark_rows, heading
from tunesmith.evaluation.headline import in_words
from tunesmith.evaluation.not_measured import BASELINES as OF_BASELINES
from tunesmith.evaluation.not_measured import reasons_of
from tunesmith.evaluation.probe.wording import probe_lines
from tunesmith.evaluation.wording import BASELINES, SIGNS, baseline_outcome, lower_is_better, sentence
from tunesmith.runs.curves import picture, read
from tunesmith.runs.drift import in_words as allowed_changes
from tunesmith.runs.pages.rendering import Whole, head
from tunesmith.runs.plain_text import between, duration
from tunesmith.runs.stored_facts import baselines_of, classification_of, copies_of
from tunesmith.safe_text import without_secrets

SLICES_SHOWN, LABELS_SHOWN, MATRIX_LABELS, CONFUSIONS_SHOWN = 20, 20, 15, 20
BINS_SHOWN, BENCHMARKS_SHOWN = 60, 100
PROBE_KINDS, PROBE_ITEMS, SOURCES_SHOWN, FILES_SHOWN, EVALUATIONS_SHOWN = 20, 40, 50, 50, 5
LONGEST_RECIPE = 20_000  # characters
_NONE_OF_THEM = "none of the labels"


def metrics(facts: RunFacts) -> dict[str, Any] | None:
    """The metrics as a forest plot and as a table."""
    verdict = facts.judged
    if verdict is None:
        return None
    chart = forest(verdict)
    rows = [_row_of(name, found, verdict) for name, found in verdict["metrics"].items()]
    return {
        "chart": None if chart is None else Markup(chart.inline_svg()),
        "rows": rows,
        "confidence": f"{100 * verdict['confidence']:g}%",
        "judged_on": verdict["rows"],
        "points": any(points(row["name"]) for row in rows),
    }


def _row_of(name: str, found: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """One metric of a verdict as a row of a table."""
    return {
        "name": name,
        "decides": name == verdict["decided_by"],
        "lower": lower_is_better(name),
        "base": in_words(name, found["base"]),
        "tuned": in_words(name, found["tuned"]),
        "difference": _difference(name, found["difference"]),
        "interval": _interval(name, found["interval"]),
        "verdict": found.get("verdict"),
        "p_value": _p_value(found.get("p_value")),
    }


def curves(facts: RunFacts) -> dict[str, Any] | None:
    """Losses, learning rate and gradient norms over the steps, and what looks wrong in them."""
    if not facts.metrics:
        return None
    found = read([facts.run.folder])
    series = found[0].series
    ends = [
        {"name": name, "first": points[0], "last": points[-1], "lowest": min(points, key=lambda point: point[1])}
        for key, name in (("loss", "training loss"), ("eval_loss", "validation loss"))
        if (points := series[key])
    ]
    return {"chart": Markup(picture(found).inline_svg()), "ends": ends, "symptoms": found[0].symptoms}


def labels(facts: RunFacts) -> dict[str, Any] | None:
    """The confusion matrix of the tuned model, or its most frequent cells, and the figures of the worst labels."""
    found = classification_of(facts.verdict or {})
    if found is None:
        return None
    tuned, base = found["tuned"], found.get("base") or {"labels": []}
    before = {each["label"]: each["f1"] for each in base["labels"]}
    judged = [each for each in tuned["labels"] if each["rows"]]  # others are labels of training rows alone
    worst = sorted(judged, key=lambda each: (each["f1"], -each["rows"], each["label"]))
    wrong = [cell for cell in tuned["confusion"] if cell["truth"] != cell["answer"]]
    wrong.sort(key=lambda cell: (-cell["rows"], str(cell["truth"]), str(cell["answer"])))
    mistakes = [{**cell, "answer": _NONE_OF_THEM if cell["answer"] is None else cell["answer"]} for cell in wrong]
    return {
        "matrix": _matrix(tuned) if len(tuned["labels"]) <= MATRIX_LABELS else None,
        "mistakes": head(mistakes, CONFUSIONS_SHOWN),
        "worst": head([{**each, "before": before.get(each["label"])} for each in worst], LABELS_SHOWN),
        "count": len(tuned["labels"]),
    }


def _matrix(tuned: Mapping[str, Any]) -> dict[str, Any]:
    names = [each["label"] for each in tuned["labels"]]
    cells = {(cell["truth"], cell["answer"]): cell["rows"] for cell in tuned["confusion"]}
    answers: list[str | None] = [*names, None] if any(answer is None for _, answer in cells) else [*names]
    rows = []
    for truth in names:
        counts = [cells.get((truth, answer), 0) for answer in answers]
        whole = sum(counts) or 1
        shades = [f"{0.55 * count / whole:.2f}" for count in counts]
        right = [answer == truth for answer in answers]
        rows.append({"truth": truth, "cells": list(zip(counts, shades, right, strict=True))})
    return {"answers": [_NONE_OF_THEM if name is None else name for name in answers], "rows": rows}


def calibration(facts: RunFacts) -> dict[str, Any] | None:
    """How often the tuned model is right where it is so sure of a label, beside the base."""
    found = ((facts.verdict or {}).get("details") or {}).get("calibration") or {}
    sides = [(side, found[side]) for side in ("base", "tuned") if side in found]
    figures = [
        {
            "side": side,
            "name": name.replace("_", " "),
            "value": f"{own[name]['value']:.3g}",
            "interval": " to ".join(f"{end:.3g}" for end in own[name].get("interval", ())) or "none",
        }
        for side, own in sides
        for name in ("calibration_error", "brier_score")
        if name in own
    ]
    bins = [
        {"side": side, "confidence": f"{each['confidence']:.0%}", "right": f"{each['right']:.0%}", "rows": each["rows"]}
        for side, own in sides
        for each in own["bins"]
    ]
    return {"figures": figures, "bins": head(bins, BINS_SHOWN)} if bins else None


def samples(facts: RunFacts) -> dict[str, Any] | None:
    """Answers of both models beside each other: the best, the worst, the wrong ones and the changed ones."""
    decided_by = (facts.verdict or {}).get("decided_by")
    found = groups(facts.samples, decided_by)
    rows = max((facts.verdict or {}).get("rows") or 0, len(facts.samples))
    return {"groups": found, "answers": len(facts.samples), "rows": rows} if found else None


def slices(facts: RunFacts) -> dict[str, Any] | None:
    """Where the tuned model is worst."""
    found = (facts.verdict or {}).get("slices")
    if not found or facts.verdict is None:
        return None
    name = facts.verdict["sliced_by"]
    rows = [
        {
            "by": each["by"],
            "name": each["name"],
            "rows": each["rows"],
            "base": in_words(name, each["base"]),
            "tuned": in_words(name, each["tuned"]),
            "tuned_interval": " to ".join(in_words(name, end) for end in each["tuned_interval"]),
            "difference": _difference(name, each["difference"]),
            "interval": _interval(name, each["interval"]),
            "p_value": _p_value(each.get("adjusted_p_value")),
        }
        for each in found
    ]
    return {"metric": name, "lower": lower_is_better(name), "rows": head(rows, SLICES_SHOWN)}


def broke(facts: RunFacts) -> dict[str, Any] | None:
    """Signs of damage, the probe, and what else changed in the answers."""
    verdict = facts.verdict or {}
    probe, effects = verdict.get("probe"), verdict.get("side_effects")
    signs = [_sign(each) for each in verdict.get("damage") or []]
    if not signs and probe is None and not effects and facts.judged is None:
        return None
    elsewhere: dict[str, Any] = {"probe": None, "side_effects": None, "details": None}  # in sections of their own
    if baselines(facts) is not None:
        reasons = reasons_of(verdict)
        elsewhere |= {"left_out": {key: why for key, why in reasons.items() if not key.startswith(OF_BASELINES)}}
        elsewhere |= {"baselines": None}
    return {
        "signs": signs,
        "said": lines_below({**verdict, **elsewhere}),
        "probe": None if probe is None else _probe(probe, probe_lines(verdict)),
        "effects": _effects(effects) if effects else [],
        "effect_rows": effects.get("rows") if effects else 0,
        "copies": head(copies_of(verdict), 5),
    }


def _sign(each: Mapping[str, Any]) -> dict[str, Any]:
    rate = each["kind"] in SIGNS
    return {
        "name": f"answers that {SIGNS[each['kind']]}" if rate else "the loss",
        "base": in_words(each["kind"], each["base"]),
        "tuned": in_words(each["kind"], each["tuned"]),
        "rows": each["rows"],
        "evidence": each["evidence"],
    }


def _probe(found: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
    kinds = []
    for each in found["kinds"]:
        if "value" in each:
            row = {"base": None, "tuned": f"{100 * each['value']:.0f}%", "difference": None, "interval": None}
        else:
            ends = " to ".join(f"{100 * end:+.1f}" for end in each["interval"])
            row = {
                "base": f"{100 * each['base']:.0f}%",
                "tuned": f"{100 * each['tuned']:.0f}%",
                "difference": f"{100 * each['difference']:+.1f} points",
                "interval": f"{ends} points",
            }
        kinds.append({"kind": each["kind"], "items": each["items"], **row})
    ids = {name: head([str(each) for each in found.get(name, ())], PROBE_ITEMS) for name in ("lost", "gained")}
    return {"said": " ".join(line.strip() for line in said[:2]), "kinds": head(kinds, PROBE_KINDS), **ids}


def _effects(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = [("answers that refuse", found["refusals"])]
    if copied := found.get("copied"):
        named.append(("answers copied from training rows", copied))
    rows = [
        {
            "name": name,
            "base": f"{100 * each['base']:.1f}%",
            "tuned": f"{100 * each['tuned']:.1f}%",
            "interval": _points(each["interval"]),
            "changed": each["changed"],
        }
        for name, each in named
    ]
    length = found["length"]
    rows.append(
        {
            "name": f"median length (reference answers: {length['truth']:,.0f} characters)",
            "base": f"{length['base']:,.0f} characters",
            "tuned": f"{length['tuned']:,.0f} characters",
            "interval": " to ".join(f"{end:+,.0f} characters" for end in length["interval"]),
            "changed": length["changed"],
        }
    )
    return rows


def baselines(facts: RunFacts) -> dict[str, Any] | None:
    """What simple methods reach on the same rows."""
    found = baselines_of(facts.verdict or {})
    if found is None or facts.judged is None:
        return None
    name = found["metric"]
    rows = [
        {
            "name": BASELINES.get(each["name"], each["name"]),
            "value": in_words(name, own["value"]),
            "interval": " to ".join(in_words(name, end) for end in own["interval"]),
            "difference": _difference(name, own["difference"]),
            "difference_interval": _interval(name, own["difference_interval"]),
            "outcome": baseline_outcome(each, name),
        }
        for each in found["results"]
        if (own := each["metrics"].get(name))
    ]
    models = facts.judged["metrics"].get(name)
    return {
        "metric": name,
        "margin": found.get("margin"),
        "rows": rows,
        "models": models and {side: in_words(name, models[side]) for side in ("base", "tuned")},
        "training_rows": found["training_rows"],
        "left_out": [(BASELINES.get(each, each), why) for each, why in _baselines_left_out(facts).items()],
    }


def _baselines_left_out(facts: RunFacts) -> dict[str, str]:
    """Why a baseline is not there, by its name."""
    reasons = reasons_of(facts.verdict or {})
    return {key.removeprefix(OF_BASELINES): why for key, why in reasons.items() if key.startswith(OF_BASELINES)}


def advice(facts: RunFacts) -> list[dict[str, str]] | None:
    """What to try next, with the command of each."""
    place = shlex.quote(facts.place)
    found = (facts.verdict or {}).get("advice") or []
    return [{"text": each["text"], "command": each["command"].replace("RUN", place)} for each in found] or None


def evaluations(facts: RunFacts) -> dict[str, Any] | None:
    """What `eval` measured later, on which rows, and what was asked besides."""
    rows = [
        {
            "time": each["time"],
            "on": ", ".join([each.get("data") or "its held-out rows", *each["settings"]]),
            "said": sentence(each) if each["metrics"] else str(each.get("reason")),
            "metrics": [_row_of(name, found, each) for name, found in each["metrics"].items()],
            "confidence": f"{100 * each['confidence']:g}%" if each["metrics"] else "",
            "below": lines_below(each),
        }
        for each in reversed(facts.evaluations)
    ]
    return {"rows": head(rows, EVALUATIONS_SHOWN)} if rows else None


def benchmarks(facts: RunFacts) -> dict[str, Any] | None:
    """Standard benchmarks, the newest first."""
    rows = [
        {"asked": heading(found), "cells": row} for found in reversed(facts.benchmarks) for row in benchmark_rows(found)
    ]
    return {"header": HEADER, "rows": head(rows, BENCHMARKS_SHOWN)} if rows else None


def ledger(facts: RunFacts) -> dict[str, Any] | None:
    """Where every row and every token went."""
    if facts.ledger is None:
        return None
    by_source = head(accounts_of(facts.ledger), SOURCES_SHOWN)
    return {"measures": measures_of(facts.ledger), "outcomes": OUTCOMES, "by_source": by_source}


def recipe(facts: RunFacts) -> dict[str, Any]:
    """Every setting."""
    text = facts.recipe_text
    return {"text": Whole(text[:LONGEST_RECIPE]), "more": max(len(text) - LONGEST_RECIPE, 0)}


def versions(facts: RunFacts) -> dict[str, Any] | None:
    """What the run was made with: packages, machine, sources and their hashes."""
    found = facts.environment
    if found is None:
        return None
    machine = [
        ("Python", found["python"]),
        ("system", found["platform"]),
        ("processor", found.get("processor")),
        ("GPU", found.get("gpu")),
        ("cores", found.get("cpus")),
        ("threads of the run", found["threads"]),
        ("memory", None if not found.get("memory_bytes") else f"{found['memory_bytes'] / 2**30:.1f} GiB"),
        ("git", _commit(found.get("git"))),
        ("seed", facts.recipe.training.seed),
        ("changed since it began", "; then ".join(allowed_changes(facts.run)) or None),
    ]
    files = [
        {"side": source["side"], "path": file["path"], "rows": source["rows"], "sha256": file["sha256"]}
        for source in facts.sources
        for file in source.get("files", ())
    ]
    packages = [(name, version) for name, version in found["packages"].items() if version is not None]
    return {
        "machine": [(name, value) for name, value in machine if value is not None],
        "packages": packages,
        "files": head(files, FILES_SHOWN),
    }


def reproduce(facts: RunFacts) -> dict[str, Any]:
    """The commands that make the run again."""
    place = shlex.quote(facts.place)
    packages = (facts.environment or {}).get("packages", {})
    pins = [f"{name}=={version}" for name, version in packages.items() if version is not None]
    again = shlex.quote(f"output_dir={facts.place}-again")
    started_in = facts.status.get("started_in")
    command = " ".join(map(shlex.quote, (facts.environment or {}).get("command", ())))
    steps = [
        ("Install the same versions", f"pip install {' '.join(map(shlex.quote, pins))}" if pins else None),
        ("Go to the folder that the paths of the recipe begin in", started_in and f"cd {shlex.quote(started_in)}"),
        ("Train with the same settings in a new folder", f"tunesmith train {place}/recipe.yaml {again}"),
        ("Judge this run again", f"tunesmith eval {place}"),
        ("Make this report again", f"tunesmith runs report {place}"),
    ]
    return {
        "steps": [{"name": name, "command": without_secrets(text)} for name, text in steps if text],
        "command": without_secrets(command),
    }


def glance(facts: RunFacts) -> list[tuple[str, Any, str]]:
    """(name, figure, remark) of what is told first."""
    return list(_figures(facts))


def _figures(facts: RunFacts) -> Iterator[tuple[str, Any, str]]:
    verdict = facts.judged
    if verdict is not None:
        name = verdict["decided_by"]
        found = verdict["metrics"][name]
        yield f"{name}, tuned", in_words(name, found["tuned"]), f"base {in_words(name, found['base'])}"
        ends = _interval(name, found["interval"])
        yield "difference", _difference(name, found["difference"]), f"{100 * verdict['confidence']:g}% interval {ends}"
        yield "held-out rows", verdict["rows"], "that decide"
    if facts.ledger is not None:
        rows = facts.ledger["rows"]
        yield "rows trained on", rows["trained"], f"of {rows['read']:,} read"
    status = facts.status
    if status.get("total_steps"):
        seconds = "" if status.get("seconds") is None else f"{duration(status['seconds'])} in all"
        yield "steps", status.get("step") or 0, f"of {status['total_steps']:,}; {seconds}".rstrip("; ")
    recipe = facts.recipe
    yield "method", recipe.method.name, f"objective {recipe.objective.name}, learning rate {recipe.learning_rate:g}"


def _difference(name: str, value: float) -> str:
    return f"{100 * value:+.1f} points" if points(name) else f"{value:+.3g}"


def _interval(name: str, ends: Sequence[float]) -> str:
    return _points(ends) if points(name) else between(ends)


def _points(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f} points"


def _p_value(found: Any) -> str | None:
    """None in verdicts of earlier versions."""
    return f"{found:.2g}" if isinstance(found, float | int) else None


def _commit(git: Mapping[str, Any] | None) -> str | None:
    if not git or not isinstance(git.get("commit"), str):
        return None
    return f"{git['commit'][:12]}{', with changes that are not committed' if git.get('dirty') else ''}"


Section = Callable[[RunFacts], Any]
SECTIONS: dict[str, tuple[str, Section]] = {
    "metrics": ("Metrics", metrics),
    "curves": ("Loss curves", curves),
    "labels": ("Labels", labels),
    "calibration": ("How sure it is", calibration),
    "samples": ("Answers, base and tuned", samples),
    "slices": ("Where it is worst", slices),
    "broke": ("What it broke", broke),
    "baselines": ("Beside simple methods", baselines),
    "advice": ("What next", advice),
    "evaluations": ("Later evaluations", evaluations),
    "benchmarks": ("Benchmarks", benchmarks),
    "ledger": ("Where every row went", ledger),
    "recipe": ("Recipe", recipe),
    "versions": ("Versions and data", versions),
    "reproduce": ("How to reproduce", reproduce),
}
