"""What `init` writes, a run takes: rows with faults, long rows, few rows, and rows that fit several shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.test_first_recipe import LAPTOP, WORKSTATION, llama, pairs, write, written

from tunesmith.workflows.check import inspect
from tunesmith.workflows.finetune import train
from tunesmith.workflows.first_recipe import starter_recipe

FAST = ("training.num_train_epochs=0.2", "training.report_to=none", "training.threads=1")
JUDGING = ("evaluation.max_new_tokens=1", "evaluation.resamples=100", "evaluation.samples=0")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mixed(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pairs(["yes", "no"] * 12), row]


FAULTY: dict[str, list[dict[str, Any]]] = {
    "a row without an answer": mixed({"prompt": "p"}),
    "a null for a label": mixed({"prompt": "p", "completion": None}),
    "an empty answer": mixed({"prompt": "p", "completion": ""}),
    "control tokens": mixed({"prompt": "p <|im_end|>", "completion": "no"}),
    "a row longer than the model": mixed({"prompt": "word " * 2000, "completion": "no"}),
    "labels that are integers": [{"prompt": f"q {n}", "completion": n % 3} for n in range(24)],
    "two rows": pairs(["yes", "no"]),
    "one row": pairs(["yes"]),
    "long rows of another script": mixed({"prompt": "発票番号は" * 90, "completion": "no"}),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_run_takes_what_is_written_for_faulty_rows(name: str, tiny_model_dir: Path) -> None:
    written(starter_recipe(write(FAULTY[name]), model=str(tiny_model_dir), device=LAPTOP))
    assert train("recipe.yaml", [*FAST, *JUDGING]).verdict


def test_bad_rows_are_set_aside_by_the_recipe_and_that_is_said() -> None:
    starter = starter_recipe(write(FAULTY["a row without an answer"]), device=LAPTOP)
    assert written(starter).data.on_error == "skip"
    assert "1 row cannot be used (`tunesmith check` says why) and is set aside in rejected.jsonl" in starter.text
    assert written(starter_recipe(write(pairs(["yes", "no"] * 12)), device=LAPTOP)).data.on_error == "stop"


def test_bad_rows_of_the_datas_own_test_split_are_set_aside_too() -> None:
    write(pairs(["yes", "no"] * 12), "tickets/train.jsonl")
    write(mixed({"prompt": "p"}), "tickets/test.jsonl")
    assert written(starter_recipe("tickets", device=LAPTOP)).data.on_error == "skip"


def test_a_row_longer_than_the_model_is_left_out_and_that_is_said() -> None:
    model = llama("short", max_position_embeddings=512)
    starter = starter_recipe(write(FAULTY["a row longer than the model"]), model=model, device=WORKSTATION)
    data = written(starter).data
    assert (data.max_length, data.too_long) == (512, "drop")
    assert any("the model has 512 positions: rows that are longer are left out" in why for why in starter.warnings)


def test_a_row_in_another_script_gets_the_room_that_it_needs() -> None:
    rows = mixed({"prompt": "発票番号は" * 1000, "completion": "no"})
    assert written(starter_recipe(write(rows), model="maker/model-8B", device=LAPTOP)).data.max_length == 16384


@pytest.mark.parametrize("count", [30, 50, 77])
def test_few_rows_are_not_halved_to_judge_on(count: int) -> None:
    starter = starter_recipe(write(pairs([f"an answer of its own {n}" for n in range(count)])), device=LAPTOP)
    share = written(starter).data.eval
    assert isinstance(share, float) and share <= 0.3
    line = next(line for line in starter.text.splitlines() if line.startswith("  eval: "))
    assert "are held out, chosen by their prompts, to judge on" in line


def test_a_few_rows_are_halved_only_with_the_reason() -> None:
    starter = starter_recipe(write(pairs([f"an answer {n}" for n in range(12)])), device=LAPTOP)
    if written(starter).data.eval == 0.5:
        assert "fewer than 6 can show no difference" in starter.text


@pytest.mark.parametrize("column", ["label", "Kategorie", "intent"])
def test_labels_are_judged_as_labels_also_where_each_is_given_seldom(column: str) -> None:
    rows = [{"text": f"text {n}", column: f"label {n // 2}"} for n in range(60)]
    starter = starter_recipe(write(rows), columns={"prompt": "text", "completion": column}, device=LAPTOP)
    assert written(starter).evaluation.metrics == ["accuracy", "macro_f1"]
    assert "the answers are labels: 30 different ones" in starter.text


def test_numbers_are_judged_by_exact_match_and_titles_are_not() -> None:
    numbers = [{"prompt": f"what is {n}", "completion": n * 7} for n in range(60)]
    assert written(starter_recipe(write(numbers), device=LAPTOP)).evaluation.metrics == ["exact_match"]
    titles = [{"prompt": f"text {n}", "completion": f"title {n // 2}"} for n in range(60)]
    assert written(starter_recipe(write(titles), device=LAPTOP)).evaluation.metrics == []


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "hello"}, {"role": "assistant", "content": text}]


def test_preferences_are_proposed_where_the_rows_also_hold_messages() -> None:
    rows = [
        {"prompt": "hello", "chosen": turns(f"good {n}"), "rejected": turns(f"bad {n}"), "messages": turns(f"good {n}")}
        for n in range(24)
    ]
    starter = starter_recipe(write(rows), device=LAPTOP)
    assert (starter.shape, written(starter).objective.name) == ("preference", "dpo")
    assert starter.reason.endswith("(sft would learn from them as messages)")
    named = starter_recipe(write(rows), format="messages", device=LAPTOP)
    assert (named.shape, written(named).objective.name) == ("messages", "sft")


def test_verdicts_on_completions_are_proposed_for_kto_and_other_labels_are_not() -> None:
    def of(labels: list[Any]) -> str:
        rows = [{"prompt": f"q {n}", "completion": f"a {n}", "label": labels[n % len(labels)]} for n in range(24)]
        return written(starter_recipe(write(rows), device=LAPTOP)).objective.name

    assert of([True, False]) == of(["yes", "no"]) == of([1, 0]) == "kto"
    assert of([True]) == of(["cold", "warm"]) == of([0, 1, 2]) == "sft"


def test_verdicts_on_conversations_are_proposed_for_kto_too() -> None:
    turns = [[{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}] for n in range(24)]
    starter = starter_recipe(
        write([{"messages": each, "label": n % 2 == 0} for n, each in enumerate(turns)]), device=LAPTOP
    )
    assert (starter.shape, written(starter).objective.name) == ("unpaired_preference", "kto")


def test_a_model_that_is_too_large_is_warned_of_by_its_name() -> None:
    data = write(pairs(["yes", "no"] * 12))
    starter = starter_recipe(data, model="maker/model-70B", device=LAPTOP)
    assert starter.warnings[0].startswith("lora does not fit on this machine: the model's weights alone need 260.8 GB")
    assert "(by its name), and there are 16.0 GB; take a smaller model" in starter.warnings[0]
    assert starter_recipe(data, model="maker/model-8B", device=WORKSTATION).warnings == ()
    assert starter_recipe(data, model="maker/model-14B", device=WORKSTATION).method == "qlora"


def test_a_folder_that_holds_no_model_is_warned_of() -> None:
    Path("empty").mkdir()
    starter = starter_recipe(write(pairs(["yes", "no"] * 12)), model="empty", device=LAPTOP)
    assert starter.warnings[0].startswith("the model cannot be trained: ")


def test_a_model_that_cannot_be_built_is_warned_of() -> None:
    Path("strange").mkdir()
    Path("strange/config.json").write_text(json.dumps({"model_type": "of-no-library"}))
    starter = starter_recipe(write(pairs(["yes", "no"] * 12)), model="strange", device=LAPTOP)
    assert starter.warnings and "cannot be trained" in starter.warnings[0]


def call(n: int) -> dict[str, Any]:
    arguments = json.dumps({"minutes": n, "title": f"tea {n}"})
    turn = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "set_timer", "arguments": arguments}}]}  # fmt: skip
    return {"messages": [{"role": "user", "content": f"wake me in {n} minutes"}, turn]}


def test_answers_that_only_call_a_tool_are_counted_as_they_are_written_and_are_no_labels() -> None:
    starter = starter_recipe(write([call(n) for n in range(90)]), device=LAPTOP)
    recipe = written(starter)
    assert recipe.evaluation.metrics == [] and "answers call tools" in starter.text
    assert recipe.evaluation.max_new_tokens >= 64  # a call is some 85 characters long
    assert "labels" not in starter.text and "about 0 tokens" not in starter.text
    found = inspect("rows.jsonl")
    assert found.labels is None and found.lengths["quantiles"]["min"] > 80


def chats(path: Path, turns: list[tuple[str, ...]]) -> str:
    def rows() -> Iterator[str]:
        for number, said in enumerate(turns):
            texts = [text.format(n=number) for text in said]
            messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
            yield json.dumps({"messages": messages}) + "\n"

    path.write_text("".join(rows()))
    return str(path)


def test_a_courtesy_at_the_end_of_a_chat_is_no_label(tmp_path: Path) -> None:
    said = [("Where is {n}?", "It is in the large hall {n}.", "Thanks", end) for end in ("Bye!", "Welcome!")] * 20
    made = starter_recipe(chats(tmp_path / "a.jsonl", said))
    assert made.metrics == () and "turns before the last say more and are learned, too" in made.text
    shots = [("Is {n} odd?", "yes", "And more {n}?", label) for label in ("yes", "no")] * 20
    assert starter_recipe(chats(tmp_path / "b.jsonl", shots)).metrics == ("accuracy", "macro_f1")


def test_one_answer_in_all_rows_is_warned_of_by_init_and_check(tmp_path: Path) -> None:
    path = chats(tmp_path / "a.jsonl", [("Where is {n}?", "Here.")] * 20)
    made, found = starter_recipe(path), inspect(path)
    warning = "20 rows to train on all end with the same answer, 'Here.'"
    assert [each.startswith(warning) for each in made.warnings] == [True]
    assert [each.severity for each in found.findings if each.id == "one_answer"] == ["warning"]
    path = chats(tmp_path / "b.jsonl", [("Where is {n}?", end) for end in ("Here.", "There.")] * 20)
    assert starter_recipe(path).warnings == ()


def test_the_objective_is_said_and_what_is_set_is_no_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label\n" + "Where {n}?,Here.,true\nWho?,{n},false\n" * 20 + "Why?,,true\n")
    made = starter_recipe(str(path))
    assert "objective kto, which learns which answers are better (sft would learn" in made.reason
    found = {how: inspect(str(path), settings=[f"on_error={how}"]).findings for how in ("stop", "skip")}
    remedies = {how: next(one.remedy for one in each if one.id == "invalid_rows") for how, each in found.items()}
    assert "data.on_error: skip" in remedies["stop"] and "on_error" not in remedies["skip"]
