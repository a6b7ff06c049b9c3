"""Steps are laid out one at a time, and an epoch is counted without holding more than one of them."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.tiny import Row, make_rows

from tunesmith.data.batches.layout import Batch
from tunesmith.recipe.file import read_recipe
from tunesmith.training.rehearsal import heaviest
from tunesmith.training.step_rows import Steps, rate_warnings
from tunesmith.workflows.finetune import _first_epoch

ROWS = make_rows(11)


def steps_of(**training: Any) -> tuple[Steps, list[list[int]]]:
    """The steps of 11 rows, four at a time, and the rows that were read so far, step by step."""
    read: list[list[int]] = []

    def rows_of(numbers: Sequence[int]) -> list[Row]:
        read.append(list(numbers))
        return [ROWS[number] for number in numbers]

    recipe = read_recipe(
        {
            "model": "made",
            "data": {"train": "made", "eval": 0.0},
            "training": {"batch_size": 4, "micro_batch_tokens": 64, "layout": "tree", **training},
            "output_dir": "made",
        }
    ).recipe
    corpus = SimpleNamespace(
        rows_of=rows_of, weights=np.ones(11), train_sources=np.zeros(11, int), quotas={}, together=1
    )
    return Steps(recipe, cast(Any, corpus)), read


def test_a_step_is_laid_out_when_it_is_asked_for() -> None:
    steps, read = steps_of(num_train_epochs=2.0)
    found = steps.after(0)
    assert read == []
    first = next(found)
    assert (first.number, len(read), len(read[0])) == (1, 1, 4)
    assert [step.number for step in steps.after(4)] == [5, 6]
    assert read[-1] == list(steps.order.epoch_rows(1)[8:])


def test_an_epoch_is_the_whole_pass_even_if_the_run_is_shorter() -> None:
    steps, read = steps_of(max_steps=1)
    assert len(list(steps.first_epoch())) == 3
    assert sorted(row for rows in read for row in rows) == list(range(11))


def test_tokens_and_heaviest_batch_are_those_of_all_batches() -> None:
    steps, _ = steps_of()
    batches = [batch for step in steps.first_epoch() for batch in step]
    tokens, found = _first_epoch(steps)
    assert tokens.total == sum(batch.tokens for batch in batches) == sum(len(row.ids) for row in ROWS)
    assert tokens.supervised == sum(batch.supervised for batch in batches)
    assert tokens.computed == sum(batch.computed for batch in batches) < tokens.total
    assert found.input_ids.tolist() == heaviest(batches).input_ids.tolist()


def test_counting_an_epoch_keeps_the_batches_of_one_step_and_the_heaviest(monkeypatch: Any) -> None:
    steps, _ = steps_of()
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []
    lay_out = Steps.lay_out

    def watched(self: Steps, rows: Sequence[int], *, step: int | None = None) -> list[Batch]:
        gc.collect()
        alive.append(sum(reference() is not None for reference in seen))
        made = lay_out(self, rows, step=step)
        seen.extend(weakref.ref(batch.input_ids) for batch in made)
        return made

    monkeypatch.setattr(Steps, "lay_out", watched)
    _first_epoch(steps)
    most = max(len(step) for step in steps.first_epoch())
    assert len(alive) >= 3 and max(alive[:3]) <= most + 1


@pytest.mark.parametrize(
    ("training", "steps", "said"),
    [
        ({"warmup_steps": 0.1}, 1, "is 0 in every step, so nothing is learned .*takes 1 of 1 steps"),
        ({"warmup_steps": 100}, 3, r"reaches 2e-05 and never gets to .* 0\.001: the warm-up takes 3 of 3 steps"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.05}},
            4,
            r"climbs to 0\.0428, above training\.learning_rate 0\.001",
        ),
        (
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 20}},
            4,
            "never gets to .*Look at training.lr_scheduler_kwargs",
        ),
    ],
)
def test_a_rate_that_misses_its_peak_is_told(training: dict[str, Any], steps: int, said: str) -> None:
    recipe = read_recipe(
        {"model": "m", "data": {"train": "r.jsonl"}, "output_dir": "o", "training": {"learning_rate": 1e-3, **training}}
    ).recipe
    (warning,) = rate_warnings(recipe, steps)
    assert re.search(said, warning), warning


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_an_ordinary_rate_gives_no_warning(schedule: str) -> None:
    section = {"learning_rate": 1e-3, "warmup_steps": 0.1, "lr_scheduler_type": schedule}
    recipe = read_recipe({"model": "m", "data": {"train": "r.jsonl"}, "output_dir": "o", "training": section}).recipe
    assert rate_warnings(recipe, 30) == []
