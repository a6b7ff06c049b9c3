"""The curves of runs as a picture: loss, validation loss, learning rate and gradient norm over steps.

SVG and HTML are written here, whole in one file; PNG is drawn by matplotlib, which is an extra. No torch.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from tunesmith.errors import ExportError, RunError
from tunesmith.recipe.schedules import rate_text
from tunesmith.runs.folder import Run
from tunesmith.runs.overview import Summary, summary
from tunesmith.runs.rate_curve import RateCurve
from tunesmith.runs.symptoms import Symptom, norms_of, symptoms
from tunesmith.runs.whole_files import write_whole

Points = list[tuple[int, float]]  # (step, value)

PANELS = (
    ("loss", "training loss"),
    ("eval_loss", "validation loss"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
)
COLOURS = ("#1f6feb", "#d1495b", "#2e8b57", "#b8860b", "#8d6a9f", "#17a2a2", "#6c757d", "#e07b39")
DASHES = ("none", "7 3", "2 3")  # of the runs beyond the colours
MOST_POINTS = 500  # of a drawn line; more are joined in means
MARKED = 40  # a line of at most this many points shows each of them
WIDTH, HEIGHT, MARGIN, GAP = 460, 250, (64, 30, 12, 34), 16  # of a panel; its margins: left, top, right, bottom
RATES = 760, 340  # size of the picture of a range test
LOGARITHMIC = 30.0  # gradient norms further apart than this are drawn on a logarithmic scale


@dataclass(frozen=True, slots=True)
class RunCurves:
    """The curves of one run, by the names that metrics.jsonl gives them; ``symptoms`` are what looks wrong in them."""

    name: str
    summary: Summary
    series: dict[str, Points]
    symptoms: list[Symptom]

    def to_json(self) -> dict[str, Any]:
        """``{name, run, training, validation, symptoms}``."""
        return {
            "name": self.name,
            "run": self.summary.run,
            "training": self.series["loss"],
            "validation": self.series["eval_loss"],
            "symptoms": [asdict(found) for found in self.symptoms],
        }


def draw(runs: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> list[RunCurves]:
    """Writes the picture of these runs to ``out``, a .svg, .html or .png file, and gives what was drawn.

    Raises:
        RunError: one of them is no run, or has no metrics yet.
        ExportError: another kind of file, one that is there already, or a PNG without matplotlib.
    """
    place = Path(out)
    writers: dict[str, Callable[[list[RunCurves]], bytes]] = {
        ".svg": lambda found: svg(found).encode(),
        ".html": lambda found: page(found).encode(),
        ".png": png,
    }
    if place.suffix.lower() not in writers:
        raise ExportError(
            f"{place.suffix or 'a file without a suffix'} is no kind of picture that is drawn here",
            where=str(out),
            remedy=f"Name a file that ends in {', '.join(writers)}.",
        )
    if place.is_dir() or (place.exists() and not overwrite):
        raise ExportError("the file is there already", where=str(out), remedy="Add --overwrite, or name another file.")
    found = read(runs)
    content = writers[place.suffix.lower()](found)
    _write(place, content)
    return found


def read(runs: Sequence[str | Path]) -> list[RunCurves]:
    """The curves of each run. Raises RunError where one is no run, or has no metrics yet."""
    opened = [Run.open(folder) for folder in dict.fromkeys(map(str, runs))]
    names = [run.folder.resolve().name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in opened]
    found = []
    for name, run in zip(names, opened, strict=True):
        lines = run.read_lines("metrics.jsonl")
        if not lines:
            raise RunError(
                "This run has no metrics yet",
                where=str(run.folder),
                why="Its first line is written after training.logging_steps steps.",
                remedy="Draw it later, or leave it out.",
            )
        series = {key: _points(lines, key) for key, _ in PANELS}
        found.append(RunCurves(_printable(name), summary(run), series, symptoms(lines)))
    return found


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> Points:
    """What the lines have under a name: one value each, but for gradient norms, of which every step has one."""
    if key == "grad_norm":
        return [(step, norm) for line in lines for step, norm in norms_of(line) if _is_number(norm)]
    return [(int(line["step"]), float(line[key])) for line in lines if _is_number(line.get(key))]


def svg(runs: Sequence[RunCurves]) -> str:
    """Four panels, a colour for each run, and a legend."""
    rows = math.ceil(len(runs) / 3)
    top = 14 + 20 * rows
    width, height = 2 * WIDTH + GAP, top + 2 * HEIGHT + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" role="img">',
        f"<title>Curves of {html.escape(', '.join(run.name for run in runs))}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        *_legend(runs),
    ]
    span = _span(runs)
    for number, (key, title) in enumerate(PANELS):
        left, down = (number % 2) * (WIDTH + GAP), top + (number // 2) * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({left} {down})">')
        parts += _panel(key, title, [(run.name, run.series[key]) for run in runs], span)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def rate_svg(curve: RateCurve, *, title: str) -> str:
    """Loss and smoothed loss over the learning rate, and what is read from them. Losses above the cap stand at it."""
    left, top, right, bottom = MARGIN
    top += 44
    width, height = RATES
    inner = (width - left - right, height - top - bottom)
    rates = [point.learning_rate for point in curve.points]
    losses = [min(point.loss, curve.cap) for point in curve.points]
    low, high = _range(min(losses), max(losses))
    first, last = math.log10(rates[0]), math.log10(max(rates[-1], curve.turn_rate or 0.0))

    def x(rate: float) -> float:
        return left + inner[0] * ((math.log10(rate) - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return top + inner[1] * (1 - (value - low) / (high - low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" role="img">',
        f"<title>Learning-rate range test: {html.escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="18" font-weight="600">loss over the learning rate: {html.escape(title)}</text>',
    ]
    for mark in ticks(low, high):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{left - 6}" y="{y(mark) + 4:.1f}" text-anchor="end" fill="#555">{mark:.4g}</text>')
    for mark in _powers(first - 1e-9, last + 1e-9):
        parts.append(f'<text x="{x(mark):.1f}" y="{height - 16}" text-anchor="middle" fill="#555">{mark:.0e}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 3}" text-anchor="end" fill="#555">learning rate</text>')
    marks = [("falls fastest", curve.steepest_rate), ("turns up", curve.turn_rate), ("suggested", curve.suggestion)]
    found = [(name, rate) for name, rate in marks if rate is not None]
    for number, (name, rate) in enumerate(found, start=2):
        at, colour = x(max(rate, rates[0])), COLOURS[number]
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}" stroke="{colour}" '
            f'stroke-dasharray="4 3"><title>{name} {rate_text(rate)}</title></line>'
        )
    parts += _line("loss", [(x(rate), y(loss)) for rate, loss in zip(rates, losses, strict=True)], "#b9c2cc")
    smooth = [(x(rate), y(value)) for rate, value in zip(rates, curve.smoothed, strict=True)]
    parts += _line("smoothed", smooth, COLOURS[0])
    names = [("loss", "#b9c2cc"), ("smoothed", COLOURS[0])]
    names += [(f"{name} {rate_text(rate)}", COLOURS[number]) for number, (name, rate) in enumerate(found, start=2)]
    for number, (name, colour) in enumerate(names):
        at = left + 130 * number
        parts.append(f'<line x1="{at}" x2="{at + 18}" y1="34" y2="34" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{at + 24}" y="38">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def page(runs: Sequence[RunCurves]) -> str:
    """The picture in a page of its own, with a table of the runs and what looks wrong in each."""
    header = ("run", "status", "step", "last loss", "lowest validation loss", "verdict")
    rows = [_row(run) for run in runs]
    noticed = [
        f"<li><b>{html.escape(run.name)}</b>, step {found.step}: {html.escape(found.text)}</li>"
        for run in runs
        for found in run.symptoms
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Curves of {html.escape(', '.join(run.name for run in runs))}</title>",
            "<style>body{font-family:system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1c1f23}"
            "svg{width:100%;height:auto}table{border-collapse:collapse;margin:1em 0}"
            "th,td{padding:.3em .8em .3em 0;text-align:left;border-bottom:1px solid #ddd}</style></head><body>",
            "<h1>Training curves</h1>",
            svg(runs),
            "<table><tr>" + "".join(f"<th>{name}</th>" for name in header) + "</tr>",
            *("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows),
            "</table>",
            *(["<h2>What looks wrong</h2><ul>", *noticed, "</ul>"] if noticed else []),
            "</body></html>\n",
        ]
    )


def png(runs: Sequence[RunCurves]) -> bytes:
    """The same panels by matplotlib. Raises ExportError where it is not installed."""
    import io

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ExportError(
            "a PNG needs matplotlib",
            why=str(error),
            remedy="pip install 'tunesmith[plots]', or name a .svg or .html file, which need nothing.",
        ) from error
    figure = Figure(figsize=(2 * WIDTH / 96, 2 * HEIGHT / 96), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    first, last = _span(runs)
    room = 0.02 * (last - first) or 1
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        series = [run.series[key] for run in runs]
        for number, points in enumerate(series):
            drawn, (colour, dashes) = _drawn(key, points), _style(number)
            axes.plot(
                [step for step, _ in drawn],
                [value for _, value in drawn],
                color=colour,
                linestyle="-" if dashes == "none" else (0, tuple(map(int, dashes.split()))),
                linewidth=1.2,
                marker="o" if len(drawn) <= MARKED else None,
                markersize=2.5,
            )
        axes.set_xlim(first - room, last + room)
        if key == "grad_norm" and _is_logarithmic([value for points in series for _, value in points]):
            axes.set_yscale("log")
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        axes.set_xlabel("step", fontsize=8)
    handles = figure.axes[0].get_lines()
    figure.legend(handles, [run.name for run in runs], loc="outside upper left", ncols=3, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def thinned(points: Points, most: int = MOST_POINTS, *, join: Callable[[list[float]], float] = fmean) -> Points:
    """At most so many points: neighbours are joined, in their means unless said otherwise; the last point stays."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], join([value for _, value in group])) for group in groups]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from within [low, high], about ``count`` of them: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(mark: float, marks: Sequence[float]) -> str:
    """A mark of an axis with as many digits as tell it from its neighbours; small ones as ``1.5e-4``, all alike."""
    largest = max(map(abs, marks))
    apart = min((abs(one - other) for one, other in pairwise(marks)), default=0.0)
    digits = max(math.floor(math.log10(largest)) - math.floor(math.log10(apart)) + 1, 1) if apart and largest else 4
    if abs(mark) <= 1e-9 * largest:  # 0, and what sums of steps make of it
        return "0"
    if 1e-3 <= largest < 1e6:
        return f"{mark:.{digits}g}"
    mantissa, exponent = f"{mark:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def _panel(key: str, title: str, series: Sequence[tuple[str, Points]], span: tuple[int, int]) -> Iterator[str]:
    left, top, right, bottom = MARGIN
    inner = (WIDTH - left - right, HEIGHT - top - bottom)
    values = [value for _, points in series for _, value in points]
    logarithmic = key == "grad_norm" and _is_logarithmic(values)
    yield f'<text x="{left}" y="18" font-weight="600">{title}{" (logarithmic)" if logarithmic else ""}</text>'
    if not values:
        yield f'<text x="{left}" y="{HEIGHT / 2:.0f}" fill="#777">no values yet</text>'
        return
    first, last = span
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = _range(scale(min(values)), scale(max(values)))

    def x(step: float) -> float:
        return left + inner[0] * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return top + inner[1] * (1 - (scale(value) - low) / (high - low))

    marks = _powers(low, high) if logarithmic else ticks(low, high)
    for mark in marks:
        yield f'<line x1="{left}" x2="{WIDTH - right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#e3e3e3"/>'
        yield f'<text x="{left - 6}" y="{y(mark) + 4:.1f}" text-anchor="end" fill="#555">{label(mark, marks)}</text>'
    for mark in (tick for tick in ticks(first, last) if tick == int(tick)):
        yield f'<text x="{x(mark):.1f}" y="{HEIGHT - 16}" text-anchor="middle" fill="#555">{mark:.0f}</text>'
    yield f'<text x="{WIDTH - right}" y="{HEIGHT - 3}" text-anchor="end" fill="#555">step</text>'
    for number, (name, points) in enumerate(series):
        yield from _line(name, [(x(step), y(value)) for step, value in _drawn(key, points)], *_style(number))


def _line(name: str, points: Sequence[tuple[float, float]], colour: str, dashes: str = "none") -> Iterator[str]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = f"<title>{html.escape(name)}</title>"
    look = f'fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dashes}"'
    yield f'<polyline points="{joined}" {look}>{title}</polyline>'
    if len(points) <= MARKED:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>' for x, y in points)


def _style(number: int) -> tuple[str, str]:
    """Colour and dashes of a run's lines."""
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _drawn(key: str, points: Points) -> Points:
    """A spike of the gradient norm stays where many points are joined."""
    return thinned(points, join=max if key == "grad_norm" else fmean)


def _span(runs: Sequence[RunCurves]) -> tuple[int, int]:
    """The first and the last step of all panels, so that they can be compared."""
    steps = [step for run in runs for points in run.series.values() for step, _ in points]
    return min(steps, default=0), max(steps, default=0)


def _legend(runs: Sequence[RunCurves]) -> Iterator[str]:
    for number, run in enumerate(runs):
        x, y = 64 + (number % 3) * 290, 20 + 20 * (number // 3)
        colour, dashes = _style(number)
        look = f'stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes}"'
        yield f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" {look}/>'
        name = run.name if len(run.name) <= 40 else "…" + run.name[-39:]
        yield f'<text x="{x + 24}" y="{y}">{html.escape(name)}</text>'


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


def _range(low: float, high: float) -> tuple[float, float]:
    """A little wider than the values, and never empty."""
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _powers(low: float, high: float) -> list[float]:
    """Marks from 10^low to 10^high: powers of ten, with 2 and 5 times them where those are few."""
    factors = (1,) if high - low > 2.5 else (1, 2, 5)
    marks = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high)) for factor in factors]
    return [mark for mark in marks if low <= math.log10(mark) <= high]


def _is_logarithmic(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > LOGARITHMIC * min(values)


def _printable(name: str) -> str:
    """XML has no control characters, and UTF-8 nothing for a name that is not text."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _write(place: Path, content: bytes) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, content)
    except OSError as error:
        raise ExportError("the picture cannot be written", where=str(place), why=str(error)) from error
