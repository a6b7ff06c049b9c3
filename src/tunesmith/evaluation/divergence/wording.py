"""Says the divergence of a verdict in a few lines, from verdict.json. This module imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.runs.plain_text import between

SHOWN = 3  # groups of texts
NAMES = {"general": "general text", "own_answers": "the base's own answers"}


def divergence_lines(verdict: Mapping[str, Any]) -> list[str]:
    """A line for each kind of text, its perplexity, and where it moved most; none if nothing was measured."""
    found = verdict.get("divergence")
    if found is None:
        return []
    lines = []
    for name, words in NAMES.items():
        if (each := found.get(name)) is None or "left_out" in each:  # earlier versions said there why it is not
            continue
        low, high = each["interval"]
        lines.append(
            f"Divergence from the base on {words}: {each['kl']:.3g} nats per token ({100 * found['confidence']:g}% "
            f"interval {low:.3g} to {high:.3g}; {each['tokens']:,} tokens of {each['texts']} texts). The likeliest "
            f"token changed at {100 * each['changed']:.1f}% of them."
        )
    general = found.get("general")
    if general is not None and "left_out" not in general:
        perplexity, loss = general["perplexity"], general["loss"]
        largest = ", ".join(f"{each['name']} {each['kl']:.3g}" for each in general["by"][:SHOWN])
        lines.append(
            f"  perplexity of general text {perplexity['base']:.4g} -> {perplexity['tuned']:.4g} (loss "
            f"{loss['difference']:+.3g}, interval {between(loss['interval'])}); largest divergence: {largest}"
        )
        lines += _most(general)
    return lines


def _most(found: Mapping[str, Any]) -> list[str]:
    """The texts and the token at which the models differ most."""
    texts = ", ".join(f"{each['id']} {each['kl']:.3g}" for each in found.get("worst_texts") or [])
    if not texts:
        return []
    tokens = [
        f"; most of all behind {each['before']!r}"
        + (
            f", where the base expects {each['base']!r} and the tuned model {each['tuned']!r}"
            if each["base"] != each["tuned"]
            else ""
        )
        for each in (found.get("worst_tokens") or [])[:1]
    ]
    return [f"  texts that moved most: {texts}{''.join(tokens)}"]
