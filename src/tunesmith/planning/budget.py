"""Predicts the memory of a run and chooses its micro-batch, as a pure function of model, recipe, data and device.

Nothing here measures free memory or time: the same inputs give the same choice on every day, so a run can be resumed.
The measured step (``training/rehearsal.py``) may only refuse. Constants were fitted to measured peaks, see docs/lab.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunesmith.errors import ModelError
from tunesmith.model.compute.limits import LOGITS_AT_ONCE
from tunesmith.planning.memory import GIB
from tunesmith.planning.step_shape import StepBytes
from tunesmith.recipe.methods import QUANTIZED
from tunesmith.recipe.optimizers import FP32
from tunesmith.recipe.settings import TrainingSettings

if TYPE_CHECKING:
    from tunesmith.data.batches.layout import TokenRow


CPU_TOKENS = 1024  # a larger forward pass gains nothing on a CPU and costs memory (docs/lab.md), prefixes aside
GPU_TOKENS = 8192
LADDER = (16384, 12288, 8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)  # what `auto` chooses from
WORTH = 0.95  # a larger budget is taken where it leaves so much of the tokens to compute, or less
SHARE = 0.8  # of the memory that `auto` may plan with: a prediction can be wrong by a fifth
MEASURED_SHARE = 0.95  # of the memory that a measured step may need: the rest is the system's
LIBRARIES = 480 * 2**20  # measured: Python, torch, transformers and PEFT with nothing loaded, resident on a CPU
CONTEXT = 500 * 2**20  # not measured here: what CUDA takes of a GPU for itself
HOLES = 1.7  # measured: resident for each byte of activations after some steps in glibc's heap, which leaves holes
LATER_HOLES = 0.3  # measured: the share of that which is not there yet in the first micro-batch
FEW_HOLES = 1.1  # where large blocks are given back (checkpointing), and in torch's own allocator on a GPU
# Of the activations, what the heap grows by over many steps: a share, and another for a row that fills the micro-batch,
# in proportion for a shorter one. Fitted to three steps each of SmolLM2-135M, 1,024 tokens in rows of 128, 512 and
# 1,024; the same steps differ by up to 9% between processes, by the state of the heap.
GROWTH = {"full": (0.0, 0.14), "lora": (0.16, 0.2), "qlora": (0.16, 0.2)}
GROWTH["lora-int8"] = GROWTH["qlora"]  # not fitted: weights are dequantized the same way
LOGITS = 3  # fp32 copies of a chunk of logits
HEAD_GRADIENTS = 3  # of a trained output layer: one chunk's, the sum so far, and the new sum
CHEAPER = {
    "full": ["use method: lora or qlora"],
    "freeze": ["lower method.trainable_layers", "use method: lora or qlora"],
    "lora": ["use method: qlora"],
    "lora-int8": ["use method: qlora"],
}
UNITS = ((GIB, "GB"), (2**20, "MB"), (2**10, "KB"))  # in which sizes are shown
BACKWARD = 5  # a layer's widest activations that its backward pass has at a time


@dataclass(frozen=True, slots=True)
class Peak:
    """The bytes at the fullest moment of training, by what holds them.

    ``logits`` includes the working space of the passes. ``judging`` is all that is held when base and tuned model are
    compared.
    """

    libraries: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    judging: int

    @property
    def training(self) -> int:
        """Bytes of a step."""
        held = (self.libraries, self.weights, self.gradients, self.optimizer, self.activations, self.logits)
        return sum(held)

    @property
    def total(self) -> int:
        """Bytes of the whole run."""
        return max(self.training, self.judging)

    def __str__(self) -> str:
        parts = {
            "libraries": self.libraries,
            "weights": self.weights,
            "gradients and optimizer": self.gradients + self.optimizer,
            "activations": self.activations,
            "logits and working space": self.logits,
        }
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items())


@dataclass(frozen=True, slots=True)
class Plan:
    """A choice: the token budget of a micro-batch, the most tokens that one can have, and whether to checkpoint."""

    shape: StepBytes
    budget: int
    tokens: int
    checkpointing: bool
    memory: int

    def peak(self, tokens: int | None = None) -> Peak:
        """The prediction for a micro-batch of ``tokens``, by default for the largest there can be."""
        largest = self.tokens if tokens is None else tokens
        return predict(self.shape, tokens=largest, checkpointing=self.checkpointing, memory=self.memory)

    def peak_of_many_steps(self, row: float) -> Peak:
        """The prediction over many steps of the largest micro-batch, as the heap breaks into pieces.

        Args:
            row: tokens of a typical row.
        """
        peak, later = self.peak(), self.later_holes(self.tokens)
        if self.shape.method in GROWTH:
            share, of_row = GROWTH[self.shape.method]
            later = int(later * (share + of_row * min(row / self.tokens, 1.0)) / LATER_HOLES)
        return replace(peak, activations=peak.activations + later)

    def later_holes(self, tokens: int) -> int:
        """The bytes by which a process grows after its first micro-batch, as the heap breaks into pieces."""
        return int(LATER_HOLES * self.peak(tokens).activations) if self._in_heap else 0

    @property
    def _in_heap(self) -> bool:
        return self.shape.device == "cpu" and not self.checkpointing

    def __str__(self) -> str:
        how = "with" if self.checkpointing else "without"
        return (
            f"memory: {gigabytes(self.peak().total)} predicted, of {gigabytes(self.memory)}, "
            f"at {self.tokens:,} tokens in a micro-batch, {how} gradient checkpointing"
        )


def micro_batch_tokens(device: str, longest_row: int, steps: Sequence[Sequence[TokenRow]] = ()) -> int:
    """The token budget that suits the device and the data, whatever the memory; see ``ladder``."""
    return ladder(device, longest_row, steps)[0]


def ladder(device: str, longest_row: int, steps: Sequence[Sequence[TokenRow]] = ()) -> list[int]:
    """The budgets that `auto` tries, from the one that suits device and data down to the longest row, which must fit.

    A device has a size that suits it. If rows share long prefixes, a larger budget computes fewer tokens, because a
    prefix is computed once in each micro-batch.

    Args:
        steps: the rows of some optimizer steps; none if rows do not share.
    """
    good = CPU_TOKENS if device.partition(":")[0] == "cpu" else GPU_TOKENS
    best = max(good, longest_row)
    tokens = _computed(steps, best)
    for budget in sorted(rung for rung in LADDER if rung > best):
        fewer = _computed(steps, budget)
        if fewer < WORTH * tokens:
            best, tokens = budget, fewer
    return [rung for rung in LADDER if longest_row < rung <= best] + [longest_row]


def _computed(steps: Sequence[Sequence[TokenRow]], budget: int) -> int:
    if not steps:  # a plan from a config alone imports no torch
        return 0
    from tunesmith.data.batches.layout import micro_batches

    batches = (batch for rows in steps for batch in micro_batches(rows, budget=budget, layout="tree"))
    return sum(batch.computed for batch in batches)


def threads() -> int:
    """CPU threads of a forward pass: OMP_NUM_THREADS, else the processors that this process may use."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one number for each level
    return int(said) if said.isdecimal() and int(said) else len(os.sched_getaffinity(0))


def predict(shape: StepBytes, *, tokens: int, checkpointing: bool, memory: int) -> Peak:
    """The peak of a run whose largest micro-batch has ``tokens`` tokens. It is good to a fifth for llama-like models.

    Gradients are counted beside the activations, because those of the micro-batch before are held meanwhile.
    With checkpointing each layer keeps its input, and one layer at a time keeps the rest. Layers that no gradient
    passes keep nothing.
    """
    on_cpu = shape.device == "cpu"
    layer = tokens * (shape.kept + tokens * shape.mask)
    kept = shape.layers * layer
    if checkpointing:
        kept = shape.layers * tokens * shape.hidden + min(shape.layers, 1) * layer
    moments = int(shape.states * shape.trained)
    logits = min(tokens, max(LOGITS_AT_ONCE // shape.vocabulary, 1)) * shape.vocabulary * FP32 * LOGITS
    head = logits + 2 * tokens * shape.hidden + HEAD_GRADIENTS * shape.head
    libraries = LIBRARIES if on_cpu else CONTEXT
    beside = shape.beside if _judged_beside(shape, memory) else 0
    forward = int(logits + tokens * (BACKWARD * shape.widest + 4 * shape.hidden))
    return Peak(
        libraries=libraries,
        weights=shape.weights,
        gradients=shape.trained,
        optimizer=moments,
        activations=int(kept * (HOLES if on_cpu and not checkpointing else FEW_HOLES)),
        logits=max(head, BACKWARD * tokens * shape.widest) + 2 * shape.unpacked,
        judging=libraries + shape.weights + moments + beside + forward,
    )


def choose(
    shape: StepBytes,
    settings: TrainingSettings,
    *,
    longest: int,
    memory: int,
    where: str,
    steps: Sequence[Sequence[TokenRow]] = (),
) -> Plan:
    """The largest budget of the ladder that fits, first without checkpointing, then with it. Given values are kept.

    Args:
        longest: tokens of the longest row.
        memory: bytes of the device, used or free.
        where: the model, for a refusal.
        steps: the rows of some optimizer steps that may share prefixes.

    Raises:
        ModelError: nothing that the recipe allows fits.
    """
    asked = (settings.micro_batch_tokens, settings.gradient_checkpointing)
    budgets = ladder(shape.device, longest, steps) if asked[0] == "auto" else [int(asked[0])]
    both = (False, True) if shape.recomputes else (False,)
    ways = both if asked[1] == "auto" else (bool(asked[1]),)
    share = SHARE if "auto" in asked else 1.0
    plan = None
    for checkpointing in ways:
        for budget in budgets:
            tokens = min(max(budget, longest), settings.batch_size * longest)
            plan = Plan(shape, budget, tokens, checkpointing, memory)
            if plan.peak().training <= share * memory:
                return plan
    assert plan is not None
    raise does_not_fit(plan, needed=plan.peak().training, share=share, how=f"predicted ({plan.peak()})", where=where)


def does_not_fit(plan: Plan, *, needed: int, share: float, how: str, where: str) -> ModelError:
    """The refusal of a run that does not fit, by a prediction or by a measured step.

    Args:
        needed: bytes.
        share: the part of the memory that may be used.
        how: how ``needed`` was found.
    """
    way = "with" if plan.checkpointing else "without"
    cheaper = CHEAPER.get(plan.shape.method, [])
    able = plan.shape.recomputes and not plan.checkpointing
    checkpoint = ["set training.gradient_checkpointing: true"] if able else []
    return ModelError(
        "This run does not fit into memory",
        where=where,
        why=f"A micro-batch of {plan.tokens:,} tokens {way} gradient checkpointing needs {gigabytes(needed)}, {how}. "
        f"{gigabytes(int(share * plan.memory))} of the {gigabytes(plan.memory)} of {plan.shape.device} may be used.",
        remedy="; ".join(
            [
                *checkpoint,
                *cheaper,
                f"lower training.micro_batch_tokens (now {plan.budget:,}) or data.max_length",
                "or take a smaller model.",
            ]
        ),
    )


def unquantized_base_fits(parameters: int, *, memory: int) -> bool:
    """Whether a qlora run can be judged against the user's unquantized fp32 model beside the tuned one."""
    return parameters * (4 + 1) < SHARE * memory


def gigabytes(size: int) -> str:
    """``2.2 GB``, of 2^30 bytes; less than a tenth of that as ``35 MB`` or ``4 KB``."""
    unit, name = unit_for(size)
    return f"{size / unit:.1f} GB" if unit == GIB else f"{math.ceil(size / unit)} {name}"


def unit_for(size: int) -> tuple[int, str]:
    """The largest of GB, MB and KB, as bytes with its name, of which a size is at least a tenth."""
    return next(((unit, name) for unit, name in UNITS if size >= unit / 10), UNITS[-1])


def _judged_beside(shape: StepBytes, memory: int) -> bool:
    return shape.method not in QUANTIZED or unquantized_base_fits(shape.beside // shape.itemsize, memory=memory)
