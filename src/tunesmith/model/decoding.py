"""Decodes a batch of prompts through transformers' ``generate``.

Only what the caller gives decides: sampling defaults of the model's own ``generation_config.json`` are set aside. What
all prompts begin with is computed once, where the model can tell padding inside a text from the text.

Shapes: B prompts of the batch, L tokens of the longest one, P tokens that all of them begin with, V tokens of the
vocabulary, K key heads of width D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from tunesmith.errors import ModelError, ran_out
from tunesmith.model.compute.agreement import agree
from tunesmith.model.compute.kept_keys import KeptKeys
from tunesmith.model.compute.layers import adds_prompt_tokens, inner_model
from tunesmith.model.modes import evaluation_mode

_LEAST_PREFIX = 16  # tokens that all prompts begin with, from which on a pass of their own pays


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to decode, with the answers (prompt number, sequence number) that it is the result of.

    ``known`` are the first tokens of the answer where they are known already; they count among ``new_tokens``.
    ``reference`` is a text that the answer may resemble, to guess its tokens from. ``keys`` are those of the line's
    first tokens, where another pass has computed them.
    """

    prompt: tuple[int, ...]
    new_tokens: int
    answers: list[tuple[int, int]]
    known: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()
    keys: KeptKeys | None = None

    @property
    def line(self) -> tuple[int, ...]:
        """The tokens behind which decoding begins."""
        return self.prompt + self.known

    @property
    def left(self) -> int:
        """How many tokens may follow the line."""
        return self.new_tokens - len(self.known)


def decode(
    model: nn.Module,
    jobs: Sequence[Job],
    *,
    stop_ids: Sequence[int],
    processors: Sequence[LogitsProcessor] = (),
    stopping: StoppingCriteria | None = None,
    plain: bool = False,
) -> list[list[int]]:
    """The token ids of each job's answer, at most its own number of them. What follows a stop token has no meaning.

    Args:
        processors: change the logits [B,V] of each step; then the likeliest token is taken.
        stopping: ends decoding early.
        plain: exactly what transformers does by itself, with no cache of ours.

    Raises:
        ModelError: memory ran out, or the logits are not finite.
    """
    width, steps = max(len(job.line) for job in jobs), max(job.left for job in jobs)
    pad_id = stop_ids[0] if stop_ids else 0  # masked in the prompt, and behind a stop token in the answer
    cache = None if plain else _plain_cache(model, width + steps)
    shared = 0 if cache is None else _shared_prefix(model, jobs)
    input_ids, attention_mask = _padded(jobs, width=width, shared=shared, pad_id=pad_id)  # [B,L] each
    device = inner_model(model).device
    config = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,  # a sampled token is drawn by a processor
        use_cache=True,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
    )
    with memory_faults(jobs, len(jobs)), evaluation_mode(model), _own_defaults_aside(model):
        if cache is not None and shared:
            # Keys and values of the prefix [1,P] are computed once and repeated for each prompt.
            prefix = input_ids[:1, :shared].to(device)
            cast(Any, model)(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(jobs))
        output = cast(Any, model).generate(  # [B, L + steps at most]
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([_RefuseNonFinite(), *processors]),
            stopping_criteria=StoppingCriteriaList([stopping] if stopping else []),
        )
    rows = output[:, width:].tolist()
    return [[*job.known, *row[: job.left]] for row, job in zip(rows, jobs, strict=True)]


def batches(jobs: Sequence[Job], batch_size: int, limit: int | None) -> Iterator[list[Job]]:
    """Jobs to decode together, the longest prompts first, so that memory runs out at once if it does.

    All jobs of a batch run as many steps as the one with the most new tokens, which ``max_length`` gives to shorter
    prompts. So a batch ends where that would carry its longest prompt beyond the model's positions.
    """
    batch: list[Job] = []
    for job in sorted(jobs, key=lambda job: (-len(job.line), job.answers[0])):
        full = len(batch) == batch_size
        too_far = batch and limit is not None and len(batch[0].line) + job.left > limit
        if full or too_far:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


@contextmanager
def memory_faults(jobs: Sequence[Job], together: int) -> Iterator[None]:
    """Raises ModelError, with what helps, if memory runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        width, steps = max(len(job.line) for job in jobs), max(job.left for job in jobs)
        raise ModelError(
            f"Out of memory while {together} answers were decoded at a time",
            why=f"The longest prompt has {width} tokens, and up to {steps} follow. {error}",
            remedy="Lower batch_size or max_new_tokens.",
        ) from error


def _padded(jobs: Sequence[Job], *, width: int, shared: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [B,L]. Padding stands between the prefix that all prompts share and what each has of its own."""
    input_ids = torch.full((len(jobs), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, job in enumerate(jobs):
        own = width - len(job.line) + shared
        input_ids[row, :shared], attention_mask[row, :shared] = torch.tensor(job.line[:shared]), 1
        input_ids[row, own:], attention_mask[row, own:] = torch.tensor(job.line[shared:]), 1
    return input_ids, attention_mask


def refuse_non_finite(logits: Tensor) -> None:
    """Raises ModelError for logits [N,V] that are not finite: a broken model must not look like one that babbles."""
    if not torch.isfinite(logits.max(dim=-1).values).all():
        raise ModelError(
            "The model's logits are not finite",
            why="They overflowed (float16 has no room above 65504), or the weights are damaged.",
            remedy="Load the model with dtype float32 or bfloat16; if that does not help, fetch or train it again.",
        )


class _RefuseNonFinite(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        refuse_non_finite(scores)
        return scores


@contextmanager
def _own_defaults_aside(model: nn.Module) -> Iterator[None]:
    """Takes the model's own generation config away, because ``generate`` fills every unset value from it."""
    inner = inner_model(model)
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


class _RoomyLayer(DynamicLayer):
    """Keys and values [B,K,tokens,D] in memory that is taken at once; a DynamicLayer copies all for each new token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.stores: list[Tensor] = []  # keys and values, [B,K,room,D] each

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used, batch = self.get_seq_length(), len(key_states)
        end = used + key_states.shape[-2]
        # 1. New memory where there is none yet, the batch was repeated or reordered, or the room is too small.
        kept = (self.keys, self.values)
        own = bool(self.stores) and kept[0] is not None and kept[0].data_ptr() == self.stores[0].data_ptr()
        if not own or len(self.stores[0]) != batch or self.stores[0].shape[-2] < end:
            room = max(self.room, end)
            self.stores = [new.new_empty(*new.shape[:2], room, new.shape[-1]) for new in (key_states, value_states)]
            for store, old in zip(self.stores, kept, strict=True):
                if used and old is not None:
                    store[:, :, :used] = old
        # 2. The new tokens behind the others; what the layer sees is a view.
        for store, new in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, used:end] = new
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
        return self.keys, self.values


def _plain_cache(model: nn.Module, room: int) -> DynamicCache | None:
    """A cache for ``room`` tokens; None where a layer has a sliding window or a recurrent state.

    None also for an adapter that puts tokens before the prompt, which fills a cache of its own.
    """
    if adds_prompt_tokens(model):
        return None
    cache = DynamicCache(config=inner_model(model).config.get_text_config(decoder=True))
    if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    cache.layers[:] = [_RoomyLayer(room) for _ in cache.layers]
    return cache


def _shared_prefix(model: nn.Module, jobs: Sequence[Job]) -> int:
    """How many tokens all prompts begin with, at least one of each left out; 0 where a pass of its own does not pay."""
    if len(jobs) == 1:
        return 0
    # What the first and the last prompt in dictionary order share is what all of them share.
    first, last = min(job.line for job in jobs), max(job.line for job in jobs)
    limit = min(len(job.line) for job in jobs) - 1
    shared = next((index for index in range(limit) if first[index] != last[index]), limit)
    return shared if shared >= _LEAST_PREFIX and _sees_through_gaps(model) else 0


_through_gaps: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _sees_through_gaps(model: nn.Module) -> bool:
    """Whether padding in the middle of a text changes nothing, tried once on a few tokens.

    It changes something where distance is counted in tokens of the line instead of positions: ALiBi, local layers of
    older models.
    """
    inner = inner_model(model)
    if inner not in _through_gaps:
        config = inner.config.get_text_config(decoder=True)
        gap = 8 + (getattr(config, "window_size", None) or 0)  # GPT-Neo's local layers; newer windows say so themselves
        ids = torch.arange(1, 9) % config.vocab_size
        line = torch.cat([ids[:-1], torch.zeros(gap, dtype=torch.long), ids[-1:]])
        mask = torch.ones_like(line)
        mask[7:-1] = 0
        with evaluation_mode(model), _own_defaults_aside(model):
            plain = _last_logits(inner, ids, torch.ones_like(ids))
            parted = _last_logits(inner, line, mask)
        _through_gaps[inner] = agree(parted, plain, 32 * torch.finfo(plain.dtype).eps)
    return _through_gaps[inner]


def _last_logits(inner: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits [1,V] behind the last token of a line, with the positions that ``generate`` gives it."""
    config = GenerationConfig(max_new_tokens=1, pad_token_id=0, output_scores=True, return_dict_in_generate=True)
    ids, mask = ids[None].to(inner.device), mask[None].to(inner.device)
    return inner.generate(input_ids=ids, attention_mask=mask, generation_config=config).scores[0]
