"""The commands `eval` and `generate`: judge a model, and answer a prompt."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.options import (
    AsJson,
    EvaluationKeys,
    GenerationKeys,
    OtherInstruction,
    RawOption,
    SystemOption,
    TargetArgument,
    generation_settings,
)
from tunesmith.cli.terminal.console import Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import metrics_table, verdict_line

if TYPE_CHECKING:
    from tunesmith.data.examples.message import Message
    from tunesmith.deploy.tuned import Tuned


def evaluate(
    target: TargetArgument,
    settings: EvaluationKeys = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Rows to evaluate on.", show_default="the run's held-out rows"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run again, or measure a model.

    A run is compared with its base on held-out rows. A model without a base gets the values of its metrics.
    """
    with session(as_json) as terminal:
        from tunesmith.workflows.evaluate import evaluate

        verdict = evaluate(target, data=data, settings=settings or [], listener=terminal)
        if verdict["verdict"] is not None:
            terminal.write(verdict_line(verdict))
        for line in metrics_table(verdict["metrics"], width=terminal.columns):
            terminal.write(line)
        terminal.result({"target": target, **verdict})


def generate(
    target: TargetArgument,
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", help="The user's message. - reads it from standard input.")
    ],
    settings: GenerationKeys = None,
    system: SystemOption = None,
    instruction: OtherInstruction = None,
    raw: RawOption = False,
    base: Annotated[bool, typer.Option("--base", help="Also show the answer of the untuned base.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt.

    The run's instruction and system turn go before the message, as in training.
    """
    with session(as_json) as terminal:
        wanted = generation_settings(settings)
        message = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
        from tunesmith.data.examples.message import Message
        from tunesmith.deploy import tuned

        messages = [*([Message("system", system)] if system else []), Message("user", message)]
        model = tuned.load(target, listener=terminal)
        wanted |= {"raw": raw, "instruction": instruction}
        used = say_prompt(model, wanted, terminal, system=system)
        found: dict[str, Any] = {"target": target, "model": model.describe, "prompt": message, "instruction": used}
        found["base"] = None
        if base:
            terminal.write(terminal.styled("base:", bold=True))
            with model.base() as untuned:
                found["base"] = _answer(untuned, messages, wanted, terminal)
            terminal.write(terminal.styled("tuned:", bold=True))
        found["answers"] = _answer(model, messages, wanted, terminal)
        terminal.result(found)


def say_prompt(model: Tuned, settings: dict[str, Any], terminal: Terminal, *, system: str | None) -> str | None:
    """Says on standard error what goes before the text, and returns the instruction."""
    prompt = model.run_prompt(raw=settings["raw"], instruction=settings["instruction"])
    note = prompt.note(system=system)
    if note is not None:
        terminal.note(note)
    return prompt.instruction


def _answer(
    model: Tuned, messages: Sequence[Message], settings: dict[str, Any], terminal: Terminal
) -> list[dict[str, Any]] | None:
    """Writes the answers. A single answer is written while it is decoded, except under ``--json``."""
    if not terminal.as_json and settings.get("num_return_sequences", 1) == 1:
        stream_answer(model, messages, settings, terminal)
        return None
    answers = model.generate(messages, **settings)
    for number, answer in enumerate(answers, start=1):
        if len(answers) > 1:
            terminal.write(terminal.styled(f"{number}:", bold=True))
        terminal.answer(answer.text)
    return [{"text": each.text, "tokens": len(each.tokens), "stopped": each.stopped} for each in answers]


def stream_answer(
    model: Tuned,
    messages: Sequence[Message],
    settings: dict[str, Any],
    terminal: Terminal,
    *,
    pieces: list[str] | None = None,
) -> None:
    """Writes one answer piece by piece, then a newline. Also appends the pieces to ``pieces``."""
    with closing(cast(Generator[str], model.stream(messages, **settings))) as stream:
        for piece in stream:
            terminal.answer(piece, end="")
            if pieces is not None:
                pieces.append(piece)
    terminal.write("")
