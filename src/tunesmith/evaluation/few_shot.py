"""The baseline ``few_shot``: the untuned model is shown a few training rows as earlier turns of the same conversation.

The conversation is written by the run's own template. A row whose conversation would not fit into the model is shown
fewer of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.checks.scan import Scan
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.message import Message
from tunesmith.evaluation.not_measured import BASELINES, NotMeasured
from tunesmith.evaluation.task import Task
from tunesmith.model.continuous import position_limit
from tunesmith.model.generate import Generation, generate
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Listener

KEY = f"{BASELINES}few_shot"  # in NotMeasured


@dataclass(slots=True)
class FewShotPass:
    """One pass of the untuned model over prompts with examples in them. ``shown`` counts the examples of each."""

    prompts: list[list[int]]
    shown: list[int]
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    settings: EvaluationSettings
    listener: Listener
    answers: list[Generation] = field(default_factory=list, init=False)

    @contextmanager
    def after(self, base: AbstractContextManager[nn.Module], left_out: NotMeasured) -> Iterator[nn.Module]:
        """The context of the base, which also answers these prompts once everything else was asked of it.

        ``left_out`` takes why it could not.
        """
        with base as untuned:
            yield untuned
            with left_out.noting(KEY, "base"):
                self._ask(untuned)

    def texts(self) -> list[str]:
        """The answers, once they are there."""
        assert len(self.answers) == len(self.prompts), "asked for before the base was"
        return [answer.text for answer in self.answers]

    def _ask(self, model: nn.Module) -> None:
        done = 0

        def on_batch(completed: int) -> None:
            nonlocal done
            done += completed
            advance(done, {})

        with self.listener.task("base: few-shot answers", len(self.prompts)) as advance:
            made = generate(
                model,
                self.tokenizer,
                self.prompts,
                settings=decoding_of(self.settings),
                stop_ids=self.stop_ids,
                batch_size=self.settings.batch_size,
                on_batch=on_batch,
            )
        self.answers = [sequences[0] for sequences in made]


def decoding_of(settings: EvaluationSettings) -> GenerationSettings:
    """How answers are generated."""
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )


def few_shot_pass(
    settings: EvaluationSettings,
    task: Task,
    scan: Scan,
    trained: np.ndarray,
    of: Scan,
    *,
    are_labels: bool,
    template: ChatTemplate,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    listener: Listener,
) -> FewShotPass:
    """The prompts of a task's questions with training rows before each. Nothing is generated yet.

    Args:
        settings: how many rows, and how they are answered.
        task: whose questions are asked.
        scan: of the rows of the task.
        trained: numbers of the examples that the run was trained on.
        of: the scan that ``trained`` numbers.
        are_labels: whether the answers are labels. Then the rows are spread over them.
        template: of the run.
        model: whose positions limit the prompts.
        tokenizer: of the model.
        stop_ids: token ids that end an answer.
        listener: hears the progress.

    Raises:
        DataError: the template refuses such a conversation.
    """
    shots = shown_rows(of, trained, settings.few_shot_rows, seed=settings.seed, are_labels=are_labels)
    found = _examples(of, set(shots))
    turns = [turn for number in shots for turn in _answered(found[number], template)]
    ends = np.cumsum([0, *(len(_answered(found[number], template)) for number in shots)]).tolist()
    numbers = [task.rows[question.row].example for question in task.questions]
    asked = _examples(scan, set(numbers))
    limit, prompts, counts = position_limit(model), [], []
    for number in numbers:
        example = asked[number]
        before = list(template.reference(example)[0])
        system, own = (before[:1], before[1:]) if before and before[0].role == "system" else ([], before)
        count = len(shots)
        while True:
            conversation = [*system, *turns[: ends[count]], *own]
            ids = template.prompt_ids(conversation, example.tools, source=example.source)
            if not count or limit is None or len(ids) + settings.max_new_tokens <= limit:
                break
            count -= 1
        prompts.append(ids)
        counts.append(count)
    listener.say(f"few_shot: {', '.join(found[number].source for number in shots)} stand before each question")
    if min(counts) < len(shots):
        fewer = sum(count < len(shots) for count in counts)
        listener.warn(f"few_shot: {fewer:,} of {len(counts):,} questions have room for fewer than {len(shots)} rows")
    return FewShotPass(prompts, counts, tokenizer, stop_ids, settings, listener)


def shown_rows(scan: Scan, trained: np.ndarray, count: int, *, seed: int, are_labels: bool) -> list[int]:
    """The numbers of at most ``count`` examples, drawn by seed. Of labels, none comes twice before all came once."""
    numbers = np.unique(trained)
    drawn = np.random.default_rng(seed).permutation(numbers[~scan.raw_text[numbers]]).tolist()
    if are_labels:
        seen: Counter[int] = Counter()
        turn = {}  # how many examples with the same label came before
        for number in drawn:
            label = int(scan.answer[number])
            turn[number] = seen[label]
            seen[label] += 1
        drawn.sort(key=turn.__getitem__)
    return drawn[:count]


def _answered(example: Example, template: ChatTemplate) -> list[Message]:
    """The turns of an example up to the answer that it teaches, without its system turn."""
    end = len(template.reference(example)[0]) + 1
    turns = list(example.messages[:end])
    return turns[1:] if turns[0].role == "system" else turns


def _examples(scan: Scan, numbers: set[int]) -> dict[int, Example]:
    """Some examples, read from their files again."""
    return {number: example for block in scan.examples() for number, example in block if number in numbers}
