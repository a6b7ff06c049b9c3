"""Renders pages from templates: autoescape for every text, values written one way, and no text without an end.

A page extends ``shell.html.j2``, which holds what all pages share: a policy that forbids scripts and everything outside
the file, the style sheet for light, dark, narrow and printed pages, and the macros of ``macros.html.j2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from tunesmith.safe_text import without_known_secrets

TEXT_LIMIT = 2_000
_HERE = "tunesmith.runs.pages"


class Whole(str):
    """A text that a page shows in full."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Head:
    """The first items of a list, and how many there are beyond them."""

    items: Sequence[Any]
    more: int


def head(items: Sequence[Any], limit: int) -> Head | None:
    """The first items of a list; None if it is empty."""
    return Head(items[:limit], max(len(items) - limit, 0)) if items else None


@cache
def page_template(name: str, *packages: str, masked: bool = False) -> Template:
    """A template by its file's name.

    Args:
        name: of the file, which is in the first of these packages that has it, or beside the shell.
        packages: their full names.
        masked: write texts without the secrets in them.
    """

    def source(wanted: str) -> str | None:
        files = (resources.files(package).joinpath(wanted) for package in (*packages, _HERE))
        return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), None)

    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        finalize=_masked if masked else _written,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _masked(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return _written(type(value)(without_known_secrets(value)))
    return _written(value)


def _written(value: Any) -> Any:
    """How a template writes a value: texts cut, numbers grouped, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, Markup | bool | Whole):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.10g}"
    if isinstance(value, str) and len(value) > TEXT_LIMIT:
        return f"{value[:TEXT_LIMIT]} […{len(value) - TEXT_LIMIT:,} more characters]"
    return value
