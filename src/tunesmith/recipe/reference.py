"""Writes docs/recipe.md, every key of a recipe, from the settings: ``python -m tunesmith.recipe.reference``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tunesmith.recipe.settings import Recipe

INTRODUCTION = """# The keys of a recipe

Made by `python -m tunesmith.recipe.reference > docs/recipe.md`; a test compares this page with the settings.

A recipe is YAML. `tunesmith init DATA` writes one, and every key can be given to `train` as `KEY=VALUE`. Keys that are
left out have the defaults below; `auto` is resolved before training, and `tunesmith train RECIPE --dry-run --all` shows
every value with its source. Names of other tools that are accepted (`evaluation_strategy`, `warmup_ratio`, ...) become
the names below, which is reported.
"""
MEANINGS = {
    "name": "which of the variants of this section",
    "adam_beta1": "decay of the mean of gradients, for optimizers of Adam's kind",
    "adam_beta2": "decay of the mean of squared gradients, for optimizers of Adam's kind",
    "adam_epsilon": "added to the denominator, for optimizers of Adam's kind",
    "seed": "of what is drawn at random",
    "do_sample": "sample answers instead of the likeliest tokens",
    "temperature": "of sampling; lower is closer to the likeliest tokens",
    "top_p": "sample among the likeliest tokens that together have this probability",
}


def reference_page() -> str:
    """The whole of docs/recipe.md."""
    parts = [INTRODUCTION]
    for title, section in _sections(Recipe, "", "The recipe").items():
        rows = [_row(name, field) for name, field in section.model_fields.items()]
        parts.append("\n".join([f"## {title}\n", "| key | default | meaning |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _sections(section: type[BaseModel], place: str, title: str) -> dict[str, type[BaseModel]]:
    """Every section by its dotted path, and by its name if it is one of several variants."""
    found = {title: section}
    for name, field in section.model_fields.items():
        inner = list(dict.fromkeys(models_in(field.annotation)))
        for each in inner:
            variant = f": {each.model_fields['name'].default}" if len(inner) > 1 else ""
            more = _sections(each, f"{place}{name}.", f"{place}{name}{variant}")
            found |= {key: value for key, value in more.items() if value not in found.values()}
    return found


def _row(name: str, field: Any) -> str:
    meaning = field.description or MEANINGS.get(name) or f"see {name} below"
    return f"| `{name}` | {_default(field)} | {meaning.replace('|', chr(92) + '|')} |"


def _default(field: Any) -> str:
    value = field.default if field.default_factory is None else field.default_factory()
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value, default=str)}`"


if __name__ == "__main__":
    sys.stdout.write(reference_page())
