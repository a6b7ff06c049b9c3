"""Small pieces of HTML, for results that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def paragraph(text: str) -> str:
    """One line of text."""
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Text as it is, with its line ends."""
    return f"<pre>{escape(text)}</pre>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table. None is an empty cell, and floats have four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def metrics_html(verdict: dict[str, Any]) -> str:
    """A verdict: its word, its reason if it has one, and base against tuned by metric."""
    rows = []
    for name, found in verdict["metrics"].items():
        interval = found.get("interval")
        ends = f"{interval[0]:+.4g} to {interval[1]:+.4g}" if interval else None
        rows.append((name, found.get("base"), found.get("tuned", found.get("value")), found.get("difference"), ends))
    header = ("metric", "base", "tuned", "difference", f"{verdict.get('confidence', 0.95):.0%} interval")
    said = " ".join(filter(None, [f"Verdict: {verdict['verdict']}.", verdict.get("reason")]))
    return paragraph(said) + html_table(header, rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
