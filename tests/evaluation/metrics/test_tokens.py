"""Scores over tokens: the same from both layouts, equal to a plain forward pass, and without a trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.data.batches.layout import micro_batches
from tunesmith.errors import ModelError
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.model.compute.attention import install


@dataclass(frozen=True)
class Row:
    ids: np.ndarray
    supervised: np.ndarray


def rows():
    """Rows with a common prefix, of unequal length and unequal numbers of labels."""
    random = np.random.default_rng(0)
    prefix = random.integers(3, 400, size=7)
    found = []
    for length, labels in ((3, 1), (9, 5), (6, 6), (14, 2), (4, 3)):
        ids = np.concatenate([prefix, random.integers(3, 400, size=length)]).astype(np.int32)
        supervised = np.zeros(len(ids), dtype=bool)
        supervised[-labels:] = True
        found.append(Row(ids, supervised))
    return found


@pytest.fixture
def model(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)


def plain_scores(model, row):
    with torch.no_grad():
        logits = model(torch.tensor([row.ids.tolist()])).logits[0].double()
    labels = np.flatnonzero(row.supervised)
    target = torch.tensor(row.ids[labels].astype(np.int64))
    before = logits[labels - 1]
    nll = -before.log_softmax(-1).gather(1, target[:, None]).sum().item()
    return nll, (before.argmax(-1) == target).sum().item(), len(labels)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_rows_score_as_in_a_plain_forward_pass(model, layout, budget):
    expected = np.array([plain_scores(model.eval(), row) for row in rows()])
    install(model)
    found = row_losses(model, micro_batches(rows(), budget=budget, layout=layout), rows=5, device="cpu")
    assert found.nll_sum == pytest.approx(expected[:, 0], rel=1e-6)
    assert found.correct.tolist() == expected[:, 1].tolist()
    assert found.tokens.tolist() == [1, 5, 6, 2, 3]
    assert found.loss == pytest.approx(expected[:, 0].sum() / 17, rel=1e-6)
    assert found.token_accuracy == pytest.approx(expected[:, 1].sum() / 17)


def test_a_model_that_always_names_the_next_token_is_all_correct(model):
    row = rows()[1]
    batches = micro_batches([row], budget=100, layout="padded")
    install(model)
    with torch.no_grad():
        model.lm_head.weight[:] = 0
        model.model.norm.weight[:] = 0
    found = row_losses(model, batches, rows=1, device="cpu")
    assert found.loss == pytest.approx(np.log(400), rel=1e-6)
    ids = torch.zeros(1, 16, dtype=torch.long)
    flat = row_losses(
        model,
        micro_batches([Row(ids[0].numpy().astype(np.int32), row.supervised)], budget=9, layout="tree"),
        rows=1,
        device="cpu",
    )
    assert flat.token_accuracy == 1.0  # of equal logits the first is taken, and every label is token 0


def test_scores_carry_sums_weights_and_groups(model):
    install(model)
    found = row_losses(model, micro_batches(rows(), budget=60, layout="tree"), rows=5, device="cpu")
    scores = found.scores(groups=[0, 0, 1, 1, 2])
    assert list(scores) == ["loss", "perplexity", "token_accuracy"]
    assert scores["loss"].value == found.loss and scores["token_accuracy"].value == found.token_accuracy
    assert scores["loss"].groups is not None and scores["loss"].groups.tolist() == [0, 0, 1, 1, 2]


def test_an_evaluation_leaves_mode_gradients_and_random_state_as_they_were(model):
    install(model)
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    batches = micro_batches(rows(), budget=60, layout="padded")
    model.train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = row_losses(model, batches, rows=5, device="cpu")
    second = row_losses(model, batches, rows=5, device="cpu")
    assert np.array_equal(first.nll_sum, second.nll_sum)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_is_refused_with_its_row(model):
    install(model)
    row = rows()[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[int(row.ids[8])] = float("nan")
    with pytest.raises(ModelError, match=r"row 1 of 5: The model's loss is not finite"):
        row_losses(model, micro_batches(rows(), budget=1, layout="padded"), rows=5, device="cpu")
