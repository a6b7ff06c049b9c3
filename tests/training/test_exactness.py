"""All that is on by default, together, against the plain model: the same loss and the same gradient of every step.

Ours: a loaded run with its defaults, so prefix tree, pieces of attention, fused adapters, norms and feed-forward
blocks, the chunked head (in chunks of a few lines here), rows regrouped into several micro-batches, and a last window
of fewer rows. The reference: transformers' own forward pass with PEFT's own layers, one row at a time, eager attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.model.architectures import tiny_config
from tests.tiny import Row, make_rows
from torch import Tensor, nn

from tunesmith.model.compute import logprobs
from tunesmith.model.weights.added_tokens import NO_TOKENS, AddedTokens
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.progress import Silent, StepResult
from tunesmith.training.attach import Ready, load_for_training, optimizer_of
from tunesmith.training.loop import Hooks, train_steps
from tunesmith.training.step_rows import Steps

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},  # biases
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "sliding_window": 8},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},  # Conv1D, learned positions
    "qwen3_moe": {},
}
METHODS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"r": 4, "lora_alpha": 8.0}}
ROWS, BATCH, BUDGET, LINES = make_rows(11), 4, 64, 10
LOSS, COSINE = 1e-6, 0.99999  # relative difference, at most; at least


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a random model of an architecture; no weight is at its usual first value, such as a bias of 0."""
    from transformers import AutoModelForCausalLM

    @cache
    def made(name: str) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(tiny_config(name, **ARCHITECTURES[name]), dtype=torch.float32)
        disturb(model, scale=0.05)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return folder

    return made


def disturb(model: nn.Module, *, scale: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    return {name: own for name, own in model.named_parameters() if own.requires_grad}


@dataclass(frozen=True)
class Inputs:
    """Made rows, and what `load` and `Steps` need to know of them."""

    recipe: Recipe
    folder: Path
    added: AddedTokens = NO_TOKENS
    start: Path | None = None
    started_in: Path = field(default_factory=Path.cwd)
    rows: Any = tuple(ROWS)

    def rows_of_steps(self) -> Any:
        return iter(())  # no method here looks at rows


def loaded(folder: Path, method: str, checkpointing: bool, run: Path) -> tuple[Ready, Steps]:
    """As a run loads it, and its steps; adapters are moved away from zero."""
    recipe = read_recipe(
        {
            "model": {"path": str(folder), "device": "cpu", "dtype": "float32"},
            "data": {"train": "made", "eval": 0.0},
            "method": {"name": method, **METHODS[method]},
            "training": {
                "batch_size": BATCH, "num_train_epochs": 1.0, "micro_batch_tokens": BUDGET, "threads": 1,
                "gradient_checkpointing": checkpointing, "learning_rate": 1e-4,
            },
            "output_dir": str(run),
        }
    ).recipe  # fmt: skip
    ready = load_for_training(Inputs(recipe, folder), None, Silent())
    if method != "full":
        disturb(ready.model, scale=0.1)
    corpus = SimpleNamespace(
        rows_of=lambda numbers: [ROWS[number] for number in numbers], weights=np.ones(len(ROWS)),
        train_sources=np.zeros(len(ROWS), int), quotas={}, together=1,
    )  # fmt: skip
    return ready, Steps(ready.recipe, cast(Any, corpus))


def steps_of(ready: Ready, steps: Steps) -> tuple[list[StepResult], list[dict[str, Tensor]]]:
    """What the loop reports of each step, and the gradients that it hands to the optimizer, which changes nothing."""
    model, results, gradients = ready.model, list[StepResult](), list[dict[str, Tensor]]()
    optimizer = optimizer_of(ready)

    def keep(*_: Any, **__: Any) -> None:
        named = trained_values(model).items()
        gradients.append({name: torch.zeros_like(own) if own.grad is None else own.grad.clone() for name, own in named})

    optimizer.step = keep  # type: ignore[method-assign]
    train_steps(
        model,
        steps.after(0),
        objective=steps.objective,
        optimizer=optimizer,
        rate=lambda _: 1e-4,
        max_grad_norm=0.0,
        seed=0,
        hooks=Hooks(results.append),
    )
    return results, gradients


def plain_model(folder: Path, values: dict[str, Tensor], method: str, **changes: Any) -> nn.Module:
    """transformers' model, and PEFT's adapters of the given values."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **changes
    )
    if method == "lora":
        model = get_peft_model(
            model, LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules="all-linear", **METHODS["lora"])
        )
    own = trained_values(model)
    assert own.keys() == values.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(values[name])
    return model.train()


def plain_step(model: Any, rows: list[Row]) -> tuple[float, dict[str, Tensor]]:
    """One row at a time; the mean over the labels of all of them."""
    model.zero_grad()
    labels = sum(int(row.supervised.sum()) for row in rows)
    loss = 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        places = torch.from_numpy(np.flatnonzero(row.supervised))
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, places - 1]
        part = nn.functional.cross_entropy(logits.double(), ids[0, places], reduction="sum") / labels
        part.backward()
        loss += part.item()
    return loss, {
        name: torch.zeros_like(own) if own.grad is None else own.grad for name, own in trained_values(model).items()
    }


def cosine(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    flat = [torch.cat([gradients[name].flatten() for name in one]).double() for gradients in (one, other)]
    return torch.nn.functional.cosine_similarity(*flat, dim=0).item()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_has_the_loss_and_the_gradient_of_the_plain_model(
    folder_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: str,
    checkpointing: bool,
) -> None:
    ready, steps = loaded(folder_of(name), method, checkpointing, tmp_path)
    assert ready.recipe.training.layout == "tree"
    vocabulary = ready.model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr, operator]
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", LINES * vocabulary)
    results, gradients = steps_of(ready, steps)
    windows = list(steps.order.windows())
    assert [len(window.rows) for window in windows] == [4, 4, 3]
    assert all(result.micro_batches > 1 and result.computed_tokens < result.tokens for result in results)
    values = {name: own.detach() for name, own in trained_values(ready.model).items()}
    plain = plain_model(folder_of(name), values, method)
    for window, result, gradient in zip(windows, results, gradients, strict=True):
        loss, expected = plain_step(plain, [ROWS[number] for number in window.rows])
        assert result.loss == pytest.approx(loss, rel=LOSS)
        assert cosine(gradient, expected) >= COSINE
        norms = [torch.stack([own.norm() for own in found.values()]).norm().item() for found in (gradient, expected)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
        assert result.gradient_norm == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_fused_passes_are_at_work(folder_of: Callable[[str], Path], tmp_path: Path, method: str) -> None:
    ready, _ = loaded(folder_of("llama"), method, False, tmp_path)
    own = [type(module).__name__ for module in ready.model.modules() if "forward" in vars(module)]
    assert own.count("LlamaRMSNorm") == 9 and own.count("LlamaMLP") == 4
    assert own.count("Linear") == (28 if method == "lora" else 0)


@pytest.mark.parametrize("changes", [{"sliding_window": 64}, {"attn_logit_softcapping": 5.0}], ids=str)
def test_a_window_or_a_cap_that_is_not_kept_would_show(
    folder_of: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    ready, steps = loaded(folder_of("gemma2"), "lora", False, tmp_path)
    results, gradients = steps_of(ready, steps)
    values = {name: own.detach() for name, own in trained_values(ready.model).items()}
    other = plain_model(folder_of("gemma2"), values, "lora", **changes)
    window = next(steps.order.windows())
    loss, expected = plain_step(other, [ROWS[number] for number in window.rows])
    assert abs(results[0].loss / loss - 1) > 10 * LOSS
    assert 1 - cosine(gradients[0], expected) > 10 * (1 - COSINE)
