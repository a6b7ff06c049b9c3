"""What to try next: one test a reason, and none without a measured one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunesmith.evaluation.advice import advice
from tunesmith.evaluation.wording import advice_lines
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe

FINE: dict[str, Any] = {"verdict": "better", "decided_by": "exact_match", "metrics": {"exact_match": {}}, "damage": []}


@pytest.fixture
def recipe() -> Recipe:
    values = {"model": "m", "data": {"train": "rows.jsonl"}, "output_dir": "run"}
    return read_recipe({**values, "training": {"learning_rate": 3e-4}, "evaluation": {"max_new_tokens": 32}}).recipe


def sample(number: int, *, right: bool = True, **values: Any) -> dict[str, Any]:
    found = {
        "source": f"r.jsonl:{number}",
        "prompt": f"ask {number}",
        "truth": "yes",
        "tuned": "yes" if right else "no",
    }
    return {**found, "tuned_stopped": True, "scores": {"exact_match": float(right)}, **values}


def curve(losses: list[float], validation: Sequence[float] = ()) -> list[dict[str, Any]]:
    lines = [{"step": 10 * n, "loss": loss, "learning_rate": 3e-4} for n, loss in enumerate(losses, start=1)]
    every = len(losses) // max(len(validation), 1)
    return lines + [{"step": 10 * every * n, "eval_loss": loss} for n, loss in enumerate(validation, start=1)]


def falling(count: int) -> list[float]:
    return [2.0 * 0.93**number for number in range(count)]


def reasons(*arguments: Any, **named: Any) -> list[str]:
    return [each["reason"] for each in advice(*arguments, **named)]


def test_a_run_in_which_nothing_stands_out_gets_no_advice(recipe: Recipe) -> None:
    samples = [sample(number, right=number % 10 > 0) for number in range(40)]
    lines = curve(falling(40), [1.5, 1.2, 1.0, 0.9, 0.85])
    assert advice(FINE, samples, recipe, lines=lines, trained_labels={"yes": 500}) == []
    assert advice_lines({**FINE, "advice": []}, "run") == [] == advice_lines(FINE, "run")


def test_overfitting_is_met_with_the_best_checkpoint(recipe: Recipe) -> None:
    lines = sorted(curve(falling(40), [1.5, 1.0, 1.2, 1.5, 1.9]), key=lambda line: line["step"])
    (found,) = advice(FINE, [], recipe, lines=lines)
    assert found["reason"] == "overfitting"
    assert found["text"] == (
        "The validation loss has risen since step 160 (1 -> 1.9) while the training loss fell: the model memorises the "
        "rows."
    )
    assert found["command"].endswith("training.load_best_model_at_end=true output_dir=RUN-2")
    assert advice({**FINE, "selection": {"best_step": 160}}, [], recipe, lines=lines) == []


def test_a_loss_that_rises_asks_for_a_third_of_the_rate_and_a_flat_one_for_three_times(recipe: Recipe) -> None:
    rising = curve([1.0] * 15 + [1.0 + 0.2 * n for n in range(20)])
    (found,) = advice(FINE, [], recipe, lines=rising)
    assert found["reason"] == "learning_rate" and "training.learning_rate=0.0001 " in found["command"]
    (found,) = advice(FINE, [], recipe, lines=curve([2.0] * 40))
    assert found["reason"] == "flat" and "training.learning_rate=0.0009 " in found["command"]


def test_answers_that_are_cut_off_ask_for_a_higher_limit_only_if_the_reference_is_longer(recipe: Recipe) -> None:
    cut = [sample(n, right=False, tuned_stopped=False, truth="a long reference answer") for n in range(3)]
    (found,) = advice(FINE, cut + [sample(n) for n in range(3, 13)], recipe)
    assert found["text"] == "3 of 13 answers were cut off at 32 tokens, shorter than the reference."
    assert found["command"] == "tunesmith eval RUN max_new_tokens=64"
    left = [{**each, "tuned_settled": True} for each in cut]  # unfinished because it cannot be right any more
    assert advice(FINE, left + [sample(n) for n in range(3, 13)], recipe) == []
    endless = [sample(n, right=False, tuned_stopped=False, tuned="no no no no") for n in range(8)]
    assert advice(FINE, endless, recipe) == []
    damage = [{"kind": "unfinished", "base": 0.0, "tuned": 1.0, "rows": 8, "p_value": 0.01, "evidence": True}]
    (found,) = advice({**FINE, "damage": damage}, endless, recipe)
    assert found["reason"] == "unfinished" and found["command"] == "tunesmith check RUN/recipe.yaml --show 3"


def test_answers_that_broke_ask_for_a_third_of_the_rate(recipe: Recipe) -> None:
    damage = {"kind": "repetition", "base": 0.0, "tuned": 18 / 19, "rows": 19, "p_value": 0.0, "evidence": True}
    broken = {**FINE, "verdict": "worse", "decided_by": "repetition", "damage": [damage]}
    (found,) = advice(broken, [], recipe, lines=curve([2.0] * 40))  # and no higher rate, though the loss is flat
    assert found["text"] == "18 of 19 answers end in repetition (base: 0): the learning rate (0.0003) may be too high."
    assert found["command"] == "tunesmith train RUN/recipe.yaml training.learning_rate=0.0001 output_dir=RUN-2"
    rising = curve([1.0] * 15 + [1.0 + 0.2 * n for n in range(20)])
    assert reasons(broken, [], recipe, lines=rising) == ["learning_rate"], "the same command only once"
    endless = {**broken, "damage": [{**damage, "kind": "unfinished"}]}
    assert reasons(endless, [], recipe) == ["damage"]
    cut = [sample(n, right=False, tuned_stopped=False, truth="a long reference answer") for n in range(9)]
    assert reasons(endless, cut, recipe) == ["cut off"]
    assert reasons({**broken, "damage": [{**damage, "evidence": False}]}, [], recipe) == []


def test_contradictions_among_the_wrong_rows_are_counted(recipe: Recipe) -> None:
    torn = [sample(n, right=n % 2 == 0, prompt=f"ask {n // 2}", truth="ab"[n % 2]) for n in range(6)]
    (found,) = advice(FINE, [*torn, sample(7, right=False)], recipe)
    assert found["text"] == (
        "3 of 4 wrong rows have a prompt to which another held-out row gives another answer, such as r.jsonl:1."
    )
    same = [{**each, "truth": "a"} for each in torn]
    assert reasons(FINE, same, recipe) == []


def test_a_label_that_few_rows_taught_is_named(recipe: Recipe) -> None:
    samples = [sample(n, truth="common") for n in range(10)] + [
        sample(n, right=False, truth="rare") for n in range(10, 14)
    ]
    (found,) = advice(FINE, samples, recipe, trained_labels={"common": 90, "rare": 4})
    assert found["text"] == (
        "The label 'rare' is right in 0 of 4 rows, and 4 rows of it were trained on. Add rows of it."
    )
    assert reasons(FINE, samples, recipe, trained_labels={"common": 90, "rare": 60}) == []
    assert reasons(FINE, samples, recipe) == []


def test_a_difference_below_what_the_rows_show_asks_for_more_rows(recipe: Recipe) -> None:
    metric = {"difference": 0.04, "detectable": 0.09, "rows": 100}
    open_question = {**FINE, "verdict": "no evidence", "metrics": {"exact_match": metric}}
    (found,) = advice(open_question, [], recipe)
    assert found["text"] == (
        "The difference of +0.04 may be real: 100 rows show 0.09 or more, and about 507 would show this one."
    )
    for other in ({"difference": 0.0}, {"difference": 0.001}, {"detectable": None}):
        assert advice({**open_question, "metrics": {"exact_match": {**metric, **other}}}, [], recipe) == []


def test_a_command_names_the_folder_of_the_run() -> None:
    found = {
        "advice": [{"reason": "r", "text": "It rose.", "command": "tunesmith train RUN/recipe.yaml output_dir=RUN-2"}]
    }
    assert advice_lines(found, Path("my runs/a")) == [
        "What next:",
        "  It rose. Try: `tunesmith train 'my runs/a'/recipe.yaml output_dir='my runs/a'-2`",
    ]
