"""From the recipe's data section to encoded rows: looked at, placed, encoded, fitted, and every row accounted for.

Reading and placing need no tokenizer, so whatever is wrong with the rows stops a run before a model is fetched. Rows
are read twice: once for what is said of them, once to become tokens; they are never all in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.clean import PLACE, place_rows
from tunesmith.data.finding import Finding
from tunesmith.data.findings import findings
from tunesmith.data.ledger import PLACES, Counts, Ledger
from tunesmith.data.near import THRESHOLD
from tunesmith.data.pool import Processes, RayPool
from tunesmith.data.read import own_eval_split
from tunesmith.data.rows import BadRow
from tunesmith.data.scan import Scan, Scanned, Side, first_of, scan
from tunesmith.data.shape import PREFERENCES
from tunesmith.errors import DataError, RecipeError
from tunesmith.progress import Listener, Silent
from tunesmith.recipe import OBJECTIVE_SHAPES, DataSettings, SourceSettings, refuse_answer_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunesmith.data.template import ChatTemplate, Encoded
    from tunesmith.tokens import EncodedRows

DEFAULT_EVAL_SHARE = 0.1
KEPT = ("trained", "held_out", "test")
LOST = ("invalid", "duplicate", "leaked", "unbalanced", "too_long")


@dataclass(slots=True)
class Survey:
    """The rows before a tokenizer has seen them: what is known of each, and what becomes of it.

    ``place`` [rows] are indexes of PLACES. ``sources`` is what a run records of them.
    """

    settings: DataSettings
    scan: Scan
    place: np.ndarray
    findings: list[Finding]
    sources: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> list[BadRow]:
        """Rows that cannot be used."""
        return self.scan.bad

    @property
    def together(self) -> int:
        """Rows of tokens that an example has: two where another answer was preferred."""
        return 2 if all(each.reader.shape == "preference" for each in self.scan.sources) else 1

    @property
    def raw_text(self) -> bool:
        """Whether the rows are documents without turns."""
        return bool(self.scan.raw_text[self.scan.good].all())

    @property
    def rule_of_long_rows(self) -> str:
        """``data.too_long`` with ``auto`` resolved."""
        if self.settings.too_long != "auto":
            return self.settings.too_long
        splits = self.scan.raw_text[self.scan.own].any() and self.settings.if_too_long(raw_text=True) == "split"
        return "split" if splits else "error"

    def ledger(self) -> Ledger:
        """Where the rows went, without their tokens."""
        return _ledger(self.scan, self.place)


@dataclass(slots=True)
class Corpus:
    """Encoded rows, ready to lay out. ``groups`` [rows of the survey]: examples of one number share their prompt.

    ``weights`` and ``train_sources`` go with ``train``: how often an epoch sees a row, and which source it is of;
    ``quotas`` are the rows of an epoch by source, where the recipe gives a number. ``left_out``: examples too long;
    ``encoded``: every row, whatever became of it.
    ``test`` is read only where ``held_out`` selects the step that is judged.
    ``together``: so many rows of ``train`` and ``held_out`` are the answers of one example, and an epoch counts them as
    one.
    ``labels`` bool [rows of the survey]: the row's own answer is labelled desirable.
    """

    train: EncodedRows
    held_out: EncodedRows
    test: EncodedRows
    weights: np.ndarray
    train_sources: np.ndarray
    quotas: dict[int, int]
    source_names: list[str]
    groups: np.ndarray
    ledger: Ledger
    findings: list[Finding]
    left_out: np.ndarray
    encoded: EncodedRows
    labels: np.ndarray
    together: int = 1

    def rows_of(self, numbers: Sequence[int]) -> list[Encoded]:
        """The rows of some numbers of an epoch: one each, or ``together`` that follow each other."""
        return [self.train[number * self.together + row] for number in numbers for row in range(self.together)]

    def shares(self, rows: np.ndarray) -> list[str]:
        """A line for each source of a mixture: its share of these rows (numbers of ``train``) and of their tokens."""
        tokens = self.train.lengths.reshape(-1, self.together).sum(1)[rows]
        sources = self.train_sources[rows]
        if len(np.unique(self.train_sources)) < 2:
            return []
        lines = []
        for source in np.unique(self.train_sources).tolist():
            own = sources == source
            share, of_tokens = own.mean(), tokens[own].sum() / tokens.sum()
            lines.append(
                f"{self.source_names[source]}: {own.sum():,} rows of an epoch ({share:.1%}), "
                f"{of_tokens:.1%} of its tokens"
            )
        return lines


def survey(
    settings: DataSettings,
    *,
    seed: int,
    method: str | None = None,
    against: SourceSettings | None = None,
    near: bool = False,
    stops: bool | None = None,
    ray: bool = False,
    objective: str | None = None,
    listener: Listener | None = None,
) -> Survey:
    """Looks at every row and decides what becomes of it: the recipe's own held-out rows, the dataset's, or a share.

    Args:
        settings: the recipe's data section.
        seed: of the draw that holds rows out.
        method: for the advice on the number of rows.
        against: rows that should not be among those to train on.
        near: look for near duplicates, also where ``data.clean`` does not.
        stops: whether bad rows stop a run, where that is not what ``on_error`` says.
        ray: look at the rows on a Ray cluster, and not in processes of this machine.
        objective: what the rows are for, which decides their shape where they fit several; None: anything.
        listener: hears what goes on.

    Raises:
        DataError: what cannot be read, rows that the objective does not learn from, and bad rows unless ``on_error`` is
            ``skip``.
    """
    named, note, shares = _named_sources(settings, against)
    clean = settings.clean
    similarity = THRESHOLD if isinstance(clean.near_dedupe, bool) else float(clean.near_dedupe)
    seen = scan(
        named,
        seed=seed,
        listener=listener or Silent(),
        group=settings.group,
        mask=clean.mask,
        wanted=OBJECTIVE_SHAPES.get(objective or "sft"),
        threshold=similarity if near or clean.near_dedupe else None,
        pool=RayPool() if ray else Processes(workers()),
    )
    if objective is not None:
        _check_objective(objective, seen)
    if settings.on_error == "stop" and seen.bad:
        raise _refusal(seen)
    if settings.too_long == "split" and not seen.raw_text[seen.own].any():
        raise DataError(
            "There is nothing to split: no row is raw text",
            where="data.too_long",
            why="The rows are conversations, and a part of an answer without its prompt teaches something else.",
            remedy="Set data.too_long: drop or truncate, or raise data.max_length.",
        )
    place = place_rows(seen, settings, eval_share=shares[0], test_share=shares[1])
    notes = [f"{each.settings.path}: {each.reader.reason}" for each in seen.sources if each.side == "train"]
    kept = {name: int((place == PLACE[name]).sum()) for name in ("held_out", "test", "trained")}
    if shares[0]:
        note = f"held out by {settings.group or 'prompt'}: {kept['held_out']} of {sum(kept.values())} rows"
        note += f" (share {shares[0]:g}{', of each answer' if settings.stratify else ''})"
    return Survey(
        settings,
        seen,
        place,
        findings=findings(
            seen,
            place,
            method=method,
            max_length=settings.max_length,
            split=settings.if_too_long(raw_text=True) == "split",
            stops=stops is not False,
        ),
        sources=[_described(each, seen) for each in seen.sources if each.side != "against"],
        notes=[*notes, *([note] if note else [])],
    )


def _refusal(seen: Scan) -> DataError:
    """Of the first source that has bad rows."""
    begin = 0
    for each in seen.sources:
        good = int(seen.good[each.rows].sum())
        bad = each.rows.stop - each.rows.start - good
        if bad:
            return each.reader.refusal(seen.bad[begin : begin + bad], bad, good)
        begin += bad
    raise AssertionError("there are bad rows, and no source has any")


def workers() -> int:
    """Processes for reading and encoding: ``TUNESMITH_WORKERS``, or the CPUs that this process may use."""
    said = os.environ.get("TUNESMITH_WORKERS", "0")
    if not said.isdecimal():
        raise DataError(
            "TUNESMITH_WORKERS is no number", why=f"found {said!r}", remedy="set it to 1 or more, or unset it"
        )
    return int(said) or len(os.sched_getaffinity(0))


def only_held_out(found: Survey) -> Survey:
    """The same rows, all of them to judge on and none to train on."""
    place = np.where(found.place == PLACE["trained"], PLACE["held_out"], found.place)
    return replace(found, place=place.astype(np.int8), findings=[])


def _named_sources(
    settings: DataSettings, against: SourceSettings | None
) -> tuple[list[tuple[SourceSettings, Side]], str | None, tuple[float, float]]:
    """Every source with its side, a note on where held-out rows come from, and the shares that are held out."""
    named: list[tuple[SourceSettings, Side]] = [(source, "train") for source in settings.sources("train")]
    eval_sources, note = _eval_sources(settings)
    named.extend((source, "eval") for source in eval_sources)
    named.extend((source, "test") for source in settings.sources("test"))
    if against is not None:
        named.append((against, "against"))
    share = 0.0 if eval_sources else DEFAULT_EVAL_SHARE if settings.eval is None else settings.eval
    test = settings.test if isinstance(settings.test, float | int) else 0.0
    assert isinstance(share, float | int)
    return named, note, (float(share), float(test))


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


def _described(scanned: Scanned, seen: Scan) -> dict[str, Any]:
    rows = scanned.rows
    return {
        "path": scanned.settings.path,
        "side": scanned.side,
        "split": scanned.reader.split,
        "format": scanned.reader.shape,
        "rows": rows.stop - rows.start,
        "invalid": int((~seen.good[rows]).sum()),
        "weight": scanned.settings.weight,
        "rows_an_epoch": scanned.settings.rows,
        "files": [{"path": name, "sha256": digest} for name, digest in scanned.reader.files()],
        "ignored": scanned.reader.ignored,
    }


def check_metrics(metrics: Sequence[str], found: Survey) -> None:
    """Raises RecipeError for a metric that compares answers where the rows turned out to be raw text."""
    if not found.raw_text:
        return
    try:
        refuse_answer_metrics(list(metrics))
    except ValueError as error:
        raise RecipeError(str(error), where="evaluation.metrics", why="The rows are raw text.") from None


def _check_objective(objective: str, seen: Scan) -> None:
    """Raises DataError for rows that are not what the objective learns from."""
    wanted = OBJECTIVE_SHAPES.get(objective)
    for each in seen.sources:
        shape = each.reader.shape
        if (shape == wanted) if wanted else (shape not in PREFERENCES):
            continue
        fields = "{prompt, completion, label}" if wanted == "unpaired_preference" else "{prompt, chosen, rejected}"
        fit = [name for name, own in OBJECTIVE_SHAPES.items() if own == shape] or ["sft"]
        remedy = f"set objective: {' or '.join(fit)}"
        if wanted:
            remedy = f"give rows {fields}, name the columns that hold these (data.columns), or {remedy}"
        raise DataError(
            f"the objective {objective} does not learn from rows of the shape {shape}",
            where=each.settings.path,
            why=each.reader.reason,
            remedy=remedy,
        )


def make_template(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    added_tokens: Sequence[str] = (),
) -> ChatTemplate:
    """The chat template of a run, with the date it prints fixed to the recipe's or to today's."""
    from tunesmith.data.template import ChatTemplate

    date = date_of(settings)
    return ChatTemplate(tokenizer, stop_ids=stop_ids, settings=settings, date=date, added_tokens=added_tokens)


def within_positions(settings: DataSettings, folder: Path) -> DataSettings:
    """``max_length`` at most the positions that the model in the folder has, as in a run."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads the model says what is wrong with it
        return settings
    limit = config.get("text_config", config).get("max_position_embeddings")
    if not isinstance(limit, int) or settings.max_length <= limit:
        return settings
    return settings.model_copy(update={"max_length": limit})


def date_of(settings: DataSettings) -> str:
    """The date that templates print."""
    return settings.date or time.strftime("%Y-%m-%d")


def encode(
    found: Survey,
    template: ChatTemplate,
    *,
    listener: Listener | None = None,
) -> Corpus:
    """Token ids and labels of every row, the too long ones treated as the recipe says, and the ledger of it all.

    Raises DataError for a row that the template or the supervision rule cannot take, and when more rows are lost than
    ``data.max_lost`` allows.
    """
    from tunesmith.model.cache import cache_dir
    from tunesmith.tokens import encoded

    settings = found.settings
    rows, noticed = encoded(
        found.scan.examples(),
        total=int(found.scan.own.sum()),
        template=template,
        folder=Path(template.tokenizer.name_or_path),
        key=_content_key(found),
        cache=cache_dir(),
        workers=workers(),
        listener=listener or Silent(),
    )
    fitted = _fitted(rows, found, settings)
    corpus = _corpus(found, rows, fitted, noticed)
    refuse_lost(corpus.ledger, settings)
    return corpus


def _content_key(found: Survey) -> str:
    """Of everything that decides which examples there are, in which order."""
    readings = [
        (each.side, each.settings.model_dump(mode="json", exclude={"weight", "rows"}), each.reader.shape,
         each.reader.files(), each.readings[0].mask)
        for each in found.scan.sources
        if each.side != "against"
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(readings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Fitted:
    """By encoded row: whether it is kept, whole, cut or split; by example: its place, too long ones in theirs."""

    kept: np.ndarray
    cut: np.ndarray
    split: np.ndarray
    place: np.ndarray


def _fitted(rows: EncodedRows, found: Survey, settings: DataSettings) -> _Fitted:
    """A row is cut at its right end; one whose labels all lie behind the cut is dropped. A split one loses nothing.

    Raises:
        DataError: there are longer rows that nothing is to be done with; it names the longest.
    """
    wanted = np.isin(found.place[rows.examples], [PLACE[name] for name in KEPT])
    long = wanted & (rows.lengths > settings.max_length)
    raw_text = found.scan.raw_text[rows.examples]
    of_text, of_turns = (settings.if_too_long(raw_text=each) for each in (True, False))

    def treated(rule: str) -> np.ndarray:
        return long & np.where(raw_text, of_text == rule, of_turns == rule)

    refused, split = treated("error"), treated("split")
    if refused.any():
        raise too_long(rows, refused, raw_text, int(wanted.sum()), settings.max_length)
    cut = np.zeros(len(rows), bool)
    for number in np.flatnonzero(treated("truncate")).tolist():
        cut[number] = bool(rows[number].supervised[: settings.max_length].any())
    kept = wanted & (~long | cut | split)
    if found.together > 1:  # an answer without the one that it is compared to is of no use
        kept &= kept.reshape(-1, found.together).all(1).repeat(found.together)
        cut &= kept
    place = found.place.copy()
    gone = np.setdiff1d(rows.examples[wanted], rows.examples[kept])
    place[gone] = PLACE["too_long"]
    for side, name in (("trained", "train on"), ("held_out", "judge on")):
        before = found.scan.own & (found.place == PLACE[side])
        if before.any() and not (place[found.scan.own] == PLACE[side]).any():
            raise DataError(
                f"No row is left to {name}",
                where="data.max_length",
                why=f"All {int(before.sum())} rows have more than {settings.max_length} tokens.",
                remedy="Raise data.max_length, or set data.too_long: truncate.",
            )
    return _Fitted(kept, cut, split, place)


NAMED = 5  # so many of the longest rows are named


def too_long(rows: EncodedRows, long: np.ndarray, raw_text: np.ndarray, total: int, max_length: int) -> DataError:
    """The refusal of rows that are too long."""
    split = ", data.too_long: split (cuts raw text into blocks and loses nothing)" if (long & raw_text).any() else ""
    numbers = np.flatnonzero(long)
    longest = numbers[np.argsort(-rows.lengths[numbers], kind="stable")]
    names = [f"{rows[int(number)].source}: {rows.lengths[number]:,} tokens" for number in longest[:NAMED]]
    more = [f"and {len(numbers) - NAMED:,} more"] if len(numbers) > NAMED else []
    return DataError(
        f"{len(numbers):,} of {total:,} rows are longer than data.max_length ({max_length:,} tokens)",
        where=rows[int(longest[0])].source,
        why="\n".join(["the longest:", *names, *more]),
        remedy=(
            f"set data.max_length: {rows.lengths[longest[0]]} (it costs memory){split}, data.too_long: drop (leaves "
            "these rows out), or data.too_long: truncate (cuts the end of their answers)."
        ),
    )


def _corpus(found: Survey, rows: EncodedRows, fitted: _Fitted, noticed: list[Finding]) -> Corpus:
    seen, limit = found.scan, found.settings.max_length
    sides = {}
    for name in ("trained", "held_out", "test"):
        numbers = np.flatnonzero(fitted.kept & (fitted.place[rows.examples] == PLACE[name]))
        sides[name] = rows.select(numbers).split(fitted.split[numbers], limit)
    train, held_out, together = sides["trained"], sides["held_out"], found.together
    weights = np.array([each.settings.weight for each in seen.sources])
    quotas = {
        number: each.settings.rows
        for number, each in enumerate(seen.sources)
        if each.settings.rows is not None and each.side == "train"
    }
    return Corpus(
        train=train,
        held_out=held_out,
        test=sides["test"],
        weights=weights[seen.source[train.examples[::together]]],
        train_sources=seen.source[train.examples[::together]],
        quotas=quotas,
        source_names=[each.settings.path for each in seen.sources],
        groups=first_of(seen.prompt),
        ledger=_ledger(seen, fitted.place, rows, fitted, limit),
        findings=noticed,
        left_out=np.flatnonzero(fitted.place == PLACE["too_long"]),
        encoded=rows,
        labels=seen.label,
        together=together,
    )


def _ledger(
    seen: Scan, place: np.ndarray, rows: EncodedRows | None = None, fitted: _Fitted | None = None, limit: int = 0
) -> Ledger:
    """Rows as they stand in the files: an example that became several rows is one, kept if any of them is.

    Tokens that were cut off, and those of rows that were dropped from a kept example, went to ``too_long``. Those of a
    row that was split are counted once, though each block begins with the last token of the one before.
    """
    ledger = Ledger(tokenized=rows is not None)
    amounts: dict[str, np.ndarray] = {"rows": np.ones(len(seen), np.int64)}
    lost: dict[str, np.ndarray] = {}
    truncated = np.zeros(len(seen), bool)
    blocks = np.zeros(len(seen), np.int64)
    if rows is not None and fitted is not None:
        from tunesmith.tokens import blocks_of

        truncated[rows.examples[fitted.cut]] = True
        blocks = _by_example(rows, np.where(fitted.split, blocks_of(rows.lengths, limit), 0), len(seen))
        kept_place = np.isin(place[rows.examples], [PLACE[name] for name in KEPT])
        for unit, whole, short in (
            ("tokens", rows.lengths, np.minimum(rows.lengths, limit)),
            ("supervised", rows.supervised_counts, rows.select(np.arange(len(rows)), longest=limit).supervised_counts),
        ):
            kept = np.where(kept_place, np.where(fitted.split, whole, np.where(fitted.kept, short, 0)), whole)
            amounts[unit] = _by_example(rows, kept, len(seen))
            lost[unit] = _by_example(rows, whole - kept, len(seen))
    for number, each in enumerate(seen.sources):
        if each.side == "against":
            continue
        account, mine = ledger.source(each.settings.path), slice(each.rows.start, each.rows.stop)
        for unit, amount in amounts.items():
            counts: Counts = getattr(account, unit)
            placed = np.bincount(place[mine], weights=amount[mine], minlength=len(PLACES)).astype(np.int64)
            if unit in lost:
                placed[PLACE["too_long"]] += int(lost[unit][mine].sum())
            for name, count in zip(PLACES, placed.tolist(), strict=True):
                setattr(counts, name, getattr(counts, name) + count)
            counts.read += int(amount[mine].sum()) + (int(lost[unit][mine].sum()) if unit in lost else 0)
        account.truncated += int(truncated[mine].sum())
        account.split += int(np.count_nonzero(blocks[mine]))
        account.blocks += int(blocks[mine].sum())
        assert number == 0 or each.rows.start == seen.sources[number - 1].rows.stop
    ledger.check()
    return ledger


def _by_example(rows: EncodedRows, amount: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(rows.examples, weights=amount, minlength=count).astype(np.int64)


def refuse_lost(ledger: Ledger, settings: DataSettings) -> None:
    """Raises DataError where more rows are lost than ``data.max_lost`` allows."""
    if settings.max_lost is None:
        return
    counts = ledger.rows
    lost = sum(getattr(counts, name) for name in LOST)
    share = lost / counts.read
    if share > settings.max_lost:
        where = ", ".join(f"{getattr(counts, name):,} {name.replace('_', ' ')}" for name in LOST)
        raise DataError(
            f"{lost:,} of {counts.read:,} rows are lost before training ({share:.1%})",
            where="data.max_lost",
            why=f"{where}; data.max_lost allows {settings.max_lost:.1%}",
            remedy="look at them with `tunesmith check`, mend the data, or raise data.max_lost",
        )
