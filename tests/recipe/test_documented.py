"""Every key of a recipe stands in a page of docs, as code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tunesmith.recipe.reference import models_in, reference_page
from tunesmith.recipe.settings import Recipe

CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
GENERATED = "cli.md"


def keys(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Every key as (dotted path, its own name)."""
    for name, field in section.model_fields.items():
        inner = list(models_in(field.annotation))
        yield f"{place}{name}", name
        for each in inner:
            yield from keys(each, f"{place}{name}.")


@pytest.fixture(scope="module")
def code(request: pytest.FixtureRequest) -> str:
    """All code of all pages, and of the README."""
    root = request.config.rootpath
    pages = [root / "README.md", *(page for page in sorted(Path(root / "docs").glob("*.md")) if page.name != GENERATED)]
    return "\n".join(found for page in pages for found in CODE.findall(page.read_text(encoding="utf-8")))


def test_every_key_of_a_recipe_stands_in_a_page(code: str) -> None:
    words = set(re.findall(r"\w+", code))
    assert sorted({path for path, name in keys(Recipe) if name not in words}) == []


def test_the_keys_of_all_methods_and_objectives_are_looked_at() -> None:
    found = {path for path, _ in keys(Recipe)}
    assert {"method.r", "method.trainable_layers", "objective.beta", "data.clean.mask_pii", "data.train.path"} <= found


def test_the_page_of_all_keys_is_current(pytestconfig: pytest.Config) -> None:
    page = (pytestconfig.rootpath / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == reference_page(), "run: python -m tunesmith.recipe.reference > docs/recipe.md"
