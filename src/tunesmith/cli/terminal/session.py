"""The session that every command runs in: it directs output, handles signals, and turns errors into exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import typer

from tunesmith.cli.terminal.console import ReaderGone, Terminal
from tunesmith.errors import TunesmithError, ran_out
from tunesmith.planning import memory
from tunesmith.runs.disk import disk_errors
from tunesmith.runs.from_python import quiet_libraries
from tunesmith.runs.stopping import (
    ENDING,
    Terminated,
    heard,
    interrupt,
    just_interrupted,
    raised_where_it_can_be,
    terminate,
)
from tunesmith.runs.surroundings import refuse_lost_folder

READER_GONE = 128 + signal.SIGPIPE


@contextmanager
def session(as_json: bool = False) -> Iterator[Terminal]:
    """Runs a command's work. A TunesmithError becomes a message and an exit code; a bug keeps its traceback.

    Under ``as_json`` everything that is printed goes to standard error, except the line of the result.
    """
    terminal = Terminal(as_json=as_json)
    code = 0
    with _signals_unwind(), quiet_libraries(), redirect_stdout(sys.stderr if as_json else sys.stdout):
        try:
            with disk_errors():
                refuse_lost_folder()
                yield terminal
            terminal.flush()
            code = TunesmithError.exit_code if terminal.failed else 0
        except ReaderGone:
            code = READER_GONE
        except Exception as error:
            if (number := just_interrupted()) is not None:
                code = _stopped(terminal, number)
            elif isinstance(error, TunesmithError):
                terminal.error(error)
                code = error.exit_code
            elif ran_out(error):
                terminal.error(_no_memory(error))
                code = TunesmithError.exit_code
            else:
                raise
        except KeyboardInterrupt as stopped:
            code = _stopped(terminal, stopped.number if isinstance(stopped, Terminated) else signal.SIGINT)
    if code:
        raise typer.Exit(code)


def _stopped(terminal: Terminal, number: int) -> int:
    terminal.note("Stopped." if number == signal.SIGINT else "Stopped by a termination signal.")
    return 128 + number


def _no_memory(error: BaseException) -> TunesmithError:
    return TunesmithError(
        "Memory ran out",
        why="\n".join([*str(error).splitlines()[:1], f"The limit is {memory.limits('cpu')}."]),
        remedy="Use fewer or shorter rows or a smaller model, or end other programs.",
    )


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise Terminated. A handler that was set before stays, such as that of `nohup`."""
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]
    before = signal.getsignal(signal.SIGINT)
    heard()  # whatever an earlier session in this process was stopped by
    for number in ours:
        signal.signal(number, terminate)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        with raised_where_it_can_be():
            yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if before is not None:
            signal.signal(signal.SIGINT, before)
