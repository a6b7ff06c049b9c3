"""Arguments and flags that several commands share."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from tunesmith.data.examples.column_names import ColumnsUnclear
from tunesmith.data.examples.column_values import is_template
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.generation import GenerationSettings, checked_setting
from tunesmith.recipe.paths import local
from tunesmith.recipe.row_shape import READING, RowShape
from tunesmith.runs.drift import KINDS

BUILT_IN_PROBE = "built-in"
TargetArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="A run, a checkpoint, an adapter folder or a model.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys, such as training.learning_rate=1e-4."),
]
GenerationKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help=f"Settings of generation: {', '.join(field.name for field in fields(GenerationSettings))}.",
    ),
]
ReadingKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="How the files are read: data.delimiter, data.encoding, data.header, data.key, data.sample_by or "
        "data.sheet.",
    ),
]
EvaluationKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys of the recipe's evaluation section, such as max_rows=50. With --data also data.KEY=VALUE: how its "
        "rows are read, such as data.columns.prompt=question.",
    ),
]
AskProbe = Annotated[
    str | None,
    typer.Option(
        "--probe",
        metavar="[FILE]",
        help="Also ask both models the questions of the built-in probe, or of FILE (.jsonl), to see what was lost.",
        show_default="as the run's recipe says",
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base model, if it is not where the run or adapter says.",
        show_default="as the run or adapter says",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
AllowFunctions = Annotated[
    bool,
    typer.Option(
        "--allow-functions",
        help="Let the recipe of a stored run name functions to run, a judge to ask, tasks, and rows anywhere.",
    ),
]
AllowChanges = Annotated[
    str | None,
    typer.Option(
        "--allow-changes",
        metavar="KIND,...",
        help=f"Go on although these have changed since the run began: {', '.join(KINDS)}, or all. It is recorded.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="End standard output with one JSON object; everything else goes to standard error."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite existing output.")]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="The system message.", show_default=False)
]
RawOption = Annotated[
    bool, typer.Option("--raw", help="Leave out the run's instruction, system turn and masks of personal data.")
]
OutputFile = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Where the rows go with their answers: .csv, .tsv, .jsonl, .json, .parquet or .xlsx.",
        show_default=False,
    ),
]
OtherInstruction = Annotated[
    str | None,
    typer.Option(
        "--instruction",
        metavar="TEXT",
        help="An instruction that goes before the message.",
        show_default="the run's data.instruction",
    ),
]
FormatOption = Annotated[
    RowShape,
    typer.Option("--format", metavar="FORMAT", help=f"Format of the rows: {', '.join(get_args(RowShape))}."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="The column that holds each field, such as input=text,output=category. A path (answer.text) names a nested"
        " value, and a template ('{subject}\\n\\n{body}') joins several.",
        show_default=False,
    ),
]
InstructionOption = Annotated[
    str | None,
    typer.Option("--instruction", metavar="TEXT", help="An instruction for all rows.", show_default=False),
]

_READING_KEY = re.compile(rf'set data\.({"|".join(("sample_by", *READING))}): ("[^"]*"|[^\s,;]+)')
_COLUMNS = re.compile(r"data\.columns: \{((?:[^{}]|\{[^{}]*\})*)\}")
_SET_COLUMNS = re.compile(f"set {_COLUMNS.pattern}")
_SET_BOTH = re.compile(rf"set data\.(header): (true|false) and {_COLUMNS.pattern}")
_SET_FORMAT = re.compile(r"set data\.format: (\w+)")
_KEY_AND_VALUE = re.compile(r'(data\.\w+)(?:: |=)(\{(?:[^{}]|\{[^{}]*\})*\}|"[^"]*"|[^\s,]+)')


def generation_settings(arguments: Sequence[str] | None) -> dict[str, Any]:
    """``["max_new_tokens=64", "do_sample=true"]`` as keyword arguments of GenerationSettings.

    Raises:
        RecipeError: an argument is not KEY=VALUE, its name is unknown or given twice, or its value is of another type,
            out of bounds or contradicts another.
    """
    from tunesmith.recipe.file import parse_override

    found: dict[str, Any] = {}
    for argument in arguments or []:
        path, value = parse_override(argument, example="max_new_tokens=64")
        name = ".".join(map(str, path))
        if name in found:
            raise RecipeError(f"`{name}` is given twice", where=argument, remedy="Give it once.")
        found[name] = checked_setting(name, value, shown=repr(argument.partition("=")[2]), where=argument)
    GenerationSettings(**found)  # raises for what is out of bounds or contradictory
    return found


def reading_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """KEY=VALUE arguments: those of the data section, and the others."""
    of_data = [argument for argument in arguments or () if argument.startswith("data.")]
    return of_data, [argument for argument in arguments or () if argument not in of_data]


def in_arguments(error: DataError) -> DataError:
    """The same error with a remedy that can be pasted: ``data.columns: {a: b}`` becomes ``'data.columns={a: b}'``."""
    remedy = error.remedy
    if remedy is not None:
        remedy = _KEY_AND_VALUE.sub(
            lambda found: shlex.quote(f"{found[1]}={found[2]}"), remedy.replace("set data.", "add data.")
        )
    return DataError(error.what, where=error.where, why=error.why, remedy=remedy)


def in_flags(error: DataError, command: str = "") -> DataError:
    """The same error with a remedy that names flags: ``data.columns: {a: b}`` becomes ``--columns a=b``, and so on.

    What is said of how a file is read (``set data.encoding: cp1252``) becomes the ``command`` with that argument.
    """
    if error.remedy is None:
        return error
    remedy = error.remedy
    before = f"run `{command} " if command else "add `"
    remedy = _SET_BOTH.sub(
        lambda found: f"{before}{_as_argument(found[1], found[2])} --columns {_pairs(found[3])}`", remedy
    )
    if command:
        remedy = _SET_FORMAT.sub(lambda found: f"run `{command} --format {found[1]}`", remedy)
        remedy = _SET_COLUMNS.sub(lambda found: f"run `{command} --columns {_pairs(found[1])}`", remedy)
    remedy = _COLUMNS.sub(lambda found: f"--columns {_pairs(found[1])}", remedy)
    remedy = _SET_FORMAT.sub(lambda found: f"{before}--format {found[1]}`", remedy)
    for key in ("format", "instruction"):
        remedy = re.sub(rf"data\.{key}(: ?)?", lambda found, key=key: f"--{key}{' ' if found[1] else ''}", remedy)
    remedy = _READING_KEY.sub(lambda found: f"{before}{_as_argument(found[1], found[2])}`", remedy)
    if isinstance(error, ColumnsUnclear):
        proposal = error.proposal
        return ColumnsUnclear(error.what, where=error.where, why=error.why, remedy=remedy, proposal=proposal)
    return DataError(error.what, where=error.where, why=error.why, remedy=remedy)


@contextmanager
def remedies_in_flags(data: str, command: str = "") -> Iterator[None]:
    """Makes errors about rows name flags, unless ``data`` is a recipe, whose errors name its keys.

    ``command``: the whole command as it was given, to which a remedy adds an argument.
    """
    try:
        yield
    except DataError as error:
        if data.endswith((".yaml", ".yml")):
            raise
        raise in_flags(error, command) from None


def _as_argument(key: str, value: str) -> str:
    return shlex.quote(f"data.{key}={value.strip(chr(34))}")


def _pairs(mapping: str) -> str:
    text = ",".join("=".join(part.strip() for part in pair.split(":", 1)) for pair in mapping.split(","))
    return f"'{text}'" if re.search(r"[^\w=,.-]", text) else text


def parse_columns(text: str | None) -> dict[str, str]:
    r"""``input=text,output=category`` as a mapping of field to column. Raises typer.BadParameter for any other form.

    A template may hold commas, and ``\n`` is a line end in it. A mapping in braces is read as in a recipe.
    """
    if text and text.strip().startswith("{"):
        return _columns_as_in_a_recipe(text)
    found: dict[str, str] = {}
    for pair in re.split(r",(?=[^,{}=]*=)" if is_template(text or "") else ",", text) if text else []:
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not (field and equals and column):
            raise typer.BadParameter(f"{pair!r} is not FIELD=COLUMN", param_hint="--columns")
        if field in found:
            raise typer.BadParameter(f"{field} is given twice", param_hint="--columns")
        found[field] = column.replace("\\n", "\n").replace("\\t", "\t") if is_template(column) else column
    return found


def _columns_as_in_a_recipe(text: str) -> dict[str, str]:
    from tunesmith.recipe.file import parse_override

    try:
        _, columns = parse_override(f"data.columns={text.strip()}")
    except RecipeError as error:
        raise typer.BadParameter(f"{text} is not {{FIELD: COLUMN, ...}}: {error.why}", param_hint="--columns") from None
    if not isinstance(columns, dict) or not all(isinstance(column, str) for column in columns.values()):
        raise typer.BadParameter(f"{text} is not {{FIELD: COLUMN, ...}}", param_hint="--columns")
    return columns


def written_columns(columns: Mapping[str, str]) -> str:
    r"""The mapping as an argument of ``--columns``; a line end of a template is written ``\n``."""
    return ",".join(f"{field}={column}".replace("\n", "\\n") for field, column in columns.items())


class KeyCommand(TyperCommand):
    """A command that takes KEY=VALUE. An unknown flag that names a key is told how to write that key."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises typer.BadParameter for such a flag, as in ``--learning-rate 1e-4``."""
        known = {name for each in self.get_params(ctx) for name in (*each.opts, *each.secondary_opts)}
        for argument in args[: args.index("--") if "--" in args else None]:
            flag = argument.partition("=")[0]
            if not flag.startswith("--") or flag in known:
                continue
            from tunesmith.recipe.complaints import key_meant

            key = key_meant(flag)
            if key is not None:
                raise typer.BadParameter(f"there is no flag {flag}. Settings are KEY=VALUE: did you mean {key}=VALUE?")
        return super().parse_args(ctx, args)


class ProbeCommand(KeyCommand):
    """A command whose ``--probe`` may stand without a file: then it means the built-in probe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives a bare ``--probe`` its value. What follows it is its file only if it is named like one or is one."""
        given = []
        for number, argument in enumerate(args):
            given.append(argument)
            if argument == "--probe" and not _is_probe_file(args[number + 1 : number + 2]):
                given.append(BUILT_IN_PROBE)
        return super().parse_args(ctx, given)


def _is_probe_file(following: Sequence[str]) -> bool:
    return any(name.endswith((".jsonl", ".json")) or os.path.isfile(local(name)) for name in following)


def asked_probe(value: str | None) -> bool | str | None:
    """The value of ``--probe`` as ``evaluate`` takes it; None where the flag is not given."""
    return True if value == BUILT_IN_PROBE else value
