"""A tree of rows gives the log-probabilities of the rows alone; a model that does not is not admitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Row, config_for, make_rows, tiny
from torch import Tensor

from tunesmith.data.layout import Tree, micro_batches, padded_batch, tree_batch
from tunesmith.model import attention
from tunesmith.model.head import target_logprobs

TREE = Tree(torch.tensor([-1, 0, 1, 0]), torch.tensor([[0, 1, 1, 2, 3]]))
POSITIONS = torch.tensor([[0, 1, 2, 3, 1]])


def test_a_token_sees_its_ancestors_and_its_own_segment_up_to_itself() -> None:
    pieces = attention.pieces_of(TREE, POSITIONS)
    assert attention.dense_mask(pieces, 5, torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "granite", "smollm3"])
def test_families_share_prefixes_exactly(name: str) -> None:
    model, rows = tiny(config_for(name, **({"sliding_window": None} if name == "mistral" else {}))), make_rows()
    with torch.no_grad():
        alone = torch.cat([target_logprobs(model, padded_batch([row], [0])).logprobs for row in rows])
        for layout in ("tree", "padded"):
            found = torch.zeros(len(alone))
            starts = np.cumsum([0, *(int(row.supervised.sum()) for row in rows)])
            for batch in micro_batches(rows, budget=200, layout=layout):
                scores = target_logprobs(model, batch).logprobs
                for number in set(batch.edges.row.tolist()):
                    found[starts[number] : starts[number + 1]] = scores[batch.edges.row == number]
            assert (found - alone).abs().max().item() < 5e-6, layout
    assert attention.probe(model, rows, device="cpu").shares


def test_the_pieces_of_a_tree_meet_no_pair_twice_and_none_in_vain() -> None:
    pieces = attention.pieces_of(TREE, POSITIONS)
    found = [(piece.queries, piece.keys, piece.causal, piece.mask) for piece in pieces]
    assert found == [
        ((0, 1), (0, 1), True, None),
        ((1, 3), (1, 3), True, None),
        ((3, 4), (3, 4), True, None),
        ((4, 5), (4, 5), True, None),
        ((1, 5), (0, 1), False, None),
        ((3, 4), (1, 3), False, None),
    ]


def test_a_window_is_measured_by_position_not_by_place_in_the_line() -> None:
    from transformers.masking_utils import sliding_window_causal_mask_function

    pieces = attention.pieces_of(TREE, POSITIONS, sliding_window_causal_mask_function(2))
    assert attention.dense_mask(pieces, 5, torch.device("cpu"))[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("window", [None, 3, 7])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_attention_by_pieces_is_masked_attention_in_values_and_gradients(key_heads: int, window: int | None) -> None:
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

    rows = [Row(np.concatenate([np.arange(18), np.arange(20, 20 + n)])) for n in (5, 1, 8)]
    batch = tree_batch(rows, range(3))
    assert isinstance(batch.attention, Tree)
    sees = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    pieces = attention.pieces_of(batch.attention, batch.position_ids, sees)
    length, generator = batch.computed, torch.Generator().manual_seed(0)

    def heads(count: int) -> Tensor:
        drawn = torch.randn(1, length, count, 16, generator=generator, dtype=torch.float64)
        return drawn.transpose(1, 2).requires_grad_()

    query, key, value, weight = heads(6), heads(key_heads), heads(key_heads), heads(6).detach().transpose(1, 2)
    mask = attention.dense_mask(pieces, length, torch.device("cpu"))
    copies = [part.repeat_interleave(6 // key_heads, 1) for part in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *copies, attn_mask=mask, scale=0.3).transpose(
        1, 2
    )
    found = attention._PieceAttention.apply(query, key, value, 0.3, pieces)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((output * weight).sum(), (query, key, value)) for output in (expected, found)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_trains_through_the_pieces(dtype: torch.dtype) -> None:
    model, batch = tiny(config_for("llama")), tree_batch(make_rows(), range(6))
    gradients = []
    for kind in (torch.float32, dtype):
        model.zero_grad()
        target_logprobs(model.to(kind), batch).logprobs.sum().backward()
        gradients.append(torch.cat([own.grad.float().flatten() for own in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_checkpointing_computes_the_same_pieces_again(layout: str) -> None:
    model, rows = tiny(config_for("llama")).train(), make_rows()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        for batch in micro_batches(rows, budget=300, layout=layout):  # type: ignore[arg-type]
            target_logprobs(model, batch).logprobs.sum().backward()
        gradients.append(torch.cat([own.grad.flatten() for own in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_soft_capped_scores_of_padded_rows_are_finite() -> None:
    model = tiny(config_for("gemma2", head_dim=8, sliding_window=4))
    batch = padded_batch([Row(np.arange(3, 40)), Row(np.arange(3, 10))], range(2))
    assert torch.isfinite(target_logprobs(model, batch).logprobs).all()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"sliding_window": 4}),
        ("gemma3_text", {"sliding_window": 4, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ],
)
def test_a_window_shorter_than_the_rows_is_shared_too(name: str, changes: dict[str, Any]) -> None:
    model = tiny(config_for(name, **changes))
    assert attention.probe(model, make_rows(), device="cpu").shares


def test_attention_dropout_is_drawn() -> None:
    model, rows = tiny(config_for("llama", attention_dropout=0.5)).train(), make_rows()
    batch = tree_batch(rows, range(6))
    torch.manual_seed(0)
    scores = target_logprobs(model, batch).logprobs
    torch.manual_seed(0)
    assert torch.equal(target_logprobs(model, batch).logprobs, scores)
    torch.manual_seed(1)
    assert not torch.equal(target_logprobs(model, batch).logprobs, scores)


def test_a_window_longer_than_the_rows_is_admitted() -> None:
    model = tiny(config_for("mistral", sliding_window=64))
    assert attention.probe(model, make_rows(), device="cpu").shares


def test_a_linear_attention_hybrid_is_not_admitted() -> None:
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    probe = attention.probe(tiny(config), make_rows(), device="cpu")
    assert not probe.shares
    assert probe.difference > 100 * probe.allowed
    assert "cannot share prefixes" in probe.reason


def test_the_probe_leaves_mode_and_random_state_alone() -> None:
    model = tiny(config_for("llama")).train()
    state = torch.get_rng_state()
    attention.probe(model, make_rows(), device="cpu")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_the_bundled_model_shares_prefixes(smollm2_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32, attn_implementation="sdpa").eval()
    attention.install(model)
    result = attention.probe(model, make_rows(6, 60), device="cpu")
    assert result.shares, result.reason
