"""A base whose files hold quantized weights by bitsandbytes: which method can train over it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.errors import RecipeError
from tunesmith.recipe.methods import AdapterSettings, LoraSettings, MethodSettings, QloraSettings, method_label

_OWN = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")  # what the files have decided


def stored_bits(config: Any) -> int | None:
    """4 or 8 if a model's config (a mapping or transformers' own) says that bitsandbytes has packed its files."""
    found = _stored(config)
    return None if found is None else 8 if found.get("load_in_8bit") else 4


def why_not(method: str, bits: int) -> str:
    """Why a method cannot train a base that is stored in so many bits."""
    over = "qlora" if bits == 4 else "lora with load_in_8bit: true"
    if method == "lora":
        return f"the model is stored in {bits} bits, so lora over it is {over}"
    return f"the model is stored in {bits} bits, and packed weights cannot train; over it, {over} trains an adapter"


def over_stored(method: MethodSettings, config: Any, *, where: str) -> tuple[MethodSettings, str | None]:
    """The method as it trains over the files of a model, and a line that says so if it is another one.

    LoRA over 4-bit files is QLoRA with their data type, and over 8-bit files LoRA with ``load_in_8bit``.

    Args:
        where: the model, for a refusal.

    Raises:
        RecipeError: the method cannot train over them.
    """
    stored, bits = _stored(config), stored_bits(config)
    if stored is None or bits is None:
        return method, None
    label, wanted = method_label(method), "qlora" if bits == 4 else "lora-int8"
    if not isinstance(method, AdapterSettings) or label not in ("lora", wanted) or method.rewrites_base:
        unpacked = f" with init_lora_weights: {method.init_lora_weights}" if isinstance(method, AdapterSettings) else ""
        raise RecipeError(
            f"method {label}{unpacked if label == 'lora' else ''} cannot train this model",
            where=f"method ({where})",
            why=f"{why_not(label, bits)[0].upper()}{why_not(label, bits)[1:]}.",
            remedy=f"Set method: {'qlora' if bits == 4 else '{name: lora, load_in_8bit: true}'}, or model.path to the "
            "model before it was quantized.",
        )
    own = {name: getattr(method, name) for name in AdapterSettings.model_fields if name in method.model_fields_set}
    if bits == 8:
        skipped = stored.get("llm_int8_skip_modules")
        made: MethodSettings = LoraSettings(**own, load_in_8bit=True, llm_int8_skip_modules=skipped)
        if isinstance(method, LoraSettings) and method.load_in_8bit:
            return method, None
    else:
        found = {name: stored[name] for name in _OWN if stored.get(name) is not None}
        found = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False, **found}  # transformers' defaults
        if isinstance(method, QloraSettings):
            _refuse_other(method, found, where)
            own["bnb_4bit_compute_dtype"] = method.bnb_4bit_compute_dtype
        made = QloraSettings(**own, **found)
    if label == wanted:
        return made, None
    return made, f"method: {label} -> {wanted}, because {where} is stored in {bits} bits"


def _refuse_other(method: QloraSettings, found: Mapping[str, Any], where: str) -> None:
    for name, there in found.items():
        if name in method.model_fields_set and getattr(method, name) != there:
            raise RecipeError(
                f"method.{name} contradicts the model",
                where=where,
                why=f"The recipe says {getattr(method, name)}, and its files were stored with {there}.",
                remedy=f"Leave method.{name} out.",
            )


def _stored(config: Any) -> Mapping[str, Any] | None:
    """The quantization of a config, if it is that of bitsandbytes."""
    read = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    found = read("quantization_config")
    if found is not None and not isinstance(found, Mapping):
        found = found.to_dict()
    if not found:
        return None
    ours = found.get("quant_method") == "bitsandbytes" or found.get("load_in_4bit") or found.get("load_in_8bit")
    return found if ours else None
