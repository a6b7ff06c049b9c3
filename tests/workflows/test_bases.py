"""Whole runs over 8-bit weights and from an adapter, and what is said where bitsandbytes cannot run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tunesmith.deploy import tuned
from tunesmith.deploy.merge import merge
from tunesmith.errors import ModelError, RecipeError, RunError
from tunesmith.evaluation.verdict import STARTED_FROM
from tunesmith.evaluation.wording import sentence
from tunesmith.planning import memory
from tunesmith.recipe.file import dump, read_recipe
from tunesmith.recipe.settings import Recipe
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.training import setup
from tunesmith.training.loop import Step
from tunesmith.training.references import References
from tunesmith.training.trainer import Trainer
from tunesmith.workflows.evaluate import evaluate
from tunesmith.workflows.finetune import dry_run, train

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs pip install 'tunesmith[8bit]'")

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink"]


def recipe_in(folder: Path, model: Path) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    rows = [{"prompt": f"Name the colour. {WORDS[n % 7]} thing {n}", "completion": WORDS[n % 7]} for n in range(28)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(model),
        "data": {"train": str(path), "eval": 0.25},
        "method": {"name": "lora", "r": 4, "lora_alpha": 8},
        "training": {
            "learning_rate": 1e-2, "max_steps": 4, "batch_size": 8, "micro_batch_tokens": 160, "eval_steps": 2,
            "save_steps": 2, "report_to": "none", "threads": 1,
        },
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(folder / "run"),
    }  # fmt: skip


@pytest.fixture
def values(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    return recipe_in(tmp_path, tiny_model_dir)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A run to continue."""
    return train(recipe_in(tmp_path_factory.mktemp("first"), tiny_model_dir)).run


def final_bytes(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Run(run).checkpoints[-1].iterdir())}


def stopped_and_resumed(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is interrupted right before the validation of its last step, behind a checkpoint."""
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        if step.number >= 4:
            raise KeyboardInterrupt
        original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "on_eval", on_eval)
        with pytest.raises(KeyboardInterrupt):
            train(values)
    assert [path.name for path in Run(values["output_dir"]).checkpoints] == ["step-000002"]
    return train(values, resume=True).run


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say


EIGHT = {"name": "lora", "r": 4, "load_in_8bit": True}


def test_a_run_over_8_bit_weights_is_whole(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train({**values, "method": EIGHT, "output_dir": str(tmp_path / "whole")})
    resumed = stopped_and_resumed({**values, "method": EIGHT}, monkeypatch)
    assert final_bytes(resumed) == final_bytes(whole.run)
    loss = whole.metrics["loss"]
    assert loss["tuned"] < loss["base"] and whole.verdict["base_model"] == "untuned, unquantized"
    again = evaluate(whole.run)
    assert again["base_model"] == "untuned, unquantized"
    assert again["metrics"]["loss"]["base"] == pytest.approx(loss["base"], rel=1e-6)
    assert again["metrics"]["loss"]["tuned"] == pytest.approx(loss["tuned"], rel=1e-6)
    running = tuned.load(whole.run)
    assert {str(own.dtype) for own in running.model.parameters()} == {"torch.int8", "torch.float32"}
    merged = merge(whole.run, tmp_path / "plain")
    assert merged.onto == "dequantized"
    assert merged.candidates["dequantized"].relative < 1e-5 < merged.candidates["unquantized"].relative
    plain = tuned.load(merged.folder)
    assert (
        plain.generate("red thing", max_new_tokens=6)[0].text == running.generate("red thing", max_new_tokens=6)[0].text
    )
    assert '"load_in_8bit": true' in (tmp_path / "plain" / "README.md").read_text()


def test_both_layouts_compute_the_same_loss_over_8_bit_weights(values: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for layout in ("tree", "padded"):
        training = {**values["training"], "layout": layout}
        run = train({**values, "method": EIGHT, "training": training, "output_dir": str(tmp_path / layout)}).run
        lines = Run(run).read_lines("metrics.jsonl")
        found.append([line["eval_loss"] for line in lines if "eval_loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-5) and len(found[0]) >= 2


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "lora", "llm_int8_threshold": 6.0}, "llm_int8_threshold has no effect without load_in_8bit: true"),
        ({"name": "lora", "llm_int8_skip_modules": ["q_proj"]}, "llm_int8_skip_modules has no effect without"),
        ({"name": "lora", "load_in_8bit": True, "llm_int8_threshold": 4.0}, "activations are not rounded"),
        ({"name": "qlora", "load_in_8bit": True}, "is a setting of lora; the method here is qlora"),
        ({"name": "full", "adapter_name_or_path": "x"}, "is a setting of lora and qlora"),
        ({"name": "lora", "adapter_sha256": "0" * 64}, "give that too"),
        (
            {"name": "lora", "adapter_name_or_path": "x", "init_lora_weights": "gaussian"},
            "init_lora_weights has no effect",
        ),
    ],
)
def test_settings_that_would_be_ignored_are_refused(values: dict[str, Any], method: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe({**values, "method": method})


@pytest.mark.parametrize(
    "method", [EIGHT, {**EIGHT, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": ["q_proj"]}, {"name": "lora"}]
)
def test_a_written_recipe_reads_back(values: dict[str, Any], tmp_path: Path, method: Any) -> None:
    recipe = read_recipe({**values, "method": method}).recipe
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert read_recipe(tmp_path / "recipe.yaml").recipe == recipe


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_a_run_goes_on_from_another_and_is_judged_against_it(
    values: dict[str, Any], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = {**values, "method": {"name": name, "adapter_name_or_path": str(first)}}
    heard = Heard()
    whole = train({**asked, "output_dir": str(tmp_path / "whole")}, listener=heard)
    came_to = Run(first).checkpoints[-1]
    assert any(
        line.startswith(f"continuing from {came_to}: r 4, lora_alpha 8, target_modules all-linear")
        for line in heard.lines
    )
    stored = read_recipe(whole.run / "recipe.yaml").recipe.method
    assert (stored.r, stored.lora_alpha, stored.target_modules) == (4, 8, "all-linear")  # pyright: ignore[reportAttributeAccessIssue]
    assert stored.adapter_name_or_path == str(came_to)  # pyright: ignore[reportAttributeAccessIssue]
    kept = (whole.run / "start" / "adapter_model.safetensors").read_bytes()
    assert kept == (came_to / "adapter_model.safetensors").read_bytes()
    resumed = stopped_and_resumed(asked, monkeypatch)
    assert final_bytes(resumed) == final_bytes(whole.run)
    assert whole.verdict["base_model"] == STARTED_FROM
    assert STARTED_FROM in sentence(whole.verdict)  # pyright: ignore[reportArgumentType]
    if name == "lora":  # over the same weights, what it is judged against is what the first run came to
        first_loss = json.loads((first / "verdict.json").read_text())["metrics"]["loss"]["tuned"]
        assert whole.metrics["loss"]["base"] == pytest.approx(first_loss, rel=1e-5)
    assert whole.metrics["loss"]["tuned"] < whole.metrics["loss"]["base"]


def test_a_run_does_not_need_the_adapter_it_went_on_from(
    values: dict[str, Any], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(Run(first).checkpoints[-1], folder)
    asked = {**values, "method": {"name": "lora", "adapter_name_or_path": str(folder)}}
    expected = train({**asked, "output_dir": str(tmp_path / "whole")})
    original = Trainer.on_eval

    def on_eval(self: Trainer, step: Step) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        original(self, step)

    monkeypatch.setattr(Trainer, "on_eval", on_eval)
    resumed = stopped_and_resumed(asked, monkeypatch)
    assert not folder.exists()
    assert final_bytes(resumed) == final_bytes(expected.run)
    again = evaluate(resumed)
    assert again["base_model"] == STARTED_FROM
    for side in ("base", "tuned"):
        assert again["metrics"]["loss"][side] == pytest.approx(expected.metrics["loss"][side], rel=1e-6)
    merged = merge(resumed, tmp_path / "plain")
    assert merged.candidates["base"].relative < 1e-5
    card = (tmp_path / "plain" / "README.md").read_text()
    assert '"adapter_name_or_path": "adapter"' in card and str(tmp_path) not in card


def test_preference_tuning_refers_to_the_adapter_it_went_on_from(
    values: dict[str, Any], first: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"Name the colour. {WORDS[n % 7]} thing {n}", "chosen": WORDS[n % 7], "rejected": WORDS[(n + 1) % 7]}
        for n in range(12)
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = {**values, "data": {"train": str(pairs), "eval": 0.25}, "objective": "dpo"}
    going_on = train({**asked, "method": {"name": "lora", "adapter_name_or_path": str(first)}})
    fresh = train({**asked, "output_dir": str(tmp_path / "fresh")})
    merged = merge(first, tmp_path / "plain")
    tokenizer_and_weights = str(merged.folder)
    onto = train({**asked, "model": tokenizer_and_weights, "output_dir": str(tmp_path / "onto")})
    measured = [References.load(each.run / "reference.npz").train for each in (going_on, fresh, onto)]
    assert measured[0] == pytest.approx(measured[2], rel=1e-4, nan_ok=True), "as after merging the first run's adapter"
    assert measured[0] != pytest.approx(measured[1], rel=1e-2, nan_ok=True)
    loss = [line["loss"] for line in Run(going_on.run).read_lines("metrics.jsonl") if "loss" in line]
    assert loss


def test_a_contradiction_is_refused_before_any_row_is_read(
    values: dict[str, Any], first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(*_: Any, **__: Any) -> None:
        raise AssertionError("rows were read")

    monkeypatch.setattr(setup, "survey_rows", reads)
    method = {"name": "lora", "adapter_name_or_path": str(first), "r": 8}
    with pytest.raises(RecipeError, match=r"The recipe says 8, .*adapter_config\.json says 4"):
        train({**values, "method": method})
    with pytest.raises(ModelError, match="there is no model, file or folder"):
        train({**values, "method": {"name": "lora", "adapter_name_or_path": str(first / "none")}})
    assert not Path(values["output_dir"]).exists()


def test_the_run_that_is_gone_on_from_is_not_overwritten(values: dict[str, Any], first: Path) -> None:
    method = {"name": "lora", "adapter_name_or_path": str(first)}
    before = final_bytes(first)
    with pytest.raises(RunError, match="in the folder that would be overwritten"):
        train({**values, "method": method, "output_dir": str(first)}, overwrite=True)
    assert final_bytes(first) == before


def test_a_dry_run_shows_what_the_adapter_decides(values: dict[str, Any], first: Path) -> None:
    lines = {
        key: value
        for key, value, _ in dry_run({**values, "method": {"name": "lora", "adapter_name_or_path": str(first)}})
    }
    assert (lines["method.r"], lines["method.target_modules"]) == (4, "all-linear")
    assert len(lines["method.adapter_sha256"]) == 64


def test_the_beginning_is_counted_with_the_weights(values: dict[str, Any], first: Path) -> None:
    def shape(method: Any) -> Any:
        return setup.prepare_training(read_recipe({**values, "method": method}).recipe, Silent()).plan.shape

    plain = shape({"name": "lora", "r": 4})
    going_on = shape({"name": "lora", "adapter_name_or_path": str(first)})
    assert going_on.weights == plain.weights + plain.trained and going_on.trained == plain.trained
    over = shape({"name": "qlora", "adapter_name_or_path": str(first)})
    assert over.beside == 0 < shape({"name": "qlora", "r": 4}).beside
    state = load_file(Run(first).checkpoints[-1] / "adapter_model.safetensors")
    assert plain.trained == sum(own.numel() * 4 for own in state.values())


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def works(*_: Any, **__: Any) -> None:
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(setup, "survey_rows", works)
    monkeypatch.setattr(setup, "text_side", works)


def refusal(recipe: Recipe | dict[str, Any]) -> str:
    with pytest.raises(ModelError) as caught:
        train(recipe)
    return str(caught.value)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("method", ["qlora", EIGHT], ids=["qlora", "int8"])
def test_without_bitsandbytes_it_is_said_at_once_what_to_use_instead(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = refusal({**values, "method": method})
    name = "qlora" if method == "qlora" else "load_in_8bit"
    assert said.startswith(f"method: {name} needs bitsandbytes\n")
    total = f"{memory.total_memory('cpu') / 2**30:.1f} GB"
    assert f"use method: lora, which needs about 0.5 GB of the {total} of cpu" in said
    assert "load_in_8bit: true}, which runs here" not in said
    assert "What to do: pip install 'tunesmith[8bit]'; or use method: lora" in said
    assert not Path(values["output_dir"]).exists()


@pytest.mark.usefixtures("no_work")
def test_where_only_4_bits_do_not_run_8_bits_are_named_first(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", broken)
    said = refusal({**values, "method": "qlora"})
    assert "bitsandbytes does not run on cpu\n  no kernel for this device" in said
    assert "What to do: use method: {name: lora, load_in_8bit: true}, which runs here" in said


@pytest.mark.usefixtures("no_work")
def test_a_model_that_lora_cannot_hold_either_is_said_to_be_too_large(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(memory, "total_memory", lambda device: 2**28)
    said = refusal({**values, "method": "qlora"})
    assert "take a smaller model for method: lora, which does not fit into the 0.2 GB of cpu with this one" in said


@pytest.mark.usefixtures("no_work")
def test_where_no_config_is_at_hand_nothing_is_claimed_of_memory(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = refusal({**values, "model": "nobody/has-it", "method": "qlora"})
    assert "use method: lora; take a smaller model if that does not fit" in said and "GB" not in said
