"""The commands `init`, `check` and `prepare`: write a recipe for data, check it, and clean it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.options import (
    AsJson,
    ColumnsOption,
    FormatOption,
    InstructionOption,
    Overwrite,
    ReadingKeys,
    TrustRemoteCode,
    in_flags,
    parse_columns,
    remedies_in_flags,
    written_columns,
)
from tunesmith.cli.terminal.console import Styled, Terminal
from tunesmith.cli.terminal.session import session
from tunesmith.cli.terminal.tables import bars, table
from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.files.rows import by_reason
from tunesmith.data.ledger import OUTCOMES
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.paths import shown
from tunesmith.runs.outputs import RECIPE_MARK, check_file, is_standard_output, write_output
from tunesmith.runs.whole_files import place_for, why_not
from tunesmith.safe_text import one_line

if TYPE_CHECKING:
    from tunesmith.data.examples.column_names import Proposal
    from tunesmith.data.finding import Finding
    from tunesmith.workflows.check import Inspection
    from tunesmith.workflows.first_recipe import Starter


RECIPE = "recipe.yaml"  # that init writes
BAD_ROWS_SHOWN, PLACES_SHOWN, SAMPLES_SHOWN, MIX_SHOWN, RAREST_SHOWN = 20, 5, 2, 6, 5
_SEVERITY_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}

Data = Annotated[str, typer.Argument(metavar="DATA", help="Rows: a file, folder, dataset or URL.", show_default=False)]
DataOrRecipe = Annotated[
    str,
    typer.Argument(metavar="DATA|RECIPE", help="Rows, or a recipe (.yaml) that names them.", show_default=False),
]


def init(
    data: Data,
    overrides: ReadingKeys = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Hub id, folder, .gguf file or the name of the bundled model.",
            show_default="the bundled model",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="The method to train with, such as qlora or full.",
            show_default="lora, or qlora if lora does not fit",
        ),
    ] = None,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The recipe to write.")] = RECIPE,
    columns: ColumnsOption = None,
    instruction: InstructionOption = None,
    format: FormatOption = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="Accept the columns that `init` proposes.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Look at a data file and write a recipe for it.

    The values depend on the rows, the model and the machine. The recipe comments each value with the reason for it.
    """
    mapping = parse_columns(columns)
    with session(as_json) as terminal:
        file = place_for(out)
        from tunesmith.data.finding import rows_in_words
        from tunesmith.workflows.first_recipe import refuse_missing_rows, starter_recipe

        refuse_missing_rows(data, overrides or ())
        check_file(file, inputs=[data, model], overwrite=overwrite, mark=RECIPE_MARK, kind=RecipeError)

        def again(*keys: str, **flags: str | None) -> str:
            """The command as it was given, with more."""
            given = {
                "model": model,
                "method": method,
                "instruction": instruction,
                "format": None if format == "auto" else format,
            }
            given |= flags
            said = (part for name, value in given.items() if value is not None for part in (f"--{name}", value))
            words = ["tunesmith", "init", data, *(overrides or ()), *keys, *said]
            return shlex.join([*words, *(["--out", out] if out != RECIPE else []), *["--overwrite"] * overwrite])

        def start(mapped: dict[str, str], keys: tuple[str, ...] = ()) -> Starter:
            with remedies_in_flags(data, command=again()):
                return starter_recipe(
                    data,
                    model=model,
                    method=method,
                    format=format,
                    columns=mapped,
                    instruction=instruction,
                    overrides=(*(overrides or ()), *keys),
                )

        try:
            starter = start(mapping)
        except ColumnsUnclear as error:
            if error.proposal is None:
                raise
            accept = yes or (not as_json and _confirmed(error.proposal, terminal))
            if not accept:
                whole = again(*error.proposal.keys, columns=written_columns(error.proposal.columns))
                raise _refusal(error, error.proposal, whole, again()) from None
            starter = start(dict(error.proposal.columns), error.proposal.keys)
            terminal.write(f"Columns: {error.proposal.reason}.")
            for sample in error.proposal.samples if yes else ():
                terminal.write(f"  {sample}")
        _write(file, RECIPE_MARK + starter.text, inputs=[data], overwrite=overwrite)
        terminal.write(f"{rows_in_words(starter.rows)}: {starter.reason}")
        if starter.bad:
            rows, them = ("row", "it") if starter.bad == 1 else ("rows", "them")
            terminal.warn(f"{starter.bad:,} {rows} cannot be used: `tunesmith check {out}` lists {them}.")
        for warning in starter.warnings:
            terminal.warn(warning)
        terminal.write(f"Wrote {out}. Next: `tunesmith check {out} --show 3`, then `tunesmith train {out}`")
        terminal.result(
            {
                "recipe": out,
                "model": starter.model,
                "output_dir": starter.output_dir,
                "rows": starter.rows,
                "bad": starter.bad,
                "format": starter.shape,
                "metrics": starter.metrics,
                "method": starter.method,
                "parameters": starter.parameters,
                "choices": [{"key": key, **asdict(choice)} for key, choice in starter.choices.items()],
            }
        )


def _confirmed(proposal: Proposal, terminal: Terminal) -> bool:
    """Shows the proposed columns and asks; in a pipe nobody answers, so the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    terminal.write(f"{proposal.reason[0].upper()}{proposal.reason[1:]}:")
    for sample in proposal.samples:
        terminal.write(f"  {sample}")
    return typer.confirm("Train the model to answer the first with the second?", err=True)


def _refusal(error: ColumnsUnclear, proposal: Proposal, command: str, given: str) -> DataError:
    """The error with the proposal, the command that accepts it, and what to do with the given one otherwise."""
    otherwise = in_flags(DataError(error.what, remedy=proposal.otherwise or error.remedy), given).remedy
    return DataError(
        error.what,
        where=error.where,
        why="\n".join([f"{proposal.reason}:", *(f"  {sample}" for sample in proposal.samples)]),
        remedy=f"if that is right, run `{command}` or add --yes; otherwise {otherwise}",
    )


def _write(
    file: Path, content: str, *, what: str = "recipe", inputs: Sequence[object] = (), overwrite: bool = True
) -> None:
    """Replaces a file that Tunesmith wrote, or makes a new one. A report that is made again replaces the last one."""
    flag = "--out" if what == "recipe" else "--html"
    mark = RECIPE_MARK if what == "recipe" else None
    check_file(file, inputs=inputs, overwrite=overwrite, mark=mark, kind=RecipeError, flag=flag)
    try:
        write_output(file, content, mark=mark if overwrite else None)
    except OSError as error:
        raise RecipeError(
            f"The {what} cannot be written",
            where=str(file),
            why=why_not(file, error),
            remedy=f"Name another file with {flag}.",
        ) from None


def check(
    data: DataOrRecipe,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the data section, such as encoding=cp1250 or sheet=Rows."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The model whose tokenizer counts the tokens.", show_default="the recipe's"
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, metavar="N", help="Rows to show as tokens. Needs a model.")] = 0,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="DATA", help="Rows that must not be in the data, such as a test set."),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Also write the report as an HTML page.")
    ] = None,
    no_near: Annotated[
        bool, typer.Option("--no-near", help="Skip the search for near duplicates, which takes time.")
    ] = False,
    format: FormatOption = "auto",
    columns: ColumnsOption = None,
    instruction: InstructionOption = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Check every row for problems.

    With a model it also counts tokens and shows which of them are learned. The exit code is 1 if there are errors.
    """
    mapping = parse_columns(columns)
    if show and model is None and not data.endswith((".yaml", ".yml")):
        raise typer.BadParameter("rows are shown as tokens, which needs a model: add --model", param_hint="--show")
    with session(as_json) as terminal:
        page = None if html is None else place_for(html)
        if page is not None:
            check_file(page, inputs=[data, against, model], overwrite=True, kind=RecipeError, flag="--html")
            if is_standard_output(page):
                terminal.leave_standard_output()
        from tunesmith.workflows.check import inspect

        with remedies_in_flags(data, command=f"tunesmith check {shlex.quote(data)}"):
            found = inspect(
                data,
                settings=settings or [],
                model=model,
                format=format,
                columns=mapping,
                instruction=instruction,
                against=against,
                near=not no_near,
                show=show,
                trust_remote_code=trust_remote_code,
                listener=terminal,
            )
        _report(found, terminal)
        report = found.to_json() if as_json or page is not None else {}
        if page is not None:
            from tunesmith.data.report.page import data_report

            read = [file["path"] for source in found.sources for file in source["files"]]
            _write(page, data_report(report, title=shown(data)), what="report", inputs=[data, against, *read])
            terminal.write(f"Wrote {html}")
        terminal.result(report)
        if not found.is_good:
            raise typer.Exit(1)


def prepare(
    data: DataOrRecipe,
    out: Annotated[str, typer.Option("--out", metavar="FOLDER", help="The folder to write.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Keys of the data section, such as clean=[dedupe] or test=0.1."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model whose tokenizer counts tokens for max_length.",
            show_default="the recipe's",
        ),
    ] = None,
    format: FormatOption = "auto",
    columns: ColumnsOption = None,
    instruction: InstructionOption = None,
    ray: Annotated[bool, typer.Option("--ray", help="Check the rows on a Ray cluster.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Clean rows, split them, and write them as a `datasets` folder.

    By default no row is removed; `clean` names what to remove. Every row that is left out is written to rejected.jsonl.
    """
    mapping = parse_columns(columns)
    with session(as_json) as terminal:
        from tunesmith.workflows.prepare_data import prepare_data

        with remedies_in_flags(data):
            made = prepare_data(
                data,
                out,
                settings=settings or [],
                model=model,
                format=format,
                columns=mapping,
                instruction=instruction,
                ray=ray,
                overwrite=overwrite,
                trust_remote_code=trust_remote_code,
                listener=terminal,
            )
        for line in made.ledger.in_words():
            terminal.write(line)
        splits = ", ".join(f"{name} {rows:,}" for name, rows in made.splits.items())
        terminal.write(f"Wrote {out}: {splits} rows. Next: `tunesmith init {out}`")
        terminal.result(made.to_json())


def _report(found: Inspection, terminal: Terminal) -> None:
    if found.shown and found.tokenizer is not None:
        from tunesmith.data.chat.show import show

        show(found.shown, found.tokenizer, console=terminal.rich_console())
        terminal.write("")
    terminal.write(found.judgement)
    for note in found.notes:
        terminal.write(note)
    _report_ledger(found, terminal)
    at = found.lengths["quantiles"]
    terminal.write(
        f"{found.lengths['unit']} of a row: {at['min']:,} to {at['max']:,}, half below {at['p50']:,}, "
        f"95% below {at['p95']:,}; the longest is {found.lengths['longest']}"
    )
    for line in bars(found.lengths["histogram"]):
        terminal.write(f"  {line}")
    if found.labels is not None:
        from tunesmith.data.finding import rows_in_words

        counts = found.labels["counts"]
        named = [f"{one_line(each['label'])} ({each['rows']:,})" for each in counts]
        rarest = f"; the rarest: {', '.join(named[1:][-RAREST_SHOWN:][::-1])}" if len(named) > 1 else ""
        spread = f"the most frequent: {named[0]}{rarest}"
        if len(named) > 1 and len({each["rows"] for each in counts}) == 1:
            shown = [one_line(each["label"]) for each in counts[: RAREST_SHOWN + 1]]
            more = ", ..." if len(counts) > len(shown) else ""
            spread = f"each in {rows_in_words(counts[0]['rows'])}: {', '.join(shown)}{more}"
        terminal.write(f"labels: {found.labels['distinct']:,} different answers; {spread}")
    terminal.write("scripts: " + _mix(found.scripts))
    if found.languages is not None:
        sampled = found.languages["sampled"]
        rows = "row" if sampled == 1 else "rows"
        terminal.write(f"languages in a sample of {sampled:,} {rows}: " + _mix(found.languages["counts"]))
    reasons = by_reason(found.bad)
    for rows, said in reasons[:BAD_ROWS_SHOWN]:
        title = "bad row" if rows == 1 else f"{rows:,} bad rows:"
        terminal.write(Styled(title, "red"), f" {said}")
    if len(reasons) > BAD_ROWS_SHOWN:
        terminal.write(f"and {len(reasons) - BAD_ROWS_SHOWN:,} more reasons (--json lists all bad rows)")
    for finding in found.findings:
        _report_finding(finding, terminal)
    terminal.write("Ready to train." if found.is_good else "Not ready: fix the errors above first.")


def _report_ledger(found: Inspection, terminal: Terminal) -> None:
    ledger, total = found.ledger, found.ledger.total
    names = [
        "read",
        *(place for place in OUTCOMES if getattr(total.rows, place)),
        *(name for name in ("truncated", "split", "blocks") if getattr(total, name)),
    ]
    rows = [
        (
            f"rows of {path}",
            *(getattr(account.rows if name in ("read", *OUTCOMES) else account, name) for name in names),
        )
        for path, account in ledger.sources.items()
    ]
    if ledger.tokenized:
        for unit, counts in (("tokens", total.tokens), ("supervised tokens", total.supervised)):
            rows.append((unit, *(getattr(counts, name, "") for name in names)))
    for line in table(
        ("", *(name.replace("_", " ") for name in names)), rows, right=range(1, len(names) + 1), width=terminal.columns
    ):
        terminal.write(line)


def _mix(counts: list[dict[str, Any]]) -> str:
    total = sum(each["rows"] for each in counts)
    return ", ".join(f"{each['name']} {each['rows'] / total:.1%}" for each in counts[:MIX_SHOWN])


def _report_finding(finding: Finding, terminal: Terminal) -> None:
    places = finding.rows[:PLACES_SHOWN]
    more = ", ..." if finding.count > PLACES_SHOWN else ""
    where = f" ({', '.join(places)}{more})" if places else ""
    severity = Styled(finding.severity, _SEVERITY_COLOURS[finding.severity])
    terminal.write(severity, f" {finding.id}: {finding.message}{where}")
    for sample in finding.samples[:SAMPLES_SHOWN]:
        terminal.write(f"  {sample.row}: {sample.text}")
    terminal.write(f"  {finding.remedy}")
