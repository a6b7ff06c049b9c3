"""A tree batch through torch's flex_attention, for a GPU: blocks of the square that nobody sees are passed over.

In depth-first order a token sees the earlier ones whose segment has not ended yet, so one comparison with where each
segment's descendants end is the whole tree mask. Before it is used, the machine computes a small tree both ways,
forward and backward; where that fails or differs, attention stays with the dense mask.
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
from tunesmith.model.compute.tree_pieces import dense_mask, pieces_of

AGREE = 2e-3  # of the largest value: what the kernels' TF32 or bf16 products leave, a wrong mask a hundred times more


def block_mask(tree: Tree, position_ids: Tensor, sees: Callable[..., Any]) -> BlockMask:
    """What a token sees: its ancestors and itself, as far as a kind of layer lets it.

    Args:
        tree: segments in depth-first order.
        position_ids: [1, L].
        sees: transformers' mask function, (batch, head, query, key) -> bool, over positions.
    """
    positions, ends = position_ids[0], _ends(tree)[tree.segment[0]].to(position_ids.device)

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_tree = (key <= query) & (query < ends[key])
        return of_tree & sees(batch, head, positions[query], positions[key])

    length = positions.shape[0]
    return create_block_mask(mask, None, None, length, length, device=positions.device)


def _ends(tree: Tree) -> Tensor:
    """For each segment the token behind its last descendant, int64 [segments]."""
    parents = tree.parent.tolist()
    ends = torch.bincount(tree.segment[0], minlength=len(parents)).cumsum(0).tolist()
    for number in reversed(range(len(parents))):
        if parents[number] >= 0:
            ends[parents[number]] = max(ends[parents[number]], ends[number])
    return torch.tensor(ends)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float, *, compiled: bool = True
) -> Tensor:
    """query [B,H,L,D], key and value [B,K,L,D] -> [B,L,H,D]. Uncompiled it is a reference, forward only on a CPU."""
    run = _compiled() if compiled else flex_attention
    out = run(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous()


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@cache
def works(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel is there and gives, forward and backward, what the dense mask gives."""
    tree = Tree(torch.tensor([-1, 0, 0]), torch.tensor([[0] * 70 + [1] * 50 + [2] * 90]))
    positions = torch.cat([torch.arange(120), torch.arange(70, 160)])[None].to(device)
    made = [torch.randn(1, heads, 210, head_dim, generator=_generator()).to(device, dtype) for heads in (4, 2, 2)]
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
    bound = max(AGREE, 4 * torch.finfo(dtype).eps)
    return all(
        bool((one - other).abs().max() <= bound * other.abs().max())
        for one, other in zip(flexible, expected, strict=True)
    )


def _all(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _with_gradients(attention: Callable[..., Tensor], made: list[Tensor]) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in made]
    out = attention(*leaves)
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]
