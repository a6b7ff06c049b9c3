"""The first of two steps from a recipe's data section to training rows: reads every row and decides what becomes of it.

It needs no tokenizer. The second step, `corpus`, encodes the rows that are kept; `accounts` counts for both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tunesmith.data.accounts import ledger_of
from tunesmith.data.checks.near_duplicates import THRESHOLD
from tunesmith.data.checks.pool import Processes, RayPool
from tunesmith.data.checks.scan import Scan, Scanned, Side, scan
from tunesmith.data.examples.row_shapes import PREFERENCES
from tunesmith.data.files.reader import own_eval_split
from tunesmith.data.files.rows import BadRow, LeftOut
from tunesmith.data.finding import Finding, rows_in_words
from tunesmith.data.ledger import Ledger
from tunesmith.data.placement import OUTCOME, place_rows
from tunesmith.data.report.findings import findings, labels_of
from tunesmith.errors import DataError, RecipeError
from tunesmith.recipe.data import DataSettings, SourceSettings
from tunesmith.recipe.objectives import OBJECTIVE_SHAPES
from tunesmith.recipe.settings import refuse_answer_metrics
from tunesmith.runs.progress import Listener, Silent

DEFAULT_EVAL_SHARE = 0.1
FAR_FROM_SHARE = 0.2  # of the share that was asked for: where few rows are drawn so far from it, it is said


@dataclass(slots=True)
class Survey:
    """The rows before a tokenizer has seen them: what is known of each, and what becomes of it.

    ``outcome`` [rows] holds indexes of OUTCOMES. ``sources`` is what a run records of them.
    """

    settings: DataSettings
    scan: Scan
    outcome: np.ndarray
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

    def trained_labels(self) -> dict[str, int]:
        """Rows to train on by label; empty where answers are not labels."""
        answers = self.scan.answer[self.outcome == OUTCOME["trained"]]
        texts = self.scan.labels
        return {texts[each.number]: int((answers == each.number).sum()) for each in labels_of(self.scan) or []}

    def left_out_in_words(self) -> list[str]:
        """How many rows the tool that wrote the file marks as not to be used, by its word for it; nothing if none."""
        counts = Counter(row.found for row in self.scan.bad if isinstance(row, LeftOut))
        said = ", ".join(f"{count:,} {why}" for why, count in counts.items())
        return [f"left out, as the file says: {said}"] if said else []

    def ledger(self) -> Ledger:
        """Where the rows went, without their tokens."""
        return ledger_of(self.scan, self.outcome)


def survey_rows(
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
    if settings.on_error == "stop" and (~seen.good & ~seen.left_out).any():
        raise _refusal(seen)
    if settings.too_long == "split" and not seen.raw_text[seen.own].any():
        raise DataError(
            "There is nothing to split: no row is raw text",
            where="data.too_long",
            why="The rows are conversations, and a part of an answer without its prompt teaches something else.",
            remedy="Set data.too_long: drop or truncate, or raise data.max_length.",
        )
    outcome = place_rows(seen, settings, eval_share=shares[0], test_share=shares[1])
    notes = [f"{each.settings.path}: {each.reader.reason}" for each in seen.sources if each.side == "train"]
    kept = {name: int((outcome == OUTCOME[name]).sum()) for name in ("held_out", "test", "trained")}
    if shares[0]:
        count, rows = kept["held_out"], sum(kept.values())
        note = f"held out by {settings.group or 'prompt'}: {count} of {rows_in_words(rows)}"
        note += f" (share {shares[0]:g}{', of each answer' if settings.stratify else ''})"
        if abs(count - shares[0] * rows) > FAR_FROM_SHARE * shares[0] * rows:
            note += f": it became {count / rows:.2g}, because a hash draws rows; another training.seed draws others"
    if clean.mask:
        items = ", ".join(f"{kind} {seen.masked[kind]:,}" for kind in clean.mask)
        notes.append(f"masked by data.clean.mask_pii: {items}")
    found = Survey(
        settings,
        seen,
        outcome,
        findings=findings(
            seen,
            outcome,
            method=method,
            max_length=settings.max_length,
            split=settings.if_too_long(raw_text=True) == "split",
            stops=stops is not False,
        ),
        sources=[_described(each, seen) for each in seen.sources if each.side != "against"],
        notes=[*notes, *([note] if note else [])],
    )
    found.notes += found.left_out_in_words()
    return found


def _refusal(seen: Scan) -> DataError:
    """Of the first source that has bad rows."""
    begin = 0
    for each in seen.sources:
        good = int(seen.good[each.rows].sum())
        bad = each.rows.stop - each.rows.start - good
        own = [row for row in seen.bad[begin : begin + bad] if not isinstance(row, LeftOut)]
        if own:
            return each.reader.refusal(own, len(own), good)
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
    outcome = np.where(found.outcome == OUTCOME["trained"], OUTCOME["held_out"], found.outcome)
    return replace(found, outcome=outcome.astype(np.int8), findings=[])


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
        "systems": scanned.systems,
        "tools": scanned.tools,
        "rows": rows.stop - rows.start,
        "invalid": int((~seen.good[rows] & ~seen.left_out[rows]).sum()),
        "weight": scanned.settings.weight,
        "rows_an_epoch": scanned.settings.rows,
        "files": [{"path": name, "sha256": digest} for name, digest in scanned.reader.files()],
        "ignored": scanned.reader.ignored,
    }


def check_metrics(metrics: Sequence[str], found: Survey, *, key: str = "evaluation.metrics") -> None:
    """Raises RecipeError for a metric that compares answers where the rows turned out to be raw text."""
    if not found.raw_text:
        return
    try:
        refuse_answer_metrics(list(metrics), key=key)
    except ValueError as error:
        raise RecipeError(str(error), where=key, why="The rows are raw text.") from None


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
