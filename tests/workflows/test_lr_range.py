"""The learning-rate range test on a tiny random model: the steps of training, a growing rate, and no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import tunesmith
from tunesmith.errors import RecipeError, RunError, TrainError
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.runs.folder import Run
from tunesmith.runs.outputs import wrote
from tunesmith.runs.progress import Silent
from tunesmith.runs.rate_curve import Point, rate_curve
from tunesmith.training.guard import Guard
from tunesmith.training.setup import prepare_training
from tunesmith.workflows import lr_range as range_test
from tunesmith.workflows.finetune import train
from tunesmith.workflows.lr_range import lr_range, result_folder

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    rows = [
        {"instruction": "Name the colour.", "input": f"{WORDS[n % 7]} thing {n}", "output": WORDS[n % 7]}
        for n in range(44)
    ]
    return {
        "model": str(tiny_model_dir),
        "data": {"train": write(tmp_path / "rows.jsonl", rows), "eval": 0.25},
        "method": {"name": "lora", "r": 4},
        "training": {"num_train_epochs": 2.0, "batch_size": 8, "report_to": "none", "threads": 1, "logging_steps": 1},
        "evaluation": {"max_new_tokens": 4, "resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }


def preferences(values: dict[str, Any], tmp_path: Path, objective: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for n in range(24):
        row = {"prompt": f"May I have the {WORDS[n % 7]} thing {n}?"}
        if objective == "kto":
            rows.append({**row, "completion": "nay" if n % 2 else "yes", "label": not n % 2})
        else:
            rows.append({**row, "chosen": "yes", "rejected": "nay"})
    data = {"train": write(tmp_path / f"{objective}.jsonl", rows), "eval": 0.25}
    return {**values, "data": data, "objective": objective}


def with_training(values: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {**values, "training": {**values["training"], **training}}


def stored(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "lr-range.json").read_text())
    found.pop("seconds")
    return found


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in Run(run).read_lines("metrics.jsonl") if "loss" in line]


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_with_sgd_the_loss_falls_then_diverges_and_the_suggestion_trains(values: dict[str, Any]) -> None:
    asked = with_training({**values, "method": "full"}, optim="sgd")
    found = lr_range(asked, lr_min=1e-3, lr_max=1e3, steps=60)
    curve = found.curve
    assert curve.steepest_rate is not None and found.suggestion is not None
    assert curve.points[0].loss == pytest.approx(6.0, abs=0.5), "that of an untuned model of 400 tokens"
    assert min(curve.smoothed) < 0.7 * curve.points[0].loss
    assert 1e-3 < found.suggestion == pytest.approx(curve.steepest_rate / 10, rel=0.06)
    assert found.line == f"training.learning_rate={found.suggestion:.1e}".replace("e-0", "e-").replace("e+0", "e")

    def trained(rate: float, name: str) -> float:
        recipe = with_training(asked, optim="sgd", learning_rate=rate, lr_scheduler_type="constant")
        return losses(train({**recipe, "output_dir": f"{values['output_dir']}-{name}"}).run)[-1]

    suggested = trained(found.suggestion, "suggested")
    assert suggested < trained(found.suggestion / 100, "low") < curve.points[0].loss
    assert suggested < trained(1e3 * curve.steepest_rate, "high")


def test_its_steps_are_those_of_training(values: dict[str, Any]) -> None:
    """At a rate that hardly grows the losses are those of training at that rate, to the last digits."""
    rate = 1e-2
    values = {**values, "method": {"name": "lora", "r": 4, "lora_dropout": 0.1}}
    found = lr_range(values, lr_min=rate, lr_max=rate * (1 + 1e-9), steps=10)
    recipe = with_training(values, learning_rate=rate, lr_scheduler_type="constant")
    wanted = losses(train(recipe).run)
    assert len(wanted) == 10
    assert [point.loss for point in found.curve.points] == pytest.approx(wanted, rel=1e-6)
    assert found.curve.points[0].loss == wanted[0]


def test_the_training_after_it_is_the_same_to_the_byte(values: dict[str, Any]) -> None:
    def weights(run: Path) -> dict[str, bytes]:
        return all_bytes(Run(run).checkpoints[-1])

    run = train(values).run
    before, files = weights(run), all_bytes(run)
    lr_range(values, steps=10)
    assert all_bytes(run) == files, "a run that is in the folder stays as it is"
    other = {**values, "output_dir": f"{values['output_dir']}-2"}
    result = lr_range(other, steps=12)
    assert not Path(other["output_dir"]).exists(), "the run folder is left free"
    assert result.folder == Path(f"{other['output_dir']}-lr-range")
    assert weights(train(other).run) == before


def test_twice_the_same_gives_the_same_bytes_but_for_the_seconds(values: dict[str, Any]) -> None:
    first = lr_range(values, steps=12)
    json_of, picture = stored(first.folder), (first.folder / "lr-range.svg").read_bytes()
    again = lr_range(values, steps=12)
    assert sorted(path.name for path in again.folder.iterdir()) == ["lr-range.json", "lr-range.svg"]
    assert (stored(again.folder), (again.folder / "lr-range.svg").read_bytes()) == (json_of, picture)
    assert {**json_of, "seconds": first.seconds} == json.loads(json.dumps(first.to_json()))


@pytest.mark.parametrize(
    ("method", "objective"),
    [*((name, "sft") for name in METHOD_SETTINGS), ("full", "dpo"), ("lora", "dpo"), ("lora", "orpo"), ("lora", "kto")],
)
def test_it_knows_every_method_and_objective(
    values: dict[str, Any], tmp_path: Path, method: str, objective: str
) -> None:
    asked = values if objective == "sft" else preferences(values, tmp_path, objective)
    found = lr_range({**asked, "method": method}, steps=10)
    assert (found.settings["method"], found.settings["objective"]) == (method, objective)
    rates = [point.learning_rate for point in found.curve.points]
    assert len(rates) == 10 and rates[0] == found.settings["lr_min"]
    assert found.passes > 1


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 60), (3, 36), (16, 20)])
def test_few_rows_get_fewer_steps(values: dict[str, Any], batch_size: int, steps: int) -> None:
    prepared = prepare_training(read_recipe(with_training(values, batch_size=batch_size)).recipe, Silent())
    rows = len(prepared.corpus.train)
    assert range_test._steps(prepared) == min(60, max(20, 3 * -(-rows // batch_size))) == steps


def test_a_loss_that_is_not_finite_is_a_finding_and_at_the_first_step_a_fault(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_training({**values, "method": "full"}, optim="sgd", max_grad_norm=0.0)
    found = lr_range(asked, lr_min=1e-2, lr_max=1e30, steps=20)
    assert found.curve.ended == "not finite"
    assert len(found.curve.points) < 20
    asks = Guard.reason_to_skip
    monkeypatch.setattr(Guard, "reason_to_skip", lambda self, step, loss, *rest: asks(self, step, float("nan"), *rest))
    with pytest.raises(TrainError, match="loss of step 1 is not finite"):
        lr_range(asked, steps=10)


def test_a_diverging_loss_ends_the_test(values: dict[str, Any]) -> None:
    asked = with_training({**values, "method": "full"}, optim="sgd")
    found = lr_range(asked, lr_min=1e-1, lr_max=1e9, steps=40)
    assert found.curve.ended == "diverged" and len(found.curve.points) < 40
    assert stored(found.folder)["ended"] == "diverged"


def test_the_picture_has_both_curves_and_a_line_for_each_rate_that_is_read_from_it(values: dict[str, Any]) -> None:
    asked = with_training({**values, "method": "full"}, optim="sgd")
    found = lr_range(asked, lr_min=1e-3, lr_max=1e3, steps=45)
    picture = ElementTree.fromstring((found.folder / "lr-range.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    curves = list(picture.iter(f"{space}polyline"))
    assert [len(curve.attrib["points"].split()) for curve in curves] == [len(found.curve.points)] * 2
    marks = [line for line in picture.iter(f"{space}line") if line.get("class") == "mark"]
    titles = [next(iter(mark)).text for mark in marks]
    assert [str(title).rpartition(" ")[0] for title in titles] == ["falls fastest", "suggested"]
    across = [float(point.split(",")[0]) for point in curves[1].attrib["points"].split()]
    assert float(marks[0].attrib["x1"]) == pytest.approx(across[found.curve.steepest or 0], abs=0.2)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"lr_min": 1e-2, "lr_max": 1e-3}, "Found 0.01 and 0.001"),
        ({"lr_min": 0.0}, "left out, they are 1e-06 and 0.1"),
        ({"lr_max": float("inf")}, "Found 1e-06 and inf"),
        ({"steps": 9}, "Found 9"),
    ],
)
def test_what_cannot_be_tested_is_refused_before_anything_is_read(
    values: dict[str, Any], bounds: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        lr_range({**values, "model": "nowhere"}, **bounds)
    assert not result_folder(read_recipe(values).recipe).exists()


def test_a_place_that_cannot_be_written_to_is_said_before_the_steps(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    result_folder(read_recipe(values).recipe).write_text("a file")
    monkeypatch.setattr(range_test, "train_steps", lambda *arguments, **named: pytest.fail("it trained"))
    with pytest.raises(RunError, match="cannot write its result"):
        lr_range(values, steps=10)


def test_the_result_stands_beside_the_run(values: dict[str, Any], tmp_path: Path) -> None:
    def beside(output_dir: str) -> Path:
        return result_folder(read_recipe({**values, "output_dir": output_dir}).recipe)

    assert beside("runs/a") == Path("runs/a-lr-range") == beside("runs/a/")
    assert beside(".").is_absolute() and beside(".").name == f"{Path.cwd().name}-lr-range"
    assert beside(".").parent == Path.cwd().parent


def earlier_result(folder: Path) -> tuple[Path, Path]:
    """As a version wrote it that noted no files."""
    points = [Point(step, 1e-5 * 1.5**step, abs(step - 20) + 0.123, 1.0) for step in range(1, 31)]
    curve = rate_curve(points, steps=30, ended=None)
    settings = {"schema": 2, "method": "lora", "optim": "adamw", "steps": 30}
    folder.mkdir()
    (folder / "lr-range.json").write_text(range_test._text({**settings, **curve.to_json(), "seconds": 1.5}))
    (folder / "lr-range.svg").write_text(range_test._picture(curve, settings))
    return folder / "lr-range.json", folder / "lr-range.svg"


def test_the_result_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    files = earlier_result(tmp_path / "run-lr-range")
    assert not any(map(wrote, files))
    range_test._check_files(tmp_path / "run-lr-range")
    assert all(map(wrote, files))


@pytest.mark.parametrize("name", ["lr-range.json", "lr-range.svg"])
def test_a_result_that_the_user_changed_stays(values: dict[str, Any], name: str) -> None:
    folder = result_folder(read_recipe(values).recipe)
    earlier_result(folder)
    text = (folder / name).read_text().replace("0.123", "0.124").replace("<svg", "<!-- mine --><svg")
    (folder / name).write_text(text)
    with pytest.raises(RunError, match="not known to be written by Tunesmith") as caught:
        lr_range(values, steps=10)
    assert (folder / name).read_text() == text
    assert caught.value.where == str(folder / name)
    for each in ("lr-range.json", "lr-range.svg"):
        (folder / each).unlink(missing_ok=True)
    range_test._check_files(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "mine", '{"points": [{}]}', '{"points": [], "steps": 3, "ended": 1}']
)
def test_a_file_of_the_user_s_with_the_name_of_a_result_stays(tmp_path: Path, content: str) -> None:
    (tmp_path / "lr-range.json").write_text(content)
    with pytest.raises(RunError, match="not known to be written by Tunesmith"):
        range_test._check_files(tmp_path)


def test_it_is_public() -> None:
    assert tunesmith.lr_range is lr_range
    assert "lr_range" in tunesmith.__all__
