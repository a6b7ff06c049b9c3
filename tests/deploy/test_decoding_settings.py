"""An answer of a run ends where the run's own evaluation ends it, unless the user gives a limit."""

from __future__ import annotations

from tunesmith.deploy.tuned import ModelTarget
from tunesmith.recipe.file import read_recipe


def test_the_limit_of_an_answer_is_that_of_the_runs_evaluation() -> None:
    recipe = read_recipe(
        {"model": "m", "data": {"train": "rows.jsonl"}, "evaluation": {"max_new_tokens": 7}, "output_dir": "run"}
    ).recipe
    run = ModelTarget("m", recipe=recipe)
    assert run.decoding({}).new_tokens(50) == 7
    assert run.decoding({"max_new_tokens": None}).new_tokens(50) == 7
    assert run.decoding({"max_new_tokens": 9}).new_tokens(50) == 9
    assert run.decoding({"max_length": 60}).new_tokens(50) == 10
    assert ModelTarget("m").decoding({}).new_tokens(50) == 256, "a model without a run"
