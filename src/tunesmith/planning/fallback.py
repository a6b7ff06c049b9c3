"""A base in 4 or 8 bits where bitsandbytes cannot run: refused before any work, with what to use instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.methods.table import build
from tunesmith.model.weights.bundled import BUNDLED
from tunesmith.model.weights.device import resolve_device, resolve_dtype
from tunesmith.planning import budget, memory
from tunesmith.planning.budget import gigabytes
from tunesmith.planning.shape_from_config import read_architecture, shape_from
from tunesmith.recipe.methods import AdapterSettings, LoraSettings
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.cache import cache_dir

INSTALL = "or install bitsandbytes where it runs (pip install -U bitsandbytes)."


def require_quantization(recipe: Recipe) -> None:
    """Tries bitsandbytes on a few weights.

    Raises:
        ModelError: it is missing or does not run on the recipe's device; names what to use instead, and whether that
            fits this machine where the model's config is at hand.
    """
    device = resolve_device(recipe.model.device)
    try:
        build(recipe.method, base=recipe.model.path, device=device).load_options()
    except ModelError as error:
        remedies = [*_eight_bits(recipe, device), _plain_lora(recipe, device), INSTALL]
        raise ModelError(error.what, where="method", why=error.why, remedy="; ".join(remedies)) from error


def _eight_bits(recipe: Recipe, device: str) -> list[str]:
    if recipe.method.name != "qlora":
        return []
    try:
        build(LoraSettings(load_in_8bit=True), base=recipe.model.path, device=device).load_options()
    except ModelError:
        return []
    return ["use method: {name: lora, load_in_8bit: true}, which runs here, with a base in 8 bits"]


def _plain_lora(recipe: Recipe, device: str) -> str:
    """What plain LoRA would take here, as far as the config alone tells."""
    use, smaller = "use method: lora", "take a smaller model"
    config = _config_at_hand(recipe.model.path)
    if config is None:
        return f"{use}; {smaller} if that does not fit"
    room, longest = memory.total_memory(device), recipe.data.max_length
    try:
        shape = shape_from(read_architecture(config), _with_plain_lora(recipe, device))
    except ModelError:  # a config or a setting that is not understood from the config alone
        return f"{use}; {smaller} if that does not fit"
    try:
        chosen = budget.choose(shape, recipe.training, longest=longest, memory=room, where=recipe.model.path)
    except ModelError:
        return f"{smaller} for method: lora, which does not fit into the {gigabytes(room)} of {device} with this one"
    needed = gigabytes(chosen.peak().training)
    return f"{use}, which needs about {needed} of the {gigabytes(room)} of {device} (rows of {longest:,} tokens)"


def _with_plain_lora(recipe: Recipe, device: str) -> Recipe:
    assert isinstance(recipe.method, AdapterSettings)
    left_out = {"adapter_name_or_path", "adapter_sha256"}
    shared = {
        name: getattr(recipe.method, name)
        for name in AdapterSettings.model_fields
        if name in recipe.method.model_fields_set - left_out
    }
    dtype = str(resolve_dtype(recipe.model.dtype, device, say=lambda _: None)).removeprefix("torch.")
    lora = recipe.model_copy(update={"method": LoraSettings(**shared)})
    return lora.with_values(model={"device": device, "dtype": dtype})


def _config_at_hand(path: str) -> Mapping[str, Any] | None:
    """config.json where nothing has to be fetched or converted for it; None elsewhere."""
    files = [Path(path).expanduser() / "config.json"]
    if path in BUNDLED:
        files = sorted((cache_dir() / "models").glob(f"{path}-*/config.json"))
    elif not files[0].is_file() and "/" in path:
        from huggingface_hub import try_to_load_from_cache

        name, _, revision = path.partition("@")
        cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
        files = [Path(cached)] if isinstance(cached, str) else []
    try:
        found = json.loads(files[0].read_text(encoding="utf-8"))
    except (IndexError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
