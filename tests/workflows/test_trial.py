"""Real steps in a process of their own: what they report, and what they leave as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import ModelError
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.workflows.trial import MADE_ROWS, measure_steps, run_trial


def recipe(folder: Path, method: str = "lora") -> Recipe:
    return read_recipe(
        {
            "model": {"path": str(folder), "device": "cpu", "dtype": "float32"},
            "data": {"train": "rows"},
            "method": method,
            "training": {
                "micro_batch_tokens": 64,
                "gradient_checkpointing": False,
                "threads": 1,
                "batch_size": MADE_ROWS,
            },
            "output_dir": "nowhere",
        }
    ).recipe


@pytest.mark.slow
def test_the_heaviest_micro_batch_is_measured(tiny_model_dir: Path) -> None:
    found = run_trial(recipe(tiny_model_dir), length=32)
    assert (found.tokens, found.rows_tokens) == (64, 64)  # two rows of 32 that share nothing
    assert found.logits == 2 * 16
    assert found.pairs == 2 * 32 * 33 // 2
    assert found.peak > 100 * 2**20 and found.seconds > 0 and found.flops > 1e8


@pytest.mark.slow
def test_steps_leave_the_weights_and_the_folder_as_they_were(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    before = (tiny_model_dir / "model.safetensors").read_bytes()
    try:
        found = measure_steps(recipe(tiny_model_dir, "full"), length=16)
    finally:
        torch.set_num_threads(threads)
    assert found.tokens == 64
    assert (tiny_model_dir / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_goes_wrong_in_the_process_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Steps of lora could not be measured") as caught:
        run_trial(recipe(tmp_path), length=32)
    assert "no model, adapter or run" in str(caught.value.why)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_pairs_are_measured_with_their_own_loss_and_share_their_prompt(tiny_model_dir: Path, objective: str) -> None:
    import torch

    threads = torch.get_num_threads()
    asked = recipe(tiny_model_dir)
    given = {**asked.model_dump(exclude_unset=True), "objective": objective}
    try:
        found = measure_steps(read_recipe(given).recipe, length=32)
    finally:
        torch.set_num_threads(threads)
    if objective == "dpo":
        assert (found.tokens, found.rows_tokens) == (48, 64)  # a prompt of 16, and two answers
        assert found.logits == 2 * 16 - 1  # the last token of the prompt predicts the first of both
    else:
        assert found.rows_tokens == 2 * MADE_ROWS * 32  # a group: each row, and its prompt with another's answer
        assert found.tokens == MADE_ROWS * 48
