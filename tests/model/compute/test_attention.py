"""A tree of rows gives the log-probabilities of the rows alone; a model that does not is not admitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Row, config_for, make_rows, tiny

from tunesmith.data.batches.layout import micro_batches, padded_batch, tree_batch
from tunesmith.model.compute import attention
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.compute.probe import probe_model


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
    assert probe_model(model, rows, device="cpu").shares


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
    assert probe_model(model, make_rows(), device="cpu").shares


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
    assert probe_model(model, make_rows(), device="cpu").shares


def test_a_linear_attention_hybrid_is_not_admitted() -> None:
    from transformers import Qwen3NextConfig

    config = Qwen3NextConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    probe = probe_model(tiny(config), make_rows(), device="cpu")
    assert not probe.shares
    assert probe.difference > 100 * probe.allowed
    assert "prefix sharing: off" in probe.reason


def test_the_probe_leaves_mode_and_random_state_alone() -> None:
    model = tiny(config_for("llama")).train()
    state = torch.get_rng_state()
    probe_model(model, make_rows(), device="cpu")
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_the_bundled_model_shares_prefixes(smollm2_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32, attn_implementation="sdpa").eval()
    attention.install(model)
    result = probe_model(model, make_rows(6, 60), device="cpu")
    assert result.shares, result.reason
