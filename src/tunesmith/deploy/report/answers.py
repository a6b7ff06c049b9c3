"""Which answers a report shows, and where the tuned model's answer differs from the base's, word by word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from tunesmith.evaluation.wording import lower_is_better
from tunesmith.runs.pages.rendering import Head, head
from tunesmith.runs.samples import asked_of, is_wrong
from tunesmith.safe_text import without_known_secrets

SHOWN = 5  # answers of each kind
LONGEST = 1_200  # characters of a text
MOST_WORDS = 500  # of a text whose differences are marked
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Part:
    """A run of an answer's text. ``mark`` is del (only the base says it), ins (only the tuned model does) or empty."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A row with both answers. ``base`` is None where the base did not answer. ``scores`` are (name, base, tuned)."""

    source: str
    asked: str
    truth: str
    base: list[Part] | None
    tuned: list[Part]
    notes: dict[str, str]
    scores: list[tuple[str, float | None, float]]


def groups(samples: Sequence[Mapping[str, Any]], decided_by: str | None) -> list[tuple[str, str, Head]]:
    """(title, what they are, the first of them) for each kind of answers that is there, the best first.

    Args:
        samples: the lines of samples.jsonl.
        decided_by: the metric of the verdict. The first one that scores answers sorts them if this one does not.
    """
    names = samples[0].get("scores") or {} if samples else {}
    metric = decided_by if decided_by in names else next(iter(names), None)
    sign = -1 if metric is not None and lower_is_better(metric) else 1
    gain = {number: sign * _gain(each, metric) for number, each in enumerate(samples)}
    order = range(len(samples))
    best = sorted((n for n in order if gain[n] > 0), key=lambda n: -gain[n])
    worst = sorted((n for n in order if gain[n] < 0), key=lambda n: gain[n])
    same = [n for n in order if gain[n] == 0]
    wrong = [n for n in same if metric is not None and is_wrong(samples[n], metric)]
    others = set(wrong)
    changed = [
        n for n in same if n not in others and samples[n].get("base", samples[n]["tuned"]) != samples[n]["tuned"]
    ]
    by = f"by {metric}"
    kinds = [
        ("Best: what the training gained", f"The tuned model's answer is better than the base's, {by}.", best),
        ("Worst: what the training lost", f"The base's answer was better, {by}.", worst),
        ("Still wrong", f"The tuned model's answer is not right, {by}, and no worse than the base's.", wrong),
        ("Changed", "Both answers have the same score and are different texts." if metric else "", changed),
    ]
    if metric is None and not changed:
        kinds.append(("Answers", "No metric scores them.", same))
    found = [(title, what, head(numbers, SHOWN)) for title, what, numbers in kinds]
    return [
        (title, what, Head([_pair(samples[n]) for n in each.items], each.more)) for title, what, each in found if each
    ]


def _gain(sample: Mapping[str, Any], metric: str | None) -> float:
    """The tuned model's score minus the base's; 0 where one of them is not known."""
    now, was = sample.get("scores") or {}, sample.get("base_scores") or {}
    return now[metric] - was[metric] if metric in now and metric in was else 0.0


def _pair(sample: Mapping[str, Any]) -> AnswerPair:
    was, now = sample.get("base_scores") or {}, sample.get("scores") or {}
    asked = without_known_secrets(asked_of(sample))
    base, tuned = sample.get("base"), _cut(sample["tuned"])
    marked = (None, differences(tuned, tuned)[1]) if base is None else differences(_cut(base), tuned)
    return AnswerPair(
        source=sample["source"],
        asked=asked
        if len(asked) <= LONGEST
        else f"[{len(asked) - LONGEST:,} characters left out …] {asked[-LONGEST:]}",
        truth=_cut(sample["truth"]),
        base=marked[0],
        tuned=marked[1],
        notes={side: _note(sample, side) for side in ("base", "tuned")},
        scores=[(name, was.get(name), value) for name, value in now.items()],
    )


def _note(sample: Mapping[str, Any], side: str) -> str:
    if sample.get(f"{side}_settled"):
        return "left unfinished: it cannot be right"
    return "" if sample.get(f"{side}_stopped", True) else "cut off at the limit"


def _cut(text: str) -> str:
    text = without_known_secrets(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [… {len(text) - LONGEST:,} more characters]"


def differences(base: str, tuned: str) -> tuple[list[Part], list[Part]]:
    """Both texts in parts, with marks on the words that only one of them has.

    Long texts, and texts that have no word in common, have no marks.
    """
    before, after = _WORD.findall(base), _WORD.findall(tuned)
    if base == tuned or max(len(before), len(after)) > MOST_WORDS:
        return [Part(base)] if base else [], [Part(tuned)] if tuned else []
    found = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    if not any(tag == "equal" and "".join(before[begin:end]).strip() for tag, begin, end, _, _ in found):
        return [Part(base)] if base else [], [Part(tuned)] if tuned else []
    parts: tuple[list[Part], list[Part]] = ([], [])
    for tag, begin, end, start, stop in found:
        for own, words, mark in ((parts[0], before[begin:end], "del"), (parts[1], after[start:stop], "ins")):
            if words:
                text = "".join(words)
                own.append(Part(text, "" if tag == "equal" or not text.strip() else mark))
    return parts
