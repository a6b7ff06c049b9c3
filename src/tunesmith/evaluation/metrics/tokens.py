"""Scores over tokens: each row's negative log-likelihood, correct tokens and number of supervised tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from tunesmith.data.batches.layout import Batch
from tunesmith.errors import ModelError
from tunesmith.evaluation.metrics.base import Scores, TokenMetric, TokenRows
from tunesmith.evaluation.metrics.bits_per_byte import BitsPerByte
from tunesmith.evaluation.metrics.loss import Loss
from tunesmith.evaluation.metrics.perplexity import Perplexity
from tunesmith.evaluation.metrics.token_accuracy import TokenAccuracy
from tunesmith.model.compute.kept_keys import KeptKeys, bytes_of_keys, keeping_cache
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.compute.rope import turns_in
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.model.modes import evaluation_mode, random_state_kept

KeysWanted = Callable[[int, np.ndarray, np.ndarray], bool]
METRICS: tuple[TokenMetric, ...] = (Loss(), Perplexity(), BitsPerByte(), TokenAccuracy())


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The token that the model finds likeliest at each supervised position, after the true tokens before it.

    Args:
        likeliest: int32 [labels], row by row in the order of the row's labels.
        certain: bool [labels]: rounding cannot make it another token (model/compute/choices.py), and greedy decoding
            computes it with the same rotary frequencies (model/compute/rope.py).
        starts: int64 [rows + 1]: the first label of each row, and the end of the last.
        keys: by row, the keys and values that the pass computed, where they were wanted and kept.
    """

    likeliest: np.ndarray
    certain: np.ndarray
    starts: np.ndarray
    keys: Mapping[int, KeptKeys] = field(default_factory=dict)

    def of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """``likeliest`` and ``certain`` of one row's labels."""
        own = slice(self.starts[row], self.starts[row + 1])
        return self.likeliest[own], self.certain[own]


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Sums over the supervised tokens of each row, float64 [rows]. ``nll_sum`` is in nats.

    ``choices`` are what greedy decoding would take along the true answers; None if they were not kept.
    """

    nll_sum: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    choices: Choices | None = None

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a supervised token, over all rows."""
        return float(self.nll_sum.sum() / self.tokens.sum())

    @property
    def token_accuracy(self) -> float:
        """Share of the supervised tokens that the model found likeliest after the true tokens before them."""
        return float(self.correct.sum() / self.tokens.sum())

    def only(self, rows: np.ndarray) -> TokenScores:
        """Those of some rows, by number, int [rows], in their order. Choices are not kept."""
        return TokenScores(self.nll_sum[rows], self.correct[rows], self.tokens[rows])

    def scores(self, groups: Sequence[int] | None = None, text_bytes: np.ndarray | None = None) -> dict[str, Scores]:
        """Every metric of tokens for compare.py. Rows of the same group are resampled together.

        Without ``text_bytes``, the bytes of each row's supervised text, there is no ``bits_per_byte``.
        """
        together = None if groups is None else np.asarray(groups)
        rows = TokenRows(self.nll_sum, self.correct, self.tokens, text_bytes, together)
        found = [metric for metric in METRICS if text_bytes is not None or metric.name != BitsPerByte.name]
        return {metric.name: metric.scores(rows) for metric in found}


@waiting_as_others_allow()
def row_losses(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    rows: int,
    device: torch.device | str,
    keys_wanted: KeysWanted | None = None,
) -> TokenScores:
    """Scores every row under the current weights, without dropout and without gradients.

    Sums are computed in float64 on the CPU, in the order of the batches. The model's mode and the random state are
    restored, so an evaluation between two steps changes nothing. Every label counts once, whatever weight the objective
    gives it.

    Args:
        model: a causal model whose attention takes both layouts (model/compute/attention.py).
        batches: batches over these rows. ``edges.row`` numbers them.
        rows: how many rows there are.
        device: where the model is.
        keys_wanted: whether something goes on from a row, given its number, likeliest tokens and which are certain.
            The choices have the keys and values of these rows, as far as there is room for them.

    Raises:
        ModelError: the loss of a row is not finite.
    """
    nll_sum, correct, tokens = (torch.zeros(rows, dtype=torch.float64) for _ in range(3))  # [rows] each
    chosen: list[tuple[torch.Tensor, ...]] = []  # row, likeliest token and whether it is certain, [edges] each
    keys: dict[int, KeptKeys] = {}
    room = 0 if keys_wanted is None else bytes_of_keys()
    with evaluation_mode(model), random_state_kept(torch.device(device)):
        for batch in batches:
            turns = turns_in(model, batch)
            keep = keeping_cache(model, batch, room) if room > 0 and not turns else None
            targets = target_logprobs(model, batch.to(device), choices=True, keep=keep)  # for each label: [edges]
            row = batch.edges.row.cpu()  # [edges]: the row that each label belongs to
            nll_sum.index_add_(0, row, -targets.logprobs.double().cpu())
            correct.index_add_(0, row, targets.correct.double().cpu())
            tokens.index_add_(0, row, torch.ones(len(row), dtype=torch.float64))
            assert targets.likeliest is not None and targets.certain is not None
            certain = torch.zeros_like(targets.certain) if turns else targets.certain
            chosen.append((row, targets.likeliest.int().cpu(), certain.cpu()))
            if keep is not None and keys_wanted is not None:
                found, size = keep.of_rows(batch, _of_row(chosen[-1], keys_wanted))
                keys |= found
                room -= size
    if not torch.isfinite(nll_sum).all():
        first = int((~torch.isfinite(nll_sum)).nonzero()[0])
        raise ModelError(
            "The model's loss is not finite",
            where=f"row {first + 1} of {rows}",
            why="Its logits overflowed (float16 has no room above 65504), or its weights are damaged.",
            remedy="Use model.dtype float32 or bfloat16; after training, lower training.learning_rate.",
        )
    return TokenScores(nll_sum.numpy(), correct.numpy(), tokens.numpy(), _by_row(chosen, rows, keys))


def _of_row(chosen: tuple[torch.Tensor, ...], wanted: KeysWanted) -> Callable[[int], bool]:
    """The question of a row's number alone, for the rows of one batch."""
    rows, likeliest, certain = (of.numpy() for of in chosen)  # [edges] each
    return lambda row: wanted(row, likeliest[rows == row], certain[rows == row])


def _by_row(chosen: Sequence[tuple[torch.Tensor, ...]], rows: int, keys: Mapping[int, KeptKeys]) -> Choices:
    """What the batches found, in the order of the rows. All labels of a row are in one batch, in their order."""
    row, likeliest, certain = (torch.cat(parts).numpy() for parts in zip(*chosen, strict=True))  # [labels] each
    order = np.argsort(row, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
    return Choices(likeliest[order], certain[order], starts, keys)
