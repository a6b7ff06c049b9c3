"""Attention by pieces is masked attention: every pair (query, key) once, in values and in gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny import Row
from torch import Tensor

from tunesmith.data.batches.layout import Tree, tree_batch
from tunesmith.model.compute import tree_pieces
from tunesmith.model.compute.tree_attention_cpu import piece_attention

TREE = Tree(torch.tensor([-1, 0, 1, 0]), torch.tensor([[0, 1, 1, 2, 3]]))
POSITIONS = torch.tensor([[0, 1, 2, 3, 1]])


def test_a_token_sees_its_ancestors_and_its_own_segment_up_to_itself() -> None:
    parts = tree_pieces.pieces_of(TREE, POSITIONS)
    assert tree_pieces.dense_mask(parts, 5, torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


def test_the_pieces_of_a_tree_meet_no_pair_twice_and_none_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_pieces, "FEW_KEYS", 3)
    parts = tree_pieces.pieces_of(TREE, POSITIONS)
    found = [(piece.queries, piece.keys, piece.causal, piece.alone) for piece in parts]
    assert found == [
        ((0, 1), ((0, 1),), True, True),
        ((1, 3), ((0, 3),), True, True),
        ((3, 4), ((3, 4),), True, False),  # it would see four
        ((4, 5), ((0, 1), (4, 5)), True, True),
        ((3, 4), ((0, 1),), False, False),
        ((3, 4), ((1, 3),), False, False),
    ]
    assert not any(piece.mask is not None for piece in parts)


def test_a_window_is_measured_by_position_not_by_place_in_the_line() -> None:
    from transformers.masking_utils import sliding_window_causal_mask_function

    parts = tree_pieces.pieces_of(TREE, POSITIONS, sliding_window_causal_mask_function(2))
    assert tree_pieces.dense_mask(parts, 5, torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("few", [0, 7, 20, 192])  # from all by the flash kernel to all by products
@pytest.mark.parametrize("window", [None, 3, 7])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("share", [True, False])
def test_attention_by_pieces_is_masked_attention_in_values_and_gradients(
    key_heads: int, window: int | None, few: int, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    monkeypatch.setattr(tree_pieces, "FEW_KEYS", few)
    begins = [np.arange(18)] * 3 if share else [np.arange(n, 4) for n in range(3)]
    rows = [Row(np.concatenate([begin, np.arange(20, 20 + n)])) for begin, n in zip(begins, (5, 1, 8), strict=True)]
    rows += [Row(np.concatenate([rows[0].ids[:-2], [60, 61, 62]])), Row(np.concatenate([rows[2].ids[:-3], [70, 71]]))]
    batch = tree_batch(rows, range(5), least=1)
    assert isinstance(batch.attention, Tree)
    sees = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    parts = tree_pieces.pieces_of(batch.attention, batch.position_ids, sees)
    length, generator = batch.computed, torch.Generator().manual_seed(0)

    def heads(count: int) -> Tensor:
        drawn = torch.randn(1, length, count, 16, generator=generator, dtype=torch.float64)
        return drawn.transpose(1, 2).requires_grad_()

    query, key, value, weight = heads(6), heads(key_heads), heads(key_heads), heads(6).detach().transpose(1, 2)
    mask = tree_pieces.dense_mask(parts, length, torch.device("cpu"))
    copies = [part.repeat_interleave(6 // key_heads, 1) for part in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *copies, attn_mask=mask, scale=0.3).transpose(
        1, 2
    )
    found = piece_attention(query, key, value, 0.3, parts)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((output * weight).sum(), (query, key, value)) for output in (expected, found)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)
