"""The command `train`: from a recipe to a verdict, or to the result of a learning-rate range test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.options import AllowChanges, AllowFunctions, AsJson, Overrides, Overwrite, TrustRemoteCode
from tunesmith.cli.terminal.console import Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import baseline_lines, metrics_table, settings_table, table, verdict_line
from tunesmith.evaluation.below_verdict import lines_below
from tunesmith.recipe.paths import local
from tunesmith.runs.drift import FLAG
from tunesmith.runs.run_files import CARD, REPORT
from tunesmith.safe_text import one_line

if TYPE_CHECKING:
    from tunesmith.runs.consent import Consent

RATES_SHOWN = 12

RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="The recipe (YAML). With --resume also a run folder.", show_default=False),
]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Start, continue after the last checkpoint, or do nothing if finished.")
    ] = False,
    overwrite: Overwrite = False,
    allow_changes: AllowChanges = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the settings with their sources, and train nothing.")
    ] = False,
    show_all: Annotated[
        bool, typer.Option("--all", help="With --dry-run: also show the settings that have their defaults.")
    ] = False,
    lr_range: Annotated[
        bool,
        typer.Option("--lr-range", help="Find a learning rate: train with a growing rate and plot the loss."),
    ] = False,
    lr_min: Annotated[
        float | None,
        typer.Option(
            "--lr-min", metavar="RATE", help="First rate of --lr-range.", show_default="by method and optimizer"
        ),
    ] = None,
    lr_max: Annotated[
        float | None,
        typer.Option(
            "--lr-max", metavar="RATE", help="Last rate of --lr-range.", show_default="by method and optimizer"
        ),
    ] = None,
    lr_steps: Annotated[
        int | None,
        typer.Option("--lr-steps", metavar="N", help="Steps of --lr-range.", show_default="60; 20 to 60 on few rows"),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_functions: AllowFunctions = False,
    as_json: AsJson = False,
) -> None:
    """Train from a recipe and evaluate against the base model.

    Base and tuned model answer the same held-out rows. The run ends with a verdict: better, no evidence, or worse.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume continues the run that --overwrite would remove: give one of them")
    if allow_changes is not None and not resume:
        raise typer.BadParameter("this flag needs --resume", param_hint=FLAG)
    if show_all and not dry_run:
        raise typer.BadParameter("this flag needs --dry-run", param_hint="--all")
    _check_range(
        lr_range,
        others={"--resume": resume, "--overwrite": overwrite, "--dry-run": dry_run, FLAG: allow_changes is not None},
        own={"--lr-min": lr_min, "--lr-max": lr_max, "--lr-steps": lr_steps},
    )
    with session(as_json) as terminal:
        from tunesmith.runs.consent import Consent

        consent = Consent(trust_remote_code, allow_functions)
        if dry_run or lr_range:
            from tunesmith.recipe.file import read_recipe

            if not os.path.isdir(local(recipe)):
                read_recipe(recipe, overrides or [])  # reports an error before torch is imported
        if dry_run:
            _show_settings(recipe, overrides or [], terminal, defaults=show_all, consent=consent)
            return
        if lr_range:
            code = {"trust_remote_code": trust_remote_code, "allow_functions": allow_functions}
            bounds = {"lr_min": lr_min, "lr_max": lr_max, "steps": lr_steps}
            _show_range(recipe, overrides or [], terminal, **bounds, **code)
            return
        from tunesmith.workflows.starting import started

        allowed, keys = allow_changes or (), overrides or []
        with started(recipe, keys, resume=resume, overwrite=overwrite, consent=consent, allow_changes=allowed) as start:
            from tunesmith.workflows import finetune  # imports torch

            result = finetune.train_in(start, terminal)
        from tunesmith.evaluation.wording import advice_lines

        terminal.write(verdict_line(result.verdict))
        for line in metrics_table(result.metrics, width=terminal.columns) if result.metrics else []:
            terminal.write(line)
        for line in baseline_lines(result.verdict, width=terminal.columns):
            terminal.write(line)
        for line in lines_below(result.verdict):
            terminal.write(one_line(line))
        _show_samples(result.run, terminal)
        for line in advice_lines(result.verdict, result.run):
            terminal.write(one_line(line))
        terminal.write(
            f"The run is {result.run}. Next: `tunesmith runs show {result.run}`, `tunesmith chat {result.run}`"
        )
        if (report := result.run / REPORT).is_file():
            terminal.write(f"The report is {report}, and the model card is {result.run / CARD}.")
        terminal.result(result.to_json())


def _show_samples(folder: Path, terminal: Terminal) -> None:
    """What the evaluation generated: a few answers of both models, and the labels that are wrong most often."""
    from tunesmith.runs.folder import Run
    from tunesmith.runs.samples import SAMPLES, side_by_side, worst_labels

    samples = Run(folder).read_lines(SAMPLES)
    worst = worst_labels(samples)
    for line in [*([worst] if worst else []), *side_by_side(samples)]:
        terminal.write(line)


def _show_settings(recipe: str, overrides: list[str], terminal: Terminal, *, defaults: bool, consent: Consent) -> None:
    """What was set comes first, then what follows from the data, the model and the machine, then the defaults."""
    from tunesmith.workflows import finetune

    settings = finetune.dry_run(recipe, overrides, consent=consent, listener=terminal)
    of_default = [setting for setting in settings if setting[2] == "default"]
    resolved = [setting for setting in settings if setting[2] == "auto"]
    given = [setting for setting in settings if setting not in of_default and setting not in resolved]
    shown = [*given, *resolved, *(of_default if defaults else [])]
    for line in settings_table(shown, width=terminal.columns):
        terminal.write(line)
    if of_default and not defaults:
        terminal.write(f"Not shown: {len(of_default)} defaults; --all shows them.")
    terminal.result({"settings": [{"key": key, "value": value, "source": source} for key, value, source in settings]})


def _check_range(asked: bool, *, others: Mapping[str, bool], own: Mapping[str, Any]) -> None:
    """Refuses flags that have no effect with --lr-range, and flags that need it."""
    for flag, given in others.items():
        if asked and given:
            raise typer.BadParameter(f"{flag} has no effect with --lr-range, which is not a run: give one of them")
    for flag, value in own.items():
        if not asked and value is not None:
            raise typer.BadParameter("this flag needs --lr-range", param_hint=flag)


def _show_range(recipe: str, overrides: list[str], terminal: Terminal, **options: Any) -> None:
    from tunesmith.workflows import lr_range as range_test

    found = range_test.lr_range(recipe, overrides, **options, listener=terminal)
    points, smoothed = found.curve.points, found.curve.smoothed
    shown = range(0, len(points), -(-len(points) // RATES_SHOWN))
    rows = [(f"{points[at].learning_rate:.1e}", points[at].loss, smoothed[at], points[at].grad_norm) for at in shown]
    for line in table(
        ("learning rate", "loss", "smoothed", "grad norm"), rows, right=(0, 1, 2, 3), width=terminal.columns
    ):
        terminal.write(line)
    if found.passes > 1:
        terminal.write(f"The test saw the rows {found.passes:.3g} times; in later passes the model knows some of them.")
    terminal.write(found.curve.reason)
    terminal.write(f"Wrote {range_test.JSON} and {range_test.PICTURE} to {found.folder}")
    if found.line is not None:
        terminal.write(f"To use it, add {found.line} to the `train` command or to the recipe.")
    terminal.result({"folder": found.folder, **found.to_json()})
