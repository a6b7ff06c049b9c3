"""Settings by themselves: short forms, what `auto` means, bounds, and settings that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.recipe.data import SourceSettings
from tunesmith.recipe.methods import FullSettings, LoraSettings, QloraSettings
from tunesmith.recipe.settings import Recipe


def recipe(**sections: Any) -> Recipe:
    values: dict[str, Any] = {"model": "m", "data": {"train": "rows.jsonl"}, "output_dir": "out", **sections}
    return Recipe.model_validate(values)


def refusal(**sections: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        recipe(**sections)
    return str(caught.value)


def test_a_name_is_short_for_a_mapping_and_one_source_for_a_list() -> None:
    made = recipe(method="qlora", data={"train": "a.jsonl", "eval": "b.jsonl"}, evaluation={"metrics": "exact_match"})
    assert made.model.path == "m"
    assert made.method == QloraSettings()
    assert made.data.train == [SourceSettings(path="a.jsonl")]
    assert made.data.eval == [SourceSettings(path="b.jsonl")]
    assert made.evaluation.metrics == ["exact_match"]


@pytest.mark.parametrize("train", [{"path": "a", "weight": 2.0}, [{"path": "a", "weight": 2.0}]])
def test_a_source_may_stand_alone_or_in_a_list(train: Any) -> None:
    assert recipe(data={"train": train}).data.train == [SourceSettings(path="a", weight=2.0)]


def test_lists_of_sources_mix_names_and_mappings() -> None:
    data = recipe(data={"train": ["a", {"path": "b", "format": "text"}]}).data
    assert [(source.path, source.format) for source in data.train] == [("a", "auto"), ("b", "text")]


def test_the_method_is_lora_unless_another_is_named() -> None:
    assert recipe().method == LoraSettings()
    assert recipe(method={"r": 4}).method == LoraSettings(r=4)
    assert recipe(method="full").method == FullSettings()


def test_the_automatic_learning_rate_depends_on_the_method() -> None:
    names = ("full", "freeze", "lora", "qlora")
    assert [recipe(method=name).learning_rate for name in names] == [2e-5, 1e-4, 2e-4, 2e-4]
    assert recipe(method="full", training={"learning_rate": 1e-3}).learning_rate == 1e-3


@pytest.mark.parametrize("settings", [{}, {"trainable_modules": []}, {"train_embeddings": False}], ids=str)
def test_freeze_must_leave_something_to_train(settings: dict[str, Any]) -> None:
    assert "leaves nothing to train" in refusal(method={"name": "freeze", "trainable_layers": 0, **settings})
    recipe(method={"name": "freeze", "trainable_layers": 1, **settings})


def test_freeze_is_told_when_a_pattern_is_none() -> None:
    assert "is not a regular expression" in refusal(method={"name": "freeze", "trainable_modules": "*norm"})
    assert "greater than or equal to 0" in refusal(method={"name": "freeze", "trainable_layers": -1})
    recipe(method={"name": "freeze", "trainable_layers": 0, "trainable_modules": ["*norm"]})  # a name, found nowhere


def test_a_source_has_the_defaults_of_the_section_where_it_says_nothing_itself() -> None:
    data = recipe(
        data={
            "train": ["a", {"path": "b", "split": "own", "instruction": "Mine.", "columns": {}}],
            "eval": "c",
            "format": "alpaca",
            "split": "train",
            "columns": {"output": "label"},
            "instruction": "Ours.",
        }
    ).data
    first, second = data.sources("train")
    assert (first.format, first.split, first.columns, first.instruction) == (
        "alpaca",
        "train",
        {"output": "label"},
        "Ours.",
    )
    assert (second.format, second.split, second.columns, second.instruction) == ("alpaca", "own", {}, "Mine.")
    (held_out,) = data.sources("eval")
    assert held_out.split is None, "the training split is not what to judge on"
    assert held_out.instruction == "Ours."


@pytest.mark.parametrize("share", [None, 0, 0.2])
def test_a_share_has_no_sources(share: Any) -> None:
    assert recipe(data={"train": "a", "eval": share}).data.sources("eval") == []


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_share_is_below_one(share: float) -> None:
    assert f"a share is at least 0 and below 1, found {share:g}" in refusal(data={"train": "a", "eval": share})


def test_batch_size_can_be_said_by_its_two_parts() -> None:
    both = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert recipe(training=both).training.batch_size == 8
    assert recipe(training={"per_device_train_batch_size": 2}).training.batch_size == 2
    assert recipe(training={**both, "batch_size": 8}).training.batch_size == 8


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"batch_size": 9, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            "batch_size 9 contradicts per_device_train_batch_size x gradient_accumulation_steps = 8",
        ),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps needs per_device_train_batch_size"),
        ({"max_steps": 5, "num_train_epochs": 1.0}, "max_steps and num_train_epochs say the same thing"),
        ({"warmup_steps": 5.5}, "a whole number of steps or a share below 1, found 5.5"),
        ({"eval_strategy": "epoch", "eval_steps": 5}, "eval_steps has no meaning under eval_strategy: epoch"),
        ({"save_strategy": "no", "save_steps": 5}, "save_steps has no meaning under save_strategy: no"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "use constant_with_warmup"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0.1}, "use constant_with_warmup"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"min_lr": 1e-5}}, "which takes no arguments"),
        ({"logging_strategy": "epoch", "logging_steps": 5}, "logging_steps has no meaning under logging_strategy"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1 has no meaning under optim: sgd"),
        ({"optim": "lion_32bit", "adam_epsilon": 1e-6}, "adam_epsilon has no meaning under optim: lion_32bit"),
        ({"metric_for_best_model": "token_accuracy"}, "metric_for_best_model needs load_best_model_at_end"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold needs"),
        (
            {"load_best_model_at_end": True, "early_stopping_threshold": 0.1},
            "early_stopping_threshold needs early_stopping_patience",
        ),
        (
            {"load_best_model_at_end": True, "eval_strategy": "no"},
            "load_best_model_at_end needs validations",
        ),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "early_stopping_patience needs validations"),
        ({"load_best_model_at_end": True, "greater_is_better": True}, "contradicts metric_for_best_model: loss"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "f1"}, "f1 is not known at a validation"),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "reward_margin"},
            "reward_margin has no meaning under objective: sft; use loss, perplexity, bits_per_byte, token_accuracy",
        ),
        ({"threads": 0}, "must be above 0, found 0"),
        ({"micro_batch_tokens": -1}, "must be above 0, found -1"),
        ({"learning_rate": 0.0}, "must be above 0, found 0"),
        ({"learning_rate": "fast"}, "Input should be 'auto'"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"batch_size": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_of_training_that_contradict_or_leave_their_bounds_are_refused(
    training: dict[str, Any], said: str
) -> None:
    assert said in refusal(training=training)


def test_null_gives_the_other_way_of_saying_it_its_room() -> None:
    assert recipe(training={"max_steps": None, "num_train_epochs": 2.0}).training.num_train_epochs == 2.0


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("none", []),
        ("tensorboard", ["tensorboard"]),
        (["tensorboard"], ["tensorboard"]),
        ("auto", "auto"),
        (["auto"], "auto"),
    ],
)
def test_report_to_is_one_name_a_list_or_none(given: Any, meant: list[str]) -> None:
    assert recipe(training={"report_to": given}).training.report_to == meant


def test_a_setting_of_another_method_is_refused() -> None:
    assert "Extra inputs are not permitted" in refusal(method={"name": "full", "r": 8})
    assert "Extra inputs are not permitted" in refusal(method={"name": "lora", "bnb_4bit_quant_type": "fp4"})
    assert recipe(method={"name": "qlora", "bnb_4bit_quant_type": "fp4", "r": 8}).method == QloraSettings(
        r=8, bnb_4bit_quant_type="fp4"
    )


def test_layers_are_chosen_only_where_peft_would_heed_it() -> None:
    assert "give layers_to_transform too" in refusal(method={"layers_pattern": "layers"})
    assert "needs target_modules as a list" in refusal(
        method={"target_modules": r".*\.q_proj", "layers_to_transform": [0]}
    )
    for targets in ("all-linear", ["q_proj"]):
        made = recipe(method={"target_modules": targets, "layers_to_transform": [0]})
        assert made.method == LoraSettings(target_modules=targets, layers_to_transform=[0])


def test_sampling_settings_need_sampling() -> None:
    assert "temperature has no effect while do_sample is false" in refusal(evaluation={"temperature": 0.7})
    for own in ({}, {"baselines": "none"}, {"metrics": ["exact_match"], "baselines": ["nearest"]}):
        said = refusal(evaluation={**own, "few_shot_rows": 3})
        assert "few_shot_rows has no meaning unless baselines names few_shot" in said
    assert "top_p has no effect while do_sample is false" in refusal(evaluation={"top_p": 0.9})
    assert recipe(evaluation={"temperature": 0.7, "do_sample": True}).evaluation.temperature == 0.7
    assert "named twice" in refusal(evaluation={"metrics": ["loss", "loss"]})


def test_without_held_out_rows_nothing_can_be_judged() -> None:
    data = {"train": "a", "eval": 0}
    assert "training.eval_steps has nothing to evaluate on" in refusal(data=data, training={"eval_steps": 5})
    assert "evaluation.metrics has nothing to judge" in refusal(data=data, evaluation={"metrics": ["loss"]})
    assert recipe(data=data).data.eval == 0


def test_raw_text_has_no_answers_to_compare() -> None:
    text = {"train": "a", "format": "text"}
    said = refusal(data=text, evaluation={"metrics": ["loss", "exact_match", "json_valid"]})
    assert "exact_match, json_valid compares answers, and raw text has none" in said
    assert recipe(data=text, evaluation={"metrics": ["perplexity"]}).evaluation.metrics == ["perplexity"]
    mixed = {"train": [{"path": "a", "format": "text"}, "b"]}
    assert recipe(data=mixed, evaluation={"metrics": ["exact_match"]}).evaluation.metrics == ["exact_match"]


def test_values_are_filled_in_on_a_copy() -> None:
    before = recipe()
    after = before.with_values(training={"threads": 2, "micro_batch_tokens": 99}, data={"date": "2025-01-31"})
    assert (after.training.threads, after.training.micro_batch_tokens, after.data.date) == (2, 99, "2025-01-31")
    assert (before.training.threads, before.data.date) == ("auto", None)
    assert after.training.batch_size == before.training.batch_size


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().training.seed = 1  # type: ignore[misc]
