"""The commands, put together."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import tunesmith
from tunesmith.cli import answers, chat, data, demo, merge, plan, runs, train
from tunesmith.cli import runs as curves
from tunesmith.cli import runs as watch

app = typer.Typer(
    name="tunesmith",
    help="Adapt an open language model to your own data, and know whether it got better.",
    epilog="Every command has --help. Exit codes: 0 done, 1 a mistake that you can mend, 2 usage, 3 training failed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
runs_app = typer.Typer(
    name="runs", help="What was trained and how it did.", no_args_is_help=True, rich_markup_mode=None
)

app.command("init")(data.init)
app.command("check")(data.check)
app.command("prepare")(data.prepare)
app.command("plan")(plan.plan)
app.command("train")(train.train)
app.command("eval")(answers.evaluate)
app.command("generate")(answers.generate)
app.command("chat")(chat.chat)
app.command("merge")(merge.merge)
app.add_typer(runs_app)
runs_app.command("list")(runs.list_runs)
runs_app.command("show")(runs.show_run)
runs_app.command("watch")(watch.watch_run)
runs_app.command("curves")(curves.draw_curves)
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


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command line and ends the process. What a stream's encoding cannot say is written as ``\\xNN``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    command = typer.main.get_command(app)
    command.main(args=argv, prog_name="tunesmith")
    raise AssertionError("a command always ends with an exit code")
