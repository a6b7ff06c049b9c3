"""Writes results, progress, warnings and errors. A pipe gets plain lines without control characters."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from tunesmith.cli.terminal.text import UNLIMITED, folded
from tunesmith.errors import TunesmithError
from tunesmith.runs.progress import Advance, Failure
from tunesmith.safe_text import escaped, escaped_json, safe

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.cli.terminal.progress import Bars


class ReaderGone(Exception):
    """The reader of our output has closed it, as `head` does."""


@dataclass(frozen=True, slots=True)
class Styled:
    """A part of a line in a style, where the stream has colours."""

    text: str
    colour: str | None = None
    bold: bool = False

    def on(self, stream: TextIO) -> str:
        """The text as a stream gets it."""
        return style(escaped(self.text), stream, fg=self.colour, bold=self.bold or None)


class Terminal:
    """Writes results to standard output, and progress, warnings and errors to standard error.

    It is a Listener, so library functions report to it.

    Args:
        as_json: ``result`` writes one line to standard output, and everything else goes to standard error.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout, self._err = sys.stdout, sys.stderr
        self._out = self._err if as_json else self._stdout
        self._bars: Bars | None = None
        self.failed = False  # a Failure was said

    @property
    def draws(self) -> bool:
        """Whether results and progress are on one screen, where bars can be drawn."""
        return self._out.isatty() and _can_draw(self._err)

    @property
    def colours(self) -> bool:
        """Whether results may be coloured."""
        return has_colours(self._out)

    @property
    def columns(self) -> int:
        """The width of results: that of the screen, or COLUMNS. A file or pipe has no limit."""
        return columns_of(self._out)

    def leave_standard_output(self) -> None:
        """From now on results are written to standard error, because a file takes all of standard output."""
        self._out = self._err

    def say(self, text: str) -> None:
        """A line about what is done. If the reader has gone the line is lost, and the work continues."""
        if self._bars is not None and self._out.isatty():
            self._bars.print_above(_fitted(safe(text), self._out))
        else:
            _write(self._out, _fitted(safe(text), self._out) + "\n")

    def warn(self, text: str) -> None:
        """A line that begins with ``warning:``, on standard error."""
        self.failed = self.failed or isinstance(text, Failure)
        line = _fitted(f"{style('warning:', self._err, fg='yellow', bold=True)} {safe(text)}", self._err)
        if self._bars is not None:
            self._bars.print_above(line)
        else:
            _write(self._err, line + "\n")

    def note(self, text: str) -> None:
        """A line on standard error that is not part of a result."""
        _write(self._err, _fitted(safe(text), self._err) + "\n")

    @contextmanager
    def task(self, title: str, total: int | None, *, timed: bool = True) -> Iterator[Advance]:
        """Progress on standard error: a bar on a screen, plain lines elsewhere. Tasks may be nested.

        Args:
            timed: whether a bar shows the time left, at the speed at which it advances.
        """
        from tunesmith.cli.terminal.progress import Bars
        from tunesmith.runs.progress_lines import plain_lines

        if not _can_draw(self._err):
            yield plain_lines(safe(title), total, write=self.note)
            return
        if self._bars is not None:  # a task inside another one
            with self._bars.bar(safe(title), total, timed=timed) as advance:
                yield advance
            return
        self._bars = Bars(self._err, colours=has_colours(self._err))
        try:
            with self._bars, self._bars.bar(safe(title), total, timed=timed) as advance:
                yield advance
        finally:
            self._bars = None

    def write(self, *parts: str | Styled, end: str = "\n") -> None:
        """Writes a part of the result at once: a line of parts. Raises ReaderGone if the reader has gone.

        Control characters are escaped. A style is a part of its own, so no text can bring one.
        """
        text = "".join(escaped(part) if isinstance(part, str) else part.on(self._out) for part in parts)
        self._put(_fitted(text, self._out) + end)

    def answer(self, text: str, end: str = "\n") -> None:
        """A model's own text: unchanged in a file, with control characters escaped on a screen. No line is broken."""
        self._put((escaped(text) if self._out.isatty() else text) + end)

    def result(self, value: Mapping[str, Any]) -> None:
        """The result as the last line of standard output, under ``as_json`` only."""
        if self.as_json and not self._write_json(value):
            raise ReaderGone

    def error(self, error: TunesmithError) -> None:
        """The message on standard error, and under ``as_json`` also the JSON line."""
        text = f"{style('error:', self._err, fg='red', bold=True)} {escaped(error.render())}"
        _write(self._err, _fitted(text, self._err) + "\n")
        if self.as_json:
            self._write_json(error.to_json())

    def _put(self, text: str) -> None:
        if not _write(self._out, text):
            raise ReaderGone

    def _write_json(self, value: Mapping[str, Any]) -> bool:
        utf8 = (self._stdout.encoding or "").lower().replace("-", "") == "utf8"
        return _write(self._stdout, escaped_json(to_json(value, ascii_only=not utf8)) + "\n")

    def rich_console(self) -> Console:
        """A rich console that writes where results go."""
        from rich.console import Console

        screen = self._out.isatty()
        return Console(
            file=self._out,
            force_terminal=screen,
            color_system="auto" if self.colours else None,
            no_color=not self.colours,
            highlight=False,
            width=self.columns,
        )

    def flush(self) -> None:
        """Raises ReaderGone if the reader has gone."""
        if not _write(self._out, ""):
            raise ReaderGone


def columns_of(stream: TextIO) -> int:
    """The columns of a stream: COLUMNS if it is set, else those of the screen; UNLIMITED for a file or pipe."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    if stream.isatty():
        with suppress(OSError, ValueError):
            return os.get_terminal_size(stream.fileno()).columns or UNLIMITED
    return UNLIMITED


def _fitted(text: str, stream: TextIO) -> str:
    """The text with lines that fit the stream. They are broken between words only."""
    return "\n".join(folded(text, columns_of(stream)))


def has_colours(stream: TextIO) -> bool:
    """Whether the stream is a screen with colours and NO_COLOR is not set (https://no-color.org)."""
    return _can_draw(stream) and not os.environ.get("NO_COLOR")


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def style(text: str, stream: TextIO, **how: Any) -> str:
    """The text in a style if the stream has colours."""
    return typer.style(text, **how) if has_colours(stream) else text


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """One line of JSON. A number that is not finite becomes null, because JSON has no word for it."""
    return json.dumps(_json_value(value), ensure_ascii=ascii_only, allow_nan=False)


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _write(stream: TextIO, text: str) -> bool:
    """Writes and flushes. False if the reader has gone; whatever is written afterwards is lost without an error."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # a pipe that was closed, a terminal that was closed
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return False
    return True
