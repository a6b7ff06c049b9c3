"""Greedy decoding of many texts over a cache of slots: a text that has ended leaves, and the next one enters.

How a text is decoded:

1. Texts enter in dictionary order, in which neighbours share the most. A text that enters gets the keys of the longest
   beginning that it shares with any text in the cache, and computes only the rest. One that shares still more with a
   text that enters in the same pass waits for the next. So a prefix is computed once, whatever tree the texts form.
2. One pass gives each text its next token. Guesses (lookup.py) ride along; those that the model chooses too are kept.
3. A choice that rounding could turn is made again for its row alone (compute/choices.py). Where that is a tie too,
   transformers' own ``generate`` decodes the row. So in fp32 the answers are those of a plain loop, token for token.

A model is admitted by a trial: some tokens of two texts are computed this way and alone, and must agree as closely as
the probe of prefix sharing asks. Any other model is decoded by decoding.py, and so are texts that may become so long
that the model changes its rotary frequencies (compute/rope.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.model.alone import token_alone
from tunesmith.model.beginnings_kept import KeptBeginnings
from tunesmith.model.compute.agreement import ROUNDING, TOLERANCE, agree
from tunesmith.model.compute.attention import BESIDE_EAGER, IMPLEMENTATION
from tunesmith.model.compute.choices import choose
from tunesmith.model.compute.layers import adds_prompt_tokens, inner_model
from tunesmith.model.compute.rope import turns_within
from tunesmith.model.compute.slots import Feed, SlotCache, SlotPass, feeding
from tunesmith.model.decoding import Job, decode, memory_faults, refuse_non_finite
from tunesmith.model.lookup import Lookup, worth_guessing
from tunesmith.model.modes import evaluation_mode

_LEAST_JOBS = 3  # below this the trial costs more than it can save
ENTER_AT_ONCE = 1024  # tokens of new texts in one pass, unless a single text has more
_TRIED = 4  # tokens of the trial that are fed behind the prompt
# Tokens that are computed while the weights are read once: operations a second by bytes a second and by two operations
# for each weight of two or four bytes. A processor computes some 100 and reads some 10 thousand million of them.
_READING = {"cpu": 20.0, "cuda": 200.0}

Settled = Callable[[Job, Sequence[int]], bool]


@dataclass(frozen=True, slots=True)
class Decoded:
    """``ids`` of an answer, up to and with its stop token. ``settled``: unfinished, because the rest does not count."""

    ids: list[int]
    settled: bool = False


@dataclass(slots=True)
class _Text:
    """One answer under way: ``ids`` are prompt and answer so far; the cache has keys of the first ``fed`` of them."""

    job: Job
    slot: int
    ids: list[int]
    fed: int
    lookup: Lookup
    guessed: list[int] = field(default_factory=list)

    @property
    def answer(self) -> list[int]:
        return self.ids[len(self.job.prompt) :]


def forward(model: nn.Module, fed: SlotPass, cache: SlotCache, wanted: Sequence[int]) -> Tensor:
    """Logits [N,V] of the tokens ``wanted`` of a pass; their keys and values go into the cache."""
    keep = torch.tensor(wanted, device=fed.device)
    with feeding(fed):
        logits = cast(Any, model)(**fed.arguments, past_key_values=cache, logits_to_keep=keep).logits[0]
    return logits if len(logits) == len(wanted) else logits[keep]


def decode_continuously(
    model: nn.Module,
    jobs: Sequence[Job],
    *,
    stop_ids: Sequence[int],
    slots: int,
    settled: Settled | None = None,
    on_done: Callable[[Job], None] | None = None,
) -> list[Decoded]:
    """Greedy answers to jobs, in their order. The model must be admitted (``admits``).

    Args:
        model: with our attention.
        jobs: what to decode.
        stop_ids: any of these ends an answer.
        slots: texts decoded at a time.
        settled: whether the rest of an answer does not count any more.
        on_done: called with each job that has its answer.

    Raises:
        ModelError: memory ran out, or the logits are not finite.
    """
    with memory_faults(jobs, min(slots, len(jobs))), evaluation_mode(model):
        return _Decoding(model, jobs, stop_ids, min(slots, len(jobs)), settled, on_done).run()


class _Decoding:
    def __init__(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        stop_ids: Sequence[int],
        slots: int,
        settled: Settled | None,
        on_done: Callable[[Job], None] | None,
    ) -> None:
        self.model, self.jobs, self.stop_ids = model, jobs, stop_ids
        self.settled, self.on_done = settled, on_done
        self.device, self.dtype = inner_model(model).device, inner_model(model).dtype
        columns = max(len(job.prompt) + job.new_tokens for job in jobs)
        self.cache = SlotCache(text_config(model), slots=slots, columns=columns)
        self.waiting = deque(sorted(jobs, key=lambda job: job.line))
        self.texts: list[_Text | None] = [None] * slots
        self.kept = KeptBeginnings(self.cache, slots)
        self.done: dict[int, Decoded] = {}  # by the identity of the job
        self.undecided: list[Job] = []
        self.keys_work = _keys_work(model, self.waiting)

    def run(self) -> list[Decoded]:
        while self.waiting or any(self.texts):
            self._close_gaps()
            self._enter()
            self._step([text for text in self.texts if text is not None])
        for job in self.undecided:
            (ids,) = decode(self.model, [replace(job, known=())], stop_ids=self.stop_ids, plain=True)
            self._finish(job, Decoded(up_to_stop(ids, self.stop_ids)))
        return [self.done[id(job)] for job in self.jobs]

    def _enter(self) -> None:
        """Fills free slots with waiting texts, each behind the longest beginning that the cache has of it."""
        entered: list[np.ndarray] = []
        size = 0
        for slot in [number for number, text in enumerate(self.texts) if text is None]:
            if not self.waiting:
                return
            line = np.array(self.waiting[0].line)
            keys = self.waiting[0].keys if self.keys_work else None
            have = self.kept.enter(line, slot, entered, keys)
            if have is None or (size and size + len(line) - have > ENTER_AT_ONCE):
                return
            job = self.waiting.popleft()
            self.texts[slot] = _Text(job, slot, line.tolist(), have, Lookup(job.reference, len(job.prompt)))
            entered.append(line)
            size += len(line) - have

    def _close_gaps(self) -> None:
        """Once nobody waits, texts move down to the first slots, so that a pass computes no empty ones between them."""
        if self.waiting:
            return
        for slot in range(len(self.texts)):
            last = max((number for number, text in enumerate(self.texts) if text is not None), default=-1)
            if self.texts[slot] is None and last > slot:
                text = self.texts[last]
                assert text is not None
                self.kept.move(last, slot, text.fed)
                text.slot, self.texts[slot], self.texts[last] = slot, text, None

    def _step(self, texts: Sequence[_Text]) -> None:
        """One pass: the tokens of each text that have no keys yet, and guesses behind them."""
        feeds: list[Feed] = []
        worth = worth_guessing(len(texts), _READING.get(self.device.type, _READING["cuda"]))
        for text in texts:
            # 1. A text that has just entered is not guessed at: its pass is long as it is.
            new = text.ids[text.fed :]
            room = text.job.new_tokens - len(text.answer) - 1 if len(new) == 1 else 0
            text.guessed = text.lookup.guess(text.ids, room, worth=worth)
            feeds.append(Feed(text.slot, text.fed, [*new, *text.guessed]))
        # 2. Logits where a token is to be chosen: at the last token of each text, and at each guess.
        fed = SlotPass(feeds, self.device)
        firsts = [end - 1 - len(text.guessed) for text, end in zip(texts, fed.ends, strict=True)]
        wanted = [index for first, end in zip(firsts, fed.ends, strict=True) for index in range(first, end)]
        logits = forward(self.model, fed, self.cache, wanted)
        refuse_non_finite(logits)
        best, certain = (of.tolist() for of in choose(logits.float(), self.dtype))  # [N] each
        # 3. What each text gains.
        start = 0
        for text in texts:
            count = len(text.guessed) + 1
            self._gain(text, best[start : start + count], certain[start : start + count])
            start += count

    def _gain(self, text: _Text, best: Sequence[int], certain: Sequence[bool]) -> None:
        """Appends the model's choices: the first, and each that follows a guess that was right."""
        right = 0
        length = len(text.ids)
        self.kept.hold(text.slot, text.ids)
        for index, (choice, sure) in enumerate(zip(best, certain, strict=True)):
            token = choice if sure else token_alone(self.model, text.ids)
            if token is None:
                self.undecided.append(text.job)
                self._leave(text)
                return
            text.ids.append(token)
            if token in self.stop_ids or len(text.answer) == text.job.new_tokens:
                self._finish(text.job, Decoded(text.answer))
                self._leave(text)
                return
            if index == len(text.guessed) or text.guessed[index] != token:
                break
            right += 1
        text.lookup.learn(text.ids[length:])
        text.fed = length + right
        self.kept.hold(text.slot, text.ids[: text.fed])
        if self.settled is not None and self.settled(text.job, text.answer):
            self._finish(text.job, Decoded(text.answer, settled=True))
            self._leave(text)

    def _leave(self, text: _Text) -> None:
        self.texts[text.slot] = None

    def _finish(self, job: Job, decoded: Decoded) -> None:
        self.done[id(job)] = decoded
        if self.on_done is not None:
            self.on_done(job)


def up_to_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """An answer up to and with its first stop token."""
    end = next((index + 1 for index, token in enumerate(ids) if token in stop_ids), None)
    return list(ids[:end])


def text_config(model: nn.Module) -> Any:
    """The settings of the decoder."""
    return inner_model(model).config.get_text_config(decoder=True)


def position_limit(model: nn.Module) -> int | None:
    """Positions that the model was made for; None where its architecture has no such limit."""
    return getattr(text_config(model), "max_position_embeddings", None)


_admitted: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


def admits(model: nn.Module, jobs: Sequence[Job]) -> bool:
    """Whether these jobs are worth it and the model computes over slots what it computes alone; tried once a length.

    The trial has the longest text, and is as long as a text can become where a window could show only then.
    """
    inner = inner_model(model)
    installed = inner.config._attn_implementation in (IMPLEMENTATION, BESIDE_EAGER)
    if len(jobs) < _LEAST_JOBS or adds_prompt_tokens(model) or not installed:
        return False
    if turns_within(model, [len(job.prompt) + job.new_tokens for job in jobs]):
        return False
    config = text_config(model)
    names = ("sliding_window", "attention_chunk_size", "window_size")
    windows = [window for name in names if isinstance(window := getattr(config, name, None), int)]
    longest = max(jobs, key=lambda job: len(job.line))
    whole = max(len(job.prompt) + job.new_tokens for job in jobs)
    length = whole if any(window < whole for window in windows) else min(len(longest.line) + _TRIED, whole)
    tried, works = _admitted.get(inner, (0, True))
    if works and length > tried:
        text = (longest.line * (length // len(longest.line) + 1))[:length]
        works = _works(model, text)
        _admitted[inner] = length, works
    return works


_keys_tried: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _keys_work(model: nn.Module, jobs: Sequence[Job]) -> bool:
    """Whether a text goes on behind keys that another pass has kept as it does alone; tried once, on the first one."""
    inner = inner_model(model)
    job = next((job for job in jobs if job.keys is not None and len(job.line) > 1), None)
    if job is not None and inner not in _keys_tried:
        line = np.array(job.line)
        cache = SlotCache(text_config(model), slots=1, columns=len(line))
        have = KeptBeginnings(cache, 1).enter(line, 0, [], job.keys)
        assert have is not None
        fed = SlotPass([Feed(0, have, line[have:].tolist())], inner.device)
        found = forward(model, fed, cache, [fed.ends[0] - 1])
        ids = torch.from_numpy(line)[None].to(inner.device)
        alone = cast(Any, model)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1)
        limit = TOLERANCE * max(ROUNDING, TOLERANCE * torch.finfo(inner.dtype).eps)
        _keys_tried[inner] = agree(found.float(), alone.logits[0, -1:].float(), limit)
    return job is not None and _keys_tried[inner]


def _works(model: nn.Module, text: Sequence[int]) -> bool:
    """Compares logits over slots with those of the text alone: its last tokens, fed behind the rest.

    Two texts are in the cache, of which the second has half its keys by copy.
    """
    inner, tail = inner_model(model), min(_TRIED, len(text) - 1)
    body, half = len(text) - tail, (len(text) - tail) // 2
    try:
        with evaluation_mode(model):
            line = torch.tensor([list(text)], device=inner.device)
            alone = inner(
                input_ids=line, attention_mask=torch.ones_like(line), use_cache=False, logits_to_keep=tail
            ).logits[0, -tail:]
            cache = SlotCache(text_config(model), slots=2, columns=len(text))
            forward(inner, SlotPass([Feed(0, 0, text[:body])], inner.device), cache, [body - 1])
            cache.copy(0, 1, half)
            # The second text catches up while the first goes on.
            fed = SlotPass([Feed(0, body, text[body:]), Feed(1, half, text[half:])], inner.device)
            wanted = [*range(tail), *range(fed.ends[1] - tail, fed.ends[1])]
            found = forward(inner, fed, cache, wanted)
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    limit = TOLERANCE * max(ROUNDING, TOLERANCE * torch.finfo(inner.dtype).eps)
    return agree(found.float(), torch.cat([alone, alone]).float(), limit)
