"""Measures a model on held-out rows and compares it with the base: losses from logits, scores of answers, the verdict.

Prompt and reference answer are cut out of the encoded row, so evaluation sends the same tokens that training saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import Batch
from tunesmith.evaluation.baselines import Baselines
from tunesmith.evaluation.beginnings import beginning, unfinished
from tunesmith.evaluation.compare import Level, compare
from tunesmith.evaluation.damage import signs
from tunesmith.evaluation.endpoint import endpoint_of, over_plain_http
from tunesmith.evaluation.few_shot import decoding_of
from tunesmith.evaluation.label_likelihoods import (
    check_label_lengths,
    label_likelihoods,
    wanted_by,
    with_intervals,
)
from tunesmith.evaluation.measured import (
    Measured,
    Responses,
    computed_pairs,
    details_of,
    losses_by_source,
    samples_of,
    slices_of,
    values_alone,
)
from tunesmith.evaluation.metrics import judged
from tunesmith.evaluation.metrics.answers import likelihood_metrics, needs_answers, score_answers, text_metrics
from tunesmith.evaluation.metrics.base import AnswerRows, EndsEarly, RowScores, Scores
from tunesmith.evaluation.metrics.by_likelihood import LikelihoodRows
from tunesmith.evaluation.metrics.computed import computed_metrics
from tunesmith.evaluation.metrics.tokens import Choices, KeysWanted, TokenScores, row_losses
from tunesmith.evaluation.not_measured import NotMeasured
from tunesmith.evaluation.task import Question, Task
from tunesmith.model.generate import PARTIAL_CHARACTER, Beginning, Generation, check_prompts, decode_text, generate
from tunesmith.model.label_tree import Wanted
from tunesmith.model.modes import random_state_kept
from tunesmith.recipe.settings import PAIR_METRICS, EvaluationSettings
from tunesmith.runs.progress import Advance, Listener, Silent

Side = Literal["base", "tuned"]
SAMPLE_TOKENS = 48  # the longest answer that is sampled during training


@dataclass(frozen=True, slots=True)
class Judge:
    """Measures and compares models on one task.

    Args:
        task: the held-out rows.
        batches: the same rows, laid out once for every loss that is measured on them.
        tokenizer: of the model.
        stop_ids: token ids that end an answer.
        settings: the metrics, and how answers are generated.
    """

    task: Task
    batches: Sequence[Batch]
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    settings: EvaluationSettings

    def with_reference(self, logprobs: np.ndarray) -> Judge:
        """The same with the untuned model's log-probability of each row's labels, float64 [rows]."""
        return replace(self, task=self.task.with_reference(logprobs))

    def check_questions(self, model: nn.Module) -> None:
        """Raises ModelError if a prompt is too long for the model, which would otherwise show after training."""
        count = None if needs_answers(self.settings) else self.settings.samples
        prompts = [question.prompt for question in self.task.questions[:count]]
        check_prompts(model, prompts, settings=decoding_of(self.settings))
        if likelihood_metrics(self.settings.metrics):
            check_label_lengths(model, self.task.questions, self.task.labels)

    def token_scores(
        self, model: nn.Module, *, title: str, listener: Listener, keys_wanted: KeysWanted | None = None
    ) -> TokenScores:
        """Losses of every row, with progress. ``keys_wanted``: the rows from which answers go on."""
        with listener.task(title, len(self.batches)) as advance:
            batches = _counted(self.batches, advance)
            rows, device = len(self.task.rows), _device_of(model)
            return row_losses(model, batches, rows=rows, device=device, keys_wanted=keys_wanted)

    def answers(
        self,
        model: nn.Module,
        *,
        count: int | None,
        title: str,
        listener: Listener,
        choices: Choices | None = None,
    ) -> list[Generation]:
        """One answer to each of the first ``count`` questions (None: all).

        Args:
            choices: this model's choices along the reference answers, if they are known.
        """
        questions, done = self.task.questions[:count], 0
        if not questions:
            return []

        def on_batch(completed: int) -> None:
            nonlocal done
            done += completed
            advance(done, {})

        with listener.task(title, len(questions)) as advance:
            made = generate(
                model,
                self.tokenizer,
                [question.prompt for question in questions],
                settings=decoding_of(self.settings),
                stop_ids=self.stop_ids,
                batch_size=self.settings.batch_size,
                on_batch=on_batch,
                begun=self._begun(questions, choices),
                settled=self._settled(questions),
            )
        return [sequences[0] for sequences in made]

    def measure(
        self,
        model: nn.Module,
        name: str,
        *,
        listener: Listener,
        known: TokenScores | None = None,
        kept: list[Generation] | None = None,
        left_out: NotMeasured | None = None,
    ) -> Measured:
        """Everything that the recipe asks of one model. What is ``known`` or ``kept`` is not measured again.

        Every question is answered if a metric needs answers. If none does, only the samples are. ``left_out`` takes why
        the user's function has no numbers, if memory runs out for them.
        """
        found = self.scored(self.respond(model, name, listener=listener, known=known, kept=kept))
        if self.settings.compute_metrics is None:
            return found
        computed: dict[str, float] = {}
        with (left_out or NotMeasured(listener)).noting_memory("compute_metrics", name), torch.no_grad():
            computed = computed_metrics(self.settings.compute_metrics, model, self.batches, device=_device_of(model))
        return replace(found, computed=computed)

    def respond(
        self,
        model: nn.Module,
        name: str,
        *,
        listener: Listener,
        known: TokenScores | None = None,
        kept: list[Generation] | None = None,
        all_labels: bool = False,
    ) -> Responses:
        """Measures the tokens and makes the answers. What is ``known`` or ``kept`` of them is taken as it is.

        ``all_labels``: the likelihood of every label is its own, so that some of them can be compared alone.
        """
        with torch.no_grad():
            all_answered = needs_answers(self.settings)
            wanted = None
            if all_answered and not self.settings.do_sample and kept is None:
                wanted = unfinished(self.task.questions, self.stop_ids, self._settled(self.task.questions))
            tokens = known or self.token_scores(model, title=f"{name}: loss", listener=listener, keys_wanted=wanted)
            if kept is None:
                count, choices = None if all_answered else self.settings.samples, tokens.choices
                kept = self.answers(model, count=count, title=f"{name}: answers", listener=listener, choices=choices)
            labels_wanted = "all" if all_labels else wanted_by(self.settings.metrics)
            of_labels = self._label_likelihoods(model, name, labels_wanted, listener)
        return Responses(replace(tokens, choices=None), kept, of_labels)

    def scored(self, responses: Responses) -> Measured:
        """Every metric of what a model did on this task."""
        metrics, questions = text_metrics(self.settings), self.task.questions
        of_answers: dict[str, Scores] = {}
        if metrics:
            of_answers = score_answers(
                metrics,
                answers=[answer.text for answer in responses.answers],
                truths=[question.truth for question in questions],
                prompts=[question.prompt_text for question in questions],
                groups=[question.group for question in questions],
                labels=self._label_texts,
            )
        if responses.of_labels is not None:
            by_likelihood = likelihood_metrics(self.settings.metrics)
            of_answers |= {metric.name: metric.scores(responses.of_labels) for metric in by_likelihood}
        return Measured({**self.task.scores(responses.tokens), **of_answers}, of_answers, responses.answers, {})

    def _label_likelihoods(
        self, model: nn.Module, name: str, labels_wanted: Wanted, listener: Listener
    ) -> LikelihoodRows | None:
        """The likelihood of each label, if the recipe names a metric of them."""
        done = 0
        if not likelihood_metrics(self.settings.metrics):
            return None

        def on_rows(completed: int) -> None:
            nonlocal done
            done += completed
            advance(done, {})

        with listener.task(f"{name}: labels", len(self.task.questions)) as advance:
            return label_likelihoods(
                model,
                self.task.questions,
                self.task.labels,
                forms=self.settings.normalize,
                stop_ids=self.stop_ids,
                wanted=labels_wanted,
                on_rows=on_rows,
            )

    @property
    def _label_texts(self) -> list[str]:
        return [each.text for each in self.task.labels]

    def verdict(
        self,
        model: nn.Module,
        base: AbstractContextManager[nn.Module] | None,
        *,
        listener: Listener,
        known: TokenScores | None = None,
        kept: Callable[[Side], list[Generation] | None] = lambda side: None,
        baselines: Callable[[], Baselines | None] = lambda: None,
        left_out: NotMeasured | None = None,
        judge_may_fail: bool = False,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The verdict, and the answers of both models side by side. Without a base there are values but no verdict.

        Args:
            model: the tuned model.
            base: a context that gives the untuned model.
            listener: hears the progress.
            known: the tuned model's token scores on this task, if they are known already.
            kept: the answers of a model to every question that is answered, if they need not be made again.
            baselines: to compare the tuned model's answers with; asked for once both models have answered.
            left_out: takes what could not be measured beside the metrics.
            judge_may_fail: a judge that cannot be asked is left out, and the other metrics, or the loss, decide.

        Returns:
            The content of verdict.json, and the lines of samples.jsonl.
        """
        task, settings = self.task, self.settings
        tuned = self.measure(model, "tuned", listener=listener, known=known, kept=kept("tuned"), left_out=left_out)
        metrics = task.metrics(settings.metrics)
        if base is None:
            return values_alone(tuned, metrics, len(task.questions)), samples_of(task, None, tuned)
        with base as untuned:
            before = self.measure(untuned, "base", listener=listener, kept=kept("base"), left_out=left_out)
        replies: list[tuple[str, str]] = []
        with (left_out or NotMeasured(listener)).noting(judged.NAME) if judge_may_fail else nullcontext():
            before, tuned, replies = self.with_judge(before, tuned, listener=listener)
        if judged.NAME in metrics and judged.NAME not in tuned.scores:
            listener.say("the other metrics decide; `tunesmith eval RUN` with --allow-functions asks the judge again")
            metrics = task.metrics([name for name in metrics if name != judged.NAME])
        of_base, of_tuned = self.signs_of(before), self.signs_of(tuned)
        verdict = compare(
            before.scores,
            tuned.scores,
            metrics=metrics,
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
            margin=settings.margin,
            signs={name: (of_base[name], of_tuned[name]) for name in of_tuned},
        )
        computed = computed_pairs(before, tuned)
        if computed:
            said = (f"{name} {pair['base']:.4g} -> {pair['tuned']:.4g}" for name, pair in computed.items())
            listener.say(f"{settings.compute_metrics}, base -> tuned: {', '.join(said)}")
        found: dict[str, Any] = {"compute_metrics": computed} if tuned.computed else {}
        level = Level(settings.confidence, settings.resamples, settings.seed)
        details = with_intervals(details_of(before, tuned, tuned.scores), before.scores, tuned.scores, level)
        sliced = slices_of(task, before, tuned, verdict["decided_by"], settings)
        found |= {"details": details} if details else {}
        whole = {**verdict, **found, **losses_by_source(task, before, tuned), **sliced}
        if tuned.of_answers and (simple := baselines()) is not None:
            whole["baselines"] = simple.result(
                tuned.of_answers,
                prompts=[question.prompt_text for question in task.questions],
                truths=[question.truth for question in task.questions],
                groups=[question.group for question in task.questions],
                labels=self._label_texts,
                decided_by=verdict["decided_by"],
            )
        return whole, samples_of(task, before, tuned, replies)

    def signs_of(self, measured: Measured) -> dict[str, RowScores]:
        """Signs of broken answers of one model, on the questions that were answered whole; none if none was."""
        numbers = self._whole if self._ending_early else range(len(measured.answers))
        if not numbers:
            return {}
        answers = [measured.answers[number] for number in numbers]
        asked = [self.task.questions[number] for number in numbers]
        return signs(
            [answer.text for answer in answers],
            [answer.stopped for answer in answers],
            [question.truth for question in asked],
            [question.group for question in asked],
        )

    def sample_answer(self, model: nn.Module) -> dict[str, Any]:
        """A short greedy answer to the first question. Weights, modes and random state stay as they are.

        Returns:
            ``{source, prompt, truth, answer, stopped}``. ``stopped`` is false if the answer was cut off.
        """
        short = min(self.settings.max_new_tokens, SAMPLE_TOKENS)
        greedy = self.settings.model_copy(update={"do_sample": False, "max_new_tokens": short})
        with random_state_kept(_device_of(model)):
            (answer,) = replace(self, settings=greedy).answers(model, count=1, title="sample", listener=Silent())
        question = self.task.questions[0]
        return {
            "source": question.source,
            "prompt": question.prompt_text,
            "truth": question.truth,
            "answer": answer.text,
            "stopped": answer.stopped,
        }

    def _begun(self, questions: Sequence[Question], choices: Choices | None) -> list[Beginning] | None:
        """What the pass over the reference answers decides of each greedy answer."""
        if choices is None or self.settings.do_sample:
            return None
        return [
            beginning(q.reference, *choices.of(q.row), stop_ids=self.stop_ids, keys=choices.keys.get(q.row))
            for q in questions
        ]

    def _settled(self, questions: Sequence[Question]) -> Callable[[int, Sequence[int]], bool] | None:
        """Whether every metric knows how an answer counts that begins like this; never for those wanted whole.

        None where the answers are wanted whole.
        """
        metrics = self._ending_early
        if not metrics:
            return None
        whole = frozenset(self._whole)

        def settled(number: int, tokens: Sequence[int]) -> bool:
            if number in whole:
                return False
            # The bytes of an unfinished character may still become any character.
            text = decode_text(self.tokenizer, tokens).rstrip(PARTIAL_CHARACTER)
            return all(counts_the_same(text, questions[number].truth) for counts_the_same in metrics)

        return settled

    @property
    def _whole(self) -> list[int]:
        """Numbers of the questions that are answered whole in any case: the samples, and others evenly apart."""
        count, asked = len(self.task.questions), self.settings.whole_answers
        more = count * int(asked is True) if isinstance(asked, bool) else min(asked, count)
        apart = np.linspace(0, count - 1, more).round().astype(int).tolist() if more else []
        return sorted({*range(min(self.settings.samples, count)), *apart})

    @property
    def _ending_early(self) -> list[Callable[[str, str], bool]]:
        """What each metric says of a beginning, if all of them can do without the rest of an answer and nobody wants
        it.
        """
        settings, metrics = self.settings, text_metrics(self.settings)
        judged_too = any(name in PAIR_METRICS for name in settings.metrics)
        all_whole = len(self._whole) == len(self.task.questions)
        if all_whole or settings.do_sample or judged_too:
            return []
        truths = [*(question.truth for question in self.task.questions), *self._label_texts]
        found = [metric.ends_early(truths) if isinstance(metric, EndsEarly) else None for metric in metrics]
        return [each for each in found if each is not None] if None not in found else []

    def with_judge(
        self, base: Measured, tuned: Measured, *, listener: Listener
    ) -> tuple[Measured, Measured, list[tuple[str, str]]]:
        """Both with the scores of the judge's choices, and its replies; as they are if the recipe names no judge."""
        if self.settings.judge is None or judged.NAME not in self.settings.metrics:
            return base, tuned, []
        endpoint, questions = endpoint_of(self.settings.judge), self.task.questions
        listener.say(f"{len(questions):,} prompts with their answers are sent to {endpoint.settings.base_url}")
        for plain in over_plain_http(self.settings):
            listener.warn(plain)
        rows = [
            AnswerRows(
                answers=[answer.text for answer in of.answers],
                truths=[question.truth for question in questions],
                prompts=[question.prompt_text for question in questions],
                groups=[question.group for question in questions],
            )
            for of in (base, tuned)
        ]
        with listener.task("judge", len(questions)) as advance:
            found = judged.judged(endpoint, *rows, on_row=lambda done: advance(done, {}))
        return (
            base.with_answer_scores(judged.NAME, found.base),
            tuned.with_answer_scores(judged.NAME, found.tuned),
            found.replies,
        )


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _counted(batches: Sequence[Batch], advance: Advance) -> Iterator[Batch]:
    for number, batch in enumerate(batches, start=1):
        yield batch
        advance(number, {})
