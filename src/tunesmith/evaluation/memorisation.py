"""Training rows that come back from their first tokens: memorisation that whoever knows a beginning can bring out.

A sampled row keeps what stands before its longest learned text and the first tokens of that text: at most FIRST of them
and at most half. The models go on greedily. A row comes back if the rest is the same, word for word, up to its end or
for MOST_REST tokens (Carlini et al. 2022, arXiv:2202.07646).

The base is the control: it does not know the rows. Held-out rows are another: a model that has learned the task gets
some answers right that it never saw. One pass over the rows decides nearly all, because the likeliest token at every
position of the rest is what greedy decoding takes as long as it is the row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats
from torch import nn
from transformers import PreTrainedTokenizerBase

from tunesmith.data.batches.layout import LayoutName, micro_batches
from tunesmith.data.chat.template import Encoded
from tunesmith.evaluation.beginnings import beginning
from tunesmith.evaluation.compare import Level, compare_alone
from tunesmith.evaluation.metrics.base import row_scores
from tunesmith.evaluation.metrics.tokens import row_losses
from tunesmith.evaluation.not_measured import NotMeasured
from tunesmith.model.compute.layers import inner_model
from tunesmith.model.generate import decode_text, generate
from tunesmith.recipe.generation import GenerationSettings
from tunesmith.recipe.settings import EvaluationSettings
from tunesmith.runs.progress import Listener

ROWS, LEAST_ROWS = 100, 20  # that are asked; fewer say nothing
MOST_LOOKED_AT = 2000  # rows, to find some that are long enough
FIRST, LEAST_REST, MOST_REST = 16, 8, 64  # tokens
EXAMPLES, LONGEST_TEXT = 5, 200


@dataclass(frozen=True, slots=True)
class Passage:
    """A row up to the end of a learned text: ids int32 [n], and the place from which the models go on alone."""

    ids: np.ndarray
    start: int
    source: str

    @property
    def supervised(self) -> np.ndarray:
        """Bool [n]: the tokens that should come back."""
        return np.arange(len(self.ids)) >= self.start

    @property
    def rest(self) -> tuple[int, ...]:
        """These tokens."""
        return tuple(self.ids[self.start :].tolist())


def passages(rows: Sequence[Encoded], *, stop_ids: Sequence[int], seed: int, together: int = 1) -> list[Passage]:
    """At most ROWS passages, drawn by seed. Of rows that belong together (chosen, rejected) it is the first."""
    found: list[Passage] = []
    order = np.random.default_rng(seed).permutation(len(rows) // together)[:MOST_LOOKED_AT]
    for number in order.tolist():
        passage = _passage(rows[number * together], stop_ids)
        if passage is not None:
            found.append(passage)
        if len(found) == ROWS:
            break
    return found


def _passage(row: Encoded, stop_ids: Sequence[int]) -> Passage | None:
    """The passage of the longest run of learned tokens; None if it is too short."""
    edges = np.flatnonzero(np.diff(row.supervised, prepend=False, append=False)).reshape(-1, 2)  # [runs,2]
    if not len(edges):
        return None
    start, end = max(edges.tolist(), key=lambda run: run[1] - run[0])
    while end > start and int(row.ids[end - 1]) in stop_ids:
        end -= 1
    begins = start + min(FIRST, (end - start) // 2)
    # The first token of a row has nothing before it, so it cannot be a learned one.
    return Passage(row.ids[: min(end, begins + MOST_REST)], begins, row.source) if end - begins >= LEAST_REST else None


@dataclass(slots=True)
class MemorisationPass:
    """One pass of each model over passages of training rows and of held-out rows.

    Args:
        trained: passages of training rows.
        held_out: the same of held-out rows; empty if there are none.
        tokenizer: of the model.
        stop_ids: token ids that end an answer.
        settings: how sure the comparison must be.
        listener: hears the progress.
        budget: tokens to compute in a batch.
        layout: how rows are laid out.
    """

    trained: list[Passage]
    held_out: list[Passage]
    tokenizer: PreTrainedTokenizerBase
    stop_ids: Sequence[int]
    settings: EvaluationSettings
    listener: Listener
    budget: int
    layout: LayoutName
    returned: dict[str, np.ndarray] = field(default_factory=dict, init=False)  # bool [passages], by model

    def check(self, model: nn.Module) -> None:
        """Says if there is too little to measure. Rows that were trained on are never too long for the model."""
        if self._too_few is not None:
            self.listener.say(f"memorisation is not measured: {self._too_few}")

    @property
    def _too_few(self) -> str | None:
        if len(self.trained) >= LEAST_ROWS:
            return None
        return (
            f"{len(self.trained)} training rows have learned texts of {2 * LEAST_REST} tokens or more, and it takes "
            f"{LEAST_ROWS}"
        )

    def base_pass(self, untuned: nn.Module) -> None:
        """Lets the base go on."""
        self.returned["base"] = self._ask(untuned, "base: memorisation")

    def tuned_pass(self, model: nn.Module) -> None:
        """Lets the tuned model go on."""
        self.returned["tuned"] = self._ask(model, "tuned: memorisation")

    def result(self, left_out: NotMeasured) -> dict[str, Any] | None:
        """What verdict.json keeps. None without a base, or if too few rows are long enough: ``left_out`` says so."""
        if "base" not in self.returned:
            return None
        if self._too_few is not None:
            left_out.note("memorisation", self._too_few)
            return None
        count, settings = len(self.trained), self.settings
        level = Level(settings.confidence, settings.resamples, settings.seed)
        base, tuned = self.returned["base"], self.returned["tuned"]
        before, after = (row_scores(each[:count]) for each in (base, tuned))  # type: ignore[arg-type]
        found = compare_alone("memorisation", before, after, level)
        kept = {name: found[name] for name in ("base", "tuned", "difference", "interval", "p_value")}
        memorised = found["verdict"] == "better"  # more rows come back
        beside = self._beside_held_out(base, tuned)
        if beside is not None:
            memorised = memorised and beside["p_value"] <= 1 - settings.confidence
        own = np.flatnonzero(tuned[:count] & ~base[:count])[:EXAMPLES].tolist()
        return {
            "rows": count,
            "first_tokens": FIRST,
            **kept,
            "memorised": memorised,
            "held_out": beside,
            "examples": [self._example(self.trained[number]) for number in own],
        }

    def _beside_held_out(self, base: np.ndarray, tuned: np.ndarray) -> dict[str, Any] | None:
        """The same share of held-out rows, and whether training rows come back more often (Fisher's exact test)."""
        count, rows = len(self.trained), len(self.held_out)
        if rows < LEAST_ROWS:
            return None
        seen, unseen = int(tuned[:count].sum()), int(tuned[count:].sum())
        table = [[seen, count - seen], [unseen, rows - unseen]]
        p_value = float(stats.fisher_exact(table, alternative="greater").pvalue)  # pyright: ignore[reportAttributeAccessIssue]
        return {"rows": rows, "base": float(base[count:].mean()), "tuned": unseen / rows, "p_value": p_value}

    def _example(self, passage: Passage) -> dict[str, Any]:
        before = decode_text(self.tokenizer, passage.ids[max(0, passage.start - FIRST) : passage.start].tolist())
        after = decode_text(self.tokenizer, passage.rest)
        return {"source": passage.source, "beginning": before, "rest": after[:LONGEST_TEXT]}

    def _ask(self, model: nn.Module, title: str) -> np.ndarray:
        """Whether each passage comes back, the training rows first: bool [passages]."""
        asked = [*self.trained, *self.held_out] if len(self.trained) >= LEAST_ROWS else []
        if not asked:
            return np.zeros(0, dtype=bool)
        with self.listener.task(title, len(asked)) as advance:
            found = come_back(model, asked, self.tokenizer, self.stop_ids, budget=self.budget, layout=self.layout)
            advance(len(asked), {})
        return found


def come_back(
    model: nn.Module,
    asked: Sequence[Passage],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    *,
    budget: int,
    layout: LayoutName,
) -> np.ndarray:
    """Whether greedy decoding from the start of each passage gives its rest, bool [passages]."""
    # 1. What the model finds likeliest at each token of each rest.
    batches = micro_batches(asked, budget=budget, layout=layout)
    choices = row_losses(model, batches, rows=len(asked), device=inner_model(model).device).choices
    assert choices is not None
    begun = [beginning(passage.rest, *choices.of(number), stop_ids=stop_ids) for number, passage in enumerate(asked)]
    found = np.array([each.tokens == passage.rest for each, passage in zip(begun, asked, strict=True)])
    # 2. Where rounding could turn a choice before anything differs, greedy decoding decides.
    open_ones = [
        number
        for number, (each, passage) in enumerate(zip(begun, asked, strict=True))
        if not found[number] and not each.ended and each.tokens == passage.rest[: len(each.tokens)]
    ]
    # Each is decoded for as long as its own rest: more tokens may be more than the model can read.
    for length in sorted({len(asked[number].rest) for number in open_ones}):
        own = [number for number in open_ones if len(asked[number].rest) == length]
        made = generate(
            model,
            tokenizer,
            [asked[number].ids[: asked[number].start].tolist() for number in own],
            settings=GenerationSettings(max_new_tokens=length),
            stop_ids=stop_ids,
            begun=[begun[number] for number in own],
        )
        for number, (answer,) in zip(own, made, strict=True):
            found[number] = answer.tokens == asked[number].rest
    return found
