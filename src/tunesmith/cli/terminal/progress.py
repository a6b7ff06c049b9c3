"""Progress of long work: bars on a screen, and for a pipe or a log file a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from tunesmith.runs.progress import Advance

INDENT, GAP = "  ", "  "


class Bars(Progress):
    """Progress whose tasks have ``facts`` (texts that are told below the bars) and may leave out the time left.

    On a narrow screen the bar alone gives way, and facts take more lines.
    """

    def __init__(self, stream: TextIO, *, colours: bool) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeLeft(compact=True, table_column=Column(no_wrap=True)),
            console=Console(file=stream, force_terminal=True, no_color=not colours, highlight=False),
            redirect_stdout=False,  # standard output may be a pipe, and is written to as such
            redirect_stderr=False,
            speed_estimate_period=120,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the facts."""
        yield from super().get_renderables()
        yield from (Facts(task.fields["facts"]) for task in self.tasks if task.fields["facts"])


class TimeLeft(TimeRemainingColumn):
    """The time left at the pace of the last minutes, but for a task whose facts tell it."""

    def render(self, task: Task) -> Text:
        """``01:05``, or nothing."""
        return super().render(task) if task.fields["timed"] else Text()


@dataclass(frozen=True, slots=True)
class Facts:
    """Texts side by side, broken between two of them."""

    texts: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        for line in flowed(self.texts, options.max_width - len(INDENT)):
            yield Text(INDENT + line, no_wrap=True, overflow="ellipsis")


def flowed(texts: Sequence[str], width: int) -> list[str]:
    """Lines of at most so many cells, as long as no single text is wider."""
    lines: list[str] = []
    for text in texts:
        if lines and cell_len(lines[-1]) + len(GAP) + cell_len(text) <= width:
            lines[-1] += GAP + text
        else:
            lines.append(text)
    return lines


TENTH = 10  # percent between two lines
SHORTEST, LONGEST = 2.0, 30.0  # seconds between two lines


class Drawing:
    """The bars of nested tasks. The outermost stays on the screen when it is done, the others go."""

    def __init__(self, stream: TextIO, *, colours: bool) -> None:

        self._progress = Bars(stream, colours=colours)
        self._depth = 0
        self._progress.start()

    @contextmanager
    def task(self, title: str, total: int | None, *, timed: bool) -> Iterator[Advance]:
        """A bar with title, done / total and, if ``timed``, the time left; the facts below."""
        bar = self._progress.add_task(title, total=total, facts=[], timed=timed)
        self._depth += 1
        done = 0

        def advance(now: int, facts: Mapping[str, str]) -> None:
            nonlocal done
            done = now
            self._progress.update(bar, completed=done, facts=_texts(facts))

        try:
            yield advance
            if total is None:  # it is known now
                self._progress.update(bar, total=done)
        finally:
            self._depth -= 1
            if self._depth:
                self._progress.remove_task(bar)

    def print(self, text: str) -> None:
        """A line above the bars."""
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(text), soft_wrap=True)

    def stop(self) -> None:
        """Leaves the screen as it stands, the cursor below."""
        self._progress.stop()


def plain_lines(
    title: str, total: int | None, *, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Advance:
    """A line at every tenth of the way, at most one in two seconds and at least one in thirty, and one at the end."""
    if total is None:
        return _counting_lines(title, write=write, clock=clock)
    begin: tuple[float, int] | None = None  # time and amount at the first report: a resumed task begins in the middle
    last_percent, last_time = 0, clock()

    def advance(done: int, facts: Mapping[str, str]) -> None:
        nonlocal begin, last_percent, last_time
        now, percent = clock(), 100 * done // max(total, 1)
        begin = begin or (now, done)
        waited = now - last_time
        tenth = percent // TENTH > last_percent // TENTH and waited >= SHORTEST
        if tenth or waited >= LONGEST or (done >= total and last_percent < 100):
            last_percent, last_time = percent, now
            start, first = begin
            left = (now - start) * (total - done) / (done - first) if first < done < total else None
            write("  ".join(filter(None, [f"{title}  {done}/{total} ({percent}%)", _facts(facts), _left(left)])))

    return advance


def _counting_lines(title: str, *, write: Callable[[str], None], clock: Callable[[], float]) -> Advance:
    """Where the end is not known: how much is done, at least once in thirty seconds."""
    last = clock()

    def advance(done: int, facts: Mapping[str, str]) -> None:
        nonlocal last
        now = clock()
        if now - last >= LONGEST:
            last = now
            write("  ".join(filter(None, [f"{title}  {done:,}", _facts(facts)])))

    return advance


def _facts(facts: Mapping[str, str]) -> str:
    return "  ".join(_texts(facts))


def _texts(facts: Mapping[str, str]) -> list[str]:
    return [f"{name} {value}" for name, value in facts.items()]


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """``1:05`` or ``2:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
