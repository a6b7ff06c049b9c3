"""A merged folder is plain weights that answer as the tuned model does, or it is not there at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.conftest import build_tokenizer
from tests.tiny import config_for
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.cli.docs import JSON_KEYS
from tunesmith.deploy import plain_weights, tuned
from tunesmith.deploy.merge import Merged, merge
from tunesmith.deploy.plain_weights import TOLERANCES, Closeness
from tunesmith.errors import DataError, ExportError, ModelError
from tunesmith.methods.full import Full
from tunesmith.methods.lora import Lora
from tunesmith.methods.table import build
from tunesmith.planning import budget
from tunesmith.recipe.methods import LoraSettings
from tunesmith.runs.folder import Run
from tunesmith.runs.progress import Silent
from tunesmith.workflows.finetune import train

Train = Callable[..., Path]
PROMPT = "<|im_start|>user\nName the colour. red thing<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Train:
    """Trains a run of a method's settings on a tiny model, once for all tests."""
    made: dict[str, Path] = {}

    def run(model: Path = tiny_model_dir, evaluation: float = 0.25, dtype: str = "auto", **method: Any) -> Path:
        key = f"{model} {evaluation} {dtype} {method}"
        if key not in made:
            folder = tmp_path_factory.mktemp("merge")
            rows = [
                {"prompt": f"{word} thing {n}", "completion": word}
                for n in range(4)
                for word in ("red", "blue", "pink")
            ]
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            recipe = {
                "model": {"path": str(model), "dtype": dtype},
                "data": {"train": str(folder / "rows.jsonl"), "eval": evaluation},
                "method": method,
                "training": {
                    "learning_rate": 1e-2 if method["name"] in ("full", "freeze") else 5e-2,
                    "max_steps": 4,
                    "batch_size": 4,
                    "report_to": "none",
                    "threads": 1,
                    "save_steps": 2,
                },
                "evaluation": {"resamples": 100, "samples": 0},
                "output_dir": str(folder / "colours"),
            }
            made[key] = train(recipe).run
        return made[key]

    return run


@torch.no_grad()
def logits(model: nn.Module, text: str, tokenizer: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0].float()


def assert_answers_alike(run: Path, merged: Merged, *, tolerance: float) -> Any:
    """The folder, loaded by transformers alone, against the run, loaded by Tunesmith."""
    model = AutoModelForCausalLM.from_pretrained(merged.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    running = tuned.load(run)
    expected, found = (logits(each, PROMPT, tokenizer) for each in (running.model, model))
    assert (found - expected).norm() <= tolerance * expected.norm()
    return model


@pytest.mark.parametrize(
    "method",
    [
        {"name": "full"},
        {"name": "freeze", "trainable_layers": 1, "trainable_modules": ["norm"]},
        {"name": "freeze", "train_embeddings": True},
        {"name": "lora", "r": 4},
        {"name": "lora", "r": 4, "use_dora": True},
        {"name": "lora", "r": 4, "modules_to_save": ["lm_head"]},
        {"name": "lora", "r": 4, "modules_to_save": ["embed_tokens"]},
        {"name": "lora", "r": 4, "target_modules": ["q_proj", "lm_head"]},
    ],
    ids=str,
)
def test_a_merged_folder_answers_as_the_tuned_model_does(
    trained: Train, tmp_path: Path, method: dict[str, Any]
) -> None:
    run = trained(**method)
    merged = merge(run, tmp_path / "plain")
    model = assert_answers_alike(run, merged, tolerance=1e-4)
    assert merged.onto == "base" and list(merged.candidates) == ["base"]
    assert list(merged.to_json()) == list(JSON_KEYS["merge"])
    assert merged.written.relative <= merged.tolerance == TOLERANCES[torch.float32]
    assert merged.written.agreement == 1.0 and merged.rows.startswith("4 held-out rows, ")
    assert not any("lora" in name for name in model.state_dict())
    apart = bool({"lm_head", "embed_tokens"} & {*method.get("modules_to_save", []), *method.get("target_modules", [])})
    assert model.config.tie_word_embeddings is not apart, "what was tuned apart is not tied again"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is not apart


def test_the_weights_are_the_base_and_the_update(trained: Train, tmp_path: Path, tiny_model_dir: Path) -> None:
    run = trained(name="lora", r=4)
    merge(run, tmp_path / "plain")
    plain, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", tiny_model_dir))
    adapter = load_file(Run(run).checkpoints[-1] / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert plain.keys() == base.keys()
    assert torch.allclose(plain[f"{name}.weight"], base[f"{name}.weight"] + 32 / 4 * b @ a, atol=1e-6)
    assert torch.equal(plain["model.norm.weight"], base["model.norm.weight"])


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_qlora_keeps_the_closer_of_two_bases(trained: Train, tmp_path: Path, modules_to_save: list[str] | None) -> None:
    run = trained(name="qlora", r=4, modules_to_save=modules_to_save)
    merged = merge(run, tmp_path / "plain")
    assert_answers_alike(run, merged, tolerance=1e-4)
    assert merged.onto == "dequantized"
    assert merged.candidates["dequantized"].relative < 1e-4 < merged.candidates["unquantized"].relative
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def test_the_unquantized_base_is_kept_where_it_is_closer(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
) -> None:
    run = trained(name="qlora", r=4)
    measured = iter([Closeness(1e-5, 1e-5, 1.0, 9), Closeness(2e-5, 2e-5, 1.0, 9), Closeness(1e-5, 1e-5, 1.0, 9)])
    monkeypatch.setattr(plain_weights, "closeness", lambda *_: next(measured))
    said = Heard()
    merged = merge(run, tmp_path / "plain", listener=said)
    assert merged.onto == "unquantized"
    assert "kept: the adapter on the unquantized base" in "\n".join(said.lines)
    plain, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", tiny_model_dir))
    adapter = load_file(Run(run).checkpoints[-1] / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert torch.allclose(plain[f"{name}.weight"], base[f"{name}.weight"] + 8 * b @ a, atol=1e-6)
    assert "unquantized weights" in (tmp_path / "plain" / "README.md").read_text()


def test_an_unquantized_base_that_does_not_fit_is_left_out(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "unquantized_base_fits", lambda parameters, memory: False)
    said = Heard()
    merged = merge(trained(name="qlora", r=4), tmp_path / "plain", listener=said)
    assert list(merged.candidates) == ["dequantized"]
    assert any("only the dequantized one is tried" in line for line in said.lines)


def test_what_belongs_to_the_weights_stands_beside_them(trained: Train, tmp_path: Path, tiny_model_dir: Path) -> None:
    run = trained(name="lora", r=4)
    merged = merge(run, tmp_path / "plain")
    folder = Path(merged.folder)
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja",
        "README.md", plain_weights.MARK,
    }  # fmt: skip
    generation = [json.loads((each / "generation_config.json").read_text()) for each in (folder, tiny_model_dir)]
    assert generation[0] == generation[1]
    assert (folder / "chat_template.jinja").read_text() == Run(run).read_json("template.json")["templates"]["default"]
    record = json.loads((folder / plain_weights.MARK).read_text())
    assert record["written"] == merged.to_json()["written"] and record["verdict"]["step"] == 4
    card = (folder / "README.md").read_text()
    assert "from `step-000004` of the run `colours`" in card and "| loss (lower is better) |" in card
    assert f"logits differ by {merged.written.relative:.2g} of their spread" in card
    assert str(run.parent) not in card, "a card is published: it names no folder of this machine"
    assert not list(tmp_path.glob(".*")), "nothing hidden is left"


def test_the_merged_folder_is_a_model_that_tunesmith_loads(trained: Train, tmp_path: Path) -> None:
    run = trained(name="lora", r=4)
    merged = merge(run, tmp_path / "plain")
    plain, running = tuned.load(merged.folder), tuned.load(run)
    asked: dict[str, Any] = {"max_new_tokens": 8}
    assert plain.generate("red thing", **asked)[0].text == running.generate("red thing", **asked)[0].text
    assert plain.template.prompt_ids([]) == running.template.prompt_ids([])


def test_the_merged_folder_asks_as_training_did(tmp_path: Path, tiny_model_dir: Path) -> None:
    rows = [{"system": "Be brief.", "thing": f"red hat {n}", "colour": "red"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "columns": {"input": "thing", "output": "colour"}}
    values: dict[str, Any] = {
        "model": str(tiny_model_dir),
        "data": {**data, "eval": 0.25, "instruction": "Which colour is it?"},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 1, "batch_size": 4, "report_to": "none", "threads": 1},
        "evaluation": {"resamples": 100, "samples": 0},
        "output_dir": str(tmp_path / "run"),
    }
    run = train(values).run
    merge(run, tmp_path / "plain")
    plain, running = tuned.load(tmp_path / "plain"), tuned.load(run)
    assert plain.prompt_ids("red hat") == running.prompt_ids("red hat")
    assert plain.run_prompt().note() == running.run_prompt().note()
    mark = tmp_path / "plain" / plain_weights.MARK
    assert str(tmp_path / "rows.jsonl") not in json.dumps(json.loads(mark.read_text())["prompt"]), "it is published"
    record = json.loads(mark.read_text())
    mark.write_text(json.dumps({**record, "prompt": {"systems": 3}}))
    with pytest.raises(ModelError, match="the record of the merged model cannot be read"):
        tuned.load(tmp_path / "plain")
    mark.write_text(json.dumps({name: value for name, value in record.items() if name != "prompt"}))
    assert tuned.load(tmp_path / "plain").run_prompt().note() is None, "as merged by an earlier version"


def test_the_sum_is_rounded_once_where_the_run_computed_in_half_precision(
    trained: Train, tmp_path: Path, tiny_model_dir: Path
) -> None:
    run = trained(dtype="bfloat16", name="lora", r=4)
    merged = merge(run, tmp_path / "plain", dtype="float32")
    assert merged.tolerance == TOLERANCES[torch.bfloat16], "the tuned model itself computes in bfloat16"
    plain, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "plain", tiny_model_dir))
    adapter = load_file(Run(run).checkpoints[-1] / "adapter_model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert torch.allclose(plain[f"{name}.weight"], base[f"{name}.weight"] + 8 * b @ a, atol=1e-6)


def test_files_of_weights_are_no_larger_than_asked(trained: Train, tmp_path: Path) -> None:
    run = trained(name="lora", r=4)
    merged = merge(run, tmp_path / "plain", max_shard_size="150KB")
    files = sorted((tmp_path / "plain").glob("model-*.safetensors"))
    assert merged.files == len(files) >= 3
    assert all(file.stat().st_size <= 160_000 for file in files)
    assert_answers_alike(run, merged, tolerance=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_chosen_and_its_tolerance_said(trained: Train, tmp_path: Path, dtype: str) -> None:
    run = trained(name="lora", r=4)
    merged = merge(run, tmp_path / "plain", dtype=dtype)
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {getattr(torch, dtype)}  # noqa: SIM118
    assert merged.dtype == dtype and merged.tolerance == TOLERANCES[getattr(torch, dtype)]
    assert 1e-5 < merged.written.relative < merged.tolerance / 4
    assert merged.candidates["base"].relative < 1e-5, "measured before rounding"
    assert_answers_alike(run, merged, tolerance=merged.tolerance)


def test_by_default_the_weights_are_stored_as_the_base_is(trained: Train, tmp_path: Path, tiny_model_dir: Path) -> None:
    base = tmp_path / "half"
    cast("Any", AutoModelForCausalLM.from_pretrained(tiny_model_dir)).to(torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(base)
    run = trained(base, name="lora", r=4)
    assert cast("Any", tuned.load(run).model).get_base_model().dtype == torch.float32, (
        "as it is computed on this machine"
    )
    assert merge(run, tmp_path / "plain").dtype == "bfloat16"


def test_an_adapter_made_elsewhere_is_merged_too(tmp_path: Path, tiny_model_dir: Path) -> None:
    method = build(LoraSettings(r=4), base=tiny_model_dir)
    model = method.attach(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    method.save(method.state(model), tmp_path / "adapter")
    merged = merge(tmp_path / "adapter", tmp_path / "plain")
    assert merged.rows == "4 plain questions"
    assert_answers_alike(tmp_path / "adapter", merged, tolerance=1e-4)
    assert "were not judged" in (tmp_path / "plain" / "README.md").read_text()


def test_rows_can_be_given_and_a_run_without_its_data_is_merged_all_the_same(trained: Train, tmp_path: Path) -> None:
    run = trained(name="lora", r=8)
    rows = tmp_path / "other.jsonl"
    rows.write_text(json.dumps({"prompt": "green thing", "completion": "green"}) + "\n")
    assert merge(run, tmp_path / "given", data=str(rows)).rows.startswith(f"1 rows of {rows}")
    with pytest.raises(DataError):
        merge(run, tmp_path / "nothing", data=str(tmp_path / "none.jsonl"))
    (run.parent / "rows.jsonl").unlink()
    said = Heard()
    assert merge(run, tmp_path / "gone", listener=said).rows == "4 plain questions"
    assert any("rows cannot be read" in line for line in said.lines)


def test_training_rows_stand_in_where_none_were_held_out(trained: Train, tmp_path: Path) -> None:
    merged = merge(trained(evaluation=0.0, name="lora", r=4), tmp_path / "plain")
    assert merged.rows.startswith("12 training rows, as none were held out")
    assert "no evidence" in (tmp_path / "plain" / "README.md").read_text()


def test_an_earlier_checkpoint_says_that_the_verdict_is_not_its_own(trained: Train, tmp_path: Path) -> None:
    run = trained(name="lora", r=4)
    merged = merge(Run(run).checkpoints[0], tmp_path / "plain")
    assert merged.checkpoint.endswith("step-000002")
    assert "It is of step 4 of the run, not of the checkpoint" in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.parametrize(("kind", "method"), [(Lora, "lora"), (Full, "full")])
def test_a_merge_that_answers_otherwise_is_refused_and_leaves_nothing(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, method: str
) -> None:
    right = kind.merge

    def wrong(self: Any, model: nn.Module) -> Any:
        plain = right(self, model)
        with torch.no_grad():
            plain.model.layers[0].mlp.up_proj.weight *= 1.01
        return plain

    monkeypatch.setattr(kind, "merge", wrong)
    run = trained(name=method, r=4) if method == "lora" else trained(name=method)
    with pytest.raises(ExportError, match="the merged model does not answer as the tuned model does"):
        merge(run, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_damaged_on_the_way_to_disk_are_refused(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = plain_weights.write_weights

    def wrong(model: Any, folder: Path, **how: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight[3] = 7.0
        right(model, folder, **how)

    monkeypatch.setattr(plain_weights, "write_weights", wrong)
    with pytest.raises(ExportError, match="the model in float32 does not answer"):
        merge(trained(name="lora", r=4), tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_float16_that_overflows_is_refused(trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Lora.merge

    def large(self: Lora, model: nn.Module) -> Any:
        plain = right(self, model)
        with torch.no_grad():  # the same function: a scale moved from one matrix to the next
            plain.model.layers[0].mlp.up_proj.weight *= 1e8
            plain.model.layers[0].mlp.down_proj.weight /= 1e8
        return plain

    monkeypatch.setattr(Lora, "merge", large)
    run = trained(name="lora", r=4)
    assert merge(run, tmp_path / "whole").written.relative < 1e-4
    with pytest.raises(ExportError, match="the model in float16 does not answer"):
        merge(run, tmp_path / "half", dtype="float16")


def test_an_adapter_of_another_shape_is_refused(trained: Train, tmp_path: Path, tiny_model_dir: Path) -> None:
    run = trained(name="lora", r=4)
    other = tmp_path / "other"
    build_tokenizer_and_model(other)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((Run(run).checkpoints[-1] / name).read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match="does not fit this model"):
        merge(adapter, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def build_tokenizer_and_model(folder: Path) -> None:
    build_tokenizer(folder)
    AutoModelForCausalLM.from_config(config_for("llama", vocab_size=400)).save_pretrained(folder)


def test_a_plain_model_has_nothing_to_merge(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(ExportError, match="nothing to merge"):
        merge(tiny_model_dir, tmp_path / "plain")


def test_only_a_merged_model_is_overwritten_and_only_when_asked(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(name="lora", r=4)
    for taken, kept in ((tmp_path / "folder", "notes.txt"), (tmp_path, "folder")):
        taken.mkdir(exist_ok=True)
        (tmp_path / "folder" / "notes.txt").write_text("mine")
        with pytest.raises(ExportError, match="did not write"):
            merge(run, taken, overwrite=True)
        assert (taken / kept).exists()
    place = tmp_path / "plain"
    merge(run, place)
    before = (place / "model.safetensors").read_bytes()
    with pytest.raises(ExportError, match="already"):
        merge(run, place)
    monkeypatch.setattr(plain_weights, "refuse_far", fail)
    with pytest.raises(KeyboardInterrupt):
        merge(run, place, overwrite=True)
    assert (place / "model.safetensors").read_bytes() == before, "the old one stays until the new one is whole"
    monkeypatch.undo()
    for name in ("notes.py", "vocabulary.txt", "base/mine.txt", "more.safetensors"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("mine")
        with pytest.raises(ExportError, match=f"did not write(?s:.*){name.partition('/')[0]}"):
            merge(run, place, overwrite=True)
        (place / name).unlink()
    assert merge(run, place, overwrite=True, dtype="bfloat16").dtype == "bfloat16"
    mark = json.loads((place / plain_weights.MARK).read_text())
    assert {*mark["files"]} == {path.name for path in place.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plain"]


@pytest.mark.parametrize("out", [".", "", "..", "../inside"])
def test_the_folder_you_are_in_is_refused_before_any_work(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    run, inside = trained(name="lora", r=4), tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    monkeypatch.setattr("tunesmith.deploy.merge.load", fail)
    with pytest.raises(ExportError, match="the folder you are in") as caught:
        merge(run, out, overwrite=True)
    assert caught.value.remedy == "Name a new folder, such as --out merged."
    monkeypatch.undo()
    monkeypatch.chdir(inside)
    assert (Path(merge(run, "merged").folder) / "config.json").is_file()


def test_a_place_below_a_file_or_without_access_is_refused_before_any_work(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(name="lora", r=4)
    monkeypatch.setattr("tunesmith.deploy.merge.load", fail)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"notes\.txt is a file"):
        merge(run, tmp_path / "notes.txt" / "plain")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ExportError, match="takes no new files"):
        merge(run, tmp_path / "a" / "plain")


@pytest.mark.parametrize(("content", "found"), [("[]", "a JSON list"), ("3", "a JSON value"), ("{", "Expecting")])
def test_an_adapter_whose_configuration_is_no_object_is_refused(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match="the adapter's configuration cannot be read") as caught:
        merge(tmp_path, tmp_path / "plain")
    assert caught.value.where == str(tmp_path / "adapter_config.json")
    assert found in str(caught.value.why)


@pytest.mark.slow
def test_a_killed_merge_leaves_no_folder_and_the_next_one_clears_up(trained: Train, tmp_path: Path) -> None:
    run, place = trained(name="lora", r=4), tmp_path / "plain"
    program = (
        "import os, signal, sys\n"
        "from tunesmith.deploy import plain_weights\n"
        "from tunesmith.deploy.merge import merge\n"
        "def refuse_far(found, tolerance, *, what):\n"
        "    if 'float32' in what: os.kill(os.getpid(), 9)\n"
        "plain_weights.refuse_far = refuse_far\n"
        "merge(sys.argv[1], sys.argv[2])\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(run), str(place)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".plain.tunesmith-tmp"], (
        "hidden, and under no name that was asked for"
    )
    merge(run, place)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


@pytest.mark.parametrize("name", [".plain.tunesmith-old", ".plain.old"])
def test_a_kill_between_two_renames_loses_no_model(tmp_path: Path, name: str) -> None:
    aside, place = tmp_path / name, tmp_path / "plain"
    aside.mkdir()
    (aside / plain_weights.MARK).write_text("{}")
    with pytest.raises(ExportError, match="already"):
        plain_weights.check_free(place, overwrite=False)
    assert (place / plain_weights.MARK).exists() and not aside.exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_user_s_own_folders_beside_the_output_stay(tmp_path: Path, overwrite: bool) -> None:
    place = tmp_path / "plain"
    own = [tmp_path / f".plain.{end}" for end in ("old", "tmp", "del")]
    for folder in own:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    plain_weights.check_free(place, overwrite=overwrite)
    for _ in range(2):
        with plain_weights.merged_folder(place, 0, overwrite=True) as folder:
            (folder / plain_weights.MARK).write_text("{}")
    assert [(folder / "mine.txt").read_text() for folder in own] == ["mine"] * 3
    assert len([*tmp_path.iterdir()]) == 4


def test_a_merged_model_under_a_name_of_earlier_versions_is_not_removed(tmp_path: Path) -> None:
    aside, place = tmp_path / ".plain.old", tmp_path / "plain"
    aside.mkdir()
    (aside / plain_weights.MARK).write_text("{}")
    plain_weights.check_free(place, overwrite=True)
    with plain_weights.merged_folder(place, 0, overwrite=True) as folder:
        (folder / plain_weights.MARK).write_text("{}")
    assert (aside / plain_weights.MARK).is_file(), "the user may have moved it there"


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_comes_to_the_output_during_the_work_stays(tmp_path: Path, overwrite: bool) -> None:
    place = tmp_path / "plain"
    with (
        pytest.raises(ExportError, match="did not write"),
        plain_weights.merged_folder(place, 0, overwrite=overwrite) as folder,
    ):
        (folder / plain_weights.MARK).write_text("{}")
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["plain", "mine.txt"]


def test_a_link_that_leads_nowhere_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "plain").symlink_to(tmp_path / "missing")
    with pytest.raises(ExportError, match="link to a folder that is not there"):
        plain_weights.check_free(tmp_path / "plain", overwrite=True)


def fail(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_and_wrong_values_are_refused_before_any_work(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(name="lora", r=4)
    with pytest.raises(ExportError, match="not the size of a file"):
        merge(run, tmp_path / "plain", max_shard_size="large")
    with pytest.raises(ExportError, match="no dtype"):
        merge(run, tmp_path / "plain", dtype="int4")
    monkeypatch.setattr("tunesmith.runs.disk.free_at", lambda _: 1000)
    with pytest.raises(ExportError, match="no room"):
        merge(run, tmp_path / "a" / "b" / "plain")
    assert not list(tmp_path.iterdir())


def test_a_mixture_of_experts_is_written_as_its_family_names_weights(trained: Train, tmp_path: Path) -> None:
    base = tmp_path / "experts"
    build_tokenizer(base)
    config = config_for(
        "mixtral", vocab_size=400, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    run = trained(base, name="lora", r=2)
    merged = merge(run, tmp_path / "plain")
    assert_answers_alike(run, merged, tolerance=1e-4)
    names = [set(load_file(folder / "model.safetensors")) for folder in (base, tmp_path / "plain")]
    assert names[0] == names[1]


def test_closeness_is_what_it_says() -> None:
    class Fixed(nn.Module):
        def __init__(self, values: list[list[float]]) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.tensor([values]))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"logits": self.values})

    one, other = Fixed([[1.0, -1.0], [3.0, 1.0]]), Fixed([[1.5, -1.5], [3.0, 4.0]])
    reference = list(plain_weights.logits_of(one, [[5, 6]]))
    found = plain_weights.closeness(reference, other, [[5, 6]])
    # about their means: [1, -1], [1, -1] before; [0.5, -0.5], [-1.5, 1.5] is what is added
    assert found.relative == pytest.approx(((0.5 + 4.5) / 4) ** 0.5)
    assert (found.largest, found.agreement, found.positions) == (3.0, 0.5, 2)
    shifted = Fixed([[6.0, 4.0], [3.0, 1.0]])
    assert plain_weights.closeness(reference, shifted, [[5, 6]]).relative == 0, "a shift of all logits is no difference"
    broken = Fixed([[float("nan"), 0.0], [3.0, 1.0]])
    assert plain_weights.closeness(reference, broken, [[5, 6]]).relative == float("inf")


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say
