"""A checkpoint is whole or not there; what is kept, what is removed, and what a damaged one says."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.errors import RunError, TrainError
from tunesmith.runs.checkpoint_names import checkpoint_name
from tunesmith.runs.folder import Run
from tunesmith.runs.manifest import damage
from tunesmith.runs.recorder import Totals
from tunesmith.training import checkpoint
from tunesmith.training.guard import Seen
from tunesmith.training.optim import build_optimizer, optimizer_state
from tunesmith.training.resume_point import faults
from tunesmith.training.selection import Selection


def make_optimizer(names: tuple[str, ...] = ("weight",), *, stepped: bool = True) -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.ones(3)) for _ in names]
    optimizer = build_optimizer(
        [{"params": parameters, "names": list(names), "decay": True}],
        learning_rate=0.1,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        epsilon=1e-8,
    )
    if stepped:
        for number, parameter in enumerate(parameters, start=1):
            parameter.grad = torch.arange(3.0) * number
        optimizer.step()
    return optimizer


def write_model(folder: Path) -> None:
    save_file({"weight": torch.arange(4.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


def save(folder: Path, step: int, **changes: Any) -> Path:
    values: dict[str, Any] = {"write_model": write_model, "optimizer": make_optimizer(), "state": {}, **changes}
    return checkpoint.save(folder, step, **values)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_a_checkpoint_holds_model_optimizer_and_state(tmp_path: Path) -> None:
    saved = make_optimizer()
    folder = save(tmp_path / "checkpoints", 7, optimizer=saved, state={"totals": {"loss_sum": 0.1}})
    assert folder == tmp_path / "checkpoints" / "step-000007"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "training_state.json",
    ]  # fmt: skip
    assert load_file(folder / "model.safetensors")["weight"].tolist() == [0, 1, 2, 3]
    fresh = make_optimizer(stepped=False)
    assert checkpoint.restore(folder, fresh) == {"step": 7, "totals": {"loss_sum": 0.1}}
    one, other = optimizer_state(saved), optimizer_state(fresh)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [path.name for path in folder.parent.iterdir()] == ["step-000007"], "nothing is left beside it"


def test_a_checkpoint_of_a_stop_does_not_count_and_goes_once_there_is_a_newer_one(tmp_path: Path) -> None:
    for step in (3, 6):
        save(tmp_path, step)
    save(tmp_path, 7, state={"only_to_stop": True})
    checkpoint.prune(tmp_path, keep=2, best=3)
    assert steps(tmp_path) == [3, 6, 7], "the whole run has two now"
    whole = checkpoint.bytes_of_plan(tmp_path)
    assert whole == sum(file.stat().st_size for step in (3, 6) for file in (tmp_path / f"step-00000{step}").iterdir())
    save(tmp_path, 9)
    checkpoint.prune(tmp_path, keep=3, best=3)
    assert steps(tmp_path) == [3, 6, 9]


def test_a_number_survives_the_state_to_the_last_bit(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    assert checkpoint.restore(save(tmp_path, 1, state={"loss": value}), make_optimizer())["loss"] == value


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_write_that_is_broken_off_leaves_no_checkpoint(tmp_path: Path, error: type[BaseException]) -> None:
    save(tmp_path, 1)

    def broken(folder: Path) -> None:
        write_model(folder)
        raise error("midway")

    with pytest.raises(error, match="midway"):
        save(tmp_path, 2, write_model=broken)
    assert steps(tmp_path) == [1]
    checkpoint.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_full_disk_is_told_and_spares_the_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    save(tmp_path, 2, state={"whole": True})

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainError) as caught:
        save(tmp_path, 2, write_model=full)
    assert caught.value.where == str(tmp_path / "step-000002")
    assert "No space left on device" in str(caught.value.why)
    assert caught.value.exit_code == 3
    assert checkpoint._read_state(tmp_path / "step-000002") == {"step": 2, "whole": True}


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path: Path) -> None:
    stale = save(tmp_path, 2, state={"time": 1})
    (stale / "stale").touch()
    (tmp_path / ".step-000002.tunesmith-tmp").mkdir()
    (tmp_path / ".step-000002.tunesmith-tmp" / "rest").touch()
    again = save(tmp_path, 2, state={"time": 2})
    assert checkpoint._read_state(again) == {"step": 2, "time": 2}
    assert not (again / "stale").exists()
    assert not (again / "rest").exists()


def test_of_a_checkpoint_without_a_manifest_only_what_is_loaded_has_to_be_finite(tmp_path: Path) -> None:
    bad = {"weight": torch.tensor([1.0, float("nan")])}
    folder = save(tmp_path, 1)
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "pipe.safetensors")  # opening it would wait for ever
    save_file(bad, folder / "consolidated.safetensors")
    assert faults(folder, selects=False) == {}
    save_file(bad, folder / "optimizer.safetensors")
    assert faults(folder, selects=False) == {"optimizer.safetensors": "is not finite (weight)"}
    save_file(bad, folder / "model.safetensors")
    assert set(faults(folder, selects=False)) == {"optimizer.safetensors", "model.safetensors"}
    save_file({"weight": torch.ones(2)}, folder / "adapter_model.safetensors")  # then that one is loaded
    assert set(faults(folder, selects=False)) == {"optimizer.safetensors"}


def test_only_the_newest_checkpoint_keeps_the_state_of_the_optimizer(tmp_path: Path) -> None:
    for step in (1, 2, 12):
        save(tmp_path, step)
    checkpoint.remove_older_optimizers(tmp_path, newest=12)
    kept = {path.name: checkpoint.has_optimizer(path) for path in sorted(tmp_path.iterdir())}
    assert kept == {"step-000001": False, "step-000002": False, "step-000012": True}
    assert all(damage(path) == {} for path in tmp_path.iterdir()), "what is removed on purpose is no damage"
    assert checkpoint.restore(tmp_path / "step-000002", make_optimizer(stepped=False)) == {"step": 2}
    assert load_file(tmp_path / "step-000002" / "model.safetensors")["weight"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("mark", ["tunesmith-", ""], ids=["of this version", "of earlier versions"])
def test_a_kill_between_the_renames_of_a_step_that_is_saved_again_loses_no_checkpoint(
    tmp_path: Path, mark: str
) -> None:
    save(tmp_path, 2, state={"time": 1}).rename(tmp_path / f".step-000002.{mark}old")
    (tmp_path / f".step-000002.{mark}tmp").mkdir()
    checkpoint.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]
    assert checkpoint._read_state(tmp_path / "step-000002") == {"step": 2, "time": 1}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(modes, 0o640)
    assert len(modes) == 5
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_the_newest_and_the_best_are_never_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 100):
        (tmp_path / checkpoint_name(step)).mkdir()
    checkpoint.prune(tmp_path, keep=3, best=20)
    assert steps(tmp_path) == [20, 40, 100], "the oldest go, the best of them stays"
    checkpoint.prune(tmp_path, keep=1, best=20)
    assert steps(tmp_path) == [20, 100]
    checkpoint.prune(tmp_path, keep=1, best=None)
    assert steps(tmp_path) == [100]
    checkpoint.prune(tmp_path, keep=1, best=None)
    assert steps(tmp_path) == [100]


def test_fewer_than_the_limit_are_all_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / checkpoint_name(step)).mkdir()
    checkpoint.prune(tmp_path, keep=5, best=None)
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", [checkpoint.OPTIMIZER, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    if (name, damage) == (checkpoint.OPTIMIZER, "missing"):
        pytest.skip("older checkpoints have none")
    folder = save(tmp_path, 3)
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(TrainError) as caught:
        checkpoint.restore(folder, make_optimizer())
    assert (caught.value.what, caught.value.where) == ("The checkpoint cannot be read", str(path))


ODD: dict[str, tuple[object, str]] = {
    "a guard with another field": ({"guard": {"bogus": 1}}, "guard: 'bogus' is unknown"),
    "a guard that is a list": ({"guard": [1]}, "guard: It is '[1]', not an object"),
    "a guard of texts": ({"guard": {"losses": ["a"]}}, "guard: losses"),
    "totals with another field": ({"totals": {"bogus": 1}}, "totals: 'bogus' is unknown"),
    "totals of texts": ({"totals": {"tokens": "1"}}, "totals: tokens"),
    "totals that are a list": ({"totals": []}, "totals is '[]'"),
    "norms of texts": ({"totals": {"norms": [None, "a"]}}, "totals: norms"),
    "a selection without its metric": ({"totals": {"selection": {"best_step": 1}}}, "metric is missing"),
    "a selection with another field": ({"totals": {"selection": {"metric": "loss", "x": 1}}}, "'x' is unknown"),
    "a step that is a text": ({"step": "3"}, "step is '3'"),
    "a step before the first": ({"step": -3}, "step is -3"),
    "a validation that is a text": ({"validation_due": "soon"}, "validation_due is 'soon'"),
    "micro-batches that are no pairs": ({"smaller_micro_batches": [[1, 2, 3]]}, "smaller_micro_batches is"),
}


@pytest.mark.parametrize(("values", "why"), ODD.values(), ids=ODD)
def test_a_state_of_another_form_is_an_error_that_names_it(tmp_path: Path, values: dict[str, Any], why: str) -> None:
    file = save(tmp_path, 3) / checkpoint.STATE
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(TrainError, match="The checkpoint cannot be read") as caught:
        checkpoint.restore(file.parent, make_optimizer())
    assert why in str(caught.value.why)
    assert caught.value.where == str(file)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"', "{}", "[" * 100_000], ids=lambda text: text[:4])
def test_a_state_that_is_no_object_is_an_error(tmp_path: Path, text: str) -> None:
    file = save(tmp_path, 3) / checkpoint.STATE
    file.write_text(text)
    with pytest.raises(TrainError, match="The checkpoint cannot be read"):
        checkpoint.restore(file.parent, make_optimizer())


def test_a_state_of_a_run_and_one_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    totals = {**asdict(Totals(loss_sum=float("nan"), norms=[0.5, None])), "selection": asdict(Selection("loss"))}
    whole = {"totals": totals, "guard": asdict(Seen(losses=[1.0])), "smaller_micro_batches": [[3, 64]]}
    for state in (whole, {"totals": {"loss_sum": 0, "selection": {}}}, {"totals": {}}, {}):
        folder = save(tmp_path / str(len(state)), 3, state=state)
        assert checkpoint.restore(folder, make_optimizer()).keys() == {"step", *state}


def test_micro_batches_of_the_status_have_their_form(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.set_status("running", smaller_micro_batches=[[1, 64]])
    assert checkpoint.smaller_in_status(run) == [[1, 64]]
    run.set_status("running", smaller_micro_batches=[1])
    with pytest.raises(RunError, match=r"status\.json is damaged"):
        checkpoint.smaller_in_status(run)


def test_an_optimizer_of_another_model_is_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, optimizer=make_optimizer(("weight", "adapter")))
    with pytest.raises(TrainError, match="adapter"):
        checkpoint.restore(folder, make_optimizer())


def test_the_state_is_readable_by_people(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, state={"best_step": None})
    text = (folder / checkpoint.STATE).read_text()
    assert json.loads(text) == {"step": 3, "best_step": None}
    assert text.endswith("}\n")
