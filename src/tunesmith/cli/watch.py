"""`runs watch`: a run at work, from its folder alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.console import Terminal, printable
from tunesmith.cli.options import AsJson
from tunesmith.cli.progress import duration
from tunesmith.cli.session import session
from tunesmith.progress import Advance

if TYPE_CHECKING:
    from tunesmith.watching import Event


def watch_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for a run that is not there yet and that no process prepares.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a run until it ends.

    Loss, validation loss, learning rate, gradient norm, speed, time left, the answers at each evaluation, and a warning
    where a curve looks wrong. It reads the run folder alone, so it works beside the training or on a copy.

    A run that still reads its data or loads its model is waited for.
    """
    with session(as_json) as terminal:
        from tunesmith.watching import Watcher, begun, follow

        watcher = Watcher(begun(run, wait=wait, say=terminal.note).folder)
        with ExitStack() as stack:
            show = _drawn(terminal, stack) if terminal.draws else _written(terminal)
            for event in follow(watcher):
                show(event)
        symptoms = [asdict(found) for found in watcher.symptoms]
        terminal.result({**asdict(watcher.summary), "symptoms": symptoms})


def line_of(event: Event) -> str:
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
    return lambda event: terminal.write(printable(line_of(event)))


def _drawn(terminal: Terminal, stack: ExitStack) -> Callable[[Event], None]:
    """Steps move a bar, which begins with the first of them and stays when they are done; the rest is said above it."""
    bars: list[Advance] = []

    def show(event: Event) -> None:
        if event.kind == "symptom":
            terminal.warn(f"step {event.step}: {event.text}")
        elif event.kind == "step":
            if not bars:  # the run's length is known by now
                bars.append(stack.enter_context(terminal.task("training", event.total_steps, timed=False)))
            left = {} if event.seconds_left is None else {"left": duration(event.seconds_left)}
            bars[0](event.step, {**event.facts, **left})
        else:
            if event.kind in ("restarted", "judging", "end"):
                stack.close()
                bars.clear()
            terminal.say(line_of(event))

    return show
