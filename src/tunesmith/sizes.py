"""What of a model, its method and its dtype decides the memory of a step, before any weight is loaded.

The model is built on torch's meta device with its method attached, so parameters are counted, not guessed. What a
layer keeps for its backward pass is what the passes of ``model/kernels.py`` save in fp32, and what the modules of
transformers and PEFT save where those do not apply.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError

from tunesmith.methods import build
from tunesmith.methods.fused import SAME_INPUT
from tunesmith.methods.lora import LINEAR
from tunesmith.model.load import quiet_transformers
from tunesmith.recipe import AdapterSettings, LoraSettings, QloraSettings, Recipe

FP32 = 4  # bytes
NF4, CONSTANTS, DOUBLE = 0.5, 4 / 64, 1 / 64 + 4 / (64 * 256)  # bytes a weight: packed; fp32 and quantized constants


@dataclass(frozen=True, slots=True)
class Shape:
    """All in bytes, but ``layers`` and ``vocabulary``.

    ``weights`` is every parameter as it is held, ``trained`` those among them that train, ``beside`` the untuned model
    that judging holds beside the tuned one. A token leaves ``kept`` in each layer for the backward pass, and ``mask``
    for each token that it may see. ``hidden`` and ``widest`` are one token's hidden state and widest activation.
    ``head`` is the output layer's weight where it trains, else 0; ``unpacked`` the largest 4-bit weight as dequantized.
    ``recomputes``: the model supports gradient checkpointing.
    """

    device: str
    method: str
    weights: int
    trained: int
    beside: int
    layers: int
    kept: int
    mask: int
    hidden: int
    widest: int
    vocabulary: int
    head: int
    unpacked: int
    recomputes: bool = True


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear map that trains, or has an adapter of rank ``rank``: its module's name and the size of its input."""

    name: str
    width: int
    rank: int = 0


def shape_of(config: PretrainedConfig, recipe: Recipe, folder: Path) -> Shape:
    """The shape of the recipe's model with its method, by the model's config.

    Args:
        recipe: with its device and dtype resolved.
        folder: of the model; read only where its files are quantized already.

    Raises:
        ModelError: the method does not fit the model.
    """
    text, method, dtype = config.get_text_config(), recipe.method.name, _dtype(recipe)
    device = torch.device(recipe.model.device).type
    model = _without_weights(config, recipe)
    head = model.get_output_embeddings()
    linears = _linears(model, head)
    plain = _size(model.parameters())
    held = _held(config, recipe, folder, plain=plain, linear=sum(weight.numel() for weight in linears.values()))
    attached = _attached(model, recipe)
    trains = _adapters(attached)
    if method == "full":
        trains = [_Linear(name, weight.shape[-1]) for name, weight in linears.items()]
    return Shape(
        device=device,
        method=method,
        weights=held + _size(attached.parameters()) - plain,
        trained=_size(own for own in attached.parameters() if own.requires_grad),
        beside=plain if method in ("full", "qlora") else 0,
        layers=_most(text, "num_hidden_layers") or 1,
        kept=_kept(text, recipe, trains),
        mask=0 if device == "cpu" or recipe.training.layout == "padded" else dtype.itemsize,
        hidden=_most(text, "hidden_size") * dtype.itemsize,
        widest=max(_most(text, "hidden_size"), _intermediate(text)) * dtype.itemsize,
        vocabulary=_most(text, "vocab_size") or 1,
        head=_size(own for own in head.parameters() if own.requires_grad) if head is not None else 0,
        unpacked=max(map(torch.numel, linears.values()), default=0) * dtype.itemsize if method == "qlora" else 0,
        recomputes=model.supports_gradient_checkpointing,
    )


def _dtype(recipe: Recipe) -> torch.dtype:
    return getattr(torch, recipe.model.dtype)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _linears(model: nn.Module, head: Any) -> dict[str, Tensor]:
    """Weights of the linear maps by their modules' names, but the output layer's."""
    named = model.named_modules()
    return {name: own.weight for name, own in named if isinstance(own, LINEAR) and own is not head}


def _without_weights(config: PretrainedConfig, recipe: Recipe) -> Any:
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(
            config, dtype=_dtype(recipe), trust_remote_code=recipe.model.trust_remote_code
        )


def _attached(model: Any, recipe: Recipe) -> nn.Module:
    """With the method's parameters. qlora's are lora's, whose layers need no 4-bit weights."""
    method = recipe.method
    if isinstance(method, AdapterSettings):
        own = {name: getattr(method, name) for name in AdapterSettings.model_fields}
        method = LoraSettings(**{**own, "init_lora_weights": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said again, and then heard, when the real model gets its adapter
        return build(method, base=recipe.model.path).attach(model)


def _held(config: PretrainedConfig, recipe: Recipe, folder: Path, *, plain: int, linear: int) -> int:
    """Bytes of the base: its files where they are quantized already, else its parameters, packed under qlora.

    Args:
        plain: bytes of the parameters as they are.
        linear: elements of those that would be packed.
    """
    if getattr(config, "quantization_config", None):
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not isinstance(recipe.method, QloraSettings):
        return plain
    packed = NF4 + (DOUBLE if recipe.method.bnb_4bit_use_double_quant else CONSTANTS)
    return plain - int(linear * (_dtype(recipe).itemsize - packed))


def _adapters(model: nn.Module) -> list[_Linear]:
    """Every adapted linear map, told by PEFT's names of the parameters."""
    found = []
    for name, parameter in model.named_parameters():
        module, mark, _ = name.partition(".lora_A.")
        if mark:
            found.append(_Linear(module, parameter.shape[1], parameter.shape[0]))
    return found


def _intermediate(text: Any) -> int:
    """Elements of a feed-forward block for each token, all of its experts together."""
    width = _most(text, "intermediate_size") or 4 * _most(text, "hidden_size")  # GPT-2 and OPT name it otherwise
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


def _kept(text: Any, recipe: Recipe, trains: list[_Linear]) -> int:
    """Bytes that a token leaves in a layer for the backward pass.

    Two norms keep their inputs, in fp32 whatever the dtype. Attention keeps q, k, v, its output and a log-sum-exp; keys
    are repeated for all heads where the pieces of ``model/attention.py`` do not compute it. A gated block keeps gate
    and up, and outside fp32 silu(gate). Experts get copies of their tokens.
    """
    dtype, hidden, heads = _dtype(recipe), _most(text, "hidden_size"), _most(text, "num_attention_heads") or 1
    size = _most(text, "head_dim") or hidden // heads
    query, key = heads * size, (_most(text, "num_key_value_heads") or heads) * size
    pieces = recipe.model.device == "cpu" and recipe.training.layout != "padded"
    attention = 2 * query + 2 * (key if pieces else query)
    gated = (2 if dtype is torch.float32 else 3) * _intermediate(text)
    copies = 2 * hidden * _most(text, "num_experts_per_tok")
    inputs = _inputs(recipe, trains) // (_most(text, "num_hidden_layers") or 1)
    return (2 * hidden + heads) * FP32 + (attention + gated + copies) * dtype.itemsize + inputs


def _inputs(recipe: Recipe, trains: list[_Linear]) -> int:
    """Bytes that a token leaves in all layers as the inputs of what trains, its rank-sized products and its dropout.

    Maps that read the same tensor keep it once; PEFT's own adapters, outside fp32, keep a copy each in fp32.
    """
    dtype, width = _dtype(recipe), sum(one.width for one in trains)
    once = dtype is torch.float32 or recipe.method.name == "full"
    kept = _distinct(trains) * dtype.itemsize if once else width * FP32
    masks = width * dtype.itemsize if getattr(recipe.method, "lora_dropout", 0.0) else 0
    return kept + masks + sum(one.rank for one in trains) * FP32


def _distinct(trains: Iterable[_Linear]) -> int:
    """Elements of the inputs that are kept: siblings share theirs, and an output projection has attention's."""
    seen: dict[tuple[str, Any], int] = {}
    for one in trains:
        parent, _, name = one.name.rpartition(".")
        if name != "o_proj":
            seen[parent, next((names for names in SAME_INPUT if name in names), name)] = one.width
    return sum(seen.values())
