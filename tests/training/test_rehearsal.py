"""The measured step leaves no trace and may only refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny import Row, config_for, make_rows, tiny

from tunesmith.data.batches.layout import tree_batch
from tunesmith.errors import ModelError
from tunesmith.planning import memory
from tunesmith.planning.budget import MEASURED_SHARE, Plan
from tunesmith.planning.step_shape import StepBytes
from tunesmith.training import rehearsal
from tunesmith.training.objectives.supervised import CrossEntropy
from tunesmith.training.rehearsal import heaviest, measured_peak, rehearse

MIB = 2**20
SHAPE = StepBytes(
    device="cpu", method="lora", weights=4000, trained=10 * MIB, beside=0, layers=2, kept=10_000, mask=0, hidden=128,
    widest=192, vocabulary=96, head=0, unpacked=0,
)  # fmt: skip
PLAN = Plan(SHAPE, budget=1024, tokens=1024, checkpointing=False, memory=2**36)


def small(**changes: Any) -> Any:
    return tiny(config_for("llama", attention_dropout=0.0, **changes)).requires_grad_(True)


def batches() -> list[Any]:
    rows = make_rows()
    return [tree_batch(rows, group) for group in ([0], [1, 2, 3], [4, 5])]


def test_the_heaviest_batch_has_the_most_tokens_and_then_the_most_logits() -> None:
    rows = [Row(range(3, 23)), Row(range(3, 33)), Row(range(33, 63), [False] * 10 + [True] * 20)]
    made = [tree_batch(rows, [number]) for number in range(3)]
    assert heaviest(made) is made[2]
    assert heaviest(made[:2]) is made[1]


def test_a_measured_step_leaves_no_trace() -> None:
    model = small()
    model.eval()
    model.lm_head.train()
    model.model.norm.weight.requires_grad_(False)
    weights = {name: own.clone() for name, own in model.state_dict().items()}
    modes = {name: own.training for name, own in model.named_modules()}
    state = torch.get_rng_state()
    before, peak = measured_peak(model, batches()[1], CrossEntropy())
    assert peak >= before > 2**26
    assert all(torch.equal(own, weights[name]) for name, own in model.state_dict().items())
    assert {name: own.training for name, own in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(own.grad is None for own in model.parameters())
    assert not model.model.norm.weight.requires_grad


def test_the_step_is_forward_and_backward_in_training_mode_with_gradients_held_before() -> None:
    model, seen = small(), []

    class Objective(CrossEntropy):
        def sum(self, model: Any, batch: Any) -> Any:
            seen.append((model.training, all(own.grad is not None for own in model.parameters())))
            total = super().sum(model, batch)
            total.register_hook(lambda gradient: seen.append(gradient.item()))
            return total

    batch = batches()[1]
    measured_peak(model, batch, Objective())
    assert seen == [(True, True), pytest.approx(1 / batch.supervised)]


def test_both_figures_and_the_batch_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "measured_peak", lambda *_, **__: (600 * MIB, 800 * MIB))
    made = batches()
    tokens = made[1].computed
    found = rehearse(small(), made, objective=CrossEntropy(), plan=PLAN, where="m")
    assert (found.tokens, found.total) == (tokens, 2**36)
    assert found.predicted == PLAN.peak(tokens).training
    assert found.measured == 820 * MIB
    assert found.needed == 820 * MIB + PLAN.peak(1024).training - PLAN.peak(tokens).training + PLAN.later_holes(1024)
    assert str(found) == (
        f"memory: 0.5 GB predicted, 0.8 GB measured in the heaviest micro-batch ({tokens} tokens), of 64.0 GB"
    )


def test_what_judging_holds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "measured_peak", lambda *_, **__: (600 * MIB, 601 * MIB))
    plan = replace(PLAN, shape=replace(SHAPE, method="qlora", beside=2**30))
    found = rehearse(small(), batches(), objective=CrossEntropy(), plan=plan, where="m")
    judging = plan.peak()
    assert found.needed == 600 * MIB + judging.judging - judging.libraries - judging.weights > 1600 * MIB


def test_a_measured_step_that_needs_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "measured_peak", lambda *_, **__: (2**30, 5 * 2**30))
    growth = PLAN.peak().training - PLAN.peak(heaviest(batches()).computed).training + PLAN.later_holes(1024)
    needed = 5 * 2**30 + 20 * MIB + growth
    enough = replace(PLAN, memory=int(needed / MEASURED_SHARE) + 2)
    arguments: dict[str, Any] = {"objective": CrossEntropy(), "where": "the model"}
    assert rehearse(small(), batches(), plan=enough, **arguments).needed == needed
    with pytest.raises(ModelError, match="does not fit into memory") as caught:
        rehearse(small(), batches(), plan=replace(PLAN, memory=enough.memory - 8), **arguments)
    why = str(caught.value.why)
    assert "needs 5.1 GB, by a measured step of 90 tokens" in why
    assert "1,024 tokens without gradient checkpointing" in why
    assert "use method: qlora" in str(caught.value.remedy)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), MemoryError(), RuntimeError("can't allocate memory: 5 bytes")]
)
def test_memory_that_runs_out_in_the_measured_step_is_the_same_refusal(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = small()

    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(CrossEntropy, "sum", fails)
    with pytest.raises(ModelError, match="memory ran out when it was tried"):
        rehearse(model, batches(), objective=CrossEntropy(), plan=PLAN, where="m")
    assert all(own.grad is None for own in model.parameters())


def test_another_error_in_the_measured_step_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(CrossEntropy, "sum", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        rehearse(small(), batches(), objective=CrossEntropy(), plan=PLAN, where="m")


def test_large_blocks_go_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def __init__(self, name: None) -> None:
            self.mallopt = lambda *values: asked.append(values)

    monkeypatch.setattr(memory.ctypes, "CDLL", Library)
    memory.give_back_large_blocks()
    assert asked == [(-3, MIB)]
