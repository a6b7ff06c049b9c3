"""config.json -> the parameters of a model and the shape of a step, by arithmetic: no torch, no weights, no network.

A family is a row of ``FAMILIES``: how its attention, feed-forward block and norms are built in transformers, and what
its config leaves out. ``tests/test_architecture.py`` holds every row to the model that transformers builds. A config
that is not understood whole is refused, never guessed at; ``sizes.py`` counts it on torch's meta device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunesmith.errors import ModelError
from tunesmith.planning.step_shape import (
    FP32,
    INT8,
    ROW,
    Linear,
    StepBytes,
    Text,
    copies,
    kept,
    mask_bytes,
    packed_bytes,
)
from tunesmith.recipe.methods import (
    QUANTIZED,
    AdapterSettings,
    FreezeSettings,
    FullSettings,
    QloraSettings,
    method_label,
)
from tunesmith.recipe.optimizers import state_bytes
from tunesmith.recipe.settings import Recipe

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# Settings of an adapter whose effect on memory is known here. Another one that is set is left to `sizes.py`.
KNOWN = {
    "name", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "use_dora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "eva_config", "loraplus_lr_ratio",
    "loraplus_lr_embedding", "load_in_8bit", "llm_int8_threshold", "adapter_name_or_path", "adapter_sha256",
}  # fmt: skip


class NotUnderstood(ModelError):
    """The arithmetic does not cover this config or setting."""


@dataclass(frozen=True, slots=True)
class Family:
    """How an architecture is built. A bias is there, not there, or as the named key of the config says.

    ``qkv`` and ``up``: the maps before attention and before the activation, ``gated`` whether the latter are two.
    ``norms``: in a layer, each a weight and, with ``norm_bias``, a bias. ``query_norm``: norms of query and key over a
    head or over all heads. ``renamed``: the config's key for a number that has another name here. ``experts`` names
    the config's key for their number; ``router_bias`` and ``expert_bias`` as in gpt_oss.
    """

    defaults: Mapping[str, Any]
    prefix: str = "model.layers."
    maps: Sequence[str] = (*SPLIT, *GATED)
    gated: bool = True
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    norms: int = 2
    final_norm: int = 1
    norm_bias: bool | str = False
    query_norm: Literal["head", "all"] | None = None
    head_bias: bool = False
    positions: int | None = None  # rows of the table beside the positions themselves; None: no table
    renamed: Mapping[str, str] = field(default_factory=dict)
    experts: str | None = None
    shared_expert: bool = False
    biased_experts: bool = False
    adapted_experts: bool = False  # PEFT's all-linear means the experts and their router too
    sinks: bool = False
    only: Mapping[str, Any] = field(default_factory=dict)  # what is understood no other way


def _sizes(
    vocabulary: int, hidden: int, intermediate: int | None, layers: int, heads: int, key_heads: int | None = None,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """What the config class of a family fills in where config.json says nothing."""
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "tie_word_embeddings": False, **more,
    }  # fmt: skip


_GLM = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj",
        "mlp.down_proj")  # fmt: skip
_DENSE = {"mlp_only_layers": [], "decoder_sparse_step": 1}
FAMILIES: dict[str, Family] = {
    "llama": Family(
        _sizes(32000, 4096, 11008, 32, 32), qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "mistral": Family(_sizes(32000, 4096, 14336, 32, 32, 8)),
    "ministral": Family(_sizes(32000, 4096, 14336, 32, 32, 8)),
    "qwen2": Family(_sizes(151936, 4096, 22016, 32, 32), qkv_bias=True),
    "qwen3": Family(
        _sizes(151936, 4096, 22016, 32, 32, head_dim=128),
        qkv_bias="attention_bias", out_bias="attention_bias", query_norm="head",
    ),
    "gemma": Family(
        _sizes(256000, 3072, 24576, 28, 16, 16, head_dim=256, tie_word_embeddings=True),
        qkv_bias="attention_bias", out_bias="attention_bias",
    ),
    "gemma2": Family(
        _sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True),
        qkv_bias="attention_bias", out_bias="attention_bias", norms=4,
    ),
    "gemma3_text": Family(
        _sizes(262208, 2304, 9216, 26, 8, 4, head_dim=256, tie_word_embeddings=True),
        qkv_bias="attention_bias", out_bias="attention_bias", norms=4, query_norm="head",
    ),
    "phi": Family(
        _sizes(51200, 2048, 8192, 24, 32),
        maps=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"),
        gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, norms=1, norm_bias=True, head_bias=True,
        only={"qk_layernorm": False},
    ),
    "phi3": Family(
        _sizes(32064, 3072, 8192, 32, 32),
        maps=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    ),
    "gpt2": Family(
        _sizes(50257, 768, None, 12, 12, tie_word_embeddings=True, max_position_embeddings=1024),
        prefix="transformer.h.", maps=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), gated=False,
        qkv_bias=True, out_bias=True, mlp_bias=True, norm_bias=True, positions=0,
        renamed={"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                 "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
        only={"add_cross_attention": False},
    ),
    "gpt_neox": Family(
        _sizes(50432, 6144, 24576, 44, 64, attention_bias=True), prefix="gpt_neox.layers.",
        maps=("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), gated=False,
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias=True, norm_bias=True,
    ),
    "opt": Family(
        _sizes(50272, 768, 3072, 12, 12, tie_word_embeddings=True, max_position_embeddings=2048, enable_bias=True,
               layer_norm_elementwise_affine=True),
        prefix="model.decoder.layers.",
        maps=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"),
        gated=False, qkv_bias="enable_bias", out_bias="enable_bias", mlp_bias="enable_bias", norm_bias=True,
        positions=2, renamed={"intermediate_size": "ffn_dim"},
        only={"do_layer_norm_before": True, "layer_norm_elementwise_affine": True, "word_embed_proj_dim": "hidden_size",
              "_remove_final_layer_norm": False},
    ),
    "mixtral": Family(
        _sizes(32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
        maps=SPLIT, experts="num_local_experts", adapted_experts=True,
    ),
    "qwen3_moe": Family(
        _sizes(151936, 2048, 6144, 24, 32, 4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768),
        maps=SPLIT, qkv_bias="attention_bias", out_bias="attention_bias",
        query_norm="head", experts="num_experts", adapted_experts=True,
        renamed={"num_experts": "num_local_experts"},
        only=_DENSE,
    ),
    "qwen2_moe": Family(
        _sizes(151936, 2048, 5632, 24, 16, 16, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
               shared_expert_intermediate_size=5632, qkv_bias=True),
        maps=SPLIT, qkv_bias="qkv_bias", experts="num_experts", shared_expert=True, only=_DENSE,
    ),
    "olmoe": Family(
        _sizes(50304, 2048, 2048, 16, 16, num_experts=64, num_experts_per_tok=8),
        maps=SPLIT, qkv_bias="attention_bias", out_bias="attention_bias",
        query_norm="all", experts="num_experts", adapted_experts=True,
    ),
    "gpt_oss": Family(
        _sizes(201088, 2880, 2880, 36, 64, 8, head_dim=64, attention_bias=True, num_local_experts=128,
               num_experts_per_tok=4),
        maps=SPLIT, qkv_bias="attention_bias", out_bias="attention_bias", experts="num_local_experts",
        biased_experts=True, sinks=True,
    ),
    "granitemoe": Family(
        _sizes(32000, 4096, 11008, 32, 32, num_local_experts=8, num_experts_per_tok=2),
        maps=SPLIT, qkv_bias="attention_bias", out_bias="attention_bias", experts="num_local_experts",
    ),
    "olmo": Family(
        _sizes(50304, 4096, 11008, 32, 32), qkv_bias="attention_bias", out_bias="attention_bias", norms=0, final_norm=0
    ),
    "olmo2": Family(
        _sizes(50304, 4096, 11008, 32, 32), qkv_bias="attention_bias", out_bias="attention_bias", query_norm="all"
    ),
    "olmo3": Family(
        _sizes(50304, 4096, 11008, 32, 32), qkv_bias="attention_bias", out_bias="attention_bias", query_norm="all"
    ),
    "granite": Family(
        _sizes(32000, 4096, 11008, 32, 32), qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "smollm3": Family(
        _sizes(128256, 2048, 11008, 36, 16, 4, tie_word_embeddings=True),
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
    ),
    "stablelm": Family(
        _sizes(50304, 2560, 6912, 32, 32), qkv_bias="use_qkv_bias", norm_bias=True,
        only={"qk_layernorm": False, "use_parallel_residual": False},
    ),
    "starcoder2": Family(
        _sizes(49152, 3072, 12288, 30, 24, 2, tie_word_embeddings=True, use_bias=True),
        maps=(*SPLIT, "mlp.c_fc", "mlp.c_proj"), gated=False,
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", norm_bias=True,
    ),
    "glm": Family(_sizes(151552, 4096, 13696, 40, 32, 2, head_dim=128, attention_bias=True), maps=_GLM,
                  qkv_bias="attention_bias"),
    "glm4": Family(_sizes(151552, 4096, 13696, 40, 32, 2, head_dim=128, attention_bias=True), maps=_GLM,
                   qkv_bias="attention_bias", norms=4),
    "cohere": Family(
        _sizes(256000, 8192, 22528, 40, 64, tie_word_embeddings=True),
        qkv_bias="attention_bias", out_bias="attention_bias", norms=1, only={"use_qk_norm": False},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensors:
    """``count`` parameters of one shape; ``table``: of a lookup table, whose moments 8-bit optimizers keep in fp32."""

    shape: tuple[int, ...]
    count: int = 1
    table: bool = False

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return self.count * math.prod(self.shape)


def _elements(tensors: Sequence[Tensors]) -> int:
    return sum(one.size for one in tensors)


@dataclass(frozen=True, slots=True)
class Map:
    """A linear map of every layer: its name there, the sizes of its sides, and whether it has a bias."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    @property
    def weights(self) -> int:
        """Without the bias."""
        return self.inputs * self.outputs

    def tensors(self) -> list[Tensors]:
        """With it."""
        return [Tensors((self.outputs, self.inputs)), *([Tensors((self.outputs,))] if self.bias else [])]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A text model's parts.

    ``maps`` are the linear ones of one layer, ``expert_maps`` what PEFT adapts of its experts, with the ranks that each
    takes of the recipe's. ``experts`` are the weights of a layer's experts, which are no linear modules, and ``used``
    how many of them a token is multiplied with. ``inner`` is all else in a layer: norms, router, biases of experts;
    ``outer`` all else around the layers: the last norm, positions. ``head`` is the output layer's own, nothing where it
    is the embedding.
    """

    text: Text
    prefix: str
    maps: Sequence[Map]
    expert_maps: Sequence[tuple[Map, int]]
    experts: Sequence[Tensors]
    used: int
    embedding: Tensors
    head: Sequence[Tensors]
    inner: Sequence[Tensors]
    outer: Sequence[Tensors]

    @property
    def linear(self) -> int:
        """Weights of the linear maps of all layers, without biases and the output layer: what is quantized."""
        return self.text.layers * sum(one.weights for one in self.maps)

    @property
    def parameters(self) -> int:
        """All of them."""
        return _elements(self.tensors())

    @property
    def products(self) -> int:
        """Weights that a token is multiplied with in the decoder."""
        return self.linear + self.text.layers * self.used

    def layers(self, number: int) -> list[Tensors]:
        """Every parameter of so many layers, by its shape."""
        own = [*(tensor for one in self.maps for tensor in one.tensors()), *self.experts, *self.inner]
        return [replace(one, count=number * one.count) for one in own]

    def tensors(self) -> list[Tensors]:
        """Every parameter, by its shape."""
        return [*self.layers(self.text.layers), self.embedding, *self.head, *self.outer]

    def modules(self) -> list[tuple[str, Map]]:
        """Every linear module of the layers, by its full name."""
        return [(f"{self.prefix}{layer}.{one.name}", one) for layer in range(self.text.layers) for one in self.maps]


def read_architecture(config: Mapping[str, Any], *, where: str = "config.json", added: int = 0) -> Architecture:
    """The parts of the model that a config describes.

    Args:
        added: tokens that it is to have besides, each as a row behind the last: which rows are spare, no config says.

    Raises:
        NotUnderstood: another architecture, a variant of it that is not known here, or weights in another form.
    """
    text = _text_config(config, where)
    family = FAMILIES[text["model_type"]]
    values = _Values(text, family, where)
    if config.get("quantization_config"):
        raise _not_understood(where, "Its weights are quantized already, so their size is that of its files.")
    for key, understood in family.only.items():
        expected = values.number("hidden_size") if understood == "hidden_size" else understood
        if text.get(key, expected) != expected:
            raise _not_understood(where, f"{key}: {text[key]!r} is a variant that is not known here.")
    numbers = _numbers(values)
    numbers = replace(numbers, vocabulary=numbers.vocabulary + added)
    maps = _maps(values, numbers)
    experts, used, router = _experts(values, numbers)
    tied = values.flag("tie_word_embeddings", outer=config)
    head = [] if tied else [Tensors((numbers.vocabulary, numbers.hidden))]
    head += [Tensors((numbers.vocabulary,))] if family.head_bias else []
    return Architecture(
        text=numbers,
        prefix=family.prefix,
        maps=maps,
        expert_maps=_expert_maps(values, numbers),
        experts=experts,
        used=used,
        embedding=Tensors((numbers.vocabulary, numbers.hidden), table=True),
        head=head,
        inner=[*_inner(values, numbers), *router],
        outer=_outer(values, numbers),
    )


def shape_from(architecture: Architecture, recipe: Recipe) -> StepBytes:
    """The shape of a step, as ``sizes.shape_of`` counts it on the meta device.

    Args:
        recipe: with its device and dtype resolved.

    Raises:
        NotUnderstood: a method or setting whose effect is not known here.
        ModelError: names that match no module.
    """
    method, text, itemsize = recipe.method, architecture.text, ITEMSIZE[recipe.model.dtype]
    plain = architecture.parameters * itemsize
    held, head, unpacked = plain, 0, 0
    label = method_label(method)
    if isinstance(method, AdapterSettings):
        adapted = _adapted(architecture, method)
        trains = [Linear(name, one.inputs, rank) for name, one, rank in adapted]
        tensors = [Tensors(side) for _, one, rank in adapted for side in ((rank, one.inputs), (one.outputs, rank))]
        factors = FP32 * _elements(tensors)
        tensors += [Tensors((one.outputs,)) for _, one, _ in adapted if method.use_dora]
        tokens = _token_rows(architecture, len(recipe.model.named_tokens))
        tensors += tokens
        trained = FP32 * _elements(tensors)
        lowest = 0 if tokens else _lowest(architecture, trains)
        if isinstance(method, QloraSettings):
            packed = packed_bytes(double_quant=method.bnb_4bit_use_double_quant)
            held = plain - int(architecture.linear * (itemsize - packed))
        elif label == "lora-int8":
            rows = text.layers * sum(one.outputs for one in architecture.maps)
            held = plain - architecture.linear * (itemsize - INT8) + rows * ROW
        if label in QUANTIZED:
            unpacked = max(one.weights for one in architecture.maps) * itemsize
        held += trained
        if method.rewrites_base:  # adapted weights as they were, and what the adapter began with
            held += factors + itemsize * sum(one.weights for _, one, _ in adapted)
    else:
        part = part_of(architecture, method)
        trains, tensors, lowest = part.trains, part.tensors, part.lowest
        trained = _elements(tensors) * itemsize
        head = _elements(architecture.head or [architecture.embedding]) * itemsize if part.head else 0
    aside, beside = copies(recipe, plain=plain, trained=trained)
    passed = text.layers - lowest
    return StepBytes(
        device=recipe.model.device.partition(":")[0],
        method=label,
        weights=held + aside,
        trained=trained,
        beside=beside,
        layers=passed,
        kept=kept(replace(text, layers=passed), recipe, trains, itemsize=itemsize),
        mask=mask_bytes(recipe, itemsize=itemsize),
        hidden=text.hidden * itemsize,
        widest=max(text.hidden, text.intermediate) * itemsize,
        vocabulary=text.vocabulary or 1,
        head=head,
        unpacked=unpacked,
        itemsize=itemsize,
        states=_states(recipe.training.optim, tensors, FP32 if isinstance(method, AdapterSettings) else itemsize),
    )


@dataclass(frozen=True, slots=True)
class Part:
    """What trains of a model's own weights.

    ``trains``: its linear maps; ``tensors``: all that train; ``products``: those that a token is multiplied with in the
    decoder. ``lowest``: the first layer that the gradient passes. ``head``: whether the output layer trains.
    """

    trains: list[Linear]
    tensors: list[Tensors]
    products: int
    lowest: int
    head: bool


def part_of(architecture: Architecture, method: FullSettings | FreezeSettings) -> Part:
    """The weights that full or freeze trains. Raises NotUnderstood for names of what is not counted one by one here."""
    modules, layers = architecture.modules(), architecture.text.layers
    if isinstance(method, FullSettings):
        trains = [Linear(name, one.inputs) for name, one in modules]
        return Part(trains, architecture.tensors(), architecture.products, 0, head=True)
    names, first = method.trainable_modules or [], layers - method.trainable_layers
    known = not isinstance(names, str) and all(any(_matches(module, [name]) for module, _ in modules) for name in names)
    if first < 0 or not known or (names and architecture.experts):
        raise _not_understood("method", "Which weights it trains is not known here.")
    below = [(name, one) for name, one in modules if _layer_of(architecture, name) < first and _matches(name, names)]
    above = [(name, one) for name, one in modules if _layer_of(architecture, name) >= first]
    trains = [Linear(name, one.inputs) for name, one in (*below, *above)]
    tables = [architecture.embedding, *architecture.head] if method.train_embeddings else []
    named = [tensor for _, one in below for tensor in one.tensors()]
    return Part(
        trains,
        tensors=[*architecture.layers(method.trainable_layers), *named, *tables],
        products=sum(one.weights for _, one in (*below, *above)) + method.trainable_layers * architecture.used,
        lowest=0 if method.train_embeddings else min(first, _lowest(architecture, trains)),
        head=method.train_embeddings,
    )


def _lowest(architecture: Architecture, trains: Sequence[Linear]) -> int:
    """The first layer that the gradient passes on its way to these maps; as many as there are where it passes none."""
    return min((_layer_of(architecture, one.name) for one in trains), default=architecture.text.layers)


def _layer_of(architecture: Architecture, name: str) -> int:
    """The number of a module's layer; that behind the last for the output layer."""
    if not name.startswith(architecture.prefix):
        return architecture.text.layers
    return int(name.removeprefix(architecture.prefix).partition(".")[0])


def _token_rows(architecture: Architecture, added: int) -> list[Tensors]:
    """Weights of added tokens that train beside an adapter: a row of the embedding, and of an output layer apart."""
    if not added:
        return []
    if any(len(one.shape) == 1 for one in architecture.head):
        raise _not_understood("model.add_tokens", "The output layer has a bias.")
    return [Tensors((added, architecture.text.hidden), table=True)] * (2 if architecture.head else 1)


def _states(optim: str, tensors: Sequence[Tensors], itemsize: int) -> float:
    """Bytes of the optimizer's state for each byte that trains."""
    held = sum(one.count * state_bytes(optim, one.shape, itemsize=itemsize, embedding=one.table) for one in tensors)
    return held / max(itemsize * _elements(tensors), 1)


def _text_config(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The text model's own section, where the config is that of a wrapper which builds the text model alone."""
    kind = config.get("model_type")
    if kind in FAMILIES:
        return config
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and inner.get("model_type") in FAMILIES and "vision_config" not in config:
        return inner
    known = ", ".join(FAMILIES)
    why = f"model_type is {kind!r}; what can be counted from a config alone: {known}."
    if isinstance(inner, Mapping):
        why = f"model_type {kind!r} has parts beside its text model."
    raise _not_understood(where, why)


def _not_understood(where: str, why: str) -> NotUnderstood:
    return NotUnderstood(
        "This model cannot be counted from its config alone",
        where=where,
        why=why,
        remedy="Name the model by its folder or hub id: it is then counted with transformers, which takes seconds.",
    )


class _Values:
    """The config's values by the names that they have here, what it leaves out filled in."""

    def __init__(self, text: Mapping[str, Any], family: Family, where: str) -> None:
        self.text, self.family, self.where = text, family, where

    def get(self, name: str) -> Any:
        for key in (self.family.renamed.get(name, name), name):
            if self.text.get(key) is not None:
                return self.text[key]
        return self.family.defaults.get(name)

    def number(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _not_understood(self.where, f"{name} is {value!r}, not a positive whole number.")
        return value

    def flag(self, name: bool | str, *, outer: Mapping[str, Any] | None = None) -> bool:
        if isinstance(name, bool):
            return name
        value = self.get(name) if outer is None or name not in outer else outer[name]
        return bool(value)


def _numbers(values: _Values) -> Text:
    hidden, heads = values.number("hidden_size"), values.number("num_attention_heads")
    intermediate = values.get("intermediate_size") or 4 * hidden
    a_token = values.number("num_experts_per_tok") if values.family.experts else 0
    if a_token:
        intermediate = a_token * (values.get("moe_intermediate_size") or intermediate)
        intermediate += values.get("shared_expert_intermediate_size") or 0
    return Text(
        layers=values.number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        key_heads=values.get("num_key_value_heads") or heads,
        head_size=values.get("head_dim") or hidden // heads,
        intermediate=intermediate,
        experts_a_token=a_token,
        vocabulary=values.number("vocab_size"),
    )


def _maps(values: _Values, text: Text) -> list[Map]:
    """The linear maps of one layer: those before attention, behind it, before the activation, behind it."""
    family, hidden = values.family, text.hidden
    query, key = text.heads * text.head_size, text.key_heads * text.head_size
    qkv, out, mlp = (values.flag(name) for name in (family.qkv_bias, family.out_bias, family.mlp_bias))
    names = list(family.maps)
    maps = []
    for name, size in (
        zip(names[:3], (query, key, key), strict=True) if names[0].endswith("q_proj") else [(names[0], query + 2 * key)]
    ):
        maps.append(Map(name, hidden, size, qkv))
    names = names[len(maps) :]
    maps.append(Map(names.pop(0), query, hidden, out))
    inner = values.get("intermediate_size") or 4 * hidden
    if names:
        *before, behind = names
        width = inner * (2 if family.gated and len(before) == 1 else 1)
        maps += [Map(name, hidden, width, mlp) for name in before] + [Map(behind, inner, hidden, mlp)]
    if family.shared_expert:
        inner = values.number("shared_expert_intermediate_size")
        part = "mlp.shared_expert"
        maps += [Map(f"{part}.{name}", hidden, inner, False) for name in ("gate_proj", "up_proj")]
        maps += [Map(f"{part}.down_proj", inner, hidden, False), Map(f"{part}_gate", hidden, 1, False)]
    return maps


def _experts(values: _Values, text: Text) -> tuple[list[Tensors], int, list[Tensors]]:
    """Of one layer: weights of all experts, how many of them a token has, and their router and biases."""
    family, hidden = values.family, text.hidden
    if family.experts is None:
        return [], 0, []
    count = values.number(family.experts)
    inner = values.get("moe_intermediate_size") or values.number("intermediate_size")
    weights = [Tensors((count, 2 * inner, hidden)), Tensors((count, hidden, inner))]
    router = [Tensors((count, hidden))]
    if family.biased_experts:
        router += [Tensors((count, 2 * inner)), Tensors((count, hidden)), Tensors((count,))]
    return weights, text.experts_a_token * 3 * hidden * inner, router


def _expert_maps(values: _Values, text: Text) -> list[tuple[Map, int]]:
    """As PEFT adapts stacked experts: one pair of matrices for all of them, each with a rank of its own."""
    family = values.family
    if not (family.adapted_experts and family.experts):
        return []
    count, hidden = values.number(family.experts), text.hidden
    inner = values.get("moe_intermediate_size") or values.number("intermediate_size")
    return [
        (Map("mlp.gate", hidden, count, False), 1),
        (Map("mlp.experts.base_layer", hidden, 2 * inner, False), 2 * count),  # gate and up, joined
        (Map("mlp.experts", inner, hidden, False), count),
    ]


def _inner(values: _Values, text: Text) -> list[Tensors]:
    """Norms and attention sinks of a layer."""
    family = values.family
    found = _norms(values, text, family.norms)
    if family.sinks:
        found.append(Tensors((text.heads,)))
    if family.query_norm is not None:
        heads = (1, 1) if family.query_norm == "head" else (text.heads, text.key_heads)
        found += [Tensors((number * text.head_size,)) for number in heads]
    return found


def _outer(values: _Values, text: Text) -> list[Tensors]:
    """The last norm, and positions."""
    family = values.family
    found = _norms(values, text, family.final_norm)
    if family.positions is not None:
        places = values.number("max_position_embeddings") + family.positions
        found.append(Tensors((places, text.hidden), table=True))
    return found


def _norms(values: _Values, text: Text, number: int) -> list[Tensors]:
    """So many of them."""
    return [Tensors((text.hidden,), number * (2 if values.flag(values.family.norm_bias) else 1))]


def _adapted(architecture: Architecture, method: AdapterSettings) -> list[tuple[str, Map, int]]:
    """Every module that gets an adapter, with its rank, by the rules of PEFT."""
    for name in type(method).model_fields:
        if name not in KNOWN and getattr(method, name) != type(method).model_fields[name].get_default(
            call_default_factory=True
        ):
            raise _not_understood(f"method.{name}", "What this setting trains is not known here.")
    if method.layers_pattern is not None:
        raise _not_understood("method.layers_pattern", "Which modules it matches is not known here.")
    if architecture.expert_maps:
        return _adapted_mixture(architecture, method)
    modules = architecture.modules()
    head = Map("lm_head", architecture.text.hidden, architecture.text.vocabulary, False)
    targets, left_out = method.target_modules, method.exclude_modules
    if targets != "all-linear":
        modules = [*modules, ("lm_head", head)]
    found = [
        (name, one, _rank(name, method))
        for name, one in modules
        if (targets == "all-linear" or _matches(name, targets))
        and not (left_out and _matches(name, left_out))
        and _in_layers(name, architecture.prefix, method.layers_to_transform)
    ]
    if not found:
        raise ModelError(
            "the adapter does not fit this model",
            where="method.target_modules",
            why=f"{targets!r} matches no linear module",
            remedy=f"linear modules of this model: {', '.join(one.name for one in architecture.maps)}",
        )
    return found


def _adapted_mixture(architecture: Architecture, method: AdapterSettings) -> list[tuple[str, Map, int]]:
    """Modules of a mixture whose experts PEFT can adapt."""
    targets = method.target_modules
    attention = isinstance(targets, list) and {f"self_attn.{name}" for name in targets} <= set(SPLIT)
    if method.exclude_modules or method.layers_to_transform is not None or method.rank_pattern or method.use_dora:
        raise _not_understood("method", "Which experts it adapts is not known here.")
    if targets == "all-linear" and method.lora_dropout:
        raise ModelError(
            "the adapter does not fit this model",
            where="method.lora_dropout",
            why="PEFT adapts experts without dropout only.",
            remedy="Set lora_dropout: 0, or name target_modules: [q_proj, k_proj, v_proj, o_proj].",
        )
    if not (attention or targets == "all-linear"):
        raise _not_understood("method.target_modules", "Which experts it adapts is not known here.")
    wanted = SPLIT if targets == "all-linear" else [f"self_attn.{name}" for name in targets]
    found = [(name, one, method.r) for name, one in architecture.modules() if one.name in wanted]
    if attention:
        return found
    layers = range(architecture.text.layers)
    return found + [
        (f"{architecture.prefix}{layer}.{one.name}", one, method.r * ranks)
        for layer in layers
        for one, ranks in architecture.expert_maps
    ]


def _matches(name: str, wanted: str | list[str]) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def _in_layers(name: str, prefix: str, layers: int | list[int] | None) -> bool:
    if layers is None:
        return True
    wanted = [layers] if isinstance(layers, int) else layers
    return any(name.startswith(f"{prefix}{layer}.") for layer in wanted)


def _rank(name: str, method: AdapterSettings) -> int:
    for pattern, rank in method.rank_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return rank
    return method.r
