"""`init` and `check`: the data before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.console import Terminal, printable
from tunesmith.cli.options import AsJson, Columns, Format, Instruction, Overwrite, columns_of
from tunesmith.cli.session import session
from tunesmith.cli.settings import in_flags
from tunesmith.cli.tables import table
from tunesmith.errors import DataError, RecipeError

if TYPE_CHECKING:
    from tunesmith.data.check import Finding
    from tunesmith.inspection import Inspection

BAD_ROWS_SHOWN, PLACES_SHOWN = 20, 5
COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}

Data = Annotated[str, typer.Argument(metavar="DATA", help="File, folder, dataset or URL of rows.", show_default=False)]
DataOrRecipe = Annotated[
    str, typer.Argument(metavar="DATA|RECIPE", help="Rows, or a recipe (.yaml) that names them.", show_default=False)
]


def init(
    data: Data,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Hub id, folder, .gguf file or bundled name.",
            show_default="the bundled one",
        ),
    ] = None,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The recipe to write.")] = "recipe.yaml",
    columns: Columns = None,
    instruction: Instruction = None,
    format: Format = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe for some data.

    It looks at the rows and the machine, and says beside each value why it is what it is.
    """
    mapping = columns_of(columns)
    with session(as_json) as terminal:
        file = Path(out)
        if file.exists() and not overwrite:
            raise RecipeError(
                "There is a recipe already", where=out, remedy="Name another file with --out, or add --overwrite."
            )
        from tunesmith.starter import starter_recipe

        try:
            starter = starter_recipe(data, model=model, format=format, columns=mapping, instruction=instruction)
        except DataError as error:
            raise in_flags(error) from None
        _write(file, starter.text)
        terminal.write(f"{starter.rows:,} rows: {starter.reason}")
        if starter.bad:
            rows, them = ("row", "it") if starter.bad == 1 else ("rows", "them")
            terminal.warn(f"{starter.bad:,} {rows} cannot be used: `tunesmith check {data}` names {them}.")
        terminal.write(f"Wrote {out}. Next: tunesmith check {out} --show 3, then tunesmith train {out}")
        terminal.result(
            {
                "recipe": out,
                "model": starter.model,
                "output_dir": starter.output_dir,
                "rows": starter.rows,
                "bad": starter.bad,
                "format": starter.shape,
                "metrics": starter.metrics,
            }
        )


def _write(file: Path, content: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise RecipeError("The recipe cannot be written", where=str(file), why=error.strerror) from None


def check(
    data: DataOrRecipe,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Count tokens as this model sees them.", show_default="the recipe's"
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="Rows to show as tokens; needs a model.")] = 0,
    format: Format = "auto",
    columns: Columns = None,
    instruction: Instruction = None,
    as_json: AsJson = False,
) -> None:
    """Read every row and say what stands out.

    With a model it also counts tokens and shows which of them would be learned. Exit code 1 for something to mend.
    """
    mapping = columns_of(columns)
    if show and model is None and not data.endswith((".yaml", ".yml")):
        raise typer.BadParameter("rows are shown as tokens: name a model with --model", param_hint="--show")
    with session(as_json) as terminal:
        from tunesmith.inspection import inspect

        try:
            found = inspect(
                data,
                model=model,
                format=format,
                columns=mapping,
                instruction=instruction,
                show=show,
                listener=terminal,
            )
        except DataError as error:
            raise error if data.endswith((".yaml", ".yml")) else in_flags(error) from None
        _report(found, terminal)
        terminal.result(found.to_json())
        if not found.is_good:
            raise typer.Exit(1)


def _report(found: Inspection, terminal: Terminal) -> None:
    if found.shown and found.tokenizer is not None:
        from tunesmith.data.show import show

        show(found.shown, found.tokenizer, console=terminal.rich_console())
        terminal.write("")
    for note in found.notes:
        terminal.write(printable(note))
    names = ("read", "invalid", "too_long", "truncated", "held_out", "trained")
    rows = [(path, *(getattr(counts, name) for name in names)) for path, counts in found.ledger.sources.items()]
    for line in table(("rows of", *(name.replace("_", " ") for name in names)), rows, right=range(1, len(names) + 1)):
        terminal.write(line)
    if found.lengths is not None:
        tokens = found.ledger.tokens
        lengths = f"{found.lengths.median:,}, the longest {found.lengths.longest:,} ({found.lengths.longest_row})"
        terminal.write(f"{tokens.total:,} tokens to train on, {tokens.supervised:,} of them learned")
        terminal.write(f"tokens of a row: {printable(lengths)}")
    for row in found.bad[:BAD_ROWS_SHOWN]:
        terminal.write(f"{terminal.styled('bad row', fg='red')} {printable(str(row))}")
    if len(found.bad) > BAD_ROWS_SHOWN:
        terminal.write(f"and {len(found.bad) - BAD_ROWS_SHOWN:,} more bad rows (--json has all of them)")
    for finding in found.findings:
        _report_finding(finding, terminal)
    terminal.write("Ready to train." if found.is_good else "Not ready: mend what is marked as an error first.")


def _report_finding(finding: Finding, terminal: Terminal) -> None:
    places = finding.rows[:PLACES_SHOWN]
    more = ", ..." if len(finding.rows) > PLACES_SHOWN else ""
    where = f" ({', '.join(places)}{more})" if places else ""
    terminal.write(
        f"{terminal.styled(finding.severity, fg=COLOURS[finding.severity])} {printable(finding.message + where)}"
    )
    terminal.write(f"  {printable(finding.remedy)}")
