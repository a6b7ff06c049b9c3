"""A model on held-out rows: losses from its logits, scores of its answers; and two such measurements compared.

Prompt and reference answer are cut out of the encoded row, so evaluation sends the very tokens that training saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import Batch
from tunesmith.evaluation.compare import LARGEST_EXPONENT, compare
from tunesmith.evaluation.metrics.answers import score_answers, text_metrics
from tunesmith.evaluation.metrics.base import RowScores
from tunesmith.evaluation.metrics.tokens import TokenScores, row_losses
from tunesmith.evaluation.metrics.user_functions import computed_metrics
from tunesmith.evaluation.task import Task
from tunesmith.model.generate import Generation, check_prompts, generate
from tunesmith.model.modes import random_state_kept
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Listener, Silent

SAMPLE_TOKENS = 48  # of the answer at an evaluation


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model did on a task: scores by metric, and its answers (none where no answer was asked for).

    ``of_answers`` are the scores that stand for one question each, ``computed`` what the recipe's function gives.
    """

    scores: dict[str, RowScores]
    of_answers: dict[str, RowScores]
    answers: list[Generation]
    computed: dict[str, float] = field(default_factory=dict)


def token_scores(
    model: nn.Module, task: Task, batches: Sequence[Batch], *, title: str, listener: Listener
) -> TokenScores:
    """Losses of every row of the task, with progress."""
    with listener.task(title, len(batches)) as advance:
        done = iter(range(1, len(batches) + 1))
        return row_losses(
            model,
            batches,
            rows=len(task.rows),
            device=next(model.parameters()).device,
            on_batch=lambda _: advance(next(done), {}),
        )


def check_questions(model: nn.Module, task: Task, settings: EvaluationSettings) -> None:
    """Raises now what making the answers would raise after training: a prompt too long for the model."""
    count = None if text_metrics(settings.metrics) else settings.samples
    check_prompts(model, [question.prompt for question in task.questions[:count]], settings=_decoding(settings))


def _decoding(settings: EvaluationSettings) -> GenerationSettings:
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )


def answers(
    model: nn.Module,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: EvaluationSettings,
    count: int | None,
    title: str,
    listener: Listener,
) -> list[Generation]:
    """Answers to the first ``count`` questions (None: all), one each."""
    questions = task.questions[:count]
    with listener.task(title, len(questions)) as advance:
        done = 0

        def on_batch(completed: int) -> None:
            nonlocal done
            done += completed
            advance(done, {})

        made = generate(
            model,
            tokenizer,
            [question.prompt for question in questions],
            settings=_decoding(settings),
            stop_ids=stop_ids,
            batch_size=settings.batch_size,
            on_batch=on_batch,
        )
    return [sequences[0] for sequences in made]


def measure(
    model: nn.Module,
    task: Task,
    batches: Sequence[Batch],
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: EvaluationSettings,
    name: str,
    listener: Listener,
    known: TokenScores | None = None,
) -> Measured:
    """Everything the recipe asks of one model. ``known``: token scores that were taken already, not taken again.

    Answers are made for every question if a metric needs them, else for the samples alone.
    """
    with torch.no_grad():
        tokens = known or token_scores(model, task, batches, title=f"{name}: loss", listener=listener)
        metrics = text_metrics(settings.metrics)
        count = None if metrics else settings.samples
        computed = {}
        if settings.compute_metrics is not None:
            device = next(model.parameters()).device
            computed = computed_metrics(settings.compute_metrics, model, batches, device=device)
        made = [] if count == 0 else answers(
            model, task, tokenizer=tokenizer, stop_ids=stop_ids, settings=settings, count=count,
            title=f"{name}: answers", listener=listener,
        )  # fmt: skip
    of_answers: dict[str, RowScores] = {}
    if metrics:
        of_answers = score_answers(
            metrics,
            answers=[answer.text for answer in made],
            truths=[question.truth for question in task.questions],
            prompts=[question.prompt_text for question in task.questions],
            groups=[question.group for question in task.questions],
        )
    return Measured({**task.scores(tokens), **of_answers}, of_answers, made, computed)


def judge(
    model: nn.Module,
    base: AbstractContextManager[nn.Module] | None,
    task: Task,
    batches: Sequence[Batch],
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: EvaluationSettings,
    listener: Listener,
    known: TokenScores | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The verdict and the answers side by side. Without a base there is none to be better than, and no verdict.

    Args:
        model: the tuned model.
        base: inside it, the untuned one.
        known: the tuned model's token scores on this task, if they were taken already.

    Returns:
        The content of verdict.json, and the lines of samples.jsonl.
    """
    parts: dict[str, Any] = {
        "tokenizer": tokenizer, "stop_ids": stop_ids, "settings": settings, "listener": listener,
    }  # fmt: skip
    tuned = measure(model, task, batches, name="tuned", known=known, **parts)
    if base is None:
        return _alone(tuned, task.metrics(settings.metrics), len(task.questions)), samples(task, None, tuned)
    with base as untuned:
        before = measure(untuned, task, batches, name="base", **parts)
    verdict = compare(
        before.scores,
        tuned.scores,
        metrics=task.metrics(settings.metrics),
        confidence=settings.confidence,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    if tuned.computed:
        both = {
            name: {"base": before.computed[name], "tuned": value}
            for name, value in tuned.computed.items()
            if name in before.computed
        }
        verdict = {**verdict, "compute_metrics": both}
        said = (f"{name} {pair['base']:.4g} -> {pair['tuned']:.4g}" for name, pair in both.items())
        listener.say(f"{settings.compute_metrics}, base -> tuned: {', '.join(said)}")
    return {**verdict, **_by_source(task, before, tuned)}, samples(task, before, tuned)


def _by_source(task: Task, base: Measured, tuned: Measured) -> dict[str, Any]:
    """Losses of a mixture, apart: ``{by_source: {path: {rows, tokens, base, tuned}}}``; tokens of means over tokens."""
    before, after = (task.losses_by_source(each.scores["loss"]) for each in (base, tuned))
    tokens = tuned.scores["loss"].weight
    found = {
        name: {
            "rows": len(rows),
            **({"tokens": int(tokens[rows].sum())} if task.preferences is None else {}),
            "base": before[name],
            "tuned": after[name],
        }
        for name, rows in task.sources.items()
    }
    return {"by_source": found} if found else {}


def _alone(measured: Measured, metrics: Sequence[str], rows: int) -> dict[str, Any]:
    values = {name: scores.value for name, scores in measured.scores.items()}
    values["perplexity"] = math.exp(min(values["loss"], LARGEST_EXPONENT))
    names = [*metrics, *(["loss"] if "loss" not in metrics else [])]
    computed = {"compute_metrics": {name: {"value": value} for name, value in measured.computed.items()}}
    found = computed if measured.computed else {}
    return {"verdict": None, **found, "metrics": {name: {"value": values[name]} for name in names}, "rows": rows}


def samples(task: Task, base: Measured | None, tuned: Measured) -> list[dict[str, Any]]:
    """Answers side by side, a line of samples.jsonl each."""
    lines = []
    for number, answer in enumerate(tuned.answers):
        question = task.questions[number]
        line: dict[str, Any] = {"source": question.source, "prompt": question.prompt_text, "truth": question.truth}
        if base is not None:
            line |= {"base": base.answers[number].text, "base_stopped": base.answers[number].stopped}
        line |= {"tuned": answer.text, "tuned_stopped": answer.stopped}
        scored = {name: float(of.total[number]) for name, of in tuned.of_answers.items()}
        lines.append(line | {"scores": scored} if scored else line)
    return lines


def sample_answer(
    model: nn.Module,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """A short greedy answer to the task's first question; weights, modes and random state stay as they are.

    Returns:
        ``{source, prompt, truth, answer, stopped}``; stopped is false where the answer was cut off.
    """
    short = min(settings.max_new_tokens, SAMPLE_TOKENS)
    greedy = settings.model_copy(update={"do_sample": False, "max_new_tokens": short})
    asked: dict[str, Any] = {"tokenizer": tokenizer, "stop_ids": stop_ids, "settings": greedy, "listener": Silent()}
    with random_state_kept(next(model.parameters()).device):
        (answer,) = answers(model, task, count=1, title="sample", **asked)
    question = task.questions[0]
    return {
        "source": question.source,
        "prompt": question.prompt_text,
        "truth": question.truth,
        "answer": answer.text,
        "stopped": answer.stopped,
    }
