"""One command from its first line to its exit code: where its output goes, what a signal does, how an error reads."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType

import typer

from tunesmith.cli.terminal.console import ReaderGone, Terminal
from tunesmith.errors import TunesmithError

INTERRUPTED, TERMINATED, READER_GONE = (128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE))


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It unwinds as Ctrl-C does, so a run in work records that it was stopped."""


@contextmanager
def session(as_json: bool = False) -> Iterator[Terminal]:
    """What a command runs in. A TunesmithError becomes its message and exit code; a bug keeps its traceback.

    Under ``as_json`` everything that anybody prints goes to standard error, apart from the one line of the result.
    """
    terminal = Terminal(as_json=as_json)
    code = 0
    with _sigterm_unwinds(), _no_news_for_developers(), redirect_stdout(sys.stderr if as_json else sys.stdout):
        try:
            yield terminal
            terminal.flush()
        except TunesmithError as error:
            terminal.error(error)
            code = error.exit_code
        except Terminated:
            terminal.note("Stopped by a termination signal.")
            code = TERMINATED
        except KeyboardInterrupt:
            terminal.note("Stopped.")
            code = INTERRUPTED
        except ReaderGone:
            code = READER_GONE
    if code:
        raise typer.Exit(code)


@contextmanager
def _no_news_for_developers() -> Iterator[None]:
    """Libraries announce what their next version will change; here it stands in nobody's power to follow them."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises Terminated, once: `timeout` and some supervisors send it twice, and the second must not break in

    upon what the first set going. A handler that somebody else has set stays.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
