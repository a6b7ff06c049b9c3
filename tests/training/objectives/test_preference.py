"""dpo, orpo and kto have TRL's losses and gradients, whatever the layout and the micro-batches."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.goldens import preferences as goldens

from tunesmith.data.batches.layout import Batch, LayoutName
from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.metrics.preferences import Preferences
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.model.compute import attention
from tunesmith.recipe.objectives import DpoSettings, KtoSettings, OrpoSettings
from tunesmith.runs.progress import StepResult
from tunesmith.training.loop import Hooks, Step, train_steps
from tunesmith.training.objectives.dpo import Dpo
from tunesmith.training.objectives.kto import Kto
from tunesmith.training.objectives.orpo import Orpo
from tunesmith.training.objectives.preference import PreferenceObjective

GOLDENS = json.loads((Path(goldens.__file__).parent / "preferences.json").read_text())
MANY = 10_000  # tokens: all rows in one micro-batch
OBJECTIVES: dict[str, PreferenceObjective] = {
    "dpo sigmoid": Dpo(DpoSettings()),
    "dpo sigmoid swapped": Dpo(DpoSettings()),
    "dpo sigmoid 0.1": Dpo(DpoSettings(label_smoothing=0.1)),
    "dpo robust 0.1": Dpo(DpoSettings(loss_type="robust", label_smoothing=0.1)),
    "dpo hinge": Dpo(DpoSettings(loss_type="hinge")),
    "dpo ipo": Dpo(DpoSettings(loss_type="ipo")),
    "orpo all": Orpo(OrpoSettings(nll_tokens="all")),
    "orpo answer": Orpo(OrpoSettings()),
    "kto": Kto(KtoSettings(), group=5, longest=128),
    "kto swapped": Kto(KtoSettings(), group=5, longest=128),
    "kto weighted": Kto(KtoSettings(desirable_weight=1.5, undesirable_weight=0.5), group=5, longest=128),
}
PAIRED = [name for name in OBJECTIVES if not name.startswith("kto")]


def encoded(objective: PreferenceObjective, name: str) -> list[Encoded]:
    """The golden rows, as the template would give them: one or two of each example."""
    rows = []
    for number, example in enumerate(goldens.examples(one_token_prompts=name == "orpo answer")):
        for side in ("chosen_ids", "rejected_ids")[: objective.answers]:
            ids = np.array([*example["prompt_ids"], *example[side]], np.int32)
            rows.append(Encoded(ids, np.arange(len(ids)) >= len(example["prompt_ids"]), "rows:1", number))
    return rows


def models(name: str) -> tuple[Any, Any]:
    """The one that trains, and the untuned one."""
    made = (goldens.policy(), goldens.reference())
    for model in made:
        attention.install(model)
    return (made[1], made[0]) if name.endswith("swapped") else made


def sums_of(model: Any, objective: PreferenceObjective, rows: list[Encoded], layout: LayoutName) -> np.ndarray:
    batches = objective.batches(rows, budget=MANY, layout=layout)
    return -row_losses(model, batches, rows=len(rows), device="cpu").nll_sum


def laid_out(name: str, untuned: Any, *, layout: LayoutName, budget: int) -> tuple[PreferenceObjective, list[Batch]]:
    objective = OBJECTIVES[name]
    rows = objective.rows(encoded(objective, name))
    return objective, objective.lay_out(
        rows,
        budget=budget,
        layout=layout,
        reference=sums_of(untuned, objective, rows, layout),
        desirable=np.array(goldens.LABELS),
    )


def step(model: Any, objective: PreferenceObjective, batches: list[Batch]) -> dict[str, Any]:
    """A step as the loop takes it, described as the goldens are."""
    model.train()
    denominator = sum(objective.denominator(batch) for batch in batches)
    total = cast("Any", sum(objective.sum(model, batch) for batch in batches))
    return goldens.described(total / denominator, model)


def assert_alike(found: dict[str, Any], expected: dict[str, Any], *, relative: float) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=relative)
    for parameter, (norm, along) in expected["gradients"].items():
        # Each is a number of the size of the gradient, and is compared by that.
        assert found["gradients"][parameter] == pytest.approx([norm, along], abs=relative * 10 * norm), parameter
        assert found["gradients"][parameter][0] == pytest.approx(norm, rel=relative), parameter


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients_are_those_of_trl(name: str, layout: LayoutName) -> None:
    trained, untuned = models(name)
    objective, batches = laid_out(name, untuned, layout=layout, budget=MANY)
    assert len(batches) == 1
    assert_alike(step(trained, objective, batches), GOLDENS[name], relative=1e-5)


@pytest.mark.parametrize(("name", "relative"), [("sgd", [1e-5] * 50), ("adamw", [1e-4] * 10 + [1e-3] * 40)])
def test_fifty_steps_of_dpo_have_the_losses_of_trl(name: str, relative: list[float]) -> None:
    trained, untuned = models("dpo sigmoid")
    objective = OBJECTIVES["dpo sigmoid"]
    of_examples = np.arange(10).reshape(5, 2)
    rows = encoded(objective, "dpo sigmoid")
    parts = [[rows[number] for number in of_examples[part].ravel()] for part in goldens.IN_TURN]
    batches = [
        objective.lay_out(part, budget=80, layout="tree", reference=sums_of(untuned, objective, part, "tree"))
        for part in parts
    ]
    assert all(len(micro_batches) > 1 for micro_batches in batches)
    found: list[StepResult] = []
    train_steps(
        trained,
        [Step(number + 1, 1.0, batches[number % 2]) for number in range(goldens.STEPS)],
        objective=objective,
        optimizer=goldens.optimizer(name, trained),
        rate=lambda _: 0.05 if name == "sgd" else 1e-3,
        max_grad_norm=0.0,
        seed=0,
        hooks=Hooks(found.append),
    )
    expected = GOLDENS[f"dpo steps {name}"]
    assert expected[-1] < expected[0] * 0.9
    for result, loss, allowed in zip(found, expected, relative, strict=True):
        assert result.loss == pytest.approx(loss, rel=allowed), result.step


def test_a_prompt_stands_once_before_its_answers() -> None:
    _, [batch] = laid_out("dpo sigmoid", models("dpo sigmoid")[1], layout="tree", budget=MANY)
    shared = sum(prompt for prompt, _, _ in goldens.LENGTHS if prompt >= 16)
    assert batch.computed == batch.tokens - shared


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("name", PAIRED)
def test_a_step_is_the_same_in_several_micro_batches(name: str, layout: LayoutName) -> None:
    trained, untuned = models(name)
    objective, whole = laid_out(name, untuned, layout=layout, budget=MANY)
    _, parts = laid_out(name, untuned, layout=layout, budget=100)
    assert len(whole) == 1 < len(parts)
    for part in parts:  # no example is divided
        rows = np.unique(part.edges.row.numpy())
        assert len(rows) == objective.together * len(np.unique(rows // objective.together))
    assert_alike(step(trained, objective, parts), step(trained, objective, whole), relative=1e-5)


def test_the_tokens_of_a_pair_are_counted_once_also_where_its_prompt_is_learned() -> None:
    for name in ("orpo answer", "orpo all"):
        objective = OBJECTIVES[name]
        rows = encoded(objective, "orpo all")
        for layout in ("tree", "padded"):
            batches = objective.lay_out(objective.rows(rows), budget=100, layout=layout)
            assert sum(batch.tokens for batch in batches) == sum(len(row.ids) for row in rows)


def test_a_group_of_kto_is_a_micro_batch_whatever_the_budget() -> None:
    objective = Kto(KtoSettings(), group=2, longest=128)
    rows = objective.rows(encoded(objective, "kto"))
    batches = objective.lay_out(rows, budget=1, layout="tree")
    assert [objective.denominator(batch) for batch in batches] == [2.0, 2.0, 1.0]


def test_in_a_group_of_kto_each_prompt_gets_the_answer_before_its_own() -> None:
    objective = Kto(KtoSettings(), group=3, longest=30)
    examples = goldens.examples()
    rows = objective.rows(encoded(objective, "kto"))
    others = [2, 0, 1, 4, 3]
    for number, other in enumerate(others):
        ids = examples[number]["prompt_ids"] + examples[other]["chosen_ids"]
        assert rows[2 * number + 1].ids.tolist() == ids[:30]
    assert rows[5].supervised.sum() == 0  # cut before its answer: a prompt of 40 tokens


def test_untuned_the_loss_is_that_of_a_coin_and_no_reward_is_given() -> None:
    name = "dpo sigmoid"
    objective, untuned = OBJECTIVES[name], models(name)[1]
    rows = objective.rows(encoded(objective, name))
    batches = objective.batches(rows, budget=MANY, layout="tree")
    tokens = row_losses(untuned, batches, rows=len(rows), device="cpu")
    held_out = Preferences(objective, np.ones(5, bool), 0.0, -tokens.nll_sum)
    scores = held_out.scores(tokens, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert scores["loss"].value == pytest.approx(np.log(2))
    assert (scores["reward_margin"].value, scores["reward_accuracy"].value) == (0.0, 0.0)
    chosen, rejected = -tokens.nll_sum[::2], -tokens.nll_sum[1::2]
    assert cast("Any", scores["preference_accuracy"]).total.tolist() == (chosen > rejected).astype(float).tolist()
    assert scores["loss"].groups is not None and scores["loss"].groups.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_held_out_loss_is_the_loss_of_a_step_over_the_same_rows(name: str) -> None:
    trained, untuned = models(name)
    objective, batches = laid_out(name, untuned, layout="tree", budget=MANY)
    rows = objective.rows(encoded(objective, name))
    reference = sums_of(untuned, objective, rows, "tree")
    tokens = row_losses(trained, batches, rows=len(rows), device="cpu")
    held_out = Preferences(objective, np.array(goldens.LABELS), objective.share(rows), reference)
    found = held_out.scores(tokens, [0] * len(rows))["loss"].value
    assert found == pytest.approx(GOLDENS[name]["loss"], rel=1e-5)


def test_the_goldens_tell_the_objectives_apart() -> None:
    losses = sorted(GOLDENS[name]["loss"] for name in OBJECTIVES)
    assert all(other - one > 1e-4 for one, other in pairwise(losses))
    assert GOLDENS["kto"]["kl"] == 0.0 < GOLDENS["kto swapped"]["kl"]


def test_a_lone_objective_needs_its_layout() -> None:
    objective = OBJECTIVES["dpo sigmoid"]
    rows = objective.rows(encoded(objective, "dpo sigmoid"))
    [batch] = objective.batches(rows, budget=MANY, layout="tree")
    with pytest.raises(AssertionError, match="no preference objective has laid out"):
        objective.sums(torch.zeros(batch.supervised), batch)
