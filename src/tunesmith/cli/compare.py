"""The command `compare`: runs, checkpoints and their base on the same rows."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tunesmith.cli.options import AllowChanges, AllowFunctions, AsJson, BaseModel, TrustRemoteCode, in_arguments
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import comparison_lines
from tunesmith.errors import DataError
from tunesmith.model.weights.recipes import refuse_recipe


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="Runs, checkpoints, adapter folders or models, and KEY=VALUE of the recipe's evaluation section.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Rows to compare on.", show_default="the rows that all runs hold out"
        ),
    ] = None,
    model: BaseModel = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_functions: AllowFunctions = False,
    allow_changes: AllowChanges = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs with each other and with their base.

    All are judged on the rows that each of them holds out, by the evaluation section of the first run. Each pair has a
    verdict, corrected for being several. The result is kept in the first run's folder.
    """
    with session(as_json) as terminal:
        keys = [each for each in targets if "=" in each and not os.path.exists(each)]
        names = [each for each in targets if each not in keys]
        for name in names:
            refuse_recipe(name)
        from tunesmith.workflows.compare import compared

        try:
            found = compared(
                names,
                data=data,
                settings=keys,
                listener=terminal,
                model=model,
                allow_changes=allow_changes or (),
                trust_remote_code=trust_remote_code,
                allow_functions=allow_functions,
            )
        except DataError as error:
            raise error if data is None else in_arguments(error) from None
        for line in comparison_lines(found, width=terminal.columns):
            terminal.write(line)
        terminal.result(dict(found))
