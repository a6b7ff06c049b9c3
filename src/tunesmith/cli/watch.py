"""`runs watch`: a run at work, from its folder alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.console import Terminal
from tunesmith.cli.options import AsJson
from tunesmith.cli.progress import duration
from tunesmith.cli.session import session
from tunesmith.progress import Advance

if TYPE_CHECKING:
    from tunesmith.watching import Event


def watch_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Follow a run until it ends.

    Loss, validation loss, learning rate, gradient norm, speed, time left, the answers at each evaluation, and a warning
    where a curve looks wrong. It reads the run folder alone, so it works beside the training or on a copy.
    """
    with session(as_json) as terminal:
        from tunesmith.watching import Watcher, follow

        watcher = Watcher(run)
        if terminal.is_interactive:
            with terminal.task("training", watcher.summary.total_steps) as advance:
                for event in follow(watcher):
                    _draw(event, terminal, advance)
        else:
            for event in follow(watcher):
                terminal.write(line_of(event))
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


def _draw(event: Event, terminal: Terminal, advance: Advance) -> None:
    if event.kind == "step":
        advance(event.step, event.facts)
    elif event.kind == "symptom":
        terminal.warn(f"step {event.step}: {event.text}")
    else:
        terminal.say(line_of(event))
