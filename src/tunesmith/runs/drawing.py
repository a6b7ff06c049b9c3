"""Pictures of axes, lines and bars, as SVG text or as PNG by matplotlib, which is an extra. No torch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

from tunesmith.errors import ExportError, pip_install
from tunesmith.runs.child_processes import elsewhere
from tunesmith.safe_text import html_text

Points = list[tuple[int, float]]  # (step, value)
Marks = Sequence[tuple[str, float]]  # (label, value) on an axis

COLOURS = ("#1f6feb", "#d1495b", "#2e8b57", "#b8860b", "#8d6a9f", "#17a2a2", "#6c757d", "#e07b39")
GRID, FAINT = "#e3e3e3", "#555"
MOST_POINTS = 500  # of a drawn line; more are joined in means
DOTTED = 40  # a line of at most this many points shows each of them
FONT = 11  # pixels
PIXELS_AN_INCH, POINTS_A_PIXEL = 96, 0.75
DOTS_AN_INCH = 144  # of a PNG


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values stand: ``low`` at ``begin`` and ``high`` at ``end``, in pixels, by a scale such as `math.log10`."""

    low: float
    high: float
    begin: float
    end: float
    scale: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """The pixel of a value, in the middle of an axis without length. Values beyond the axis stand at its ends."""
        low, high = self.scale(self.low), self.scale(self.high)
        share = (self.scale(value) - low) / (high - low) if high > low else 0.5
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)


@dataclass(frozen=True, slots=True)
class _Shape:
    """An element of SVG. Floats among its attributes are written with one digit."""

    tag: str
    attributes: dict[str, str | float]
    text: str
    title: str

    def svg(self) -> str:
        written = {
            name.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else html_text(str(value))
            for name, value in self.attributes.items()
        }
        begin = " ".join([self.tag, *(f'{name}="{value}"' for name, value in written.items())])
        inside = f"<title>{html_text(self.title)}</title>" if self.title else ""
        inside += html_text(self.text)
        return f"<{begin}>{inside}</{self.tag}>" if inside else f"<{begin}/>"


@dataclass(slots=True)
class Picture:
    """Shapes and smaller pictures, each in its place. Lengths are pixels from the left and from the top."""

    width: int
    height: int
    title: str = ""
    shapes: list[_Shape] = field(default_factory=list)
    parts: list[tuple[float, float, Picture]] = field(default_factory=list)

    def add(self, tag: str, text: str = "", *, title: str = "", **attributes: str | float) -> None:
        """Adds an element of SVG: line, text, rect, circle or polyline. ``text_anchor`` is text-anchor.

        What ``title`` says is seen when the pointer is on the shape.
        """
        self.shapes.append(_Shape(tag, attributes, text, title))

    def axes(self, x: Axis, y: Axis, *, columns: Marks, rows: Marks, name: str) -> None:
        """Adds grid lines and their labels, labels below, and the name of the axis below."""
        for label, value in rows:
            at = y.at(value)
            self.add("line", class_="grid", x1=x.begin, x2=x.end, y1=at, y2=at, stroke=GRID)
            self.add("text", label, x=x.begin - 6, y=at + 4, text_anchor="end", fill=FAINT)
        for label, value in columns:
            self.add("text", label, x=x.at(value), y=y.begin + 18, text_anchor="middle", fill=FAINT)
        self.add("text", name, x=x.end, y=y.begin + 31, text_anchor="end", fill=FAINT)

    def curve(self, points: Sequence[tuple[float, float]], colour: str, *, dashes: str = "none", title: str) -> None:
        """Adds a line through pixels; one of few points shows each of them."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = {"fill": "none", "stroke": colour, "stroke_width": 1.6, "stroke_dasharray": dashes}
        self.add("polyline", points=joined, title=title, **look)
        for x, y in points if len(points) <= DOTTED else ():
            self.add("circle", cx=x, cy=y, r=2.2, fill=colour)

    def key(self, x: float, y: float, name: str, colour: str, dashes: str = "none") -> None:
        """Adds an entry of the legend: a short line and a name."""
        self.add("line", x1=x, x2=x + 18, y1=y, y2=y, stroke=colour, stroke_width=3, stroke_dasharray=dashes)
        self.add("text", name, x=x + 24, y=y + 4)

    def svg(self) -> str:
        """A file of its own."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        root = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="{FONT}"'
        ground = '<rect width="100%" height="100%" fill="white"/>'
        title = f"<title>{html_text(self.title)}</title>"
        return "\n".join([f'{root} role="img">', title, ground, *self._inside(), "</svg>\n"])

    def inline_svg(self) -> str:
        """An element of a page, whose style sheet may change the colours."""
        root = f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{html_text(self.title)}">'
        return "\n".join([root, *self._inside(), "</svg>"])

    def _inside(self) -> list[str]:
        lines = [shape.svg() for shape in self.shapes]
        for x, y, part in self.parts:
            lines += [f'<g transform="translate({x} {y})">', *part._inside(), "</g>"]
        return lines

    def png(self) -> bytes:
        """The same picture as PNG.

        Raises:
            ExportError: matplotlib is not installed.
        """
        try:
            with elsewhere():  # matplotlib reads a file of the working folder, which may name programs
                from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
                from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ExportError(
                "a PNG needs matplotlib",
                why=str(error),
                remedy=f"{pip_install('plots')}, or name a .svg or .html file, which need nothing.",
            ) from error
        figure = Figure(figsize=(self.width / PIXELS_AN_INCH, self.height / PIXELS_AN_INCH), dpi=DOTS_AN_INCH)
        FigureCanvasAgg(figure)
        canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        canvas.axis("off")
        self._paint(canvas, 0.0, 0.0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def _paint(self, canvas: Any, left: float, top: float) -> None:
        """Draws lines, texts and circles on the axes of a figure, which count in pixels, too."""
        for shape in self.shapes:
            given = shape.attributes
            colour = given.get("stroke", given.get("fill", "black"))
            if shape.tag == "text":
                side = {"start": "left", "middle": "center", "end": "right"}[str(given.get("text_anchor", "start"))]
                look = {"ha": side, "weight": given.get("font_weight", "normal"), "fontsize": POINTS_A_PIXEL * FONT}
                x, y = left + float(given["x"]), top + float(given["y"])
                canvas.text(x, y, shape.text, color=colour, parse_math=False, **look)
            elif shape.tag == "circle":
                x, y = left + float(given["cx"]), top + float(given["cy"])
                canvas.plot([x], [y], "o", color=colour, markersize=2 * POINTS_A_PIXEL * float(given["r"]))
            else:
                points = str(given.get("points", "")) or "{x1},{y1} {x2},{y2}".format(**given)
                pixels = [[float(value) for value in pair.split(",")] for pair in points.split()]
                dashes = given.get("stroke_dasharray", "none")
                canvas.plot(
                    [left + x for x, _ in pixels],
                    [top + y for _, y in pixels],
                    color=colour,
                    linewidth=POINTS_A_PIXEL * float(given.get("stroke_width", 1)),
                    linestyle="-" if dashes == "none" else (0, tuple(map(float, str(dashes).split()))),
                )
        for x, y, part in self.parts:
            part._paint(canvas, left + x, top + y)


def thinned(points: Points, most: int = MOST_POINTS, *, join: Callable[[list[float]], float] = fmean) -> Points:
    """At most so many points: neighbours are joined, in their means unless said otherwise; the last point stays."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], join([value for _, value in group])) for group in groups]


def widened(low: float, high: float) -> tuple[float, float]:
    """A range a little wider than the values, and never empty."""
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def round_step(span: float, count: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that divides a span into at most about so many steps."""
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from within [low, high], about ``count`` of them: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    step = round_step(high - low, count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def powers(low: float, high: float) -> list[float]:
    """Numbers from within [low, high]: powers of ten, with 2 and 5 times them where those are few."""
    first, last = math.log10(low), math.log10(high)
    factors = (1,) if last - first > 2.5 else (1, 2, 5)
    marks = [factor * 10.0**power for power in range(math.floor(first), math.ceil(last)) for factor in factors]
    return [mark for mark in [*marks, 10.0 ** math.ceil(last)] if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]


def labelled(marks: Sequence[float]) -> list[tuple[str, float]]:
    """Marks with labels of as many digits as tell them from their neighbours; small ones as ``1.5e-4``, all alike."""
    largest = max(map(abs, marks), default=0.0)
    apart = min((abs(one - other) for one, other in pairwise(marks)), default=0.0)
    digits = max(math.floor(math.log10(largest)) - math.floor(math.log10(apart)) + 1, 1) if apart and largest else 4

    def label(mark: float) -> str:
        if abs(mark) <= 1e-9 * largest:  # 0, and what sums of steps make of it
            return "0"
        if 1e-3 <= largest < 1e6:
            return f"{mark:.{max(digits, math.floor(math.log10(largest)) + 1)}g}"
        mantissa, exponent = f"{mark:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"

    return [(label(mark), mark) for mark in marks]


def spread(marks: Marks, axis: Axis, *, levels: int, letter: int) -> list[tuple[str, float, int]]:
    """(label, pixel, level) of marks from left to right, each on the first level where its label is free.

    A mark that finds no free level is left out. ``letter`` is the width of a character in pixels.
    """
    ends = [0.0] * levels
    placed = []
    for label, value in marks:
        at, half = axis.at(value), len(label) * letter / 2
        free = next((level for level, end in enumerate(ends) if at - half >= end), None)
        if free is not None:
            ends[free] = at + half
            placed.append((label, at, free))
    return placed
