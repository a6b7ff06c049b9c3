"""The facts that determine the memory and the time of a training step, as plain numbers. Imports no torch.

``shape_from_model.py`` counts them on a model without weights. The formula for what a layer keeps for its backward
pass is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.model.compute.limits import SAME_INPUT
from tunesmith.recipe.methods import BESIDE, AdapterSettings, method_label
from tunesmith.recipe.optimizers import FP32
from tunesmith.recipe.settings import Recipe

NF4, CONSTANTS, DOUBLE = 0.5, 4 / 64, 1 / 64 + 4 / (64 * 256)  # bytes a weight: packed; fp32 and quantized constants
INT8, ROW = 1, 4  # bytes a weight, and the fp32 scale of each row of a weight


@dataclass(frozen=True, slots=True)
class StepBytes:
    """The facts that determine the memory of a step. All are bytes, except ``layers`` and ``vocabulary``.

    ``weights`` is every parameter as it is held, with the copies that freeze keeps of what trains; ``trained`` is those
    that train; ``beside`` is what judging holds of the untuned model beside the tuned one. ``layers`` are those that
    the gradient passes, from the lowest that trains up: there a token leaves ``kept`` in each layer for the backward
    pass, and ``mask`` for each token that it may see. ``hidden`` and ``widest`` are one token's hidden state and widest
    activation. ``head`` is the output layer's weight if it trains, else 0. ``unpacked`` is the largest quantized
    weight, unpacked. ``recomputes``: the model supports gradient checkpointing. ``states``: bytes of the optimizer's
    state for each byte that trains; AdamW has two moments. ``itemsize``: bytes of a weight of ``beside``.
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
class StepWork:
    """The facts that determine the time of a step: the weights that each token is multiplied with.

    ``products`` are those of the decoder, ``trained`` those of them that train, ``head`` the output layer's and
    ``adapters`` the adapters'. ``packed`` are the weights in 4 or 8 bits. ``layers`` is the decoder's number of layers,
    ``width`` its attention's heads times their size.
    """

    products: int
    trained: int
    head: int
    adapters: int
    layers: int
    width: int
    packed: int


@dataclass(frozen=True, slots=True)
class CountedModel:
    """A model with its method: the memory and the work of a step, and the parameters in all and trained."""

    shape: StepBytes
    work: StepWork
    parameters: int
    trainable: int


@dataclass(frozen=True, slots=True)
class TextModel:
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
class TrainedLinear:
    """A linear map that trains, or has an adapter of rank ``rank``: its module's name and the size of its input."""

    name: str
    width: int
    rank: int = 0


def kept(text: TextModel, recipe: Recipe, trains: list[TrainedLinear], *, itemsize: int) -> int:
    """The bytes that a token leaves in a layer for the backward pass.

    Args:
        itemsize: bytes of a number in the dtype of the model.
    """
    query, key = text.heads * text.head_size, text.key_heads * text.head_size
    # Query, keys, values and output; keys are repeated for all heads unless tree attention on a CPU computes pieces.
    pieces = _on_cpu(recipe) and recipe.training.layout != "padded"
    attention = 2 * query + 2 * (key if pieces else query)
    # A gated block keeps gate and up, and outside fp32 silu(gate). Experts get copies of their tokens.
    gated = (2 if itemsize == FP32 else 3) * text.intermediate
    copies = 2 * text.hidden * text.experts_a_token
    # Two norms keep their inputs and attention its log-sum-exp, in fp32 whatever the dtype.
    norms = (2 * text.hidden + text.heads) * FP32
    inputs = _inputs(recipe, trains, itemsize) // (text.layers or 1)
    return norms + (attention + gated + copies) * itemsize + inputs


def mask_bytes(recipe: Recipe, *, itemsize: int) -> int:
    """Bytes of an attention mask for each pair of tokens of a micro-batch: none on a CPU or with padded rows."""
    return 0 if _on_cpu(recipe) or recipe.training.layout == "padded" else itemsize


def copies(recipe: Recipe, *, plain: int, trained: int) -> tuple[int, int]:
    """Bytes of the untuned model beside the tuned one: of what is held all the time, and of what judging adds.

    freeze keeps copies of what trains in the memory of the CPU, and so does what continues from an adapter. full and
    quantized bases load the untuned model when it is asked for. lora needs neither.

    Args:
        plain: bytes of the untuned model.
        trained: bytes of what trains.
    """
    if recipe.method.name == "freeze":
        return (0, trained) if recipe.model.device.partition(":")[0] == "cuda" else (trained, 0)
    if isinstance(recipe.method, AdapterSettings) and recipe.method.adapter_name_or_path is not None:
        return trained, 0
    return 0, plain if method_label(recipe.method) in BESIDE else 0


def packed_bytes(*, double_quant: bool) -> float:
    """Bytes of a 4-bit weight with its share of the quantization constants."""
    return NF4 + (DOUBLE if double_quant else CONSTANTS)


def _inputs(recipe: Recipe, trains: list[TrainedLinear], itemsize: int) -> int:
    """Bytes that a token leaves in all layers as the inputs of what trains, its rank-sized products and its dropout.

    Maps that read the same tensor keep it once. Outside fp32, PEFT's own adapters keep a copy each in fp32.
    """
    width = sum(one.width for one in trains)
    adapter = isinstance(recipe.method, AdapterSettings)
    inputs = width * FP32 if adapter and itemsize != FP32 else _distinct(trains) * itemsize
    masks = width * itemsize if isinstance(recipe.method, AdapterSettings) and recipe.method.lora_dropout else 0
    return inputs + masks + sum(one.rank for one in trains) * FP32


def _distinct(trains: Iterable[TrainedLinear]) -> int:
    """Elements of the inputs that are kept: siblings share theirs, and an output projection has attention's."""
    seen: dict[tuple[str, object], int] = {}
    for one in trains:
        parent, _, name = one.name.rpartition(".")
        if name != "o_proj":
            seen[parent, next((names for names in SAME_INPUT if name in names), name)] = one.width
    return sum(seen.values())


def _on_cpu(recipe: Recipe) -> bool:
    return recipe.model.device.partition(":")[0] == "cpu"
