"""Rows that say which answers are better: their forms, what is refused of them, and the tokens they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.batches.layout import computed_tokens, micro_batches
from tunesmith.data.checks.facts import mask
from tunesmith.data.corpus import encode_corpus
from tunesmith.data.examples.example import Example, to_example
from tunesmith.data.examples.message import Message, RowError
from tunesmith.data.examples.row_shapes import detect_shape
from tunesmith.data.survey import survey_rows
from tunesmith.errors import DataError
from tunesmith.model.weights.load import load_tokenizer
from tunesmith.model.weights.text_side import make_template
from tunesmith.recipe.data import DataSettings
from tunesmith.workflows.check import inspect
from tunesmith.workflows.first_recipe import starter_recipe
from tunesmith.workflows.prepare_data import _features, prepare_data

USER, GOOD, BAD = Message("user", "Why?", train=False), Message("assistant", "Because."), Message("assistant", "No.")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def example(row: dict[str, Any], shape: str = "preference") -> Example:
    return to_example(row, shape=shape, source="rows:1")


def refusal(row: dict[str, Any], shape: str = "preference") -> str:
    with pytest.raises(RowError) as caught:
        example(row, shape)
    return f"{caught.value.field}: {caught.value.found}"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"instruction": "Why?", "input": "", "output": "unused", "chosen": "Because.", "rejected": "No."},
        {
            "prompt": [turn("user", "Why?")],
            "chosen": [turn("assistant", "Because.")],
            "rejected": [turn("assistant", "No.")],
        },
        {
            "chosen": [turn("user", "Why?"), turn("assistant", "Because.")],
            "rejected": [turn("user", "Why?"), turn("assistant", "No.")],
        },
        {
            "prompt": "Why?",
            "chosen": [turn("user", "Why?"), turn("assistant", "Because.")],
            "rejected": [turn("user", "Why?"), turn("assistant", "No.")],
        },
        {"prompt": "Why?", "chosen": [turn("assistant", "Because.")], "rejected": [turn("assistant", "No.")]},
    ],
    ids=["texts", "instruction", "messages", "implicit", "prompt twice", "prompt and messages"],
)
def test_every_form_of_a_pair_is_one_conversation_with_two_ends(row: dict[str, Any]) -> None:
    found = example(row)
    assert found.messages == (USER, GOOD) and found.rejected == BAD


def test_instruction_and_input_are_joined_as_in_alpaca() -> None:
    found = example({"instruction": "Name it.", "input": "a dog", "chosen": "dog", "rejected": "cat"})
    assert found.messages[0].content == "Name it.\n\na dog"


def test_an_earlier_assistant_turn_is_given_and_not_learned() -> None:
    before = [turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Why?")]
    found = example(
        {"prompt": before, "chosen": [turn("assistant", "Because.")], "rejected": [turn("assistant", "No.")]}
    )
    assert [message.train for message in found.messages if message.role == "assistant"] == [False, True]


def test_a_label_says_whether_an_answer_is_desirable() -> None:
    written = ("True", True), ("false", False), ("1", True), ("0", False), (" Yes", True), ("NO", False), ("1.0", True)
    for given, label in ((True, True), (0, False), (1, True), *written):
        row = {"prompt": "Why?", "completion": "Because.", "label": given}
        assert example(row, "unpaired_preference").label is label
    assert refusal({"prompt": "a", "completion": "b", "label": "good"}, "unpaired_preference").startswith("label:")


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "Why?", "chosen": "No.", "rejected": "No."}, "rejected: the same answer as chosen"),
        ({"chosen": "Because.", "rejected": "No."}, "prompt: no such field"),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": " "}, "rejected: a text of white space"),
        ({"prompt": "Why?", "chosen": [turn("assistant", "a")], "rejected": "No."}, "rejected: the text 'No.'"),
        (
            {"prompt": "Why?", "chosen": [turn("user", "a")], "rejected": [turn("assistant", "b")]},
            "chosen: a user turn at the end",
        ),
        (
            {
                "chosen": [turn("user", "Why?"), turn("assistant", "a")],
                "rejected": [turn("user", "How?"), turn("assistant", "b")],
            },
            "chosen: 2 turns",
        ),
        (
            {
                "prompt": "When?",
                "chosen": [turn("user", "Why?"), turn("assistant", "a")],
                "rejected": [turn("user", "Why?"), turn("assistant", "b")],
            },
            "prompt: other turns than those that chosen and rejected begin with",
        ),
    ],
)
def test_what_is_no_pair_is_refused(row: dict[str, Any], found: str) -> None:
    assert refusal(row) == found


def test_the_shape_is_found_and_the_objective_decides_between_two() -> None:
    alone = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert detect_shape(alone)[0] == "preference"
    both = [{"instruction": "a", "input": "", "output": "b", "chosen": "b", "rejected": "c"}]
    assert detect_shape(both)[0] == "alpaca"
    assert detect_shape(both, wanted="preference")[0] == "preference"
    labelled = [{"prompt": "a", "completion": "b", "label": True}]
    assert detect_shape(labelled)[0] == "prompt_completion"
    assert detect_shape(labelled, wanted="unpaired_preference")[0] == "unpaired_preference"


def test_a_conversation_with_a_label_is_one_judged_answer() -> None:
    turns = [turn("user", "A?"), turn("assistant", "B."), turn("user", "Why?"), turn("assistant", "Because.")]
    row = {"messages": turns, "label": False}
    made = example(row, "unpaired_preference")
    assert [message.train for message in made.messages if message.role == "assistant"] == [False, True]
    assert (made.label, made.answer()) == (False, "Because.")
    earlier = {"prompt": turns[:-1], "completion": turns[-1:], "label": False}
    assert made == example(earlier, "unpaired_preference")
    assert detect_shape([row])[0] == "messages", "the turns teach as they are where no objective asks for a label"
    assert detect_shape([row])[1] == "column messages -> messages; not used: label (objective: kto learns from label)"
    found = detect_shape([row], wanted="unpaired_preference")
    assert found == ("unpaired_preference", "columns messages, label -> unpaired_preference")
    assert refusal({"messages": turns, "label": "perhaps"}, "unpaired_preference").startswith("label")


def test_another_rejected_answer_makes_another_row_with_the_same_prompt() -> None:
    one = example({"prompt": "Why?", "chosen": "Because.", "rejected": "No."})
    other = example({"prompt": "Why?", "chosen": "Because.", "rejected": "Never."})
    assert one.prompt_key() == other.prompt_key() and one.content_key() != other.content_key()
    labels = [example({"prompt": "a", "completion": "b", "label": n}, "unpaired_preference") for n in (0, 1)]
    assert labels[0].content_key() != labels[1].content_key()


def test_personal_data_is_masked_in_the_rejected_answer_too() -> None:
    row = example({"prompt": "Who?", "chosen": "Ask ann@example.org.", "rejected": "Ask bob@example.org."})
    hidden = mask(row, ["email"])
    assert hidden.rejected is not None and "bob" not in hidden.rejected.content
    assert "ann" not in hidden.messages[-1].content


def pairs(path: Path, count: int = 12) -> Path:
    rows = [{"prompt": f"Why is {n} a number?", "chosen": f"It counts {n}.", "rejected": "No."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_pair_becomes_two_rows_behind_one_prompt(tmp_path: Path, tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    settings = DataSettings.model_validate({"train": str(pairs(tmp_path / "pairs.jsonl")), "eval": 0.0})
    corpus = encode_corpus(survey_rows(settings, seed=0, objective="dpo"), make_template(settings, tokenizer, [2]))
    assert (corpus.together, len(corpus.train), len(corpus.weights)) == (2, 24, 12)
    chosen, rejected = corpus.rows_of([3])
    assert chosen.example == rejected.example == 3
    start = int(chosen.supervised.argmax())
    assert np.array_equal(chosen.ids[:start], rejected.ids[:start]) and start == int(rejected.supervised.argmax())
    assert tokenizer.decode(chosen.ids[chosen.supervised]) == "It counts 3.<|im_end|>"
    assert tokenizer.decode(rejected.ids[rejected.supervised]) == "No.<|im_end|>"
    [batch] = micro_batches([chosen, rejected], budget=1, layout="tree", together=2)
    assert batch.computed == computed_tokens([chosen, rejected], layout="tree") <= batch.tokens - start


def test_preferences_are_checked_without_taking_two_answers_for_a_contradiction(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(6)]
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = inspect(str(path), format="unpaired_preference")
    assert "conflicting_answers" not in [finding.id for finding in report.findings]
    assert "conflicting_answers" in [finding.id for finding in inspect(str(path)).findings]


@pytest.mark.parametrize(("label", "kind"), [("True", "desirable"), ("no", "undesirable")])
def test_labels_that_are_all_alike_are_a_finding(tmp_path: Path, label: str, kind: str) -> None:
    path = tmp_path / "labelled.csv"
    lines = [f"Why {n}?,answer {n},{label}\n" for n in range(12)]
    path.write_text("prompt,completion,label\n" + "".join(lines))
    [found] = [each for each in inspect(str(path), format="unpaired_preference").findings if "label" in each.id]
    assert (found.id, found.severity, found.count) == ("one_sided_labels", "warning", 12)
    assert f"all labelled {kind}" in found.message
    path.write_text("prompt,completion,label\n" + "".join(lines) + "Who?,Nobody.,0\nWhen?,Never.,1\n")
    assert "one_sided_labels" not in {each.id for each in inspect(str(path), format="unpaired_preference").findings}


@pytest.mark.parametrize("shape", ["preference", "unpaired_preference"])
def test_a_prepared_dataset_has_both_answers_and_reads_back_the_same(tmp_path: Path, shape: Any) -> None:
    path = pairs(tmp_path / "rows.jsonl")
    if shape == "unpaired_preference":
        rows = [{"prompt": f"Why {n}?", "completion": "So.", "label": n % 2 == 0} for n in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_data(str(path), tmp_path / "out", format=shape, settings=["eval=0.0"])
    objective = "dpo" if shape == "preference" else "kto"

    def read(source: Path) -> list[Any]:
        settings = DataSettings.model_validate({"train": str(source), "eval": 0.0})
        found = survey_rows(settings, seed=0, objective=objective)
        examples = [made for block in found.scan.examples() for _, made in block]
        return [([(turn.role, turn.content) for turn in made.messages], made.rejected, made.label) for made in examples]

    assert read(tmp_path / "out") == read(path)


def test_rows_of_two_kinds_do_not_go_into_one_dataset(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "a", "completion": "b"}\n')

    settings = DataSettings.model_validate({"train": [str(pairs(tmp_path / "pairs.jsonl")), str(plain)], "eval": 0.0})
    with pytest.raises(DataError, match="do not go into one dataset"):
        _features(survey_rows(settings, seed=0))


def test_init_proposes_the_objective_that_the_rows_are_for(tmp_path: Path) -> None:
    made = starter_recipe(str(pairs(tmp_path / "pairs.jsonl", 60)))
    assert "objective: dpo  # learns which answers are better" in made.text
    assert made.metrics == ("preference_accuracy",) and "learning_rate: 2.5e-5" in made.text
