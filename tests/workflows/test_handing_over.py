"""An adapter's folder goes to somebody else: it names its base by what others have, and no path of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.deploy import tuned
from tunesmith.deploy.adapter_folder import hand_over
from tunesmith.deploy.merge import merge
from tunesmith.errors import ExportError, ModelError
from tunesmith.model.weights.resolve import portable_name
from tunesmith.runs.folder import Run
from tunesmith.workflows.finetune import train


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(torch.tensor([[5, 6, 7, 8, 9]])).logits


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in a project folder that has its base in it."""
    project = tmp_path / "project"
    shutil.copytree(tiny_model_dir, project / "models" / "base")
    rows = [{"input": f"{word} thing {n}", "output": word} for n in range(4) for word in ("red", "blue", "pink")]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(project)
    recipe = {
        "model": "models/base",
        "data": {"train": "rows.jsonl", "eval": 0.25, "instruction": "Name the colour."},
        "method": {"name": "lora", "r": 4},
        "training": {"max_steps": 2, "batch_size": 4, "learning_rate": 5e-2, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0, "max_new_tokens": 2},
        "output_dir": "run",
    }
    return project / train(recipe).run


def names_a_path(folder: Path, machine: Path) -> list[str]:
    """The text files of a folder in which a path of this machine stands."""
    files = [file for file in folder.rglob("*") if file.suffix in (".json", ".md", ".jinja")]
    return [file.name for file in files if str(machine) in file.read_text(encoding="utf-8")]


def test_an_adapter_names_its_base_from_the_project_and_no_path_of_the_machine(run: Path, tmp_path: Path) -> None:
    last = Run(run).checkpoints[-1]
    assert json.loads((last / "adapter_config.json").read_text())["base_model_name_or_path"] == "./models/base"
    assert names_a_path(last, tmp_path) == []
    expected = logits(tuned.load(run).model)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(last, dtype=torch.float32)), expected)
    merge(run, tmp_path / "merged")
    assert names_a_path(tmp_path / "merged", tmp_path) == []


def test_an_adapter_is_handed_over_with_its_base(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(tuned.load(run).model)
    both = hand_over(run, tmp_path / "both")
    assert not (tmp_path / "both" / "optimizer.safetensors").exists()
    with pytest.raises(ExportError, match="merged model already"):
        hand_over(run, tmp_path / "both")
    assert both.bytes > 0
    moved = tmp_path / "elsewhere" / "theirs"
    moved.parent.mkdir()
    (tmp_path / "both").rename(moved)
    shutil.rmtree(run.parent / "models")
    assert names_a_path(moved, tmp_path) == []
    monkeypatch.chdir(tmp_path)
    theirs = tuned.load(moved)
    assert torch.equal(logits(theirs.model), expected)
    assert theirs.run_prompt().instruction == "Name the colour.", "the prompt is that of the training"
    base = AutoModelForCausalLM.from_pretrained(moved / "base", dtype=torch.float32)
    assert torch.equal(logits(PeftModel.from_pretrained(base, str(moved))), expected)
    monkeypatch.chdir(moved)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(".", dtype=torch.float32)), expected)


def test_a_base_that_is_not_there_is_named_and_another_place_can_be_given(run: Path, tmp_path: Path) -> None:
    expected = logits(tuned.load(run).model)
    adapter = tmp_path / "adapter"
    shutil.copytree(Run(run).checkpoints[-1], adapter)
    (run.parent / "models").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"base_model_name_or_path(.|\n)*--model MODEL"):
        tuned.load(adapter)
    with pytest.raises(ModelError, match=r"recipe\.yaml: model\.path(.|\n)*--model MODEL"):
        tuned.load(run)
    for target in (adapter, run):
        assert torch.equal(logits(tuned.load(target, model=str(tmp_path / "moved" / "base")).model), expected)
    merge(adapter, tmp_path / "plain", model=str(tmp_path / "moved" / "base"))
    with pytest.raises(ModelError, match="plain model has no other base"):
        tuned.load(tmp_path / "plain", model="x/y")


def test_whole_weights_have_no_adapter_to_keep(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no adapter to keep"):
        hand_over(tiny_model_dir, tmp_path / "both")


def test_a_base_has_the_name_that_others_know_it_by(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--user--name" / "snapshots" / "0123abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    assert portable_name(str(cached), cached, revision=None, started_in=tmp_path) == ("user/name", "0123abc")
    assert portable_name("user/name@v2", cached, revision=None, started_in=tmp_path) == ("user/name", "v2")
    bundled = portable_name("smollm2-135m-instruct", tmp_path / "cache", revision=None, started_in=tmp_path)
    assert bundled == ("smollm2-135m-instruct", None)
