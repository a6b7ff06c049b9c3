"""Counts a model on torch's meta device, before any weight is loaded.

The model is built without weights and its method is attached, so parameters are counted and not guessed. What a layer
keeps for its backward pass is what the passes of ``model/compute/kernels.py`` save in fp32, and what the modules of
transformers and PEFT save where those do not apply.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.methods.base import LINEAR, lookup_tables
from tunesmith.methods.table import build
from tunesmith.model.compute.layers import decoder_layers, lowest_trained
from tunesmith.model.weights.added_tokens import NO_TOKENS, AddedTokens
from tunesmith.model.weights.load import quiet_transformers
from tunesmith.model.weights.slow_regex import refuse_slow_patterns
from tunesmith.model.weights.weight_files import weight_bytes
from tunesmith.planning.step_shape import (
    INT8,
    ROW,
    CountedModel,
    StepBytes,
    StepWork,
    TextModel,
    TrainedLinear,
    copies,
    kept,
    mask_bytes,
    packed_bytes,
)
from tunesmith.recipe.methods import (
    QUANTIZED,
    AdapterSettings,
    LoraSettings,
    MethodSettings,
    QloraSettings,
    method_label,
)
from tunesmith.recipe.optimizers import state_bytes
from tunesmith.recipe.settings import Recipe

NOWHERE = {"adapter_name_or_path": None, "adapter_sha256": None}  # an adapter is counted by its settings
# What transformers raises for a config that it cannot make a model of.
CONFIG_FAULTS = (
    ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, StrictDataclassError, TypeError,
    ValueError,
)  # fmt: skip


class NotUnderstood(ModelError):
    """No model can be built from this config."""


def model_config(
    values: Mapping[str, Any], *, folder: Path | None, where: str, trust_remote_code: bool = False
) -> PretrainedConfig:
    """The config of a model as transformers understands it.

    Args:
        values: config.json.
        folder: of the model, if there is one; only there can a model have code of its own.
        where: the model's name for a refusal.

    Raises:
        NotUnderstood: transformers does not know this model, or the values are wrong.
    """
    if folder is None and values.get("quantization_config"):
        raise _not_understood(where, "Its weights are quantized already, so their size is that of its files.")
    if folder is not None and trust_remote_code and "auto_map" in values:
        with _faults_are_refusals(where):
            return AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    kind, text = str(values.get("model_type")), values.get("text_config")
    if kind not in CONFIG_MAPPING:
        # A wrapper that transformers does not know can still hold a text model that it knows, and nothing else.
        if not isinstance(text, Mapping) or text.get("model_type") not in CONFIG_MAPPING or "vision_config" in values:
            raise _not_understood(where, f"transformers knows no model_type {kind!r}.")
        kind, values = text["model_type"], text
    with _faults_are_refusals(where):
        return CONFIG_MAPPING[kind].from_dict(dict(values))


def recipe_config(recipe: Recipe, values: Mapping[str, Any], folder: Path | None) -> PretrainedConfig:
    """The config of the recipe's model; see ``model_config``."""
    settings = recipe.model
    return model_config(values, folder=folder, where=settings.path, trust_remote_code=settings.trust_remote_code)


@contextmanager
def _faults_are_refusals(where: str) -> Iterator[None]:
    try:
        yield
    except CONFIG_FAULTS as error:
        raise _not_understood(where, (str(error) or type(error).__name__).strip()) from error


def _not_understood(where: str, why: str) -> NotUnderstood:
    return NotUnderstood(
        "This model cannot be counted from its config alone",
        where=where,
        why=why,
        remedy="Check the values in its config.json. If the model has code of its own or quantized weights, name its "
        "folder (and set model.trust_remote_code: true for the code). A newer transformers may know more models.",
    )


def count_parameters(config: PretrainedConfig) -> int:
    """The parameters of the model, without a method. Raises NotUnderstood if it cannot be built."""
    return sum(own.numel() for own in _without_weights(config, torch.float32).parameters())


@dataclass(frozen=True, slots=True)
class _BuiltModel:
    """A model without weights and with its method, and what was counted on it before the method was attached.

    ``linears`` are the weights of the linear maps by name, ``plain`` the bytes of all parameters.
    """

    attached: nn.Module
    base: Any
    head: Any
    linears: dict[str, Tensor]
    plain: int
    parameters: int
    experts: int


class ModelCounter:
    """Counts the memory and the work of a step of one model, under one recipe or several.

    Built models are kept while it lives, because building one takes seconds, and lora and qlora have the same adapter.
    """

    def __init__(self, config: PretrainedConfig, folder: Path | None) -> None:
        """``folder``: of the model; read only if its files are quantized already."""
        self.config, self.folder = config, folder
        self._built: dict[str, _BuiltModel] = {}

    def count(self, recipe: Recipe, added: AddedTokens | None = None) -> CountedModel:
        """Counts the model with the recipe's method.

        Args:
            recipe: with its device and dtype resolved.
            added: the tokens that the recipe adds; None if no tokenizer was read: all that it names, behind the last.

        Raises:
            NotUnderstood: the model cannot be built from its config.
            ModelError: the method does not fit the model.
        """
        added = _named_tokens(self.config, recipe) if added is None else added
        method = _counted_method(recipe)
        key = f"{recipe.model.dtype} {recipe.model.named_tokens} {method!r}"
        config = _grown(self.config, added)
        if key not in self._built:
            self._built[key] = _build(config, recipe, method, added)
        built, text = self._built[key], _numbers(config.get_text_config())
        trained = [own for own in built.attached.parameters() if own.requires_grad]
        trainable = sum(own.numel() for own in trained)
        trained_maps = _trained(built, recipe)
        quantized = method_label(recipe.method) in QUANTIZED
        linear = sum(weight.numel() for weight in built.linears.values())
        # A token meets some experts of all that a layer has.
        of_all = max(_most(config.get_text_config(), name) for name in ("num_experts", "num_local_experts")) or 1
        trained_experts = _experts(built.attached, only_trained=True)
        work = StepWork(
            products=linear + built.experts * text.experts_a_token // of_all,
            trained=sum(map(torch.numel, trained_maps.values())) + trained_experts * text.experts_a_token // of_all,
            head=text.vocabulary * text.hidden,
            adapters=trainable if isinstance(recipe.method, AdapterSettings) else 0,
            layers=text.layers or 1,
            width=text.heads * text.head_size,
            packed=linear if quantized else 0,
        )
        shape = self._shape(built, text, recipe, trained_maps, trained=_size(trained))
        return CountedModel(shape, work, built.parameters, trainable)

    def _shape(
        self, built: _BuiltModel, text: TextModel, recipe: Recipe, trained_maps: dict[str, Tensor], *, trained: int
    ) -> StepBytes:
        itemsize, label = _dtype(recipe).itemsize, method_label(recipe.method)
        held = _held(self.config, recipe, self.folder, plain=built.plain, linears=built.linears)
        aside, beside = copies(recipe, plain=built.plain, trained=trained)
        of_method = _size(built.attached.parameters()) - built.plain + _residuals(built.attached, recipe)
        passed = _passed(built.base, text.layers or 1)
        trains = [
            *_adapters(built.attached),
            *(TrainedLinear(name, own.shape[-1]) for name, own in trained_maps.items()),
        ]
        return StepBytes(
            device=torch.device(recipe.model.device).type,
            method=label,
            weights=held + of_method + aside,
            trained=trained,
            beside=beside,
            layers=passed,
            kept=kept(replace(text, layers=passed), recipe, trains, itemsize=itemsize),
            mask=mask_bytes(recipe, itemsize=itemsize),
            hidden=text.hidden * itemsize,
            widest=max(text.hidden, text.intermediate) * itemsize,
            vocabulary=text.vocabulary or 1,
            head=_size(own for own in built.head.parameters() if own.requires_grad) if built.head is not None else 0,
            unpacked=max(map(torch.numel, built.linears.values()), default=0) * itemsize if label in QUANTIZED else 0,
            recomputes=built.base.supports_gradient_checkpointing,
            states=_states(built.attached, recipe.training.optim),
            itemsize=itemsize,
        )


def _counted_method(recipe: Recipe) -> MethodSettings:
    """The method to attach. Over quantized weights it is lora's, whose layers need no quantized ones."""
    method = recipe.method
    if not isinstance(method, AdapterSettings):
        return method
    own = {name: getattr(method, name) for name in AdapterSettings.model_fields}
    return LoraSettings(**{**own, "init_lora_weights": True, "eva_config": None, **NOWHERE})


def _build(config: PretrainedConfig, recipe: Recipe, method: MethodSettings, added: AddedTokens) -> _BuiltModel:
    settings = recipe.model
    base = _without_weights(config, _dtype(recipe), trust_remote_code=settings.trust_remote_code, where=settings.path)
    head = base.get_output_embeddings()
    linears, plain, experts = _linears(base, head), _size(base.parameters()), _experts(base)
    parameters = sum(own.numel() for own in base.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said again, and then heard, when the real model gets its adapter
        attached = build(method, base=settings.path, added=_rows_apart(recipe, added)).attach(base)
    return _BuiltModel(attached, base, head, linears, plain, parameters, experts)


def _rows_apart(recipe: Recipe, added: AddedTokens) -> AddedTokens:
    """The tokens whose rows train apart from their table: none if a continued adapter trains a whole table."""
    method = recipe.method
    if isinstance(method, AdapterSettings) and method.adapter_name_or_path is not None and method.modules_to_save:
        return NO_TOKENS
    return added


def _passed(model: Any, count: int) -> int:
    """Layers that the gradient passes: the ``count`` of the config, except those below the lowest that trains."""
    layers = decoder_layers(model)
    return count if layers is None else count - count * lowest_trained(model, layers) // len(layers)


def _named_tokens(config: PretrainedConfig, recipe: Recipe) -> AddedTokens:
    """All that the recipe names as rows behind the last, for a plan without the tokenizer."""
    rows = config.get_text_config().vocab_size if recipe.model.named_tokens else 0
    return AddedTokens(ids=tuple(range(rows, rows + len(recipe.model.named_tokens))))


def _grown(config: PretrainedConfig, added: AddedTokens) -> PretrainedConfig:
    """With the rows that new tokens need."""
    if not added.ids:
        return config
    grown = copy.deepcopy(config)
    text = grown.get_text_config()
    text.vocab_size = max(text.vocab_size, max(added.ids) + 1)
    return grown


def _dtype(recipe: Recipe) -> torch.dtype:
    return getattr(torch, recipe.model.dtype)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _states(model: nn.Module, optim: str) -> float:
    """Bytes of the optimizer's state for each byte that trains."""
    tables = lookup_tables(model)
    trained = [own for own in model.parameters() if own.requires_grad]
    held = sum(state_bytes(optim, own.shape, itemsize=own.itemsize, embedding=id(own) in tables) for own in trained)
    return held / max(_size(trained), 1)


def _linears(model: nn.Module, head: Any) -> dict[str, Tensor]:
    """Weights [out, in] of the linear maps by their modules' names, but the output layer's."""
    named = model.named_modules()
    linears: dict[str, Any] = {name: own for name, own in named if isinstance(own, LINEAR) and own is not head}
    return {name: own.weight.T if isinstance(own, Conv1D) else own.weight for name, own in linears.items()}


def _trained(built: _BuiltModel, recipe: Recipe) -> dict[str, Tensor]:
    """The linear maps that train themselves: none under an adapter."""
    if isinstance(recipe.method, AdapterSettings):
        return {}
    return {name: weight for name, weight in _linears(built.attached, built.head).items() if weight.requires_grad}


def linear_modules(config: PretrainedConfig, recipe: Recipe) -> set[str]:
    """Names of the linear modules of the recipe's model, but the output layer: what ``all-linear`` means."""
    model = _without_weights(config, torch.float32, trust_remote_code=recipe.model.trust_remote_code)
    return set(_linears(model, model.get_output_embeddings()))


def _without_weights(
    config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False, where: str = "config.json"
) -> Any:
    with torch.device("meta"), quiet_transformers(), _faults_are_refusals(where):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


def _held(
    config: PretrainedConfig, recipe: Recipe, folder: Path | None, *, plain: int, linears: dict[str, Tensor]
) -> int:
    """Bytes of the base: its files if they are quantized already, else its parameters, packed as the method does.

    Args:
        plain: bytes of the parameters as they are.
        linears: weights [out, in] of the linear maps that would be packed, by name.
    """
    if getattr(config, "quantization_config", None):
        return weight_bytes(folder) if folder is not None else 0
    itemsize, method = _dtype(recipe).itemsize, recipe.method
    if isinstance(method, QloraSettings):
        packed = packed_bytes(double_quant=method.bnb_4bit_use_double_quant)
        return plain - int(sum(weight.numel() for weight in linears.values()) * (itemsize - packed))
    if isinstance(method, LoraSettings) and method.load_in_8bit:
        from transformers.quantizers.quantizers_utils import should_convert_module

        skipped = method.llm_int8_skip_modules or []
        remedy = "Write the last parts of the names as a list there, such as [q_proj, down_proj]."
        refuse_slow_patterns({"llm_int8_skip_modules": skipped}, linears, "method.", remedy=remedy)
        packs = [weight for name, weight in linears.items() if should_convert_module(name, skipped)]
        return plain - sum(weight.numel() * (itemsize - INT8) - len(weight) * ROW for weight in packs)
    return plain


def _residuals(attached: nn.Module, recipe: Recipe) -> int:
    """Bytes of adapted weights as they were and of the first adapter, if that was taken out of the base."""
    if not (isinstance(recipe.method, AdapterSettings) and recipe.method.rewrites_base):
        return 0
    named = dict(attached.named_parameters())
    begun = [own for name, own in named.items() if ".lora_A." in name or ".lora_B." in name]
    weights = (f"{one.name}.base_layer.weight" for one in _adapters(attached))
    return _size(begun) + _size(named[name] for name in weights if name in named)


def _adapters(model: nn.Module) -> list[TrainedLinear]:
    """Every adapted linear map, told by PEFT's names of the parameters."""
    found = []
    for name, parameter in model.named_parameters():
        module, mark, _ = name.partition(".lora_A.")
        if mark:
            found.append(TrainedLinear(module, parameter.shape[1], parameter.shape[0]))
    return found


def _numbers(text: Any) -> TextModel:
    hidden, heads = _most(text, "hidden_size"), _most(text, "num_attention_heads") or 1
    return TextModel(
        layers=_most(text, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        key_heads=_most(text, "num_key_value_heads") or heads,
        head_size=_most(text, "head_dim") or hidden // heads,
        intermediate=_intermediate(text),
        experts_a_token=_most(text, "num_experts_per_tok"),
        vocabulary=_most(text, "vocab_size"),
    )


def _intermediate(text: Any) -> int:
    """Elements of a feed-forward block for each token, all of its experts together."""
    named = (_most(text, name) for name in ("intermediate_size", "n_inner", "ffn_dim"))  # GPT-2's and OPT's names
    width = next(filter(None, named), 4 * _most(text, "hidden_size"))
    experts = _most(text, "num_experts_per_tok")
    if not experts:
        return width
    return experts * (_most(text, "moe_intermediate_size") or width) + _most(text, "shared_expert_intermediate_size")


def _most(text: Any, name: str) -> int:
    """A number of the config, the largest where layers differ; 0 where there is none."""
    try:
        value = getattr(text, name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        value = [getattr(layer, name, None) for layer in text.per_layer_config]
    values = value if isinstance(value, list | tuple) else [value]
    return max((int(one) for one in values if isinstance(one, int | float)), default=0)


def _experts(model: nn.Module, *, only_trained: bool = False) -> int:
    """Weights of all experts, which are stacked in one parameter."""
    named = ((name, own) for name, own in model.named_parameters() if own.requires_grad or not only_trained)
    return sum(own.numel() for name, own in named if ".experts." in name and own.dim() == 3)
