"""Our model as lm-evaluation-harness asks it: likelihoods over shared prefixes, answers by continuous batching.

The token ids are those of the harness's own model for transformers (HFLM): a context and its continuation are encoded
together, and the text goes to the model as it is, without a chat template. This module needs the extra `benchmarks`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import LayoutName, micro_batches
from tunesmith.errors import RecipeError
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.continuous import position_limit
from tunesmith.model.generate import PARTIAL_CHARACTER, decode_text, generate
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.runs.progress import Listener

LENGTH = 2048  # tokens of a text, where the model says nothing; as in the harness
NEW_TOKENS = 256  # of an answer, where the task says nothing; as in the harness
_AT_ONCE = 1024  # texts that are laid out together
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class _Row:
    """Token ids int32 [n], of which the last ``scored`` are predicted."""

    ids: np.ndarray
    scored: int

    @property
    def supervised(self) -> np.ndarray:
        return np.arange(len(self.ids)) >= len(self.ids) - self.scored


@dataclass(frozen=True, slots=True)
class _Decoding:
    """How a group of requests is answered: our settings, and the texts that end an answer."""

    settings: GenerationSettings
    until: tuple[str, ...]


class HarnessModel(TemplateLM):
    """One model behind the harness's API.

    Args:
        model: with our attention.
        tokenizer: of the model.
        stop_ids: token ids that end an answer.
        batch_size: answers generated at a time.
        budget: from the longest row of some rows: tokens to compute in a batch.
        layout: how rows are laid out.
        name: of the model, for the progress.
        listener: hears it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_ids: Sequence[int],
        batch_size: int,
        budget: Callable[[int], int],
        layout: LayoutName,
        name: str,
        listener: Listener,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.stop_ids = model, tokenizer, stop_ids
        self.batch_size, self.budget = batch_size, budget
        self.layout: LayoutName = layout
        self.name, self.listener = name, listener
        self.max_length = position_limit(model) or LENGTH

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = self.tokenizer.eos_token_id
        return found if isinstance(found, int) else self.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        found = self.tokenizer.bos_token_id
        return found if isinstance(found, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests, which is off."""
        return self.tokenizer.name_or_path

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Text as token ids, with the tokenizer's own special tokens unless the text begins with them."""
        if add_special_tokens is None:
            prefix = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not string.startswith(str(prefix))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each continuation behind its context: the log-probability, and whether greedy decoding gives it."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """The log-probability of each text, in windows that do not overlap where it is longer than the model reads."""
        rows, of_text = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            for context, predicted in map(make_disjoint_window, windows):
                rows.append(_Row(np.array([*context, *predicted], np.int32), len(predicted)))
                of_text.append(number)
        sums = np.zeros(len(requests))
        np.add.at(sums, np.array(of_text, dtype=int), [logprob for logprob, _ in self._scores(rows)])
        return sums.tolist()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """The answer to each context, up to the first of the texts that end it."""
        groups: dict[_Decoding, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[self._decoding(request.args[1])].append(number)
        answers = [""] * len(requests)
        done = 0

        def on_batch(completed: int) -> None:
            nonlocal done
            done += completed
            advance(done, {})

        with self.listener.task(f"{self.name}: answers", len(requests)) as advance:
            for decoding, numbers in groups.items():
                contexts = [self._context(requests[number].args[0], decoding) for number in numbers]
                ends = None if decoding.settings.do_sample else self._ends(decoding.until)
                made = generate(
                    self.model,
                    self.tokenizer,
                    contexts,
                    settings=decoding.settings,
                    stop_ids=self.stop_ids,
                    batch_size=self.batch_size,
                    on_batch=on_batch,
                    settled=ends,
                )
                for number, (answer,) in zip(numbers, made, strict=True):
                    answers[number] = cut(answer.text, decoding.until)
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """The same of encoded requests: (texts, ids of the context, ids of the continuation)."""
        # The end is scored, so what does not fit is cut off at the left. The last token is fed, too.
        rows = [
            _Row(
                np.array([*context, *continuation][-self.max_length :], np.int32),
                min(len(continuation), len(context) + len(continuation) - 1, self.max_length - 1),
            )
            for _, context, continuation in requests
        ]
        return self._scores(rows)

    def _scores(self, rows: Sequence[_Row]) -> list[tuple[float, bool]]:
        """The log-probability of the scored tokens of each row, and whether each of them is the likeliest."""
        found: list[tuple[float, bool]] = []
        device = inner_model(self.model).device
        with self.listener.task(f"{self.name}: likelihoods", len(rows)) as advance:
            for start in range(0, len(rows), _AT_ONCE):
                part = rows[start : start + _AT_ONCE]
                budget = self.budget(max(len(row.ids) for row in part))
                batches = micro_batches(part, budget=budget, layout=self.layout)
                scores = row_losses(self.model, batches, rows=len(part), device=device)
                greedy = scores.correct == scores.tokens
                found += zip((-scores.nll_sum).tolist(), greedy.tolist(), strict=True)
                advance(len(found), {})
        return found

    def _decoding(self, asked: Mapping[str, Any]) -> _Decoding:
        try:
            return self._as_settings(asked)
        except (TypeError, ValueError, OverflowError) as error:
            raise RecipeError(
                "The task asks for answers by values that cannot be used",
                where="--tasks",
                why=f"generation_kwargs are {str(dict(asked))[:300]}: {str(error).splitlines()[0][:200]}.",
                remedy="Correct generation_kwargs in the task's file: until is a list of texts, and max_gen_toks a "
                "whole number from 1.",
            ) from error

    def _as_settings(self, asked: Mapping[str, Any]) -> _Decoding:
        until = asked.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        if not all(isinstance(each, str) for each in until):
            raise TypeError("until has something that is no text")
        limit = next((int(asked[name]) for name in _LIMITS if asked.get(name) is not None), NEW_TOKENS)
        if limit >= self.max_length:
            raise RecipeError(
                f"The task asks for answers of {limit} tokens, and the model reads {self.max_length}",
                where="--tasks",
                remedy="Set a smaller max_gen_toks in the task's generation_kwargs, or leave the task out.",
            )
        temperature = float(asked.get("temperature") or 0.0)
        if not asked.get("do_sample") or temperature == 0.0:
            return _Decoding(GenerationSettings(max_new_tokens=limit), until)
        top_p = float(asked.get("top_p") or 1.0)
        return _Decoding(
            GenerationSettings(max_new_tokens=limit, do_sample=True, temperature=temperature, top_p=top_p), until
        )

    def _context(self, text: str, decoding: _Decoding) -> list[int]:
        """The ids of a context, cut off at the left so that the answer has room."""
        room = self.max_length - int(decoding.settings.max_new_tokens or 0)
        return self.tok_encode(text)[-room:] or [self.prefix_token_id]

    def _ends(self, until: Sequence[str]) -> Callable[[int, Sequence[int]], bool]:
        """Whether an answer has come to one of the texts that end it."""

        def ends(number: int, tokens: Sequence[int]) -> bool:
            text = decode_text(self.tokenizer, tokens).rstrip(PARTIAL_CHARACTER)
            return any(each in text for each in until if each)

        return ends


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the texts that end it."""
    for each in until:
        if each:
            text = text.split(each)[0]
    return text
