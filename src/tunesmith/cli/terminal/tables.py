"""Tables, bars and curves as plain text: the same on a screen and in a file, and never cut off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tunesmith.cli.terminal.text import as_text, escaped

GAP = "  "
MOST_BARS = 12
TRAINING, VALIDATION = "·", "o"  # marks of a curve
_Points = Sequence[tuple[int, float]]  # (step, loss)


def curve(training: _Points, validation: _Points, *, width: int = 72, height: int = 12) -> list[str]:
    """A plot of loss over steps, as lines of text: ``·`` is training, ``o`` is validation.

    Losses that share a column are averaged. Without two different steps there is nothing to draw: no lines.
    """
    points = [(step, loss) for step, loss in [*training, *validation] if math.isfinite(loss)]
    steps = [step for step, _ in points]
    if not points or min(steps) == max(steps):
        return []
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 10)
    grid = [[" "] * columns for _ in range(height)]
    for mark, series in ((TRAINING, training), (VALIDATION, validation)):
        for column, loss in _by_column(series, min(steps), max(steps), columns).items():
            row = round((high - loss) / (high - low) * (height - 1)) if high > low else height - 1
            grid[row][column] = mark
    names = {0: labels[0], height - 1: labels[1]}
    lines = [f"{names.get(row, ''):>{margin}} |{''.join(cells).rstrip()}" for row, cells in enumerate(grid)]
    first, last = f"step {min(steps)}", str(max(steps))
    lines.append(" " * margin + " +" + "-" * columns)
    lines.append(" " * (margin + 2) + first + last.rjust(columns - len(first)))
    lines.append(" " * (margin + 2) + f"loss: {TRAINING} training  {VALIDATION} validation")
    return lines


def _by_column(series: _Points, first: int, last: int, columns: int) -> dict[int, float]:
    losses: dict[int, list[float]] = {}
    for step, loss in series:
        if math.isfinite(loss):
            column = round((step - first) / (last - first) * (columns - 1))
            losses.setdefault(column, []).append(loss)
    return {column: sum(found) / len(found) for column, found in losses.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of aligned columns, the header first. None is a dash. ``right`` has the numbers of right-aligned columns.

    Wide characters, such as Chinese ones, take two places.
    """
    from rich.cells import cell_len

    cells = [[" ".join(escaped(as_text(value)).split()) for value in row] for row in [header, *rows]]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(header))]

    def padded(value: str, column: int) -> str:
        blanks = " " * (widths[column] - cell_len(value))
        return blanks + value if column in right else value + blanks

    return [GAP.join(padded(value, column) for column, value in enumerate(row)).rstrip() for row in cells]


def bars(histogram: Sequence[Mapping[str, int]], *, width: int = 40) -> list[str]:
    """A histogram ``[{from, to, rows}]`` as horizontal bars. More than twelve bars are joined to wider ones."""
    step = -(-len(histogram) // MOST_BARS)
    groups = [histogram[start : start + step] for start in range(0, len(histogram), step)]
    joined = [(group[0]["from"], group[-1]["to"] - 1, sum(bar["rows"] for bar in group)) for group in groups]
    most = max(rows for _, _, rows in joined)
    rows = [(f"{low:,}", f"{high:,}", f"{rows:,}", "#" * -(-width * rows // most)) for low, high, rows in joined]
    return table(("from", "to", "rows", ""), rows, right=(0, 1, 2))


def metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Metrics of a verdict: base, tuned, difference and interval; of a model alone: its value."""
    if any("value" in found for found in metrics.values()):
        return table(("metric", "value"), [(name, found["value"]) for name, found in metrics.items()], right=(1,))
    rows = []
    for name, found in metrics.items():
        low, high = found["interval"]
        interval = f"{low:+.3g} to {high:+.3g}"
        rows.append(
            (name, found["base"], found["tuned"], f"{found['difference']:+.3g}", interval, found.get("verdict"))
        )
    return table(("metric", "base", "tuned", "difference", "interval", "verdict"), rows, right=(1, 2, 3))


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """The verdict in a sentence, or why there is none."""
    from tunesmith.evaluation.compare import sentence

    return sentence(cast(Any, verdict)) if verdict["metrics"] else f"{verdict['verdict']}: {verdict['reason']}"


def settings_table(settings: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Every setting with its value and its source."""
    import json

    rows = [(key, json.dumps(value, ensure_ascii=False, default=str), source) for key, value, source in settings]
    return table(("key", "value", "source"), rows)
