"""Tables, bars and curves as plain text: the same on a screen and in a file, and never cut off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

from tunesmith.cli.terminal.text import UNLIMITED, as_text, cells, folded, words
from tunesmith.runs.plain_text import between
from tunesmith.safe_text import one_line

GAP = "  "
MOST_BARS = 12
FEWEST_DRAWN = 5  # points of a curve; fewer are written as numbers
MOST_TURNED = 4  # rows of a table that may become columns
TRAINING, VALIDATION = "·", "o"  # marks of a curve
_Points = Sequence[tuple[int, float]]  # (step, loss)


def curve(training: _Points, validation: _Points, *, width: int = 72, height: int = 12) -> list[str]:
    """A plot of loss over steps, as lines of text: ``·`` is training, ``o`` is validation.

    Losses that share a column are averaged. Of fewer points than FEWEST_DRAWN there is nothing to draw: each loss is
    written with its step. Without a point there are no lines.
    """
    training, validation = (
        [(step, loss) for step, loss in each if math.isfinite(loss)] for each in (training, validation)
    )
    points = [*training, *validation]
    steps = [step for step, _ in points]
    if len(points) < FEWEST_DRAWN or min(steps) == max(steps):
        named = (("training loss", training), ("validation loss", validation))
        found = [(name, ", ".join(f"{loss:.4g} at step {step}" for step, loss in series)) for name, series in named]
        return [f"{name}: {losses}" for name, losses in found if losses]
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
        column = round((step - first) / (last - first) * (columns - 1))
        losses.setdefault(column, []).append(loss)
    return {column: sum(found) / len(found) for column, found in losses.items()}


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[int] = (), width: int = UNLIMITED
) -> list[str]:
    """Lines of aligned columns, the header first. None is a dash. ``right`` has the numbers of right-aligned columns.

    Wide characters, such as Chinese ones, take two places. A table that is wider than ``width`` has cells of several
    lines, broken between words. If that is not enough, a table of few rows is turned, so that rows are columns, and
    otherwise each row is a block of lines.
    """
    found = [[_cell(value) for value in row] for row in [header, *rows]]
    turned = [list(column) for column in zip(*found, strict=True)]
    numbers = range(1, len(found)) if right else ()
    lines = _columns(found, right, width)
    if lines is None and len(rows) <= MOST_TURNED:
        lines = _columns(turned, numbers, width)
    return _blocks(found, width) if lines is None else lines


def _cell(value: Any) -> str:
    return one_line(" ".join(as_text(value).split()))


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int], width: int) -> list[str] | None:
    """Aligned columns of at most ``width`` places; None if words are too long for that."""
    columns = list(zip(*rows, strict=True))
    widest = [max(map(cells, column)) for column in columns]
    least = [max((cells(word) for cell in column for word in words(cell)), default=0) for column in columns]
    over = sum(widest) + len(GAP) * (len(columns) - 1) - width
    while over > 0:
        column = max((n for n in range(len(columns)) if widest[n] > least[n]), key=lambda n: widest[n], default=None)
        if column is None:
            return None
        widest[column] -= 1
        over -= 1

    def padded(value: str, column: int) -> str:
        blanks = " " * (widest[column] - cells(value))
        return blanks + value if column in right else value + blanks

    lines = []
    for row in rows:
        parts = [folded(cell, widest[number]) for number, cell in enumerate(row)]
        for line in zip_longest(*parts, fillvalue=""):
            lines.append(GAP.join(padded(value, column) for column, value in enumerate(line)).rstrip())
    return lines


def _blocks(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Each row as its first cell, with the others by name below it."""
    header, *others = rows
    lines = []
    for first, *rest in others:
        lines.append(first)
        pairs = [f"{name} {value}".strip() for name, value in zip(header[1:], rest, strict=True)]
        lines += [f"{GAP}{line}" for line in flowed(pairs, width - len(GAP))]
    return lines


def flowed(texts: Sequence[str], width: int) -> list[str]:
    """Texts joined to lines of at most ``width`` cells. A text is never broken, so a wider one has its own line."""
    lines: list[str] = []
    for text in texts:
        if lines and cells(lines[-1]) + len(GAP) + cells(text) <= width:
            lines[-1] += GAP + text
        else:
            lines.append(text)
    return lines


def bars(histogram: Sequence[Mapping[str, int]], *, width: int = 40) -> list[str]:
    """A histogram ``[{from, to, rows}]`` as horizontal bars. More than twelve bars are joined to wider ones."""
    step = -(-len(histogram) // MOST_BARS)
    groups = [histogram[start : start + step] for start in range(0, len(histogram), step)]
    joined = [(group[0]["from"], group[-1]["to"] - 1, sum(bar["rows"] for bar in group)) for group in groups]
    most = max(rows for _, _, rows in joined)
    rows = [(f"{low:,}", f"{high:,}", f"{rows:,}", "#" * -(-width * rows // most)) for low, high, rows in joined]
    return table(("from", "to", "rows", ""), rows, right=(0, 1, 2))


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], *, width: int = UNLIMITED) -> list[str]:
    """Metrics of a verdict: base, tuned, difference and interval; of a model alone: its value."""
    if any("value" in found for found in metrics.values()):
        values = [(name, found["value"]) for name, found in metrics.items()]
        return table(("metric", "value"), values, right=(1,), width=width)
    rows = []
    for name, found in metrics.items():
        interval = between(found["interval"])
        rows.append(
            (name, found["base"], found["tuned"], f"{found['difference']:+.3g}", interval, found.get("verdict"))
        )
    header = ("metric", "base", "tuned", "difference", "interval", "verdict")
    return table(header, rows, right=(1, 2, 3), width=width)


def baseline_lines(verdict: Mapping[str, Any], *, width: int = UNLIMITED) -> list[str]:
    """The baselines of a verdict beside the tuned model, by the metric that decides among them; none if there are none.

    A verdict of one is about the tuned model: `better` if it is better than the baseline.
    """
    found = verdict.get("baselines")
    if not found or not found["results"]:
        return []
    metric, rows = found["metric"], []
    for each in found["results"]:
        values = each["metrics"][metric]
        of_value, of_difference = values["interval"], values["difference_interval"]
        rows.append(
            (
                each["name"],
                values["value"],
                f"{of_value[0]:.2g} to {of_value[1]:.2g}",
                f"{values['difference']:+.3g}",
                between(of_difference),
                values["verdict"],
            )
        )
    header = ("baseline", metric, "interval", "difference", "interval", "tuned is")
    return table(header, rows, right=(1, 3), width=width)


def comparison_lines(found: Mapping[str, Any], *, width: int = UNLIMITED) -> list[str]:
    """What `compare` found: the models with their values, each pair with its verdict by number, and notes."""
    from tunesmith.evaluation.wording import pair_cells, pair_notes

    names = [model["name"] for model in found["models"]]
    numbers = {name: number for number, name in enumerate(names, start=1)}
    rows = [(numbers[name], name, *(of.get(name) for of in found["metrics"].values())) for name in names]
    right = range(2, 2 + len(found["metrics"]))
    lines = [*map(one_line, found["notes"])]
    lines += table(("", "model", *found["metrics"]), rows, right=(0, *right), width=width)
    pairs = [(f"{numbers[pair['from']]} -> {numbers[pair['to']]}", pair) for pair in found["pairs"]]
    header = ("pair", "verdict", "decided by", "difference", f"{100 * found['confidence']:g}% interval", "p")
    lines += ["", *table(header, [(name, *pair_cells(pair)) for name, pair in pairs], right=(3, 5), width=width)]
    notes: dict[str, list[str]] = {}  # one line for all pairs that a note is about
    for name, pair in pairs:
        for note in pair_notes(pair):
            notes.setdefault(note, []).append(name)
    return [*lines, *(one_line(f"{', '.join(of)}: {note}") for note, of in notes.items())]


def verdict_line(verdict: Mapping[str, Any]) -> str:
    """The verdict in a sentence, or why there is none."""
    from tunesmith.evaluation.wording import sentence

    return sentence(cast(Any, verdict)) if verdict["metrics"] else f"{verdict['verdict']}: {verdict.get('reason')}"


def settings_table(settings: Sequence[tuple[str, Any, str]], *, width: int = UNLIMITED) -> list[str]:
    """Settings with their values and sources."""
    import json

    rows = [(key, json.dumps(value, ensure_ascii=False, default=str), source) for key, value, source in settings]
    return table(("key", "value", "source"), rows, width=width)
