"""Rows looked at on Ray give what this machine's processes give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.workflows.prepare_data import prepare_data

pytest.importorskip("ray", reason="ray is not installed (pip install 'tunesmith[ray]')")


@pytest.mark.slow
def test_a_dataset_prepared_on_ray_is_the_one_prepared_here(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Write to ann{number % 900}@firm.org about order {number % 900}.",
            "completion": f"{number % 900 % 7}",
        }
        for number in range(3_000)
    ]
    rows[100] = {"prompt": "no answer"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["clean=[dedupe, near_dedupe, mask_pii]", "eval=0.1", "test=0.1", "on_error=skip"]
    made = [prepare_data(str(path), tmp_path / name, settings=settings, ray=name == "ray") for name in ("here", "ray")]
    assert made[0].splits == made[1].splits
    assert made[0].ledger.to_json() == made[1].ledger.to_json()
    assert made[0].ledger.total.rows.duplicate > 0
    for file in ("rejected.jsonl", "train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"):
        one, other = ((tmp_path / name / file).read_bytes() for name in ("here", "ray"))
        assert one == other, file
