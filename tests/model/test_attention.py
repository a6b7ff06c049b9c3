"""A tree of rows gives the log-probabilities of the rows alone; a model that does not is not admitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.data.layout import Tree, micro_batches, padded_batch
from tunesmith.model import attention
from tunesmith.model.head import target_logprobs


class Row:
    def __init__(self, ids: Any) -> None:
        self.ids = np.asarray(ids, dtype=np.int32)
        self.supervised = np.arange(len(self.ids)) >= len(self.ids) // 2


def make_rows(count: int = 6, length: int = 24) -> list[Row]:
    random = np.random.default_rng(0)
    prefix = random.integers(3, 90, length // 2)
    return [Row(np.concatenate([prefix, random.integers(3, 90, length // 2 - n)])) for n in range(count)]


def tiny(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    attention.install(model)
    return model


def config_for(name: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    size = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return AutoConfig.for_model(name, **{**size, **heads, **ids, **changes})


def test_a_token_sees_its_ancestors_and_its_own_segment_up_to_itself() -> None:
    tree = Tree(torch.tensor([-1, 0, 1, 0]), torch.tensor([[0, 1, 1, 2, 3]]))
    assert attention.tree_mask(tree)[0, 0].int().tolist() == [
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


def test_a_window_shorter_than_the_rows_is_not_admitted() -> None:
    model = tiny(config_for("mistral", sliding_window=4))
    assert not attention.probe(model, make_rows(), device="cpu").shares


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
