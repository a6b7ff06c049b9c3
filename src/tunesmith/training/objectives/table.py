"""Chooses a recipe's objective. An objective is a file here, a class in recipe/objectives.py and two lines below."""

from __future__ import annotations

from tunesmith.recipe.objectives import DpoSettings, KtoSettings, OrpoSettings
from tunesmith.recipe.settings import Recipe
from tunesmith.training.objectives.dpo import Dpo
from tunesmith.training.objectives.kto import Kto
from tunesmith.training.objectives.orpo import Orpo
from tunesmith.training.objectives.preference import PreferenceObjective


def preference_objective(recipe: Recipe) -> PreferenceObjective | None:
    """The recipe's preference objective, or None for supervised fine-tuning."""
    settings = recipe.objective
    if isinstance(settings, DpoSettings):
        return Dpo(settings)
    if isinstance(settings, OrpoSettings):
        return Orpo(settings)
    if isinstance(settings, KtoSettings):
        training = recipe.training
        group = training.per_device_train_batch_size or training.batch_size
        return Kto(settings, group=group, longest=recipe.data.max_length)
    return None
