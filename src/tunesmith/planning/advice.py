"""Hyperparameters to begin with: each has a value, a reason and a source. Imports no torch and reads no file.

A learning rate is ``usual_rate``, which is what `learning_rate: auto` means, times a factor for the model's size.
Sources: the guide is the one that Tunesmith implements; papers have their arXiv number; LoRA Without Regret is Schulman
et al. 2025, Thinking Machines Lab; docs/lab.md has what was measured here; a rule of thumb is ours and not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import pip_install
from tunesmith.recipe.methods import FULL_ROWS, LORA_ROWS, METHOD_SETTINGS, QUANTIZED, AdapterSettings
from tunesmith.recipe.schedules import rate_text
from tunesmith.recipe.settings import usual_rate

FIRST, SECOND = "lora", "qlora"  # the method to begin with, and what to take where it does not fit
SMALL, LARGE = 10**9, 30 * 10**9  # parameters
OF_SMALL, OF_LARGE = 2.5, 0.5  # of the usual rate: 5e-4 in docs/lab.md at 135M; 1e-4 in arXiv:2305.14314 at 33B and 65B
FEW_ROWS, MANY_ROWS = 300, 50_000
RANKS = (16, 32, 64, 128, 256)
ALPHA = 32
FEW_STEPS = 20  # a warm-up of a tenth would be one step, whose rate is 0
GUIDES_RATE = 2e-5
LAB, RULE_OF_THUMB = "docs/lab.md at 135M", "rule of thumb"
METHOD_REASONS = {
    "lora": ("a small adapter beside frozen weights: begin with it", "guide; arXiv:2106.09685"),
    "qlora": ("LoRA over 4-bit weights, for what does not fit otherwise", "guide; arXiv:2305.14314"),
    "full": ("every weight trains", "guide"),
    "freeze": ("some layers train, the others stay as they are", "guide"),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of the recipe, the reason for it, and the source of the reason."""

    value: Any
    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.source})"


def is_adapter(method: str) -> bool:
    """Whether a method trains an adapter beside frozen weights."""
    return issubclass(METHOD_SETTINGS[method], AdapterSettings)


def method(asked: str | None, rows: int, fits: Mapping[str, bool]) -> Choice:
    """The method asked for; else LoRA; or QLoRA if LoRA does not fit and QLoRA does.

    Args:
        fits: whether each method fits, as far as it is known.
    """
    if asked is None and not fits.get(FIRST, True) and fits.get(SECOND, False):
        return Choice(SECOND, "LoRA over 4-bit weights, as lora itself does not fit here", METHOD_REASONS[SECOND][1])
    name = asked or FIRST
    reason, source = METHOD_REASONS.get(name, ("as asked for", "guide"))
    if name == "full":
        reason += f"; {rows:,} rows are enough for it" if rows >= FULL_ROWS else f"; {too_few(rows)}"
    return Choice(name, reason, source)


def to_install(method: str) -> str | None:
    """The command that installs what a method needs; None where nothing is missing.

    Args:
        method: its label, such as qlora or lora-int8.
    """
    return pip_install("8bit") if method in QUANTIZED and find_spec("bitsandbytes") is None else None


def too_few(rows: int) -> str:
    """What the guide says about full fine-tuning on fewer rows than it asks for."""
    return f"{rows:,} rows are few for that: from {FULL_ROWS:,} on, and LoRA from {LORA_ROWS:,}"


def learning_rate(method: str, objective: str, parameters: int | None) -> Choice:
    """By method, objective and size. Small models take larger steps, and adapters ten times those of full fine-tuning.

    Args:
        parameters: of the model; None if they are not known.
    """
    usual, full = usual_rate(method, objective), usual_rate("full", objective)
    factor, reason, source = _of_size(parameters, preferences=objective != "sft")
    rate = float(rate_text(usual * factor))  # in the two digits that a recipe gives
    ratio = usual_rate(FIRST, objective) / usual
    if is_adapter(method):
        reason += f"; ten times full's {rate_text(full * factor)}"
    elif math.isclose(ratio, 10):
        reason += "; a tenth of LoRA's"
        source = f"guide; {source}" if rate == GUIDES_RATE else source
    else:
        return Choice(rate, f"{reason}; LoRA's is {ratio:.2g} times that", RULE_OF_THUMB)
    return Choice(rate, reason, source if objective != "sft" else f"{source}; arXiv:2405.09673")


def _of_size(parameters: int | None, *, preferences: bool) -> tuple[float, str, str]:
    """The factor on the usual rate for a model's size, its reason and its source."""
    known = "arXiv:2305.18290; TRL" if preferences else "arXiv:2305.14314"
    if parameters is None:
        return 1.0, "the usual, as the size is not known", known
    if parameters < SMALL:
        return OF_SMALL, "below 1B parameters", f"{known}; {LAB}" if preferences else LAB
    if parameters < LARGE:
        return 1.0, "usual for preferences" if preferences else "usual at 7B and 13B", known
    return OF_LARGE, "half of the usual from 30B parameters on", known


def epochs(rows: int) -> Choice:
    """The number of passes over the rows."""
    if rows < FEW_ROWS:
        return Choice(5, f"passes over {rows:,} rows: few rows make few steps", f"{RULE_OF_THUMB}; the guide has 3")
    if rows < MANY_ROWS:
        return Choice(3, f"passes over {rows:,} rows", "guide")
    return Choice(1, f"one pass over {rows:,} rows has steps enough", f"{RULE_OF_THUMB}; the guide has 3")


def batch_size(rows: int) -> Choice:
    """Rows in an optimizer step. Never large: that hurts LoRA more than full fine-tuning (LoRA Without Regret)."""
    if rows >= 1000:
        return Choice(16, "rows in an optimizer step", "guide: 4 x 4")
    return Choice(8 if rows >= 100 else 4, "rows in an optimizer step", f"{RULE_OF_THUMB}: few rows, more steps")


def rank(tokens: int, parameters_a_rank: int | None) -> Choice:
    """The least of the usual ranks that gives an adapter as many parameters as there are tokens to learn.

    Args:
        tokens: to learn, in one pass over the rows.
        parameters_a_rank: parameters of the adapter for each 1 of the rank; None if they are not known.
    """
    if parameters_a_rank is None:
        return Choice(RANKS[0], "the adapter's rank; more for far more rows", "arXiv:2405.09673")
    enough = [number for number in RANKS if number * parameters_a_rank >= tokens]
    found = enough[0] if enough else RANKS[-1]
    size = in_short(found * parameters_a_rank)
    held = f"the adapter's rank: {size} parameters, for about {in_short(tokens)} tokens to learn"
    if not enough:
        held += ", more than LoRA holds well"
    return Choice(found, held, "LoRA Without Regret" if found > RANKS[0] else "LoRA Without Regret; arXiv:2405.09673")


def alpha() -> Choice:
    """The scale of the adapter. It is divided by the rank, so that one learning rate suits every rank."""
    return Choice(ALPHA, "scales the update by lora_alpha / r; the same for every r", "guide; LoRA Without Regret")


def warmup(steps: int) -> Choice:
    """The share of all steps in which the learning rate rises."""
    if steps < FEW_STEPS:
        return Choice(0, "so few steps need no warm-up", RULE_OF_THUMB)
    return Choice(0.1, "below 1 a share of all steps", "guide")


def weight_decay() -> Choice:
    """The weight decay of a method that trains the weights themselves."""
    return Choice(0.01, "pulls weights towards 0, never norms and biases", "guide")


def rate_range(method: str, optim: str) -> tuple[float, float]:
    """The first and last rate of a range test: five powers of ten, with the usual rate well inside.

    A step of AdamW moves every parameter by about the rate. A step of SGD moves all of them together by at most the
    rate, if gradients are clipped to norm 1. So SGD begins a thousand times higher.
    """
    low = (1e-6 if is_adapter(method) else 1e-7) * (1000 if optim == "sgd" else 1)
    return low, low * 1e5


def in_short(number: int) -> str:
    """``135M``, ``8.03B``."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
