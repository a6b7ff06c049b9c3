"""The command line: every command with its name, and the entry point."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, NoReturn

import typer

import tunesmith
from tunesmith.cli import answers, chat, compare, data, demo, merge, plan, runs, train
from tunesmith.cli.options import KeyCommand, ProbeCommand
from tunesmith.runs.child_processes import clean_process
from tunesmith.runs.stopping import Terminated
from tunesmith.runs.temporary import clear
from tunesmith.safe_text import safe

app = typer.Typer(
    name="tunesmith",
    help="Fine-tune an open language model on your data and find out whether it got better.",
    epilog="Every command has --help. Exit codes: 0 done, 1 an error that you can fix, 2 usage, 3 training failed, "
    "4 a value that is not finite.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs_app = typer.Typer(
    name="runs", help="List, show, follow, plot and report runs.", no_args_is_help=True, rich_markup_mode=None
)

app.command("init")(data.init)
app.command("check")(data.check)
app.command("prepare")(data.prepare)
app.command("plan", cls=KeyCommand)(plan.plan)
app.command("train", cls=KeyCommand)(train.train)
app.command("eval", cls=ProbeCommand)(answers.evaluate)
app.command("compare", cls=KeyCommand)(compare.compare)
app.command("generate")(answers.generate)
app.command("chat")(chat.chat)
app.command("merge")(merge.merge)
app.add_typer(runs_app)
runs_app.command("list")(runs.list_runs)
runs_app.command("show")(runs.show_run)
runs_app.command("watch")(runs.watch_run)
runs_app.command("curves")(runs.draw_curves)
runs_app.command("report")(runs.write_report)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tunesmith {tunesmith.__version__}")
        raise typer.Exit


@app.callback()
def _front(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _write_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):  # a second Ctrl-C, while the first was being heard
        sys.stderr.write(safe("".join(traceback.format_exception(kind, error, trace))))


def _code_of(stopped: BaseException | None) -> int:
    """The exit code of a process that an interrupt has stopped: 128 and the number of the signal."""
    return 128 + (stopped.number if isinstance(stopped, Terminated) else signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line and ends the process. Characters that a stream cannot encode are written as ``\\xNN``.

    The traceback of a bug is written without secrets and without control characters.
    """
    sys.excepthook = _write_traceback
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command = typer.main.get_command(app)
        with clean_process():  # also for what libraries start
            command.main(args=argv, prog_name="tunesmith")
    except KeyboardInterrupt as stopped:  # a signal before or after a command's work
        raise SystemExit(_code_of(stopped)) from None
    except SystemExit as end:
        heard = end.__context__ and end.__context__.__cause__  # typer's own exit, and what it is for
        if isinstance(heard, KeyboardInterrupt) or isinstance(end.__context__, typer.Abort):
            raise SystemExit(_code_of(heard)) from None
        raise
    finally:
        clear()
        # All work is done. From now on Ctrl-C ends the process at once and in silence: otherwise it would interrupt
        # a library's exit function, of which Python prints the traceback.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise AssertionError("a command always ends with an exit code")
