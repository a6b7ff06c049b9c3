"""A run whose files are damaged: what is noticed, what is refused, and where the run continues."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.deploy.adapter_folder import hand_over
from tunesmith.deploy.merge import merge
from tunesmith.deploy.tuned import load
from tunesmith.errors import RunError, TrainError
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import MANIFEST
from tunesmith.runs.progress import Silent
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import train

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]
ADAPTER = "adapter_model.safetensors"


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Any]:
    rows = tmp_path_factory.mktemp("damaged") / "rows.jsonl"
    pairs = [{"instruction": "Name it.", "input": f"{WORDS[n % 7]} {n}", "output": WORDS[n % 7]} for n in range(44)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {
        "model": str(tiny_model_dir),
        "data": {"train": str(rows), "eval": 0.25},
        "method": {"name": "lora", "r": 4, "lora_dropout": 0.1},
        "training": {
            "learning_rate": 1e-2, "max_steps": 6, "batch_size": 8, "micro_batch_tokens": 160, "logging_steps": 1,
            "eval_steps": 2, "save_steps": 2, "report_to": "none", "threads": 1,
        },
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 4, "resamples": 200, "samples": 1},
        "output_dir": str(rows.parent / "whole"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(values: dict[str, Any]) -> Path:
    """A finished run of six steps with three checkpoints, of which the newest has its optimizer's state."""
    return train(values, progress=False).run


@pytest.fixture(scope="module")
def kept_all(values: dict[str, Any], whole: Path) -> Path:
    """The same, and every checkpoint keeps the state of the optimizer."""
    training = {**values["training"], "save_optimizer": "all"}
    return train({**values, "training": training, "output_dir": f"{whole}-all"}, progress=False).run


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Run]:
    def copy(folder: Path) -> Run:
        return Run(shutil.copytree(folder, tmp_path / "run"))

    return copy


def flip(path: Path, byte: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 0x40
    path.write_bytes(content)


def content(folder: Path) -> dict[str, Any]:
    """Every byte of all checkpoints, and lines and verdict without times."""
    run = Run(folder)
    found: dict[str, Any] = {
        f"{path.name}/{file.name}": file.read_bytes() for path in run.checkpoints for file in path.iterdir()
    }
    for name in ("metrics.jsonl", "samples_during.jsonl", "samples.jsonl"):
        found[name] = [
            {key: value for key, value in line.items() if "second" not in key} for line in run.read_lines(name)
        ]
    return {**found, "verdict": run.read_json("verdict.json")}


def unfinish(run: Run) -> None:
    """The run as a kill after its last checkpoint leaves it."""
    (run.folder / "verdict.json").unlink()
    run.write_json("status.json", {**run.status(), "status": "running"})


def test_a_damaged_newest_checkpoint_sends_the_run_to_its_first_step_and_gives_the_same_bytes(
    whole: Path, copied: Callable[[Path], Run]
) -> None:
    run, heard = copied(whole), Heard()
    shutil.rmtree(run.checkpoint(6))
    unfinish(run)
    flip(run.checkpoint(4) / ADAPTER)
    train(run.folder, resume=True, listener=heard)
    assert content(run.folder) == content(whole)
    told = [line for line in heard.warned if "step-000004" in line]
    assert told == [
        f"{run.checkpoint(4)} is damaged: {ADAPTER} has other content than was written. No earlier checkpoint is whole "
        "and holds its optimizer state (by default only the newest keeps it; see training.save_optimizer), so the run "
        "starts again from its first step; the result is the same as without the damage. 2 folders are kept in "
        f"{run.folder / 'set_aside'}"
    ]
    assert sorted(path.name for path in (run.folder / "set_aside").iterdir()) == ["step-000002", "step-000004"]
    assert run.status()["fell_back"] == {"from": "step-000004", "to": None}


def test_a_run_falls_back_to_the_newest_checkpoint_that_is_whole_and_has_its_optimizer(
    kept_all: Path, copied: Callable[[Path], Run]
) -> None:
    run, heard = copied(kept_all), Heard()
    unfinish(run)
    flip(run.checkpoint(6) / "optimizer.safetensors")
    (run.checkpoint(4) / "training_state.json").unlink()
    train(run.folder, resume=True, listener=heard)
    assert "continuing after step 2 of 6" in heard.said
    assert content(run.folder) == content(kept_all)
    (told,) = [line for line in heard.warned if "step-000006 is damaged" in line]
    assert "The run continues from step-000002, which is whole" in told
    assert sorted(path.name for path in (run.folder / "set_aside").iterdir()) == ["step-000004", "step-000006"]


def test_a_newest_checkpoint_that_was_removed_is_noticed_and_gives_the_same_bytes(
    whole: Path, kept_all: Path, copied: Callable[[Path], Run]
) -> None:
    run, heard = copied(whole), Heard()
    unfinish(run)
    shutil.rmtree(run.checkpoint(6))
    train(run.folder, resume=True, listener=heard)
    assert content(run.folder) == content(whole)
    (told,) = [line for line in heard.warned if "is not there, and this one has no optimizer state" in line]
    assert "step-000004" in told and "the run starts again from its first step" in told
    shutil.rmtree(run.folder)
    run, heard = copied(kept_all), Heard()
    unfinish(run)
    shutil.rmtree(run.checkpoint(6))
    train(run.folder, resume=True, listener=heard)
    assert "continuing after step 4 of 6" in heard.said and content(run.folder) == content(kept_all)


def test_a_finished_run_whose_weights_or_verdict_are_damaged_makes_them_again(
    whole: Path, copied: Callable[[Path], Run]
) -> None:
    run = copied(whole)
    flip(run.folder / "verdict.json", byte=30)
    heard = Heard()
    train(run.folder, resume=True, listener=heard)
    assert any(line.endswith("The run is judged again") for line in heard.warned)
    assert content(run.folder) == content(whole)
    flip(run.checkpoint(6) / ADAPTER)
    train(run.folder, resume=True, listener=heard)
    assert content(run.folder) == content(whole)
    heard = Heard()
    assert train(run.folder, resume=True, listener=heard).already_finished
    assert heard.warned == []


def test_what_only_reads_refuses_a_damaged_checkpoint_and_names_another(
    whole: Path, copied: Callable[[Path], Run], values: dict[str, Any], tmp_path: Path
) -> None:
    run = copied(whole)
    flip(run.checkpoint(6) / ADAPTER)
    goes_on = {**values, "output_dir": str(tmp_path / "on")}
    goes_on["method"] = {"name": "lora", "adapter_name_or_path": str(run.folder)}
    ways: list[Callable[[], Any]] = [
        lambda: load(run.folder),
        lambda: load(run.checkpoint(6)),
        lambda: evaluate(run.folder),
        lambda: merge(run.folder, tmp_path / "merged"),
        lambda: hand_over(run.folder, tmp_path / "handed over"),
        lambda: train(goes_on),
    ]
    for way in ways:
        with pytest.raises(RunError, match="The checkpoint is damaged") as caught:
            way()
        assert caught.value.where == str(run.checkpoint(6))
        assert caught.value.remedy is not None
        assert caught.value.remedy.startswith(f"Name {run.checkpoint(4)}, which is whole.")
    assert load(run.checkpoint(4)).target.checkpoint == run.checkpoint(4)
    (run.checkpoint(6) / MANIFEST).unlink()  # as the message says
    heard = Heard()
    load(run.folder, listener=heard)
    assert heard.warned == [f"{run.checkpoint(6)} has no manifest.json, so its files cannot be verified"]


def test_a_checkpoint_that_has_lost_its_config_is_named_as_damaged(whole: Path, copied: Callable[[Path], Run]) -> None:
    run = copied(whole)
    (run.checkpoint(6) / "adapter_config.json").unlink()
    for target in (run.folder, run.checkpoint(6)):
        with pytest.raises(RunError, match=r"adapter_config\.json is missing"):
            load(target)


def test_a_lost_optimizer_state_is_only_said_where_it_is_not_needed(whole: Path, copied: Callable[[Path], Run]) -> None:
    run, heard = copied(whole), Heard()
    (run.checkpoint(6) / "optimizer.safetensors").unlink()
    load(run.folder, listener=heard)
    assert heard.warned == [
        f"{run.checkpoint(6)}: optimizer.safetensors is missing; only training needs that file"
    ]  # fmt: skip


def test_a_deleted_manifest_is_said_by_every_command_that_reads_the_checkpoint(
    whole: Path, copied: Callable[[Path], Run], tmp_path: Path
) -> None:
    run = copied(whole)
    newest = run.checkpoints[-1]
    (newest / MANIFEST).unlink()
    wanted = content(run.folder)
    for act in (
        lambda heard: evaluate(run.folder, listener=heard),
        lambda heard: load(run.folder, listener=heard),
        lambda heard: merge(run.folder, tmp_path / "merged", listener=heard),
        lambda heard: (unfinish(run), train(run.folder, resume=True, listener=heard)),
    ):
        heard = Heard()
        act(heard)
        assert f"{newest} has no {MANIFEST}, so its files cannot be verified" in heard.warned
    assert content(run.folder) == wanted


@pytest.mark.parametrize("name", ["training_state.json", "optimizer.safetensors"])
@pytest.mark.parametrize("all_kept", [False, True])
def test_a_checkpoint_without_a_manifest_that_cannot_be_read_is_removed_as_the_message_says(
    whole: Path, kept_all: Path, copied: Callable[[Path], Run], name: str, all_kept: bool
) -> None:
    run = copied(kept_all if all_kept else whole)
    wanted = content(run.folder)
    unfinish(run)
    newest = run.checkpoints[-1]
    (newest / MANIFEST).unlink()
    (newest / name).write_bytes((newest / name).read_bytes()[:-9])
    with pytest.raises(TrainError, match="cannot be read") as caught:
        train(run.folder, resume=True, progress=False)
    assert caught.value.where == str(newest / name)
    assert "Remove this checkpoint folder" in str(caught.value.remedy)
    shutil.rmtree(newest)
    heard = Heard()
    train(run.folder, resume=True, listener=heard)
    assert content(run.folder) == wanted
    assert any("starts again from its first step" in line for line in heard.warned) == (not all_kept)


def test_a_state_that_would_take_the_memory_is_not_read(copied: Callable[[Path], Run], whole: Path) -> None:
    run = copied(whole)
    unfinish(run)
    newest = run.checkpoints[-1]
    (newest / MANIFEST).unlink()
    os.truncate(newest / "training_state.json", 2**34)  # without content, it takes no room on the disk
    with pytest.raises(TrainError, match=r"cannot be read[\s\S]*has 17,179,869,184 bytes") as caught:
        train(run.folder, resume=True, progress=False)
    assert caught.value.where == str(newest / "training_state.json")


def test_files_that_decide_the_result_are_refused_and_others_are_named(
    whole: Path, copied: Callable[[Path], Run]
) -> None:
    for name in ("data.json", "template.json", "metrics.jsonl"):
        run = copied(whole)
        unfinish(run)
        text = (run.folder / name).read_text()
        (run.folder / name).write_text(text.replace("1", "2", 1))
        heard = Heard()
        with pytest.raises(RunError, match=f"{name} is damaged") as caught:
            train(run.folder, resume=True, listener=heard)
        assert f"remove {run.folder / MANIFEST}" in str(caught.value.remedy)
        assert not [line for line in heard.warned if name in line], "one message"
        shutil.rmtree(run.folder)
    run, heard = copied(whole), Heard()
    unfinish(run)
    flip(run.folder / "environment.json")
    (run.folder / "ledger.json").unlink()
    train(run.folder, resume=True, listener=heard)
    (told,) = [line for line in heard.warned if "ledger.json" in line]
    assert "environment.json has other content than the run wrote; ledger.json is missing" in told
    assert content(run.folder) == content(whole)


def test_a_recipe_that_is_not_as_the_run_wrote_it_is_noticed_by_what_continues_and_by_what_reads(
    whole: Path, copied: Callable[[Path], Run]
) -> None:
    run, heard = copied(whole), Heard()
    unfinish(run)
    recipe = run.folder / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("batch_size: 8", "batch_size: 9"))
    with pytest.raises(RunError, match=r"training\.batch_size"):
        train(run.folder, resume=True, listener=heard)
    load(run.folder, listener=heard)
    assert "recipe.yaml has other content than the run wrote" in heard.warned[-1]
    recipe.write_text(text.replace("method:", "metho:"))
    for way in (lambda: train(run.folder, resume=True), lambda: load(run.folder)):
        with pytest.raises(RunError, match=r"recipe\.yaml is damaged"):
            way()


def test_a_run_of_an_earlier_version_goes_on_and_says_that_it_cannot_be_verified(
    whole: Path, copied: Callable[[Path], Run]
) -> None:
    run, heard = copied(whole), Heard()
    for file in run.folder.rglob(MANIFEST):
        file.unlink()
    load(run.folder, listener=heard)
    said = f"{run.folder} has no manifest.json, as runs of earlier versions: its files cannot be verified"
    assert heard.warned == [said]
    status = json.loads((run.folder / "status.json").read_text())
    (run.folder / "status.json").write_text(json.dumps({**status, "status": "running"}))
    shutil.rmtree(run.checkpoint(6))
    shutil.copytree(whole / "checkpoints" / "step-000006", run.checkpoint(6))
    (run.checkpoint(6) / MANIFEST).unlink()
    heard = Heard()
    train(run.folder, resume=True, listener=heard)
    assert said in heard.warned
    assert run.read_json("verdict.json") == Run(whole).read_json("verdict.json")
