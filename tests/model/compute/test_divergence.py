"""The divergence between two models at each position, beside a computation with transformers over whole logits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import config_for, make_rows, tiny

from tunesmith.data.batches.layout import LayoutName, micro_batches
from tunesmith.errors import ModelError
from tunesmith.methods.base import exchanged
from tunesmith.model.compute import divergence
from tunesmith.model.compute.divergence import Positions, compare_positions, keep

CPU = torch.device("cpu")


def moved(model: Any, size: float) -> Any:
    """A copy whose weights are a little elsewhere."""
    other = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for own in other.parameters():
            own.add_(torch.randn_like(own), alpha=size)
    return other


def brute_force(base: Any, tuned: Any, rows: Any) -> Positions:
    """Row by row, over logits of the whole row in float64."""
    columns: list[list[Any]] = [[] for _ in range(6)]
    for number, row in enumerate(rows):
        ids = torch.tensor(row.ids[None].astype(np.int64))
        with torch.no_grad():
            logprobs = [model(input_ids=ids).logits[0].double().log_softmax(-1) for model in (base, tuned)]
        for at in np.flatnonzero(row.supervised):
            p, q = (each[at - 1] for each in logprobs)
            found = [number, float((p.exp() * (p - q)).sum()), int(p.argmax()), int(q.argmax())]
            found += [float(each[row.ids[at]]) for each in (p, q)]
            for column, value in zip(columns, found, strict=True):
                column.append(value)
    return Positions(*map(np.array, columns))


def found_by(base: Any, tuned: Any, rows: Any, layout: LayoutName, budget: int = 96) -> Positions:
    batches = micro_batches(rows, budget=budget, layout=layout)
    return compare_positions(tuned, batches, keep(base, batches, device=CPU), device=CPU)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
        ("cohere", {"logit_scale": 0.25}),
        ("phi", {}),  # whose output layer has a bias
    ],
)
def test_it_is_what_whole_logits_give(name: str, changes: dict[str, Any], layout: LayoutName) -> None:
    base = tiny(config_for(name, **changes))
    tuned, rows = moved(base, 0.05), make_rows()
    found, expected = found_by(base, tuned, rows, layout), brute_force(base, tuned, rows)
    assert expected.kl.min() > 1e-4
    assert np.array_equal(found.row, expected.row)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=2e-4, atol=2e-6)
    np.testing.assert_array_equal(found.first, expected.first)
    np.testing.assert_array_equal(found.second, expected.second)
    np.testing.assert_allclose(found.first_logprob, expected.first_logprob, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.second_logprob, expected.second_logprob, rtol=1e-5, atol=1e-5)


def test_a_model_is_at_no_distance_from_itself() -> None:
    model = tiny(config_for("llama"))
    found = found_by(model, model, make_rows(), "tree")
    assert np.abs(found.kl).max() <= 1e-12
    assert np.array_equal(found.first, found.second)


def test_the_base_stays_what_it_was_when_the_same_module_has_other_weights() -> None:
    model = tiny(config_for("llama"))
    tuned = moved(model, 0.05)
    rows = make_rows()
    expected = found_by(model, tuned, rows, "tree")
    batches = micro_batches(rows, budget=96, layout="tree")
    pairs = [
        (own.requires_grad_(False), other) for own, other in zip(model.parameters(), tuned.parameters(), strict=True)
    ]
    kept = keep(model, batches, device=CPU)
    with exchanged(pairs):
        found = compare_positions(model, batches, kept, device=CPU)
    np.testing.assert_array_equal(found.kl, expected.kl)


def test_only_what_may_be_kept_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(config_for("llama")), make_rows()
    batches = micro_batches(rows, budget=60, layout="padded")
    assert len(batches) > 2
    monkeypatch.setattr(divergence, "MOST_KEPT", 32)
    found = compare_positions(model, batches, keep(model, batches, device=CPU), device=CPU)
    assert len(np.unique(found.row)) == len(np.unique(batches[0].edges.row.numpy()))


def test_weights_that_are_damaged_are_named() -> None:
    model = tiny(config_for("llama"))
    broken = moved(model, 0.0)
    with torch.no_grad():
        next(iter(broken.parameters()))[5] = float("nan")
    rows = make_rows()
    rows[1].ids[3] = 5
    with pytest.raises(ModelError, match="The divergence between the models is not finite"):
        found_by(model, broken, rows, "padded")
