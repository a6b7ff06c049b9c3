"""``KEY=VALUE`` arguments of generation, and the words of a message that was written for a recipe."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

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
