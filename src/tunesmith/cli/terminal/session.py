"""The session that every command runs in: it directs output, handles signals, and turns errors into exit codes."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import typer

from tunesmith.cli.terminal.console import ReaderGone, Terminal
from tunesmith.errors import TunesmithError
from tunesmith.runs.stopping import Terminated, terminate

INTERRUPTED, TERMINATED, READER_GONE = (128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE))
LIBRARIES = r"(accelerate|bitsandbytes|datasets|huggingface_hub|peft|tensorboard|torch|transformers)(\.|$)"


@contextmanager
def session(as_json: bool = False) -> Iterator[Terminal]:
    """Runs a command's work. A TunesmithError becomes a message and an exit code; a bug keeps its traceback.

    Under ``as_json`` everything that is printed goes to standard error, except the line of the result.
    """
    terminal = Terminal(as_json=as_json)
    code = 0
    with _sigterm_unwinds(), _quiet_libraries(), redirect_stdout(sys.stderr if as_json else sys.stdout):
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
def _quiet_libraries() -> Iterator[None]:
    """Hides what libraries warn of, about which a user can do nothing. `python -W` and PYTHONWARNINGS show it again.

    Warnings of a user's own metric function stay. bitsandbytes logs, when PEFT imports it, that an optional package is
    missing on some CPUs.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", module=LIBRARIES)
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Makes SIGTERM raise Terminated. A handler that was set before stays."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
