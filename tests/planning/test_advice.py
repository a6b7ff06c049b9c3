"""Hyperparameters to begin with: every rule at its bounds, and one source of truth with `learning_rate: auto`."""

from __future__ import annotations

import pytest

from tunesmith.planning import advice
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.objectives import OBJECTIVE_SETTINGS
from tunesmith.recipe.settings import usual_rate

OBJECTIVES = list(OBJECTIVE_SETTINGS)


@pytest.mark.parametrize(
    ("method", "objective", "parameters", "rate", "source"),
    [
        ("lora", "sft", 134_515_008, 5e-4, "docs/lab.md at 135M; arXiv:2405.09673"),
        ("lora", "sft", 10**9, 2e-4, "arXiv:2305.14314; arXiv:2405.09673"),
        ("qlora", "sft", 8_030_261_248, 2e-4, "arXiv:2305.14314; arXiv:2405.09673"),
        ("qlora", "sft", 33 * 10**9, 1e-4, "arXiv:2305.14314; arXiv:2405.09673"),
        ("lora", "sft", None, 2e-4, "arXiv:2305.14314; arXiv:2405.09673"),
        ("full", "sft", 134_515_008, 5e-5, "docs/lab.md at 135M; arXiv:2405.09673"),
        ("full", "sft", 7 * 10**9, 2e-5, "guide; arXiv:2305.14314; arXiv:2405.09673"),
        ("full", "sft", 70 * 10**9, 1e-5, "arXiv:2305.14314; arXiv:2405.09673"),
        ("lora", "dpo", 134_515_008, 2.5e-5, "arXiv:2305.18290; TRL; docs/lab.md at 135M"),
        ("lora", "kto", 7 * 10**9, 1e-5, "arXiv:2305.18290; TRL"),
        ("full", "orpo", 7 * 10**9, 1e-6, "arXiv:2305.18290; TRL"),
    ],
)
def test_the_learning_rate_follows_method_objective_and_size(
    method: str, objective: str, parameters: int | None, rate: float, source: str
) -> None:
    choice = advice.learning_rate(method, objective, parameters)
    assert (choice.value, choice.source) == (pytest.approx(rate, rel=1e-12), source)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_auto_is_the_rate_between_1b_and_30b_parameters(method: str, objective: str) -> None:
    values = {"model": "m", "data": {"train": "rows"}, "method": method, "objective": objective, "output_dir": "run"}
    auto = read_recipe(values).recipe.learning_rate
    assert [advice.learning_rate(method, objective, size).value for size in (10**9, 29 * 10**9, None)] == [auto] * 3


@pytest.mark.parametrize("parameters", [10**8, 10**10, 10**11, None])
def test_the_tenfold_that_the_reasons_speak_of_is_there(parameters: int | None) -> None:
    for objective in OBJECTIVES:
        lora, full = (advice.learning_rate(method, objective, parameters) for method in ("lora", "full"))
        assert lora.value == pytest.approx(10 * full.value)
        assert f"ten times full's {full.value:.1e}".replace("e-0", "e-") in lora.reason
        assert "a tenth of LoRA's" in full.reason


def test_a_method_with_a_rate_of_its_own_says_how_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHOD_SETTINGS, "some", METHOD_SETTINGS["full"])
    monkeypatch.setitem(usual_rate.__globals__["LEARNING_RATES"], "some", 5e-5)
    choice = advice.learning_rate("some", "sft", 7 * 10**9)
    assert (choice.value, choice.source) == (5e-5, "rule of thumb")
    assert choice.reason.endswith("LoRA's is 4 times that")


@pytest.mark.parametrize(
    ("asked", "fits", "name"),
    [
        (None, {}, "lora"),
        (None, {"lora": True, "qlora": True, "full": True}, "lora"),
        (None, {"lora": False, "qlora": True}, "qlora"),
        (None, {"lora": False, "qlora": False}, "lora"),
        ("full", {"full": False, "lora": True}, "full"),
    ],
)
def test_lora_comes_first_and_qlora_where_it_alone_fits(asked: str | None, fits: dict[str, bool], name: str) -> None:
    assert advice.method(asked, 5000, fits).value == name


def test_full_fine_tuning_on_few_rows_is_warned_of() -> None:
    few, enough = (str(advice.method("full", rows, {})) for rows in (9_999, 10_000))
    assert few == "every weight trains; 9,999 rows are few for that: from 10,000 on, and LoRA from 1,000 (guide)"
    assert enough == "every weight trains; 10,000 rows are enough for it (guide)"


def test_epochs_and_batch_follow_the_rows() -> None:
    assert [advice.epochs(rows).value for rows in (299, 300, 49_999, 50_000)] == [5, 3, 3, 1]
    assert [advice.batch_size(rows).value for rows in (99, 100, 999, 1000)] == [4, 8, 8, 16]
    assert [advice.warmup(steps).value for steps in (19, 20)] == [0, 0.1]


@pytest.mark.parametrize(
    ("tokens", "rank"), [(0, 16), (1600, 16), (1601, 32), (12_800, 128), (25_600, 256), (25_601, 256)]
)
def test_the_adapter_has_a_parameter_for_each_token_to_learn(tokens: int, rank: int) -> None:
    choice = advice.rank(tokens, 100)
    assert choice.value == rank
    assert ("more than LoRA holds well" in choice.reason) == (tokens > 256 * 100)


def test_without_the_models_shape_the_rank_is_the_usual_one() -> None:
    assert advice.rank(10**9, None).value == 16


def test_a_range_test_goes_through_what_is_usual_with_room_on_both_sides() -> None:
    for method in METHOD_SETTINGS:
        for parameters in (10**8, 10**10, 10**11):
            low, high = advice.rate_range(method, "adamw_torch")
            rate = advice.learning_rate(method, "sft", parameters).value
            assert 10 * low < rate < high / 10
        assert advice.rate_range(method, "sgd")[0] == pytest.approx(1000 * low)


def test_numbers_in_short() -> None:
    found = [advice.in_short(number) for number in (999, 1000, 134_515_008, 8_030_261_248)]
    assert found == ["999", "1k", "135M", "8.03B"]
