"""Says in a few lines what base and tuned model answered, from samples.jsonl. It does not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 160  # characters of a text
SHOWN, LABELS_SHOWN = 3, 5
SAMPLES = "samples.jsonl"


def side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first few held-out rows with their answers: last turn of the prompt, base, tuned and truth."""
    shown = samples[:SHOWN]
    if not shown:
        return []
    rows = f"{len(shown)} held-out row{'s' * (len(shown) > 1)}"
    who = "of the base and the tuned model" if "base" in shown[0] else "of the model"
    lines = [f"{rows}, with the answers {who}:"]
    for sample in shown:
        lines.append(f"  {sample['source']}")
        texts = {name: sample[name] for name in ("base", "tuned", "truth") if name in sample}
        asked = sample.get("asked") or sample["prompt"]  # earlier versions kept the whole prompt alone
        for name, text in {"prompt": _end(asked), **texts}.items():
            lines.append(f"    {name:<6} {one_line(text)}")
    return lines


def worst_labels(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """The labels that the tuned model gets wrong most often, worst first. None if answers are not scored labels."""
    scored = [each for each in samples if "exact_match" in each.get("scores", {})]
    rows = Counter(each["truth"] for each in scored)
    if not 2 <= len(rows) <= len(scored) / 2:
        return None
    right = Counter(each["truth"] for each in scored if each["scores"]["exact_match"] == 1)
    wrong = [label for label in rows if right[label] < rows[label]]
    if not wrong:
        return None
    wrong.sort(key=lambda label: (right[label] / rows[label], -rows[label], label))
    named = ", ".join(f"{one_line(label)} {right[label]} of {rows[label]}" for label in wrong[:LABELS_SHOWN])
    return f"labels, worst first: {named} right" + (", ..." if len(wrong) > LABELS_SHOWN else "")


def one_line(text: str) -> str:
    """The text as one line, cut if it is long; ``(empty)`` if there is nothing to read."""
    flat = " | ".join(part.strip() for part in text.strip().splitlines() if part.strip())
    return (flat or "(empty)") if len(flat) <= LONGEST else f"{flat[: LONGEST - 3]}..."


def _end(prompt: str) -> str:
    """The end of a prompt: rows often begin with the same instruction."""
    flat = " ".join(prompt.split())
    return flat if len(flat) <= LONGEST else f"...{flat[3 - LONGEST :]}"
