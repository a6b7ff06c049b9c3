"""Progress as plain lines: for pipes, log files and Python programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from tunesmith.runs.plain_text import duration
from tunesmith.runs.progress import Advance
from tunesmith.safe_text import safe

GAP = "  "
TENTH = 10  # percent between two plain lines
SHORTEST, LONGEST = 2.0, 30.0  # seconds between two plain lines


class Lines:
    """A listener that writes lines to standard error, without control characters."""

    def say(self, text: str) -> None:
        """A line about what is done. If its reader has gone the line is lost, and the work continues."""
        with suppress(BrokenPipeError):
            print(safe(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A line that begins with ``warning:``."""
        self.say(f"warning: {text}")

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """A line now and then."""
        yield plain_lines(title, total, write=self.say)


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
        write(GAP.join([title, reached, *fact_texts(facts), *left]))

    return advance


def fact_texts(facts: Mapping[str, str]) -> list[str]:
    """Facts as ``loss 0.412``."""
    return [f"{name} {value}" for name, value in facts.items()]
