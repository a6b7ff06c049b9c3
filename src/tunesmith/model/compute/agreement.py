"""One rule for when two ways to compute the same tensor agree, and for what rounding may do between two ways."""

from __future__ import annotations

from torch import Tensor

TOLERANCE = 4.0  # times the rounding: what a way to compute is admitted with
ROUNDING = 1e-5  # relative: what fp32 leaves over 30 layers; a model that cannot share differs a thousand times more


def agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether no value is off by more than ``tolerance`` times the largest expected value. NaN never agrees."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
