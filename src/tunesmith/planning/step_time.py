"""Predicts the time of a step and of an epoch from counted operations and bytes."""

from __future__ import annotations

from tunesmith.planning.budget import Plan
from tunesmith.planning.devices import Device
from tunesmith.planning.step_shape import INT8, NF4, CountedModel
from tunesmith.planning.workload import Workload
from tunesmith.recipe.optimizers import FP32
from tunesmith.recipe.settings import Recipe

# Share of the peak that a step reaches. CPU: measured, SmolLM2-135M in fp32 against numpy's sgemm on the same threads,
# full, lora and qlora at 128 and 1,024 tokens a row: 0.65 to 0.74. GPU: assumed, not measured; well-tuned trainers
# of dense models reach 0.3 to 0.5 of the dense bf16 peak.
EFFICIENCY = {"cpu": 0.70, "cuda": 0.35}
BANDWIDTH = 10**10  # bytes/s of a CPU's memory, for what is no product: AdamW and dequantizing. Measured: 8 to 10 GB/s
ADAMW = 7  # a parameter, its gradient and two moments are read; all but the gradient are written


def epoch_seconds(counted: CountedModel, chosen: Plan, recipe: Recipe, workload: Workload, device: Device) -> float:
    """Seconds of one pass over the rows, validation and verdict aside."""
    return step_seconds(
        counted,
        recipe,
        device,
        computed=workload.computed,
        logits=workload.logits,
        pairs=workload.pairs,
        checkpointing=chosen.checkpointing,
        micro_batches=max(1, -(-workload.computed // max(chosen.budget, 1))),
        steps=max(1, -(-workload.rows // recipe.training.batch_size)),
    )


def step_seconds(
    counted: CountedModel,
    recipe: Recipe,
    device: Device,
    *,
    computed: int,
    logits: int,
    pairs: int,
    checkpointing: bool,
    micro_batches: int = 1,
    steps: int = 1,
) -> float:
    """Seconds for so many tokens, logits and pairs.

    A product of a token with N weights is 2N FLOPs, forward; its gradient by the token 2N more, and by weights that
    train another 2N. So adapters need 4N + 4cE a token (and 6 for their own weights), full fine-tuning 6N + 6cE, with
    E the output layer and c the share of tokens whose logits a label needs. Attention is 4 d a layer for each pair of
    tokens that see each other, forward, and twice that backward. Checkpointing adds a forward pass of the layers.
    Layers below the lowest that trains have the forward pass alone.
    """
    work, shape = counted.work, counted.shape
    passed = shape.layers / work.layers  # of all layers, those that the gradient passes
    products, attention = 2 * work.products * computed, 4 * work.width * work.layers * pairs
    flops = products + attention + passed * (products + 2 * attention) + 2 * work.trained * computed
    flops += (6 if shape.head else 4) * work.head * logits + 6 * work.adapters * computed
    flops += passed * (products + attention) if checkpointing else 0
    dtype = recipe.model.dtype
    if recipe.method.name == "qlora" and device.kind == "cuda":
        dtype = "bfloat16" if device.bf16 else "float16"  # what a GPU's 4-bit layers compute in
    speed = device.speed(dtype) * EFFICIENCY[device.kind]
    bandwidth = device.bandwidth or BANDWIDTH
    stored = NF4 if recipe.method.name == "qlora" else INT8
    unpacked = work.packed * (FP32 + stored) * (3 if checkpointing else 2) * micro_batches
    return flops / speed + (ADAMW * shape.trained * steps + unpacked) / bandwidth


def time_in_words(seconds: float) -> str:
    """``1.5 h``, ``3.2 s`` or ``45 ms``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
