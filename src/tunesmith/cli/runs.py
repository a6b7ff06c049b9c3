"""The commands `runs list`, `runs show`, `runs watch`, `runs curves` and `runs report`: read run folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.options import AsJson, Overwrite
from tunesmith.cli.terminal.console import Styled, Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import baseline_lines, comparison_lines, curve, metrics_table, table, verdict_line
from tunesmith.cli.terminal.text import as_text
from tunesmith.evaluation.below_verdict import lines_below, slice_lines
from tunesmith.evaluation.benchmarks.wording import HEADER, benchmark_rows, heading
from tunesmith.runs.plain_text import duration
from tunesmith.runs.progress import Advance
from tunesmith.safe_text import one_line

if TYPE_CHECKING:
    from tunesmith.runs.overview import Details, Summary
    from tunesmith.runs.watching import Event

_VERDICT_COLOURS = {"better": "green", "no worse": "green", "worse": "red", "no evidence": "yellow"}
EVALUATIONS_SHOWN = 3
_WIDEST = 100  # columns of a curve


def draw_curves(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders.", show_default=False)],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The .svg, .html or .png file to write.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Plot loss, validation loss, learning rate and gradient norm of runs.

    SVG and HTML are one file that needs nothing else. PNG needs matplotlib.
    """
    with session(as_json) as terminal:
        from tunesmith.runs import curves

        found = curves.draw(runs, out, overwrite=overwrite)
        terminal.write(f"Wrote {out}: {', '.join(run.name for run in found)}.")
        terminal.result({"file": out, "runs": [run.to_json() for run in found]})


def write_report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write the report there, as one HTML page.")
    ] = None,
    card: Annotated[
        str | None, typer.Option("--card", metavar="FILE", help="Write the model card there, as Markdown for a hub.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report and the model card of a run.

    The report is one HTML page that needs nothing else. Every run writes both at its end; without a file, both are
    made again in the run folder.
    """
    with session(as_json) as terminal:
        from tunesmith.deploy.report.files import report_run

        written = report_run(run, html=html, card=card)
        for file in written:
            terminal.write(one_line(f"Wrote {file}"))
        terminal.result({"run": run, "files": [str(file) for file in written]})


def watch_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a run that nobody has started yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a run until it ends.

    Shows loss, validation loss, learning rate, gradient norm, speed, time left, an answer at each evaluation, and a
    warning when a curve looks wrong. It only reads the run folder, so it works during the training and on a copy.

    It waits for a run that still reads its data or loads its model.
    """
    with session(as_json) as terminal:
        from tunesmith.runs.watching import Watcher, begun, follow

        watcher = Watcher(begun(run, wait=wait, say=terminal.note).folder)
        with ExitStack() as stack:
            show = _drawn(terminal, stack) if terminal.draws else _written(terminal)
            for event in follow(watcher):
                show(event)
        symptoms = [asdict(found) for found in watcher.symptoms]
        terminal.result({**asdict(watcher.summary), "symptoms": symptoms})


def event_line(event: Event) -> str:
    """The event as one plain line."""
    of = f"/{event.total_steps}" if event.total_steps else ""
    if event.kind == "symptom":
        return f"warning: step {event.step}: {event.text}"
    if event.kind in ("end", "judging", "restarted"):
        return event.text
    facts = [f"{name} {value}" for name, value in event.facts.items()]
    left = [f"{duration(event.seconds_left)} left"] if event.seconds_left else []
    return "  ".join([f"step {event.step}{of}", *facts, *left, *([event.text] if event.text else [])])


def _written(terminal: Terminal) -> Callable[[Event], None]:
    return lambda event: terminal.write(one_line(event_line(event)))


def _drawn(terminal: Terminal, stack: ExitStack) -> Callable[[Event], None]:
    """Shows events on a screen: steps advance a bar, and everything else is a line above it."""
    bars: list[Advance] = []

    def show(event: Event) -> None:
        if event.kind == "symptom":
            terminal.warn(f"step {event.step}: {event.text}")
        elif event.kind == "step":
            if not bars:  # the number of steps is known by now
                bars.append(stack.enter_context(terminal.task("training", event.total_steps, timed=False)))
            left = {} if event.seconds_left is None else {"left": duration(event.seconds_left)}
            bars[0](event.step, {**event.facts, **left})
        else:
            if event.kind in ("restarted", "judging", "end"):
                stack.close()
                bars.clear()
            terminal.say(one_line(event_line(event)))

    return show


def list_runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that holds the runs.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """List runs with their status and verdict."""
    with session(as_json) as terminal:
        from tunesmith.runs.overview import summaries

        found = summaries(folder)
        header = ("run", "status", "step", "verdict", "metric", "base -> tuned", "updated")
        rows = [(run.run, run.status, _step(run), run.verdict, run.metric, _change(run), run.updated) for run in found]
        lines = table(header, rows, width=terminal.columns) if rows else [f"There are no runs in {folder}."]
        for line in lines:
            terminal.write(line)
        terminal.result({"runs": [asdict(run) for run in found]})


def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    wrong: Annotated[
        bool, typer.Option("--wrong", help="Show every answer that is not right instead, with that of the base.")
    ] = False,
    of_eval: Annotated[bool, typer.Option("--eval", help="With --wrong: the answers of the newest `eval`.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: recipe, verdict with its metrics, advice, loss curve and checkpoints."""
    if of_eval and not wrong:
        raise typer.BadParameter("this flag needs --wrong", param_hint="--eval")
    with session(as_json) as terminal:
        if wrong:
            _show_wrong(run, terminal, of_eval=of_eval)
            return
        from tunesmith.runs.overview import details

        found = details(run)
        _report(found, terminal)
        terminal.result(found.to_json())


def _show_wrong(run: str, terminal: Terminal, *, of_eval: bool) -> None:
    from tunesmith.runs.overview import wrong_answers
    from tunesmith.runs.samples import wrong_lines

    found = wrong_answers(run, of_eval=of_eval)
    for line in wrong_lines(found.wrong, found.answers):
        terminal.write(one_line(line))
    if found.answers < found.rows:
        terminal.write(
            f"Only {found.answers} of {found.rows} rows were answered, because no metric needs answers. To answer all: "
            f"`tunesmith eval {run} metrics=[exact_match]`, then `tunesmith runs show {run} --wrong --eval`"
        )
    terminal.result({"run": run, **found.to_json()})


def _step(run: Summary) -> str | None:
    return None if run.step is None else f"{run.step}/{run.total_steps or '?'}"


def _change(run: Summary) -> str | None:
    return None if run.tuned is None else f"{as_text(run.base)} -> {as_text(run.tuned)}"


def _report(found: Details, terminal: Terminal) -> None:
    run = found.summary
    step = f", step {_step(run)}" if run.step is not None else ""
    facts = [("run", run.run), ("status", f"{run.status}{step}, {run.updated}"), *found.facts]
    margin = max(len(name) for name, _ in facts)
    for name, value in facts:
        terminal.write(Styled(one_line(name).ljust(margin), bold=True), f"  {one_line(value)}")
    if found.error is not None:
        terminal.write(Styled("error", "red"), f": {one_line(str(found.error.get('what')))}")
    _report_verdict(found, terminal)
    for evaluation in found.evaluations[-EVALUATIONS_SHOWN:]:
        _report_evaluation(evaluation, terminal)
    for benchmarks in found.benchmarks[-EVALUATIONS_SHOWN:]:
        terminal.write("")
        terminal.write(one_line(heading(benchmarks)))
        show_benchmarks(benchmarks, terminal)
    for comparison in found.comparisons[-1:]:
        _report_comparison(comparison, terminal)
    width = min(shutil.get_terminal_size().columns, _WIDEST)
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
            terminal.write(one_line(f"{path}{mark}"))


def show_benchmarks(found: dict[str, Any], terminal: Terminal) -> None:
    """The table of a result of `eval --tasks`."""
    for line in table(HEADER, benchmark_rows(found), right=(2, 3, 4, 5), width=terminal.columns):
        terminal.write(line)


def _report_comparison(comparison: dict[str, Any], terminal: Terminal) -> None:
    terminal.write("")
    terminal.write(one_line(f"compare at {comparison['time']}, on {comparison.get('data') or 'held-out rows'}:"))
    for line in comparison_lines(comparison, width=terminal.columns):
        terminal.write(line)


def _report_evaluation(evaluation: dict[str, Any], terminal: Terminal) -> None:
    asked = [evaluation["data"] or "its held-out rows", *evaluation["settings"]]
    terminal.write("")
    terminal.write(one_line(f"eval {evaluation['target']} at {evaluation['time']}, on {', '.join(asked)}:"))
    terminal.write(one_line(verdict_line(evaluation)))
    for line in metrics_table(evaluation["metrics"], width=terminal.columns):
        terminal.write(line)
    for line in baseline_lines(evaluation, width=terminal.columns):
        terminal.write(line)
    for line in [*lines_below(evaluation), *slice_lines(evaluation)]:
        terminal.write(one_line(line))


def _report_verdict(found: Details, terminal: Terminal) -> None:
    if found.verdict is None:
        return
    from tunesmith.evaluation.wording import advice_lines, sentence

    verdict = str(found.verdict.get("verdict"))
    terminal.write("")
    if found.verdict.get("metrics"):
        terminal.write(Styled(one_line(sentence(found.verdict)), _VERDICT_COLOURS.get(verdict)))  # type: ignore[arg-type]
        for line in metrics_table(found.verdict["metrics"], width=terminal.columns):
            terminal.write(line)
        for line in baseline_lines(found.verdict, width=terminal.columns):
            terminal.write(line)
    else:
        terminal.write(one_line(f"{verdict}: {found.verdict.get('reason')}"))
    below = [*lines_below(found.verdict), *slice_lines(found.verdict)]
    for line in [*below, *advice_lines(found.verdict, found.summary.run)]:
        terminal.write(one_line(line))
