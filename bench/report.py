"""What came of the runs: lines that count or are void, their figures, the table, the JSON report and its plot."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

OURS, TUNED = "tunesmith", "trl tuned"
COLOURS = ("#1f6feb", "#d1495b", "#edae49", "#66a182", "#8d6a9f")


@dataclass
class Line:
    """One trainer on one workload: what its runs measured, and why they do not count if they do not."""

    trainer: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    void: str | None = None

    @property
    def seconds(self) -> float:
        """Of all timed steps of all runs."""
        return sum(sum(run["seconds"]) for run in self.runs)

    def rate(self, name: str) -> float:
        """Tokens of a kind, in all timed steps, a second."""
        return sum(sum(run[name]) for run in self.runs) / self.seconds

    @property
    def peak(self) -> int:
        return max(run["peak_bytes"] for run in self.runs)


@dataclass
class Comparison:
    """Several trainers on the same rows.

    ``epoch_rows``, ``epoch_tokens``: of the whole data, the tokens estimated from the rows that were used.
    ``floor``: FLOPs of matrix products a real token at the least (roofline.py). ``sgemm``: FLOP/s, between the runs.
    """

    workload: str
    method: str
    source: str
    epoch_rows: int
    epoch_tokens: float
    floor: float
    lines: dict[str, Line]
    sgemm: list[float] = field(default_factory=list)

    def line(self, trainer: str) -> Line | None:
        """That of a trainer, if it counts."""
        found = self.lines.get(trainer)
        return found if found and found.void is None else None

    def figures(self, line: Line) -> dict[str, float]:
        """Of a line that counts: tokens of rows and labels a second, seconds an epoch, bytes, share of sgemm."""
        rate = line.rate("tokens")
        return {
            "tokens_per_second": rate,
            "supervised_per_second": line.rate("supervised_tokens"),
            "epoch_seconds": self.epoch_tokens / rate,
            "peak_bytes": line.peak,
            "sgemm_share": self.floor * rate / statistics.mean(self.sgemm),
        }


def gate(line: Line, reference: Line, *, tolerance: float) -> str | None:
    """Why a line's runs do not count: another loss before the first step (relative), or another number of labels.

    A peer's logits may be normalised as it does that or in fp64: torch's own rounding is larger than the tolerance.
    """
    if not line.runs or not reference.runs:
        return "no run"
    expected = reference.runs[0]
    for run in line.runs:
        losses = [run[name] for name in ("step_zero_loss", "step_zero_loss_fp64") if name in run]
        if not any(abs(loss / expected["step_zero_loss"] - 1) <= tolerance for loss in losses):  # NaN does not pass
            return f"loss before the first step {losses[0]:.7f}, expected {expected['step_zero_loss']:.7f}"
        if run["supervised"] != expected["supervised"]:
            return f"{run['supervised']} supervised tokens, expected {expected['supervised']}"
    return None


def table(comparison: Comparison) -> str:
    """One line for each trainer, with all its figures."""
    epoch = f"s/epoch of {comparison.epoch_rows}"
    said = [f"  {'':<22} {'tokens/s':>9} {'supervised/s':>12} {epoch:>18} {'peak GB':>8} {'of sgemm':>8}  ours is"]
    ours = comparison.line(OURS)
    for line in comparison.lines.values():
        if line.void:
            said.append(f"  {line.trainer:<22} void: {line.void}")
            continue
        of = comparison.figures(line)
        ratio = f"{ours.rate('tokens') / of['tokens_per_second']:.1f}x" if ours and line is not ours else ""
        said.append(
            f"  {line.trainer:<22} {of['tokens_per_second']:9.0f} {of['supervised_per_second']:12.0f} "
            f"{of['epoch_seconds']:18.0f} {of['peak_bytes'] / 1e9:8.2f} {of['sgemm_share']:8.2f}  {ratio}".rstrip()
        )
    said += [f"  {line.trainer}: {text}" for line in comparison.lines.values() if (text := _overhead(line))]
    return "\n".join(said)


def _overhead(line: Line) -> str:
    """Of our own lines alone: what of a step is not operators of torch."""
    if line.void or "layout_share" not in line.runs[0]:
        return ""
    means = {name: statistics.mean(run[name] for run in line.runs) for name in ("layout_share", "order_share")}
    said = f"layout {means['layout_share']:.2%}, order {means['order_share']:.2%} of a step"
    outside = [run["outside_share"] for run in line.runs if run["outside_share"] is not None]
    return said + (f", outside torch's operators at most {statistics.mean(outside):.2%}" if outside else "")


def qlora_ratio(comparison: Comparison) -> str | None:
    """Our own qlora by our own lora, both at small micro-batches."""
    lora, qlora = (comparison.line(f"{OURS} {method}") for method in ("lora", "qlora"))
    return f"qlora_to_lora={qlora.rate('tokens') / lora.rate('tokens'):.2f}" if lora and qlora else None


def summary(comparisons: list[Comparison]) -> str | None:
    """The one line that a script reads, or None where lora on a or on d has no line that counts."""
    ratios, peaks, shares = [], [], []
    for workload in "ad":
        found = next((some for some in comparisons if (some.workload, some.method) == (workload, "lora")), None)
        ours, peer = (found.line(OURS), found.line(TUNED)) if found else (None, None)
        if found is None or ours is None or peer is None:
            return None
        ratios.append(ours.rate("tokens") / peer.rate("tokens"))
        peaks.append(ours.peak / peer.peak)
        shares.append(found.figures(ours)["sgemm_share"])
    return (
        f"speedup_shared={ratios[0]:.1f} speedup_plain={ratios[1]:.1f} "
        f"sgemm_share={min(shares):.2f} peak_memory_ratio={max(peaks):.2f}"
    )


def save(path: Path, comparisons: list[Comparison], about: dict[str, Any]) -> None:
    """The report as JSON, and its plot beside it as SVG. ``about``: machine, settings and versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "workload": some.workload, "method": some.method, "source": some.source, "epoch_rows": some.epoch_rows,
            "epoch_tokens": some.epoch_tokens, "floor_flops_per_token": some.floor, "sgemm": some.sgemm,
            "lines": [
                {"trainer": name, "void": line.void, "runs": line.runs, **({} if line.void else some.figures(line))}
                for name, line in some.lines.items()
            ],
        }
        for some in comparisons
    ]  # fmt: skip
    text = json.dumps({**about, "summary": summary(comparisons), "comparisons": listed}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(plot(comparisons), encoding="utf-8")


def plot(comparisons: list[Comparison]) -> str:
    """Real tokens a second as bars, a group for each workload and method; SVG."""
    trainers = list(dict.fromkeys(name for some in comparisons for name in some.lines))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(trainers)}
    bars = [
        (f"{some.workload} {some.method}", name, line.rate("tokens"))
        for some in comparisons
        for name in some.lines
        if (line := some.line(name))
    ]
    widest = max((rate for _, _, rate in bars), default=1.0)
    drawn, y, before = [], 40, ""
    for group, name, rate in bars:
        if group != before:
            drawn.append(f'<text x="10" y="{y + 22}" font-weight="bold">{escape(group)}</text>')
            y, before = y + 28, group
        width = 460 * rate / widest
        drawn.append(f'<text x="150" y="{y + 11}" text-anchor="end">{escape(name)}</text>')
        drawn.append(f'<rect x="156" y="{y + 1}" width="{width:.1f}" height="12" fill="{colours[name]}"/>')
        drawn.append(f'<text x="{160 + width:.1f}" y="{y + 11}">{rate:.0f}</text>')
        y += 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y + 16}" '
        f'font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="10" y="22" font-size="14">Real tokens a second, by workload and method</text>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )
