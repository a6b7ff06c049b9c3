"""Arguments and flags that several commands share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from tunesmith.errors import DataError, RecipeError

INTEGERS = ("max_new_tokens", "max_length", "num_return_sequences", "seed")
NUMBERS = ("temperature", "top_p")
SWITCHES = ("do_sample",)
NAMES = ("max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "num_return_sequences", "seed")


def generation_settings(arguments: Sequence[str] | None) -> dict[str, Any]:
    """``["max_new_tokens=64", "do_sample=true"]`` as keyword arguments of GenerationSettings.

    Raises:
        RecipeError: not KEY=VALUE, an unknown name, one given twice, or a value of another type.
    """
    found: dict[str, Any] = {}
    for argument in arguments or []:
        name, equals, text = argument.partition("=")
        name = name.strip()
        if not equals or not name:
            raise RecipeError(
                "This argument is not KEY=VALUE",
                where=argument,
                remedy="Write it as max_new_tokens=64, without spaces.",
            )
        if name not in NAMES:
            raise _unknown(name, argument)
        if name in found:
            raise RecipeError(f"`{name}` is given twice", where=argument, remedy="Give it once.")
        found[name] = _value(name, text, argument)
    return found


def _unknown(name: str, argument: str) -> RecipeError:
    close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6)
    hint = f"Did you mean `{close[0]}`?" if close else f"The settings are {', '.join(NAMES)}."
    return RecipeError(f"`{name}` is not a generation setting", where=argument, remedy=hint)


def _value(name: str, text: str, argument: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise RecipeError("The value is not YAML", where=argument, why=str(error)) from None
    switch = isinstance(value, bool)
    if name in SWITCHES:
        fits, expected = switch, "true or false"
    elif name in INTEGERS:
        fits, expected = isinstance(value, int) and not switch, "a whole number"
    else:
        fits, expected = isinstance(value, int | float) and not switch, "a number"
    if not fits:
        raise RecipeError(f"`{name}` must be {expected}, found {text!r}", where=argument)
    return float(value) if name in NUMBERS else value


def in_flags(error: DataError) -> DataError:
    """The same error with its remedy said in flags: ``data.columns: {a: b}`` as ``--columns a=b``, and so on."""
    if error.remedy is None:
        return error
    remedy = re.sub(r"data\.columns: \{([^}]*)\}", lambda found: f"--columns {_pairs(found[1])}", error.remedy)
    for key in ("format", "instruction"):
        remedy = re.sub(rf"data\.{key}(: ?)?", lambda found, key=key: f"--{key}{' ' if found[1] else ''}", remedy)
    return DataError(error.what, where=error.where, why=error.why, remedy=remedy)


def _pairs(mapping: str) -> str:
    text = ",".join("=".join(part.strip() for part in pair.split(":", 1)) for pair in mapping.split(","))
    return f"'{text}'" if re.search(r"[^\w=,.-]", text) else text


FormatName = Literal[
    "auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "preference", "unpaired_preference"
]

Target = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="A run, a checkpoint, an adapter folder, or a model.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys, such as training.learning_rate=1e-4."),
]
GenerationKeys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="max_new_tokens, max_length, do_sample, temperature, top_p, num_return_sequences, seed.",
    ),
]
EvaluationKeys = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe's evaluation section, such as max_rows=50."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="End standard output with one JSON object; all else goes to standard error.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.", show_default=False)]
Format = Annotated[
    FormatName,
    typer.Option(
        "--format",
        metavar="SHAPE",
        help="Shape of the rows: auto, alpaca, prompt_completion, messages, sharegpt, text, preference or "
        "unpaired_preference.",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="FIELD=COLUMN,...",
        help="Which column holds which field, such as input=text,output=category.",
        show_default=False,
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option("--instruction", metavar="TEXT", help="One instruction for all rows.", show_default=False),
]


def columns_of(text: str | None) -> dict[str, str]:
    """``input=text,output=category`` as a mapping from field to column. Raises typer.BadParameter if it is not that."""
    found: dict[str, str] = {}
    for pair in (text or "").split(",") if text else []:
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not (field and equals and column):
            raise typer.BadParameter(f"{pair!r} is not FIELD=COLUMN", param_hint="--columns")
        if field in found:
            raise typer.BadParameter(f"{field} is given twice", param_hint="--columns")
        found[field] = column
    return found
