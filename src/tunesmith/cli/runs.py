"""`runs list` and `runs show`: what was trained and how it did."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.console import Terminal, printable
from tunesmith.cli.curve import curve
from tunesmith.cli.options import AsJson
from tunesmith.cli.session import session
from tunesmith.cli.tables import metrics_table, table, text

if TYPE_CHECKING:
    from tunesmith.overview import Details, Summary

COLOURS = {"better": "green", "worse": "red", "no evidence": "yellow"}
WIDEST = 100


def list_runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the runs are.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """List runs with status and verdict."""
    with session(as_json) as terminal:
        from tunesmith.overview import summaries

        found = summaries(folder)
        header = ("run", "status", "step", "verdict", "metric", "base -> tuned", "updated")
        rows = [(run.run, run.status, _step(run), run.verdict, run.metric, _change(run), run.updated) for run in found]
        lines = table(header, rows) if rows else [f"There are no runs in {folder}."]
        for line in lines:
            terminal.write(line)
        terminal.result({"runs": [asdict(run) for run in found]})


def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show a run and its loss curve.

    Also its recipe in short, the verdict with its metrics, and the checkpoints.
    """
    with session(as_json) as terminal:
        from tunesmith.overview import details

        found = details(run)
        _report(found, terminal)
        terminal.result(found.to_json())


def _step(run: Summary) -> str | None:
    return None if run.step is None else f"{run.step}/{run.total_steps or '?'}"


def _change(run: Summary) -> str | None:
    return None if run.tuned is None else f"{text(run.base)} -> {text(run.tuned)}"


def _report(found: Details, terminal: Terminal) -> None:
    run = found.summary
    step = f", step {_step(run)}" if run.step is not None else ""
    facts = [("run", run.run), ("status", f"{run.status}{step}, {run.updated}"), *found.facts]
    margin = max(len(name) for name, _ in facts)
    for name, value in facts:
        terminal.write(f"{terminal.styled(name.ljust(margin), bold=True)}  {printable(value)}")
    if found.error is not None:
        terminal.write(f"{terminal.styled('error', fg='red')}: {printable(str(found.error.get('what')))}")
    _report_verdict(found, terminal)
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = curve(found.training, found.validation, width=width)
    for line in ["", *lines] if lines else []:
        terminal.write(line)
    if found.checkpoints:
        terminal.write("")
        best = (found.best or {}).get("step")
        for path in found.checkpoints:
            mark = "  best by validation loss" if best is not None and path.name.endswith(f"-{best:06d}") else ""
            verdict = found.verdict or {}
            if "selection" in verdict and path.name.endswith(f"-{verdict['step']:06d}"):
                mark += "  judged"
            terminal.write(f"{path}{mark}")


def _report_verdict(found: Details, terminal: Terminal) -> None:
    if found.verdict is None:
        return
    verdict = str(found.verdict.get("verdict"))
    terminal.write("")
    if found.verdict.get("metrics"):
        from tunesmith.evaluation.compare import sentence

        terminal.write(terminal.styled(sentence(found.verdict), fg=COLOURS.get(verdict)))  # type: ignore[arg-type]
        for line in metrics_table(found.verdict["metrics"]):
            terminal.write(line)
    else:
        terminal.write(f"{verdict}: {found.verdict.get('reason')}")
