"""Each kernel against the plain composition of torch's operations, in float64: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tunesmith.model.compute.kernels import Frozen, adapted_linears, rms_norm, silu_product


def random(*shape: int, seed: int = 0, trains: bool = True) -> Tensor:
    made = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_(trains)


def check(
    fused: Callable[[], Sequence[Tensor]], plain: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> None:
    expected, found = plain(), fused()
    weights = [random(*output.shape, seed=90 + n, trains=False) for n, output in enumerate(expected)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    sums = [
        sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)) for parts in (expected, found)
    ]
    gradients = [torch.autograd.grad(cast("Tensor", each), inputs) for each in sums]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_adapted_linears_are_the_sum_of_base_and_update(count: int, bias: bool, dropout: bool) -> None:
    x, widths, rank = random(2, 5, 6), [4, 3, 7][:count], 2
    weights = [random(width, 6, seed=10 + n, trains=False) for n, width in enumerate(widths)]
    biases = [random(width, seed=20 + n, trains=False) if bias else None for n, width in enumerate(widths)]
    adapters = [(random(rank, 6, seed=30 + n), random(width, rank, seed=40 + n)) for n, width in enumerate(widths)]
    masks = [(random(2, 5, 6, seed=50 + n, trains=False) > 0) * 2.0 if dropout else None for n in range(count)]
    scales = [0.5, 2.0, 1.0][:count]

    def plain() -> list[Tensor]:
        parts = zip(weights, biases, adapters, masks, scales, strict=True)
        return [
            functional.linear(x, weight, own)
            + scale * functional.linear((x if mask is None else x * mask) @ down.T, up)
            for weight, own, (down, up), mask, scale in parts
        ]

    frozen = [Frozen(lambda weight=weight: weight, own) for weight, own in zip(weights, biases, strict=True)]
    inputs = [x, *(part for pair in adapters for part in pair)]
    check(lambda: adapted_linears(x, frozen, adapters, scales, masks), plain, inputs)
    check(lambda: adapted_linears(x, frozen, adapters, scales, masks), plain, inputs[1:])  # x may need no gradient


def test_a_frozen_weight_is_made_once_in_each_direction_and_not_for_an_input_without_gradient() -> None:
    made: list[str] = []

    def weight() -> Tensor:
        made.append("made")
        return torch.ones(3, 4, dtype=torch.float64)

    adapter = (random(2, 4, seed=1), random(3, 2, seed=2))
    for trains, times in ((True, 2), (False, 1)):
        made.clear()
        (output,) = adapted_linears(random(5, 4, trains=trains), [Frozen(weight, None)], [adapter], [1.0], [None])
        output.sum().backward()
        assert len(made) == times


def test_silu_product() -> None:
    gate, up = random(3, 5), random(3, 5, seed=1)
    check(lambda: [silu_product(gate, up)], lambda: [functional.silu(gate) * up], [gate, up])


@pytest.mark.parametrize("trained", [False, True])
def test_rms_norm(trained: bool) -> None:
    x, weight = random(2, 3, 8), random(8, seed=1, trains=trained)

    def plain() -> list[Tensor]:
        return [weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))]

    check(lambda: [rms_norm(x, weight, 1e-3)], plain, [x, weight] if trained else [x])


def test_a_norm_whose_input_needs_no_gradient_still_trains_its_weight() -> None:
    x, weight = random(2, 3, 8, trains=False), random(8, seed=1)
    expected = torch.autograd.grad((weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))).sum(), weight)
    found = torch.autograd.grad(rms_norm(x, weight, 1e-3).sum(), weight)
    torch.testing.assert_close(found, expected)
