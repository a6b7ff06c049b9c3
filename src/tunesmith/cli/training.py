"""`train`: from a recipe to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.console import Terminal
from tunesmith.cli.options import AsJson, Overrides, Overwrite
from tunesmith.cli.session import session
from tunesmith.cli.tables import metrics_table, settings_table, verdict_line

RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="The recipe (YAML); with --resume also a run folder.", show_default=False),
]


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Start, continue from the last checkpoint, or do nothing if finished.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every resolved setting and where it comes from; train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train as a recipe says, and judge the result.

    Base and tuned model answer the same held-out rows, and the run ends with a verdict: better, no evidence, or worse.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume continues what --overwrite would remove: give one of them")
    with session(as_json) as terminal:
        if not Path(recipe).is_dir():  # with --resume it may be a run folder
            from tunesmith.recipe_file import read_recipe

            read_recipe(recipe, overrides or [])  # a mistake in it is reported before torch has been imported
        if dry_run:
            _show_settings(recipe, overrides or [], terminal)
            return
        from tunesmith import finetune

        result = finetune.train(recipe, overrides or [], resume=resume, overwrite=overwrite, listener=terminal)
        terminal.write(verdict_line(result.verdict))
        for line in metrics_table(result.metrics) if result.metrics else []:
            terminal.write(line)
        terminal.write(f"The run is {result.run}. Next: tunesmith runs show {result.run}, tunesmith chat {result.run}")
        terminal.result(result.to_json())


def _show_settings(recipe: str, overrides: list[str], terminal: Terminal) -> None:
    from tunesmith import finetune

    settings = finetune.dry_run(recipe, overrides, listener=terminal)
    for line in settings_table(settings):
        terminal.write(line)
    terminal.result({"settings": [{"key": key, "value": value, "source": source} for key, value, source in settings]})
