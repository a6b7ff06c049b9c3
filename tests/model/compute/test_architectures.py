"""Every causal architecture of the installed transformers: which share prefixes, which fall back, which are not built.

A new release that adds one, or changes what one does, fails here until tests/model/architectures.py says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tests.model.architectures import FALL_BACK, NAMED, NOT_BUILT, NOT_CAUSAL, ONE_LENGTH, SHARE, page, tiny_config
from tests.tiny import Row, make_rows
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunesmith.data.batches.layout import LayoutName, micro_batches
from tunesmith.errors import ModelError
from tunesmith.model.compute import attention
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.compute.probe import probe_model

FALLS = tuple(name for names in FALL_BACK.values() for name in names)
COSINE = 0.99999


def as_parameters(names: tuple[str, ...]) -> list[Any]:
    """The named families are fast tests."""
    return [pytest.param(name, marks=[] if name in NAMED else [pytest.mark.slow]) for name in names]


def built(name: str, **changes: Any) -> Any:
    """A random fp32 model in evaluation mode, attending as transformers has it; the same each time."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(tiny_config(name, **changes), dtype=torch.float32).eval()


def plain_logprobs(model: nn.Module, rows: list[Row]) -> Tensor:
    """As transformers alone has them: one row at a time, with its own attention and positions."""
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            scores = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            labels = np.flatnonzero(row.supervised)
            found.append(torch.log_softmax(scores[0].float(), -1)[labels - 1, ids[0, labels]])
    return torch.cat(found)


def logprobs_and_gradient(model: nn.Module, rows: list[Row], layout: LayoutName) -> tuple[Tensor, Tensor]:
    """In the order of the rows, and the gradient of their sum by every parameter."""
    model.zero_grad()
    starts = np.cumsum([0, *(int(row.supervised.sum()) for row in rows)])
    found = torch.zeros(int(starts[-1]))
    for batch in micro_batches(rows, budget=400, layout=layout):
        scores = target_logprobs(model, batch).logprobs
        scores.sum().backward()
        for number in set(batch.edges.row.tolist()):
            found[starts[number] : starts[number + 1]] = scores.detach()[batch.edges.row == number]
    gradient = [torch.zeros_like(own) if own.grad is None else own.grad for own in model.parameters()]
    return found, torch.cat([part.flatten() for part in gradient]).double()


def test_the_table_has_every_architecture_once() -> None:
    table = [*SHARE, *FALLS, *NOT_BUILT, *NOT_CAUSAL, *ONE_LENGTH]
    assert sorted(table) == sorted(set(table))
    assert sorted(table) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_the_named_families_share() -> None:
    assert len(NAMED) == 21
    assert set(NAMED) <= set(SHARE)


@pytest.mark.parametrize("name", as_parameters(SHARE))
def test_it_shares_prefixes_with_the_values_and_gradients_of_its_own_forward_pass(name: str) -> None:
    rows = make_rows()
    model = built(name)
    expected = plain_logprobs(model, rows)
    attention.install(model)
    result = probe_model(model, rows, device="cpu")
    assert result.shares, result.reason
    (tree, of_tree), (padded, of_padded) = (logprobs_and_gradient(model, rows, layout) for layout in ("tree", "padded"))
    assert (tree - expected).abs().max().item() < 5e-5
    assert (padded - expected).abs().max().item() < 5e-5
    assert torch.nn.functional.cosine_similarity(of_tree, of_padded, dim=0).item() >= COSINE


@pytest.mark.parametrize("name", as_parameters(FALLS))
def test_it_falls_back_to_padded_rows_with_the_values_of_its_own_forward_pass(name: str) -> None:
    rows = make_rows()
    model = built(name)
    expected = plain_logprobs(model, rows)
    attention.install(model)
    result = probe_model(model, rows, device="cpu")
    assert not result.shares
    assert result.reason.startswith("prefix sharing: off")
    padded, gradient = logprobs_and_gradient(model, rows, "padded")
    assert (padded - expected).abs().max().item() < 5e-5
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max().item() > 0


@pytest.mark.parametrize("name", NOT_BUILT)
def test_it_cannot_be_built(name: str) -> None:
    with pytest.raises((ImportError, ValueError, AttributeError, StrictDataclassError), match=NOT_BUILT[name][1]):
        built(name)


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_it_sees_the_tokens_behind_a_prediction(name: str) -> None:
    row = make_rows(1)[0]
    model, ids = built(name), torch.from_numpy(row.ids.astype(np.int64))[None]
    with torch.no_grad():
        whole, cut = (model(input_ids=part, use_cache=False).logits[:, :20] for part in (ids, ids[:, :20]))
    assert (whole - cut).abs().max().item() > 1e-2
    attention.install(model)
    if name == "prophetnet":  # another last token tells nothing here, and the tree differs
        assert not probe_model(model, make_rows(), device="cpu").shares
        return
    with pytest.raises(ModelError, match="sees the tokens that it is to predict"):
        probe_model(model, make_rows(), device="cpu")


@pytest.mark.parametrize("name", ONE_LENGTH)
def test_it_does_not_train_on_rows_of_several_lengths(name: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        logprobs_and_gradient(built(name).train(), make_rows(), "padded")


@pytest.mark.parametrize("name", ["axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"])
def test_a_choice_among_the_keys_that_cuts_a_row_is_kept_and_not_shared(name: str) -> None:
    rows, model = make_rows(), built(name, index_topk=8)
    expected, _ = logprobs_and_gradient(model, rows, "padded")  # not alone: of keys with equal scores, any is chosen
    attention.install(model)
    padded, _ = logprobs_and_gradient(model, rows, "padded")
    assert (padded - expected).abs().max().item() < 5e-5
    assert not probe_model(model, rows, device="cpu").shares


@pytest.mark.parametrize(
    ("name", "positions"),
    [("bart", "max_position_embeddings"), ("gpt_neo", "max_position_embeddings"), ("openai-gpt", "n_positions")],
)
def test_a_line_longer_than_the_positions_of_a_model_that_counts_them_itself_falls_back(
    name: str, positions: str
) -> None:
    model = built(name, **{positions: 48})
    attention.install(model)
    assert not probe_model(model, make_rows(), device="cpu").shares


def test_the_page_of_the_documentation_is_current(pytestconfig: pytest.Config) -> None:
    file = pytestconfig.rootpath / "docs" / "models.md"
    assert file.read_text(encoding="utf-8") == page(), "run: python -m tests.model.architectures > docs/models.md"
