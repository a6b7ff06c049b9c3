"""Shows the progress of long work: bars on a screen, and plain lines now and then in a pipe or a log file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from tunesmith.cli.terminal.tables import flowed
from tunesmith.cli.terminal.text import duration
from tunesmith.runs.progress import Advance

INDENT, GAP = "  ", "  "
TENTH = 10  # percent between two plain lines
SHORTEST, LONGEST = 2.0, 30.0  # seconds between two plain lines


class Bars(Progress):
    """Bars of nested tasks, each with its facts (such as the loss) in lines below.

    The outermost bar stays on the screen when its task is done; the others are removed. On a narrow screen the bar
    becomes shorter and the facts take more lines, so nothing is cut off.
    """

    def __init__(self, stream: TextIO, *, colours: bool) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _TimeLeft(compact=True, table_column=Column(no_wrap=True)),
            console=Console(file=stream, force_terminal=True, no_color=not colours, highlight=False),
            redirect_stdout=False,  # standard output may be a pipe, and is written to as such
            redirect_stderr=False,
            speed_estimate_period=120,
        )
        self._depth = 0

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the facts."""
        yield from super().get_renderables()
        yield from (_FactLines(task.fields["facts"]) for task in self.tasks if task.fields["facts"])

    @contextmanager
    def bar(self, title: str, total: int | None, *, timed: bool) -> Iterator[Advance]:
        """A bar with title, done / total and, if ``timed``, the time left. An unknown total is what was done."""
        bar = self.add_task(title, total=total, facts=[], timed=timed)
        self._depth += 1
        done = 0

        def advance(now: int, facts: Mapping[str, str]) -> None:
            nonlocal done
            done = now
            self.update(bar, completed=done, facts=_texts(facts))

        try:
            yield advance
            if total is None:
                self.update(bar, total=done)
        finally:
            self._depth -= 1
            if self._depth:
                self.remove_task(bar)

    def print_above(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(Text.from_ansi(text), soft_wrap=True)


class _TimeLeft(TimeRemainingColumn):
    """The time left at the speed of the last two minutes, such as ``01:05``; empty for a task that is not timed."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["timed"] else Text()


@dataclass(frozen=True, slots=True)
class _FactLines:
    """Facts side by side, in as many lines as the width of the screen needs."""

    facts: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        for line in flowed(self.facts, options.max_width - len(INDENT)):
            yield Text(INDENT + line, no_wrap=True, overflow="ellipsis")


def plain_lines(
    title: str, total: int | None, *, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Advance:
    """Progress as lines: one at every tenth of the way and one at the end.

    Two lines are at least two seconds apart, and at most thirty while the task advances. Without a total there is only
    a line every thirty seconds.
    """
    begin: tuple[float, int] | None = None  # time and amount at the first report: a resumed task begins in the middle
    last_percent, last_time = 0, clock()

    def advance(done: int, facts: Mapping[str, str]) -> None:
        nonlocal begin, last_percent, last_time
        now, percent = clock(), 0 if total is None else 100 * done // max(total, 1)
        begin = begin or (now, done)
        waited = now - last_time
        tenth = percent // TENTH > last_percent // TENTH and waited >= SHORTEST
        ended = total is not None and done >= total and last_percent < 100
        if not (tenth or ended or waited >= LONGEST):
            return
        last_percent, last_time = percent, now
        reached = f"{done:,}" if total is None else f"{done}/{total} ({percent}%)"
        start, first = begin
        left = []
        if total is not None and first < done < total:
            left = [f"{duration((now - start) * (total - done) / (done - first))} left"]
        write(GAP.join([title, reached, *_texts(facts), *left]))

    return advance


def _texts(facts: Mapping[str, str]) -> list[str]:
    return [f"{name} {value}" for name, value in facts.items()]
