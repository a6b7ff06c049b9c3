"""The settings of an adapter as PEFT's configuration, and refusals of names that match nothing in the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from peft import EvaConfig, LoraConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.methods.base import LINEAR
from tunesmith.methods.continued_adapter import SHAPE_OF_ADAPTER
from tunesmith.model.weights.slow_regex import refuse_slow_patterns
from tunesmith.recipe.methods import AdapterSettings, EvaSettings

ADAPTER = "default"  # PEFT's name of the one adapter that a model has


def adapter_config(settings: AdapterSettings, model: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration: every setting has its own name there."""
    targets = settings.target_modules
    if targets == "all-linear" and settings.layers_to_transform is not None:
        targets = linear_names(model, head=False)  # PEFT picks layers only for targets given as a list
    shape = {name: getattr(settings, name) for name in SHAPE_OF_ADAPTER} | {
        "target_modules": targets,
        "lora_alpha": _whole(settings.lora_alpha),
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": {key: _whole(value) for key, value in settings.alpha_pattern.items()},
    }
    with warnings.catch_warnings():  # one that is about PEFT's conversion of PiSSA, not about ours
        warnings.filterwarnings("ignore", message="Using Rank-Stabilized LoRA with rank_pattern")
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            init_lora_weights=settings.init_lora_weights,  # pyright: ignore[reportArgumentType]
            eva_config=_eva_config(settings),
            trainable_token_indices=settings.trainable_token_indices,
            **shape,
        )


def _eva_config(settings: AdapterSettings) -> EvaConfig | None:
    if settings.init_lora_weights != "eva":
        return None
    return EvaConfig(**(settings.eva_config or EvaSettings()).model_dump())


def _whole(value: float) -> Any:
    """32 rather than 32.0: PEFT declares int, and other readers of its file may insist."""
    return int(value) if float(value).is_integer() else value


def linear_names(model: PreTrainedModel, *, head: bool = True) -> list[str]:
    """The last parts of the names of the linear modules: what ``target_modules`` can name."""
    left_out = None if head else model.get_output_embeddings()
    linears = [name for name, own in model.named_modules() if isinstance(own, LINEAR) and own is not left_out]
    return sorted({name.rpartition(".")[2] for name in linears})


def refuse_slow_names(config: Mapping[str, Any], model: PreTrainedModel, where: str) -> None:
    """Raises ModelError for a regular expression that takes too long on the names of this model.

    Args:
        config: the settings of a method, or the configuration of an adapter.
        where: what goes before the key in the message.
    """
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters(remove_duplicate=False)) if name]
    last = ", ".join(linear_names(model))
    refuse_slow_patterns(
        config,
        names,
        where,
        remedy=f"Write the last parts of the names as a list there, such as [q_proj, v_proj]. Here they are: {last}.",
    )


def refuse_unmatched_names(settings: AdapterSettings, model: PreTrainedModel) -> None:
    """Raises ModelError for a name in a list that matches nothing, which PEFT ignores if another one matches."""
    modules = [name for name, _ in model.named_modules() if name]
    for field in ("target_modules", "exclude_modules", "modules_to_save"):
        names = getattr(settings, field)
        for name in names if isinstance(names, list) else []:
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                raise ModelError(
                    f"the model has no module named {name!r}",
                    where=f"method.{field}",
                    remedy=f"linear modules of this model: {', '.join(linear_names(model))}",
                )


def refuse_unmatched_patterns(settings: AdapterSettings, adapted: PeftModel) -> None:
    """Raises ModelError for patterns and layer numbers that match no adapted module."""
    tuner = adapted.base_model
    assert isinstance(tuner, BaseTuner)
    targets = tuner.targeted_module_names
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(settings, field):  # the rule is that of PEFT's get_pattern_key
            if not any(re.match(rf"(.*\.)?({key})$", target) for target in targets):
                raise _no_match(f"method.{field}", key, targets)
    layers = settings.layers_to_transform
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if not any(str(layer) in target.split(".") for target in targets):
            raise _no_match("method.layers_to_transform", layer, targets)


def _no_match(field: str, key: str | int, targets: list[str]) -> ModelError:
    return ModelError(
        f"{key!r} matches no module that has an adapter",
        where=field,
        why=f"{len(targets)} modules have one, from {targets[0]} to {targets[-1]}",
        remedy="correct it or leave it out",
    )
