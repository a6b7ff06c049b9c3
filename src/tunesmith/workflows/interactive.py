"""`init`, `check`, `prepare` and `runs` for Python and notebooks, with the objects that the commands use."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data.files.given_rows import is_rows
from tunesmith.deploy.report import files
from tunesmith.errors import RecipeError
from tunesmith.recipe.row_shape import RowShape
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.from_python import heard_by
from tunesmith.runs.notebook import html_table
from tunesmith.runs.outputs import RECIPE_MARK, check_file, write_output
from tunesmith.runs.overview import Details, Summary, details, summaries
from tunesmith.runs.progress import Listener
from tunesmith.runs.surroundings import library_call
from tunesmith.runs.whole_files import place_for
from tunesmith.workflows.check import Inspection, inspect
from tunesmith.workflows.first_recipe import Starter, refuse_missing_rows, starter_recipe
from tunesmith.workflows.given_data import Names, given, kept, with_files
from tunesmith.workflows.in_python import remedies_in_python
from tunesmith.workflows.prepare_data import PreparedData, prepare_data

GOES = (
    "The rows are removed when this program ends, but for those of a run that trained on them. To keep them with the "
    'recipe, set out="recipe.yaml".'
)


@library_call()
@remedies_in_python()
def init(
    data: Any,
    out: str | Path | None = None,
    *,
    model: str | None = None,
    method: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Starter:
    """A commented recipe for some rows. ``tunesmith.train(starter.recipe)`` trains from it.

    Args:
        data: a path or URL, a list of dicts, a DataFrame of pandas or polars, or a datasets.Dataset.
        out: the file to write it to. Rows that are no file are then kept beside it, in ``<name>.rows``. Without it they
            are removed when this program ends, and a run that trains on them keeps them beside itself.
        model: hub id, folder or bundled name; the bundled one by default.
        method: lora by default, or qlora if lora does not fit.
        format: format of the rows; found from them by default.
        columns: field to column.
        instruction: one instruction for all rows.
        overrides: ``key=value`` of the data section, about how files are read.
        overwrite: replace the file.

    Raises:
        TunesmithError: the data cannot be read, or the file is there already.
    """
    file = None if out is None else place_for(out)
    if not is_rows(data):
        refuse_missing_rows(os.fspath(data), overrides)
    if file is not None:
        again = "Set overwrite=True, or name another"
        names: dict[str, Any] = {"kind": RecipeError, "flag": "out", "others": again}
        check_file(file, inputs=[data, model], overwrite=overwrite, mark=RECIPE_MARK, **names)
    folder, name = (None, "rows") if file is None else (file.with_suffix(".rows"), file.stem)
    with kept(data, folder, name) as (path, rows), remedies_in_python(of_rows=True, reading="overrides", stored=rows):
        made = starter_recipe(
            path,
            model=model,
            method=method,
            format=format,
            columns=columns,
            instruction=instruction,
            overrides=overrides,
            name=name if file is not None and rows else None,
        )
        if file is not None:
            write_output(file, RECIPE_MARK + made.text, mark=RECIPE_MARK if overwrite else None)
        elif rows:
            made = replace(made, warnings=(*made.warnings, GOES))
    return made


@library_call()
def check(
    data: Any,
    settings: Sequence[str] = (),
    *,
    model: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    against: Any = None,
    near: bool = True,
    show: int = 0,
    trust_remote_code: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
) -> Inspection:
    """Every row looked at: findings, lengths, labels, and with a model the tokens that are learned.

    Args:
        data: a path or URL, a list of dicts, a DataFrame, a datasets.Dataset, or a recipe: a YAML file, a mapping or a
            Recipe.
        settings: ``key=value`` over the data section.
        model: whose tokenizer and chat template are used; a recipe names its own.
        format: format of the rows; with columns and instruction, on top of the recipe's.
        columns: field to column.
        instruction: one instruction for all rows.
        against: rows that should not be among them.
        near: look for near duplicates.
        show: training rows to hand back as tokens; needs a model.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.

    Raises:
        TunesmithError: the data cannot be read, or no row is good.
    """
    other: str | None = None
    with ExitStack() as stack:
        source, names = stack.enter_context(_named(data))
        if against is not None:
            other, others = stack.enter_context(given(against))
            names = {**names, **others}
        found = inspect(
            source,
            settings=settings,
            model=model,
            format=format,
            columns=columns,
            instruction=instruction,
            against=other,
            near=near,
            show=show,
            trust_remote_code=trust_remote_code,
            listener=heard_by(listener, progress),
        )
    for file in names:  # it is gone now
        found.sources = _without(found.sources, f"{file.parent}{os.sep}")
    return found


def _without(value: Any, text: str) -> Any:
    """The value of JSON without some text."""
    if isinstance(value, Mapping):
        return {key: _without(item, text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without(item, text) for item in value]
    return value.replace(text, "") if isinstance(value, str) else value


@library_call()
def prepare(
    data: Any,
    out: str | Path,
    settings: Sequence[str] = (),
    *,
    model: str | None = None,
    format: RowShape = "auto",
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
    listener: Listener | None = None,
) -> PreparedData:
    """Cleans and splits rows, and writes a ``datasets`` folder with a card and the rows that were left out.

    Args:
        data: a path or URL, a list of dicts, a DataFrame, a datasets.Dataset, or a recipe: a YAML file, a mapping or a
            Recipe.
        out: the folder.
        settings: ``key=value`` over the data section, such as ``clean=[dedupe]``.
        model: whose tokenizer counts tokens.
        format: format of the rows.
        columns: field to column.
        instruction: one instruction for all rows.
        overwrite: replace a dataset that is in the folder.
        trust_remote_code: run code that comes with the model, also where a stored recipe asks for it.
        progress: show the progress: a bar in a notebook, lines on standard error elsewhere.
        listener: hears the progress in place of it.

    Raises:
        TunesmithError: the data cannot be read, or the folder cannot be written.
    """
    with _named(data) as (source, _):
        return prepare_data(
            source,
            os.fspath(out),
            settings=settings,
            model=model,
            format=format,
            columns=columns,
            instruction=instruction,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            listener=heard_by(listener, progress),
        )


@contextmanager
def _named(data: Any) -> Iterator[tuple[str | Mapping[str, Any] | Recipe, Names]]:
    """What `check` and `prepare` read, with the names of files of rows.

    Errors of rows or of a file of rows name the arguments of the function.
    """
    if isinstance(data, Mapping | Recipe) and not is_rows(data):
        with remedies_in_python(), with_files(data) as found:
            yield found
        return
    with given(data) as (path, rows), remedies_in_python(of_rows=not path.endswith((".yaml", ".yml")), stored=rows):
        yield path, rows


class RunList(list[Summary]):
    """Runs, the way `tunesmith runs list` shows them."""

    def _repr_html_(self) -> str:
        header = ("run", "status", "step", "verdict", "metric", "base", "tuned", "updated")
        return html_table(header, ([getattr(run, name) for name in header] for run in self))


def list_runs(folder: str | Path = "runs") -> RunList:
    """The runs in a folder and one level below, with status and verdict. Raises RunError if there is no such folder."""
    return RunList(summaries(folder))


def show_run(run: str | Path) -> Details:
    """All about a run. Raises RunError if there is none in this folder, or its files are damaged."""
    return details(run)


@remedies_in_python()
def report_run(run: str | Path, *, html: str | Path | None = None, card: str | Path | None = None) -> list[Path]:
    """Writes the report and the model card of a run, into its folder if no file is named. Gives the written files.

    Args:
        run: the run folder.
        html: the file for the report, one HTML page that needs nothing else.
        card: the file for the model card, Markdown with the metadata that model hubs read.

    Raises:
        TunesmithError: there is no run, its files are damaged, or a file cannot be written or is not Tunesmith's.
    """
    return files.report_run(run, html=html, card=card)
