"""Bars of progress as rich draws them, and what there is to tell below: as wide as the screen, never cut off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

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
