"""The size of a model: from what is on this machine, else from its name. Imports torch only if there is a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.model.weights.config_file import read_config
from tunesmith.recipe.paths import local

# 135M, 8B, 1.5b or 8x7B between separators; not the 4 of 4bit, nor the active parameters of 30B-A3B.
IN_NAME = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
UNITS = {"b": 10**9, "m": 10**6}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The number of parameters, None if nothing tells it, and how it is known.

    ``config`` is the model's if a plan can be made with it, and ``folder`` is the folder it lies in. ``fault`` says
    what is wrong with a folder or file that is here and is no model.
    """

    parameters: int | None
    basis: str
    config: Mapping[str, Any] | None = None
    folder: Path | None = None
    fault: str | None = None


def model_size(path: str) -> ModelSize:
    """The size of a folder, a .gguf file, a bundled name or a hub id. Nothing is fetched or converted."""
    location = Path(local(path))
    try:
        if location.is_file() and location.suffix.lower() == ".gguf":
            from tunesmith.model.weights.gguf import parameters_in

            return ModelSize(parameters_in(location), "the file's weights")
        config, folder = read_config(path, fetch=False)
        from tunesmith.planning.shape_from_model import count_parameters, model_config

        parameters = count_parameters(model_config(config, folder=folder, where=path))
        return ModelSize(parameters, "config.json", config, folder)
    except ModelError as error:
        return replace(_by_name(path), fault=str(error) if location.exists() else None)


def _by_name(path: str) -> ModelSize:
    found = IN_NAME.search(path.rstrip("/").rpartition("/")[2])
    if found is None:
        return ModelSize(None, "neither a config nor the name tells it")
    times, number, unit = found.groups()
    return ModelSize(round(int(times or 1) * float(number) * UNITS[unit.lower()]), "its name")
