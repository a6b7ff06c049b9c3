"""Noise on the embeddings: as large as the paper says for each row, while the model trains and at no other time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import Row, config_for, tiny
from torch import Tensor, nn
from transformers.integrations.neftune import neftune_post_forward_hook

from tunesmith.data.batches.layout import Batch, lay_out, packed_batch, tree_batch
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.compute.neftune import add_noise

ALPHA, WIDTH = 5.0, 32
LENGTHS = (100, 12, 50)


def rows() -> list[Row]:
    """The same beginning, other lengths."""
    ids = np.random.default_rng(0).integers(3, 90, max(LENGTHS))
    return [Row(ids[:length]) for length in LENGTHS]


def noisy() -> Any:
    model = tiny(config_for("llama", hidden_size=WIDTH))
    add_noise(model, ALPHA)
    return model


def noise_of(model: Any, batch: Batch) -> Tensor:
    """What a forward pass adds to the embeddings [B,L,d]."""
    seen: list[Tensor] = []
    embeddings = model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, given, output: seen.append(output.detach()))
    target_logprobs(model, batch)
    handle.remove()
    assert len(seen) > 0
    return seen[-1] - nn.functional.embedding(batch.input_ids, embeddings.weight.detach())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_each_row_has_noise_by_its_own_length(layout: Any) -> None:
    model, batch = noisy().train(), lay_out(rows(), range(3), layout=layout)
    torch.manual_seed(0)
    noise = noise_of(model, batch)
    seen = []
    for number, length in enumerate(LENGTHS):
        if layout == "packed":
            start = sum(LENGTHS[:number])
            own = noise[0, start : start + length]
        else:
            own = noise[number, :length]
        bound = ALPHA / math.sqrt(length * WIDTH)
        assert own.shape == (length, WIDTH)
        assert 0.98 * bound < own.abs().max() <= bound * (1 + 1e-5)
        assert own.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(own.mean().item()) < 0.1 * bound
        seen.append(own / bound)
    assert not torch.allclose(seen[0][:12], seen[1], atol=0.1), "rows do not share their noise"


def test_of_one_row_it_is_the_noise_of_transformers() -> None:
    """From the same random state; of several rows transformers takes the padded length, which is a neighbour's."""
    model, (row, *_) = noisy().train(), rows()
    batch = packed_batch([row], [0])
    torch.manual_seed(3)
    found = noise_of(model, batch)
    embeddings = nn.Embedding(96, WIDTH).train()
    embeddings.neftune_noise_alpha = ALPHA  # type: ignore[assignment]
    torch.manual_seed(3)
    expected = neftune_post_forward_hook(embeddings, None, torch.zeros(1, len(row.ids), WIDTH))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_an_evaluation_has_none_and_changes_no_random_state() -> None:
    plain, model = tiny(config_for("llama", hidden_size=WIDTH)), noisy().train()
    batches = [tree_batch(rows(), range(3))]
    state = torch.get_rng_state()
    found = row_losses(model, batches, rows=3, device="cpu")
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(found.nll_sum, row_losses(plain, batches, rows=3, device="cpu").nll_sum)
    assert not noise_of(model.eval(), batches[0]).any()


def test_layers_that_are_computed_again_have_the_noise_that_they_had() -> None:
    gradients = []
    batch = packed_batch(rows(), range(3))
    for checkpointing in (False, True):
        model, calls = noisy().train(), []
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        target_logprobs(model, batch)  # compares the head, once
        model.get_input_embeddings().register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        target_logprobs(model, batch).logprobs.sum().backward()
        gradients.append(torch.cat([own.grad.flatten() for own in model.parameters()]))
        assert len(calls) == 1, "embeddings are made once"
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    torch.manual_seed(2)
    model = noisy().train()
    target_logprobs(model, batch).logprobs.sum().backward()
    other = torch.cat([own.grad.flatten() for own in model.parameters()])
    assert not torch.allclose(gradients[0], other, rtol=1e-2), "other noise has other gradients"


@pytest.mark.parametrize(
    "part", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["q_proj", "embed_tokens"]}]
)
def test_embeddings_that_train_beside_an_adapter_have_it_too(part: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny(config_for("llama", hidden_size=WIDTH))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **part})).train()
    add_noise(base, ALPHA)
    seen: list[Tensor] = []
    base.get_input_embeddings().register_forward_hook(lambda module, given, output: seen.append(output.detach()))
    target_logprobs(model, packed_batch(rows(), range(3)))
    target_logprobs(model.eval(), packed_batch(rows(), range(3)))
    added = seen[-2] - seen[-1]
    assert 0.9 < added.abs().max() / (ALPHA / math.sqrt(min(LENGTHS) * WIDTH)) <= 1 + 1e-4


def test_tokens_that_rows_share_cannot_have_it() -> None:
    with pytest.raises(AssertionError, match="no length of its own"):
        target_logprobs(noisy().train(), tree_batch(rows(), range(3)))
