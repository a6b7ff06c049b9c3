"""What `check --json` found as one HTML page that stands alone: no script, no network, and no data read as markup.

The page is a template with automatic escaping; this module works out what the template shows: counts that add up,
lists cut to a length, and the geometry of the histogram.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import ceil, log1p
from typing import Any

from markupsafe import Markup

from tunesmith.data.report.ledger import OUTCOMES, accounts_of, measures_of, share
from tunesmith.runs.drawing import Axis, Picture, powers, round_step, spread, ticks
from tunesmith.runs.pages.rendering import TEXT_LIMIT, head, page_template
from tunesmith.safe_text import visible

ROWS_NAMED = 200
SOURCES_SHOWN = 200
SAMPLES_SHOWN = 20
SHOWN_ROWS = 50
SHOWN_PIECES = 40
_BARS = 40

_QUANTILES = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max")
_SEVERITIES = ("error", "warning", "info")


def data_report(found: Mapping[str, Any], *, title: str) -> str:
    """The page as HTML text that can be encoded as UTF-8.

    Args:
        found: the object that `check --json` prints (schema 1).
        title: the page's title, such as the name of the recipe.
    """
    measures = measures_of(found["ledger"])
    findings = sorted(found["findings"], key=lambda finding: _SEVERITIES.index(finding["severity"]))
    sections = {
        "ledger": ("Where every row went", measures),
        "sources": ("Sources", head(found["sources"], SOURCES_SHOWN)),
        "findings": ("Findings", [_finding(finding) for finding in findings]),
        "lengths": ("Lengths", _lengths(found.get("lengths"))),
        "labels": ("Labels", _labels(found.get("labels"))),
        "scripts": ("Scripts and languages", _scripts(found)),
        "diversity": ("Diversity", _diversity(found.get("diversity"))),
        "bad": ("Bad rows", head(found["bad"], ROWS_NAMED)),
        "shown": ("Rows as the model sees them", head([_pieces(row) for row in found["shown"]], SHOWN_ROWS)),
    }
    page = page_template("page.html.j2", "tunesmith.data.report").render(
        title=title,
        found=found,
        glance=_glance(found),
        outcomes=OUTCOMES,
        by_source=head(accounts_of(found["ledger"]), SOURCES_SHOWN),
        sections={key: {"title": name, "content": content} for key, (name, content) in sections.items() if content},
    )
    return visible(page)


@dataclass(frozen=True, slots=True)
class Bar:
    """A count with a name. `width` is in percent of the longest bar."""

    name: str
    rows: int
    width: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a row's text; `omitted` characters are left out before the text of the piece."""

    text: str
    supervised: bool
    omitted: int = 0


def _histogram(buckets: Sequence[Mapping[str, int]], quantiles: Mapping[str, float], unit: str) -> Markup:
    """The lengths as bars, with marks at the quantiles; logarithmic where the buckets grow."""
    left, right, top, bottom = 52, 848, 58, 228
    picture = Picture(860, 270, "Histogram of row lengths; the figures stand in the tables below")
    edges = _edges(buckets)
    widths = [end - start for start, end in edges[:-1] or edges]
    logarithmic = max(widths) > 3 * min(widths)
    x = Axis(edges[0][0], edges[-1][1], left, right, log1p if logarithmic else float)
    most = max(bucket["rows"] for bucket in buckets)
    step = max(1, round(round_step(max(most, 1), 4)))
    y = Axis(0, step * max(ceil(most / step), 1), bottom, top)
    lengths = powers(max(x.low, 1), x.high) if logarithmic else ticks(x.low, x.high, 8)
    columns = [(f"{length:,.0f}", length) for length in lengths if length == int(length)]
    rows = [(f"{number:,}", number) for number in range(0, round(y.high) + 1, step)]
    picture.axes(x, y, columns=columns, rows=rows, name=f"{unit}, logarithmic" if logarithmic else unit)
    for bucket, (start, end) in zip(buckets, edges, strict=True):
        if count := bucket["rows"]:
            height = max(bottom - y.at(count), 1.0)
            width = max(x.at(end) - x.at(start) - 1, 1.0)
            title = f"{bucket['from']:,} to {bucket['to']:,} {unit}: {count:,} rows"
            picture.add("rect", class_="bar", x=x.at(start), y=bottom - height, width=width, height=height, title=title)
    picture.add("line", class_="axis", x1=left, x2=right, y1=bottom, y2=bottom)
    picture.add("text", "rows", x=0, y=12)
    marks = [(f"{name} {quantiles[name]:,.0f}", quantiles[name]) for name in _QUANTILES[1:-1]]
    for label, at, level in spread(marks, x, levels=4, letter=7):
        picture.add("line", class_="mark", x1=at, x2=at, y1=15 + 13 * level, y2=bottom)
        picture.add("text", label, class_="mark-name", x=at, y=12 + 13 * level, text_anchor="middle")
    return Markup(picture.inline_svg())


def _bars(counts: Iterable[tuple[str, int]]) -> list[Bar]:
    counts = list(counts)
    most = max((rows for _, rows in counts), default=0) or 1
    return [Bar(name, rows, f"{100 * rows / most:.2f}") for name, rows in counts]


def _glance(found: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """(name, figure, remark) of what is told first."""
    ledger = found["ledger"]
    rows, supervised, tokens = ledger["rows"], ledger.get("supervised"), ledger.get("tokens")
    figures: list[tuple[str, Any, str]] = [
        ("rows read", rows["read"], f"{len(found['sources']):,} {_plural(len(found['sources']), 'source')}"),
        ("rows to train on", rows["trained"], f"{share(rows['trained'], rows['read'])} of those read"),
        ("rows to judge by", rows["held_out"] + rows["test"], f"{rows['held_out']:,} held out, {rows['test']:,} test"),
    ]
    if supervised and tokens:
        remark = f"{share(supervised['trained'], tokens['trained'])} of {tokens['trained']:,} tokens to train on"
        figures.append(("tokens learned", supervised["trained"], remark))
    if lengths := found.get("lengths"):
        quantiles = lengths["quantiles"]
        remark = f"{lengths['unit']}; 95% have at most {quantiles['p95']:,.0f}, the longest {quantiles['max']:,.0f}"
        figures.append(("median length", f"{quantiles['p50']:,.0f}", remark))
    if labels := found.get("labels"):
        counts = labels["counts"]
        remark = f"{counts[-1]['rows']:,} to {counts[0]['rows']:,} rows each" if counts else ""
        figures.append(("labels", labels["distinct"], remark))
    by_severity = {name: sum(finding["severity"] == name for finding in found["findings"]) for name in _SEVERITIES}
    remark = ", ".join(f"{count} {_plural(count, name)}" for name, count in by_severity.items() if count)
    figures.append(("findings", len(found["findings"]), remark.replace("infos", "info")))
    return figures


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    rows: Sequence[str] = finding["rows"]
    return {
        **finding,
        "rows": _by_file(rows[:ROWS_NAMED]),
        "samples": head(finding["samples"], SAMPLES_SHOWN),
        "more": max(len(rows) - ROWS_NAMED, 0),
    }


def _by_file(rows: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbouring rows of one file together: [("train.csv", "3, 17"), ...]."""
    places = (row.rpartition(":") for row in rows)
    return [(file, ", ".join(line for _, _, line in group)) for file, group in groupby(places, key=lambda row: row[0])]


def _lengths(lengths: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not lengths:
        return None
    chart = _histogram(lengths["histogram"], lengths["quantiles"], lengths["unit"]) if lengths["histogram"] else None
    return {**lengths, "names": _QUANTILES, "chart": chart}


def _labels(labels: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not labels or not labels["counts"]:
        return None
    counts = [(entry["label"], entry["rows"]) for entry in labels["counts"]]
    bars = _bars(counts)
    largest, between, smallest = bars, [], []
    if len(bars) > _BARS:
        largest, between, smallest = (
            bars[: _BARS // 2],
            bars[_BARS // 2 : -_BARS // 2],
            bars[-_BARS // 2 :],
        )
    return {
        "distinct": labels["distinct"],
        "largest": largest,
        "between": between,
        "smallest": smallest,
        "fewest": list(reversed(bars[-5:])) if len(bars) > 5 else [],
        "ratio": f"{bars[0].rows / bars[-1].rows:,.1f}" if bars[-1].rows else None,
        "few": {bar.name for bar in bars if 2 * bar.rows < bars[len(bars) // 2].rows},
    }


def _scripts(found: Mapping[str, Any]) -> dict[str, Any] | None:
    languages = found.get("languages") or {"sampled": 0, "counts": []}
    groups = {
        "scripts": _bars((entry["name"], entry["rows"]) for entry in found["scripts"][:_BARS]),
        "languages": _bars((entry["name"], entry["rows"]) for entry in languages["counts"][:_BARS]),
    }
    return {**groups, "sampled": languages["sampled"]} if any(groups.values()) else None


def _diversity(diversity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not diversity:
        return None
    frequent = [(entry["text"], entry["rows"]) for entry in diversity["most_frequent"][: _BARS // 2]]
    return {
        "first_words": diversity["first_words"],
        "frequent": _bars(frequent),
        "clusters": head(diversity["clusters"], _BARS // 2),
    }


def _pieces(row: Mapping[str, Any]) -> dict[str, Any]:
    """A shown row with runs of one kind joined and long ones without their middle, so that every turn is seen."""
    kinds = groupby(row["pieces"], key=lambda piece: piece[1])
    runs = [(learned, "".join(text for text, _ in run)) for learned, run in kinds]
    pieces = []
    half, dropped = TEXT_LIMIT // 2, max(len(runs) - SHOWN_PIECES, 0)
    skipped = range(SHOWN_PIECES // 2, SHOWN_PIECES // 2 + dropped)
    omitted = 0
    for number, (learned, text) in enumerate(runs):
        if number in skipped:
            omitted += len(text)
            continue
        long = len(text) > TEXT_LIMIT
        pieces.append(Piece(text[:half] if long else text, learned, omitted))
        omitted = 0
        if long:
            pieces.append(Piece(text[-half:], learned, len(text) - TEXT_LIMIT))
    return {**row, "pieces": pieces}


def _edges(buckets: Sequence[Mapping[str, int]]) -> list[tuple[float, float]]:
    """Where each bar begins and ends, whether `to` is the last length of a bucket or the first of the next."""
    edges: list[tuple[float, float]] = []
    for bucket, after in pairwise([*buckets, None]):
        assert bucket is not None
        end = after["from"] if after and after["from"] in (bucket["to"], bucket["to"] + 1) else bucket["to"]
        edges.append((bucket["from"], max(end, bucket["from"] + 1)))
    return edges
