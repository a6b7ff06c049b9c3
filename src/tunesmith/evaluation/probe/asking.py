"""Asks base and tuned model the items of a probe, greedily, with the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.chat.template import ChatTemplate
from tunesmith.errors import ModelError
from tunesmith.evaluation.not_measured import NotMeasured
from tunesmith.evaluation.probe.items import KEY, ProbeItems, probe_of
from tunesmith.evaluation.probe.scoring import compared, rights, values
from tunesmith.model.generate import Generation, check_prompts, generate
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Listener

NEW_TOKENS = 96  # of an answer; the checks want short ones
GREEDY = GenerationSettings(max_new_tokens=NEW_TOKENS)


@dataclass(slots=True)
class ProbePass:
    """One pass over a probe: its prompts, and the answers of both models once they were asked.

    Args:
        probe: the items.
        prompts: the token ids of each item, as generation sends them.
        tokenizer: of the model.
        stop_ids: token ids that end an answer.
        settings: the batch size, and how sure the comparison must be.
        listener: hears the progress.
    """

    probe: ProbeItems
    prompts: list[list[int]]
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    settings: EvaluationSettings
    listener: Listener
    base: list[Generation] | None = field(default=None, init=False)
    tuned: list[Generation] = field(default_factory=list, init=False)

    def check(self, model: nn.Module) -> None:
        """Raises ModelError at the first item that is too long for the model."""
        for item, prompt in zip(self.probe.items, self.prompts, strict=True):
            try:
                check_prompts(model, [prompt], settings=GREEDY)
            except ModelError as error:
                raise ModelError(
                    "An item of the probe and its answer are longer than the model can read",
                    where=item.source,
                    why=f"{len(prompt)} tokens and {NEW_TOKENS} new ones are more than its positions.",
                    remedy=f"Leave {KEY} out, or name a file with shorter items: `--probe FILE`.",
                ) from error

    def base_pass(self, untuned: nn.Module) -> None:
        """Lets the base answer."""
        self.base = self._answers(untuned, "base: probe")

    def tuned_pass(self, model: nn.Module) -> None:
        """Lets the tuned model answer."""
        self.tuned = self._answers(model, "tuned: probe")

    def result(self, left_out: NotMeasured) -> dict[str, Any]:
        """What verdict.json keeps. Without a base there are values alone."""
        tuned = [answer.text for answer in self.tuned]
        if self.base is None:
            return {**values(self.probe, tuned)}
        settings = self.settings
        found = compared(
            self.probe,
            [answer.text for answer in self.base],
            tuned,
            confidence=settings.confidence,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        return {**found}

    def _answers(self, model: nn.Module, title: str) -> list[Generation]:
        done = 0

        def on_batch(completed: int) -> None:
            nonlocal done
            done += completed
            advance(done, {})

        with self.listener.task(title, len(self.prompts)) as advance:
            made = generate(
                model,
                self.tokenizer,
                self.prompts,
                settings=GREEDY,
                stop_ids=self.stop_ids,
                batch_size=self.settings.batch_size,
                on_batch=on_batch,
            )
        return [sequences[0] for sequences in made]

    def lines(self) -> list[dict[str, Any]]:
        """The lines of probe.jsonl."""
        lines = []
        sides = {name: made for name, made in (("base", self.base), ("tuned", self.tuned)) if made is not None}
        right = {name: rights(self.probe, [answer.text for answer in made]) for name, made in sides.items()}
        for number, item in enumerate(self.probe.items):
            turns = [{"role": turn.role, "content": turn.content} for turn in item.messages]
            line: dict[str, Any] = {"id": item.id, "kind": item.kind, "messages": turns, "check": item.check}
            for name, made in sides.items():
                line |= {name: made[number].text, f"{name}_right": bool(right[name][number])}
                line |= {f"{name}_stopped": made[number].stopped}
            lines.append(line)
        return lines


def probe_pass(
    settings: EvaluationSettings,
    *,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    listener: Listener,
) -> ProbePass | None:
    """The pass that a recipe asks for; None if it asks for none.

    Raises:
        DataError: the file cannot be used, or the template refuses an item.
    """
    probe = probe_of(settings.probe)
    if probe is None:
        return None
    prompts = [template.prompt_ids(item.messages, source=item.source) for item in probe.items]
    return ProbePass(probe, prompts, tokenizer, stop_ids, settings, listener)
