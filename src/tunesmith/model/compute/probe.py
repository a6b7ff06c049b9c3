"""The probe that decides whether a model may share prefixes: it compares two rows together with the same rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch, TokenRow, padded_batch, tree_batch
from tunesmith.errors import ModelError
from tunesmith.model.compute.agreement import ROUNDING, TOLERANCE
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.modes import evaluation_mode


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a model may share prefixes: the largest difference of a log-probability, and the limit."""

    shares: bool
    difference: float
    allowed: float
    reason: str


def probe_model(model: nn.Module, rows: Sequence[TokenRow], *, device: torch.device | str) -> Probe:
    """Computes two real rows alone, padded and as a tree, and compares (no gradients, no change of mode or state).

    The rows share a prefix where any do, and the longest row is one of them, so that a sliding window shorter than
    the data shows. Models whose state does not follow the mask (linear attention) differ and are not admitted.

    Raises:
        ModelError: the model is not causal.
    """
    pair = _probe_rows(rows)
    numbers = list(range(len(pair)))
    with evaluation_mode(model):
        # 1. What each row gives alone: the log-probability of every label [E].
        alone = [padded_batch([row], [0]) for row in pair]
        expected = torch.cat([target_logprobs(model, batch.to(device)).logprobs for batch in alone])
        # 2. The same behind another last token. A causal model cannot see it.
        ended = torch.cat([target_logprobs(model, _with_another_end(batch).to(device)).logprobs for batch in alone])
        ahead = (ended - expected).abs().max().item()
        # 3. Both rows padded, which shows the model's own rounding, and as a tree.
        padded = _difference(model, padded_batch(pair, numbers).to(device), expected)
        tree = _tree_difference(model, tree_batch(pair, numbers, least=1).to(device), expected)
    scale = expected.abs().max().item()
    rounding = max(TOLERANCE * torch.finfo(model_dtype(model)).eps, ROUNDING) * scale
    if ahead > TOLERANCE * rounding:
        raise ModelError(
            "this model sees the tokens that it is to predict",
            where=type(model).__name__,
            why=f"Another last token changes log-probabilities before it by {ahead:.1e}: a loss would mean nothing.",
            remedy="Use a causal language model; one made as an encoder may need is_decoder: true in its config.json.",
        )
    # Where padding changes a model much, its difference does not widen the limit further.
    allowed = min(max(TOLERANCE * padded, rounding), TOLERANCE * rounding)
    if isinstance(tree, str):
        return Probe(False, inf, allowed, f"prefix sharing: off (the model cannot compute a tree of rows: {tree})")
    shares = tree <= allowed
    state = "on" if shares else "off"
    reason = f"prefix sharing: {state} (max difference {tree:.1e}, limit {allowed:.1e})"
    return Probe(shares, tree, allowed, reason)


def _with_another_end(batch: Batch) -> Batch:
    """The batch of one row with another last token, which predicts none of its labels."""
    ids = batch.input_ids.clone()
    ids[:, -1] = (ids[:, -1] == 0).long()
    return replace(batch, input_ids=ids)


def _difference(model: nn.Module, batch: Batch, expected: Tensor) -> float:
    """The largest difference of a log-probability; expected [E]."""
    return (target_logprobs(model, batch).logprobs - expected).abs().max().item()


def _tree_difference(model: nn.Module, batch: Batch, expected: Tensor) -> float | str:
    """The difference, or the error of a model that fails on a tree: taken for one long row it may lack positions."""
    try:
        return _difference(model, batch, expected)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating-point parameter."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _probe_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The longest row, and the one that shares the longest prefix with it without being a prefix itself."""
    longest = max(rows, key=lambda row: len(row.ids))

    def shared(row: TokenRow) -> int:
        limit = min(len(row.ids), len(longest.ids))
        same = row.ids[:limit] == longest.ids[:limit]
        prefix = limit if same.all() else int(same.argmin())  # argmin: the first position that differs
        return -1 if prefix == len(row.ids) else prefix

    return [longest, max(rows, key=shared)]
