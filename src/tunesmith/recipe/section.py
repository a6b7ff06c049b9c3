"""The base class of every section of a recipe, and the short forms that several settings have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator

from tunesmith.recipe.paths import local


class Settings(BaseModel):
    """Base of every section: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def differs(self, name: str) -> bool:
        """Whether a setting has another value than its default."""
        return getattr(self, name) != type(self).model_fields[name].default


Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""A list of names; a single name can stand without a list."""


UserPath = Annotated[
    str, BeforeValidator(lambda value: local(value) if isinstance(value, str | os.PathLike) else value)
]
"""The name of a file or folder, or of something that is looked up elsewhere."""


def short_for(key: str) -> BeforeValidator:
    """Lets a single text stand for a section: ``model: x`` for ``model: {path: x}`` with the key ``path``."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def variant_name(default: str) -> Discriminator:
    """Tells the variants of a section apart by their ``name``; ``default`` is the one that needs no name."""

    def name_of(value: Any) -> str:
        return value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", default)

    return Discriminator(name_of)
