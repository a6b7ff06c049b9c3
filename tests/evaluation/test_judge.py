"""Held-out rows as questions, what is measured on them and what is not measured twice, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.data.chat.template import ChatTemplate, Encoded
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation import judge as judging
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics.tokens import TokenScores
from tunesmith.evaluation.task import Task, make_task, task_batches
from tunesmith.model.compute.attention import install
from tunesmith.model.generate import Generation
from tunesmith.recipe.data import DataSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Advance, Silent

STOPS = (2,)


class Heard(Silent):
    """A listener that keeps the titles of tasks and how far each came."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[Any]] = {}

    @contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Keeps every count that is told, the total first."""
        self.tasks[title] = [total]
        yield lambda done, facts: self.tasks[title].append(done)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")
    install(loaded)
    return loaded


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> ChatTemplate:
    settings = DataSettings.model_validate({"train": "rows.jsonl"})
    return ChatTemplate(tokenizer, stop_ids=STOPS, settings=settings, date="2025-01-31")


def talk(number: int, answer: str | None = None) -> Example:
    answer = f"answer {number}" if answer is None else answer
    turns = (Message("system", "Be brief."), Message("user", f"question {number}"), Message("assistant", answer))
    return Example(turns, f"held.jsonl:{number + 1}")


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate({"samples": 0, "resamples": 200, "max_new_tokens": 4, **changes})


def encode(template: ChatTemplate, examples: Sequence[Example]) -> list[Encoded]:
    return [row for number, example in enumerate(examples) for row in template.encode(example, number)]


def task_of(
    template: ChatTemplate, examples: Sequence[Example], groups: Sequence[int] | None = None, **changes: Any
) -> Task:
    return make_task(
        encode(template, examples),
        list(range(len(examples))) if groups is None else groups,
        tokenizer=template.tokenizer,
        stop_ids=STOPS,
        settings=settings(**changes),
    )


def test_the_question_is_what_generation_would_send_and_the_truth_its_answer(template: ChatTemplate) -> None:
    examples = [talk(0), talk(1, "two\nlines"), talk(2, " é ")]
    for question, example in zip(task_of(template, examples).questions, examples, strict=True):
        before, answer = template.reference(example)
        assert question.prompt == template.prompt_ids(before)
        assert question.truth == answer
        assert question.source == example.source
        assert question.prompt_text == f"system\nBe brief.\nuser\n{before[-1].content}\nassistant\n"


def test_of_several_answers_in_a_conversation_the_last_is_asked_for(template: ChatTemplate) -> None:
    turns = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    example = Example(tuple(Message(role, content) for role, content in turns), "held.jsonl:1")
    (question,) = task_of(template, [example]).questions
    assert question.prompt == template.prompt_ids(example.messages[:3])
    assert question.truth == "2"


def test_an_example_of_several_rows_is_asked_once_by_its_last(template: ChatTemplate) -> None:
    rows = [*template.encode(talk(0), 0), *template.encode(talk(1), 0), *template.encode(talk(2), 1)]
    task = make_task(rows, [7, 8], tokenizer=template.tokenizer, stop_ids=STOPS, settings=settings())
    assert [question.truth for question in task.questions] == ["answer 1", "answer 2"]
    assert len(task.rows) == 3
    assert task.groups == [7, 7, 8]
    assert [question.group for question in task.questions] == [7, 8]


def test_a_raw_text_is_asked_for_all_but_its_first_token(template: ChatTemplate) -> None:
    task = task_of(template, [Example((), "held.jsonl:1", text="a document")])
    (question,) = task.questions
    assert len(question.prompt) == 1
    assert question.truth.endswith("document")


def test_rows_are_drawn_by_seed_up_to_the_limit(template: ChatTemplate) -> None:
    examples = [talk(number) for number in range(20)]

    def drawn(seed: int) -> list[str]:
        task = task_of(template, examples, max_rows=6, seed=seed)
        assert [row.source for row in task.rows] == [question.source for question in task.questions]
        return [question.source for question in task.questions]

    assert len(drawn(0)) == 6
    assert drawn(0) == drawn(0) != drawn(1)
    order = [int(source.partition(":")[2]) for source in drawn(0)]
    assert order == sorted(order), "in the order of the file"
    assert len(task_of(template, examples, max_rows=20).questions) == 20
    assert len(task_of(template, examples, max_rows=99).questions) == 20


def test_groups_go_with_the_rows_that_are_drawn(template: ChatTemplate) -> None:
    groups = [10 * number for number in range(8)]
    task = task_of(template, [talk(number) for number in range(8)], groups, max_rows=3)
    numbers = [int(row.source.partition(":")[2]) - 1 for row in task.rows]
    assert task.groups == [groups[number] for number in numbers]
    assert [question.group for question in task.questions] == task.groups


def test_an_answer_that_a_metric_cannot_judge_is_named_before_training(template: ChatTemplate) -> None:
    with pytest.raises(DataError) as caught:
        task_of(template, [talk(0, "{}"), talk(1, "no JSON")], metrics=["json_fields"])
    assert caught.value.where == "held.jsonl:2"


def test_a_prompt_too_long_for_the_model_is_told_before_training(template: ChatTemplate, model: Any) -> None:
    long = Example((Message("user", "word " * 600), Message("assistant", "x")), "held.jsonl:2")
    task = task_of(template, [talk(0), long])
    with pytest.raises(ModelError):
        judge_of(task, template.tokenizer, metrics=["exact_match"]).check_questions(model)
    judge_of(task, template.tokenizer, samples=1).check_questions(model)  # only the first is asked
    with pytest.raises(ModelError):
        judge_of(task, template.tokenizer, samples=2).check_questions(model)


def judge_of(task: Task, tokenizer: Any, budget: int = 500, **changes: Any) -> Judge:
    return Judge(task, task_batches(task, budget=budget, layout="padded"), tokenizer, STOPS, settings(**changes))


def measured(model: Any, task: Task, tokenizer: Any, listener: Heard, **changes: Any) -> judging.Measured:
    known = changes.pop("known", None)
    return judge_of(task, tokenizer, budget=200, **changes).measure(model, "tuned", listener=listener, known=known)


def test_scores_of_tokens_are_those_of_the_rows(template: ChatTemplate, model: Any, tokenizer: Any) -> None:
    task = task_of(template, [talk(number) for number in range(4)], [0, 1, 1, 2])
    heard = Heard()
    found = measured(model, task, tokenizer, heard)
    trees = replace(judge_of(task, tokenizer), batches=task_batches(task, budget=10_000, layout="tree"))
    direct = trees.token_scores(model, title="x", listener=Silent())
    assert found.scores["loss"].value == pytest.approx(direct.loss, rel=1e-6)
    assert cast("Any", found.scores["loss"]).weight.tolist() == [int(row.supervised.sum()) for row in task.rows]
    assert found.scores["token_accuracy"].value == pytest.approx(direct.token_accuracy)
    groups = found.scores["loss"].groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 1, 2]
    assert found.answers == []
    assert list(heard.tasks) == ["tuned: loss"]
    total, *counts = heard.tasks["tuned: loss"]
    assert counts == list(range(1, total + 1))


def test_known_scores_are_not_taken_again(template: ChatTemplate, model: Any, tokenizer: Any) -> None:
    task = task_of(template, [talk(number) for number in range(3)])
    known = TokenScores(np.array([1.0, 2.0, 3.0]), np.zeros(3), np.array([1.0, 1.0, 2.0]))
    heard = Heard()
    found = measured(model, task, tokenizer, heard, known=known)
    assert heard.tasks == {}
    assert found.scores["loss"].value == 1.5


def test_only_samples_are_answered_where_no_metric_needs_answers(
    template: ChatTemplate, model: Any, tokenizer: Any
) -> None:
    task = task_of(template, [talk(number) for number in range(5)])
    heard = Heard()
    found = measured(model, task, tokenizer, heard, samples=2, metrics=["perplexity"])
    assert len(found.answers) == 2
    assert found.of_answers == {}
    assert heard.tasks["tuned: answers"][0] == heard.tasks["tuned: answers"][-1] == 2
    assert all(len(answer.tokens) <= 4 for answer in found.answers)


class Scripted:
    """Stands for ``generate``: the reference answers, or others, in the order of the calls."""

    def __init__(self, *scripts: Sequence[str]) -> None:
        self.scripts = list(scripts)
        self.prompts: list[list[int]] = []

    def __call__(
        self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], **options: Any
    ) -> list[list[Generation]]:
        self.prompts += prompts
        assert options["settings"].max_new_tokens == 4
        return [[Generation(text, (), stopped=True)] for text in self.scripts.pop(0)]


def judged(
    model: Any, base: Any, task: Task, tokenizer: Any, **changes: Any
) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    known = changes.pop("known", None)
    return judge_of(task, tokenizer, **changes).verdict(model, base, listener=Silent(), known=known)


LLAMA = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|endoftext|>\n\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|endoftext|>\n\n' }}{% endif %}"
)
NO_TURNS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        (None, "two\nlines?"),
        (LLAMA, "two\nlines?"),
        (NO_TURNS, "system: Be brief.\nuser: two\nlines?\nassistant:"),
    ],
    ids=["chatml", "role between tokens", "no tokens"],
)
def test_the_last_turn_of_a_prompt_is_shown_without_its_system_turn_and_roles(
    tiny_model_dir: Path, written: str | None, asked: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    if written is not None:
        tokenizer.chat_template = written
    own = DataSettings.model_validate({"train": "rows.jsonl"})
    template = ChatTemplate(tokenizer, stop_ids=STOPS, settings=own, date="2025-01-31")
    turns = (Message("system", "Be brief."), Message("user", "two\nlines?"), Message("assistant", "yes"))
    [question] = task_of(template, [Example(turns, "held.jsonl:1")]).questions
    assert question.asked == asked
    assert "Be brief." in question.prompt_text


def test_answers_are_scored_and_shown_side_by_side(
    template: ChatTemplate, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(template, [talk(number) for number in range(8)])
    truths = [f"answer {number}" for number in range(8)]
    scripted = Scripted(truths, ["wrong", *truths[1:2], *["wrong"] * 6])  # tuned first, then base
    monkeypatch.setattr(judging, "generate", scripted)
    verdict, samples = judged(model, nullcontext(model), task, tokenizer, metrics=["exact_match"])
    assert scripted.prompts == [question.prompt for question in task.questions] * 2
    assert (verdict["verdict"], verdict["decided_by"], verdict["rows"]) == ("better", "exact_match", 8)
    found = verdict["metrics"]["exact_match"]
    assert (found["base"], found["tuned"], found["difference"]) == (0.125, 1.0, 0.875)
    assert list(verdict["metrics"]) == ["exact_match", "loss"]
    assert verdict["metrics"]["loss"]["difference"] == 0
    assert len(samples) == 8
    assert samples[1] == {
        "source": "held.jsonl:2",
        "prompt": task.questions[1].prompt_text,
        "asked": task.questions[1].asked,
        "truth": "answer 1",
        "base": "answer 1",
        "base_stopped": True,
        "tuned": "answer 1",
        "tuned_stopped": True,
        "scores": {"exact_match": 1.0},
        "base_scores": {"exact_match": 1.0},
    }


def test_a_model_against_itself_is_no_evidence(template: ChatTemplate, model: Any, tokenizer: Any) -> None:
    task = task_of(template, [talk(number) for number in range(8)])
    verdict, samples = judged(model, nullcontext(model), task, tokenizer)
    assert (verdict["verdict"], verdict["decided_by"], samples) == ("no evidence", "loss", [])
    assert verdict["metrics"]["loss"]["interval"] == [0.0, 0.0]


def test_a_lower_loss_on_every_row_is_better_and_the_base_is_taken_inside_its_context(
    template: ChatTemplate, model: Any, tokenizer: Any
) -> None:
    task = task_of(template, [talk(number) for number in range(8)])
    base = judge_of(task, tokenizer).token_scores(model, title="x", listener=Silent())
    known = TokenScores(base.nll_sum * 0.5, base.correct, base.tokens)
    entered = []

    @contextmanager
    def untuned() -> Iterator[Any]:
        entered.append("in")
        yield model
        entered.append("out")

    verdict, _ = judged(model, untuned(), task, tokenizer, known=known, metrics=["perplexity"])
    assert entered == ["in", "out"]
    assert verdict["verdict"] == "better"
    assert list(verdict["metrics"]) == ["perplexity", "loss"]
    assert verdict["metrics"]["loss"]["tuned"] == pytest.approx(base.loss / 2)
    assert verdict["metrics"]["perplexity"]["base"] == pytest.approx(math.exp(base.loss))


def test_without_a_base_there_are_values_and_no_verdict(
    template: ChatTemplate, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(template, [talk(number) for number in range(2)])
    monkeypatch.setattr(judging, "generate", Scripted(["answer 0", "wrong"]))
    known = TokenScores(np.array([2.0, 4.0]), np.array([1.0, 0.0]), np.array([2.0, 2.0]))
    verdict, samples = judged(model, None, task, tokenizer, known=known, metrics=["exact_match", "perplexity"])
    assert verdict == {
        "verdict": None,
        "metrics": {
            "exact_match": {"value": 0.5},
            "perplexity": {"value": pytest.approx(math.exp(1.5))},
            "loss": {"value": 1.5},
        },
        "rows": 2,
    }
    assert [set(sample) for sample in samples] == [
        {"source", "prompt", "asked", "truth", "tuned", "tuned_stopped", "scores"}
    ] * 2


def test_losses_of_a_mixture_are_told_apart(template: ChatTemplate, model: Any, tokenizer: Any) -> None:
    task = task_of(template, [talk(number) for number in range(5)])
    mixture = replace(task, sources={"a.jsonl": np.array([0, 3]), "b.jsonl": np.array([1, 2, 4])})
    base = judge_of(task, tokenizer).token_scores(model, title="x", listener=Silent())
    known = TokenScores(np.array([1.0, 2.0, 3.0, 5.0, 4.0]), base.correct, base.tokens)
    verdict, _ = judged(model, nullcontext(model), mixture, tokenizer, known=known)
    tokens = base.tokens
    assert set(verdict["by_source"]) == {"a.jsonl", "b.jsonl"}
    for name, rows in mixture.sources.items():
        assert verdict["by_source"][name] == {
            "rows": len(rows),
            "tokens": int(tokens[rows].sum()),
            "base": pytest.approx(base.nll_sum[rows].sum() / tokens[rows].sum()),
            "tuned": pytest.approx(known.nll_sum[rows].sum() / tokens[rows].sum()),
        }
    assert mixture.losses_by_source(known.scores()["loss"])["a.jsonl"] == pytest.approx(6 / tokens[[0, 3]].sum())
    alone, _ = judged(model, nullcontext(model), task, tokenizer, known=known)
    assert "by_source" not in alone
    assert {name: value for name, value in verdict.items() if name != "by_source"} == alone
