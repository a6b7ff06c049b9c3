"""One pass over all rows of all sources, in parallel, that keeps facts and no rows: memory grows by 250 bytes a row.

Whatever is said of the data, and whatever becomes of a row, is computed from these columns: by ``findings.py`` and by
``clean.py``. What comes out does not depend on the number of processes or the size of blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np

from tunesmith.data.checks.facts import SAMPLES_KEPT, TEXTS_KEPT, Facts, Reading, examples_of, facts_of, prompt_text
from tunesmith.data.checks.near_duplicates import NearIndex
from tunesmith.data.checks.pool import Pool
from tunesmith.data.examples.example import Example
from tunesmith.data.examples.row_shapes import did_you_mean, listed
from tunesmith.data.files.reader import Reader, open_source
from tunesmith.data.files.rows import BadRow, Row
from tunesmith.data.finding import Places, Sample
from tunesmith.errors import DataError
from tunesmith.recipe.data import SourceSettings
from tunesmith.runs.progress import Listener

Side = Literal["train", "eval", "test", "against"]
SIDES: tuple[Side, ...] = ("train", "eval", "test", "against")
ROWS_THAT_TELL_THE_FRAME = 200
COLUMNS = (
    "line", "good", "content", "prompt", "answer", "opening", "unit", "draw", "characters", "answer_characters",
    "marks", "raw_text", "label", "plain",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scanned:
    """A source: its files, with how each is read. ``rows``: those of the scan that are its own."""

    settings: SourceSettings
    side: Side
    reader: Reader
    readings: list[Reading]
    rows: slice


@dataclass(slots=True, eq=False)
class Scan:
    """Columns [rows] over all rows of all sources in their order, bad ones among them.

    ``file`` and ``source`` are indexes of ``files`` and ``sources``, ``side`` of SIDES; the others are those of
    ``Facts``. ``near``: for each row the first row of its cluster of near duplicates, itself where it has none; None
    where they were not looked for.
    """

    sources: list[Scanned]
    files: list[str]
    file: np.ndarray
    source: np.ndarray
    side: np.ndarray
    line: np.ndarray
    good: np.ndarray
    content: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    opening: np.ndarray
    unit: np.ndarray
    draw: np.ndarray
    characters: np.ndarray
    answer_characters: np.ndarray
    marks: np.ndarray
    raw_text: np.ndarray
    plain: np.ndarray
    label: np.ndarray
    script: np.ndarray
    scripts: list[str]
    bad: list[BadRow]
    samples: dict[str, list[Sample]]
    labels: dict[int, str]
    openings: dict[int, str]
    languages: Counter[str]
    near: np.ndarray | None

    def __len__(self) -> int:
        return len(self.line)

    def places(self, rows: np.ndarray) -> Places:
        """The names of some rows, by number."""
        return Places(self.files, self.file[rows], self.line[rows])

    def side_is(self, *sides: Side) -> np.ndarray:
        """Good rows of these sides, bool [rows]."""
        return self.good & np.isin(self.side, [SIDES.index(side) for side in sides])

    @property
    def own(self) -> np.ndarray:
        """Good rows of the data itself, bool [rows]: not those that it is only held against."""
        return self.good & (self.side != SIDES.index("against"))

    def examples(self) -> Iterator[list[tuple[int, Example]]]:
        """The good rows of the data itself once more, by block with their numbers, read from their files again."""
        first = 0
        own = [scanned for scanned in self.sources if scanned.side != "against"]  # what it is held against comes last
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
        DataError: a source cannot be read, or none of its rows can be used.
    """
    with ExitStack() as stack:
        index = None if threshold is None else stack.enter_context(NearIndex(threshold=threshold))
        gathered = _Gathered(index)
        stack.enter_context(pool)
        opened = [
            (*each, open_source(each[0], role="train" if each[1] == "train" else "eval", wanted=wanted))
            for each in sources
        ]
        if group is not None:
            _check_group([reader for _, side, reader in opened if side == "train"], group)
        frames: list[tuple[str, str]] = []
        for settings, side, reader in opened:
            readings = [
                Reading(part.parse, settings, reader.shape, group, seed, tuple(mask), near=index is not None)
                for part in reader.parts
            ]
            before, behind = _frame(reader, readings, frames)
            readings = [replace(reading, before=before, behind=behind) for reading in readings]
            first = gathered.rows
            with listener.task(f"reading {settings.path}", None) as advance:
                for part, reading in zip(reader.parts, readings, strict=True):
                    for name, facts in pool.map(facts_of, part.blocks(), reading):
                        gathered.add(name, facts)
                        advance(gathered.rows - first, {})
            gathered.end_source(Scanned(settings, side, reader, readings, slice(first, gathered.rows)))
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
    before = _whole_words(_common_beginning(prompts))
    behind = _whole_words(_common_beginning(prompt[len(before) :][::-1] for prompt in prompts))[::-1]
    known.append((before, behind))
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
        names |= dict.fromkeys(name for fields in islice(rows, ROWS_THAT_TELL_THE_FRAME) for name in fields)
    if group not in names:
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
    """Facts of blocks, joined in the end."""

    def __init__(self, index: NearIndex | None) -> None:
        self.index, self.rows = index, 0
        self.blocks: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "script", "file")}
        self.sources: list[Scanned] = []
        self.files: list[str] = []
        self.scripts: list[str] = []
        self.bad: list[BadRow] = []
        self.samples: dict[str, list[Sample]] = {}
        self.labels: dict[int, str] = {}
        self.openings: dict[int, str] = {}
        self.languages: Counter[str] = Counter()

    def add(self, name: str, facts: Facts) -> None:
        if name not in self.files:
            self.files.append(name)
        for column in COLUMNS:
            self.blocks[column].append(getattr(facts, column))
        self.blocks["file"].append(np.full(len(facts.line), self.files.index(name), np.int32))
        self.scripts += [script for script in facts.scripts if script not in self.scripts]
        numbers = np.array([self.scripts.index(script) for script in facts.scripts] or [0], np.uint8)
        self.blocks["script"].append(numbers[facts.script])
        self.bad += facts.bad
        for rule, row, text in facts.samples:
            kept = self.samples.setdefault(rule, [])
            if len(kept) < SAMPLES_KEPT:
                kept.append(Sample(row, text))
        for kept, new in ((self.labels, facts.labels), (self.openings, facts.openings)):
            for number, text in new.items():
                if len(kept) < TEXTS_KEPT:
                    kept[number] = text
        self.languages += facts.languages
        if self.index is not None and facts.keys is not None:
            self.index.add(self.rows + np.flatnonzero(facts.good), facts.keys, facts.texts)
        self.rows += len(facts.line)

    def end_source(self, scanned: Scanned) -> None:
        if not any(good.any() for good in self._since("good", scanned.rows.start)):
            bad = self.bad[len(self.bad) - (scanned.rows.stop - scanned.rows.start) :]  # all of them are
            raise scanned.reader.refusal(bad, len(bad), 0)
        self.sources.append(scanned)

    def _since(self, column: str, first: int) -> Iterator[np.ndarray]:
        position = self.rows
        for part in reversed(self.blocks[column]):
            if position <= first:
                return
            position -= len(part)
            yield part

    def scan(self) -> Scan:
        columns = {name: np.concatenate(self.blocks.pop(name)) for name in list(self.blocks)}
        sizes = [each.rows.stop - each.rows.start for each in self.sources]
        near = None
        if self.index is not None:
            near = np.arange(self.rows)
            near[columns["good"]] = self.index.clusters()
        return Scan(
            sources=self.sources,
            files=self.files,
            source=np.repeat(np.arange(len(sizes), dtype=np.int16), sizes),
            side=np.repeat(np.array([SIDES.index(each.side) for each in self.sources], np.int8), sizes),
            scripts=self.scripts,
            bad=self.bad,
            samples=self.samples,
            labels=self.labels,
            openings=self.openings,
            languages=self.languages,
            near=near,
            **columns,
        )


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
