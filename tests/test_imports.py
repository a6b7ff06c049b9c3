"""What must start at once imports nothing heavy: a test, as import contracts see imports inside functions too."""

from __future__ import annotations

import subprocess
import sys

import pytest

TENSORS = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "tensorboard"}
LIGHT = {
    "tunesmith": TENSORS | {"pydantic", "numpy"},
    "tunesmith.errors": TENSORS | {"pydantic", "numpy"},
    "tunesmith.cli.app": TENSORS | {"pydantic", "numpy"},
    "tunesmith.recipe.settings": TENSORS,
    "tunesmith.runs.folder": TENSORS,
    "tunesmith.planning.budget": TENSORS,
    "tunesmith.planning.workload": TENSORS,
    "tunesmith.planning.advice": TENSORS,
    "tunesmith.planning.model_size": TENSORS,
    "tunesmith.runs.rate_curve": TENSORS | {"pydantic", "numpy"},
    "tunesmith.planning.memory": TENSORS,
    "tunesmith.data.examples.example": TENSORS,
    "tunesmith.data.files.reader": TENSORS,
    "tunesmith.data.checks.scan": TENSORS,
    "tunesmith.deploy.report.files": TENSORS,
    "tunesmith.evaluation.probe.items": TENSORS,
    "tunesmith.evaluation.baselines": TENSORS | {"sklearn"},
    "tunesmith.evaluation.pairs": TENSORS,
    "tunesmith.evaluation.shared_rows": TENSORS,
}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert LIGHT[module].intersection(loaded) == set()
