"""One rule for when two ways to compute the same tensor agree."""

from __future__ import annotations

from torch import Tensor


def agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether no value is off by more than ``tolerance`` times the largest expected value. NaN never agrees."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
