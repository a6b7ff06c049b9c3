"""The gradient of a step depends on its rows alone, never on how they are cut up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from tunesmith.data.batches.layout import Batch, micro_batches
from tunesmith.errors import TrainError
from tunesmith.model.compute import attention
from tunesmith.runs.progress import StepResult
from tunesmith.training.loop import Hooks, Step, train_steps
from tunesmith.training.objectives.supervised import CrossEntropy

LAYOUTS = ["tree", "packed", "padded"]


@dataclass
class Row:
    ids: np.ndarray
    supervised: np.ndarray


def make_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows with a common prefix and unequal numbers of labels."""
    random = np.random.default_rng(seed)
    prefix = random.integers(3, 380, 20)
    rows = []
    for number in range(count):
        tail = random.integers(3, 380, 3 + 2 * number)
        ids = np.concatenate([prefix, tail]).astype(np.int32)
        supervised = np.zeros(len(ids), dtype=bool)
        supervised[-(1 + number) :] = True
        rows.append(Row(ids, supervised))
    return rows


@pytest.fixture
def model(tiny_model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")
    attention.install(loaded)
    return loaded


def plain_loss(model: Any, rows: list[Row]) -> torch.Tensor:
    """The reference: each row alone through transformers' own forward, cross-entropy over the supervised tokens."""
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))
        logits = model(input_ids=ids[None]).logits[0]
        labels = torch.from_numpy(np.flatnonzero(row.supervised))
        total = total + nn.functional.cross_entropy(logits[labels - 1], ids[labels], reduction="sum")
        count += len(labels)
    return total / count


def gradients(model: nn.Module) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


def step_loss(model: nn.Module, batches: list[Batch]) -> float:
    objective = CrossEntropy()
    denominator = sum(objective.denominator(batch) for batch in batches)
    loss = 0.0
    for batch in batches:
        total = objective.sum(model, batch)
        (total / denominator).backward()
        loss += total.item() / denominator
    return loss


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [10_000, 60, 1])
def test_loss_and_gradient_equal_the_plain_forward_whatever_the_micro_batches(
    model: Any, layout: Any, budget: int
) -> None:
    rows = make_rows(8)
    expected = plain_loss(model, rows)
    expected.backward()
    plain = gradients(model)
    batches = micro_batches(rows, budget=budget, layout=layout)
    if budget == 1:
        assert len(batches) == 8, "a budget of one token is one row at a time"
    loss = step_loss(model, batches)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    found = gradients(model)
    assert torch.cosine_similarity(found, plain, dim=0).item() >= 0.99999
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-7)


class Recorder:
    """Collects what the loop reports and lets it save or evaluate at chosen steps."""

    def __init__(self, eval_at: set[int] = frozenset(), save_at: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.results: list[StepResult] = []
        self.calls: list[str] = []
        self.eval_at, self.save_at = eval_at, save_at

    def hooks(self) -> Hooks:
        return Hooks(
            on_step=self.results.append,
            on_eval=lambda step: self.calls.append(f"eval {step.number}"),
            eval_due=lambda step: step.number in self.eval_at,
            save=lambda step: self.calls.append(f"save {step.number}"),
            save_due=lambda step: step.number in self.save_at,
        )


def run(
    model: nn.Module, steps: list[Step], recorder: Recorder, *, rate: float = 0.1, max_grad_norm: float = 0.0
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    train_steps(
        model,
        steps,
        objective=CrossEntropy(),
        optimizer=optimizer,
        rate=lambda step: rate,
        max_grad_norm=max_grad_norm,
        seed=0,
        hooks=recorder.hooks(),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_8_and_8_times_1_train_alike(tiny_model_dir: Path, layout: Any) -> None:
    from transformers import AutoModelForCausalLM

    rows, trained = make_rows(8), []
    for budget in (10_000, 1):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")
        attention.install(model)
        recorder = Recorder()
        run(model, [Step(1, 1.0, micro_batches(rows, budget=budget, layout=layout))], recorder)
        trained.append((torch.cat([p.detach().flatten() for p in model.parameters()]), recorder.results[0]))
    (one, together), (other, apart) = trained
    assert (together.micro_batches, apart.micro_batches) == (1, 8)
    assert together.loss == pytest.approx(apart.loss, rel=1e-6)
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_partial_window_is_normalised_by_its_own_labels(model: Any, layout: Any) -> None:
    rows = make_rows(5)
    windows = [rows[:4], rows[4:]]
    expected = [plain_loss(model, window).item() for window in windows]
    recorder = Recorder()
    steps = [Step(n, n / 2, micro_batches(w, budget=100, layout=layout)) for n, w in enumerate(windows, start=1)]
    run(model, steps, recorder, rate=0.0)
    assert [result.loss for result in recorder.results] == pytest.approx(expected, rel=1e-6)
    assert [result.supervised_tokens for result in recorder.results] == [10, 5]


def test_a_loss_that_is_not_finite_never_reaches_the_weights(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recorder = Recorder(save_at={1})
    with pytest.raises(TrainError, match="not finite") as caught:
        run(model, [Step(1, 1.0, micro_batches(make_rows(2), budget=100, layout="tree"))], recorder)
    assert caught.value.exit_code == 4
    assert recorder.calls == []
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)), name


def test_clipping_bounds_the_step(model: Any) -> None:
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    recorder = Recorder()
    run(
        model,
        [Step(1, 1.0, micro_batches(make_rows(4), budget=500, layout="tree"))],
        recorder,
        rate=1.0,
        max_grad_norm=0.01,
    )
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert recorder.results[0].gradient_norm > 0.01
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_evaluation_comes_before_saving_and_only_when_due(model: Any) -> None:
    recorder = Recorder(eval_at={2}, save_at={2, 3})
    steps = [Step(n, n / 3, micro_batches(make_rows(2), budget=500, layout="tree")) for n in (1, 2, 3)]
    run(model, steps, recorder, rate=0.0)
    assert recorder.calls == ["eval 2", "save 2", "save 3"]


class InjectedDropout(nn.Module):
    """Dropout whose mask depends on a token's depth in its row alone, so that every layout can be given the same."""

    def __init__(self, places: dict[str, torch.Tensor], seed: int) -> None:
        super().__init__()
        self.places, self.seed = places, seed

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        masks = (torch.rand(64, hidden.shape[-1], generator=generator) > 0.5).float() * 2
        return hidden * masks[self.places["depth"]]


def test_with_dropout_rows_share_the_mask_on_shared_tokens_and_nothing_else_changes(model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], lora_dropout=0.5, init_lora_weights=False)
    adapted = get_peft_model(model, settings).train()
    CrossEntropy().sum(adapted, micro_batches(make_rows(1), budget=500, layout="padded")[0])  # compares the head, once
    places: dict[str, torch.Tensor] = {}
    names = [name for name, module in adapted.named_modules() if isinstance(module, nn.Dropout)]
    assert len(names) == 4
    for number, name in enumerate(names):
        adapted.set_submodule(name, InjectedDropout(places, number))
    rows, objective, found = make_rows(6), CrossEntropy(), {}
    for name, budget in (("tree", 10_000), ("padded", 1)):
        total = torch.zeros(())
        for batch in micro_batches(rows, budget=budget, layout=cast("Any", name)):
            places["depth"] = batch.position_ids
            total = total + objective.sum(adapted, batch)
        total.backward()
        found[name] = (total.item(), gradients(adapted))
    assert found["tree"][0] == pytest.approx(found["padded"][0], rel=1e-6)
    assert torch.allclose(found["tree"][1], found["padded"][1], rtol=1e-4, atol=1e-6)
