"""Whole runs in which a value is not finite, or memory runs out: what they skip, keep, refuse and say."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.workflows.test_stopping_runs import WORDS, Signals, content

from tunesmith.data.batches.layout import Batch
from tunesmith.deploy.tuned import load
from tunesmith.errors import ModelError, NotFiniteError, TrainError
from tunesmith.methods.lora import Lora
from tunesmith.runs.folder import Run
from tunesmith.training import loop
from tunesmith.training.objectives.supervised import CrossEntropy
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.finetune import train

LAST = 8  # step of the run


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Any]:
    rows = tmp_path_factory.mktemp("not-finite") / "rows.jsonl"
    pairs = [{"instruction": "Name it.", "input": f"{WORDS[n % 7]} {n}", "output": WORDS[n % 7]} for n in range(44)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(rows), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "training": {
            "learning_rate": 1e-2, "max_steps": LAST, "batch_size": 8, "micro_batch_tokens": 160, "logging_steps": 3,
            "eval_steps": 2, "save_steps": 3, "report_to": "none", "threads": 1,
        },
        "evaluation": {"metrics": ["loss"], "resamples": 200, "samples": 0},
    }  # fmt: skip


def asked(values: dict[str, Any], folder: Path, **training: Any) -> dict[str, Any]:
    return {**values, "training": {**values["training"], **training}, "output_dir": str(folder)}


@pytest.fixture
def step_now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of the step whose gradient is computed; 0 before the first."""
    now, seed = [0], loop.seed_dropout

    def hear(seed_: int, step: int, micro_batch: int) -> None:
        now[0] = step
        seed(seed_, step, micro_batch)

    steps = Trainer.run_steps

    def run_steps(self: Trainer) -> Any:
        try:
            return steps(self)
        finally:
            now[0] = 0

    monkeypatch.setattr(loop, "seed_dropout", hear)
    monkeypatch.setattr(Trainer, "run_steps", run_steps)
    yield now


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch, step_now: list[int]) -> dict[int, float]:
    """Multiplies the losses of the steps in it."""
    at: dict[int, float] = {}
    plain = CrossEntropy.sum

    def spoiled(self: CrossEntropy, model: Any, batch: Batch) -> Any:
        return plain(self, model, batch) * at.get(step_now[0], 1.0)

    monkeypatch.setattr(CrossEntropy, "sum", spoiled)
    return at


def weights_of(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Run(run).checkpoints[-1].glob("*.safetensors")}


def all_finite(run: Path) -> bool:
    files = [file for folder in Run(run).checkpoints for file in folder.glob("*.safetensors")]
    return bool(files) and all(own.isfinite().all() for file in files for own in load_file(file).values())


def test_a_run_that_skips_steps_goes_on_and_can_be_stopped_anywhere(
    values: dict[str, Any], spoil: dict[int, float], tmp_path: Path
) -> None:
    spoil.update({2: math.nan, 4: math.inf, 5: -math.inf, 8: math.nan})
    rule = {"on_nonfinite": "skip", "max_skipped_steps": 2}
    listener = Signals()
    whole = train(asked(values, tmp_path / "whole", **rule), listener=listener).run
    assert [line.split(",")[0] for line in listener.lines if "skipped" in line] == [
        f"step {step} is skipped" for step in (2, 4, 5, 8)
    ]
    assert all_finite(whole)
    stopped = asked(values, tmp_path / "stopped", **rule)
    for step in range(1, LAST + 1):
        with pytest.raises(KeyboardInterrupt):
            train(stopped, resume=True, listener=Signals(step))
    train(stopped, resume=True)
    assert content(tmp_path / "stopped") == content(whole)
    lines = [line for line in Run(whole).read_lines("metrics.jsonl") if "grad_norms" in line]
    assert [(line["step"], line.get("skipped_steps", 0)) for line in lines] == [(3, 1), (6, 2), (8, 1)]
    assert [[norm is None for norm in line["grad_norms"]] for line in lines] == [
        [False, True, False], [True, True, False], [False, True],
    ]  # fmt: skip
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert ["grad_norm" in line for line in lines] == [True, True, False]
    text = (whole / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text


def test_skips_that_stand_in_no_checkpoint_yet_are_made_again_after_a_kill(
    values: dict[str, Any], spoil: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil.update({5: math.nan, 6: math.nan})
    rule = {"on_nonfinite": "skip", "max_skipped_steps": 2}
    whole = train(asked(values, tmp_path / "whole", **rule)).run
    killed = asked(values, tmp_path / "killed", **rule)

    def kill(self: Trainer, step: Any) -> None:
        raise BaseException("no handler hears a kill")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_planned", lambda self, step: step.number == 3)
        patch.setattr(Trainer, "on_eval", lambda self, step: None if step.number < 6 else kill(self, step))
        with pytest.raises(BaseException, match="no handler"):
            train(killed)
    assert [path.name for path in Run(tmp_path / "killed").checkpoints] == ["step-000003"]
    train(killed, resume=True)
    assert weights_of(tmp_path / "killed") == weights_of(whole)
    assert len(weights_of(whole)) == 2


def test_a_run_that_stopped_at_a_bad_step_continues_past_it_as_its_message_says(
    values: dict[str, Any], spoil: dict[int, float], tmp_path: Path
) -> None:
    spoil[5] = math.nan
    recipe = asked(values, tmp_path / "run")
    with pytest.raises(NotFiniteError, match="The loss of step 5 is not finite"):
        train(recipe, resume=True)
    with pytest.raises(NotFiniteError, match="The loss of step 5 is not finite") as caught:
        train(recipe, resume=True)
    run = Run(tmp_path / "run")
    assert run.status()["status"] == "failed"
    assert run.status()["error"]["error"] == "NotFiniteError"
    assert "resume=True training.on_nonfinite=skip" in str(caught.value.remedy)
    with pytest.raises(KeyboardInterrupt):
        train(run.folder, ["training.on_nonfinite=skip"], resume=True, listener=Signals(6))
    train(run.folder, resume=True)  # the changed rule is the run's own from then on
    whole = train(asked(values, tmp_path / "whole", on_nonfinite="skip")).run
    assert content(run.folder) == content(whole)
    assert (run.folder / "recipe.yaml").read_text().count("on_nonfinite: skip") == 1


@pytest.mark.parametrize("method", [{"name": "lora", "r": 4}, {"name": "full"}])
def test_weights_that_overflow_are_never_saved_and_the_run_does_not_end_well(
    values: dict[str, Any], method: dict[str, Any], tmp_path: Path
) -> None:
    recipe = {**asked(values, tmp_path / "run", learning_rate=3e38, max_steps=1), "method": method}
    recipe = {**recipe, "data": {**values["data"], "eval": 0.0}, "evaluation": {}}
    recipe["training"].pop("eval_steps")
    with pytest.raises(NotFiniteError, match="The weights are not finite after step 1"):
        train(recipe)
    assert Run(tmp_path / "run").checkpoints == []
    assert Run(tmp_path / "run").status()["status"] == "failed"


def broken_copy(folder: Path, to: Path, bad: float = math.nan, *, name: str | None = None) -> str:
    """A copy of a folder with one bad value in one tensor of its weights. Returns the tensor's name."""
    shutil.copytree(folder, to)
    (to / "manifest.json").unlink(missing_ok=True)  # as a tool without manifests writes it
    file = next(to.glob("*model.safetensors"))
    weights = load_file(file)
    chosen = name or sorted(weights)[-1]
    weights[chosen].view(-1)[7] = bad
    save_file(weights, file, metadata={"format": "pt"})
    return chosen


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", [{"name": "lora", "r": 4}, {"name": "qlora", "r": 4}, {"name": "full"}])
def test_a_base_with_weights_that_are_not_finite_is_refused_by_name(
    values: dict[str, Any], tiny_model_dir: Path, method: dict[str, Any], bad: float, tmp_path: Path
) -> None:
    if method["name"] == "qlora":
        pytest.importorskip("bitsandbytes")
    name = "model.layers.1.mlp.up_proj.weight"
    broken_copy(tiny_model_dir, tmp_path / "base", bad, name=name)
    recipe = {**asked(values, tmp_path / "run"), "model": str(tmp_path / "base"), "method": method}
    with pytest.raises(ModelError, match="the weights are not finite") as caught:
        train(recipe)
    assert name in str(caught.value.why)
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_is_not_finite_is_refused_by_name(values: dict[str, Any], tmp_path: Path) -> None:
    run = train(asked(values, tmp_path / "run", max_steps=2)).run
    name = broken_copy(Run(run).checkpoints[-1], tmp_path / "adapter")
    with pytest.raises(ModelError, match="the weights are not finite") as caught:
        load(str(tmp_path / "adapter"))
    assert name in str(caught.value.why)
    start = {"name": "lora", "adapter_name_or_path": str(tmp_path / "adapter")}
    with pytest.raises(ModelError, match="the weights are not finite"):
        train({**asked(values, tmp_path / "again"), "method": start})


def test_a_broken_adapter_of_the_method_is_found_at_the_save(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Lora.state

    def state(self: Lora, model: Any) -> Any:
        found = plain(self, model)
        return {**found, sorted(found)[0]: torch.full_like(found[sorted(found)[0]], math.nan)}

    monkeypatch.setattr(Lora, "state", state)
    with pytest.raises(NotFiniteError, match="The weights after step 3 are not finite"):
        train(asked(values, tmp_path / "run"))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def out_of_memory(monkeypatch: pytest.MonkeyPatch, step_now: list[int], at: int, most: int) -> None:
    """From a step on, a micro-batch of more than so many tokens finds no memory."""
    plain = CrossEntropy.sum

    def crowded(self: CrossEntropy, model: Any, batch: Batch) -> Any:
        if step_now[0] >= at and batch.computed > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, model, batch)

    monkeypatch.setattr(CrossEntropy, "sum", crowded)


def test_a_run_that_ran_out_of_memory_goes_on_with_half_the_micro_batch_also_after_a_kill(
    values: dict[str, Any], step_now: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(asked(values, tmp_path / "plain")).run
    with monkeypatch.context() as patch:
        out_of_memory(patch, step_now, 4, 90)
        listener = Signals()
        whole = train(asked(values, tmp_path / "whole"), listener=listener).run
        said = [line for line in listener.lines if "memory ran out" in line]
        [[step, halved]] = Run(whole).status()["smaller_micro_batches"]
        assert step == 4
        assert 40 < halved <= 80
        assert said == [
            "step 4: memory ran out (CUDA out of memory. Tried to allocate 2.00 GiB.). From this step on a micro-batch "
            f"has at most {halved} tokens instead of 160; the gradient is the same"
        ]
    # A run that continues takes the smaller budget from the same step on, though memory would be there.
    stopped = asked(values, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        out_of_memory(patch, step_now, 4, 90)
        patch.setattr(Trainer, "on_eval", lambda self, step: None if step.number < 6 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(stopped)
    assert [path.name for path in Run(tmp_path / "stopped").checkpoints] == ["step-000003"]
    train(stopped, resume=True)
    assert weights_of(tmp_path / "stopped") == weights_of(whole)
    name = "adapter_model.safetensors"
    assert weights_of(plain)[name] != weights_of(whole)[name], "another order of the same sums"
    weights = [load_file(Run(each).checkpoints[-1] / name) for each in (plain, whole)]
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-4) for key in weights[0])


def test_memory_that_one_row_exceeds_ends_the_run_with_estimate_and_limit(
    values: dict[str, Any], step_now: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory(monkeypatch, step_now, 4, 1)
    with pytest.raises(TrainError, match="Memory ran out") as caught:
        train(asked(values, tmp_path / "run"))
    why = str(caught.value.why)
    assert "CUDA out of memory" in why
    assert "was predicted to need" in why and "activations" in why
    assert "GB of cpu" in why
    assert caught.value.exit_code == 3
    assert Run(tmp_path / "run").status()["status"] == "failed"
    monkeypatch.undo()
    train(asked(values, tmp_path / "run"), resume=True)  # with more memory


def test_a_run_whose_process_was_killed_says_so_when_it_continues(values: dict[str, Any], tmp_path: Path) -> None:
    recipe = asked(values, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, listener=Signals(3))
    run, listener = Run(tmp_path / "run"), Signals()
    run.set_status("running")  # as a kill leaves it
    train(recipe, resume=True, listener=listener)
    said = [line for line in listener.lines if "was killed" in line]
    assert len(said) == 1
    assert "GB at step 3, of" in said[0]
    listener = Signals()
    with pytest.raises(KeyboardInterrupt):
        train(asked(values, tmp_path / "other"), listener=Signals(3))
    train(asked(values, tmp_path / "other"), resume=True, listener=listener)
    assert not any("was killed" in line for line in listener.lines)
