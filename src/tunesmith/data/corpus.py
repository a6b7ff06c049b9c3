"""The second of two steps from a recipe's data section to training rows: encodes the rows that `survey` has read.

What is wrong with the rows stops a run in the first step, before a model is fetched. Rows are read twice, once for
what is said of them and once to become tokens. They are never all in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.data.accounts import Fitted, ledger_of, refuse_lost
from tunesmith.data.checks.scan import first_of
from tunesmith.data.finding import Finding
from tunesmith.data.ledger import KEPT_OUTCOMES, Ledger
from tunesmith.data.placement import OUTCOME
from tunesmith.data.survey import Survey, workers
from tunesmith.errors import DataError
from tunesmith.recipe.data import DataSettings
from tunesmith.runs.cache import cache_dir
from tunesmith.runs.progress import Listener, Silent
from tunesmith.runs.rows_folders import passing_folder_of

if TYPE_CHECKING:
    from tunesmith.data.chat.template import ChatTemplate, Encoded
    from tunesmith.data.encoded_rows import EncodedRows, RefusedRow


_NEEDED = {OUTCOME["trained"], OUTCOME["held_out"]}  # if there are such rows, some must be left
_LONGEST_NAMED = 5  # so many of the longest rows are named


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
    ``refused``: examples that cannot become tokens, which ``data.on_error: skip`` sets aside as invalid.
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
    refused: list[RefusedRow]
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


def encode_corpus(
    found: Survey,
    template: ChatTemplate,
    *,
    listener: Listener | None = None,
) -> Corpus:
    """Token ids and labels of every row, the too long ones treated as the recipe says, and the ledger of it all.

    Raises:
        DataError: a row that the template or the supervision rule cannot take, unless ``data.on_error`` is ``skip`` and
            others are left; or more rows are lost than ``data.max_lost`` allows.
    """
    from tunesmith.data.token_cache import encode_rows, refusal

    settings = found.settings
    passing = filter(None, (passing_folder_of(each.settings.path) for each in found.scan.sources))
    rows, noticed = encode_rows(
        found.scan.examples(),
        total=int(found.scan.own.sum()),
        template=template,
        folder=Path(template.tokenizer.name_or_path),
        key=_content_key(found),
        cache=next(passing, cache_dir()),  # tokens go with the rows that go
        workers=workers(),
        listener=listener or Silent(),
        stops=settings.on_error == "stop",
    )
    if rows.refused:
        outcome = found.outcome.copy()
        outcome[[row.example for row in rows.refused]] = OUTCOME["invalid"]
        if {*found.outcome.tolist()} & _NEEDED - {*outcome.tolist()}:
            raise refusal(rows.refused, others=False)
        found = replace(found, outcome=outcome)
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


def _fitted(rows: EncodedRows, found: Survey, settings: DataSettings) -> Fitted:
    """A row is cut at its right end; one whose labels all lie behind the cut is dropped. A split one loses nothing.

    Raises:
        DataError: there are longer rows that nothing is to be done with; it names the longest.
    """
    wanted = np.isin(found.outcome[rows.examples], [OUTCOME[name] for name in KEPT_OUTCOMES])
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
    outcome = found.outcome.copy()
    gone = np.setdiff1d(rows.examples[wanted], rows.examples[kept])
    outcome[gone] = OUTCOME["too_long"]
    for side, name in (("trained", "train on"), ("held_out", "judge on")):
        before = found.scan.own & (found.outcome == OUTCOME[side])
        if before.any() and not (outcome[found.scan.own] == OUTCOME[side]).any():
            truncated = bool(cut.any()) or settings.too_long == "truncate"
            raise DataError(
                f"No row is left to {name}",
                where="data.max_length",
                why=f"All {int(before.sum())} rows have more than {settings.max_length} tokens"
                + (", and their first tokens hold nothing to learn." if truncated else "."),
                remedy="Raise data.max_length."
                if truncated
                else "Raise data.max_length, or set data.too_long: truncate.",
            )
    return Fitted(kept, cut, split, outcome)


def too_long(rows: EncodedRows, long: np.ndarray, raw_text: np.ndarray, total: int, max_length: int) -> DataError:
    """The refusal of rows that are too long."""
    split = ", data.too_long: split (cuts raw text into blocks and loses nothing)" if (long & raw_text).any() else ""
    numbers = np.flatnonzero(long)
    longest = numbers[np.argsort(-rows.lengths[numbers], kind="stable")]
    names = [f"{rows[int(number)].source}: {rows.lengths[number]:,} tokens" for number in longest[:_LONGEST_NAMED]]
    more = [f"and {len(numbers) - _LONGEST_NAMED:,} more"] if len(numbers) > _LONGEST_NAMED else []
    return DataError(
        f"{len(numbers):,} of {total:,} rows are longer than data.max_length ({max_length:,} tokens)",
        where=rows[int(longest[0])].source,
        why="\n".join(["the longest:", *names, *more]),
        remedy=(
            f"set data.max_length: {rows.lengths[longest[0]]} (it costs memory){split}, data.too_long: drop (leaves "
            "these rows out), or data.too_long: truncate (cuts the end of their answers)."
        ),
    )


def _corpus(found: Survey, rows: EncodedRows, fitted: Fitted, noticed: list[Finding]) -> Corpus:
    seen, limit = found.scan, found.settings.max_length
    sides = {}
    for name in ("trained", "held_out", "test"):
        numbers = np.flatnonzero(fitted.kept & (fitted.outcome[rows.examples] == OUTCOME[name]))
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
        ledger=ledger_of(seen, fitted.outcome, rows, fitted, limit),
        findings=noticed,
        left_out=np.flatnonzero(fitted.outcome == OUTCOME["too_long"]),
        encoded=rows,
        labels=seen.label,
        refused=rows.refused,
        together=together,
    )
