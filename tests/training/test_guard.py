"""What is not finite never stays in the weights: the step is skipped or the run stops, by the recipe's rule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import config_for, make_rows, tiny

from tunesmith.data.batches.layout import Batch, micro_batches, tree_batch
from tunesmith.errors import NotFiniteError
from tunesmith.runs.progress import StepResult
from tunesmith.training import checkpoint
from tunesmith.training.guard import LEAST, Guard
from tunesmith.training.loop import Hooks, Step, train_steps
from tunesmith.training.objectives.supervised import CrossEntropy

BAD = [math.nan, math.inf, -math.inf]


def model() -> Any:
    return tiny(config_for("llama", attention_dropout=0.0)).requires_grad_(True)


def weights(of: Any) -> torch.Tensor:
    return torch.cat([own.detach().flatten().clone() for own in of.parameters()])


def steps(count: int) -> list[Step]:
    rows = make_rows()
    return [
        Step(number, number / count, [tree_batch(rows, [0, 1]), tree_batch(rows, [2])])
        for number in range(1, count + 1)
    ]


def adam(of: Any, rate: float = 1e-3) -> torch.optim.Optimizer:
    names, parameters = zip(*of.named_parameters(), strict=True)
    return torch.optim.AdamW([{"params": list(parameters), "param_names": list(names)}], lr=rate, fused=True)


class Spoiled(CrossEntropy):
    """Multiplies the loss of some micro-batches, counted from 1; there are two in each step."""

    def __init__(self, at: dict[int, float]) -> None:
        self.at, self.calls = at, 0

    def sum(self, model: Any, batch: Batch) -> Any:
        self.calls += 1
        return super().sum(model, batch) * self.at.get(self.calls, 1.0)


def run(
    of: Any,
    count: int,
    *,
    at: dict[int, float] | None = None,
    guard: Guard | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    rate: float = 1e-3,
    max_grad_norm: float = 1.0,
    after: Callable[[StepResult], None] = lambda result: None,
    calls: list[str] | None = None,
    given: list[Step] | None = None,
) -> list[StepResult]:
    results: list[StepResult] = []
    seen = [] if calls is None else calls

    def on_step(result: StepResult) -> None:
        results.append(result)
        after(result)

    train_steps(
        of,
        given or steps(count),
        objective=Spoiled(at or {}),
        optimizer=optimizer or adam(of),
        rate=lambda step: rate,
        max_grad_norm=max_grad_norm,
        seed=0,
        hooks=Hooks(
            on_step,
            on_eval=lambda step: seen.append(f"eval {step.number}"),
            eval_due=lambda step: True,
            save=lambda step: seen.append(f"save {step.number}"),
            save_due=lambda step: True,
        ),
        guard=guard,
    )
    return results


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("micro_batch", [3, 4])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_take_it(bad: float, micro_batch: int) -> None:
    expected, found, calls = model(), model(), []
    run(expected, 1)
    with pytest.raises(NotFiniteError) as caught:
        run(found, 3, at={micro_batch: bad}, calls=calls)
    assert caught.value.exit_code == 4
    assert caught.value.what == "The loss of step 2 is not finite"
    assert calls == ["eval 1", "save 1"]
    assert torch.equal(weights(found), weights(expected))


@pytest.mark.parametrize("bad", BAD)
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_take_it(bad: float) -> None:
    found = model()
    before, one = weights(found), next(iter(found.parameters()))

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[3, 3] = bad
        return gradient

    one.register_hook(spoil)
    with pytest.raises(NotFiniteError, match="The gradient of step 1 is not finite"):
        run(found, 2)
    assert torch.equal(weights(found), before)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_state_of_the_optimizer_that_is_not_finite_is_never_saved(bad: float, key: str, tmp_path: Path) -> None:
    found, calls = model(), []
    optimizer = adam(found)
    name, parameter = next(iter(found.named_parameters()))

    def spoil(result: StepResult) -> None:
        if result.step == 2:
            optimizer.state[parameter][key][5, 5] = bad

    if key == "exp_avg_sq" and bad == math.inf:  # it silences its weight for ever, and the weights stay finite
        run(found, 3, optimizer=optimizer, after=spoil)
    else:
        with pytest.raises(NotFiniteError, match="The weights are not finite after step 3") as caught:
            run(found, 3, optimizer=optimizer, after=spoil, calls=calls)
        assert name in str(caught.value.why)
        assert calls == ["eval 1", "save 1", "eval 2", "save 2"]
    with pytest.raises(NotFiniteError, match="The optimizer's state after step 3 is not finite") as caught:
        checkpoint.save(tmp_path, 3, write_model=lambda folder: None, optimizer=optimizer, state={})
    assert f"{name}|{key}" in str(caught.value.why)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_an_update_that_overflows_stops_the_run_under_every_rule(rule: Any) -> None:
    found, calls = model(), []
    with pytest.raises(NotFiniteError, match="The weights are not finite after step 1"):
        run(found, 3, rate=3e38, guard=Guard(on_nonfinite=rule, max_skipped_steps=5), calls=calls)
    assert calls == []


@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_skipped_changes_neither_weights_nor_optimizer(bad: float) -> None:
    guard = Guard(on_nonfinite="skip", max_skipped_steps=1)
    found, expected = model(), model()
    results = run(found, 3, at={4: bad}, guard=guard)
    first, _, third = steps(3)
    run(expected, 3, given=[first, third])
    assert torch.equal(weights(found), weights(expected))
    assert [result.skipped is None for result in results] == [True, False, True]
    assert "the loss is not finite" in str(results[1].skipped)
    assert guard.skipped == 1


def test_one_more_skipped_step_in_a_row_than_the_recipe_allows_stops_the_run() -> None:
    found, expected = model(), model()
    run(expected, 1)
    at = {4: math.nan, 6: math.nan, 7: math.nan}
    with pytest.raises(NotFiniteError, match="3 steps in a row would be skipped") as caught:
        run(found, 5, at=at, guard=Guard(on_nonfinite="skip", max_skipped_steps=2))
    assert "after step 1" in str(caught.value.why)
    assert torch.equal(weights(found), weights(expected))
    apart = {4: math.nan, 8: math.nan, 12: math.nan}
    assert len(run(model(), 7, at=apart, guard=Guard(on_nonfinite="skip", max_skipped_steps=1))) == 7


def test_weights_that_broke_down_are_not_skipped_over() -> None:
    found = model()

    def spoil(result: StepResult) -> None:
        with torch.no_grad():
            found.lm_head.weight[7, 7] = math.nan

    with pytest.raises(NotFiniteError, match="The weights are not finite after step 1") as caught:
        run(found, 3, after=spoil, guard=Guard(on_nonfinite="skip", max_skipped_steps=5))
    assert "lm_head.weight" in str(caught.value.why)


@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_a_spike_is_skipped_only_where_the_recipe_asks_for_it(factor: float) -> None:
    at = {2 * LEAST + 3: factor}  # of the step after next
    guard = Guard(spike_sigma_factor=6.0, max_skipped_steps=1)
    results = run(model(), LEAST + 3, at=at, guard=guard)
    assert [result.step for result in results if result.skipped] == [LEAST + 2]
    assert "a spike over" in str(results[LEAST + 1].skipped)
    assert not any(result.skipped for result in run(model(), LEAST + 3, at=at))


def test_a_flat_curve_has_no_spikes_and_a_spike_is_not_usual_afterwards() -> None:
    optimizer = adam(model())
    guard = Guard(spike_sigma_factor=6.0, max_skipped_steps=2)

    def asked(step: int, loss: float) -> str | None:
        return guard.reason_to_skip(step, loss, 1.0, optimizer)

    assert [asked(step, 2.0) for step in range(LEAST)] == [None] * LEAST
    assert asked(20, 2.001) is None
    assert asked(21, 9.0) is not None
    assert asked(22, 9.0) is not None
    with pytest.raises(NotFiniteError, match="3 steps in a row"):
        asked(23, 9.0)


def test_a_guard_goes_on_where_its_checkpoint_was_saved() -> None:
    optimizer = adam(model())
    values = [2.0 - 0.01 * step + 0.1 * (step % 3) for step in range(150)] + [0.9, 5.0, 1.0, 5.0, 5.0]

    def reasons(guard: Guard, given: list[float]) -> list[bool]:
        return [guard.reason_to_skip(step, value, value, optimizer) is not None for step, value in enumerate(given)]

    whole = Guard(spike_sigma_factor=4.0, max_skipped_steps=2)
    expected = reasons(whole, values)
    assert expected[-5:] == [False, True, False, True, True]
    for cut in (10, 60, 151, 152, 154):
        first = Guard(spike_sigma_factor=4.0, max_skipped_steps=2)
        begun = reasons(first, values[:cut])
        state = json.loads(json.dumps(first.state(), allow_nan=False))
        second = Guard(spike_sigma_factor=4.0, max_skipped_steps=2, state=state)
        assert begun + reasons(second, values[cut:]) == expected
        assert second.state() == whole.state()


class Crowded(CrossEntropy):
    """Runs out of memory in a micro-batch of more than ``most`` tokens, in its backward pass."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error

    def sum(self, model: Any, batch: Batch) -> Any:
        total = super().sum(model, batch)
        if batch.computed > self.most:
            total.register_hook(lambda gradient: self._fail())
        return total

    def _fail(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 5 bytes"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_step_that_ran_out_of_memory_has_the_same_gradient_in_smaller_micro_batches(error: Exception) -> None:
    rows = make_rows(12)
    whole, halved, results, budgets = model(), model(), [], []
    together = [Step(1, 1.0, micro_batches(rows, budget=100_000, layout="packed"))]

    def smaller(step: Step, found: BaseException) -> list[Batch] | None:
        assert found is error
        budgets.append(max(batch.computed for batch in step.batches) // 2)
        return micro_batches(rows, budget=budgets[-1], layout="packed")

    gradients = []
    for each, objective in ((whole, CrossEntropy()), (halved, Crowded(150, error))):
        kept: dict[str, torch.Tensor] = {}
        optimizer = torch.optim.SGD(each.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(
            lambda *_, kept=kept, each=each: kept.update({n: own.grad.clone() for n, own in each.named_parameters()})
        )
        train_steps(
            each, together, objective=objective, optimizer=optimizer, rate=lambda step: 0.0, max_grad_norm=0.0, seed=0,
            hooks=Hooks(results.append, smaller=smaller),
        )  # fmt: skip
        gradients.append(torch.cat([own.flatten() for own in kept.values()]))
    assert next(result.micro_batches for result in results) == 1
    assert results[1].micro_batches >= 4
    assert len(budgets) == 2
    assert results[1].denominator == results[0].denominator
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-6)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-6 * gradients[0].abs().max()


def test_an_error_that_is_not_about_memory_is_not_tried_again() -> None:
    def smaller(step: Step, found: BaseException) -> list[Batch] | None:
        raise AssertionError

    with pytest.raises(RuntimeError, match="shapes differ"):
        train_steps(
            model(), steps(1), objective=Crowded(1, RuntimeError("shapes differ")), optimizer=adam(model()),
            rate=lambda step: 0.0, max_grad_norm=0.0, seed=0, hooks=Hooks(lambda result: None, smaller=smaller),
        )  # fmt: skip
