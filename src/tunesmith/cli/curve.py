"""A loss curve in characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = Sequence[tuple[int, float]]  # (step, loss)
TRAINING, VALIDATION = "·", "o"


def curve(training: Points, validation: Points, *, width: int = 72, height: int = 12) -> list[str]:
    """Lines of a plot of loss over steps: ``·`` training, the mean of what falls into a column, ``o`` validation.

    Empty where there are not two different steps to draw.
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


def _by_column(series: Points, first: int, last: int, columns: int) -> dict[int, float]:
    losses: dict[int, list[float]] = {}
    for step, loss in series:
        if math.isfinite(loss):
            column = round((step - first) / (last - first) * (columns - 1))
            losses.setdefault(column, []).append(loss)
    return {column: sum(found) / len(found) for column, found in losses.items()}
