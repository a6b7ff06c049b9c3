"""Prompts -> text: batched greedy or sampled decoding, and streaming.

Sampled tokens are drawn by inverse transform from uniform numbers of (seed, prompt number, sequence number). So neither
the global random state nor the other prompts of a batch play a part.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.data.chat.tokenizing import tokenizing
from tunesmith.errors import ModelError, RecipeError
from tunesmith.model.compute.kept_keys import KeptKeys
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.compute.waits import waiting_as_others_allow
from tunesmith.model.continuous import Settled, position_limit
from tunesmith.model.decoding import Job, batches, decode
from tunesmith.model.greedy import decode_greedily
from tunesmith.model.modes import random_state_kept
from tunesmith.recipe.generation import GenerationSettings

PARTIAL_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer shows for the first bytes of a character


@dataclass(frozen=True, slots=True)
class Beginning:
    """What is known of a greedy answer before it is decoded, from a pass over a text that it may equal.

    ``tokens`` are its first tokens, without a stop token. ``ended``: a stop token follows them, so they are all of it.
    ``reference`` is that text; the rest of the answer may still resemble it. ``keys`` are those of the prompt and of
    that text, where the pass has kept them.
    """

    tokens: tuple[int, ...] = ()
    ended: bool = False
    reference: tuple[int, ...] = ()
    keys: KeptKeys | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    ``text`` has neither the stop token nor other special tokens; ``tokens`` are the ids before the stop token;
    ``stopped`` is false where the answer was cut off by ``max_new_tokens`` or ``max_length``, or is ``settled``: left
    unfinished, because its rest could not change the score.
    """

    text: str
    tokens: tuple[int, ...]
    stopped: bool
    settled: bool = False


@waiting_as_others_allow()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    settings: GenerationSettings,
    stop_ids: Sequence[int],
    batch_size: int = 16,
    first: int = 0,
    on_batch: Callable[[int], None] | None = None,
    begun: Sequence[Beginning] | None = None,
    settled: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[list[Generation]]:
    """Answers to prompts of token ids, as ``[prompt][sequence]`` in the order of the prompts.

    Sampled answers are decoded in batches of like length, the longest first; greedy ones as greedy.py says. Equal
    prompts are decoded once when greedy. Afterwards the model's mode and the random state are what they were.

    Args:
        model: a transformers causal model, or a PEFT model around one.
        tokenizer: turns ids into text.
        prompts: token ids, exactly as the model is to see them.
        settings: how to decode.
        stop_ids: any of these ends an answer.
        batch_size: sequences decoded at a time.
        first: number of the first prompt, for those of a longer list that is answered in parts.
        on_batch: called after each batch with the number of answers that it completed.
        begun: what is known of each prompt's answer already; for greedy decoding only.
        settled: whether the rest of a prompt's answer does not count any more, from the prompt's number and the first
            tokens of the answer; for greedy decoding only. Models that are decoded in batches do not ask again once an
            answer is under way.

    Raises:
        RecipeError: ``max_length`` leaves no room for an answer.
        ModelError: a prompt is empty or too long for the model, memory ran out, or the logits are not finite.
    """
    assert batch_size >= 1, f"batch_size {batch_size}"
    jobs = _jobs(prompts, settings)
    limit = position_limit(model)
    _check_lengths(jobs, settings, limit)
    answers: dict[tuple[int, int], Generation] = {}
    unneeded = None if settled is None else _for_all_prompts(settled)
    if begun is not None:
        assert not settings.do_sample, "only a greedy answer has a beginning that is known"
        jobs, complete = _begin(jobs, begun, unneeded)
        for job, ended, cut in complete:
            answer = Generation(decode_text(tokenizer, job.known), job.known, stopped=ended, settled=cut)
            answers.update(dict.fromkeys(job.answers, answer))
        if complete and on_batch is not None:
            on_batch(len(answers))

    def done(finished: Sequence[Job]) -> None:
        if on_batch is not None:
            on_batch(sum(len(job.answers) for job in finished))

    with random_state_kept(inner_model(model).device):
        if settings.do_sample:
            for batch in batches(jobs, batch_size, limit):
                rows = decode(model, batch, stop_ids=stop_ids, processors=_sampling(batch, settings, first=first))
                for job, ids in zip(batch, rows, strict=True):
                    answers.update(dict.fromkeys(job.answers, _finish(tokenizer, ids, stop_ids)))
                done(batch)
        elif jobs:
            decoded = decode_greedily(
                model,
                jobs,
                stop_ids=stop_ids,
                batch_size=batch_size,
                limit=limit,
                settled=unneeded,
                on_done=done,
            )
            for job, found in zip(jobs, decoded, strict=True):
                answer = replace(_finish(tokenizer, found.ids, stop_ids), settled=found.settled)
                answers.update(dict.fromkeys(job.answers, answer))
    return [[answers[n, k] for k in range(settings.num_return_sequences)] for n in range(len(prompts))]


def check_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], *, settings: GenerationSettings) -> None:
    """Raises what ``generate`` would raise for these prompts and settings, and decodes nothing."""
    _check_lengths(_jobs(prompts, settings), settings, position_limit(model))


def stream(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    *,
    settings: GenerationSettings,
    stop_ids: Sequence[int],
) -> Iterator[str]:
    """One answer in pieces, as they are decoded. Joined, they are the text that ``generate`` gives.

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


def _jobs(prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Job]:
    """One job for each answer, or for each different prompt when greedy."""
    answers: dict[Any, list[tuple[int, int]]] = {}
    for number, prompt in enumerate(prompts):
        for sequence in range(settings.num_return_sequences):
            same = (number, sequence) if settings.do_sample else tuple(prompt)
            answers.setdefault(same, []).append((number, sequence))
    jobs = []
    for numbers in answers.values():
        prompt = tuple(int(token) for token in prompts[numbers[0][0]])
        jobs.append(Job(prompt, settings.new_tokens(len(prompt)), numbers))
    return jobs


def _for_all_prompts(settled: Callable[[int, Sequence[int]], bool]) -> Settled:
    """The same for a job, which may answer several equal prompts."""
    return lambda job, tokens: all(settled(number, tokens) for number, _ in job.answers)


def _begin(
    jobs: Sequence[Job], begun: Sequence[Beginning], settled: Settled | None
) -> tuple[list[Job], list[tuple[Job, bool, bool]]]:
    """The jobs that are still to decode, behind what is known of them; and those of which no more is needed.

    Of the latter also whether a stop token ended them, and whether they are unfinished but settled. Several questions
    may have one prompt and so one answer. Then the longest beginning counts, or one that has ended.
    """
    open_jobs: list[Job] = []
    complete: list[tuple[Job, bool, bool]] = []
    for job in jobs:
        best = max((begun[number] for number, _ in job.answers), key=lambda each: (each.ended, len(each.tokens)))
        known = best.tokens[: job.new_tokens]
        job = replace(job, known=known, reference=best.reference, keys=best.keys)
        ended = best.ended and len(best.tokens) < job.new_tokens
        if ended or len(known) == job.new_tokens:
            complete.append((job, ended, False))
        elif known and settled is not None and settled(job, known):
            complete.append((job, False, True))
        else:
            open_jobs.append(job)
    return open_jobs, complete


def _check_lengths(jobs: Sequence[Job], settings: GenerationSettings, limit: int | None) -> None:
    for job in jobs:
        where, length = f"prompt {job.answers[0][0] + 1}", len(job.prompt)
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


def _finish(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop_ids: Sequence[int]) -> Generation:
    """The answer up to its first stop token."""
    end = next((index for index, token in enumerate(ids) if token in stop_ids), None)
    tokens = tuple(ids[:end])
    return Generation(decode_text(tokenizer, tokens), tokens, stopped=end is not None)


def decode_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Tokens as text, without clean-up of spaces: it would change `a , b`, and text that a stream has shown already."""
    with tokenizing(len(tokens), where="an answer"):
        text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast(str, text)


class _Draw(LogitsProcessor):
    """Draws one token for each row by inverse transform. It alone stays finite, so that the argmax after this takes it.

    uniforms: float32 [B, steps] in [0, 1), one for each draw; width: tokens of the padded prompts.
    """

    def __init__(self, uniforms: np.ndarray, *, width: int) -> None:
        self.uniforms, self.width = torch.from_numpy(uniforms), width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = self.uniforms[:, input_ids.shape[1] - self.width].to(scores.device)  # [B]
        probabilities = scores.softmax(dim=-1)  # [B,V]
        cumulative = probabilities.cumsum(dim=-1)
        target = uniform[:, None] * cumulative[:, -1:]  # [B,1]
        drawn = torch.searchsorted(cumulative, target, right=True)  # the first token that goes beyond the target
        likeliest = probabilities.argmax(dim=-1, keepdim=True)
        drawn = torch.where(
            drawn == scores.shape[-1], likeliest, drawn
        )  # none goes beyond it: the last sum was rounded
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


def _sampling(jobs: Sequence[Job], settings: GenerationSettings, *, first: int = 0) -> list[LogitsProcessor]:
    """What makes one step of ``decode`` draw its tokens; nothing when greedy."""
    if not settings.do_sample:
        return []
    processors: list[LogitsProcessor] = []
    if settings.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_p < 1.0:
        processors.append(TopPLogitsWarper(settings.top_p))
    width, steps = max(len(job.prompt) for job in jobs), max(job.new_tokens for job in jobs)
    numbers = [(first + job.answers[0][0], job.answers[0][1]) for job in jobs]
    uniforms = [np.random.default_rng([settings.seed, *each]).random(steps, dtype=np.float32) for each in numbers]
    return [*processors, _Draw(np.stack(uniforms), width=width)]


class _Tap(StoppingCriteria):
    """Hands on each new token of a single row, and ends decoding once the reader has gone."""

    def __init__(self, tokens: queue.SimpleQueue[int | BaseException | None], closed: threading.Event) -> None:
        self.tokens, self.closed = tokens, closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.tokens.put(int(input_ids[0, -1]))
        ended = torch.full((len(input_ids),), self.closed.is_set(), dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, ended)


def _answer_tokens(
    model: nn.Module, job: Job, *, settings: GenerationSettings, stop_ids: Sequence[int]
) -> Iterator[int]:
    """Token ids of one answer up to the stop token, decoded in a thread that ends with this iterator."""
    tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    @waiting_as_others_allow()
    def run() -> None:
        try:
            processors = _sampling([job], settings)
            decode(model, [job], stop_ids=stop_ids, processors=processors, stopping=_Tap(tokens, closed))
        except BaseException as error:  # noqa: BLE001 - raised again by the reader
            tokens.put(error)
        else:
            tokens.put(None)

    worker = threading.Thread(target=run, name="tunesmith-stream")
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
    """What each token adds to the text.

    All tokens are decoded anew each time, because the text of a token depends on its neighbours. Bytes of an unfinished
    character are held back until the next token completes them, or the end comes.
    """
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
