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


def metrics_html(verdict: dict[str, Any]) -> str:
    """A verdict: its word, its reason if it has one, and base against tuned by metric."""
    said, header, rows = _compared(verdict)
    return paragraph(said) + html_table(header, rows)


def _compared(verdict: dict[str, Any]) -> tuple[str, tuple[str, ...], list[tuple[Any, ...]]]:
    """The sentence, and the header and the rows of the table."""
    rows = []
    for name, found in verdict["metrics"].items():
        interval = found.get("interval")
        ends = between(interval) if interval else None
        rows.append((name, found.get("base"), found.get("tuned", found.get("value")), found.get("difference"), ends))
    header = ("metric", "base", "tuned", "difference", f"{verdict.get('confidence', 0.95):.0%} interval")
    word = f"Verdict: {verdict['verdict']}." if verdict["verdict"] else "Nothing was tuned, so there is no verdict."
    said = " ".join(filter(None, [word, verdict.get("reason")]))
    return said, header, rows


def metrics_text(verdict: dict[str, Any]) -> str:
    """The same as lines."""
    said, header, rows = _compared(verdict)
    lines = [said]
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
