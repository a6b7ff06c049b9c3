"""Log-probabilities and gradients through our output layer are those of the model's own logits."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.tiny import Row, config_for, make_rows, tiny
from torch import Tensor

from tunesmith.data.batches.layout import Batch, padded_batch, tree_batch
from tunesmith.model.compute import logprobs
from tunesmith.model.compute.attention import forward_arguments, laid_out
from tunesmith.model.compute.fused_modules import fuse
from tunesmith.model.compute.logprobs import target_logprobs
from tunesmith.model.compute.probe import probe_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0, "head_dim": 8},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0},
    "phi": {},  # a bias in the output layer
}


def own_logprobs(model: Any, batch: Batch) -> Tensor:
    with laid_out(batch):
        logits = model(**forward_arguments(batch)).logits[batch.predicts].float()
    return torch.log_softmax(logits, -1)[batch.edges.logit, batch.edges.target]


def compare(model: Any, batch: Batch) -> None:
    weight = torch.linspace(-1, 2, len(batch.edges.target))
    results = []
    for way in (own_logprobs, lambda model, batch: target_logprobs(model, batch).logprobs):
        model.zero_grad()
        made = way(model, batch)
        (made * weight).sum().backward()
        gradients = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
        results.append((made.detach(), gradients))
    (expected, before), (found, after) = results
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    assert before.keys() == after.keys() and before
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=2e-6 * float(1 + gradient.abs().max()))


@pytest.mark.parametrize("chunk", [2**23, 300], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_through_the_output_layer(
    name: str, frozen: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", chunk)
    model = tiny(config_for(name, **FAMILIES[name], tie_word_embeddings=False))
    for parameter in model.get_output_embeddings().parameters():
        parameter.requires_grad_(not frozen)
    assert logprobs._logit_transform(model) is not None, "the config tells what this family does to its logits"
    rows = make_rows()
    compare(model, tree_batch(rows, range(6)))
    compare(model, padded_batch(rows, range(6)))


def test_labels_that_share_a_logit_each_get_their_share_of_its_gradient() -> None:
    model = tiny(config_for("llama"))
    model.get_output_embeddings().requires_grad_(False)
    rows = [Row(np.array([*range(20, 40), last])) for last in (9, 10, 9)]  # the same prefix predicts 9, 10 and 9 again
    batch = tree_batch(rows, range(3))
    assert len(batch.edges.target) > int(batch.predicts.sum())
    compare(model, batch)


def test_what_was_the_likeliest_token_is_counted() -> None:
    model, rows = tiny(config_for("llama")), make_rows()
    batch = tree_batch(rows, range(6))
    with torch.no_grad():
        with laid_out(batch):
            logits = model(**forward_arguments(batch)).logits[batch.predicts]
        found = target_logprobs(model, batch).correct
    assert torch.equal(found, logits.argmax(-1)[batch.edges.logit] == batch.edges.target)


def test_a_model_whose_logits_are_not_what_its_config_says_projects_itself() -> None:
    model, batch = tiny(config_for("llama")), tree_batch(make_rows(), range(6))
    model.get_output_embeddings().register_forward_hook(lambda module, given, made: made * 1.5)
    own = model.forward
    model.forward = lambda *given, **named: _squared(own(*given, **named))
    assert logprobs._logit_transform(model) is None
    compare(model, batch)


def test_a_model_that_makes_all_its_logits_whatever_is_asked_gives_those_of_the_labels() -> None:
    model = tiny(config_for("llama"))
    own = model.forward
    model.forward = lambda *given, logits_to_keep=0, **named: _squared(own(*given, **named))
    assert logprobs._logit_transform(model) is None
    compare(model, tree_batch(make_rows(), range(6)))
    compare(model, padded_batch(make_rows(), range(6)))


@pytest.mark.parametrize("projects_itself", [True, False])
def test_a_model_that_takes_neither_positions_nor_logits_to_keep_is_not_asked_for_them(projects_itself: bool) -> None:
    model, rows = tiny(config_for("llama")), make_rows()
    expected = target_logprobs(model, padded_batch(rows, range(6))).logprobs
    other = tiny(config_for("llama"))
    inner = other if projects_itself else other.model
    own = inner.forward
    inner.forward = lambda input_ids, attention_mask: own(input_ids=input_ids, attention_mask=attention_mask)
    logprobs._transforms[other] = None if projects_itself else logprobs.LogitTransform()
    torch.testing.assert_close(target_logprobs(other, padded_batch(rows, range(6))).logprobs, expected)
    assert probe_model(model, rows, device="cpu").shares
    assert not probe_model(other, rows, device="cpu").shares


def test_a_hook_on_a_frozen_output_layer_is_not_passed_over() -> None:
    model = tiny(config_for("llama"))
    output_layer = model.get_output_embeddings()
    output_layer.requires_grad_(False)
    output_layer.register_forward_hook(lambda module, given, made: made * 1.5)
    compare(model, tree_batch(make_rows(), range(6)))


def _squared(output: Any) -> Any:
    output.logits = output.logits * output.logits.abs()
    return output


def test_an_adapter_on_the_output_layer_is_not_passed_over() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny(config_for("llama", tie_word_embeddings=False))
    settings = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    compare(adapted, tree_batch(make_rows(), range(6)))
    assert any(
        "lm_head" in name and cast("Tensor", own.grad).abs().max() > 0
        for name, own in adapted.named_parameters()
        if own.requires_grad
    )


def test_layers_that_are_computed_again_leave_nothing_out_whoever_holds_the_flag() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(config_for("llama")).train()
        fuse(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        target_logprobs(model, tree_batch(make_rows(), range(6))).logprobs.sum().backward()
        gradients.append(torch.cat([own.grad.flatten() for own in model.parameters() if own.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [2**23, 300], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "an output layer of its own"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_the_output_layer_that_train_apart(
    name: str, tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As plain PEFT and transformers have it: new tokens, or a few that are named."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", chunk)
    if name != "phi":  # the output layer has a bias there, and PEFT its own way with it
        monkeypatch.setattr(logprobs, "_through_module", None)
    model = tiny(config_for(name, **FAMILIES[name], tie_word_embeddings=tied))
    ids = [90, 5, 17, 40]
    where = {own_name: ids for own_name, own in model.named_modules() if own is model.get_input_embeddings()}
    rows: Any = ids if tied else {**where, "lm_head": ids}
    settings = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=rows, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    compare(adapted, tree_batch(make_rows(), range(6)))
    compare(adapted, padded_batch(make_rows(), range(6)))
    trained = [name for name, own in adapted.named_parameters() if own.requires_grad and "tokens_delta" in name]
    assert len(trained) == (1 if tied else 2)
    with adapted.disable_adapter(), torch.no_grad():
        batch = tree_batch(make_rows(), range(6))
        torch.testing.assert_close(target_logprobs(adapted, batch).logprobs, own_logprobs(adapted, batch))
