"""Says in a few lines what base and tuned model answered, from samples.jsonl. It does not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 160  # characters of a text
SHOWN, LABELS_SHOWN = 3, 5
SAMPLES = "samples.jsonl"
BEST = {"bleu": 100.0, "chrf": 100.0}  # of scores that are not 1 at best
OF_LABELS = ("accuracy", "exact_match")  # metrics that are 1 where an answer is the right label


def side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first few judged rows with their answers: last turn of the prompt, base, tuned and truth."""
    shown = samples[:SHOWN]
    if not shown:
        return []
    rows = f"{len(shown)} judged row{'s' * (len(shown) > 1)}"
    who = "of the base and the tuned model" if "base" in shown[0] else "of the model"
    lines = [f"{rows}, with the answers {who}:"]
    for sample in shown:
        lines.append(f"  {sample['source']}")
        texts = {name: sample[name] for name in ("base", "tuned", "truth") if name in sample}
        for name, text in {"prompt": _end(asked_of(sample)), **texts}.items():
            lines.append(f"    {name:<6} {one_line(text)}")
    return lines


def asked_of(sample: Mapping[str, Any]) -> str:
    """The turn that was asked. Earlier versions kept only the whole prompt, with the template around it."""
    return str(sample.get("asked") or sample["prompt"])


def worst_labels(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """The labels that the tuned model gets wrong most often, worst first. None if answers are not scored labels."""
    wrong = by_label(samples)
    if not wrong:
        return None
    named = ", ".join(f"{one_line(label)} {right} of {rows}" for label, right, rows in wrong[:LABELS_SHOWN])
    return f"labels, worst first: {named} right" + (", ..." if len(wrong) > LABELS_SHOWN else "")


def by_label(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """(label, rows that are right, rows) of labels with wrong rows, worst first; empty if answers are not labels."""
    metric = next((name for name in OF_LABELS if samples and name in samples[0].get("scores", {})), OF_LABELS[0])
    scored = [each for each in samples if metric in each.get("scores", {})]
    rows = Counter(each["truth"] for each in scored)
    if not 2 <= len(rows) <= len(scored) / 2:
        return []
    right = Counter(each["truth"] for each in scored if each["scores"][metric] == 1)
    wrong = [label for label in rows if right[label] < rows[label]]
    wrong.sort(key=lambda label: (right[label] / rows[label], -rows[label], label))
    return [(label, right[label], rows[label]) for label in wrong]


def is_wrong(sample: Mapping[str, Any], metric: str | None = None) -> bool:
    """Whether the tuned model's answer is not fully right.

    Args:
        sample: a line of samples.jsonl.
        metric: the score that says so, 1 or 100 at best; by default the first one but a judge's. Without scores, the
            answer must be the reference answer.
    """
    scores = sample.get("scores") or {}
    name = metric if metric in scores else next((each for each in scores if each != "judge"), None)
    return sample["tuned"].strip() != sample["truth"].strip() if name is None else scores[name] < BEST.get(name, 1.0)


def wrong_lines(wrong: Sequence[Mapping[str, Any]], answers: int) -> list[str]:
    """Rows that the tuned model does not have right, of so many answers.

    Each has the turn that was asked, both answers in full, the truth and the scores.
    """
    lines = [f"{len(wrong)} of {answers} answers are not right{':' if wrong else '.'}"]
    for each in wrong:
        now, was = each.get("scores") or {}, each.get("base_scores") or {}
        scored = [f"{name} {f'{was[name]:.3g} -> ' if name in was else ''}{value:.3g}" for name, value in now.items()]
        lines.append("  ".join([f"  {each['source']}", *scored]))
        texts = {"prompt": asked_of(each), **{name: each[name] for name in ("base", "tuned", "truth") if name in each}}
        for name, text in texts.items():
            cut = "" if each.get(f"{name}_stopped", True) else "  (cut off)"
            cut = "  (left unfinished: it cannot be right)" if each.get(f"{name}_settled") else cut
            first, *rest = text.strip().splitlines() or ["(empty)"]
            lines.append(f"    {name:<6} {first}")
            lines += [f"           {line}" for line in rest]
            lines[-1] += cut
    return lines


def one_line(text: str) -> str:
    """The text as one line, cut if it is long; ``(empty)`` if there is nothing to read."""
    flat = " | ".join(part.strip() for part in text.strip().splitlines() if part.strip())
    return (flat or "(empty)") if len(flat) <= LONGEST else f"{flat[: LONGEST - 3]}..."


def _end(prompt: str) -> str:
    """The end of a prompt: rows often begin with the same instruction."""
    flat = " ".join(prompt.split())
    return flat if len(flat) <= LONGEST else f"...{flat[3 - LONGEST :]}"
