"""What fits, before training: every `auto` that depends on memory, as a pure function of model, recipe and data.

Nothing here measures free memory or time: the same inputs give the same choice on every day, so a run can be resumed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from tunesmith.methods.base import weights_in
from tunesmith.recipe import MethodSettings

CPU_TOKENS = 1024  # a larger forward pass gains nothing on a CPU and costs memory (docs/lab.md)
GPU_TOKENS = 8192
BYTES_TRAINED = 16  # fp32 weight, gradient and two moments of AdamW
SHARE = 0.8  # of the memory that a plan may use


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model's config decides its memory. Counts are parameters; sizes are in elements."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    weight_bytes: float


def total_memory(device: str) -> int:
    """Bytes of the device, used or free."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def micro_batch_tokens(device: str, longest_row: int) -> int:
    """The token budget of one forward pass: the device's own, or the longest row where that is longer."""
    return max(CPU_TOKENS if torch.device(device).type == "cpu" else GPU_TOKENS, longest_row)


def threads() -> int:
    """CPU threads of a forward pass: the processors that this process may use."""
    return len(os.sched_getaffinity(0))


def shape(model: nn.Module, config: PretrainedConfig, method: MethodSettings) -> Shape:
    """The sizes of a model with its method attached."""
    text = config.get_text_config()
    counts = [(weights_in(parameter), parameter.requires_grad) for parameter in model.parameters()]
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return Shape(
        parameters=sum(count for count, _ in counts),
        trainable=sum(count for count, trains in counts if trains),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None)
        or 4 * text.hidden_size,  # GPT-2 and OPT name it otherwise
        vocabulary=text.vocab_size,
        weight_bytes=weight_bytes(method, first.dtype),
    )


def peak_bytes(shape: Shape, *, tokens: int, checkpointing: bool) -> int:
    """An estimate of a step's peak: weights, what AdamW holds, activations of one micro-batch, and its logits.

    A decoder layer keeps about 10 hidden-sized and 4 intermediate-sized tensors a token for its backward pass; with
    checkpointing, one hidden-sized tensor a layer and one layer in full.
    """
    layer = tokens * (10 * shape.hidden + 4 * shape.intermediate) * 4
    activations = shape.layers * tokens * shape.hidden * 4 + layer if checkpointing else shape.layers * layer
    logits = 4 * tokens * shape.vocabulary * 4
    return int(shape.parameters * shape.weight_bytes + shape.trainable * BYTES_TRAINED + activations + logits)


def needs_checkpointing(shape: Shape, *, tokens: int, memory: int) -> bool:
    """`gradient_checkpointing: auto`: only where the plain step would not fit."""
    return peak_bytes(shape, tokens=tokens, checkpointing=False) > SHARE * memory


def unquantized_base_fits(parameters: int, *, memory: int) -> bool:
    """Whether a qlora run can be judged against the user's unquantized fp32 model beside the tuned one."""
    return parameters * (4 + 1) < SHARE * memory


def weight_bytes(method: MethodSettings, dtype: torch.dtype) -> float:
    """Bytes a parameter of the base takes: half a byte and its constants under qlora."""
    return 0.6 if method.name == "qlora" else dtype.itemsize
