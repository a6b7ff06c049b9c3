"""One pass over all rows of all sources, in parallel, that keeps facts and no rows: memory grows by 250 bytes a row.

Whatever is said of the data, and whatever becomes of a row, is computed from these columns: by ``findings.py`` and by
``placement.py``. What comes out does not depend on the number of processes or the size of blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np

from tunesmith.data.checks.facts import (
    COLUMNS,
    SAMPLES_KEPT,
    TEXTS_KEPT,
    BlockFacts,
    Reading,
    RowFacts,
    columns_of,
    examples_of,
    facts_of,
    prompt_text,
    with_systems,
    with_tools,
)
from tunesmith.data.checks.near_duplicates import NearIndex
from tunesmith.data.checks.personal import check_mask
from tunesmith.data.checks.pool import Pool
from tunesmith.data.examples.column_values import MISSING, leaves, value_of
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.row_shapes import did_you_mean, listed
from tunesmith.data.files.opening import refuse_unread_keys
from tunesmith.data.files.reader import Reader, open_source
from tunesmith.data.files.rows import Row
from tunesmith.data.finding import Places
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings
from tunesmith.runs.progress import Listener

Side = Literal["train", "eval", "test", "against"]
SOURCE_SIDES: tuple[Side, ...] = ("train", "eval", "test", "against")
ROWS_THAT_TELL_THE_FRAME = 200


@dataclass(frozen=True, slots=True)
class Scanned:
    """A source: its files, with how each is read. ``rows``: those of the scan that are its own.

    ``systems``: its different system texts, None for rows without one; two of them if there are more. ``tools``: names
    of tools that its rows have.
    """

    settings: SourceSettings
    side: Side
    reader: Reader
    readings: list[Reading]
    rows: slice
    systems: list[str | None]
    tools: list[str]


@dataclass(slots=True, kw_only=True, eq=False)
class Scan(RowFacts):
    """What is known of all rows of all sources in their order, bad ones among them.

    ``file`` and ``source`` [rows] are indexes of ``files`` and ``sources``, ``side`` of SOURCE_SIDES. ``near``: for
    each row the first row of its cluster of near duplicates, itself where it has none; None where they were not looked
    for.
    """

    sources: list[Scanned] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    file: np.ndarray
    source: np.ndarray
    side: np.ndarray
    near: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.line)

    def places(self, rows: np.ndarray) -> Places:
        """The names of some rows, by number."""
        return Places(self.files, self.file[rows], self.line[rows])

    def side_is(self, *sides: Side) -> np.ndarray:
        """Good rows of these sides, bool [rows]."""
        return self.good & np.isin(self.side, [SOURCE_SIDES.index(side) for side in sides])

    @property
    def own(self) -> np.ndarray:
        """Good rows of the data itself, bool [rows]: not those that it is only compared with."""
        return self.good & (self.side != SOURCE_SIDES.index("against"))

    def examples(self) -> Iterator[list[tuple[int, Example]]]:
        """The good rows of the data itself once more, by block with their numbers, read from their files again."""
        first = 0
        own = [scanned for scanned in self.sources if scanned.side != "against"]  # what it is compared with comes last
        for scanned in own:
            for part, reading in zip(scanned.reader.parts, scanned.readings, strict=True):
                for block in part.blocks():
                    made = [example for _, example in examples_of(block, reading)]
                    yield [
                        (first + number, example) for number, example in enumerate(made) if isinstance(example, Example)
                    ]
                    first += len(made)
        if first != own[-1].rows.stop:
            raise DataError(
                "the data changed while it was read",
                why=f"It had {own[-1].rows.stop:,} rows, and then {first:,}.",
                remedy="Let nothing write to it meanwhile.",
            )


def scan(
    sources: Sequence[tuple[SourceSettings, Side]],
    *,
    seed: int,
    listener: Listener,
    group: str | None = None,
    mask: Sequence[str] = (),
    wanted: str | None = None,
    threshold: float | None,
    pool: Pool,
) -> Scan:
    """Looks at every row of the sources.

    Args:
        sources: with the side that each is for.
        seed: of the draw that holds rows out.
        group: a column whose value, and not the prompt, is what a split keeps together.
        mask: kinds of personal data to mask before anything else.
        wanted: the shape that is taken where rows fit several.
        threshold: similarity from which rows are near duplicates; None: they are not looked for.
        pool: what looks at the blocks.

    Raises:
        DataError: a source cannot be read, none of its rows can be used, or the mask needs a package that is missing.
    """
    check_mask(mask)
    with ExitStack() as stack:
        index = None if threshold is None else stack.enter_context(NearIndex(threshold=threshold))
        gathered = _Gathered(index)
        stack.enter_context(pool)
        opened = [
            (*each, open_source(each[0], role="train" if each[1] == "train" else "eval", wanted=wanted))
            for each in sources
        ]
        refuse_unread_keys((each, [part.name for part in reader.parts]) for each, _, reader in opened)
        if group is not None:
            _check_group([reader for _, side, reader in opened if side == "train"], group)
        frames: list[tuple[str, str]] = []
        for settings, side, reader in opened:
            readings = [
                Reading(
                    part.parse, settings, reader.shape, reader.export, group, seed, tuple(mask), near=index is not None
                )
                for part in reader.parts
            ]
            before, behind = _frame(reader, readings, frames)
            readings = [replace(reading, before=before, behind=behind) for reading in readings]
            first = gathered.rows
            with listener.task(f"reading {settings.path}", None) as advance:
                for part, reading in zip(reader.parts, readings, strict=True):
                    for name, facts in pool.map(facts_of, part.blocks(), reading):
                        gathered.add(name, facts)
                        if side != "against":
                            gathered.known.masked += facts.masked
                        advance(gathered.rows - first, {})
            gathered.end_source(
                Scanned(settings, side, reader, readings, slice(first, gathered.rows), *gathered.taken())
            )
        return gathered.scan()


def _frame(reader: Reader, readings: Sequence[Reading], known: list[tuple[str, str]]) -> tuple[str, str]:
    """The words that the prompts of the first rows all begin and end with: rows are compared without them.

    A frame of a source before this one is taken, where it fits, so that rows of two sources compare alike.
    """
    if reader.shape == "text":  # documents may be large, and nothing is asked in them
        return "", ""
    parts = zip(reader.parts, readings, strict=True)
    first = (made for part, reading in parts for block in part.blocks() for _, made in examples_of(block, reading))
    prompts = {prompt_text(made) for made in islice(first, ROWS_THAT_TELL_THE_FRAME) if isinstance(made, Example)}
    for before, behind in known:
        if all(prompt.startswith(before) and prompt.removeprefix(before).endswith(behind) for prompt in prompts):
            return before, behind
    if len(prompts) < 2:
        return "", ""
    known.append(common_frame(prompts))
    return known[-1]


def common_frame(prompts: Collection[str]) -> tuple[str, str]:
    """The whole words that all prompts begin with, and those that they end with."""
    before = _whole_words(_common_beginning(prompts))
    behind = _whole_words(_common_beginning(prompt[len(before) :][::-1] for prompt in prompts))[::-1]
    return before, behind


def _common_beginning(texts: Iterable[str]) -> str:
    """Character by character; of all texts, the first and the last in order differ soonest."""
    ordered = sorted(texts)
    pairs = enumerate(zip(ordered[0], ordered[-1], strict=False))
    return ordered[0][: next((place for place, (one, other) in pairs if one != other), len(ordered[0]))]


def _check_group(readers: Sequence[Reader], group: str) -> None:
    """Raises DataError where none of the first rows of any source has the column."""
    names: dict[str, None] = {}
    for reader in readers:
        rows = (row.fields for part in reader.parts for row in part.rows() if isinstance(row, Row))
        first = list(islice(rows, ROWS_THAT_TELL_THE_FRAME))
        if any(value_of(fields, group) is not MISSING for fields in first):
            return
        names |= dict.fromkeys(leaves(first))
    near = did_you_mean(group, names)
    raise DataError(
        f"data.group: there is no column {group!r}",
        where=readers[0].source.path,
        why=f"the columns of the first rows are {listed(names)}",
        remedy=f"did you mean {near}?" if near else "name one of them",
    )


def _whole_words(text: str) -> str:
    """Up to the last white space: half a word that all have in common belongs to the rows."""
    while text and not text[-1].isspace():
        text = text[:-1]
    return text


class _Gathered:
    """Facts of blocks, joined in the end. `known` has the texts of all of them, and no columns before that."""

    def __init__(self, index: NearIndex | None) -> None:
        self.index, self.rows = index, 0
        self.bad_before = 0  # bad rows of the sources that have ended
        self.blocks: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "file")}
        none = np.empty(0)
        self.known = Scan(**columns_of([]), file=none, source=none, side=none)

    def add(self, name: str, facts: BlockFacts) -> None:
        known = self.known
        if name not in known.files:
            known.files.append(name)
        known.scripts += [script for script in facts.scripts if script not in known.scripts]
        numbers = np.array([known.scripts.index(script) for script in facts.scripts] or [0], np.uint8)
        facts.script = numbers[facts.script]
        for column in COLUMNS:
            self.blocks[column].append(getattr(facts, column))
        self.blocks["file"].append(np.full(len(facts.line), known.files.index(name), np.int32))
        known.bad += facts.bad
        for rule, samples in facts.samples.items():
            known.samples[rule] = [*known.samples.get(rule, []), *samples][:SAMPLES_KEPT]
        for texts, new in ((known.labels, facts.labels), (known.openings, facts.openings)):
            for number, text in new.items():
                if len(texts) < TEXTS_KEPT:
                    texts[number] = text
        known.languages += facts.languages
        known.systems = with_systems(known.systems, *facts.systems)
        known.tools = with_tools(known.tools, *facts.tools)
        if self.index is not None and facts.keys is not None:
            self.index.add(self.rows + np.flatnonzero(facts.good), facts.keys, facts.texts)
        self.rows += len(facts.line)

    def taken(self) -> tuple[list[str | None], list[str]]:
        """The system texts and the names of tools of the source that ends."""
        found = self.known.systems, self.known.tools
        self.known.systems, self.known.tools = [], []
        return found

    def end_source(self, scanned: Scanned) -> None:
        bad = self.known.bad[self.bad_before :]
        if len(bad) == scanned.rows.stop - scanned.rows.start:
            raise scanned.reader.refusal(bad, len(bad), 0)
        self.bad_before = len(self.known.bad)
        self.known.sources.append(scanned)

    def scan(self) -> Scan:
        known = self.known
        for name in list(self.blocks):
            setattr(known, name, np.concatenate(self.blocks.pop(name)))
        sizes = [each.rows.stop - each.rows.start for each in known.sources]
        known.source = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
        known.side = np.repeat(np.array([SOURCE_SIDES.index(each.side) for each in known.sources], np.int8), sizes)
        if self.index is not None:
            known.near = np.arange(self.rows)
            known.near[known.good] = self.index.clusters()
        return known


def first_of(fingerprints: np.ndarray) -> np.ndarray:
    """For each row the number of the first row with the same fingerprint, int64 [n]."""
    keys = np.atleast_2d(fingerprints.T)
    order = np.lexsort(keys)  # it is stable, so the first row of each kind comes first
    ordered = keys[:, order]
    begins = np.ones(len(order), bool)
    begins[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first
