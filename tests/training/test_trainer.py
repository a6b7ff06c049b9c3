"""When a line, a validation or a checkpoint is due. Runs as a whole are in tests/workflows/test_finetune.py."""

from __future__ import annotations

import pytest

from tunesmith.training.trainer import Due


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [("steps", 3, [3, 6, 8]), ("epoch", 1, [4, 8]), ("no", 1, [8])],
)
def test_it_is_due_by_step_or_epoch_and_after_the_last_step(strategy: str, every: int, expected: list[int]) -> None:
    due = Due(strategy, every, last_step=8)
    assert [step for step in range(1, 9) if due.at(step, step / 4)] == expected
