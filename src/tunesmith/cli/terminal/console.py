"""The terminal: what is said, warned of and drawn. On a pipe only plain lines, never a control character."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from tunesmith.cli.terminal.progress import Drawing, plain_lines
from tunesmith.errors import TunesmithError
from tunesmith.runs.progress import Advance

if TYPE_CHECKING:
    from rich.console import Console


UNLIMITED = 1 << 16  # columns of a file


class ReaderGone(Exception):
    """Whoever read our output has closed it, as `head` does."""


class Terminal:
    """Standard output for results, standard error for progress, warnings and errors; it is the library's Listener.

    Args:
        as_json: what is said goes to standard error too, and ``result`` writes one line to standard output.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout, self._err = sys.stdout, sys.stderr
        self._out = self._err if as_json else self._stdout
        self._drawing: Drawing | None = None

    @property
    def is_interactive(self) -> bool:
        """Whether results are read from a screen."""
        return self._out.isatty()

    @property
    def draws(self) -> bool:
        """Whether what is said and progress stand on one screen, where bars can be drawn."""
        return self._out.isatty() and _can_draw(self._err)

    @property
    def colours(self) -> bool:
        """Whether results may be coloured."""
        return has_colours(self._out)

    def say(self, text: str) -> None:
        """A line of the story. Lost where nobody reads any more, for the work is worth more than its story."""
        if self._drawing is not None and self._out.isatty():
            self._drawing.print(printable(text))
        else:
            _write(self._out, printable(text) + "\n")

    def warn(self, text: str) -> None:
        """A line that begins with ``warning:``, on standard error."""
        line = f"{style('warning:', self._err, fg='yellow', bold=True)} {printable(text)}"
        if self._drawing is not None:
            self._drawing.print(line)
        else:
            _write(self._err, line + "\n")

    def note(self, text: str) -> None:
        """A line on standard error that is no part of a result."""
        _write(self._err, printable(text) + "\n")

    @contextmanager
    def task(self, title: str, total: int | None, *, timed: bool = True) -> Iterator[Advance]:
        """Progress on standard error: a bar on a screen, a line now and then elsewhere. Tasks may be nested.

        Args:
            timed: whether a bar shows the time left at the pace at which it is advanced.
        """
        if not _can_draw(self._err):
            yield plain_lines(title, total, write=self.note)
            return
        outermost = self._drawing is None
        self._drawing = self._drawing or Drawing(self._err, colours=has_colours(self._err))
        try:
            with self._drawing.task(title, total, timed=timed) as advance:
                yield advance
        finally:
            if outermost:
                self._drawing.stop()
                self._drawing = None

    def write(self, text: str, end: str = "\n") -> None:
        """A part of the result, at once. Raises ReaderGone where nobody reads any more."""
        if not _write(self._out, text + end):
            raise ReaderGone

    def answer(self, text: str, end: str = "\n") -> None:
        """A model's own text: a file gets it as it is, a screen sees control characters written out."""
        self.write(printable(text) if self.is_interactive else text, end)

    def result(self, value: Mapping[str, Any]) -> None:
        """Under ``as_json``: the last line of standard output. Otherwise nothing."""
        if self.as_json and not self._write_json(value):
            raise ReaderGone

    def error(self, error: TunesmithError) -> None:
        """The message in red on standard error, and as JSON where that was asked for."""
        _write(self._err, f"{style('error:', self._err, fg='red', bold=True)} {printable(error.render())}\n")
        if self.as_json:
            self._write_json(error.to_json())

    def _write_json(self, value: Mapping[str, Any]) -> bool:
        utf8 = (self._stdout.encoding or "").lower().replace("-", "") == "utf8"
        return _write(self._stdout, to_json(value, ascii_only=not utf8) + "\n")

    def styled(self, text: str, **how: Any) -> str:
        """The text in a style (``bold=True``, ``fg="red"``) where results may have one."""
        return style(text, self._out, **how)

    def rich_console(self) -> Console:
        """For what draws itself: it writes where results go."""
        from rich.console import Console

        screen = self._out.isatty()
        return Console(
            file=self._out,
            force_terminal=screen,
            color_system="auto" if self.colours else None,
            no_color=not self.colours,
            highlight=False,
            width=None if screen else UNLIMITED,
        )

    def flush(self) -> None:
        """Raises ReaderGone where what was written cannot arrive."""
        if not _write(self._out, ""):
            raise ReaderGone


def has_colours(stream: TextIO) -> bool:
    """A screen that knows colours, unless NO_COLOR is set (https://no-color.org)."""
    return _can_draw(stream) and not os.environ.get("NO_COLOR")


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def style(text: str, stream: TextIO, **how: Any) -> str:
    """The text in a style where the stream has colours."""
    return typer.style(text, **how) if has_colours(stream) else text


def printable(text: str) -> str:
    """Control characters other than newline and tab as ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if (c >= " " and not "\x7f" <= c <= "\x9f") or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """One line of JSON. A number that is not finite becomes null, as JSON has none."""
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
    """False where the reader has gone; whatever is written afterwards is lost without a complaint."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return False
    return True
