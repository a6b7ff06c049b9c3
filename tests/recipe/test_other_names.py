"""Names of other tools: each leads to a key that is there."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe.aliases import ALIASES
from tunesmith.recipe.complaints import key_meant
from tunesmith.recipe.data import CleanSettings
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.objectives import OBJECTIVE_SETTINGS
from tunesmith.recipe.other_names import OTHER_NAMES, plain
from tunesmith.recipe.settings import Recipe

PLAIN: dict[str, Any] = {"model": "m", "data": {"train": "rows.jsonl"}, "output_dir": "out"}


def settings() -> set[str]:
    """The dotted key of every setting and section."""
    found = {*Recipe.model_fields, *(f"data.clean.{name}" for name in CleanSettings.model_fields)}
    sections = {
        name: [field.annotation] for name, field in Recipe.model_fields.items() if name not in ("method", "objective")
    }
    sections |= {"method": [*METHOD_SETTINGS.values()], "objective": [*OBJECTIVE_SETTINGS.values()]}
    for section, classes in sections.items():
        fields = [name for each in classes for name in getattr(each, "model_fields", ())]
        found |= {f"{section}.{name}" for name in fields}
    return found


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_every_name_of_another_tool_leads_to_a_setting_that_is_there(name: str) -> None:
    assert OTHER_NAMES[name] in settings()
    assert name not in settings() and plain(name) == name


def test_a_name_that_is_accepted_elsewhere_leads_there() -> None:
    for alias in ALIASES:
        assert key_meant(alias.name[-1]) in {".".join(alias.name), ".".join(alias.canonical)}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.lr=1e-4", "training.learning_rate"),
        ("lr=1e-4", "training.learning_rate"),
        ("epochs=2", "training.num_train_epochs"),
        ("batch_size=2", "training.batch_size"),
        ("lora_r=8", "method.r"),
        ("lora_alpha=8", "method.lora_alpha"),
        ("max_length=100", "data.max_length"),
        ("training.max_length=100", "data.max_length"),
        ("learning-rate=1e-4", "training.learning_rate"),
        ("training.learning-rate=1e-4", "learning_rate"),
        ("data.max_seq_length=100", "data.max_length"),
        ("model.name=other", "model.path"),
        ("peft.r=8", "method"),
        ("Output-Dir=x", "output_dir"),
    ],
)
def test_an_unknown_key_on_the_command_line_names_the_right_one(override: str, key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(PLAIN, [override])
    assert caught.value.remedy == f"Did you mean `{key}`?"
    assert str(caught.value.where).startswith("flag ")
