"""Recipes from YAML and from the command line: what values mean, where they come from, and every complaint's line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import RecipeError
from tunesmith.recipe.complaints import dotted
from tunesmith.recipe.file import dump, leaves, read_recipe
from tunesmith.recipe.methods import LoraSettings, QloraSettings
from tunesmith.recipe.settings import Recipe

BASE = "model: m\ndata:\n  train: rows.jsonl\noutput_dir: out\n"  # a line further down begins at line 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def written(file: Path, text: str = "", base: str = BASE) -> Path:
    file.write_text(base + text, encoding="utf-8")
    return file


def complaint(source: Path | Mapping[str, Any], *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read_recipe(source, overrides)
    return caught.value


def mapping(**sections: Any) -> dict[str, Any]:
    return {"model": "m", "data": {"train": "rows.jsonl"}, "output_dir": "out", **sections}


TREES = "'padded', found 'trees'"
NO_NUMBER = "expected a valid number or 'auto', found 'fast'"
NO_NAMES = "expected a valid string or a valid list, found 3"

# What YAML means


def test_numbers_in_exponent_notation_are_numbers(file: Path) -> None:
    training = "training: {learning_rate: 2e-5, adam_epsilon: 1E-6, weight_decay: .1, num_train_epochs: 2}\n"
    read = read_recipe(written(file, training)).recipe.training
    assert (read.learning_rate, read.adam_epsilon, read.weight_decay, read.num_train_epochs) == (2e-5, 1e-6, 0.1, 2.0)


def test_no_is_a_word_and_false_is_not(file: Path) -> None:
    read = read_recipe(written(file, "training: {save_strategy: no, eval_strategy: no}\n")).recipe
    assert (read.training.save_strategy, read.training.eval_strategy) == ("no", "no")
    assert read_recipe(written(file, "method: {use_dora: true, use_rslora: false}\n")).recipe.method == LoraSettings(
        use_dora=True, use_rslora=False
    )
    error = complaint(written(file, "method: {use_dora: yes}\n"))
    assert (error.what, error.where) == ("`method.use_dora`: expected a valid boolean, found 'yes'", f"{file}:5")


def test_a_date_stays_the_text_it_is(file: Path) -> None:
    base = "model: m\noutput_dir: out\ndata:\n  train: a\n"
    assert read_recipe(written(file, "  date: 2025-01-31\n", base)).recipe.data.date == "2025-01-31"


def test_an_octal_looking_number_is_decimal(file: Path) -> None:
    assert read_recipe(written(file, "training: {seed: 010}\n")).recipe.training.seed == 10


def test_anchors_and_merge_keys_are_followed(file: Path) -> None:
    text = "data:\n  train:\n  - &first {path: a, weight: 2.0}\n  - {<<: *first, path: b}\nmodel: m\noutput_dir: out\n"
    loaded = read_recipe(written(file, text, ""))
    assert [(source.path, source.weight) for source in loaded.recipe.data.train] == [("a", 2.0), ("b", 2.0)]
    assert loaded.origin(("data", "train", 1, "path")) == f"{file}:4"
    assert loaded.origin(("data", "train", 1, "weight")).startswith(f"{file}:")


def test_an_anchored_truth_value_is_a_truth_value(file: Path) -> None:
    read = read_recipe(written(file, "method: {use_dora: &yes true, use_rslora: *yes}\n")).recipe
    assert read.method == LoraSettings(use_dora=True, use_rslora=True)


def test_a_byte_order_mark_is_no_part_of_the_first_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert read_recipe(file).recipe.model.path == "m"


# Complaints


def test_a_missing_file_names_its_nearest_neighbour(file: Path) -> None:
    written(file)
    error = complaint(file.with_name("recepi.yaml"))
    assert (error.what, error.where) == ("This recipe does not exist", str(file.with_name("recepi.yaml")))
    assert error.remedy == f"Did you mean {file}?"
    assert "tunesmith init" in str(complaint(file.parent / "nowhere" / "x.yaml").remedy)


@pytest.mark.parametrize(
    ("text", "what"), [("", "The recipe is empty"), ("- a\n", "The recipe is not a mapping of keys")]
)
def test_a_recipe_is_a_mapping(file: Path, text: str, what: str) -> None:
    assert complaint(written(file, text, "")).what == what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'),
        ("one.jsonl", b'{"prompt": "a", "completion": "b"}\n'),
        ("rows.csv", b"prompt,completion\na,b\n"),
        ("rows.parquet", b"PAR1\xff\x00"),
    ],
)
def test_rows_in_the_place_of_a_recipe_are_known_as_rows(tmp_path: Path, name: str, content: bytes) -> None:
    rows = tmp_path / name
    rows.write_bytes(content)
    error = complaint(rows)
    assert (error.what, error.where) == ("This is not a recipe; it looks like a data file", str(rows))
    assert error.remedy == f"`tunesmith init {rows}` writes a recipe for its rows."


def test_a_recipe_may_be_json(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text('{"model": "m", "data": {"train": "rows.jsonl"}, "output_dir": "x"}')
    assert read_recipe(file).recipe.model.path == "m"


def test_a_key_in_the_place_of_the_recipe_is_told_that_a_recipe_comes_first() -> None:
    error = complaint(Path("data.train=x.jsonl"))
    assert (error.what, error.where) == ("A recipe comes first, and KEY=VALUE behind it", "data.train=x.jsonl")
    assert "`tunesmith init x.jsonl` writes one" in str(error.remedy)


def test_broken_yaml_names_the_line(file: Path) -> None:
    error = complaint(written(file, "training:\n  seed: [1\nmethod: lora\n"))
    assert error.what == "The recipe is not valid YAML"
    assert error.where is not None and error.where.startswith(f"{file}:")


def test_a_backslash_in_double_quotes_is_told_how_to_write_it(tmp_path: Path) -> None:
    file = tmp_path / "win.yaml"
    text = 'model: "C:\\models\\new"\ndata: {train: rows.jsonl}\noutput_dir: x\n'
    file.write_text(text, encoding="utf-8")
    assert "single quotes" in str(complaint(file).remedy)
    file.write_text(text.replace('"', "'"), encoding="utf-8")  # as the remedy says
    assert read_recipe(file).recipe.model.path == "C:\\models\\new"


@pytest.mark.parametrize(
    ("text", "line"),
    [("output_dir: other\n", 5), ("training:\n  seed: 1\n  batch_size: 2\n  seed: 2\n", 8)],
)
def test_a_key_given_twice_is_refused_at_its_second_line(file: Path, text: str, line: int) -> None:
    error = complaint(written(file, text))
    assert (error.what, error.where) == ("A key is given twice", f"{file}:{line}")


@pytest.mark.parametrize(
    ("text", "line", "what", "remedy"),
    [
        ("trainig: {}\n", 5, "`trainig` is not a setting", "Did you mean `training`?"),
        ("training:\n  max_step: 1\n", 6, "`training.max_step` is not a setting", "Did you mean `max_steps`?"),
        ("method:\n  lora_alfa: 1\n", 6, "`method.lora_alfa` is not a setting", "Did you mean `lora_alpha`?"),
        ("evaluation:\n  metric: loss\n", 6, "`evaluation.metric` is not a setting", "Did you mean `metrics`?"),
        ("learning_rate: 1e-4\n", 5, "`learning_rate` is not a setting", "Did you mean `training.learning_rate`?"),
        ("r: 8\n", 5, "`r` is not a setting", "Did you mean `method.r`?"),
        ("training:\n  r: 8\n", 6, "`training.r` is not a setting", "Did you mean `method.r`?"),
        ("training:\n  lr: 1e-4\n", 6, "`training.lr` is not a setting", "Did you mean `training.learning_rate`?"),
        ("epochs: 2\n", 5, "`epochs` is not a setting", "Did you mean `training.num_train_epochs`?"),
        ("batch_size: 2\n", 5, "`batch_size` is not a setting", "Did you mean `training.batch_size`?"),
        ("method:\n  lora_r: 8\n", 6, "`method.lora_r` is not a setting", "Did you mean `method.r`?"),
        ("lora_alpha: 8\n", 5, "`lora_alpha` is not a setting", "Did you mean `method.lora_alpha`?"),
        ("lora: {}\n", 5, "`lora` is not a setting", "Did you mean `method`?"),
        ("warmup_ratio: 0.1\n", 5, "`warmup_ratio` is not a setting", "Did you mean `training.warmup_ratio`?"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_its_line_and_the_key_that_was_meant(
    file: Path, text: str, line: int, what: str, remedy: str
) -> None:
    error = complaint(written(file, text))
    assert (error.what, error.where, error.remedy) == (what, f"{file}:{line}", remedy)


@pytest.mark.parametrize(
    ("data", "line", "key"),
    [
        ("data:\n  train:\n  - path: a\n  - path: b\n    wieght: 2\n", 5, "data.train[1].wieght"),
        ("data:\n  train:\n    path: a\n    wieght: 2\n", 4, "data.train.wieght"),
        ("data:\n  train: a\n  eval:\n  - path: b\n    wieght: 2\n", 5, "data.eval[0].wieght"),
    ],
)
def test_an_unknown_key_of_a_source_is_named_too(file: Path, data: str, line: int, key: str) -> None:
    error = complaint(written(file, data + "model: m\noutput_dir: out\n", ""))
    assert (error.what, error.where) == (f"`{key}` is not a setting", f"{file}:{line}")
    assert error.remedy == "Did you mean `weight`?"


def test_an_unknown_key_like_no_other_is_told_what_there_is(file: Path) -> None:
    error = complaint(written(file, "method:\n  name: full\n  zebra: 1\n"))
    assert (error.what, error.where) == ("`method.zebra` is not a setting", f"{file}:7")
    assert error.remedy == "Known here: name."


def test_a_setting_of_another_method_says_whose_it_is(file: Path) -> None:
    error = complaint(written(file, "method:\n  name: full\n  r: 8\n"))
    assert error.where == f"{file}:7"
    assert error.what == "`method.r` is a setting of lora and qlora; the method here is full"
    error = complaint(written(file, "method:\n  bnb_4bit_quant_type: fp4\n"))
    assert error.what == "`method.bnb_4bit_quant_type` is a setting of qlora; the method here is lora"
    assert error.remedy == "Remove it, or set method.name: qlora."
    error = complaint(written(file, "method:\n  trainable_layers: 4\n"))
    assert error.remedy == "Remove it, or set method.name: freeze."
    error = complaint(written(file, "training:\n  trainable_layers: 4\n"))
    assert error.remedy == "Did you mean `method.trainable_layers`?"


def test_an_unknown_key_of_an_inner_section_is_compared_with_the_keys_of_that_section(file: Path) -> None:
    error = complaint(written(file, "model: m\noutput_dir: out\ndata:\n  train: a\n  clean: {dedup: true}\n", ""))
    assert (error.what, error.remedy) == ("`data.clean.dedup` is not a setting", "Did you mean `dedupe`?")


@pytest.mark.parametrize("text", ["method: lorra\n", "method:\n  name: lorra\n"])
def test_an_unknown_method_names_the_known_ones(file: Path, text: str) -> None:
    error = complaint(written(file, text))
    assert error.what == "`method`: there is no method `lorra`; there are full, freeze, lora, qlora"
    assert error.where == f"{file}:5"
    assert error.remedy == "Did you mean `lora`?"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("training:\n  batch_size: '16'\n", 6, "`training.batch_size`: expected a valid integer, found '16'"),
        ("training:\n  batch_size: 1.5\n", 6, "`training.batch_size`: expected a valid integer, found 1.5"),
        ("training:\n  batch_size: true\n", 6, "`training.batch_size`: expected a valid integer, found True"),
        ("training:\n  batch_size: 0\n", 6, "`training.batch_size`: expected greater than or equal to 1, found 0"),
        ("training:\n  layout: trees\n", 6, "`training.layout`: expected 'auto', 'tree', 'packed' or " + TREES),
        ("training:\n  learning_rate: fast\n", 6, "`training.learning_rate`: " + NO_NUMBER),
        ("method:\n  target_modules: 3\n", 6, "`method.target_modules`: " + NO_NAMES),
        ("method:\n  target_modules: [3]\n", 6, "`method.target_modules[0]`: expected a valid string, found 3"),
        ("training:\n  threads: 0\n", 6, "`training.threads`: must be above 0, found 0"),
        ("training: 5\n", 5, "`training`: expected a valid dictionary or instance of TrainingSettings, found 5"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named_with_what_was_found_and_expected(
    file: Path, text: str, line: int, what: str
) -> None:
    error = complaint(written(file, text))
    assert (error.what, error.where) == (what, f"{file}:{line}")


def test_what_a_flag_says_is_not_named_twice_and_comes_with_what_to_do(file: Path) -> None:
    wrong = ["training.load_best_model_at_end=true", "training.metric_for_best_model=accuracy"]
    with pytest.raises(RecipeError) as caught:
        read_recipe(mapping(), wrong)
    error = caught.value
    assert (error.what, error.where) == (
        "accuracy is not known at a validation", "flag training.metric_for_best_model",
    )  # fmt: skip
    assert str(error.remedy).startswith("Use loss, perplexity, bits_per_byte, token_accuracy, a metric of answers that")
    with pytest.raises(RecipeError) as caught:
        read_recipe(mapping(), ["evaluation.baselines=[majority]", "evaluation.metrics=[brier_score]"])
    assert caught.value.what == "baselines need a metric of answers"
    assert caught.value.remedy == "Add one to evaluation.metrics, such as exact_match."
    read_recipe(mapping(), ["evaluation.baselines=[majority]", "evaluation.metrics=[brier_score,exact_match]"])


def test_rows_of_which_there_are_none_are_refused_in_plain_words(file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(mapping(data={"train": []}))
    assert caught.value.what == "`data.train`: expected a list that is not empty, found []"


def test_a_bad_share_names_its_key(file: Path) -> None:
    error = complaint(written(file, "model: m\noutput_dir: out\ndata:\n  train: a\n  eval: 1.5\n", ""))
    assert (error.what, error.where) == ("`data.eval`: a share is at least 0 and below 1, found 1.5", f"{file}:5")


def test_what_is_missing_is_named(file: Path) -> None:
    error = complaint(written(file, "model: m\ndata: {eval: 0.1}\n", ""))
    assert (error.what, error.where) == ("`data.train` is missing", f"{file}:2")
    assert error.why == f"`output_dir` is missing ({file})"
    assert error.remedy == "Add `data.train` to the recipe. Add `output_dir` to the recipe."


@pytest.mark.parametrize(
    ("text", "line", "begins"),
    [
        ("training:\n  num_train_epochs: 1\n  max_steps: 5\n", 7, "max_steps and num_train_epochs say"),
        ("training:\n  warmup_ratio: 0.1\n  warmup_steps: 5\n", 6, "training.warmup_ratio and training.warmup_steps"),
        ("training:\n  eval_strategy: no\n  eval_steps: 5\n", 7, "eval_steps has no meaning under"),
        ("training:\n  save_strategy: epoch\n  save_steps: 5\n", 7, "save_steps has no meaning under"),
        ("training:\n  per_device_train_batch_size: 2\n  batch_size: 3\n", 7, "batch_size 3 contradicts"),
        ("training:\n  seed: 1\n  gradient_accumulation_steps: 2\n", 7, "gradient_accumulation_steps needs"),
        ("training:\n  warmup_steps: 5\n  lr_scheduler_type: constant\n", 7, "lr_scheduler_type: constant has no"),
        ("evaluation:\n  samples: 1\n  temperature: 0.5\n", 7, "temperature has no effect while do_sample is false"),
        ("method:\n  r: 4\n  layers_pattern: layers\n", 7, "layers_pattern says where layers_to_transform counts"),
        ("evaluation:\n  metrics: [loss, loss]\n", 5, "a metric is named twice"),
    ],
)  # fmt: skip
def test_settings_that_contradict_name_the_line_of_one_of_them(file: Path, text: str, line: int, begins: str) -> None:
    error = complaint(written(file, text))
    assert error.what.startswith(begins)
    assert error.where == f"{file}:{line}"


def test_sections_that_contradict_name_the_line_too(file: Path) -> None:
    base = "model: m\noutput_dir: out\ndata:\n  train: a\n  eval: 0\n"
    error = complaint(written(file, "training:\n  seed: 1\n  eval_steps: 5\n", base))
    assert (error.what, error.where) == (
        "training.eval_steps has nothing to evaluate on: data.eval is 0",
        f"{file}:8",
    )
    error = complaint(written(file, "evaluation:\n  metrics: [loss]\n", base))
    assert error.where == f"{file}:7"


def test_several_faults_are_told_at_once_each_with_its_line(file: Path) -> None:
    error = complaint(written(file, "training:\n  batch_size: 0\n  sede: 1\nmethd: lora\n"))
    assert error.where == f"{file}:6"
    assert str(error.why).splitlines() == [
        f"`training.sede` is not a setting ({file}:7)",
        f"`methd` is not a setting ({file}:8)",
    ]
    assert error.remedy == "Did you mean `seed`? Did you mean `method`?"


def test_a_mapping_has_no_lines_to_name() -> None:
    error = complaint(mapping(training={"sede": 1}))
    assert (error.what, error.where) == ("`training.sede` is not a setting", "recipe")


# Overrides


def test_an_override_wins_and_is_yaml_itself(file: Path) -> None:
    overrides = [
        "training.learning_rate=2e-5",
        "training.save_strategy=no",
        "training.seed=7",
        "evaluation.metrics=[loss, exact_match]",
        "data.chat_template_kwargs.enable_thinking=false",
        "training.max_steps=",
    ]
    read = read_recipe(written(file, "training:\n  seed: 1\n"), overrides).recipe
    assert (read.training.learning_rate, read.training.save_strategy, read.training.seed) == (2e-5, "no", 7)
    assert read.evaluation.metrics == ["loss", "exact_match"]
    assert read.data.chat_template_kwargs == {"enable_thinking": False}
    assert read.training.max_steps is None


def test_an_override_reaches_behind_the_short_forms(file: Path) -> None:
    base = "model: m\nmethod: qlora\noutput_dir: out\ndata:\n  train: a\n  eval: b\n"
    overrides = ["model.revision=v1", "method.r=8", "data.train.weight=2", "data.eval.format=text"]
    read = read_recipe(written(file, "", base), overrides).recipe
    assert (read.model.path, read.model.revision) == ("m", "v1")
    assert read.method == QloraSettings(r=8)
    (train,), evaluation = read.data.train, read.data.eval
    assert (train.path, train.weight) == ("a", 2.0)
    assert isinstance(evaluation, list)
    assert (evaluation[0].path, evaluation[0].format) == ("b", "text")


def test_an_override_can_be_a_short_form_itself(file: Path) -> None:
    base = "model: {path: m, revision: v1}\nmethod: {name: lora, r: 4}\noutput_dir: out\ndata:\n  train: a\n"
    read = read_recipe(written(file, "", base), ["model=x", "method=full"]).recipe
    assert (read.model.path, read.model.revision) == ("x", None)
    assert read.method.name == "full"


@pytest.mark.parametrize("override", ["training.seed", "=1", "  =1"])
def test_an_override_is_key_equals_value(file: Path, override: str) -> None:
    error = complaint(written(file), override)
    assert (error.what, error.where) == ("This argument is not KEY=VALUE", override)


def test_an_override_that_is_no_yaml_or_leads_nowhere_is_refused(file: Path) -> None:
    assert complaint(written(file), "training.seed=[1").what == "The value of this argument is not YAML"
    error = complaint(written(file), "output_dir.name=x")
    assert error.what == "This override sets a key of a value that has no keys"
    assert error.why == "`output_dir` is 'out'."


def test_a_bad_override_is_named_as_the_flag_it_is(file: Path) -> None:
    error = complaint(written(file, "training:\n  seed: 1\n"), "training.sed=2")
    assert (error.where, error.remedy) == ("flag training.sed", "Did you mean `seed`?")
    error = complaint(written(file), "training.num_train_epochs=2", "training.max_steps=5")
    assert error.where == "flag training.max_steps"
    error = complaint(written(file), "trainig.max_steps=2")
    assert (error.what, error.where) == ("`trainig` is not a setting", "flag trainig.max_steps")
    assert error.remedy == "Did you mean `training`?"


# Origins


def test_every_value_knows_where_it_was_said(file: Path) -> None:
    text = "model: m\nmethod: qlora\noutput_dir: out\ndata:\n  train:\n  - a\n  - {path: b,\n     weight: 2}\n"
    loaded = read_recipe(written(file, text, ""), ["training.seed=1", "method.r=8"])
    found = {
        dotted(path): loaded.origin(path)
        for path, _ in leaves(loaded.recipe.model_dump())
        if loaded.origin(path) != "default"
    }
    assert found == {
        "model.path": f"{file}:1",
        "method.name": f"{file}:2",
        "output_dir": f"{file}:3",
        "data.train[0].path": f"{file}:6",
        "data.train[1].path": f"{file}:7",
        "data.train[1].weight": f"{file}:8",
        "training.seed": "flag",
        "method.r": "flag",
    }


def test_an_overridden_section_comes_from_the_flag_as_a_whole(file: Path) -> None:
    loaded = read_recipe(
        written(file, "", "model:\n  path: m\n  revision: v1\ndata:\n  train: a\noutput_dir: o\n"), ["model=x"]
    )
    assert loaded.origin(("model", "path")) == "flag"
    assert loaded.origin(("model", "revision")) == "default"
    assert loaded.origin(("data", "train", 0, "path")) == f"{file}:5"
    assert loaded.origin(("data", "train", 0, "weight")) == "default"


def test_what_lies_in_the_value_of_a_flag_comes_from_the_flag(file: Path) -> None:
    flags = ["data.columns={input: body, output: label}", "training={seed: 3}", "data.train=[{path: a, weight: 2}]"]
    loaded = read_recipe(written(file, "training:\n  max_steps: 9\n"), flags)
    found = {dotted(path): loaded.origin(path) for path, _ in leaves(loaded.recipe.model_dump())}
    assert {key for key, origin in found.items() if origin == "flag"} == {
        "data.columns.input", "data.columns.output", "training.seed", "data.train[0].path", "data.train[0].weight",
    }  # fmt: skip
    assert found["training.max_steps"] == found["data.encoding"] == "default"
    again = read_recipe(file, ["training={seed: 3}", "training.seed=4", "data.columns={input: a}", "data.columns=null"])
    assert again.origin(("training", "seed")) == "flag" and again.origin(("data", "columns")) == "flag"
    assert complaint(file, "training={seed: x}").where == "flag training.seed"


def test_leaves_are_values_with_their_way() -> None:
    dumped = {"a": {"b": [{"c": 1}], "d": [1, 2], "e": {}}, "f": None}
    assert [(dotted(path), value) for path, value in leaves(dumped)] == [
        ("a.b[0].c", 1),
        ("a.d", [1, 2]),
        ("a.e", {}),
        ("f", None),
    ]


# A recipe written out and read again

SECTIONS: list[dict[str, Any]] = [
    {},
    {"method": "full"},
    {"method": {"name": "freeze", "trainable_layers": 0, "trainable_modules": r".*norm", "train_embeddings": True}},
    {"method": {"name": "qlora", "bnb_4bit_quant_type": "fp4", "target_modules": ["q_proj"], "rank_pattern": {"a": 2}}},
    {"method": {"layers_to_transform": [0, 1], "layers_pattern": "layers", "init_lora_weights": "gaussian"}},
    {"training": {"max_steps": 7}},
    {"training": {"num_train_epochs": 0.5, "warmup_steps": 3}},
    {"training": {"warmup_steps": 0}},
    {"training": {"eval_strategy": "no", "save_strategy": "no", "learning_rate": 2e-5, "report_to": "none"}},
    {"training": {"eval_strategy": "epoch", "save_strategy": "epoch", "lr_scheduler_type": "constant"}},
    {"data": {"train": "a", "eval": 0}},
    {"data": {"train": ["a", {"path": "b", "weight": 0.5, "columns": {"output": "Zeile é: #1"}}], "eval": "null"}},
    {"data": {"train": "a", "eval": 0.25, "date": "2025-01-31", "instruction": "no", "name": "2e-5"}},
    {"data": {"train": "a", "chat_template": "{% for m in messages %}\n  {{ m }}\n\n{% endfor %}  \n\t"}},
    {"data": {"train": "a", "chat_template_kwargs": {"enable_thinking": False, "levels": [1, {"a": None}]}}},
    {"evaluation": {"metrics": ["exact_match", "my_module:score"], "do_sample": True, "temperature": 0.7}},
]


@pytest.mark.parametrize("sections", SECTIONS, ids=lambda sections: ".".join(map(str, sections)) or "defaults")
def test_a_dumped_recipe_reads_back_as_itself(file: Path, sections: dict[str, Any]) -> None:
    recipe = read_recipe(mapping(**sections)).recipe
    again = read_recipe(written(file, dump(recipe), "")).recipe
    assert again == recipe


def test_what_a_section_says_for_its_sources_survives_a_dump(file: Path) -> None:
    section = {"train": ["a", {"path": "b", "sample_by": "line", "weight": 2}], "columns": {"text": "body"},
               "sample_by": "document", "format": "text", "eval": "c"}  # fmt: skip
    recipe = read_recipe(mapping(data=section)).recipe
    again = read_recipe(written(file, dump(recipe), "")).recipe
    for side in ("train", "eval"):
        assert again.data.sources(side) == recipe.data.sources(side)
    assert [source.sample_by for source in again.data.sources("train")] == ["document", "line"]
    assert again.data.sources("eval")[0].columns == {"text": "body"}


def test_a_dump_says_batch_size_for_its_two_parts(file: Path) -> None:
    recipe = read_recipe(mapping(training={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})).recipe
    again = read_recipe(written(file, dump(recipe), "")).recipe
    assert again.training.batch_size == 8
    assert again.training.per_device_train_batch_size is None


def test_a_resolved_recipe_reads_back_as_itself(file: Path) -> None:
    resolved = read_recipe(mapping(training={"max_steps": 3}, data={"train": "a", "eval": 0})).recipe.with_values(
        training={"threads": 2, "micro_batch_tokens": 1024, "learning_rate": 2e-4}, model={"device": "cpu"}
    )
    assert read_recipe(written(file, dump(resolved), "")).recipe == resolved


@pytest.mark.parametrize("sections", SECTIONS, ids=lambda sections: ".".join(map(str, sections)) or "defaults")
def test_a_recipe_object_is_read_as_it_is(sections: dict[str, Any]) -> None:
    recipe = read_recipe(mapping(**sections)).recipe
    assert read_recipe(recipe).recipe == recipe


def test_a_recipe_object_takes_overrides() -> None:
    recipe: Recipe = read_recipe(mapping(method="qlora")).recipe
    read = read_recipe(recipe, ["training.max_steps=2", "method.r=4"]).recipe
    assert read.training.max_steps == 2
    assert read.method == QloraSettings(r=4)
    assert recipe.training.max_steps is None


@pytest.mark.parametrize("line", ["date: 2026-13-45", 'date: "2026-02-30"'])
def test_a_date_that_no_calendar_has_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: m\noutput_dir: o\ndata:\n  train: a.jsonl\n  {line}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:5: `data\.date`"):
        read_recipe(path)


def test_a_folder_in_place_of_a_recipe_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="add --resume"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("value", ["{subject}: {body}", "{subject}", "{subject} {body}"])
def test_a_template_without_quotes_is_told_to_be_quoted_and_quoted_it_is_one(tmp_path: Path, value: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: m\ndata: {train: a.csv}\noutput_dir: o\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(file, [f"data.columns.input={value}"])
    assert "ordereddict" not in caught.value.render()
    assert "quotes" in str(caught.value.remedy)
    assert 'data.columns.input="{subject}' in str(caught.value.remedy)
    read = read_recipe(file, [f'data.columns.input="{value}"'])
    assert read.recipe.data.columns == {"input": value}
