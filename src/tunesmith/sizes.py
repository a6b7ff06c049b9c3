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
from transformers.pytorch_utils import Conv1D

from tunesmith.methods import build
from tunesmith.methods.lora import LINEAR
from tunesmith.model.load import quiet_transformers
from tunesmith.optimizers import state_bytes
from tunesmith.recipe import AdapterSettings, LoraSettings, QloraSettings, Recipe
from tunesmith.shape import FP32, Linear, Shape, Text, kept, mask_bytes, packed_bytes

__all__ = ["FP32", "Counts", "Shape", "counts_of", "shape_of"]


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
        trains = [Linear(name, weight.shape[-1]) for name, weight in linears.items()]
    return Shape(
        device=device,
        method=method,
        weights=held + _size(attached.parameters()) - plain,
        trained=_size(own for own in attached.parameters() if own.requires_grad),
        beside=plain if method in ("full", "qlora") else 0,
        layers=_most(text, "num_hidden_layers") or 1,
        kept=kept(_numbers(text), recipe, trains, itemsize=dtype.itemsize),
        mask=mask_bytes(recipe, itemsize=dtype.itemsize),
        hidden=_most(text, "hidden_size") * dtype.itemsize,
        widest=max(_most(text, "hidden_size"), _intermediate(text)) * dtype.itemsize,
        vocabulary=_most(text, "vocab_size") or 1,
        head=_size(own for own in head.parameters() if own.requires_grad) if head is not None else 0,
        unpacked=max(map(torch.numel, linears.values()), default=0) * dtype.itemsize if method == "qlora" else 0,
        recomputes=model.supports_gradient_checkpointing,
        states=_states(attached, recipe.training.optim),
    )


def _dtype(recipe: Recipe) -> torch.dtype:
    return getattr(torch, recipe.model.dtype)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _states(model: nn.Module, optim: str) -> float:
    """Bytes of the optimizer's state for each byte that trains."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [own for own in model.parameters() if own.requires_grad]
    held = sum(state_bytes(optim, own.shape, itemsize=own.itemsize, embedding=id(own) in tables) for own in trained)
    return held / max(_size(trained), 1)


def _linears(model: nn.Module, head: Any) -> dict[str, Tensor]:
    """Weights [out, in] of the linear maps by their modules' names, but the output layer's."""
    named = model.named_modules()
    linears: dict[str, Any] = {name: own for name, own in named if isinstance(own, LINEAR) and own is not head}
    return {name: own.weight.T if isinstance(own, Conv1D) else own.weight for name, own in linears.items()}


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
    packed = packed_bytes(double_quant=recipe.method.bnb_4bit_use_double_quant)
    return plain - int(linear * (_dtype(recipe).itemsize - packed))


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
    """Parameters in all, trained, in linear maps, in the output layer; what a token meets; heads times head size."""

    parameters: int
    trainable: int
    linear: int
    head: int
    products: int
    width: int


def counts_of(config: PretrainedConfig, recipe: Recipe) -> Counts:
    """The counts of the recipe's model with its method. A token meets as many experts as the config says."""
    text = _numbers(config.get_text_config())
    model = _without_weights(config, recipe)
    head = model.get_output_embeddings()
    linear = sum(weight.numel() for weight in _linears(model, head).values())
    experts = sum(own.numel() for name, own in model.named_parameters() if ".experts." in name and own.dim() == 3)
    number = max(_most(config.get_text_config(), name) for name in ("num_experts", "num_local_experts")) or 1
    parameters = sum(own.numel() for own in model.parameters())
    attached = _attached(model, recipe)
    return Counts(
        parameters=parameters,
        trainable=sum(own.numel() for own in attached.parameters() if own.requires_grad),
        linear=linear,
        head=text.vocabulary * text.hidden,
        products=linear + experts * text.experts_a_token // number,
        width=text.heads * text.head_size,
    )
