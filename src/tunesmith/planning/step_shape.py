"""What decides the memory of a step, as plain numbers. No torch here: a plan can be made from a config alone.

``sizes.py`` takes the numbers from a model on torch's meta device, ``architecture.py`` from config.json by arithmetic;
what a layer keeps for its backward pass is computed here, for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.model.compute.limits import SAME_INPUT
from tunesmith.recipe.methods import BESIDE, AdapterSettings, method_label
from tunesmith.recipe.settings import Recipe

FP32 = 4  # bytes
NF4, CONSTANTS, DOUBLE = 0.5, 4 / 64, 1 / 64 + 4 / (64 * 256)  # bytes a weight: packed; fp32 and quantized constants
INT8, ROW = 1, 4  # bytes a weight, and the fp32 scale of each row of a weight


@dataclass(frozen=True, slots=True)
class StepBytes:
    """All in bytes, but ``layers`` and ``vocabulary``.

    ``weights`` is every parameter as it is held, with the copies that freeze keeps of what trains; ``trained`` those
    that train; ``beside`` what judging holds of the untuned model beside the tuned one. ``layers`` are those that the
    gradient passes, from the lowest that trains up: there a token leaves ``kept`` in each layer for the backward pass,
    and ``mask`` for each token that it may see. ``hidden`` and ``widest`` are one token's hidden state and widest
    activation. ``head`` is the output layer's weight where it trains, else 0; ``unpacked`` the largest quantized one,
    unpacked. ``recomputes``: the model supports gradient checkpointing. ``states``: bytes of the optimizer's state
    for each byte that trains; AdamW has two moments. ``itemsize``: bytes of a weight of ``beside``.
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
    states: float = 2.0
    itemsize: int = FP32


@dataclass(frozen=True, slots=True)
class Text:
    """The numbers of a text model. ``intermediate``: of a feed-forward block for each token, its experts together."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    intermediate: int
    experts_a_token: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map that trains, or has an adapter of rank ``rank``: its module's name and the size of its input."""

    name: str
    width: int
    rank: int = 0


def kept(text: Text, recipe: Recipe, trains: list[Linear], *, itemsize: int) -> int:
    """Bytes that a token leaves in a layer for the backward pass.

    Two norms keep their inputs, in fp32 whatever the dtype. Attention keeps q, k, v, its output and a log-sum-exp; keys
    are repeated for all heads where the pieces of ``model/attention.py`` do not compute it. A gated block keeps gate
    and up, and outside fp32 silu(gate). Experts get copies of their tokens.

    Args:
        itemsize: bytes of a number in the dtype of the model.
    """
    query, key = text.heads * text.head_size, text.key_heads * text.head_size
    pieces = _on_cpu(recipe) and recipe.training.layout != "padded"
    attention = 2 * query + 2 * (key if pieces else query)
    gated = (2 if itemsize == FP32 else 3) * text.intermediate
    copies = 2 * text.hidden * text.experts_a_token
    inputs = _inputs(recipe, trains, itemsize) // (text.layers or 1)
    return (2 * text.hidden + text.heads) * FP32 + (attention + gated + copies) * itemsize + inputs


def mask_bytes(recipe: Recipe, *, itemsize: int) -> int:
    """Bytes of an attention mask for each pair of tokens of a micro-batch: none on a CPU, nor where rows are padded."""
    return 0 if _on_cpu(recipe) or recipe.training.layout == "padded" else itemsize


def copies(recipe: Recipe, *, plain: int, trained: int) -> tuple[int, int]:
    """Bytes of the untuned model beside the tuned one: of what is held all the time, and of what judging adds.

    freeze keeps copies of what trains in the memory of the CPU, and so does what goes on from an adapter; full and what
    is quantized load the untuned model when it is asked for; lora needs neither.

    Args:
        plain: bytes of the untuned model.
        trained: bytes of what trains.
    """
    if recipe.method.name == "freeze":
        return (0, trained) if recipe.model.device.partition(":")[0] == "cuda" else (trained, 0)
    if getattr(recipe.method, "adapter_name_or_path", None) is not None:
        return trained, 0
    return 0, plain if method_label(recipe.method) in BESIDE else 0


def packed_bytes(*, double_quant: bool) -> float:
    """Bytes of a 4-bit weight with its share of the quantization constants."""
    return NF4 + (DOUBLE if double_quant else CONSTANTS)


def _inputs(recipe: Recipe, trains: list[Linear], itemsize: int) -> int:
    """Bytes that a token leaves in all layers as the inputs of what trains, its rank-sized products and its dropout.

    Maps that read the same tensor keep it once; PEFT's own adapters, outside fp32, keep a copy each in fp32.
    """
    width = sum(one.width for one in trains)
    once = itemsize == FP32 or not isinstance(recipe.method, AdapterSettings)
    inputs = _distinct(trains) * itemsize if once else width * FP32
    masks = width * itemsize if getattr(recipe.method, "lora_dropout", 0.0) else 0
    return inputs + masks + sum(one.rank for one in trains) * FP32


def _distinct(trains: Iterable[Linear]) -> int:
    """Elements of the inputs that are kept: siblings share theirs, and an output projection has attention's."""
    seen: dict[tuple[str, object], int] = {}
    for one in trains:
        parent, _, name = one.name.rpartition(".")
        if name != "o_proj":
            seen[parent, next((names for names in SAME_INPUT if name in names), name)] = one.width
    return sum(seen.values())


def _on_cpu(recipe: Recipe) -> bool:
    return recipe.model.device.partition(":")[0] == "cpu"
