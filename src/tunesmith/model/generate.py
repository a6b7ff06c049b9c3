"""Prompts -> text: batched greedy or sampled decoding, and streaming, over transformers' ``generate``.

Only what the settings say decides: sampling defaults of the model's own ``generation_config.json`` are set aside.
Sampled tokens are drawn by inverse transform from uniforms of (seed, prompt number, sequence number), so neither the
global random state nor the other prompts of a batch play a part.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.modes import evaluation_mode, random_state_kept
from tunesmith.recipe.generation import GenerationSettings

LEAST_SHARED = 16  # tokens at the beginning of prompts that are worth a pass of their own
PARTIAL_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the first bytes of a character


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    ``text`` has neither the stop token nor other special tokens; ``tokens`` are the ids before the stop token;
    ``stopped`` is false where the answer was cut off by ``max_new_tokens`` or ``max_length``.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool


@dataclass(frozen=True, slots=True)
class _Job:
    """One sequence to decode and the places (prompt number, sequence number) of the result that it fills."""

    prompt: tuple[int, ...]
    new_tokens: int
    places: list[tuple[int, int]]


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    settings: GenerationSettings,
    stop_ids: Sequence[int],
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Generation]]:
    """Answers to prompts of token ids, as ``[prompt][sequence]`` in the order of the prompts.

    Prompts are batched by length, the longest first, and what all of a batch begin with is computed once; equal prompts
    are decoded once when greedy. The model's mode and the random state are afterwards what they were.

    Args:
        model: a transformers causal model, or a PEFT model around one.
        tokenizer: turns ids into text.
        prompts: token ids, exactly as the model is to see them.
        settings: how to decode.
        stop_ids: any of these ends an answer.
        batch_size: sequences decoded at a time.
        on_batch: called after each batch with the number of answers that it completed.

    Raises:
        RecipeError: ``max_length`` leaves no room for an answer.
        ModelError: a prompt is empty or too long for the model, memory ran out, or the logits are not finite.
    """
    assert batch_size >= 1, f"batch_size {batch_size}"
    jobs = _jobs(prompts, settings)
    limit = _position_limit(model)
    _check_lengths(jobs, settings, limit)
    answers: dict[tuple[int, int], Generation] = {}
    with random_state_kept(_generator_model(model).device):
        for batch in _batches(jobs, batch_size, limit):
            rows = _decode(model, batch, settings=settings, stop_ids=stop_ids)
            for job, ids in zip(batch, rows, strict=True):
                generation = _finish(tokenizer, ids, stop_ids)
                answers.update(dict.fromkeys(job.places, generation))
            if on_batch is not None:
                on_batch(sum(len(job.places) for job in batch))
    return [[answers[n, k] for k in range(settings.num_return_sequences)] for n in range(len(prompts))]


def check_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], *, settings: GenerationSettings) -> None:
    """What ``generate`` refuses, said before there is anything to lose: raises as it does, and decodes nothing."""
    _check_lengths(_jobs(prompts, settings), settings, _position_limit(model))


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    settings: GenerationSettings,
    stop_ids: Sequence[int],
) -> Iterator[str]:
    """One answer in pieces, as they are decoded; joined, they are the text that ``generate`` gives.

    A character whose bytes are not complete is held back. The model decodes in a thread of its own: what it raises is
    raised here, and it ends after its current token when the iterator is closed. The settings are checked at once.

    Raises:
        RecipeError, ModelError: as ``generate`` does.
    """
    if settings.num_return_sequences > 1:
        raise RecipeError(
            f"num_return_sequences {settings.num_return_sequences} cannot be streamed",
            remedy="Leave num_return_sequences out, or do not stream.",
        )
    check_prompts(model, [prompt], settings=settings)
    (job,) = _jobs([prompt], settings)
    return _text_pieces(tokenizer, _answer_tokens(model, job, settings=settings, stop_ids=stop_ids))


@contextmanager
def _own_defaults_aside(model: nn.Module) -> Iterator[None]:
    """Takes the model's own generation config away: ``generate`` fills every unset value from it."""
    inner = _generator_model(model)
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


def _generator_model(model: nn.Module) -> Any:
    """The transformers model itself, also inside an adapter's wrapper."""
    return next(module for module in model.modules() if isinstance(module, GenerationMixin))


def _position_limit(model: nn.Module) -> int | None:
    """Positions that the model was made for; None where its architecture has no such limit."""
    config = _generator_model(model).config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None)


def _jobs(prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[_Job]:
    places: dict[Any, list[tuple[int, int]]] = {}
    for number, prompt in enumerate(prompts):
        for sequence in range(settings.num_return_sequences):
            same = (number, sequence) if settings.do_sample else tuple(prompt)
            places.setdefault(same, []).append((number, sequence))
    jobs = []
    for where in places.values():
        prompt = tuple(int(token) for token in prompts[where[0][0]])
        jobs.append(_Job(prompt, settings.new_tokens(len(prompt)), where))
    return jobs


def _check_lengths(jobs: Sequence[_Job], settings: GenerationSettings, limit: int | None) -> None:
    for job in jobs:
        where, length = f"prompt {job.places[0][0] + 1}", len(job.prompt)
        if not length:
            raise ModelError("The prompt has no tokens", where=where, remedy="Give at least one token.")
        if job.new_tokens < 1:
            raise RecipeError(
                f"max_length {settings.max_length} leaves no room for an answer",
                where=where,
                why=f"max_length counts the prompt, which has {length} tokens.",
                remedy=f"Set max_length above {length}, or use max_new_tokens, which does not count the prompt.",
            )
        if limit is not None and length + job.new_tokens > limit:
            raise ModelError(
                "The prompt and its answer are longer than the model can read",
                where=where,
                why=f"{length} tokens and up to {job.new_tokens} new ones are {length + job.new_tokens}; "
                f"the model has {limit} positions (max_position_embeddings).",
                remedy=f"Set max_new_tokens to {limit - length} or less, or shorten the prompt."
                if length < limit
                else "Shorten the prompt.",
            )


def _batches(jobs: Sequence[_Job], batch_size: int, limit: int | None) -> Iterator[list[_Job]]:
    """Longest first, so that memory runs out at once if it does. No row may be carried beyond the model's positions
    by another's larger budget, which ``max_length`` gives to shorter prompts."""
    batch: list[_Job] = []
    for job in sorted(jobs, key=lambda job: (-len(job.prompt), job.places[0])):
        full = len(batch) == batch_size
        too_far = batch and limit is not None and len(batch[0].prompt) + job.new_tokens > limit
        if full or too_far:
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _decode(
    model: nn.Module,
    jobs: Sequence[_Job],
    *,
    settings: GenerationSettings,
    stop_ids: Sequence[int],
    stopping: StoppingCriteria | None = None,
) -> list[list[int]]:
    """New token ids of each job, at most its own number of them; what follows a stop token has no meaning."""
    width, steps = max(len(job.prompt) for job in jobs), max(job.new_tokens for job in jobs)
    pad_id = stop_ids[0] if stop_ids else 0  # masked in the prompt, and behind a stop token in the answer
    cache = _plain_cache(model, width + steps)
    # Padding stands between what all prompts share and what each has of its own, if the model can tell it from text.
    shared = _shared_prefix(jobs) if cache is not None else 0
    if shared < LEAST_SHARED or not _sees_through_gaps(model):
        shared = 0
    input_ids = torch.full((len(jobs), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, job in enumerate(jobs):
        own = width - len(job.prompt) + shared
        input_ids[row, :shared], attention_mask[row, :shared] = torch.tensor(job.prompt[:shared]), 1
        input_ids[row, own:], attention_mask[row, own:] = torch.tensor(job.prompt[shared:]), 1
    device = _generator_model(model).device
    config = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,  # a draw is made by the processors, see _Draw
        use_cache=True,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
    )
    try:
        with evaluation_mode(model), _own_defaults_aside(model):
            if cache is not None:
                _fill(cache, model, input_ids[:1, :shared].to(device), len(jobs))
            output = cast(Any, model).generate(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                past_key_values=cache,
                generation_config=config,
                logits_processor=_processors(jobs, settings, width=width, steps=steps),
                stopping_criteria=StoppingCriteriaList([stopping] if stopping else []),
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"Out of memory while {len(jobs)} answers were decoded at a time",
            why=f"The longest prompt has {width} tokens, and up to {steps} follow. {error}",
            remedy="Lower batch_size or max_new_tokens.",
        ) from error
    rows = output[:, width:].tolist()
    return [row[: job.new_tokens] for row, job in zip(rows, jobs, strict=True)]


class _RoomyLayer(DynamicLayer):
    """Keys and values in memory that is taken at once; a DynamicLayer copies all of them for each new token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.stores: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used, batch = self.get_seq_length(), len(key_states)
        end = used + key_states.shape[-2]
        kept = (self.keys, self.values)
        own = bool(self.stores) and kept[0] is not None and kept[0].data_ptr() == self.stores[0].data_ptr()
        if not own or len(self.stores[0]) != batch or self.stores[0].shape[-2] < end:
            room = max(self.room, end)
            self.stores = [new.new_empty(*new.shape[:2], room, new.shape[-1]) for new in (key_states, value_states)]
            for store, old in zip(self.stores, kept, strict=True):
                if used and old is not None:
                    store[:, :, :used] = old
        for store, new in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, used:end] = new
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
        return self.keys, self.values


def _plain_cache(model: nn.Module, room: int) -> DynamicCache | None:
    """A cache for ``room`` tokens; None where a layer has a sliding window or a recurrent state.

    None, too, for an adapter of prompts (PEFT), which fills a cache of its own.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        return None
    cache = DynamicCache(config=_generator_model(model).config.get_text_config(decoder=True))
    if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return None
    cache.layers[:] = [_RoomyLayer(room) for _ in cache.layers]
    return cache


_through_gaps: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _sees_through_gaps(model: nn.Module) -> bool:
    """Whether padding in the middle of a text changes nothing, tried once on a few tokens.

    It does where distance is counted in places of the line instead of positions: ALiBi, local layers of older models.
    """
    inner = _generator_model(model)
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
        allowed = 32 * torch.finfo(plain.dtype).eps * float(plain.abs().max())
        _through_gaps[inner] = bool((plain - parted).abs().max() <= allowed)
    return _through_gaps[inner]


def _last_logits(inner: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits behind the last token of a line, with the positions that ``generate`` gives it."""
    made = inner.generate(
        input_ids=ids[None].to(inner.device),
        attention_mask=mask[None].to(inner.device),
        generation_config=GenerationConfig(
            max_new_tokens=1, pad_token_id=0, output_scores=True, return_dict_in_generate=True
        ),
    )
    return made.scores[0]


def _shared_prefix(jobs: Sequence[_Job]) -> int:
    """How many tokens all prompts begin with; at least one of each prompt is left out."""
    if len(jobs) == 1:
        return 0
    first, last = min(job.prompt for job in jobs), max(job.prompt for job in jobs)
    limit = min(len(job.prompt) for job in jobs) - 1
    return next((place for place in range(limit) if first[place] != last[place]), limit)


def _fill(cache: DynamicCache, model: nn.Module, prefix: Tensor, count: int) -> None:
    """Keys and values of a prefix [1, P], computed once and repeated for ``count`` prompts."""
    if prefix.shape[1]:
        cast(Any, model)(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(count)


def _finish(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> Generation:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    tokens = tuple(ids[:end])
    return Generation(decode_text(tokenizer, tokens), tokens, stopped=end is not None)


def decode_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Without clean-up of spaces, which would change text such as `a , b`, and what a stream has already shown."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast(str, text)


class _RefuseNonFinite(LogitsProcessor):
    """A broken model must not look like one that answers nonsense."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not torch.isfinite(scores.max(dim=-1).values).all():
            raise ModelError(
                "The model's logits are not finite",
                why="They overflowed (float16 has no room above 65504), or the weights are damaged.",
                remedy="Load the model with dtype float32 or bfloat16; if that does not help, fetch or train it again.",
            )
        return scores


class _Draw(LogitsProcessor):
    """Draws one token a row by inverse transform and leaves it alone finite, so that the argmax behind it takes it.

    uniforms: float32 [rows, steps] in [0, 1), one for each draw; width: length of the padded prompts.
    """

    def __init__(self, uniforms: np.ndarray, *, width: int) -> None:
        self.uniforms, self.width = torch.from_numpy(uniforms), width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = self.uniforms[:, input_ids.shape[1] - self.width].to(scores.device)
        probabilities = scores.softmax(dim=-1)
        cumulative = probabilities.cumsum(dim=-1)
        target = uniform[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target, right=True)  # the first token that goes beyond the target
        likeliest = probabilities.argmax(dim=-1, keepdim=True)
        outside = drawn == scores.shape[-1]  # a rounding of the last sum
        drawn = torch.where(outside, likeliest, drawn)
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


def _processors(jobs: Sequence[_Job], settings: GenerationSettings, *, width: int, steps: int) -> LogitsProcessorList:
    processors = LogitsProcessorList([_RefuseNonFinite()])
    if not settings.do_sample:
        return processors
    if settings.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_p < 1.0:
        processors.append(TopPLogitsWarper(settings.top_p))
    uniforms = [np.random.default_rng([settings.seed, *job.places[0]]).random(steps, dtype=np.float32) for job in jobs]
    processors.append(_Draw(np.stack(uniforms), width=width))
    return processors


class _Tap(StoppingCriteria):
    """Hands each new token of a single row on, and ends decoding once the reader has gone."""

    def __init__(self, tokens: queue.SimpleQueue[int | BaseException | None], closed: threading.Event) -> None:
        self.tokens, self.closed = tokens, closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.tokens.put(int(input_ids[0, -1]))
        ended = torch.full((len(input_ids),), self.closed.is_set(), dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, ended)


def _answer_tokens(
    model: nn.Module, job: _Job, *, settings: GenerationSettings, stop_ids: Sequence[int]
) -> Iterator[int]:
    """Token ids of one answer, before the stop token, decoded in a thread that ends with this iterator."""
    tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def decode() -> None:
        try:
            _decode(model, [job], settings=settings, stop_ids=stop_ids, stopping=_Tap(tokens, closed))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader
            tokens.put(error)
        else:
            tokens.put(None)

    worker = threading.Thread(target=decode, name="tunesmith-stream")
    worker.start()
    try:
        while (token := tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            if token in stop_ids:
                return
            yield token
    finally:
        closed.set()
        worker.join()


def _text_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Iterator[int]) -> Iterator[str]:
    """What each token adds to the text. All tokens are decoded anew, because a token's text depends on its
    neighbours; bytes of an unfinished character stay behind until the next token, or the end, settles them."""
    seen: list[int] = []
    text = shown = ""
    for token in tokens:
        seen.append(token)
        text = decode_text(tokenizer, seen)
        settled = text.rstrip(PARTIAL_CHARACTER)
        if len(settled) > len(shown) and settled.startswith(shown):
            yield settled[len(shown) :]
            shown = settled
    if len(text) > len(shown):
        yield text[len(shown) :]
