"""The probe that decides whether a model may share prefixes: two rows together against the same rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor, nn

from tunesmith.data.batches.layout import Batch, TokenRow, padded_batch, tree_batch
from tunesmith.errors import ModelError
from tunesmith.model.modes import evaluation_mode

TOLERANCE = 4.0  # times the same rows' own difference, alone against padded; and times the rounding of the dtype
ROUNDING = 1e-5  # relative: what fp32 leaves over 30 layers; a model that cannot share differs a thousand times more


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a model may share prefixes: the largest difference of log-probabilities, and what was allowed."""

    shares: bool
    difference: float
    allowed: float
    reason: str


def probe_model(model: nn.Module, rows: Sequence[TokenRow], *, device: torch.device | str) -> Probe:
    """Computes two real rows alone, padded and as a tree, and compares (no gradients, no change of mode or state).

    The rows share a prefix where any do, and the longest row is one of them, so that a sliding window shorter than
    the data shows. Architectures whose state does not follow the mask (linear attention) differ and are not admitted.

    Raises:
        ModelError: the model is not causal.
    """
    from tunesmith.model.compute.logprobs import target_logprobs

    pair = _probe_rows(rows)
    with evaluation_mode(model):
        alone = [padded_batch([row], [0]) for row in pair]
        expected = torch.cat([target_logprobs(model, batch.to(device)).logprobs for batch in alone])
        ended = torch.cat([target_logprobs(model, _with_another_end(row).to(device)).logprobs for row in alone])
        ahead = (ended - expected).abs().max().item()
        numbers = list(range(len(pair)))
        padded = _difference(model, padded_batch(pair, numbers).to(device), expected)
        tree = _tree_difference(model, tree_batch(pair, numbers, least=1).to(device), expected)
    scale = expected.abs().max().item()
    rounding = max(TOLERANCE * torch.finfo(model_dtype(model)).eps, ROUNDING) * scale
    if ahead > TOLERANCE * rounding:
        raise ModelError(
            "this model sees the tokens that it is to predict",
            where=type(model).__name__,
            why=f"Another last token changes what it says of those before by {ahead:.1e}: a loss would mean nothing.",
            remedy="Use a causal language model; one made as an encoder may need is_decoder: true in its config.json.",
        )
    # A model that padding changes much is no measure of what a tree may change.
    allowed = min(max(TOLERANCE * padded, rounding), TOLERANCE * rounding)
    if isinstance(tree, str):
        return Probe(False, inf, allowed, f"cannot share prefixes: it does not compute a tree of rows ({tree})")
    shares = tree <= allowed
    verb = "shares prefixes" if shares else "cannot share prefixes"
    reason = f"{verb}: two rows differ by {tree:.1e} from the same rows alone, {allowed:.1e} is allowed"
    return Probe(shares, tree, allowed, reason)


def _with_another_end(batch: Batch) -> Batch:
    """The same labels, behind another last token, which predicts none of them."""
    ids = batch.input_ids.clone()
    ids[:, -1] = (ids[:, -1] == 0).long()
    return replace(batch, input_ids=ids)


def _difference(model: nn.Module, batch: Batch, expected: Tensor) -> float:
    from tunesmith.model.compute.logprobs import target_logprobs

    return (target_logprobs(model, batch).logprobs - expected).abs().max().item()


def _tree_difference(model: nn.Module, batch: Batch, expected: Tensor) -> float | str:
    """Or what the model says of such a batch: code that takes it for one long row may run out of positions."""
    try:
        return _difference(model, batch, expected)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the computation: that of the first floating-point parameter."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _probe_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The longest row, and of the others the one that shares most of it but not all."""
    longest = max(rows, key=lambda row: len(row.ids))

    def shared(row: TokenRow) -> int:
        limit = min(len(row.ids), len(longest.ids))
        same = row.ids[:limit] == longest.ids[:limit]
        prefix = limit if same.all() else int(same.argmin())
        return -1 if prefix == len(row.ids) else prefix

    other = max(rows, key=shared)
    return [longest, other]
