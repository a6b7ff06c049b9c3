from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError, RecipeError
from tunesmith.planning.advice import learning_rate
from tunesmith.planning.devices import Device
from tunesmith.recipe.file import read_recipe
from tunesmith.recipe.methods import METHOD_SETTINGS
from tunesmith.recipe.settings import Recipe
from tunesmith.workflows import first_rows
from tunesmith.workflows.finetune import train
from tunesmith.workflows.first_recipe import Starter, name_of_run, starter_recipe

LAPTOP = Device("cpu", "cpu", 16 << 30, cpus=4)
WORKSTATION = Device("A GPU", "cuda", 24 << 30, cpus=16)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def pairs(answers: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": f"question {number}", "completion": answer} for number, answer in enumerate(answers)]


def written(starter: Starter) -> Recipe:
    Path("recipe.yaml").write_text(starter.text, encoding="utf-8")
    return read_recipe("recipe.yaml", []).recipe


def test_the_recipe_is_accepted_lora_first_and_says_why() -> None:
    starter = starter_recipe(write(pairs(["yes", "no"] * 100)), device=LAPTOP)
    recipe = written(starter)
    assert (recipe.model.path, recipe.method.name, recipe.output_dir) == ("smollm2-135m-instruct", "lora", "runs/rows")
    assert recipe.evaluation.metrics == ["accuracy", "macro_f1"]
    assert "# Machine: 4 CPUs, 16 GB of memory, no GPU" in starter.text
    assert "# the answers are labels: 2 different ones, of at most 3 characters" in starter.text
    assert max(map(len, starter.text.splitlines())) <= 130


def test_answers_that_are_json_objects_are_judged_as_json() -> None:
    rows = pairs([json.dumps({"number": number}) for number in range(60)])
    assert written(starter_recipe(write(rows), device=LAPTOP)).evaluation.metrics == [
        "json_exact",
        "json_fields",
        "json_valid",
    ]


def test_answers_that_are_json_lists_are_judged_value_by_value() -> None:
    rows = pairs([json.dumps([number, {"a": number}] if number % 2 else {"a": number}) for number in range(60)])
    expected = ["json_exact", "json_field_f1", "json_valid"]
    assert written(starter_recipe(write(rows), device=LAPTOP)).evaluation.metrics == expected


def test_labels_are_judged_by_exact_match_where_scikit_learn_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(first_rows, "find_spec", lambda name: None)
    starter = starter_recipe(write(pairs(["yes", "no"] * 100)), device=LAPTOP)
    assert written(starter).evaluation.metrics == ["exact_match"]
    assert "figures by label: pip install 'tunesmith[metrics]'" in starter.text


def test_free_text_is_judged_by_loss() -> None:
    rows = pairs([f"an answer of its own, number {number}" for number in range(60)])
    recipe = written(starter_recipe(write(rows), device=LAPTOP))
    assert recipe.evaluation.metrics == []
    assert recipe.evaluation.max_new_tokens == 32


def test_answers_in_scripts_of_more_bytes_get_more_tokens() -> None:
    rows = pairs([f"発票番号は{number}番です、支払期限は来月の末日です。" for number in range(60)])
    assert written(starter_recipe(write(rows), device=LAPTOP)).evaluation.max_new_tokens == 64


def test_raw_text_is_judged_by_loss_and_generates_nothing() -> None:
    starter = starter_recipe(write([{"text": f"document {number}"} for number in range(60)]), device=LAPTOP)
    assert written(starter).evaluation.metrics == []
    assert "raw text has no answers" in starter.text
    assert "max_new_tokens" not in starter.text


def test_columns_instruction_and_format_are_written_so_that_they_read_back() -> None:
    path = write([{"my text: #1": f"t {number}", "yes": "a"} for number in range(40)], "a folder/my rows #1.jsonl")
    columns = {"input": "my text: #1", "output": "yes"}
    instruction = 'Say "yes"\nor: no # never\\mind\x85 é'
    starter = starter_recipe(path, format="alpaca", columns=columns, instruction=instruction, device=LAPTOP)
    recipe = written(starter)
    assert recipe.data.train[0].path == path
    assert (recipe.data.columns, recipe.data.instruction, recipe.data.format) == (columns, instruction, "alpaca")
    assert recipe.output_dir == "runs/my-rows-1"


def test_a_path_that_yaml_would_read_as_something_else_is_quoted() -> None:
    Path("12").mkdir()
    Path("12/config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    for name in ("true", "null", "12", "1e5.jsonl", "~x.jsonl", "2024-01-01.jsonl", "- a.jsonl", "a: b.jsonl"):
        path = write(pairs(["a", "b"] * 20), f"{name}/rows.jsonl" if "." not in name else name)
        text = starter_recipe(path, model="12", device=LAPTOP).text
        Path("recipe.yaml").write_text(text, encoding="utf-8")
        recipe = read_recipe("recipe.yaml", []).recipe
        assert (recipe.data.train[0].path, recipe.model.path) == (path, "12")


def test_a_share_holds_out_enough_rows_to_judge_on() -> None:
    few = written(starter_recipe(write(pairs(["a", "b"] * 40)), device=LAPTOP))
    many = written(starter_recipe(write(pairs(["a", "b"] * 400)), device=LAPTOP))
    assert (few.data.eval, many.data.eval) == (0.3, 0.1)


@pytest.mark.parametrize("name", ["faq.xlsx", "faq.ods", "faq.XLSX", "faq.csv.gz"])
def test_a_run_is_called_after_its_data_without_the_ending(name: str) -> None:
    assert name_of_run(name) == "faq"


def test_one_row_holds_nothing_out_and_is_still_accepted() -> None:
    starter = starter_recipe(write(pairs(["a"])), device=LAPTOP)
    recipe = written(starter)
    assert recipe.data.eval == 0
    assert recipe.evaluation.metrics == [] and starter.metrics == ()
    assert "no verdict" in starter.text


def test_a_folder_with_a_test_split_holds_that_out() -> None:
    write(pairs(["yes", "no"] * 20), "tickets/train.jsonl")
    write([{"prompt": "p", "completion": "a long answer that is no label of ours " * 5}], "tickets/test.jsonl")
    starter = starter_recipe("tickets", device=LAPTOP)
    recipe = written(starter)
    assert recipe.data.eval is None
    assert "split test (1 row) is held out" in starter.text
    assert recipe.evaluation.metrics == [], "the held-out answers count too"
    assert recipe.output_dir == "runs/tickets"


def test_a_run_on_train_csv_is_called_after_its_folder() -> None:
    path = write(pairs(["a", "b"] * 20), "bank/train.jsonl")
    assert starter_recipe(path, device=LAPTOP).output_dir == "runs/bank"


def test_long_rows_get_room() -> None:
    recipe = written(starter_recipe(write(pairs(["word " * 4000, "b"] * 20)), device=LAPTOP))
    assert recipe.data.max_length == 8192


def test_steps_and_batches_follow_the_number_of_rows() -> None:
    def training(count: int) -> tuple[int, float, int, int]:
        found = written(starter_recipe(write(pairs(["a", "b"] * (count // 2))), device=LAPTOP)).training
        return found.batch_size, found.num_train_epochs, found.eval_steps, found.save_steps

    assert training(60)[:2] == (4, 5)
    assert training(800)[:2] == (8, 3)
    batch_size, _, eval_steps, save_steps = training(4000)
    assert batch_size == 16 and eval_steps == save_steps > 100


def test_a_gpu_makes_room_for_a_larger_model_and_for_every_row() -> None:
    data = write(pairs(["a", "b"] * 2000))
    laptop, workstation = (starter_recipe(data, device=device) for device in (LAPTOP, WORKSTATION))
    assert written(laptop).evaluation.max_rows == 200
    assert written(workstation).evaluation.max_rows is None
    assert "room for about 6B parameters" in workstation.text
    assert "# Machine: 16 CPUs, A GPU (24 GB)" in workstation.text


def test_bad_rows_are_counted_and_said() -> None:
    starter = starter_recipe(write([*pairs(["a", "b"] * 20), {"prompt": "p"}]), device=LAPTOP)
    assert (starter.rows, starter.bad) == (40, 1)
    assert "1 row cannot be used" in starter.text


def test_rows_that_their_file_marks_as_not_to_be_used_are_no_bad_rows() -> None:
    rows = [
        {"text": f"text {number}", "label": "a" if number % 2 else "b", "answer": answer, "_task_hash": number}
        for number, answer in enumerate(["accept", "accept", "reject"] * 14)
    ]
    starter = starter_recipe(write(rows), device=LAPTOP)
    assert (starter.rows, starter.bad) == (28, 0)
    assert "on_error" not in starter.text


SHAPED: dict[str, list[dict[str, Any]]] = {
    "prompt_completion": pairs(["yes", "no", "maybe"] * 8),
    "text": [{"text": f"document {number}, of some words"} for number in range(24)],
    "preference": [{"prompt": f"q {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(24)],
    "unpaired_preference": [{"prompt": f"q {n}", "completion": f"a {n}", "label": n % 2 == 0} for n in range(24)],
}
TOO_LARGE = Device("cpu", "cpu", 1 << 30, cpus=4)


def llama(folder: str, **sizes: int) -> str:
    """A folder with a config alone: of 8.03B parameters unless it is said otherwise."""
    config = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, **sizes,
    }  # fmt: skip
    Path(folder).mkdir()
    (Path(folder) / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("method", METHOD_SETTINGS)
@pytest.mark.parametrize("shape", SHAPED)
def test_every_shape_method_and_size_is_read_back_as_advised(shape: Any, method: str) -> None:
    for size in ("-500M", "-8B", "-70B", ""):
        check_read_back(
            starter_recipe(
                write(SHAPED[shape]), model=f"maker/model{size}", method=method, device=LAPTOP, format=shape
            ),
            shape,
        )


def check_read_back(starter: Starter, shape: str) -> None:
    recipe = written(starter)
    objective = {"preference": "dpo", "unpaired_preference": "kto"}.get(shape, "sft")
    assert (recipe.method.name, recipe.objective.name) == (starter.method, objective)
    assert recipe.learning_rate == pytest.approx(
        learning_rate(starter.method, objective, starter.parameters).value, rel=1e-12
    )
    for key, choice in starter.choices.items():
        section, _, name = key.partition(".")
        wanted = choice.value if isinstance(choice.value, str) else pytest.approx(choice.value, rel=1e-12)
        assert getattr(getattr(recipe, section), name) == wanted
        line = next(line for line in starter.text.splitlines() if line.startswith(f"  {name}: "))
        assert line.endswith(f"  # {choice.reason} ({choice.source})")
    assert max(map(len, starter.text.splitlines())) <= 130


@pytest.mark.parametrize("method", METHOD_SETTINGS)
@pytest.mark.parametrize("shape", SHAPED)
def test_every_shape_and_method_trains(shape: Any, method: str, tiny_model_dir: Path) -> None:
    written(starter_recipe(write(SHAPED[shape]), model=str(tiny_model_dir), method=method, device=LAPTOP, format=shape))
    fast = ["training.num_train_epochs=0.2", "training.report_to=none", "training.threads=1"]
    judging = ["evaluation.max_new_tokens=1", "evaluation.resamples=100", "evaluation.samples=0"]
    assert train("recipe.yaml", [*fast, *judging]).verdict["rows"] > 0


def test_the_models_size_decides_the_rate_and_stands_in_the_recipe() -> None:
    data = write(pairs(["yes", "no"] * 100))
    large = starter_recipe(data, model=llama("large"), device=WORKSTATION)
    small = starter_recipe(data, model=llama("small", hidden_size=512, num_hidden_layers=4), device=WORKSTATION)
    assert (written(large).learning_rate, written(small).learning_rate) == (2e-4, 5e-4)
    assert "model: large  # 8.03B parameters, by config.json" in large.text
    unknown = starter_recipe(data, model="maker/model", device=LAPTOP)
    assert written(unknown).learning_rate == 2e-4
    assert "# its size is not known here: neither a config nor the name tells it" in unknown.text
    assert "the usual, as the size is not known" in unknown.text


def test_qlora_is_begun_with_where_lora_does_not_fit() -> None:
    data = write(pairs(["yes", "no"] * 100))
    gpu = Device("A GPU", "cuda", 16 << 30, cpus=8)
    found = starter_recipe(data, model=llama("large"), device=gpu)
    assert found.method == written(found).method.name == "qlora"
    assert "lora itself does not fit here" in found.text and not found.warnings
    memory = next(line for line in found.text.splitlines() if line.startswith("  # Memory, of 16.0 GB: "))
    assert memory.count("(does not fit)") == 2 and memory.index("qlora") > memory.rindex("(does not fit)")
    asked = starter_recipe(data, model="large", method="lora", device=gpu)
    assert asked.method == "lora"
    assert asked.warnings[0].startswith("lora does not fit on this machine: ")


def test_where_nothing_fits_the_recipe_is_loras_and_says_so() -> None:
    found = starter_recipe(write(pairs(["yes", "no"] * 100)), model=llama("large"), device=TOO_LARGE)
    assert found.method == "lora"
    assert found.text.count("(does not fit)") == 3
    assert found.warnings[0].startswith("lora does not fit on this machine: ")


def test_full_fine_tuning_on_few_rows_is_warned_of() -> None:
    found = starter_recipe(write(pairs(["yes", "no"] * 100)), method="full", device=LAPTOP)
    assert found.warnings == ("full: 168 rows are few for that: from 10,000 on, and LoRA from 1,000 (guide)",)
    assert "rows are few for that" in found.text
    assert "r: " not in found.text.partition("method:")[2].partition("training:")[0]
    assert written(found).training.weight_decay == 0.01


def test_a_rank_holds_the_tokens_to_learn() -> None:
    model = llama("narrow", hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    few = starter_recipe(write(pairs(["word " * 20] * 100)), model=model, device=LAPTOP)
    many = starter_recipe(write(pairs(["word " * 2000] * 100)), model=model, device=LAPTOP)
    assert [starter.choices["method.r"].value for starter in (few, many)] == [16, 256]
    assert [written(starter).method.model_dump()["r"] for starter in (few, many)] == [16, 256]
    assert "for about 250k tokens to learn" in many.text


def test_a_method_that_there_is_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="there is no method 'loar'") as caught:
        starter_recipe(write(pairs(["a", "b"] * 20)), method="loar", device=LAPTOP)
    assert str(caught.value.remedy).startswith("Did you mean lora? The methods are ")


def test_how_files_are_read_is_given_as_in_check_and_is_in_the_recipe() -> None:
    Path("book.txt").write_text("One paragraph\nof two lines.\n\nAnother one.\n\n" * 20)
    starter = starter_recipe("book.txt", device=LAPTOP, overrides=["data.sample_by=paragraph"])
    assert written(starter).data.sources("train")[0].sample_by == "paragraph"
    assert starter.rows == 40


@pytest.mark.parametrize(
    ("override", "said"),
    [("data.sample_by=page", "sample_by"), ("data.delimiter=abc", "delimiter"), ("data.test=0.1", "data.sample_by")],
)
def test_an_override_that_cannot_be_used_is_one_message(override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        starter_recipe(write([{"text": "a"}] * 20), device=LAPTOP, overrides=[override])


@pytest.mark.parametrize("model", ["/nowhere/model", "./model", "~/no such model"])
def test_a_path_at_which_there_is_no_model_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="there is no model, file or folder called") as caught:
        starter_recipe(write(pairs(["yes", "no"] * 20)), model=model)
    assert caught.value.where == "--model"


def test_a_model_that_is_nowhere_is_refused_before_a_recipe_is_written() -> None:
    data = write(pairs(["a", "b"] * 40))
    with pytest.raises(ModelError, match="there is no model, file or folder called 'nosuchmodel'"):
        starter_recipe(data, model="nosuchmodel", device=LAPTOP)
    assert "maker/model" in starter_recipe(data, model="maker/model", device=LAPTOP).text  # it may be on the hub
