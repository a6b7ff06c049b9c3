"""What of a model, its method and its dtype decides the memory of a step, before any weight is loaded.

The model is built on torch's meta device with its method attached, so parameters are counted, not guessed. What a
layer keeps for its backward pass is what the passes of ``model/kernels.py`` save in fp32, and what the modules of
transformers and PEFT save where those do not apply.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError
from transformers.pytorch_utils import Conv1D

from tunesmith.methods.base import lookup_tables
from tunesmith.methods.lora import LINEAR
from tunesmith.methods.table import build
from tunesmith.model.compute.layers import decoder_layers, lowest_trained
from tunesmith.model.weights.added_tokens import AddedTokens
from tunesmith.model.weights.load import quiet_transformers
from tunesmith.planning.step_shape import INT8, ROW, Linear, StepBytes, Text, copies, kept, mask_bytes, packed_bytes
from tunesmith.recipe.methods import QUANTIZED, AdapterSettings, LoraSettings, QloraSettings, method_label
from tunesmith.recipe.optimizers import state_bytes
from tunesmith.recipe.settings import Recipe

NOWHERE = {"adapter_name_or_path": None, "adapter_sha256": None}  # an adapter is counted by its settings


def shape_of(config: PretrainedConfig, recipe: Recipe, folder: Path, added: AddedTokens | None = None) -> StepBytes:
    """The shape of the recipe's model with its method, by the model's config.

    Args:
        recipe: with its device and dtype resolved.
        folder: of the model; read only where its files are quantized already.
        added: the tokens that the recipe adds; None where no tokenizer was read: all that it names, behind the last.

    Raises:
        ModelError: the method does not fit the model.
    """
    added = _named_tokens(config, recipe) if added is None else added
    config = _grown(config, added)
    text, method, dtype = config.get_text_config(), method_label(recipe.method), _dtype(recipe)
    device = torch.device(recipe.model.device).type
    model = _without_weights(config, recipe)
    head = model.get_output_embeddings()
    linears = _linears(model, head)
    plain = _size(model.parameters())
    held = _held(config, recipe, folder, plain=plain, linears=linears)
    attached = _attached(model, recipe, added)
    trains = [*_adapters(attached), *(Linear(name, own.shape[-1]) for name, own in _trained(attached, head, recipe))]
    trained = _size(own for own in attached.parameters() if own.requires_grad)
    aside, beside = copies(recipe, plain=plain, trained=trained)
    passed = _passed(model, text)
    return StepBytes(
        device=device,
        method=method,
        weights=held + _size(attached.parameters()) - plain + aside + _beside_residuals(attached, recipe),
        trained=trained,
        beside=beside,
        layers=passed,
        kept=kept(replace(_numbers(text), layers=passed), recipe, trains, itemsize=dtype.itemsize),
        mask=mask_bytes(recipe, itemsize=dtype.itemsize),
        hidden=_most(text, "hidden_size") * dtype.itemsize,
        widest=max(_most(text, "hidden_size"), _intermediate(text)) * dtype.itemsize,
        vocabulary=_most(text, "vocab_size") or 1,
        head=_size(own for own in head.parameters() if own.requires_grad) if head is not None else 0,
        unpacked=max(map(torch.numel, linears.values()), default=0) * dtype.itemsize if method in QUANTIZED else 0,
        recomputes=model.supports_gradient_checkpointing,
        states=_states(attached, recipe.training.optim),
        itemsize=dtype.itemsize,
    )


def _passed(model: Any, text: Any) -> int:
    """Layers that the gradient passes: those of the config, but for the ones below the lowest that trains."""
    layers, count = decoder_layers(model), _most(text, "num_hidden_layers") or 1
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


def _trained(model: nn.Module, head: Any, recipe: Recipe) -> list[tuple[str, Tensor]]:
    """The linear maps that train themselves: none under an adapter."""
    if isinstance(recipe.method, AdapterSettings):
        return []
    return [(name, weight) for name, weight in _linears(model, head).items() if weight.requires_grad]


def linear_modules(config: PretrainedConfig, recipe: Recipe) -> set[str]:
    """Names of the linear modules of the recipe's model, but the output layer: what ``all-linear`` means."""
    model = _without_weights(config, recipe.with_values(model={"dtype": "float32"}))  # it may not be resolved yet
    return set(_linears(model, model.get_output_embeddings()))


def _without_weights(config: PretrainedConfig, recipe: Recipe) -> Any:
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(
            config, dtype=_dtype(recipe), trust_remote_code=recipe.model.trust_remote_code
        )


def _attached(model: Any, recipe: Recipe, added: AddedTokens) -> nn.Module:
    """With the method's parameters. Over quantized weights they are lora's, whose layers need none."""
    method = recipe.method
    if isinstance(method, AdapterSettings):
        own = {name: getattr(method, name) for name in AdapterSettings.model_fields}
        method = LoraSettings(**{**own, "init_lora_weights": True, "eva_config": None, **NOWHERE})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said again, and then heard, when the real model gets its adapter
        return build(method, base=recipe.model.path, added=added).attach(model)


def _held(config: PretrainedConfig, recipe: Recipe, folder: Path, *, plain: int, linears: dict[str, Tensor]) -> int:
    """Bytes of the base: its files where they are quantized already, else its parameters, packed as the method does.

    Args:
        plain: bytes of the parameters as they are.
        linears: weights [out, in] of the linear maps that would be packed, by name.
    """
    if getattr(config, "quantization_config", None):
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    itemsize, method = _dtype(recipe).itemsize, recipe.method
    if isinstance(method, QloraSettings):
        packed = packed_bytes(double_quant=method.bnb_4bit_use_double_quant)
        return plain - int(sum(weight.numel() for weight in linears.values()) * (itemsize - packed))
    if isinstance(method, LoraSettings) and method.load_in_8bit:
        from transformers.quantizers.quantizers_utils import should_convert_module

        skipped = method.llm_int8_skip_modules or []
        packs = [weight for name, weight in linears.items() if should_convert_module(name, skipped)]
        return plain - sum(weight.numel() * (itemsize - INT8) - len(weight) * ROW for weight in packs)
    return plain


def _beside_residuals(attached: nn.Module, recipe: Recipe) -> int:
    """Bytes of adapted weights as they were and of what the adapter began with, where it was taken out of the base."""
    if not (isinstance(recipe.method, AdapterSettings) and recipe.method.rewrites_base):
        return 0
    named = dict(attached.named_parameters())
    begun = [own for name, own in named.items() if ".lora_A." in name or ".lora_B." in name]
    weights = (f"{one.name}.base_layer.weight" for one in _adapters(attached))
    return _size(begun) + _size(named[name] for name in weights if name in named)


def _adapters(model: nn.Module) -> list[Linear]:
    """Every adapted linear map, told by PEFT's names of the parameters."""
    found = []
    for name, parameter in model.named_parameters():
        module, mark, _ = name.partition(".lora_A.")
        if mark:
            found.append(Linear(module, parameter.shape[1], parameter.shape[0]))
    return found


def _numbers(text: Any) -> Text:
    hidden, heads = _most(text, "hidden_size"), _most(text, "num_attention_heads") or 1
    return Text(
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


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters in all, trained, in linear maps, in the output layer; what a token meets, and what trains of that.

    ``layers`` of the decoder; ``width``: heads times head size.
    """

    parameters: int
    trainable: int
    linear: int
    head: int
    products: int
    trained: int
    layers: int
    width: int


def counts_of(config: PretrainedConfig, recipe: Recipe) -> Counts:
    """The counts of the recipe's model with its method. A token meets as many experts as the config says."""
    added = _named_tokens(config, recipe)
    config = _grown(config, added)
    text = _numbers(config.get_text_config())
    model = _without_weights(config, recipe)
    head = model.get_output_embeddings()
    linear = sum(weight.numel() for weight in _linears(model, head).values())
    number = max(_most(config.get_text_config(), name) for name in ("num_experts", "num_local_experts")) or 1
    parameters = sum(own.numel() for own in model.parameters())
    products = linear + _experts(model) * text.experts_a_token // number
    attached = _attached(model, recipe, added)
    trained = sum(own.numel() for _, own in _trained(attached, head, recipe))
    trained += _experts(attached, only_trained=True) * text.experts_a_token // number
    return Counts(
        parameters=parameters,
        trainable=sum(own.numel() for own in attached.parameters() if own.requires_grad),
        linear=linear,
        head=text.vocabulary * text.hidden,
        products=products,
        trained=trained,
        layers=text.layers or 1,
        width=text.heads * text.head_size,
    )


def _experts(model: nn.Module, *, only_trained: bool = False) -> int:
    """Weights of all experts, which are stacked in one parameter."""
    named = ((name, own) for name, own in model.named_parameters() if own.requires_grad or not only_trained)
    return sum(own.numel() for name, own in named if ".experts." in name and own.dim() == 3)
