"""What a ledger's counts come to on a page: shares, and the segments of its bars. ``ledger.html.j2`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# (key, name, what it means), in the order of the bars.
OUTCOMES = (
    ("trained", "to train on", "what the model learns from"),
    ("held_out", "held out", "kept to judge on, and for the validation loss"),
    ("test", "test", "kept apart from training and verdict"),
    ("unbalanced", "taken out for balance", "left out so that no answer outweighs the others"),
    ("too_long", "too long", "longer than the longest row allowed"),
    ("leaked", "leaked", "its prompt is held out, so it is not trained on"),
    ("duplicate", "duplicate", "the same row stands elsewhere"),
    ("left_out", "left out", "marked as not to be used by the tool that wrote the file"),
    ("invalid", "invalid", "could not be used, see the bad rows"),
)
MEASURES = (("rows", "rows"), ("tokens", "tokens"), ("supervised", "supervised tokens"))


def measures_of(ledger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows, tokens and supervised tokens by where they went: counts, shares and the segments of a bar."""
    measures = []
    for key, name in MEASURES:
        counts = ledger.get(key)
        if not counts:
            continue
        read = counts["read"] or 0
        placed = sum(counts[outcome] or 0 for outcome, _, _ in OUTCOMES)
        whole = max(read, placed) or 1
        parts = [(outcome, label, counts[outcome] or 0) for outcome, label, _ in OUTCOMES]
        ends = [sum(count for _, _, count in parts[:number]) for number in range(len(parts))]
        measures.append(
            {
                "name": name,
                "counts": counts,
                "unplaced": read - placed,
                "sum": " + ".join(f"{count:,}" for _, _, count in parts if count),
                "shares": {outcome: share(count, read) for outcome, _, count in parts},
                "starts": {part[0]: f"{100 * end / whole:.3f}" for part, end in zip(parts, ends, strict=True)},
                "widths": {outcome: f"{100 * count / whole:.3f}" for outcome, _, count in parts},
                "segments": [
                    {
                        "outcome": outcome,
                        "name": label,
                        "title": f"{label}: {count:,} {name}",
                        "wide": count > whole / 8,
                    }
                    for outcome, label, count in parts
                    if count
                ],
            }
        )
    return measures


def accounts_of(ledger: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, Mapping[str, int]]]]]:
    """Each source with its counts of rows, tokens and supervised tokens, as far as they are known."""
    sources = ledger["sources"].items()
    return [(path, [(name, counts[key]) for key, name in MEASURES if counts.get(key)]) for path, counts in sources]


def share(part: float, whole: float) -> str:
    """A part in percent."""
    found = part / whole if whole else 0.0
    return "< 0.1%" if 0 < found < 0.001 else f"{found:.1%}"
