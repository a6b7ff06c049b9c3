"""The reference answers as drafts: what the loss pass decides of an answer, and that nothing else comes out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import LONGROPE, config_for, tiny
from transformers import AutoTokenizer, GenerationConfig

from tunesmith.data.batches.layout import LayoutName
from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.beginnings import beginning, unfinished
from tunesmith.evaluation.judge import Judge
from tunesmith.evaluation.metrics import tokens
from tunesmith.evaluation.task import Task, make_task, task_batches
from tunesmith.model.compute import kept_keys
from tunesmith.model.generate import Beginning
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Silent

STOP = 2
NEW = 12
LARGE = {"initializer_range": 0.3}
# Models that attend through the tree, and models that must be decoded in batches.
MODELS: list[tuple[str, LayoutName, dict[str, Any]]] = [
    ("llama", "tree", {}),
    ("mistral", "tree", {"sliding_window": 8}),
    ("gemma3_text", "tree", {"sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8}),
    ("gpt2", "padded", {"n_positions": 128}),
    ("qwen3", "padded", {"head_dim": 8}),
    ("gemma2", "tree", {"sliding_window": 8, "head_dim": 8, "query_pre_attn_scalar": 8}),  # soft-capped scores
    ("mamba", "padded", {}),
]


def whole(found: Beginning) -> tuple[list[int], bool]:
    return list(found.tokens), found.ended


def decided(reference: Sequence[int], likeliest: Sequence[int], unsure: int | None = None) -> tuple[list[int], bool]:
    certain = np.array([place != unsure for place in range(len(reference))])
    return whole(beginning(reference, np.array(likeliest), certain, stop_ids=(STOP, 7)))


def test_the_beginning_goes_up_to_and_with_the_first_token_that_differs() -> None:
    assert decided([5, 6, 8, STOP], [5, 6, 8, STOP]) == ([5, 6, 8], True)
    assert decided([5, 6, 8, STOP], [5, 9, 8, STOP]) == ([5, 9], False)
    assert decided([5, 6, 8, STOP], [5, 6, 8, 9]) == ([5, 6, 8, 9], False)
    assert decided([5, 6, 8, STOP], [5, 7, 8, STOP]) == ([5], True)  # another stop token
    assert decided([5, 6, 8], [5, 6, 8]) == ([5, 6, 8], False)  # the row was cut before its end
    assert decided([STOP], [STOP]) == ([], True)


def test_nothing_is_taken_from_a_choice_that_rounding_could_turn() -> None:
    assert decided([5, 6, 8, STOP], [5, 6, 8, STOP], unsure=1) == ([5], False)
    assert decided([5, 6, 8, STOP], [5, 6, 8, STOP], unsure=3) == ([5, 6, 8], False)
    assert decided([5, 6, 8, STOP], [9, 6, 8, STOP], unsure=0) == ([], False)


def plainly(model: Any, prompt: Sequence[int], stop: Sequence[int]) -> list[int]:
    line = torch.tensor([list(prompt)])
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=list(stop) or None)
    with torch.no_grad():
        made = model.generate(input_ids=line, attention_mask=torch.ones_like(line), generation_config=config)
    return made[0, len(prompt) :].tolist()


def rows_for(model: Any) -> tuple[list[Encoded], list[int]]:
    """Rows whose references are the model's answer: whole, changed in the middle, cut, followed by more, or another."""
    random = np.random.default_rng(5)
    common = random.integers(3, 90, 18).tolist()
    prompts = [[*common, *random.integers(3, 90, size).tolist()] for size in (3, 1, 6, 4, 9, 2)] + [[40, 41]]
    answers = [plainly(model, prompt, ()) for prompt in prompts]
    stops = [STOP, answers[0][6], answers[2][4]]
    references: list[list[int]] = []
    for number, prompt in enumerate(prompts):
        answer = plainly(model, prompt, stops)
        kinds = [answer, [*answer[:2], 91, *answer[3:]], answer[:3], [*answer[:-1], 91, 92, 93], [93, 92]]
        references.append(kinds[number % len(kinds)])
    rows = []
    for number, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        ids = np.array([*prompt, *reference], np.int32)
        rows.append(Encoded(ids, np.arange(len(ids)) >= len(prompt), f"held.jsonl:{number + 1}", number))
    return rows, stops


def judge_for(
    rows: Sequence[Encoded], stops: Sequence[int], tokenizer: Any, layout: LayoutName, **changes: Any
) -> tuple[Judge, Task]:
    settings = EvaluationSettings.model_validate(
        {"metrics": ["exact_match"], "max_new_tokens": NEW, "samples": 0, "batch_size": 3, **changes}
    )
    task = make_task(rows, list(range(99)), tokenizer=tokenizer, stop_ids=stops, settings=settings)
    return Judge(task, task_batches(task, budget=100, layout=layout), tokenizer, stops, settings), task


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.mark.parametrize("keep_keys", [False, True])
@pytest.mark.parametrize(("name", "layout", "changes"), MODELS, ids=[name for name, *_ in MODELS])
def test_judged_answers_are_those_of_a_plain_loop(
    name: str, layout: LayoutName, changes: dict[str, Any], keep_keys: bool, tokenizer: Any
) -> None:
    model = tiny(config_for(name, **LARGE, **changes))
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    judge, task = judge_for(rows, stops, tokenizer, layout, samples=len(rows))
    wanted = unfinished(task.questions, stops, None) if keep_keys else None
    scores = judge.token_scores(model, title="loss", listener=Silent(), keys_wanted=wanted)
    assert scores.choices is not None
    going_on = {q.row for q in task.questions if unfinished([q], stops, None)(q.row, *scores.choices.of(q.row))}
    assert 0 < len(going_on) < len(rows)
    assert set(scores.choices.keys) == (going_on if keep_keys and name != "mamba" else set())
    made = judge.answers(model, count=None, title="answers", listener=Silent(), choices=scores.choices)
    for answer, question in zip(made, task.questions, strict=True):
        expected = plainly(model, question.prompt, stops)
        stopped = bool(expected) and expected[-1] in stops
        assert list(answer.tokens) == expected[: len(expected) - stopped]
        assert answer.stopped == stopped
    matches = [
        answer.text.strip() == question.truth.strip() for answer, question in zip(made, task.questions, strict=True)
    ]
    assert any(matches) and not all(matches)


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_judged_answers_of_a_model_whose_rope_changes_with_the_length_are_those_of_a_plain_loop(
    layout: LayoutName, tokenizer: Any
) -> None:
    model = tiny(config_for("phi3", **LARGE, **LONGROPE))  # other frequencies behind 32 tokens
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    assert min(len(row.ids) for row in rows) < 32 - NEW < 32 < max(len(row.ids) for row in rows)
    judge, task = judge_for(rows, stops, tokenizer, layout, samples=len(rows))
    scores = judge.token_scores(model, title="loss", listener=Silent(), keys_wanted=_every_row)
    assert scores.choices is not None
    made = judge.answers(model, count=None, title="answers", listener=Silent(), choices=scores.choices)
    for answer, question in zip(made, task.questions, strict=True):
        expected = plainly(model, question.prompt, stops)
        assert list(answer.tokens) == [token for token in expected if token not in stops]


def test_no_token_of_a_prompt_is_computed_again_for_its_answer(tokenizer: Any) -> None:
    model = tiny(config_for("llama", **LARGE))
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    judge, task = judge_for(rows, stops, tokenizer, "tree")
    first = judge.measure(model, "tuned", listener=Silent())  # the trials are made once
    computed: list[int] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: computed.append(given[0].numel()))
    loss = judge.token_scores(model, title="loss", listener=Silent())
    of_the_loss = sum(computed)
    computed.clear()
    again = judge.measure(model, "tuned", listener=Silent())
    handle.remove()
    assert [answer.tokens for answer in again.answers] == [answer.tokens for answer in first.answers]
    # Behind the loss pass come only tokens of answers, and guesses at them.
    assert loss.choices is not None
    new = sum(len(answer.tokens) + 1 for answer in again.answers)
    prompts = sum(len(question.prompt) for question in task.questions)
    assert sum(computed) - of_the_loss < 2 * new < prompts


def test_keys_that_do_not_fit_are_computed_again(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(config_for("llama", **LARGE))
    rows, stops = rows_for(model)
    judge, _ = judge_for(rows, stops, tokenizer, "tree")
    expected = judge.measure(model, "tuned", listener=Silent())
    monkeypatch.setattr(tokens, "bytes_of_keys", lambda: 1)
    scores = judge.token_scores(model, title="loss", listener=Silent(), keys_wanted=_every_row)
    assert scores.choices is not None and not scores.choices.keys
    found = judge.measure(model, "tuned", listener=Silent())
    assert [answer.tokens for answer in found.answers] == [answer.tokens for answer in expected.answers]


def _every_row(row: int, likeliest: Any, certain: Any) -> bool:
    return True


def test_no_pass_keeps_keys_that_do_not_fit_beside_those_before_it(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(config_for("llama", **LARGE))
    rows, stops = rows_for(model)
    judge, _ = judge_for(rows, stops, tokenizer, "padded")
    size = kept_keys.bytes_of_token(model)
    assert size is not None
    sizes = [batch.input_ids.numel() * size for batch in judge.batches]
    assert len(sizes) > 2
    made: list[bool] = []

    def noted(*given: Any) -> kept_keys.KeepingCache | None:
        cache = kept_keys.keeping_cache(*given)
        made.append(cache is not None)
        return cache

    monkeypatch.setattr(tokens, "keeping_cache", noted)
    room = sizes[0]
    monkeypatch.setattr(tokens, "bytes_of_keys", lambda: room)
    first = set(judge.batches[0].edges.row.tolist())
    scores = judge.token_scores(model, title="loss", listener=Silent(), keys_wanted=lambda row, *_: row in first)
    assert scores.choices is not None and set(scores.choices.keys) == first
    # Rows of one batch share their line of keys.
    layers = next(iter(scores.choices.keys.values())).layers
    kept = sum(of.nbytes for pair in layers if pair is not None for of in pair)
    assert 0 < kept <= room
    assert made == [True, *(size <= room - kept for size in sizes[1:])]
    assert not all(made)


def test_the_room_for_keys_is_a_share_of_a_small_machines_memory() -> None:
    assert kept_keys.room_for_keys(2**31) == 2**26
    assert kept_keys.room_for_keys(2**34) == kept_keys.room_for_keys(2**40) == 2**29


def test_keys_of_another_pass_are_left_where_they_give_another_answer(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(config_for("llama", **LARGE))
    rows, stops = rows_for(model)
    judge, _ = judge_for(rows, stops, tokenizer, "tree")
    expected = judge.measure(model, "tuned", listener=Silent())
    other = tiny(config_for("llama", **LARGE))
    right = kept_keys.KeptKeys.of_layer

    def wrong(kept: kept_keys.KeptKeys, layer: int, count: int) -> Any:
        pair = right(kept, layer, count)
        return pair and (pair[0] + 1, pair[1])

    monkeypatch.setattr(kept_keys.KeptKeys, "of_layer", wrong)
    found = judge.measure(other, "tuned", listener=Silent())
    assert [answer.tokens for answer in found.answers] == [answer.tokens for answer in expected.answers]


def test_answers_that_equal_their_references_are_not_decoded(tokenizer: Any) -> None:
    model = tiny(config_for("llama", **LARGE))
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    rows = [rows[0], rows[5]]  # their references are the model's own answers
    expected = [plainly(model, row.ids[~row.supervised].tolist(), stops) for row in rows]
    assert all(answer[-1] in stops for answer in expected)
    judge, _ = judge_for(rows, stops, tokenizer, "tree")
    scores = judge.token_scores(model, title="loss", listener=Silent())
    model.generate = model.forward = None  # nothing may be computed
    made = judge.answers(model, count=None, title="answers", listener=Silent(), choices=scores.choices)
    assert [list(answer.tokens) for answer in made] == [answer[:-1] for answer in expected]
    assert all(answer.stopped for answer in made)


@pytest.mark.parametrize("known", [True, False])
def test_answers_that_cannot_match_any_more_are_left_unfinished_and_say_so(tokenizer: Any, known: bool) -> None:
    model = tiny(config_for("llama", **LARGE))
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    whole_judge, task = judge_for(rows, stops, tokenizer, "tree", samples=2)
    judge, _ = judge_for(rows, stops, tokenizer, "tree", samples=2, whole_answers=False)
    choices = judge.token_scores(model, title="loss", listener=Silent()).choices if known else None
    finished = whole_judge.answers(model, count=None, title="answers", listener=Silent(), choices=choices)
    found = judge.answers(model, count=None, title="answers", listener=Silent(), choices=choices)
    assert not any(answer.settled for answer in [*finished, *found[:2]])
    assert any(answer.settled for answer in found[2:])
    for short, answer, question in zip(found, finished, task.questions, strict=True):
        if short.settled:
            assert not short.stopped and len(short.tokens) < len(answer.tokens) + answer.stopped
            assert answer.tokens[: len(short.tokens)] == short.tokens
            assert answer.text.strip() != question.truth.strip()
        else:
            assert short == answer


@pytest.mark.parametrize("metrics", [["exact_match"], ["accuracy", "macro_f1"], ["macro_f1", "exact_match"]])
def test_the_record_marks_unfinished_answers_and_scores_do_not_change(tokenizer: Any, metrics: list[str]) -> None:
    model = tiny(config_for("llama", **LARGE))
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    judges = [
        judge_for(rows, stops, tokenizer, "tree", samples=2, whole_answers=each, metrics=metrics)[0]
        for each in (True, False)
    ]
    (whole_verdict, whole_lines), (verdict, lines) = (
        judge.verdict(model, nullcontext(model), listener=Silent()) for judge in judges
    )
    assert [line["scores"] for line in lines] == [line["scores"] for line in whole_lines]
    assert verdict["metrics"] == whole_verdict["metrics"]
    assert verdict.get("details") == whole_verdict.get("details")
    marked = ["tuned_settled" in line and "base_settled" in line for line in lines]
    assert any(marked) and not any(marked[:2])
    assert not any("tuned_settled" in line for line in whole_lines)


def test_some_answers_evenly_apart_are_whole_and_show_broken_answers(tokenizer: Any) -> None:
    model = tiny(config_for("llama", **LARGE))
    model.generation_config = GenerationConfig()
    rows, stops = rows_for(model)
    # No answer can match.
    strange = []
    for row in rows:
        ids = row.ids.copy()
        ids[row.supervised] = 94
        strange.append(replace(row, ids=ids))
    judge, _ = judge_for(strange, stops, tokenizer, "tree", samples=1, whole_answers=3)
    verdict, lines = judge.verdict(model, nullcontext(model), listener=Silent())
    unfinished = [number for number, line in enumerate(lines) if "tuned_settled" in line]
    assert len(unfinished) > 1 and set(unfinished) <= {1, 2, 4, 5}  # 0, 3 and 6 are three of seven
    assert verdict["metrics"]["exact_match"]["rows"] == 7
    of_all, _ = judge_for(strange, stops, tokenizer, "tree", samples=1)
    assert not any("tuned_settled" in line for line in of_all.verdict(model, nullcontext(model), listener=Silent())[1])
