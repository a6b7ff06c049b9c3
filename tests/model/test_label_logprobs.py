"""Log-probabilities of labels: those of each label alone, from far fewer tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import LONGROPE, config_for, tiny

from tunesmith.errors import ModelError
from tunesmith.model import label_logprobs as scoring
from tunesmith.model.label_logprobs import label_logprobs

LARGE = {"initializer_range": 0.3}
LABELS = [[5, 6, 2], [5, 6, 7, 2], [5, 8, 2], [9, 2], [10, 11, 12, 13, 14, 15, 2], [10, 11, 12, 13, 2]]
MODELS: dict[str, Any] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gpt2": {"n_positions": 128},
    "qwen3": {"head_dim": 8},
    "cohere": {},
    "gemma2": {"sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8},
    "mamba": {},
}


def prompts() -> list[list[int]]:
    random = np.random.default_rng(1)
    common = random.integers(3, 90, 20).tolist()
    return [[*common, *random.integers(3, 90, size).tolist()] for size in (4, 1, 9, 3, 6)] + [[30]]


def alone(model: Any, prompt: list[int], label: list[int]) -> float:
    ids = torch.tensor([prompt + label])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].double()
    before = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return before.gather(1, torch.tensor(label)[:, None]).sum().item()


@pytest.mark.parametrize("name", MODELS)
def test_each_label_has_the_log_probability_that_it_has_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(config_for(name, **LARGE, **MODELS[name]))
    expected = np.array([[alone(model, prompt, label) for label in LABELS] for prompt in prompts()])
    told: list[int] = []
    rows: list[int] = []
    one_by_one = scoring._one_by_one
    monkeypatch.setattr(
        scoring, "_one_by_one", lambda model, jobs, *given: (rows.append(len(jobs)), one_by_one(model, jobs, *given))[1]
    )
    found = label_logprobs(model, prompts(), LABELS, on_rows=told.append)
    assert found.dtype == np.float64 and found.shape == (6, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(told) == 6
    # Capped scores and recurrent states are not computed over slots.
    assert rows == ([6] if name in ("gemma2", "mamba") else [1])


def test_labels_on_both_sides_of_a_change_of_rope_have_their_own_log_probabilities() -> None:
    model = tiny(config_for("phi3", **LARGE, **LONGROPE))
    expected = np.array([[alone(model, prompt, label) for label in LABELS] for prompt in prompts()])
    np.testing.assert_allclose(label_logprobs(model, prompts(), LABELS), expected, rtol=1e-5)


def test_prompts_and_what_labels_begin_with_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(config_for("llama", **LARGE))
    label_logprobs(model, prompts(), LABELS)  # tries the ways, once
    monkeypatch.setattr(scoring, "_agrees", lambda *_: True)
    sizes: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    label_logprobs(model, prompts(), LABELS)
    inner = len({tuple(label[:end]) for label in LABELS for end in range(1, len(label))})
    assert sum(sizes) == 20 + (4 + 1 + 9 + 3 + 6) + 1 + len(prompts()) * inner


def test_a_model_whose_tree_differs_scores_labels_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(config_for("llama", **LARGE))
    expected = np.array([[alone(model, prompt, label) for label in LABELS] for prompt in prompts()])
    by_trees = scoring._pass
    monkeypatch.setattr(scoring, "_pass", lambda *given: by_trees(*given) + 0.01)
    np.testing.assert_allclose(label_logprobs(model, prompts(), LABELS), expected, rtol=1e-5)


def test_a_label_that_is_the_beginning_of_another_and_one_that_is_given_twice_have_their_own_values() -> None:
    model = tiny(config_for("llama", **LARGE))
    labels = [[5], [5, 6], [5, 6]]
    found = label_logprobs(model, prompts(), labels)
    assert (found[:, 0] > found[:, 1]).all()
    assert np.array_equal(found[:, 1], found[:, 2])
    np.testing.assert_allclose(found[2, 1], alone(model, prompts()[2], [5, 6]), rtol=1e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    model = tiny(config_for("llama", **LARGE))
    assert label_logprobs(model, [], LABELS).shape == (0, 6)
    with pytest.raises(ModelError, match=r"(?s)prompt 2.*no tokens"):
        label_logprobs(model, [[3], []], LABELS)
    with pytest.raises(ModelError, match=r"(?s)prompt 1.*129.*128 positions"):
        label_logprobs(model, [[3] * 122], LABELS)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        label_logprobs(model, prompts(), LABELS)
