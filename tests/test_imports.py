"""What must start at once imports nothing heavy: a test, as import contracts see imports inside functions too."""

from __future__ import annotations

import subprocess
import sys

import pytest

TENSORS = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "tensorboard"}
LIGHT = {
    "tunesmith": TENSORS | {"pydantic", "numpy"},
    "tunesmith.errors": TENSORS | {"pydantic", "numpy"},
    "tunesmith.cli": TENSORS | {"pydantic", "numpy"},
    "tunesmith.recipe": TENSORS,
    "tunesmith.run": TENSORS,
    "tunesmith.plan": TENSORS,
    "tunesmith.planning": TENSORS,
    "tunesmith.workload": TENSORS,
    "tunesmith.advice": TENSORS,
    "tunesmith.model_size": TENSORS,
    "tunesmith.rate_curve": TENSORS | {"pydantic", "numpy"},
    "tunesmith.memory": TENSORS,
    "tunesmith.trial": TENSORS,
    "tunesmith.data.example": TENSORS,
    "tunesmith.data.read": TENSORS,
    "tunesmith.data.scan": TENSORS,
    "tunesmith.demo.invoices": TENSORS,
}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert LIGHT[module].intersection(loaded) == set()
