"""Log-probabilities of labels: those of each label alone, from far fewer tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import LONGROPE, config_for, tiny

from tunesmith.errors import ModelError
from tunesmith.model import label_logprobs as scoring
from tunesmith.model import label_rounds
from tunesmith.model.label_logprobs import label_logprobs
from tunesmith.model.label_tree import Wanted

WANTED: tuple[Wanted, ...] = ("likeliest", "probabilities", "all")
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
    made = label_logprobs(model, prompts(), LABELS, on_rows=told.append)
    found = made.values
    assert made.followed.all() and found.dtype == np.float64 and found.shape == (6, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(told) == 6
    # Capped scores and recurrent states are not computed over slots.
    assert rows == ([6] if name in ("gemma2", "mamba") else [1])


def scaled(model: Any, factor: float) -> Any:
    """The model with larger logits, which makes it sure, or smaller ones."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * factor)
    return model


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def many_labels() -> list[list[int]]:
    """Some begin alike, two are the beginning of others, two have one token, and one is given twice."""
    random = np.random.default_rng(7)
    drawn = [[*random.integers(3, 9, random.integers(1, 6)).tolist(), 2] for _ in range(40)]
    return [*drawn, drawn[0], [90], [91], drawn[1][:-1], drawn[2][:-1]]


@pytest.mark.parametrize("factor", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "qwen3"])
def test_what_is_left_out_changes_no_prediction_no_tie_and_no_probability(name: str, factor: float) -> None:
    model = scaled(tiny(config_for(name, **LARGE, **MODELS[name])), factor)
    random = np.random.default_rng(2)
    asked = [*prompts(), *([9, 8, *random.integers(3, 90, size).tolist()] for size in range(1, 40, 3))]
    labels = many_labels()
    expected = label_logprobs(model, asked, labels)
    assert expected.followed.all()
    np.testing.assert_allclose(expected.values[3, 5], alone(model, asked[3], labels[5]), rtol=1e-5, atol=1e-5)
    likeliest = label_logprobs(model, asked, labels, wanted="likeliest")
    best = expected.values.max(1, keepdims=True)
    assert (likeliest.values.argmax(1) == expected.values.argmax(1)).all()
    # The label that is given twice ties with itself, and rounding makes no other tie.
    assert ((likeliest.values == likeliest.values.max(1, keepdims=True)) == (expected.values == best)).all()
    probable = label_logprobs(model, asked, labels, wanted="probabilities")
    # Without what rounding does to the logits of a sure model, which are in the hundreds.
    same = np.where(probable.followed, probable.values, expected.values)
    assert np.abs(softmax(probable.values) - softmax(same)).max() < 1e-6
    assert np.abs(softmax(probable.values) - softmax(expected.values)).max() < (1e-6 if factor < 8 else 1e-5)
    for found in (likeliest, probable):
        own, bounds = found.followed, ~found.followed
        np.testing.assert_allclose(found.values[own], expected.values[own], rtol=1e-5, atol=1e-5)
        assert (found.values[bounds] >= expected.values[bounds] - 1e-4).all()
    assert probable.followed.all() if factor == 0.1 else not likeliest.followed.all()


def counted(model: Any, *given: Any, **wanted: Any) -> int:
    """The tokens that one call computes."""
    sizes: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    label_logprobs(model, *given, **wanted)
    hook.remove()
    return sum(sizes)


@pytest.mark.parametrize("factor", [0.01, 8.0])
def test_no_row_costs_more_than_its_tree_and_a_sure_model_costs_little_more_than_the_prompts(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scaled(tiny(config_for("llama", **LARGE)), factor)
    labels = many_labels()
    label_logprobs(model, prompts(), labels)  # tries the ways, once
    monkeypatch.setattr(scoring, "_agrees", lambda *_: True)
    tree = counted(model, prompts(), labels)
    probable, likeliest = (counted(model, prompts(), labels, wanted=each) for each in WANTED[:2][::-1])
    assert likeliest <= probable <= tree
    if factor == 8.0:
        once = 20 + (4 + 1 + 9 + 3 + 6) + 1  # of the prompts, what they begin with once
        assert likeliest <= once + 6 * len(prompts()) < tree / 4


def test_rows_that_wait_for_room_in_a_pass_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(config_for("llama", **LARGE))
    asked, labels = prompts() * 3, many_labels()
    expected = {each: label_logprobs(model, asked, labels, wanted=each) for each in WANTED}
    monkeypatch.setattr(label_rounds, "ENTER_AT_ONCE", 20)
    monkeypatch.setattr(label_rounds, "_LEAST_SLOTS", 3)
    monkeypatch.setattr(label_rounds, "_COLUMNS", 1)
    for each in WANTED:
        told: list[int] = []
        found = label_logprobs(model, asked, labels, wanted=each, on_rows=told.append)
        assert sum(told) == len(asked) and (found.followed == expected[each].followed).all()
        np.testing.assert_allclose(found.values, expected[each].values, rtol=1e-5)


def test_labels_on_both_sides_of_a_change_of_rope_have_their_own_log_probabilities() -> None:
    model = tiny(config_for("phi3", **LARGE, **LONGROPE))
    expected = np.array([[alone(model, prompt, label) for label in LABELS] for prompt in prompts()])
    np.testing.assert_allclose(label_logprobs(model, prompts(), LABELS).values, expected, rtol=1e-5)


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
    by_trees = label_rounds._pass
    monkeypatch.setattr(label_rounds, "_pass", lambda *given: by_trees(*given) + 0.01)
    for wanted in WANTED:
        told: list[int] = []
        found = label_logprobs(model, prompts(), LABELS, wanted=wanted, on_rows=told.append)
        assert found.followed.all() and sum(told) == len(prompts())
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_a_label_that_is_the_beginning_of_another_and_one_that_is_given_twice_have_their_own_values() -> None:
    model = tiny(config_for("llama", **LARGE))
    labels = [[5], [5, 6], [5, 6]]
    found = label_logprobs(model, prompts(), labels).values
    assert (found[:, 0] > found[:, 1]).all()
    assert np.array_equal(found[:, 1], found[:, 2])
    np.testing.assert_allclose(found[2, 1], alone(model, prompts()[2], [5, 6]), rtol=1e-5)


def test_what_cannot_be_scored_is_refused() -> None:
    model = tiny(config_for("llama", **LARGE))
    assert label_logprobs(model, [], LABELS).values.shape == (0, 6)
    with pytest.raises(ModelError, match=r"(?s)prompt 2.*no tokens"):
        label_logprobs(model, [[3], []], LABELS)
    with pytest.raises(ModelError, match=r"(?s)prompt 1.*129.*128 positions"):
        label_logprobs(model, [[3] * 122], LABELS)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        label_logprobs(model, prompts(), LABELS)
