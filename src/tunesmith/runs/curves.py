"""The curves of runs as a picture: loss, validation loss, learning rate and gradient norm over steps.

An SVG or HTML file holds all that it needs. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from tunesmith.errors import ExportError, RunError
from tunesmith.recipe.schedules import rate_text
from tunesmith.runs.drawing import COLOURS, Axis, Picture, Points, labelled, powers, thinned, ticks, widened
from tunesmith.runs.folder import Run
from tunesmith.runs.outputs import check_file, write_output
from tunesmith.runs.overview import Summary, summary
from tunesmith.runs.rate_curve import RateCurve
from tunesmith.runs.stored_shapes import metric_lines, validation_metrics
from tunesmith.runs.symptoms import Symptom, norms_of, symptoms
from tunesmith.runs.whole_files import place_for, why_not
from tunesmith.safe_text import html_text, one_line

PANELS = (
    ("loss", "training loss"),
    ("eval_loss", "validation loss"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)
MOST_METRICS = 8  # of validations that have a panel
DASHES = ("none", "7 3", "2 3")  # of the runs beyond the colours
WIDTH, HEIGHT, MARGIN, GAP = 460, 250, (64, 30, 12, 34), 16  # of a panel; its margins: left, top, right, bottom
LEGEND_COLUMNS, LEGEND_NAME = 3, 40  # runs beside each other, and characters of a name
RATES = 760, 340  # size of the picture of a range test
RATES_TOP, RATES_ENTRY = 74, 130  # its upper margin, and the width of an entry in its legend
RAW = "#b9c2cc"  # the losses of a range test before they are smoothed
LOGARITHMIC = 30.0  # gradient norms further apart than this are drawn on a logarithmic scale


@dataclass(frozen=True, slots=True)
class RunCurves:
    """The curves of one run, by the names that metrics.jsonl gives them; ``symptoms`` are what looks wrong in them."""

    name: str
    summary: Summary
    series: dict[str, Points]
    symptoms: list[Symptom]
    metrics: dict[str, Points] = field(default_factory=dict)  # of validations, besides the loss

    def to_json(self) -> dict[str, Any]:
        """``{name, run, training, validation, metrics, symptoms}``."""
        return {
            "name": self.name,
            "run": self.summary.run,
            "training": self.series["loss"],
            "validation": self.series["eval_loss"],
            "metrics": self.metrics,
            "symptoms": [asdict(found) for found in self.symptoms],
        }


def draw(runs: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> list[RunCurves]:
    """Writes the picture of these runs to ``out``, a .svg, .html or .png file, and gives what was drawn.

    Raises:
        RunError: one of them is no run, or has no metrics yet.
        ExportError: another kind of file, one that is there already, or a PNG without matplotlib.
    """
    file = place_for(out)
    writers: dict[str, Callable[[list[RunCurves]], str | bytes]] = {
        ".svg": lambda found: picture(found).svg(),
        ".html": page,
        ".png": lambda found: picture(found).png(),
    }
    if file.suffix.lower() not in writers:
        raise ExportError(
            f"Pictures cannot be written as {file.suffix or 'a file without an ending'}",
            where=str(out),
            remedy=f"Name a file that ends in {', '.join(writers)}.",
        )
    check_file(file, inputs=runs, overwrite=overwrite)
    found = read(runs)
    content = writers[file.suffix.lower()](found)
    try:
        write_output(file, content)
    except OSError as error:
        raise ExportError(
            "the picture cannot be written", where=str(file), why=why_not(file, error), remedy="Name another --out."
        ) from error
    return found


def read(runs: Sequence[str | Path]) -> list[RunCurves]:
    """The curves of each run. Raises RunError where one is no run, or has no metrics yet."""
    opened = [Run.open(folder) for folder in dict.fromkeys(map(str, runs))]
    names = [run.folder.resolve().name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in opened]
    found = []
    for name, run in zip(names, opened, strict=True):
        lines = metric_lines(run)
        if not lines:
            raise RunError(
                "This run has no metrics yet",
                where=str(run.folder),
                why="Its first line is written after training.logging_steps steps.",
                remedy="Draw it later, or leave it out.",
            )
        series = {key: _points(lines, key) for key, _ in PANELS}
        found.append(RunCurves(one_line(name), summary(run), series, symptoms(lines), _metrics(lines)))
    return found


def _metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Each metric of the validations besides the loss, by its name for people."""
    found: dict[str, Points] = {}
    for line in lines:
        for name, value in validation_metrics(line).items():
            found.setdefault(one_line(name), []).append((int(line["step"]), float(value)))
    return found


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> Points:
    """What the lines have under a name: one value each, but for gradient norms, of which every step has one."""
    if key == "grad_norm":
        return [(step, norm) for line in lines for step, norm in norms_of(line) if _is_number(norm)]
    return [(int(line["step"]), float(line[key])) for line in lines if _is_number(line.get(key))]


def picture(runs: Sequence[RunCurves]) -> Picture:
    """Four panels and one for each other metric of validations, a colour for each run, and a legend."""
    top = 14 + 20 * math.ceil(len(runs) / LEGEND_COLUMNS)
    title = f"Curves of {', '.join(run.name for run in runs)}"
    metrics = [*dict.fromkeys(name for run in runs for name in run.metrics)][:MOST_METRICS]
    panels = math.ceil((len(PANELS) + len(metrics)) / 2)  # one above the other
    whole = Picture(2 * WIDTH + GAP, top + panels * HEIGHT + (panels - 1) * GAP, title)
    for number, run in enumerate(runs):
        x, y = MARGIN[0] + (number % LEGEND_COLUMNS) * 290, 16 + 20 * (number // LEGEND_COLUMNS)
        name = run.name if len(run.name) <= LEGEND_NAME else "…" + run.name[1 - LEGEND_NAME :]
        whole.key(x, y, name, *_look(number))
    # The first and the last step of all panels are the same, so that they can be compared.
    steps = [step for run in runs for points in run.series.values() for step, _ in points]
    span = min(steps, default=0), max(steps, default=0)
    drawn = [(key, title, [(run.name, run.series[key]) for run in runs]) for key, title in PANELS]
    drawn += [(name, name, [(run.name, run.metrics.get(name, [])) for run in runs]) for name in metrics]
    for number, (key, title, series) in enumerate(drawn):
        panel = _panel(key, title, series, span)
        whole.parts.append(((number % 2) * (WIDTH + GAP), top + (number // 2) * (HEIGHT + GAP), panel))
    return whole


def _panel(key: str, title: str, series: Sequence[tuple[str, Points]], span: tuple[int, int]) -> Picture:
    left, top, right, bottom = MARGIN
    panel = Picture(WIDTH, HEIGHT)
    values = [value for _, points in series for _, value in points]
    logarithmic = key == "grad_norm" and bool(values) and 0 < LOGARITHMIC * min(values) < max(values)
    panel.add("text", title + (" (logarithmic)" if logarithmic else ""), x=left, y=18, font_weight="bold")
    if not values:
        panel.add("text", "no values yet", x=left, y=HEIGHT // 2, fill="#777")
        return panel
    x = Axis(*span, left, WIDTH - right)
    if logarithmic:
        low, high = widened(math.log10(min(values)), math.log10(max(values)))
        y = Axis(10**low, 10**high, HEIGHT - bottom, top, math.log10)
        rows = powers(y.low, y.high)
    else:
        y = Axis(*widened(min(values), max(values)), HEIGHT - bottom, top)
        rows = ticks(y.low, y.high)
    columns = [(f"{tick:.0f}", tick) for tick in ticks(*span) if tick == int(tick)]
    panel.axes(x, y, columns=columns, rows=labelled(rows), name="step")
    for number, (name, points) in enumerate(series):
        # A spike of the gradient norm stays where many points are joined.
        drawn = thinned(points, join=max if key == "grad_norm" else fmean)
        colour, dashes = _look(number)
        panel.curve([(x.at(step), y.at(value)) for step, value in drawn], colour, dashes=dashes, title=name)
    return panel


def _look(number: int) -> tuple[str, str]:
    """Colour and dashes of a run's lines."""
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def rate_svg(curve: RateCurve, *, title: str) -> str:
    """Loss and smoothed loss over the learning rate, and what is read from them. Losses above the cap stand at it."""
    (width, height), (left, _, right, bottom) = RATES, MARGIN
    rates = [point.learning_rate for point in curve.points]
    losses = [min(point.loss, curve.cap) for point in curve.points]
    x = Axis(rates[0], rates[-1], left, width - right, math.log10)
    y = Axis(*widened(min(losses), max(losses)), height - bottom, RATES_TOP)
    drawing = Picture(width, height, f"Learning-rate range test: {title}")
    drawing.add("text", f"loss over the learning rate: {title}", x=left, y=18, font_weight="bold")
    columns = [(f"{mark:.0e}", mark) for mark in powers(x.low, x.high)]
    rows = [(f"{mark:.4g}", mark) for mark in ticks(y.low, y.high)]
    drawing.axes(x, y, columns=columns, rows=rows, name="learning rate")
    marks = [("falls fastest", curve.steepest_rate), ("suggested", curve.suggestion)]
    names = [("loss", RAW), ("smoothed", COLOURS[0])]
    for name, rate in marks:
        if rate is not None:
            colour = COLOURS[len(names)]
            names.append((f"{name} {rate_text(rate)}", colour))
            at, look = x.at(max(rate, rates[0])), {"stroke": colour, "stroke_dasharray": "4 3"}
            drawing.add(
                "line", class_="mark", x1=at, x2=at, y1=RATES_TOP, y2=height - bottom, title=names[-1][0], **look
            )
    for (name, colour), values in zip(names, (losses, curve.smoothed), strict=False):
        pixels = [(x.at(rate), y.at(value)) for rate, value in zip(rates, values, strict=True)]
        drawing.curve(pixels, colour, title=name)
    for number, (name, colour) in enumerate(names):
        drawing.key(left + RATES_ENTRY * number, 34, name, colour)
    return drawing.svg()


def page(runs: Sequence[RunCurves]) -> str:
    """The picture in a page of its own, with a table of the runs and what looks wrong in each."""
    header = ("run", "status", "step", "last loss", "lowest validation loss", "verdict")
    rows = [_row(run) for run in runs]
    noticed = [
        f"<li><b>{html_text(run.name)}</b>, step {found.step}: {html_text(found.text)}</li>"
        for run in runs
        for found in run.symptoms
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Curves of {html_text(', '.join(run.name for run in runs))}</title>",
            "<style>body{font-family:system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1c1f23}"
            "svg{width:100%;height:auto}table{border-collapse:collapse;margin:1em 0}"
            "th,td{padding:.3em .8em .3em 0;text-align:left;border-bottom:1px solid #ddd}</style></head><body>",
            "<h1>Training curves</h1>",
            picture(runs).svg(),
            "<table><tr>" + "".join(f"<th>{name}</th>" for name in header) + "</tr>",
            *("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows),
            "</table>",
            *(["<h2>What looks wrong</h2><ul>", *noticed, "</ul>"] if noticed else []),
            "</body></html>\n",
        ]
    )


def _row(run: RunCurves) -> list[str]:
    last = run.series["loss"][-1][1] if run.series["loss"] else None
    best = min(run.series["eval_loss"], key=lambda point: point[1], default=None)
    of = run.summary
    return [
        run.name,
        of.status,
        f"{of.step}/{of.total_steps or '?'}",
        "–" if last is None else f"{last:.4g}",
        "–" if best is None else f"{best[1]:.4g} at step {best[0]}",
        of.verdict or "–",
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
