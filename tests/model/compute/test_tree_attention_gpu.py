"""flex_attention sees what the dense tree mask sees, and is not used where it does not work."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import make_rows

from tunesmith.data.batches.layout import Tree, tree_batch
from tunesmith.model.compute import tree_attention_gpu
from tunesmith.model.compute.tree_pieces import dense_mask, pieces_of


def _window(width: int):
    return lambda batch, head, query, key: (key <= query) & (query - key < width)


@pytest.mark.parametrize("width", [1000, 9, 3])
def test_the_block_mask_is_the_dense_mask(width: int) -> None:
    batch = tree_batch(make_rows(), range(6))
    assert isinstance(batch.attention, Tree)
    length = batch.input_ids.shape[1]
    expected = dense_mask(pieces_of(batch.attention, batch.position_ids, _window(width)), length, torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, length, 16, generator=random)
    key, value = (torch.randn(1, 2, length, 16, generator=random) for _ in range(2))
    with torch.no_grad():
        made = tree_attention_gpu.attend(
            query,
            key,
            value,
            tree_attention_gpu.block_mask(batch.attention, batch.position_ids, _window(width)),
            0.3,
            compiled=False,
        )
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=expected, scale=0.3, enable_gqa=True
        )
    torch.testing.assert_close(made, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_where_there_is_no_backward_kernel_it_is_not_used() -> None:
    assert not tree_attention_gpu.works(torch.device("cpu"), torch.float32, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_computes_forward_and_backward_as_the_dense_mask_does(dtype: torch.dtype) -> None:
    assert tree_attention_gpu.works(torch.device("cuda"), dtype, 64)
