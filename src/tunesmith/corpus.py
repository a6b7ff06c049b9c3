"""From the recipe's data section to encoded rows: read, split, found, encoded, fitted, and every row accounted for.

Reading and splitting need no tokenizer, so whatever is wrong with the rows stops a run before a model is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tunesmith.data.check import Finding, Ledger, findings, split
from tunesmith.data.example import Example
from tunesmith.data.read import BadRow, Loaded, load, own_eval_split
from tunesmith.errors import DataError, RecipeError
from tunesmith.progress import Listener, Silent
from tunesmith.recipe import DataSettings, SourceSettings, refuse_answer_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.length import Fitted
    from tunesmith.data.template import ChatTemplate, Encoded

DEFAULT_EVAL_SHARE = 0.1


@dataclass(slots=True)
class Examples:
    """Rows before a tokenizer has seen them. ``weights`` go with ``train``; ``origin``: id of an example -> source."""

    train: list[Example]
    held_out: list[Example]
    weights: list[float]
    rejected: list[BadRow]
    findings: list[Finding]
    sources: list[dict[str, Any]]
    origin: dict[int, str]
    notes: list[str] = field(default_factory=list)

    @property
    def raw_text(self) -> bool:
        """Whether the rows are documents without turns."""
        return all(example.text is not None for example in [*self.train, *self.held_out])


@dataclass(slots=True)
class Corpus:
    """Encoded rows, ready to lay out. ``weights`` go with ``train``; ``groups`` are by held-out example number."""

    train: list[Encoded]
    weights: list[float]
    held_out: list[Encoded]
    groups: list[int]
    ledger: Ledger


def read_examples(settings: DataSettings, *, seed: int, method: str | None = None) -> Examples:
    """Reads every source and takes the held-out rows apart: the recipe's own, the dataset's own, or a share.

    Raises DataError for what cannot be read, and for bad rows unless ``on_error`` is ``skip``.
    """
    loaded = [load(source, role="train", on_error=settings.on_error) for source in settings.sources("train")]
    train = [example for part in loaded for example in part.examples]
    weights = [
        source.weight for source, part in zip(settings.sources("train"), loaded, strict=True) for _ in part.examples
    ]
    sources = [
        _described(source, part, "train") for source, part in zip(settings.sources("train"), loaded, strict=True)
    ]
    notes = [f"{source.path}: {part.reason}" for source, part in zip(settings.sources("train"), loaded, strict=True)]
    held_out: list[Example] = []
    eval_sources, note = _eval_sources(settings)
    notes += [note] if note else []
    for source in eval_sources:
        part = load(source, role="eval", on_error=settings.on_error)
        loaded.append(part)
        held_out += part.examples
        sources.append(_described(source, part, "eval"))
    if not eval_sources:
        share = DEFAULT_EVAL_SHARE if settings.eval is None else settings.eval
        assert isinstance(share, float | int)
        if share:
            weight_of = {id(example): weight for example, weight in zip(train, weights, strict=True)}
            train, held_out = split(train, share, seed)
            weights = [weight_of[id(example)] for example in train]
            notes.append(f"held out by prompt: {len(held_out)} of {len(train) + len(held_out)} rows (share {share:g})")
    named = [*settings.sources("train"), *eval_sources]
    return Examples(
        train,
        held_out,
        weights,
        rejected=[row for part in loaded for row in part.bad],
        findings=findings(train, held_out, method=method, max_length=settings.max_length),
        sources=sources,
        origin={id(row): source.path for source, part in zip(named, loaded, strict=True) for row in part.examples},
        notes=notes,
    )


def only_held_out(examples: Examples) -> Examples:
    """The same rows, all of them to judge on and none to train on."""
    return replace(examples, train=[], weights=[], held_out=examples.train, findings=[])


def _eval_sources(settings: DataSettings) -> tuple[list[SourceSettings], str | None]:
    named = settings.sources("eval")
    if named or settings.eval is not None:
        return named, None
    own = []
    for source in settings.sources("train"):
        name = own_eval_split(source)
        if name is None:
            return [], None
        own.append(source.model_copy(update={"split": name}))
    names = ", ".join(f"{source.path} split {source.split}" for source in own)
    return own, f"held out: the dataset's own {names}"


def _described(source: SourceSettings, part: Loaded, side: str) -> dict[str, Any]:
    return {
        "path": source.path,
        "side": side,
        "split": part.split,
        "format": part.shape,
        "rows": len(part.examples) + len(part.bad),
        "invalid": len(part.bad),
        "files": [{"path": name, "sha256": digest} for name, digest in part.files],
        "ignored": part.ignored,
    }


def check_metrics(metrics: Sequence[str], examples: Examples) -> None:
    """Raises RecipeError for a metric that compares answers where the rows turned out to be raw text."""
    if not examples.raw_text:
        return
    try:
        refuse_answer_metrics(list(metrics))
    except ValueError as error:
        raise RecipeError(str(error), where="evaluation.metrics", why="The rows are raw text.") from None


def make_template(settings: DataSettings, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> ChatTemplate:
    """The chat template of a run, with the date it prints fixed to the recipe's or to today's."""
    from tunesmith.data.template import ChatTemplate

    date = settings.date or time.strftime("%Y-%m-%d")
    return ChatTemplate(tokenizer, stop_ids=stop_ids, settings=settings, date=date)


def encode(
    examples: Examples, template: ChatTemplate, settings: DataSettings, *, listener: Listener | None = None
) -> Corpus:
    """Token ids and labels of every row, the too long ones treated as the recipe says, and the ledger of it all.

    Raises DataError for a row that the template or the supervision rule cannot take.
    """
    from tunesmith.data.length import fit

    sides = (examples.train, examples.held_out)
    encoded: tuple[list[Encoded], list[Encoded]] = ([], [])
    with (listener or Silent()).task("rows to tokens", sum(map(len, sides))) as advance:
        for offset, rows, side in zip((0, len(examples.train)), sides, encoded, strict=True):
            for number, example in enumerate(rows):
                side += template.encode(example, number)
                advance(offset + number + 1, {})
    train, held_out = (fit(side, settings.max_length, settings.too_long) for side in encoded)
    if examples.train and not train.kept:
        raise DataError(
            "No row is left to train on",
            where="data.max_length",
            why=f"All {len(examples.train)} rows have more than {settings.max_length} tokens.",
            remedy="Raise data.max_length, or set data.too_long: truncate.",
        )
    if examples.held_out and not held_out.kept:
        raise DataError(
            "No row is left to judge on",
            where="data.max_length",
            why=f"All {len(examples.held_out)} held-out rows have more than {settings.max_length} tokens.",
            remedy="Raise data.max_length, or set data.too_long: truncate.",
        )
    return Corpus(
        train=train.kept,
        weights=[examples.weights[row.example] for row in train.kept],
        held_out=held_out.kept,
        groups=_groups(examples.held_out),
        ledger=_ledger(examples, train, held_out),
    )


def _ledger(examples: Examples, train: Fitted, held_out: Fitted) -> Ledger:
    """Rows as they stand in the files: an example that became several rows is one, kept if any of them is."""
    ledger = Ledger()
    for source in examples.sources:
        counts = ledger.source(source["path"])
        counts.read += source["rows"]
        counts.invalid += source["invalid"]
    for side, rows, fitted in (("trained", examples.train, train), ("held_out", examples.held_out, held_out)):
        kept = {row.example for row in fitted.kept}
        truncated = {row.example for row in fitted.truncated}
        for number, example in enumerate(rows):
            counts = ledger.source(examples.origin[id(example)])
            place = side if number in kept else "too_long"
            setattr(counts, place, getattr(counts, place) + 1)
            counts.truncated += number in kept and number in truncated
    ledger.tokens.total = sum(len(row.ids) for row in train.kept)
    ledger.tokens.supervised = sum(int(row.supervised.sum()) for row in train.kept)
    ledger.check()
    return ledger


def _groups(examples: Sequence[Example]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(example.prompt_key(), len(numbers)) for example in examples]
