"""A base or rows that only lie elsewhere are no change, wherever the user writes down the new place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.test_drift import adapter, here, made, other_data, other_weights, recorded, said

from tunesmith.errors import RunError
from tunesmith.runs.folder import Run
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

__all__ = ["here", "made"]


def moved(here: Path) -> dict[str, Any]:
    """The recipe of the stopped run, with its base and its rows at other places, where they are now."""
    (here / "base").rename(here / "base2")
    (here / "rows.jsonl").rename(here / "rows2.jsonl")
    recipe = {**Run("stopped").status()["asked"], "output_dir": "stopped"}
    recipe["model"] = {**recipe["model"], "path": "base2"}
    recipe["data"]["train"][0]["path"] = "rows2.jsonl"
    return recipe


def test_a_recipe_with_the_new_places_goes_on_to_the_same_bytes(here: Path) -> None:
    train(moved(here), resume=True)
    assert adapter("stopped") == adapter("whole") and recorded("stopped") == []
    stored = (here / "stopped" / "recipe.yaml").read_text()
    assert str(here / "base2") in stored and str(here / "rows2.jsonl") in stored
    assert Run("stopped").notes() == [] and evaluate("stopped")["rows"] == 5, "the run knows the places from now on"


@pytest.mark.parametrize(("change", "kind"), [(other_weights, "weights"), (other_data, "data")])
def test_other_contents_at_the_new_place_are_refused(here: Path, change: Any, kind: str) -> None:
    change(here)
    recipe = moved(here)
    before = (here / "stopped" / "recipe.yaml").read_bytes()
    with pytest.raises(RunError, match=rf'allow_changes=\["{kind}"\]'):
        train(recipe, resume=True)
    assert (here / "stopped" / "recipe.yaml").read_bytes() == before
    train(recipe, resume=True, allow_changes=kind)
    assert str(here / "base2") in (here / "stopped" / "recipe.yaml").read_text()


def test_a_finished_run_of_another_base_is_none_of_this_one_and_the_message_names_the_way(here: Path) -> None:
    shutil.copytree(here / "base", here / "base2")
    asked = Run("whole").status()["asked"]
    recipe = {**asked, "output_dir": "whole", "model": {**asked["model"], "path": "base2"}}
    with pytest.raises(RunError, match="another recipe") as caught:
        train(recipe, resume=True)
    assert f"write that into {Path('whole', 'recipe.yaml')}" in str(caught.value)
    kept = here / "whole" / "recipe.yaml"
    kept.write_text(kept.read_text().replace(str(here / "base"), "base2"))
    assert train(recipe, resume=True).already_finished


def test_a_place_or_line_ends_that_the_user_writes_into_the_run_are_no_damage(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = here / "whole" / "recipe.yaml"
    (here / "base").rename(here / "base2")
    text = kept.read_text().replace(str(here / "base"), str(here / "base2"))
    kept.write_bytes(text.replace("\n", "\r\n").encode())
    assert Run("whole").notes() == []
    shown = said(capsys, "runs", "show", "whole", code=0)
    assert "damaged" not in shown
    assert "edited    recipe.yaml: model.path: was '" in shown and f", is '{here / 'base2'}'" in shown
    kept.write_text(text.replace("  seed: 0\n", "  seed: 7\n"))
    assert "recipe.yaml" in Run("whole").notes()[0]
    assert "damaged" in said(capsys, "runs", "show", "whole", code=0)
