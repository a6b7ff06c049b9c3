"""What the files of a run folder must hold to be shown. A run may come from somebody else, or be damaged.

Each ``..._fault`` gives what is wrong, as a sentence, or None. The readers raise RunError with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from tunesmith.runs.folder import Run
from tunesmith.runs.run_files import BENCHMARKS, EVALUATIONS

METRICS, VERDICT, LEDGER, SAMPLES = "metrics.jsonl", "verdict.json", "ledger.json", "samples_during.jsonl"

LARGEST = 2**63  # of a whole number that is shown
OF_A_LINE = (
    "loss", "eval_loss", "learning_rate", "grad_norm", "tokens", "computed_tokens", "supervised_tokens",
    "tokens_per_second", "eval_seconds", "epoch",
)  # fmt: skip
OF_VALIDATION = "eval_"
SIGNS = ("loss", "unfinished", "repetition")  # of damage
VERDICTS = ("better", "no worse", "no evidence", "worse")


def metric_lines(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. Raises RunError if one cannot be shown."""
    return checked_lines(run, METRICS, line_fault)


def validation_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line of metrics has of a validation besides its loss: names as people read them, such as `exact match`."""
    keys = [key for key in line if key.startswith(OF_VALIDATION) and key not in OF_A_LINE]
    found = {key: line[key] for key in keys if _is_number(line[key]) and math.isfinite(line[key])}
    return {f"eval {key.removeprefix(OF_VALIDATION).replace('_', ' ')}": value for key, value in found.items()}


def evaluation_lines(run: Run) -> list[dict[str, Any]]:
    """What `eval` kept in the run. Raises RunError if a line cannot be shown."""
    return checked_lines(run, EVALUATIONS, evaluation_fault)


def benchmark_lines(run: Run) -> list[dict[str, Any]]:
    """What `eval --tasks` kept in the run. Raises RunError if a line cannot be shown."""
    return checked_lines(run, BENCHMARKS, benchmark_fault)


def sample_lines(run: Run) -> list[dict[str, Any]]:
    """The answers at validations. Raises RunError if a line cannot be shown."""
    return checked_lines(run, SAMPLES, sample_fault)


def answer_lines(run: Run, name: str) -> list[dict[str, Any]]:
    """The answers of a verdict or of the newest `eval`, by the file's name. Raises RunError if one cannot be shown."""
    return checked_lines(run, name, answer_fault)


def verdict_of(run: Run) -> dict[str, Any] | None:
    """The verdict; None if there is none yet. Raises RunError if it cannot be shown."""
    return _file(run, VERDICT, verdict_fault)


def ledger_rows(run: Run) -> dict[str, int]:
    """The counts of rows; none before they are known. Raises RunError if they cannot be shown."""
    ledger = _file(run, LEDGER, ledger_fault)
    return {} if ledger is None else dict(ledger["rows"])


def status_of(run: Run) -> dict[str, Any]:
    """The status. Raises RunError if a fact in it cannot be shown."""
    status = run.status()
    fault = status_fault(status)
    if fault is not None:
        raise run.damaged("status.json", fault)
    return status


def checked_lines(run: Run, name: str, fault_of: Callable[[Any], str | None]) -> list[dict[str, Any]]:
    """The lines of a file, which have no fault. Raises RunError if one has."""
    lines = []
    for line in run.lines(name):
        if (fault := fault_of(line)) is not None:
            raise run.damaged(name, fault)
        lines.append(line)
    return lines


def _file(run: Run, name: str, fault_of: Callable[[Any], str | None]) -> Any:
    if not (run.folder / name).is_file():
        return None
    found = run.read_json(name)
    fault = fault_of(found)
    if fault is not None:
        raise run.damaged(name, fault)
    return found


def verdict_fault(found: Any) -> str | None:
    """Of verdict.json, and of the same facts in a line of evaluations.jsonl."""
    if not isinstance(found, Mapping) or not isinstance(found.get("metrics"), Mapping):
        return "It is not a verdict: it has no metrics."
    for name, values in found["metrics"].items():
        if not isinstance(values, Mapping) or not _is_compared(values):
            return f"metrics.{name} is not a comparison of two models."
    if found.get("probe") is not None and (fault := probe_fault(found["probe"])):
        return f"probe: {fault}"
    if found.get("side_effects") is not None and (fault := effects_fault(found["side_effects"])):
        return f"side_effects: {fault}"
    for name, fault_of in (("divergence", divergence_fault), ("memorisation", memorisation_fault)):
        if found.get(name) is not None and (fault := fault_of(found[name])):
            return f"{name}: {fault}"
    left_out = found.get("left_out") or {}
    if not isinstance(left_out, Mapping) or not all(isinstance(why, str) for why in left_out.values()):
        return "left_out does not say why something is not there."
    if found.get("baselines") is not None and (fault := baselines_fault(found["baselines"])):
        return f"baselines: {fault}"
    if found.get("slices") is not None and not (
        isinstance(found["slices"], list)
        and isinstance(found.get("sliced_by"), str)
        and all(isinstance(each, Mapping) and _is_slice(each) for each in found["slices"])
    ):
        return "slices is not a list of comparisons."
    if found.get("details") is not None and (fault := details_fault(found["details"])):
        return f"details: {fault}"
    if found.get("trained_on") is not None and not _is_count(found["trained_on"]):
        return "trained_on is not a number of rows."
    if "selection" in found and not _is_count(found.get("step")):
        return "step is not a number of a step."
    if (fault := _said_fault(found)) is not None:
        return fault
    if not found["metrics"]:
        return None if isinstance(found.get("verdict"), str) else "It lacks the verdict."
    if not isinstance(found.get("decided_by"), str) or found["decided_by"] not in found["metrics"]:
        return "It does not say which metric decides."
    if found.get("verdict") not in VERDICTS:
        return "It does not say how it is decided."
    if not (_is_number(found.get("confidence")) and _is_count(found.get("rows"))):
        return "It lacks confidence or rows."
    return None if isinstance(found.get("reason", 0), str | None) else "It has no reason, not even null."


def probe_fault(found: Any) -> str | None:
    """Of the result of a probe."""
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str) or not _is_count(found.get("items")):
        return "It lacks name or items."
    kinds, alone = found.get("kinds"), "value" in found
    if not isinstance(kinds, list) or not all(isinstance(each, Mapping) for each in kinds):
        return "It has no list of kinds."
    for each in [found, *kinds]:
        if not (_is_number(each.get("value")) if alone else _is_compared(each)) or not _is_count(each.get("items")):
            return "It is not a comparison of two models."
    if not all(isinstance(each.get("kind"), str) for each in kinds):
        return "A kind has no name."
    if alone:
        return None
    if not isinstance(found.get("verdict"), str) or found["verdict"] not in VERDICTS:
        return "It does not say how it is decided."
    if not all(isinstance(found.get(name), list) for name in ("lost", "gained")):
        return "It does not say what was lost and gained."
    tested = found.get("equivalence")
    if tested is None and found["verdict"] != "no worse":
        return None if _is_number(found.get("confidence")) and _is_number(found.get("p_value")) else "It lacks p_value."
    if not isinstance(tested, Mapping) or tested.get("outcome") not in ("equivalent", "no worse", "not shown"):
        return "It lacks the outcome of its two tests."
    numbers = (tested.get("margin"), tested.get("not_worse"), found.get("confidence"), found.get("p_value"))
    return None if all(map(_is_number, numbers)) else "It lacks a number of its tests."


def baselines_fault(found: Any) -> str | None:
    """Of the baselines of a verdict."""
    if not isinstance(found, Mapping) or not isinstance(found.get("results"), list):
        return "It has no results."
    if found.get("margin") is not None and not _is_number(found["margin"]):
        return "margin is not a number."
    left_out, metric = found.get("left_out") or {}, found.get("metric")
    if not isinstance(left_out, Mapping) or not isinstance(metric, str):
        return "It lacks metric, or left_out is no object."
    for each in found["results"]:
        if not isinstance(each, Mapping) or not isinstance(each.get("name"), str):
            return "A baseline has no name."
        if not isinstance(each.get("outcome", ""), str) or not isinstance(each.get("metrics"), Mapping):
            return f"{each['name']} is no comparison."
        values = each["metrics"].get(metric)
        if not isinstance(values, Mapping) or not isinstance(values.get("verdict"), str):
            return f"{each['name']} lacks the metric that decides."
        ends = [values.get(name) for name in ("interval", "difference_interval")]
        if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in ends):
            return f"{each['name']} lacks an interval."
        if not all(_is_number(values.get(name)) for name in ("value", "difference")):
            return f"{each['name']} lacks a number."
    return None


def effects_fault(found: Any) -> str | None:
    """Of the side effects of a training on the answers."""
    if not isinstance(found, Mapping):
        return "It is not an object."
    for name in ("refusals", "length", *(["copied"] if "copied" in found else [])):
        each = found.get(name)
        if not isinstance(each, Mapping) or not _is_compared(each) or not isinstance(each.get("changed"), bool):
            return f"{name} is not a comparison of two models."
    return None if _is_number(found["length"].get("truth")) else "length has no truth."


def details_fault(found: Any) -> str | None:
    """Of what is shown of labels and their calibration."""
    if not isinstance(found, Mapping):
        return "It is not an object."
    for name, is_shown in (("classification_by_likelihood", _is_report), ("calibration", _is_table)):
        sides = found.get(name) or {}
        if not isinstance(sides, Mapping) or not all(
            isinstance(sides[side], Mapping) and is_shown(sides[side]) for side in ("base", "tuned") if side in sides
        ):
            return f"{name} is not what it is called."
    return None


def divergence_fault(found: Any) -> str | None:
    """Of the divergence from the base."""
    if not isinstance(found, Mapping) or not _is_number(found.get("confidence")):
        return "It lacks confidence."
    for name in ("general", "own_answers"):
        each = found.get(name)
        if each is None or _is_left_out(each):
            continue
        if not isinstance(each, Mapping) or not (_is_count(each.get("texts")) and _is_count(each.get("tokens"))):
            return f"{name} lacks texts or tokens."
        if not (_is_number(each.get("kl")) and _is_number(each.get("changed")) and _is_interval(each.get("interval"))):
            return f"{name} lacks kl, changed or interval."
        if not _are_worst(each):
            return f"{name} does not say where the models differ most."
    if (general := found.get("general")) is None or _is_left_out(general):
        return None
    loss, perplexity, groups = (general.get(name) for name in ("loss", "perplexity", "by"))
    if not isinstance(loss, Mapping) or not _is_compared(loss) or not isinstance(loss.get("verdict"), str):
        return "general.loss is not a comparison of two models."
    if not isinstance(perplexity, Mapping) or not all(_is_number(perplexity.get(name)) for name in ("base", "tuned")):
        return "general.perplexity is not of two models."
    named = isinstance(groups, list) and all(
        isinstance(each, Mapping) and isinstance(each.get("name"), str) and _is_number(each.get("kl"))
        for each in groups
    )
    return None if named else "general.by is not a list of groups."


def _are_worst(found: Mapping[str, Any]) -> bool:
    """Whether the texts and tokens that a divergence names are such."""
    for name, texts in (("worst_texts", ("id",)), ("worst_tokens", ("id", "before", "token", "base", "tuned"))):
        listed = found.get(name) or []
        if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
            return False
        if not all(
            _is_number(each.get("kl")) and all(isinstance(each.get(key), str) for key in texts) for each in listed
        ):
            return False
    return True


def _is_left_out(found: Any) -> bool:
    """Whether it only says why it was not measured."""
    return isinstance(found, Mapping) and isinstance(found.get("left_out"), str)


def memorisation_fault(found: Any) -> str | None:
    """Of the training rows that come back."""
    if _is_left_out(found):
        return None
    if not isinstance(found, Mapping) or not _is_compared(found) or not isinstance(found.get("memorised"), bool):
        return "It is not a comparison of two models."
    if not (_is_count(found.get("rows")) and _is_count(found.get("first_tokens"))):
        return "It lacks rows or first_tokens."
    beside = found.get("held_out")
    if beside is None:
        return None
    whole = isinstance(beside, Mapping) and _is_count(beside.get("rows")) and _is_number(beside.get("tuned"))
    return None if whole else "held_out lacks rows or tuned."


def evaluation_fault(found: Any) -> str | None:
    """Of a line of evaluations.jsonl."""
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in ("time", "target")):
        return "It lacks time or target."
    settings = found.get("settings")
    if not isinstance(settings, list) or not all(isinstance(each, str) for each in settings):
        return "settings is not a list of texts."
    if found.get("data") is not None and not isinstance(found["data"], str):
        return "data is not a text."
    return verdict_fault(found)


def benchmark_fault(found: Any) -> str | None:
    """Of a line of benchmarks.jsonl."""
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in ("time", "target")):
        return "It lacks time or target."
    tasks, entries = found.get("tasks"), found.get("benchmarks")
    if not isinstance(tasks, list) or not all(isinstance(each, str) for each in tasks):
        return "tasks is not a list of texts."
    if found.get("limit") is not None and not _is_count(found["limit"]):
        return "limit is not a number."
    if not isinstance(entries, list) or not all(isinstance(each, Mapping) for each in entries):
        return "benchmarks is not a list of results."
    for each in entries:
        if not all(isinstance(each.get(name), str) for name in ("task", "metric", "filter")):
            return "A result has no task, metric or filter."
        numbers = ["value"] if "value" in each else ["base", "tuned", "difference"]
        interval = each.get("interval")
        if not all(_is_number(each.get(name)) for name in numbers) or not _is_count(each.get("items")):
            return f"A number of {each['task']} is missing."
        if (interval is not None and not _is_interval(interval)) or not isinstance(each.get("verdict"), str | None):
            return f"The interval or the verdict of {each['task']} is of another form."
    return None


def line_fault(found: Any) -> str | None:
    """Of a line of metrics.jsonl."""
    if not isinstance(found, Mapping) or not _is_count(found.get("step")):
        return "A line has no step."
    wrong = [name for name in OF_A_LINE if found.get(name) is not None and not _is_number(found[name])]
    norms = found.get("grad_norms") or []
    if not isinstance(norms, list) or not all(norm is None or _is_number(norm) for norm in norms):
        wrong.append("grad_norms")
    return f"{wrong[0]} of step {found['step']} is not a number." if wrong else None


def sample_fault(found: Any) -> str | None:
    """Of a line of samples_during.jsonl."""
    if not isinstance(found, Mapping) or not _is_count(found.get("step")):
        return "A line has no step."
    lacking = [name for name in ("source", "truth", "answer") if not isinstance(found.get(name), str)]
    return f"{lacking[0]} of step {found['step']} is not a text." if lacking else None


def answer_fault(found: Any) -> str | None:
    """Of a line of samples.jsonl."""
    if not isinstance(found, Mapping):
        return "A line is not an object."
    texts = [name for name in ("source", "prompt", "truth", "tuned") if not isinstance(found.get(name), str)]
    texts += [name for name in ("base",) if not isinstance(found.get(name, ""), str)]
    if texts:
        return f"{texts[0]} of an answer is not a text."
    for name in ("scores", "base_scores"):
        scores = found.get(name, {})
        if not isinstance(scores, Mapping) or not all(map(_is_number, scores.values())):
            return f"{name} of an answer are not numbers."
    return None


def ledger_fault(found: Any) -> str | None:
    """Of ledger.json."""
    rows = found.get("rows") if isinstance(found, Mapping) else None
    if not isinstance(rows, Mapping) or not all(_is_count(count) for count in rows.values() if count is not None):
        return "It has no counts of rows."
    return (
        None if _is_count(rows.get("trained")) and _is_count(rows.get("held_out")) else "It lacks trained or held_out."
    )


def status_fault(found: Mapping[str, Any]) -> str | None:
    """Of the numbers in status.json."""
    counts = [("step", found), ("total_steps", found), ("judged_step", found)]
    for name in ("tokens", "best", "error"):
        if found.get(name) is not None and not isinstance(found[name], Mapping):
            return f"{name} is not an object."
    counts += [(name, found["tokens"]) for name in ("computed", "supervised") if found.get("tokens")]
    counts += [("step", found["best"])] if found.get("best") else []
    for name, holder in counts:
        required = holder is not found
        if not _is_count(holder.get(name)) and (required or holder.get(name) is not None):
            return f"{name} is not a whole number."
    for name in ("status", "updated"):
        if found.get(name) is not None and not isinstance(found[name], str):
            return f"{name} is not a text."
    return None if found.get("seconds") is None or _is_number(found["seconds"]) else "seconds is not a number."


def fields_fault(kind: type, found: Any) -> str | None:
    """Of the fields of a dataclass, as a checkpoint keeps them."""
    if not isinstance(found, Mapping):
        return f"It is {str(found)[:40]!r}, not an object."
    hints = get_type_hints(kind)
    odd = sorted(found.keys() - hints.keys())
    if odd:
        return f"{odd[0][:40]!r} is unknown."
    required = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    lacking = sorted(required - found.keys())
    if lacking:
        return f"{lacking[0]} is missing."
    wrong = next((name for name, value in found.items() if not is_of(hints[name], value)), None)
    return None if wrong is None else f"{wrong} is {str(found[wrong])[:40]!r}."


def is_of(hint: Any, value: Any) -> bool:
    """Whether a value of JSON is of a type. A whole number is a number, too; a text or a truth is none."""
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _said_fault(found: Mapping[str, Any]) -> str | None:
    """Of what a verdict says besides its metrics: damage, metrics that cannot tell, and advice."""
    shapes: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("damage", {"kind": lambda kind: kind in SIGNS, "base": _is_number, "tuned": _is_number, "rows": _is_count}),
        ("advice", {name: lambda text: isinstance(text, str) for name in ("reason", "text", "command")}),
    )
    for name, shape in shapes:
        listed = found.get(name) or []
        if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
            return f"{name} is not a list of objects."
        if any(not fits(each.get(key)) for each in listed for key, fits in shape.items()):
            return f"{name} lacks a fact, or it is of another type."
        if name == "damage" and not all(isinstance(each.get("evidence"), bool) for each in listed):
            return "damage does not say whether it is evidence."
    silent = found.get("cannot_tell") or []
    if not isinstance(silent, list) or not all(isinstance(name, str) and name in found["metrics"] for name in silent):
        return "cannot_tell names a metric that is not there."
    if any(found["metrics"][name].get("bound") not in ("floor", "ceiling") for name in silent):
        return "cannot_tell names a metric that is not at the end of its scale."
    for name, values in found["metrics"].items():
        tested = values.get("equivalence")
        if tested is not None and (not isinstance(tested, Mapping) or not _is_number(tested.get("margin"))):
            return f"metrics.{name}.equivalence has no margin."
        if values.get("detectable") is not None and not _is_number(values["detectable"]):
            return f"metrics.{name}.detectable is not a number."
    return None


def _is_compared(values: Mapping[str, Any]) -> bool:
    return _is_interval(values.get("interval")) and all(
        _is_number(values.get(name)) for name in ("base", "tuned", "difference")
    )


def _is_interval(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(map(_is_number, found))


def _is_slice(found: Mapping[str, Any]) -> bool:
    own = {"interval": found.get("tuned_interval")}
    texts = isinstance(found.get("by"), str) and isinstance(found.get("name"), str)
    return texts and _is_count(found.get("rows")) and _is_compared(found) and _is_compared({**found, **own})


def _is_report(found: Mapping[str, Any]) -> bool:
    """Whether it is a report on labels."""
    labels, cells = found.get("labels"), found.get("confusion")
    if not isinstance(labels, list) or not isinstance(cells, list):
        return False
    if not all(isinstance(each, Mapping) and _is_count(each.get("rows")) for each in (*labels, *cells)):
        return False
    named = all(isinstance(each.get("label"), str) and _is_number(each.get("f1")) for each in labels)
    return named and all(isinstance(each.get(key), str) for each in cells for key in ("truth", "answer"))


def _is_table(found: Mapping[str, Any]) -> bool:
    """Whether it is a table of reliability, with what calibration metrics there are."""
    bins = found.get("bins")
    if not isinstance(bins, list) or not all(
        isinstance(each, Mapping) and _is_count(each.get("rows")) for each in bins
    ):
        return False
    for name in ("calibration_error", "brier_score"):
        own = found.get(name, {"value": 0.0, "interval": [0.0, 0.0]})
        if not isinstance(own, Mapping) or not _is_number(own.get("value")):
            return False
        if "interval" in own and not _is_interval(own["interval"]):  # the calibration error has one in older runs
            return False
    return all(_is_number(each.get(name)) for each in bins for name in ("confidence", "right"))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST)
