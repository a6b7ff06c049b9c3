"""Shows the progress of long work on a screen, as bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from tunesmith.cli.terminal.tables import flowed
from tunesmith.runs.progress import Advance
from tunesmith.runs.progress_lines import fact_texts

INDENT = "  "


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
            self.update(bar, completed=done, facts=fact_texts(facts))

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
