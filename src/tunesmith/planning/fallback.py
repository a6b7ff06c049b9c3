"""Refuses a base in 4 or 8 bits if bitsandbytes cannot run, before any work, and says what to use instead."""

from __future__ import annotations

from tunesmith.errors import ModelError
from tunesmith.methods.quantized_base import install_command
from tunesmith.methods.table import build
from tunesmith.model.weights.config_file import read_config
from tunesmith.model.weights.device import resolve_device, resolve_dtype
from tunesmith.planning import budget, memory
from tunesmith.planning.budget import gigabytes
from tunesmith.planning.shape_from_model import ModelCounter, recipe_config
from tunesmith.recipe.methods import AdapterSettings, LoraSettings
from tunesmith.recipe.settings import Recipe


def require_quantization(recipe: Recipe) -> None:
    """Tries bitsandbytes on a few weights.

    Raises:
        ModelError: it is missing or does not run on the recipe's device. The error names what to use instead, and
            whether that fits this machine if the model's config is at hand.
    """
    device = resolve_device(recipe.model.device)
    try:
        build(recipe.method, base=recipe.model.path, device=device).load_options()
    except ModelError as error:
        command, others = install_command(error.__cause__), [*_eight_bits(recipe, device), _plain_lora(recipe, device)]
        missing = isinstance(error.__cause__, ModuleNotFoundError)
        last = f"or install bitsandbytes where it runs ({command})."
        remedies = [command, *others[:-1], f"or {others[-1]}."] if missing else [*others, last]
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
    """What plain LoRA would need here, as far as a config that is at hand tells."""
    use, smaller = "use method: lora", "take a smaller model"
    room, longest, settings = memory.total_memory(device), recipe.data.max_length, recipe.model
    try:
        values, folder = read_config(settings.path, revision=settings.revision, fetch=False)
        model = ModelCounter(recipe_config(recipe, values, folder), folder)
        shape = model.count(_with_plain_lora(recipe, device)).shape
    except ModelError:  # there is no config, or it is not understood
        return f"{use}; {smaller} if that does not fit"
    try:
        chosen = budget.choose(shape, recipe.training, longest=longest, memory=room, where=settings.path)
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
