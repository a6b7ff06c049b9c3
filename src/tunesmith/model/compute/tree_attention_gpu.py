"""Attention of a tree batch on a GPU, by torch's flex_attention: blocks of the square that nobody sees are skipped.

In depth-first order a token sees every earlier token whose segment has not ended yet, descendants included. So the
whole tree mask is one comparison with the end of each segment's descendants. Before it is used, the machine computes a
small tree both ways, forward and backward. If that fails or differs, the dense mask is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tunesmith.data.batches.layout import Tree
from tunesmith.model.compute.agreement import agree
from tunesmith.model.compute.tree_pieces import dense_mask, pieces_of

_TOLERANCE = 2e-3  # of the largest value: the rounding of TF32 and bf16 products; a wrong mask is off by 100 times more


def block_mask(tree: Tree, position_ids: Tensor, sees: Callable[..., Any]) -> BlockMask:
    """The mask of a tree: a token sees its ancestors and its own segment up to itself, as far as the layer allows.

    Args:
        tree: segments in depth-first order.
        position_ids: [1, L].
        sees: transformers' mask function, (batch, head, query, key) -> bool, over positions.
    """
    positions = position_ids[0]  # [L]
    ends = _ends(tree)[tree.segment[0]].to(position_ids.device)  # [L], the end of each token's segment

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_tree = (key <= query) & (query < ends[key])
        return of_tree & sees(batch, head, positions[query], positions[key])

    length = positions.shape[0]
    return create_block_mask(mask, None, None, length, length, device=positions.device)


def _ends(tree: Tree) -> Tensor:
    """For each segment the token behind its last descendant, int64 [segments]."""
    parents = tree.parent.tolist()
    # 1. The end of each segment itself. 2. Parents take over the ends of their children, the last segment first.
    ends = torch.bincount(tree.segment[0], minlength=len(parents)).cumsum(0).tolist()
    for number in reversed(range(len(parents))):
        if parents[number] >= 0:
            ends[parents[number]] = max(ends[parents[number]], ends[number])
    return torch.tensor(ends)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float, *, compiled: bool = True
) -> Tensor:
    """query [B,H,L,D], key and value [B,K,L,D] -> [B,L,H,D]. Uncompiled it is a reference; on a CPU only forward."""
    # key and value heads are repeated inside the kernel (``enable_gqa``), not in memory
    run = _compiled() if compiled else flex_attention
    out = run(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous()


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@cache
def works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel runs on this device and agrees with the dense mask, forward and backward."""
    # 1. A root of 70 tokens with two children of 50 and 90; 4 heads and 2 key heads.
    tree = Tree(torch.tensor([-1, 0, 0]), torch.tensor([[0] * 70 + [1] * 50 + [2] * 90]))
    positions = torch.cat([torch.arange(120), torch.arange(70, 160)])[None].to(device)
    made = [
        torch.randn(1, heads, 210, head_dim, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        for heads in (4, 2, 2)
    ]
    # 2. Output and gradients through the kernel, and through the dense mask.
    try:
        flexible = _with_gradients(partial(attend, mask=block_mask(tree, positions, _all), scale=0.1), made)
    except (RuntimeError, ImportError, OSError):  # no compiler, no kernel for these sizes
        return False
    allowed = dense_mask(pieces_of(tree, positions, _all), 210, device)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, scale=0.1, enable_gqa=True
        ).transpose(1, 2)

    expected = _with_gradients(dense, made)
    # 3. All of them must agree.
    bound = max(_TOLERANCE, 4 * torch.finfo(dtype).eps)
    return all(agree(one, other, bound) for one, other in zip(flexible, expected, strict=True))


def _all(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask function of a layer without a window."""
    return query >= key


def _with_gradients(attention: Callable[..., Tensor], made: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of the sum of its sines by query, key and value."""
    leaves = [part.detach().requires_grad_() for part in made]
    out = attention(*leaves)
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]
