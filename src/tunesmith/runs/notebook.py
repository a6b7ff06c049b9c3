"""Small pieces of HTML, for results that a notebook shows."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.runs.plain_text import between
from tunesmith.safe_text import html_text


def paragraph(text: str) -> str:
    """One line of text."""
    return f"<p>{html_text(text)}</p>"


def preformatted(text: str) -> str:
    """Text as it is, with its line ends."""
    return f"<pre>{html_text(text)}</pre>"


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table. None is an empty cell, and floats have four digits."""
    head = "".join(f"<th>{html_text(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def metrics_html(verdict: dict[str, Any], said: str | None = None) -> str:
    """A verdict in a sentence, and base against tuned by metric.

    Args:
        said: the sentence; None: the word of the verdict, what decided it, and its reason if it has one.
    """
    header, rows = _compared(verdict)
    return paragraph(said or _in_short(verdict)) + html_table(header, rows)


def _in_short(verdict: dict[str, Any]) -> str:
    if not verdict["verdict"]:
        return "Nothing was tuned, so there is no verdict."
    by = f", decided by {verdict['decided_by']}" if verdict.get("decided_by") else ""
    return " ".join(filter(None, [f"Verdict: {verdict['verdict']}{by}.", verdict.get("reason")]))


def _compared(verdict: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The header and the rows of the table."""
    rows = []
    for name, found in verdict["metrics"].items():
        interval = found.get("interval")
        ends = between(interval) if interval else None
        rows.append((name, found.get("base"), found.get("tuned", found.get("value")), found.get("difference"), ends))
    header = ("metric", "base", "tuned", "difference", f"{verdict.get('confidence', 0.95):.0%} interval")
    return header, rows


def metrics_text(verdict: dict[str, Any], said: str | None = None) -> str:
    """The same as lines."""
    header, rows = _compared(verdict)
    lines = [said or _in_short(verdict)]
    for metric, *values in rows:
        named = zip(header[1:], values, strict=True)
        lines.append(f"{metric}: " + ", ".join(f"{name} {_text(value)}" for name, value in named if value is not None))
    return "\n".join(lines)


def picture_html(svg: str) -> str:
    """A picture, not wider than the page."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img style="max-width: 100%" src="data:image/svg+xml;base64,{data}">'


def _cell(value: Any) -> str:
    return "" if value is None else html_text(_text(value))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
