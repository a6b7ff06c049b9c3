"""Progress in a notebook: bars that are updated in place, and what is said as lines between them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tunesmith.runs.plain_text import duration
from tunesmith.runs.progress import Advance
from tunesmith.runs.progress_lines import GAP, fact_texts
from tunesmith.safe_text import html_text, safe

BETWEEN = 0.25  # seconds between two updates of a bar


def in_notebook() -> bool:
    """Whether this program runs in Jupyter or its kin, where HTML can be shown."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


@dataclass(slots=True)
class _Bar:
    """A task and how far it is. Seconds count from the first report, because a resumed task begins in the middle."""

    title: str
    total: int | None
    done: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    first: tuple[float, int] | None = None
    ended: bool = False

    def html(self, now: float) -> str:
        size = "" if self.total is None else f' value="{self.done}" max="{max(self.total, 1)}"'
        bar = f'<progress{size} style="width: 15em; vertical-align: middle"></progress> '
        facts = "".join(f"<br>{html_text(GAP.join(fact_texts(self.facts)))}" if self.facts else "")
        return f"<div>{'' if self.ended and self.total is None else bar}{html_text(self._head(now))}{facts}</div>"

    def text(self, now: float) -> str:
        return GAP.join([self._head(now), *fact_texts(self.facts)])

    def _head(self, now: float) -> str:
        parts = [self.title, f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"]
        start, first = self.first or (now, self.done)
        if self.ended:
            parts.append(f"took {duration(now - start)}")
        elif self.total is not None and first < self.done < self.total:
            parts.append(f"{duration((now - start) * (self.total - self.done) / (self.done - first))} left")
        return GAP.join(parts)


@dataclass(slots=True)
class _Place:
    """One output of a cell, which is shown once and then changed. ``show`` is IPython's ``display``."""

    show: Callable[..., Any]
    handle: Any = None

    def put(self, html: str, text: str) -> None:
        data = {"text/html": html, "text/plain": text}
        if self.handle is None:
            self.handle = self.show(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)


class InNotebook:
    """A listener that shows lines and bars in the cell that called.

    The bar of an outermost task stays when it is done, and tasks within it are below it while they run. Only a bar is
    sent anew as it advances, so long runs do not make a notebook grow.
    """

    def __init__(self, show: Callable[..., Any] | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._show = show or import_module("IPython.display").display
        self._clock = clock
        self._lines: list[tuple[str, str]] = []  # HTML and text, of the place of lines
        self._place_of_lines = _Place(self._show)
        self._bars: list[_Bar] = []
        self._place_of_bars = _Place(self._show)
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """A line about what is done."""
        text = safe(text)
        self._add(html_text(text), text)

    def warn(self, text: str) -> None:
        """A line that begins with ``warning:``."""
        text = safe(text)
        self._add(f"<b>warning:</b> {html_text(text)}", f"warning: {text}")

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """A bar."""
        if not self._bars:  # what is said from now on is below the bar
            self._place_of_bars, self._place_of_lines, self._lines = _Place(self._show), _Place(self._show), []
        bar = _Bar(title, total)
        self._bars.append(bar)
        self._draw()

        def advance(done: int, facts: Mapping[str, str]) -> None:
            now = self._clock()
            bar.done, bar.facts, bar.first = done, facts, bar.first or (now, done)
            if now - self._drawn >= BETWEEN:
                self._draw()

        try:
            yield advance
            bar.ended = True
        finally:
            if len(self._bars) > 1:
                self._bars.remove(bar)
                self._draw()
            else:
                self._draw()
                self._bars.clear()

    def _add(self, html: str, text: str) -> None:
        self._lines.append((f'<div style="white-space: pre-wrap">{html}</div>', text))
        self._place_of_lines.put("".join(html for html, _ in self._lines), "\n".join(text for _, text in self._lines))

    def _draw(self) -> None:
        self._drawn = now = self._clock()
        self._place_of_bars.put(
            "".join(bar.html(now) for bar in self._bars), "\n".join(bar.text(now) for bar in self._bars)
        )
