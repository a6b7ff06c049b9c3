"""Measures how far the tuned model's predictions are from the base's: KL(base || tuned) in nats per token.

It is measured on general text, and on answers that the base itself makes by greedy decoding. So nothing is right or
wrong here: the base is the reference. Both read the same token ids. Forgetting is measured like that by Kalajdzievski
2024 (arXiv:2401.05605).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import Batch, LayoutName, micro_batches
from tunesmith.data.chat.template import ChatTemplate
from tunesmith.data.examples.message import Message
from tunesmith.evaluation.compare import Level
from tunesmith.evaluation.divergence.scoring import LEAST_TEXTS, measured
from tunesmith.evaluation.divergence.texts import PROMPTS, GeneralText, general_texts
from tunesmith.evaluation.not_measured import PARTS, NotMeasured
from tunesmith.model.compute.divergence import Kept, Positions, compare_positions, keep
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.model.continuous import position_limit
from tunesmith.model.generate import decode_text, generate
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Listener

NEW_TOKENS = 64  # of an answer of the base
GREEDY = GenerationSettings(max_new_tokens=NEW_TOKENS)


@dataclass(frozen=True, slots=True)
class _Row:
    """Token ids int32 [n], and which of them are predicted, bool [n]."""

    ids: np.ndarray
    supervised: np.ndarray


@dataclass(slots=True)
class _Part:
    """The rows of one kind of text, what the base left of them, and the comparison once it was made."""

    texts: Sequence[GeneralText]
    rows: list[_Row]
    batches: list[Batch]
    kept: Kept
    found: Positions | None = None

    @property
    def texts_found(self) -> int:
        """How many texts have a position that was compared."""
        assert self.found is not None, "the tuned model was not asked"
        return len(np.unique(self.found.row))


@dataclass(slots=True)
class DivergencePass:
    """One pass of the base and one of the tuned model.

    Args:
        texts: the general texts with their token ids.
        prompts: the prompts with their token ids, as generation sends them.
        tokenizer: of the model.
        stop_ids: token ids that end an answer.
        settings: the batch size, and how sure the intervals must be.
        listener: hears the progress.
        budget: tokens to compute in a batch.
        layout: how rows are laid out.
    """

    texts: list[tuple[GeneralText, list[int]]]
    prompts: list[tuple[GeneralText, list[int]]]
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    settings: EvaluationSettings
    listener: Listener
    budget: int
    layout: LayoutName
    parts: dict[str, _Part] = field(default_factory=dict, init=False)

    def check(self, model: nn.Module) -> None:
        """Leaves out what is longer than the model can read."""
        limit = position_limit(model)
        self.texts = [(text, ids[:limit]) for text, ids in self.texts]
        if limit is not None:
            self.prompts = [(text, ids) for text, ids in self.prompts if len(ids) + NEW_TOKENS <= limit]

    @waiting_as_others_allow()
    def base_pass(self, untuned: nn.Module) -> None:
        """Lets the base answer the prompts, and keeps what it predicts on both kinds of text."""
        with self.listener.task("base: divergence", 2) as advance:
            # Every token of a general text but its first is predicted.
            rows = [_Row(np.array(ids, np.int32), np.arange(len(ids)) > 0) for _, ids in self.texts]
            self.parts["general"] = self._part(untuned, [text for text, _ in self.texts], rows)
            advance(1, {})
            if self.prompts:
                texts = [text for text, _ in self.prompts]
                self.parts["own_answers"] = self._part(untuned, texts, self._answers(untuned))
            advance(2, {})

    @waiting_as_others_allow()
    def tuned_pass(self, model: nn.Module) -> None:
        """Compares what the tuned model predicts on the same tokens."""
        if not self.parts:
            return
        with self.listener.task("tuned: divergence", len(self.parts)) as advance:
            for done, part in enumerate(self.parts.values(), start=1):
                part.found = compare_positions(model, part.batches, part.kept, device=inner_model(model).device)
                part.kept.states.clear()
                advance(done, {})

    def result(self, left_out: NotMeasured) -> dict[str, Any] | None:
        """``{general, own_answers, confidence}``, as scoring.py says. None without a base.

        A part of which too few texts were measured is not there, and ``left_out`` says why.
        """
        if not self.parts:
            return None
        found: dict[str, Any] = {}
        for name in PARTS:
            part = self.parts.get(name)
            texts = 0 if part is None else part.texts_found
            result = self._measured(name, part) if part is not None and texts else None
            if result is None:
                few = f"{texts} of the texts could be measured, and it takes {LEAST_TEXTS}"
                left_out.note(f"divergence.{name}", few)
            else:
                found[name] = result
        return {**found, "confidence": self.settings.confidence} if found else None

    def _answers(self, untuned: nn.Module) -> list[_Row]:
        """The base's greedy answers behind their prompts; only the answers are predicted."""
        made = generate(
            untuned,
            self.tokenizer,
            [ids for _, ids in self.prompts],
            settings=GREEDY,
            stop_ids=self.stop_ids,
            batch_size=self.settings.batch_size,
        )
        rows = []
        for (_, prompt), (answer,) in zip(self.prompts, made, strict=True):
            # The end of an answer is a prediction, too. Which stop token stands there does not change the divergence.
            end = [self.stop_ids[0]] if answer.stopped else []
            ids = np.array([*prompt, *answer.tokens, *end], np.int32)
            rows.append(_Row(ids, np.arange(len(ids)) >= len(prompt)))
        return rows

    def _part(self, untuned: nn.Module, texts: Sequence[GeneralText], rows: list[_Row]) -> _Part:
        batches = micro_batches(rows, budget=self.budget, layout=self.layout)
        return _Part(texts, rows, batches, keep(untuned, batches, device=inner_model(untuned).device))

    def _measured(self, name: str, part: _Part) -> dict[str, Any] | None:
        found, settings = part.found, self.settings
        assert found is not None, "the tuned model was not asked"
        places = [np.flatnonzero(part.rows[row].supervised) for row in np.unique(found.row).tolist()]
        nll = -np.stack([found.first_logprob, found.second_logprob], axis=1)  # [E,2]
        return measured(
            part.texts,
            [row.ids.tolist() for row in part.rows],
            found.row,
            np.concatenate(places),
            found.kl,
            np.stack([found.first, found.second], axis=1),
            nll if name == "general" else None,
            level=Level(settings.confidence, settings.resamples, settings.seed),
            shown=self._shown,
        )

    def _shown(self, ids: Sequence[int]) -> str:
        """Tokens as text; a special token, which has none, by its name."""
        text = decode_text(self.tokenizer, ids)
        return text or " ".join(map(str, self.tokenizer.convert_ids_to_tokens(list(ids))))


def divergence_pass(
    *,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    settings: EvaluationSettings,
    listener: Listener,
    budget: int,
    layout: LayoutName,
) -> DivergencePass:
    """The pass, with its texts as token ids. Raises DataError if the template refuses a prompt."""
    texts = [(text, template.text_ids(text.text, source=text.id)) for text in general_texts()]
    prompts = [
        (text, template.prompt_ids((Message("user", text.text),), source=text.id)) for text in general_texts(PROMPTS)
    ]
    return DivergencePass(texts, prompts, tokenizer, stop_ids, settings, listener, budget, layout)
