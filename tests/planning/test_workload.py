"""How much an epoch has to compute: as it is said, from the characters of rows, and from their tokens as a run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.batches.layout import micro_batches
from tunesmith.errors import DataError
from tunesmith.evaluation.task import task_batches
from tunesmith.model.weights.config_file import read_config
from tunesmith.planning import memory
from tunesmith.planning.devices import Device
from tunesmith.planning.method_table import plan_methods
from tunesmith.planning.workload import as_given, by_characters
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.progress import Silent
from tunesmith.training.objectives.table import preference_objective
from tunesmith.training.setup import prepare_training
from tunesmith.training.step_rows import order_of
from tunesmith.workflows.exact_workload import by_tokens


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(path: Path, *, objective: Any = "sft", training: Any = None, **data: object) -> Recipe:
    sections = {"train": str(path), "eval": 0.0, **data}
    return read_recipe(
        {"model": "a/model", "data": sections, "objective": objective, "training": training or {}, "output_dir": "run"}
    ).recipe


def test_rows_as_they_are_said_share_nothing_and_half_is_learned() -> None:
    found = as_given(10, 8)
    assert (found.rows, found.longest, found.tokens, found.computed) == (10, 8, 80, 80)
    assert (found.logits, found.pairs) == (40, 10 * 36)


def test_of_two_answers_as_they_are_said_the_prompt_is_computed_once() -> None:
    found = as_given(10, 8, recipe=recipe(Path("rows"), objective="dpo"))
    assert (found.rows, found.longest, found.tokens, found.computed) == (10, 12, 160, 120)
    assert (found.logits, found.pairs) == (80, 10 * (4 * 5 // 2 + 2 * (4 * 4 + 4 * 5 // 2)))
    group = as_given(10, 8, recipe=recipe(Path("rows"), objective="kto", training={"per_device_train_batch_size": 3}))
    assert group.longest == 3 * 12


def test_four_characters_are_a_token_and_no_row_is_longer_than_the_recipe_allows(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 12, "completion": "c" * 8}, {"prompt": "q" * 400, "completion": "d" * 8}]
    write(tmp_path / "rows.jsonl", rows)
    found = by_characters(recipe(tmp_path / "rows.jsonl", max_length=50, too_long="truncate"))
    assert (found.rows, found.longest, found.tokens, found.computed) == (2, 50, 55, 55)
    assert found.logits == 4
    assert found.pairs == 5 * 6 // 2 + 50 * 51 // 2


def test_a_pair_has_its_prompt_in_two_rows_and_computes_it_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}" * 400, "chosen": "c" * 40, "rejected": "r" * 40} for n in range(3)]
    write(tmp_path / "rows.jsonl", rows)
    found = by_characters(recipe(tmp_path / "rows.jsonl", objective="dpo", max_length=112))
    assert (found.rows, found.longest, found.tokens, found.computed) == (3, 120, 3 * 220, 3 * 120)
    assert (found.logits, found.pairs) == (3 * 20, 3 * (100 * 101 // 2 + 2 * (10 * 100 + 10 * 11 // 2)))


def test_a_row_of_kto_is_computed_with_the_answer_of_another(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}" * 400, "completion": "c" * 40, "label": n % 2 == 0} for n in range(3)]
    write(tmp_path / "rows.jsonl", rows)
    asked = recipe(tmp_path / "rows.jsonl", objective="kto", training={"per_device_train_batch_size": 2})
    found = by_characters(asked)
    assert (found.rows, found.longest, found.tokens, found.computed) == (3, 2 * 120, 3 * 110, 3 * 120)


def test_a_document_is_learned_whole(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"text": "t" * 40}])
    found = by_characters(recipe(tmp_path / "rows.jsonl"))
    assert (found.tokens, found.logits) == (10, 10)


def test_a_long_document_is_so_many_full_blocks_and_a_rest(tmp_path: Path) -> None:
    rows = [{"text": "t" * 4 * length} for length in (25, 10, 30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = by_characters(recipe(tmp_path / "rows.jsonl", max_length=10))
    assert (found.rows, found.longest, found.tokens, found.logits) == (7, 10, 65, 65)
    assert found.pairs == 6 * 55 + 15
    assert by_characters(recipe(tmp_path / "rows.jsonl", max_length=10, too_long="truncate")).tokens == 30


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        by_characters(recipe(tmp_path / "nothing.jsonl"))


def test_rows_that_the_objective_does_not_learn_from_are_refused_as_in_training(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"prompt": f"{n}?", "completion": "yes"} for n in range(4)])
    with pytest.raises(DataError, match="the objective dpo does not learn from rows of the shape prompt_completion"):
        by_characters(recipe(tmp_path / "rows.jsonl", objective="dpo"))


def made_row(objective: str, number: int, words: int) -> dict[str, Any]:
    prompt, answer = f"Name the thing {number}, please. " + "why " * words, "because " + "so " * words
    if objective == "sft":
        return {"prompt": prompt, "completion": answer}
    if objective == "kto":
        return {"prompt": prompt, "completion": answer, "label": number % 2 == 0}
    return {"prompt": prompt, "chosen": answer, "rejected": f"{answer} not"}


@pytest.mark.parametrize("longest", ["train", "eval", "test"])
@pytest.mark.parametrize(
    "objective", ["sft", "dpo", {"name": "orpo", "nll_tokens": "answer"}, {"name": "orpo", "nll_tokens": "all"}, "kto"],
    ids=["sft", "dpo", "orpo", "orpo-all", "kto"],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
def test_a_plan_has_the_micro_batch_of_the_run_whatever_rows_are_the_longest(
    tmp_path: Path, tiny_model_dir: Path, objective: Any, longest: str, layout: str
) -> None:
    name = objective if isinstance(objective, str) else objective["name"]
    files = {
        side: write(
            tmp_path / f"{side}.jsonl",
            [made_row(name, 100 * place + n, 30 if side == longest and n == 3 else n % 5) for n in range(9)],
        )
        for place, side in enumerate(("train", "eval", "test"))
    }
    asked = read_recipe(
        {
            "model": {"path": str(tiny_model_dir), "device": "cpu", "dtype": "float32"},
            "data": files,
            "objective": objective,
            "training": {
                "micro_batch_tokens": 16, "per_device_train_batch_size": 4, "layout": layout, "threads": 1,
                "load_best_model_at_end": True,
            },
            "output_dir": str(tmp_path / "run"),
        }
    ).recipe  # fmt: skip
    prepared = prepare_training(asked, Silent())
    chosen = prepared.plan
    config, folder = read_config(str(tiny_model_dir))
    device = Device("cpu", "cpu", memory.total_memory("cpu"), 1e11)
    planned = plan_methods(asked, config, by_tokens(asked), device, folder=folder)
    [line] = [each for each in planned.lines if each.recipe]
    assert (line.budget, line.tokens, line.checkpointing) == (chosen.budget, chosen.tokens, chosen.checkpointing)
    assert chosen.tokens == max(batch.computed for batch in laid_out(prepared, layout)) > 100


def laid_out(prepared: Any, layout: Any) -> list[Any]:
    """Every micro-batch of a first epoch, and of the rows that select and judge."""
    objective, corpus = preference_objective(prepared.recipe), prepared.corpus
    batches = []
    for task in (prepared.task, prepared.selecting):
        batches += task_batches(task, budget=16, layout=layout)
    for window in list(order_of(prepared.recipe, corpus).windows())[:3]:
        rows = corpus.rows_of(window.rows)
        if objective is None:
            batches += micro_batches(rows, budget=16, layout=layout)
        else:
            batches += objective.batches(objective.rows(rows), budget=16, layout=layout)
    return batches
