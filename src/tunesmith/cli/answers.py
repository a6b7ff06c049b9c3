"""The commands `eval` and `generate`: judge a model, and answer prompts."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunesmith.cli.options import (
    AllowChanges,
    AllowFunctions,
    AsJson,
    AskProbe,
    BaseModel,
    EvaluationKeys,
    GenerationKeys,
    OtherInstruction,
    OutputFile,
    Overwrite,
    RawOption,
    SystemOption,
    TargetArgument,
    TrustRemoteCode,
    asked_probe,
    generation_settings,
    in_arguments,
    reading_arguments,
)
from tunesmith.cli.runs import show_benchmarks
from tunesmith.cli.terminal.console import Styled, Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import baseline_lines, metrics_table, verdict_line
from tunesmith.errors import DataError
from tunesmith.evaluation.below_verdict import lines_below
from tunesmith.model.weights.recipes import refuse_recipe
from tunesmith.recipe.paths import shown
from tunesmith.runs.samples import side_by_side
from tunesmith.safe_text import one_line

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
    probe: AskProbe = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAME,NAME",
            help="Ask tasks of lm-evaluation-harness instead of the held-out rows.",
            show_default=False,
        ),
    ] = None,
    include_path: Annotated[
        str | None,
        typer.Option("--include-path", metavar="FOLDER", help="With --tasks: more tasks (.yaml).", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="With --tasks: items of each task.", show_default="all"),
    ] = None,
    model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_functions: AllowFunctions = False,
    allow_changes: AllowChanges = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run again, or measure a model.

    A run is compared with its base on held-out rows. A model without a base gets the values of its metrics.
    """
    others = {"KEY=VALUE": settings, "--data": data, "--probe": probe}
    _refuse_mixed_tasks(tasks, others=others, own={"--include-path": include_path, "--limit": limit})
    with session(as_json) as terminal:
        refuse_recipe(target)
        if tasks is not None:
            how: dict[str, Any] = {
                "include_path": include_path,
                "limit": limit,
                "model": model,
                "allow_changes": allow_changes or (),
            }
            how |= {"trust_remote_code": trust_remote_code, "allow_functions": allow_functions}
            _benchmark(target, tasks, how, terminal)
            return
        from tunesmith.evaluation.wording import ALONE, advice_lines
        from tunesmith.workflows.evaluate import evaluated

        try:
            verdict = evaluated(
                target,
                data=data,
                settings=settings or [],
                probe=asked_probe(probe),
                listener=terminal,
                model=model,
                allow_changes=allow_changes or (),
                trust_remote_code=trust_remote_code,
                allow_functions=allow_functions,
            )
        except DataError as error:
            raise error if data is None else in_arguments(error) from None
        if verdict["verdict"] is not None:
            terminal.write(verdict_line(verdict))
        for line in metrics_table(verdict["metrics"], width=terminal.columns):
            terminal.write(line)
        for line in baseline_lines(verdict, width=terminal.columns):
            terminal.write(line)
        if verdict.get("decided_by") in ALONE:  # a loss says nothing of answers, so they are shown
            for line in side_by_side(verdict.samples):
                terminal.write(line)
        for line in [*lines_below(verdict), *advice_lines(verdict, target)]:
            terminal.write(one_line(line))
        terminal.result({"target": target, **verdict})


def _refuse_mixed_tasks(tasks: str | None, *, others: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises typer.BadParameter for what has no effect with --tasks, and for flags that need it."""
    for name, given in others.items():
        if tasks is not None and given:
            raise typer.BadParameter(f"{name} has no effect with --tasks: leave it out, or evaluate twice")
    for flag, given in own.items():
        if tasks is None and given is not None:
            raise typer.BadParameter("this flag needs --tasks", param_hint=flag)


def _benchmark(target: str, tasks: str, how: dict[str, Any], terminal: Terminal) -> None:
    from tunesmith.workflows.benchmarks import benchmark

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    found = benchmark(target, names, listener=terminal, **how)
    show_benchmarks(found, terminal)
    terminal.result(found)


def generate(
    target: TargetArgument,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="The user's message. - reads it from standard input.", show_default=False
        ),
    ] = None,
    settings: GenerationKeys = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Rows to answer, in any format that `train` reads, instead of --prompt. They are read with the run's "
            "columns; data.KEY=VALUE says otherwise.",
            show_default=False,
        ),
    ] = None,
    out: OutputFile = None,
    system: SystemOption = None,
    instruction: OtherInstruction = None,
    raw: RawOption = False,
    base: Annotated[bool, typer.Option("--base", help="Also show the answer of the untuned base.")] = False,
    model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_changes: AllowChanges = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt, or every row of a file.

    The run's instruction and system turn go before the message, as in training. With --data and --out, each row is
    written with its answer in a column. If this is stopped, the same command goes on where it stopped.
    """
    reading, of_generation = reading_arguments(settings)
    _refuse_mixed(prompt, data, out, reading, base=base, overwrite=overwrite)
    with session(as_json) as terminal:
        refuse_recipe(target)
        wanted = generation_settings(of_generation)
        if data is not None and out is not None:
            how = {"system": system, "instruction": instruction, "raw": raw, "overwrite": overwrite, "model": model}
            how["trust_remote_code"] = trust_remote_code
            how["allow_changes"] = allow_changes or ()
            _answer_rows(target, data, out, {"keys": reading, "settings": wanted, **how}, terminal)
            return
        assert prompt is not None
        message = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
        from tunesmith.data.examples.message import Message
        from tunesmith.deploy import tuned

        messages = [*([Message("system", system)] if system else []), Message("user", message)]
        loaded = tuned.load(
            target,
            listener=terminal,
            model=model,
            trust_remote_code=trust_remote_code,
            allow_changes=allow_changes or (),
        )
        wanted |= {"raw": raw, "instruction": instruction}
        used = say_prompt(loaded, wanted, terminal, system=system)
        found: dict[str, Any] = {"target": target, "model": loaded.describe, "prompt": message, "instruction": used}
        found["base"] = None
        if base:
            terminal.write(Styled("base:", bold=True))
            with loaded.base() as untuned:
                found["base"] = _answer(untuned, messages, wanted, terminal)
            terminal.write(Styled("tuned:", bold=True))
        found["answers"] = _answer(loaded, messages, wanted, terminal)
        found["changes"] = [change.to_json() for change in loaded.changes]
        terminal.result(found)


def _refuse_mixed(
    prompt: str | None, data: str | None, out: str | None, reading: Sequence[str], *, base: bool, overwrite: bool
) -> None:
    """Raises typer.BadParameter for flags that do not go together."""
    if (prompt is None) == (data is None):
        what = "there is nothing to answer" if data is None else "--prompt and --data both say what to answer"
        raise typer.BadParameter(f"{what}: give --prompt TEXT for one answer, or --data DATA --out FILE for many rows")
    if data is not None and out is None:
        raise typer.BadParameter("--data needs a file for the answers: add --out FILE, such as --out answers.csv")
    if data is not None and base:
        compare = "`tunesmith eval TARGET --data DATA` compares base and tuned model on rows with answers"
        raise typer.BadParameter(f"--base goes with --prompt: leave it out ({compare})")
    flags = [("--out", out is not None), ("--overwrite", overwrite), *((key, True) for key in reading)]
    alone = [flag for flag, given in flags if given]
    if data is None and alone:
        raise typer.BadParameter(f"{alone[0]} goes with --data: leave it out, or give --data DATA instead of --prompt")


def _answer_rows(target: str, data: str, out: str, how: dict[str, Any], terminal: Terminal) -> None:
    from tunesmith.workflows import answer_rows

    try:
        found = answer_rows.answer_rows(target, data, out, listener=terminal, **how)
    except DataError as error:
        raise in_arguments(error) from None
    except KeyboardInterrupt:
        terminal.note("The same command goes on with the rows that are not answered yet.")
        raise
    named = " and ".join(found.columns)
    terminal.write(f"{found.out}: {found.rows:,} rows, with their answers in {named}")
    terminal.result({"target": target, "data": shown(data), **found.to_json()})


def say_prompt(model: Tuned, settings: dict[str, Any], terminal: Terminal, *, system: str | None) -> str | None:
    """Says on standard error what goes before the text, and returns the instruction."""
    prompt = model.run_prompt(raw=settings["raw"], instruction=settings["instruction"])
    for note in (prompt.note(system=system), prompt.note_on_tools()):
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
            terminal.write(Styled(f"{number}:", bold=True))
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
