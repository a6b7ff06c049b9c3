"""How threads wait for each other: said before torch is imported, the user's own choice first, and the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
ASKED = "import tunesmith, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


def _python(code: str, *arguments: str, **settings: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in SPINNING}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**environment, **settings}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_spin_for_a_short_time_unless_the_user_says_otherwise() -> None:
    assert _python(ASKED) == "10000 False"
    assert _python(ASKED, GOMP_SPINCOUNT="7") == "7 False"
    assert _python(ASKED, OMP_WAIT_POLICY="active") == "None False"


TRAINED = """
import sys, tunesmith, torch, hashlib, pathlib
assert torch.__config__.parallel_info().count("OpenMP")
done = tunesmith.train(sys.argv[1], ["output_dir=" + sys.argv[2]])
file = done.run / "checkpoints/step-000004/adapter_model.safetensors"
print(hashlib.sha256(file.read_bytes()).hexdigest(), torch.get_num_threads())
"""


def test_how_threads_wait_changes_no_byte(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 25)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": str(tiny_model_dir), "data": {"train": str(tmp_path / "rows.jsonl"), "eval": 0.25},
        "method": {"name": "lora", "r": 4}, "evaluation": {"metrics": ["loss"], "resamples": 100, "samples": 0},
        "training": {"learning_rate": 1e-2, "max_steps": 4, "batch_size": 8, "threads": 2, "report_to": "none"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    ours, spinning = (
        _python(TRAINED, str(tmp_path / "recipe.yaml"), str(tmp_path / name), **settings).splitlines()[-1]
        for name, settings in (("ours", {}), ("spinning", {"GOMP_SPINCOUNT": "300000"}))
    )
    assert ours == spinning
    assert ours.endswith(" 2")
